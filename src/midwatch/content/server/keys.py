"""The keys of tokens while the server runs: read again when their file changed, so that a key can be replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from midwatch.content.tokens import read_keys
from midwatch.errors import SettingsError
from midwatch.logs import Log

Keys = Callable[[], Sequence[bytes]]
"""What verifies a token now."""
_Mark = tuple[int, ...]


class KeyFile:
    """`Keys` of a file; one `stat` a call. What cannot be read any more leaves the keys as they were."""

    def __init__(self, file: Path, keys: Sequence[bytes], log: Log) -> None:
        self._file = file
        self._keys = tuple(keys)
        self._log = log
        self._read: _Mark | None = None
        self._failed: _Mark | None = None

    def __call__(self) -> Sequence[bytes]:
        # Before it is read: a change in between shows at the next call.
        mark = _mark_of(self._file)
        if mark != self._read:
            self._again(mark)
        return self._keys

    def _again(self, mark: _Mark) -> None:
        try:
            keys = read_keys(self._file)
        except SettingsError as error:
            # It is tried at each call, and told once for each state of the file.
            if mark != self._failed:
                self._log.error(
                    "keys cannot be read, the old ones stay", error=str(error)
                )
            self._failed = mark
            return
        self._read, self._failed = mark, None
        if keys != self._keys:
            self._keys = keys
            self._log.info("keys have changed", keys=len(keys))


def _mark_of(file: Path) -> _Mark:
    """Follows symlinks: Kubernetes replaces a mounted secret by pointing one elsewhere."""
    try:
        found = os.stat(file)
    except OSError:
        return ()
    return (
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )
