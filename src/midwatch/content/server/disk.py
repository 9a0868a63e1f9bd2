"""The volume's disk: how a file is written to it, and what its errors mean to a client."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from midwatch.content.errors import ContentFull, ContentUnavailable
from midwatch.errors import MidwatchError


def write_file(path: Path, data: bytes) -> None:
    """A new file with these bytes, not synced yet. Raises OSError, also where one is there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(path, flags, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
    finally:
        os.close(file)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turns the system's errors into ours; what a caller has to tell apart is caught before."""
    try:
        yield
    except OSError as error:
        raise translated(error) from error


def translated(error: OSError) -> MidwatchError:
    """Paths stay out of the message: it goes to a client."""
    said = error.strerror or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ContentFull(f"the volume is full: {said}")
    return ContentUnavailable(
        f"the volume cannot be used: {said}",
        hint="check the volume of the content proxy, its mount and its owner",
    )
