"""One child process, bounded in time and output, that leaves nothing running behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ObservationFailed
from ._text import one_line

_STDERR_TAIL = 8192
_LAST_BREATH = 2.0  # seconds that a killed process gets to be reaped


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended. `code` is negative for a signal, None when it was still running at the limit.

    `stderr` is its tail. `flooded` is true when it wrote more than it was allowed to.
    """

    code: int | None
    stdout: bytes
    stderr: bytes
    seconds: float
    flooded: bool

    @property
    def trouble(self) -> str:
        """Why this was no good run, or nothing."""
        if self.flooded:
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
) -> Ended:
    """Run `command`, never through a shell, in a process group of its own, with only `env`.

    It has ended when it exited and its output is closed. The whole group is killed then, or at
    `timeout`, or at cancellation. Raises ObservationFailed when it cannot be started.
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
        reason = one_line(str(getattr(error, "strerror", None) or error), 200)
        raise ObservationFailed(
            f"{one_line(command[0], 100)} could not be started: {reason}",
            hint="name a program that exists, with its full path or on the PATH it is given",
        ) from None
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(output.ended.wait(), timeout)
        code = transport.get_returncode() if output.complete else None
    finally:
        await _end(transport, output)
    return Ended(
        code=code,
        stdout=bytes(output.stdout),
        stderr=bytes(output.stderr),
        seconds=loop.time() - began,
        flooded=output.flooded,
    )


async def _end(transport: asyncio.SubprocessTransport, output: _Output) -> None:
    # The group has the child's own number, since the child leads a session of its own.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(transport.get_pid(), signal.SIGKILL)
    try:
        # Closing before the loop knows of the end would reap the child behind its back.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(output.exited.wait(), _LAST_BREATH)
    finally:
        transport.close()  # whoever left the group may hold the pipes open for ever


class _Output(asyncio.SubprocessProtocol):
    def __init__(self, max_output: int) -> None:
        self._max_output = max_output
        self._open = {1, 2}
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.flooded = False
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
            self.flooded = True
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
