"""One look at the machine, blocking: what psutil and statvfs tell, as signals."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ObservationFailed
from ..model import Signal
from ..units import format_size
from ._host_settings import HostSettings, ProcessSettings
from ._text import component_name, one_line

if TYPE_CHECKING:
    import psutil

# Images that are full by nature.
_READ_ONLY_KINDS = {"squashfs", "iso9660", "erofs", "cramfs", "udf"}

Look = Callable[[HostSettings], Iterator[Signal]]


def mount_points(settings: HostSettings) -> list[str]:
    """The mount points to look at, each file system once, under its shortest name."""
    import psutil

    if settings.mounts:
        return [str(path) for path in settings.mounts]
    found: dict[int, str] = {}
    mounted = [
        part.mountpoint
        for part in psutil.disk_partitions(all=False)
        if part.fstype not in _READ_ONLY_KINDS
    ]
    for path in sorted({"/", *mounted}, key=lambda path: (len(path), path)):
        try:
            status = os.stat(path)
        except OSError:  # unmounted meanwhile, or not for us to see
            continue
        # A file bound over another one is how containers mount it, not a file system of its own.
        if path == "/" or os.path.isdir(path):
            found.setdefault(status.st_dev, path)
    return list(found.values())


def disk(settings: HostSettings) -> Iterator[Signal]:
    for path in mount_points(settings):
        space = _statvfs(path)
        # As df counts: blocks kept for root are neither used nor free.
        used = (space.f_blocks - space.f_bfree) * space.f_frsize
        free = space.f_bavail * space.f_frsize
        if used + free:
            share = used / (used + free)
            yield Signal(
                "disk",
                component_name(path),
                f"{one_line(path, 100)} is {share:.0%} full, {format_size(free)} left",
                value=share,
                facts={"mount": one_line(path), "free_bytes": free, "used_bytes": used},
            )


def inodes(settings: HostSettings) -> Iterator[Signal]:
    for path in mount_points(settings):
        space = _statvfs(path)
        used = space.f_files - space.f_ffree
        if used + space.f_favail:
            share = used / (used + space.f_favail)
            yield Signal(
                "inodes",
                component_name(path),
                f"{one_line(path, 100)} has used {share:.0%} of its inodes, {space.f_favail:,} left",
                value=share,
                facts={"mount": one_line(path), "free_inodes": space.f_favail},
            )


def memory(settings: HostSettings) -> Iterator[Signal]:
    import psutil

    found = psutil.virtual_memory()
    share = found.available / found.total
    yield Signal(
        "memory",
        "memory",
        f"{share:.0%} of memory is available: {format_size(found.available)} of {format_size(found.total)}",
        value=share,
        facts={"available_bytes": found.available, "total_bytes": found.total},
    )


def swap(settings: HostSettings) -> Iterator[Signal]:
    import psutil

    found = psutil.swap_memory()
    if found.total:
        share = found.used / found.total
        yield Signal(
            "swap",
            "swap",
            f"swap is {share:.0%} full: {format_size(found.used)} of {format_size(found.total)}",
            value=share,
            facts={"used_bytes": found.used, "total_bytes": found.total},
        )


def load(settings: HostSettings) -> Iterator[Signal]:
    average, cores = os.getloadavg()[1], os.cpu_count() or 1
    yield Signal(
        "load",
        "cpu",
        f"the load of five minutes is {average:.1f} on {cores} processors",
        value=average / cores,
        facts={"load5": round(average, 2), "processors": cores},
    )


def process(settings: HostSettings) -> Iterator[Signal]:
    running = _command_lines() if settings.processes else []
    for wanted in settings.processes:
        count = sum(matches(wanted, name, line) for name, line in running)
        yield Signal(
            "process",
            component_name(wanted.label),
            f"{count} of at least {wanted.min} processes {one_line(wanted.label, 100)} run",
            value=float(count),
            holds=count >= wanted.min,
            facts={
                "process": one_line(wanted.label),
                "count": count,
                "min": wanted.min,
            },
        )


LOOKS: dict[str, Look] = {
    "disk": disk,
    "inodes": inodes,
    "memory": memory,
    "swap": swap,
    "load": load,
    "process": process,
}


def look(
    settings: HostSettings, wanted: Sequence[str]
) -> tuple[tuple[Signal, ...], dict[str, str]]:
    """The signals of the wanted invariants, and why some could not be seen."""
    import psutil

    signals: list[Signal] = []
    unavailable: dict[str, str] = {}
    for name in wanted:
        try:
            signals += LOOKS[name](settings)
        except ObservationFailed as error:
            unavailable[name] = error.message
        except (OSError, psutil.Error) as error:
            unavailable[name] = one_line(f"{name} cannot be read: {error}")
    return tuple(signals), unavailable


def matches(wanted: ProcessSettings, name: str, line: str) -> bool:
    if wanted.pattern is not None:
        return re.search(wanted.pattern, line) is not None
    return name == wanted.name


def _statvfs(path: str | Path) -> os.statvfs_result:
    try:
        return os.statvfs(path)
    except OSError as error:
        raise ObservationFailed(
            f"{one_line(str(path), 100)}: {error.strerror}"
        ) from None


def processes(*attributes: str) -> Iterator[tuple[psutil.Process, dict[str, Any]]]:
    """Each process with these attributes; None for what we may not read.

    `psutil.process_iter` hands out objects that all threads share, and they overwrite each other's
    attributes; these are our own.
    """
    import psutil

    for pid in psutil.pids():
        try:
            process = psutil.Process(pid)
            yield process, process.as_dict(list(attributes))
        except psutil.NoSuchProcess:  # ended meanwhile
            continue


def _command_lines() -> list[tuple[str, str]]:
    """Name and command line of each process but ourselves."""
    return [
        (info["name"] or "", command_line(info))
        for process, info in processes("name", "cmdline", "status")
        if process.pid != os.getpid() and info["status"] != "zombie"
    ]


def command_line(info: dict[str, Any]) -> str:
    return " ".join(info["cmdline"] or ())[:8000]
