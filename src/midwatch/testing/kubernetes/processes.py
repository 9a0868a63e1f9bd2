"""The process that is a container: its own group, its log, its end and that of all it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil


class Process:
    """Started at once. Raises OSError where it cannot be."""

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        log: Path,
    ) -> None:
        with log.open("ab") as sink:
            self._child = subprocess.Popen(
                list(argv),
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._child.pid
        self._family: set[psutil.Process] = set()
        self._done = False

    def code(self) -> int | None:
        """The exit code as a container has it (137 for SIGKILL); None while it runs."""
        code = self._child.poll()
        return 128 - code if code is not None and code < 0 else code

    def look(self) -> None:
        """Remember the processes below it: what outlives it ends with it, as in a container."""
        with contextlib.suppress(psutil.Error):
            self._family.update(psutil.Process(self.pid).children(recursive=True))

    def terminate(self) -> None:
        """SIGTERM, to the first process only, as a container's."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, to everything. The exit code is known when this returns."""
        self.look()
        self.clean_up()

    def clean_up(self) -> None:
        """End what the first process has left behind, and that itself if it still runs."""
        if self._done:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for relative in self._family:
            with contextlib.suppress(psutil.Error):
                relative.kill()
        self._child.wait(10)
        self._done = True
