"""File locks that hold between tasks, processes and crashes (the kernel lets go of them)."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from midwatch.lifecycle import Clock
from midwatch.workspace.errors import CacheBusy

_POLL = 0.02


@contextlib.asynccontextmanager
async def locked(
    path: Path, clock: Clock, *, shared: bool, seconds: float
) -> AsyncIterator[None]:
    """Hold the lock at `path`, alone or shared. Raises CacheBusy after `seconds` of waiting."""
    deadline = clock.monotonic() + seconds
    with _opened(path) as descriptor:
        while not _try_lock(descriptor, shared):
            if clock.monotonic() >= deadline:
                raise CacheBusy(f"{path.name} is still locked after {seconds:g} s")
            # Polled: a blocking flock would sit in a thread that no cancellation reaches.
            await clock.sleep(_POLL)
        yield


@contextlib.contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock alone if nobody has it; yields whether it is held."""
    with _opened(path) as descriptor:
        yield _try_lock(descriptor, shared=False)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # which lets go of the lock


def _try_lock(descriptor: int, shared: bool) -> bool:
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
