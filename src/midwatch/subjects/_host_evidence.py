"""Evidence of the kind `host`: who uses processors and memory, what is full. Blocking functions.

Processes are told by number, name and user. Their arguments are not: people put passwords there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..units import format_duration, format_size
from ._host_look import command_line, matches, mount_points, processes
from ._host_settings import HostSettings
from ._text import one_line, table

if TYPE_CHECKING:
    import psutil

_SAMPLE_SECONDS = 0.2
_TOP = 12


def file_systems(settings: HostSettings) -> str:
    rows = []
    for path in mount_points(settings):
        try:
            space = os.statvfs(path)
        except OSError as error:
            rows.append([one_line(path, 80), error.strerror or "error", *"-----"])
            continue
        size = space.f_frsize
        used, free = space.f_blocks - space.f_bfree, space.f_bavail
        inodes = space.f_files - space.f_ffree
        rows.append(
            [
                one_line(path, 80),
                format_size(space.f_blocks * size),
                format_size(used * size),
                format_size(free * size),
                _share(used, used + free),
                f"{space.f_favail}",
                _share(inodes, inodes + space.f_favail),
            ]
        )
    header = ("mount", "size", "used", "available", "use", "free inodes", "inode use")
    return table(header, rows)


def memory(settings: HostSettings) -> str:
    import psutil

    main, swap = psutil.virtual_memory(), psutil.swap_memory()
    pairs = [
        ("memory total", main.total),
        ("memory available", main.available),
        ("memory used", main.used),
        ("memory free", main.free),
        ("swap total", swap.total),
        ("swap used", swap.used),
    ]
    lines = [f"{name}: {format_size(value)}" for name, value in pairs]
    return "\n".join([*lines, f"available share: {main.available / main.total:.1%}"])


def load(settings: HostSettings) -> str:
    import psutil

    one, five, fifteen = os.getloadavg()
    spent = psutil.cpu_times_percent(interval=_SAMPLE_SECONDS)
    lines = [
        f"load: {one:.2f} (1 min) {five:.2f} (5 min) {fifteen:.2f} (15 min)",
        f"processors: {os.cpu_count() or 1}",
        f"up for: {format_duration(max(0.0, time.time() - psutil.boot_time()))}",
        f"cpu user {spent.user:.0f}% system {spent.system:.0f}% idle {spent.idle:.0f}%",
    ]
    if hasattr(spent, "iowait"):
        lines.append(f"cpu waiting for disks {spent.iowait:.0f}%")
    return "\n".join(lines)


def top(settings: HostSettings) -> str:
    """The processes that use most of a processor, and most memory."""
    found = list(processes("name", "username", "memory_info"))
    for process, _ in found:
        _cpu(process)  # the first call only begins the measurement
    time.sleep(_SAMPLE_SECONDS)
    rows = []
    for process, info in found:
        resident = info["memory_info"].rss if info["memory_info"] else 0
        rows.append(
            (_cpu(process), resident, process.pid, info["name"], info["username"])
        )
    by_cpu = sorted(rows, key=lambda row: row[0], reverse=True)[:_TOP]
    by_memory = sorted(rows, key=lambda row: row[1], reverse=True)[:_TOP]
    parts = []
    for title, chosen in (("by processor", by_cpu), ("by memory", by_memory)):
        cells = [
            (pid, one_line(name or "?", 40), one_line(user or "?", 30), f"{cpu:.0f}%")
            + (format_size(resident),)
            for cpu, resident, pid, name, user in chosen
        ]
        parts.append(f"{title}:")
        parts.append(table(("pid", "name", "user", "cpu", "resident"), cells))
    return "\n".join(parts)


def required(settings: HostSettings) -> str:
    """The processes that must run, as far as they do."""
    found = list(processes("name", "cmdline", "status", "create_time", "username"))
    lines = []
    for wanted in settings.processes:
        lines.append(f"{one_line(wanted.label, 100)}: at least {wanted.min}")
        for process, info in found:
            mine = process.pid == os.getpid()
            if not mine and matches(wanted, info["name"] or "", command_line(info)):
                age = format_duration(max(0.0, time.time() - info["create_time"]))
                lines.append(
                    f"  pid {process.pid} {one_line(info['name'] or '?', 40)} {info['status']}, "
                    f"user {info['username']}, up for {age}"
                )
        if lines[-1].endswith(f"at least {wanted.min}"):
            lines.append("  none runs")
    return "\n".join(lines)


TABLES: dict[str, tuple[str, Callable[[HostSettings], str], frozenset[str]]] = {
    "file systems": ("File systems", file_systems, frozenset({"disk", "inodes"})),
    "memory": ("Memory", memory, frozenset({"memory", "swap"})),
    "load": ("Load and processors", load, frozenset({"load"})),
    "processes": ("Processes that must run", required, frozenset({"process"})),
    "top": ("Top processes", top, frozenset({"memory", "swap", "load"})),
}
"""Title, function and the invariants that it matters most to."""


def _cpu(process: psutil.Process) -> float:
    import psutil

    try:
        return process.cpu_percent(None)
    except psutil.Error:  # ended meanwhile
        return 0.0


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"
