"""What fills a file system: its largest files and folders, what grows now, and deleted files that are held open (blocking).

Names and sizes are read, contents never. The walk ends at its time limit and says so; folders that changed last come
first, as they show what grows.
"""

from __future__ import annotations

import heapq
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from midwatch.subjects.host_processes import descriptors, processes
from midwatch.text import ticket_line
from midwatch.units import format_duration, format_size

_MOST_SHOWN = 8
_MOST_KEPT = 200  # files
_LEAST = 1_000_000  # bytes of an open file that is worth a line
_SAMPLE_SECONDS = 0.4
_DEPTH = 8  # folders below the mount that are counted one by one


@dataclass(frozen=True, slots=True)
class Held:
    """An open file of a process. `deleted` is true where it has no name any more."""

    pid: int
    program: str
    descriptor: int
    path: str
    size: int
    deleted: bool

    @property
    def link(self) -> str:
        return f"/proc/{self.pid}/fd/{self.descriptor}"

    @property
    def holder(self) -> str:
        return f"pid {self.pid} ({self.program})"


@dataclass(slots=True)
class Usage:
    """What a walk saw: space and number of files by folder, and the largest files."""

    files: int = 0
    bytes: int = 0
    complete: bool = True
    denied: int = 0
    by_folder: Counter[str] = field(default_factory=Counter)
    entries: Counter[str] = field(default_factory=Counter)
    largest: list[tuple[int, str, float]] = field(default_factory=list)


def walk(mount: str, seconds: float) -> Usage:
    """Count what is on the file system of `mount`, for at most `seconds`."""
    usage, deadline = Usage(), time.monotonic() + seconds
    device = os.lstat(mount).st_dev
    waiting: list[tuple[float, str]] = [(0.0, mount)]
    linked: set[tuple[int, int]] = set()
    while waiting:
        if time.monotonic() > deadline:
            usage.complete = False
            break
        _, folder = heapq.heappop(waiting)
        try:
            with os.scandir(folder) as entries:
                for number, entry in enumerate(entries):
                    if number % 1000 == 999 and time.monotonic() > deadline:
                        usage.complete = False
                        break
                    _count(usage, entry, mount, folder, device, waiting, linked)
        except PermissionError:
            usage.denied += 1
        except OSError:
            continue  # removed meanwhile
    return usage


def _count(
    usage: Usage,
    entry: os.DirEntry[str],
    mount: str,
    folder: str,
    device: int,
    waiting: list[tuple[float, str]],
    linked: set[tuple[int, int]],
) -> None:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return
    usage.entries[folder] += 1
    if stat.S_ISDIR(status.st_mode):
        if status.st_dev == device:
            heapq.heappush(waiting, (-status.st_mtime, entry.path))
            usage.files += 1
        return
    if status.st_nlink > 1:
        if (identity := (status.st_dev, status.st_ino)) in linked:
            return
        linked.add(identity)
    size = status.st_blocks * 512
    usage.files += 1
    usage.bytes += size
    for above in _folders(folder, mount):
        usage.by_folder[above] += size
    _keep(usage.largest, (size, entry.path, status.st_mtime))


def _keep(heap: list[tuple[int, str, float]], item: tuple[int, str, float]) -> None:
    if len(heap) < _MOST_KEPT:
        heapq.heappush(heap, item)
    elif item > heap[0]:
        heapq.heapreplace(heap, item)


def _folders(folder: str, mount: str) -> Iterator[str]:
    """Yield the folders from below the mount to this one, `_DEPTH` at most."""
    relative = folder[len(mount) :].strip("/")
    path = mount.rstrip("/")
    for part in relative.split("/")[:_DEPTH] if relative else ():
        path = f"{path}/{part}"
        yield path


def open_files(mount: str, mounts: Iterable[str]) -> list[Held]:
    """Return the files on a mount that are open and deleted, or open for writing, the largest first.

    `mounts` are all mount points: a path belongs to the longest that it begins with.
    """
    others = [one for one in mounts if one != mount and _is_below(one, mount)]
    found: dict[tuple[int, str], Held] = {}
    for process, info in processes("name"):
        for number, target in descriptors(process.pid):
            path = target.removesuffix(" (deleted)")
            deleted = path != target
            if (process.pid, path) in found or not _is_below(path, mount):
                continue
            if path.startswith("/memfd:") or any(
                _is_below(path, one) for one in others
            ):
                continue
            size = _size(f"/proc/{process.pid}/fd/{number}", deleted)
            if size is None or not (deleted or _writes(process.pid, number)):
                continue
            name = ticket_line(info["name"] or "?", 40)
            found[process.pid, path] = Held(
                process.pid, name, number, path, size, deleted
            )
    return sorted(found.values(), key=lambda one: -one.size)


