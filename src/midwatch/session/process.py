"""The launcher of the claude program, which gives it an environment that is built, not inherited.

The Agent SDK passes all of the runner's environment on to the program that it starts. So it starts a small
script instead, which drops that environment and runs `supervisor.py`; that one starts the program with the
variables of a plan, and passes the API key through a pipe. Bash in the session sees no key: the program
reads the pipe once, and neither an environment, an argument nor a file has the key.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch.session.errors import ProgramRefused, SandboxUnavailable
from midwatch.session.log import map_disk_error
from midwatch.session.options import SessionOptions
from midwatch.session.supervisor import started

GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL for the program; it takes some 20 ms where nothing hangs."""
_SUPERVISOR = Path(__file__).with_name("supervisor.py")


@dataclass(frozen=True, slots=True)
class Launcher:
    """The files of one start; `script` stands in for the program."""

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
            raise map_disk_error(error, self.plan) from error
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
        """Return the pipe with the key in it, which stays until it is read or the pipe is closed."""
        self.key_pipe.unlink(missing_ok=True)
        os.mkfifo(self.key_pipe, 0o600)
        pipe = os.open(self.key_pipe, os.O_RDWR | os.O_CLOEXEC)
        os.write(pipe, f"{key}\n".encode())
        return pipe

    def processes(self) -> list[int]:
        """Return the pids of the program and of its supervisor, as far as they still run."""
        try:
            lines = self.record.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        listed = [line.partition(" ") for line in lines]
        return [int(pid) for pid, _, at in listed if at and started(int(pid)) == at]

    def terminate(self) -> None:
        """Ask the supervisor to end the program now."""
        for pid in self.processes()[-1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def reap(self, patience: float = GRACE + 2) -> int:
        """End what an earlier run left running. Return the number of processes.

        Only a process whose pid and start time are those in the record is touched. Blocks up to `patience` seconds.
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


# ------------------------------------------------------------------ the environment

_FIXED = {
    "LANG": "C.UTF-8",
    "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
    "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS": "1",
    # The program connects to the Messages API only, and installs and updates nothing.
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
}


def program_environment(
    options: SessionOptions,
    *,
    config: Path,
    home: Path,
    cwd: Path,
    base_url: str | None,
    resume_turn: bool,
) -> dict[str, str]:
    """Return all variables of the program. The caller's own come last, so they may replace any.

    Raises ProgramRefused for a variable that no environment can hold.
    """
    env = {
        **_FIXED,
        "PATH": options.path,
        "HOME": str(options.home or home),
        "PWD": str(cwd),
        "CLAUDE_CONFIG_DIR": str(config),
        "CLAUDE_CODE_MAX_RETRIES": str(options.limits.retries),
    }
    if base_url:
        env["ANTHROPIC_BASE_URL"] = base_url
    if (
        options.mcp_servers
    ):  # wait for them, or the first turn does not have their tools
        env["MCP_CONNECTION_NONBLOCKING"] = "0"
    if resume_turn:
        env["CLAUDE_CODE_RESUME_INTERRUPTED_TURN"] = "1"
    env |= options.variables
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value or not _encodable(value):
            raise ProgramRefused(f"{name!r} cannot be a variable with its value")
    return env


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def sandbox_wanted(options: SessionOptions) -> bool:
    """Return whether Bash will run in a sandbox. Raises SandboxUnavailable if a required one is not available."""
    if options.sandbox == "off":
        return False
    missing = _missing(options.path)
    if missing and options.sandbox == "on":
        raise SandboxUnavailable(f"no sandbox: {', '.join(missing)} not found")
    return not missing


def _missing(path: str) -> list[str]:
    needed = {"linux": ("bwrap", "socat"), "darwin": ("sandbox-exec",)}
    programs = needed.get(sys.platform)
    if programs is None:
        return [f"support for {sys.platform}"]
    return [name for name in programs if shutil.which(name, path=path) is None]
