"""How the claude program is started: through a launcher that gives it an environment built from a list.

The Agent SDK hands all of the runner's environment to what it starts. So it starts a small script
of ours, which throws that away and runs `supervise.py`; that one starts the program with the
variables of a plan, and passes the API key through a pipe. Bash in the session sees no key: the program
reads the pipe once, and neither an environment, an argument nor a file has the key.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch.session.outbox import disk_error
from midwatch.session.supervise import started

GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL for the program; it takes some 20 ms where nothing hangs."""
_SUPERVISOR = Path(__file__).with_name("supervise.py")


@dataclass(frozen=True, slots=True)
class Launcher:
    """What one start needs on the disk; `script` stands in for the program."""

    script: Path
    plan: Path
    key_pipe: Path
    record: Path
    mcp_servers: Path

    @classmethod
    def in_folder(cls, folder: Path) -> Launcher:
        return cls(
            folder / "claude",
            folder / "plan",
            folder / "key",
            folder / "processes",
            folder / "mcp.json",
        )

    @contextlib.contextmanager
    def ready(
        self,
        program: Path,
        env: Mapping[str, str],
        key: str,
        servers: Mapping[str, Any],
    ) -> Iterator[None]:
        """While inside, `script` can be started, once. Raises DiskFull and FolderUnusable.

        The MCP servers' settings may hold tokens: they are in a file, not among the arguments.
        """
        try:
            self._write(program, env)
            self.mcp_servers.touch(mode=0o600)
            self.mcp_servers.write_text(json.dumps({"mcpServers": dict(servers)}))
            pipe = self._open_pipe(key)
        except OSError as error:
            raise disk_error(error, self.plan) from error
        try:
            yield
        finally:
            os.close(pipe)
            self.key_pipe.unlink(missing_ok=True)
            self.mcp_servers.unlink(missing_ok=True)

    def _write(self, program: Path, env: Mapping[str, str]) -> None:
        self.record.unlink(missing_ok=True)
        texts = [
            str(program),
            str(self.record),
            str(self.key_pipe),
            str(os.getpid()),
            str(GRACE),
            *(f"{name}={value}" for name, value in env.items()),
        ]
        plan = "".join(f"{text}\0" for text in texts)
        self.plan.write_bytes(plan.encode("utf-8", "surrogateescape"))
        self.plan.chmod(0o600)
        words = [sys.executable, "-I", "-S", str(_SUPERVISOR), str(self.plan)]
        command = " ".join(shlex.quote(word) for word in words)
        self.script.write_text(f'#!/bin/sh\nexec /usr/bin/env -i {command} "$@"\n')
        self.script.chmod(0o700)

    def _open_pipe(self, key: str) -> int:
        """The pipe with the key in it: what is written stays until it is read or we close."""
        self.key_pipe.unlink(missing_ok=True)
        os.mkfifo(self.key_pipe, 0o600)
        pipe = os.open(self.key_pipe, os.O_RDWR | os.O_CLOEXEC)
        os.write(pipe, f"{key}\n".encode())
        return pipe

    def processes(self) -> list[int]:
        """The pids of the program and of its supervisor, those that still run."""
        try:
            lines = self.record.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        listed = [line.partition(" ") for line in lines]
        return [int(pid) for pid, _, at in listed if at and started(int(pid)) == at]

    def terminate(self) -> None:
        """Ask the program to end now; its supervisor sees to it."""
        for pid in self.processes()[-1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def reap(self, patience: float = GRACE + 2) -> int:
        """End what an earlier run left running; returns how many processes that were.

        Only processes that still are the ones written down are touched. Blocks up to
        `patience` seconds.
        """
        left = self.processes()
        self.terminate()
        until = time.monotonic() + patience
        while self.processes() and time.monotonic() < until:
            time.sleep(0.02)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(left)
