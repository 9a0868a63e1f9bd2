"""Read the runbooks of a folder: files `*.md`, in bounded time and memory, and none outside of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from midwatch.errors import TemporaryError
from midwatch.files import read_regular
from midwatch.runbooks.runbook import (
    MAX_BYTES,
    NoFrontMatter,
    Redact,
    Runbook,
    RunbookError,
    parse_runbook,
)

MOST_FILES = 5_000
"""Files of one source; what is beyond is not read, and that is reported."""
_MOST_ENTRIES = 100_000
_DEEPEST = 20
SUFFIXES = (".md", ".markdown")


class SourceUnavailable(TemporaryError):
    """A folder of runbooks cannot be read."""

    hint = "check `runbooks.folders`"


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that cannot be used: its path in the source, and why."""

    path: str
    text: str


Parsed = Runbook | Problem | None
"""What a file is: None for one without front matter."""
Known = Mapping[object, Parsed]
"""Files that were read before, by what changes with their content."""


@dataclass(slots=True)
class Listing:
    """The files of a source: what can be used, what cannot, and the paths of those without front matter."""

    runbooks: list[Runbook] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unmarked: list[str] = field(default_factory=list)
    known: dict[object, Parsed] = field(default_factory=dict)

    def add(self, key: object, path: str, parsed: Parsed) -> None:
        self.known[key] = parsed
        if isinstance(parsed, Runbook):
            self.runbooks.append(parsed)
        elif parsed is None:
            self.unmarked.append(path)
        else:
            self.problems.append(parsed)


def parsed_file(
    data: bytes, source: str, path: str, redact: Redact, version: str = ""
) -> Parsed:
    """Return what a file is; never raises."""
    try:
        return parse_runbook(data, source, path, redact, version)
    except NoFrontMatter:
        return None
    except RunbookError as error:
        return Problem(path, error.one_line())


def read_folder(root: Path, redact: Redact, known: Known) -> Listing:
    """Return the runbooks of a folder. Blocks.

    A symbolic link counts if what it leads to is in the folder as well, as Kubernetes makes them for a ConfigMap;
    hidden files and folders do not. A file is parsed again when its time, size or number (inode) changes.

    Args:
        root: The folder.
        redact: Removes secrets from a whole text.
        known: `Listing.known` of the last time.

    Raises:
        SourceUnavailable: The folder itself cannot be read.
    """
    listing = Listing()
    try:
        real = root.resolve(strict=True)
        os.scandir(real).close()
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SourceUnavailable(f"cannot read {root}: {why}") from None
    walk = _Walk(real, listing)
    for number, (path, file) in enumerate(sorted(walk.files(real, "", 0))):
        if number == MOST_FILES:
            text = f"has more than {MOST_FILES:,} files; the others are not read"
            listing.problems.append(Problem("", text))
            break
        try:
            found = file.stat()
            key = (path, found.st_mtime_ns, found.st_size, found.st_ino)
            if key in known:
                listing.add(key, path, known[key])
                continue
            data = b"" if found.st_size > MAX_BYTES else read_regular(file, MAX_BYTES)
        except OSError as error:
            listing.problems.append(Problem(path, f"cannot be read: {error.strerror}"))
            continue
        if found.st_size > MAX_BYTES:
            parsed: Parsed = Problem(path, f"is larger than {MAX_BYTES:,} bytes")
        else:
            parsed = parsed_file(data, str(root), path, redact)
        listing.add(key, path, parsed)
    listing.problems.sort(key=lambda one: one.path)
    return listing


class _Walk:
    """Finds the files below a folder, each folder once."""

    def __init__(self, root: Path, listing: Listing) -> None:
        self._root = root
        self._listing = listing
        self._seen: set[tuple[int, int]] = set()
        self._left = _MOST_ENTRIES

    def files(self, folder: Path, path: str, depth: int) -> Iterator[tuple[str, Path]]:
        """Yield path and real path of each file; what cannot be followed is a problem."""
        try:
            found = folder.stat()
            with os.scandir(folder) as opened:
                entries = sorted(opened, key=lambda one: one.name)
        except OSError as error:
            self._problem(path, f"cannot be read: {error.strerror}")
            return
        if (found.st_dev, found.st_ino) in self._seen:
            return
        self._seen.add((found.st_dev, found.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            self._left -= 1
            if self._left < 0:
                return
            yield from self._entry(entry, f"{path}/{entry.name}".lstrip("/"), depth)

    def _entry(
        self, entry: os.DirEntry[str], path: str, depth: int
    ) -> Iterator[tuple[str, Path]]:
        named = entry.name.lower().endswith(SUFFIXES)
        real, mode = Path(entry.path), 0
        try:
            if entry.is_symlink():
                real = real.resolve(strict=True)
                if not real.is_relative_to(self._root):
                    self._problem(path, "is a symbolic link that leads out of it")
                    return
            mode = real.stat().st_mode
        except (OSError, RuntimeError) as error:  # of a link that leads to itself
            if named or not isinstance(error, FileNotFoundError):
                self._problem(path, "is a symbolic link that leads nowhere")
            return
        if stat.S_ISDIR(mode):
            if depth >= _DEEPEST:
                self._problem(path, f"is deeper than {_DEEPEST} folders")
            else:
                yield from self.files(real, path, depth + 1)
        elif named and stat.S_ISREG(mode):
            yield path, real
        elif named:
            self._problem(path, "is not a regular file")

    def _problem(self, path: str, text: str) -> None:
        self._listing.problems.append(Problem(path, text))
