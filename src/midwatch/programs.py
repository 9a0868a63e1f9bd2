"""Run a program in a process group of its own, bounded in time and output."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from midwatch.errors import ObservationFailed
from midwatch.text import ticket_line

_STDERR_TAIL = 8192
_REAP_SECONDS = 2.0  # seconds that a killed process gets to be reaped


@dataclass(frozen=True, slots=True)
class ProcessResult:
    """How a process ended. `code` is negative for a signal, None when it was still running at its timeout.

    `stderr` is its tail. `too_large` is true when it wrote more than its limit.
    """

    code: int | None
    stdout: bytes
    stderr: bytes
    seconds: float
    too_large: bool

    @property
    def failure(self) -> str:
        """Why the run failed, or ""."""
        if self.too_large:
            return f"wrote more than {len(self.stdout)} bytes"
        if self.code is None:
            return f"did not end within {self.seconds:.3g} s and was killed"
        if self.code < 0:
            return f"was ended by signal {-self.code}"
        return f"exited with status {self.code}" if self.code else ""


async def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None,
    timeout: float,
    max_output: int,
) -> ProcessResult:
    """Run `command`, never through a shell, in a process group of its own, with only `env`.

    It has ended when it exited and its output is closed. The process group is killed then, after `timeout`
    seconds, or on cancellation.

    Args:
        command: Program and arguments.
        env: The whole environment.
        cwd: The working directory.
        timeout: Seconds.
        max_output: Bytes of standard output, above which it is killed.

    Raises:
        ObservationFailed: It cannot be started.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        transport, output = await loop.subprocess_exec(
            lambda: _Output(max_output),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = ticket_line(str(getattr(error, "strerror", None) or error), 200)
        raise ObservationFailed(
            f"{ticket_line(command[0], 100)} could not be started: {reason}",
            hint="use a program that exists, with its full path or on its PATH",
        ) from None
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(output.ended.wait(), timeout)
        code = transport.get_returncode() if output.complete else None
    finally:
        await _end(transport, output)
    return ProcessResult(
        code=code,
        stdout=bytes(output.stdout),
        stderr=bytes(output.stderr),
        seconds=loop.time() - began,
        too_large=output.too_large,
    )


async def _end(transport: asyncio.SubprocessTransport, output: _Output) -> None:
    # The process group has the pid of the child, which leads a session of its own.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(transport.get_pid(), signal.SIGKILL)
    try:
        # Closing earlier would reap the child before the event loop does.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(output.exited.wait(), _REAP_SECONDS)
    finally:
        transport.close()  # a process that left the group may keep the pipes open


class _Output(asyncio.SubprocessProtocol):
    def __init__(self, max_output: int) -> None:
        self._max_output = max_output
        self._open = {1, 2}
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.too_large = False
        self.ended = asyncio.Event()
        self.exited = asyncio.Event()

    @property
    def complete(self) -> bool:
        return self.exited.is_set() and not self._open

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self.stderr += data
            del self.stderr[:-_STDERR_TAIL]
            return
        self.stdout += data
        if len(self.stdout) > self._max_output:
            del self.stdout[self._max_output :]
            self.too_large = True
            self.ended.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        self._note_end()

    def process_exited(self) -> None:
        self.exited.set()
        self._note_end()

    def _note_end(self) -> None:
        if self.complete:
            self.ended.set()
