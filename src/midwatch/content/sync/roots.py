"""The local folders, walked by open folders only: no step of a path is ever a symlink.

What runs in a workspace may put a symlink in place of a folder at any time. So a path is opened part by part,
each part within the folder that was opened before it, and none of them followed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

# A folder that may not be listed can still be walked through. Only Linux knows this flag.
_PATH_ONLY = getattr(os, "O_PATH", 0)
_FOLDER = os.O_DIRECTORY | os.O_CLOEXEC
STAGING = ".midwatch-sync"
"""The folder in each root that files are made ready in; never synchronised."""


class Roots:
    """The top folders of a tree and where they are locally."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self.places = dict(roots)

    def has(self, path: str) -> bool:
        """Whether the path is in one of the roots, or one itself, and may be synchronised."""
        parts = path.split("/", 2)
        return parts[0] in self.places and STAGING not in parts[1:2]

    def walker(self) -> Walker:
        return Walker(self.places)


class Walker:
    """Open folders. Those on the way to the last path stay open for the next one nearby."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places = places
        self._open: list[tuple[str, int]] = []

    def __enter__(self) -> Walker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.forget()

    def folder(self, path: str) -> int:
        """The folder, open until the next call. Raises OSError, also for a symlink on the way."""
        parts = path.split("/")
        shared = 0
        for part, (name, _) in zip(parts, self._open, strict=False):
            if part != name:
                break
            shared += 1
        self._close(shared)
        for part in parts[shared:]:
            self._open.append((part, self._step(part)))
        return self._open[-1][1]

    def parent(self, path: str) -> tuple[int, str]:
        """The folder it is in, and its name there. Raises OSError."""
        above, _, name = path.rpartition("/")
        return self.folder(above), name

    def forget(self) -> None:
        """Close all: some of them may be other folders by now."""
        self._close(0)

    def _step(self, part: str) -> int:
        if not self._open:
            return os.open(self._places[part], _PATH_ONLY | _FOLDER)
        flags = _PATH_ONLY | _FOLDER | os.O_NOFOLLOW
        return os.open(part, flags, dir_fd=self._open[-1][1])

    def _close(self, keep: int) -> None:
        while len(self._open) > keep:
            os.close(self._open.pop()[1])


def open_folder(name: str, inside: int) -> int:
    """A folder that can be listed. Raises OSError, also for a symlink."""
    flags = os.O_RDONLY | _FOLDER | os.O_NOFOLLOW
    return os.open(name, flags, dir_fd=inside)


def set_mode(folder: int, mode: int) -> None:
    """Change the mode of an open folder. Raises OSError."""
    # An O_PATH descriptor takes no fchmod; its entry in /proc stands for the folder itself.
    os.chmod(f"/proc/self/fd/{folder}" if _PATH_ONLY else folder, mode)