def _size(path: str, deleted: bool) -> int | None:
    """Return the space of a regular file; None for one that is not, or has a name again."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode) or (deleted and status.st_nlink):
        return None
    return status.st_blocks * 512


def _is_below(path: str, folder: str) -> bool:
    return folder == "/" or path == folder or path.startswith(folder.rstrip("/") + "/")


def _writes(pid: int, descriptor: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text()
        flags = next(line for line in text.splitlines() if line.startswith("flags:"))
        return int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    except (OSError, StopIteration, ValueError, IndexError):
        return False


# ------------------------------------------------------------------ as text


def open_on(mount: str, mounts: Iterable[str]) -> str:
    """Return the large open files of a mount: the deleted ones, and those that processes write to; takes half a second."""
    began = time.monotonic()
    before = open_files(mount, mounts)
    time.sleep(max(0.0, _SAMPLE_SECONDS - (time.monotonic() - began)))
    spent = time.monotonic() - began
    lines = []
    gone = [one for one in before if one.deleted and one.size >= _LEAST]
    for one in gone[:_MOST_SHOWN]:
        lines.append(
            f"deleted but open: {format_size(one.size)} {_path(one.path)}, held by {one.holder}, descriptor "
            f"{one.descriptor}"
        )
    grown = [((_size(one.link, one.deleted) or 0) - one.size, one) for one in before]
    grown.sort(key=lambda item: -item[0])
    for more, one in grown[:_MOST_SHOWN]:
        if more > 0:
            lines.append(
                f"grows: {format_size(more / spent)}/s {_path(one.path)}, now {format_size(one.size + more)}, written "
                f"by {one.holder}"
            )
    for one in before[:_MOST_SHOWN]:
        if not one.deleted and one.size >= _LEAST:
            lines.append(
                f"open for writing: {format_size(one.size)} {_path(one.path)}, by {one.holder}"
            )
    return (
        "\n".join(lines)
        or "no large file is open for writing, and none is deleted but open"
    )


def what_fills(mount: str, inodes: bool, seconds: float) -> str:
    """Return what takes the space (or the inodes) of a file system, one finding a line, within `seconds`."""
    size = os.statvfs(mount)
    used = (size.f_blocks - size.f_bfree) * size.f_frsize
    usage = walk(mount, seconds)
    lines = [_seen(usage, used, mount)]
    now = time.time()
    for taken, path, changed in sorted(usage.largest, reverse=True)[:_MOST_SHOWN]:
        if taken:
            age = format_duration(max(0.0, now - changed))
            lines.append(f"file: {format_size(taken)} {_path(path)}, changed {age} ago")
    lines += [
        f"folder: {format_size(taken)} {_path(path)}"
        for path, taken in _deepest(usage.by_folder)
    ]
    if inodes:
        lines += [
            f"entries: {count:,} in {_path(path)}"
            for path, count in usage.entries.most_common(_MOST_SHOWN)
        ]
    # A listed folder is less than its file system.
    if usage.complete and os.path.ismount(mount) and used - usage.bytes > used * 0.1:
        why = "deleted but open, hidden below a mount, not visible to Midwatch, or kept by the file system"
        lines.append(f"unaccounted: {format_size(used - usage.bytes)}: {why}")
    return "\n".join(lines)


def _seen(usage: Usage, used: int, mount: str) -> str:
    how = "all of it was seen" if usage.complete else "the walk met its time limit"
    if usage.denied:
        how += f", {usage.denied:,} folders may not be read"
    return (
        f"seen: {usage.files:,} files with {format_size(usage.bytes)} of {format_size(used)} used on "
        f"{_path(mount)}; {how}"
    )


def _deepest(by_folder: Counter[str]) -> list[tuple[str, int]]:
    """Return the largest folders, without those that hold hardly more than one below them."""
    found: list[tuple[str, int]] = []
    for path, size in sorted(
        by_folder.items(), key=lambda item: (-item[1], -len(item[0]))
    ):
        if size and not any(
            one.startswith(path + "/") and taken > size * 0.9 for one, taken in found
        ):
            found.append((path, size))
        if len(found) == _MOST_SHOWN:
            break
    return found


def _path(path: str) -> str:
    return ticket_line(path, 200)
