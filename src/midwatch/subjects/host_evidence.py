"""Evidence on memory, load and processes of this machine, as text (blocking).

Processes are shown with pid, name and user, but without arguments: these may contain passwords.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from midwatch.subjects.host_processes import command_line, matches, processes
from midwatch.subjects.host_settings import HostSettings
from midwatch.text import table, ticket_line
from midwatch.units import format_duration, format_size

if TYPE_CHECKING:
    import psutil

_SAMPLE_SECONDS = 0.2
_TOP = 8


def memory_evidence(settings: HostSettings) -> str:
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
    lines += [f"{name}: {format_size(value)}" for name, value in _kernel_memory()]
    lines += _pressure("memory")
    return "\n".join([*lines, f"available share: {main.available / main.total:.1%}"])


_KERNEL_MEMORY = {
    "Shmem": "shared memory and files in tmpfs",
    "SUnreclaim": "kernel memory that cannot be freed",
    "HugePages_Total": "reserved huge pages",
}


def _kernel_memory() -> list[tuple[str, int]]:
    """Return memory that is not that of a process, in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    except (OSError, ValueError, IndexError):
        return []
    page = found.get("Hugepagesize", 0)
    unit = {"HugePages_Total": page}
    return [
        (shown, found[name] * unit.get(name, 1) * 1024)
        for name, shown in _KERNEL_MEMORY.items()
        if found.get(name)
    ]


def _pressure(resource: str) -> list[str]:
    """Return how long processes waited for a resource: pressure stall information of the kernel."""
    try:
        text = Path(f"/proc/pressure/{resource}").read_text()
    except OSError:
        return []
    return [f"pressure {resource}: {line}" for line in text.splitlines()]


def load_evidence(settings: HostSettings) -> str:
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
    return "\n".join([*lines, *_waiting(), *_pressure("io"), *_pressure("cpu")])


def _waiting() -> list[str]:
    """Return the processes that wait for a disk or another device: they count as load and use no processor."""
    states: Counter[str] = Counter()
    shown = []
    for process, info in processes("name", "status"):
        states[info["status"]] += 1
        if info["status"] == "disk-sleep":
            name = ticket_line(info["name"] or "?", 40)
            shown.append(
                f"waits for a device: pid {process.pid} {name}{_where(process.pid)}"
            )
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    return [f"processes: {counts}", *shown[:_TOP]]


def _where(pid: int) -> str:
    """Return the function of the kernel that a process waits in, where it may be seen."""
    try:
        name = Path(f"/proc/{pid}/wchan").read_text().strip()
    except OSError:
        return ""
    return f" in {ticket_line(name, 60)}" if name not in ("", "0") else ""


@dataclass(slots=True)
class Program:
    """The processes of one name: processor time in percent of one processor, resident bytes and their growth a second."""

    name: str
    user: str = "?"
    cpu: float = 0.0
    resident: int = 0
    growth: float = 0.0
    pids: list[tuple[int, int]] = field(default_factory=list)  # resident bytes, pid
    started: float = 0.0

    def row(self, now: float) -> tuple[object, ...]:
        return (
            max(self.pids)[1],
            self.name,
            self.user,
            f"{self.cpu:.0f}%",
            format_size(self.resident),
            len(self.pids),
            f"{format_size(self.growth)}/s" if self.growth >= 1_000_000 else "-",
            format_duration(max(0.0, now - self.started)),
        )


def top(settings: HostSettings) -> str:
    """Return the programs that use the most processor time, and the most memory: processes of one name together."""
    found = list(processes("name", "username", "memory_info", "create_time"))
    for process, _ in found:
        _cpu(process)  # the first call only begins the measurement
    began = time.monotonic()
    time.sleep(_SAMPLE_SECONDS)
    programs: dict[tuple[str, str], Program] = {}
    for process, info in found:
        name, user = ticket_line(info["name"] or "?", 40), info["username"] or "?"
        one = programs.setdefault((name, user), Program(name, ticket_line(user, 30)))
        before = info["memory_info"].rss if info["memory_info"] else 0
        resident = _resident(process, before)
        one.cpu += _cpu(process)
        one.resident += resident
        one.growth += (resident - before) / (time.monotonic() - began)
        one.pids.append((resident, process.pid))
        one.started = max(one.started, info["create_time"] or 0.0)
    parts, now = [], time.time()
    for title, key in (
        ("by processor", lambda one: one.cpu),
        ("by memory", lambda one: one.resident),
    ):
        chosen = sorted(programs.values(), key=key, reverse=True)[:_TOP]
        header = (
            "pid",
            "name",
            "user",
            "cpu",
            "resident",
            "processes",
            "grows",
            "up for",
        )
        parts.append(f"{title}:")
        parts.append(table(header, [one.row(now) for one in chosen]))
    return "\n".join(parts)


def _resident(process: psutil.Process, otherwise: int) -> int:
    import psutil

    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # ended meanwhile
        return otherwise


def required(settings: HostSettings) -> str:
    """Return the required processes, and those of them that run."""
    found = list(processes("name", "cmdline", "status", "create_time", "username"))
    lines = []
    for wanted in settings.processes:
        lines.append(f"{ticket_line(wanted.label, 100)}: at least {wanted.min}")
        for process, info in found:
            mine = process.pid == os.getpid()
            if not mine and matches(wanted, info["name"], command_line(info)):
                age = format_duration(max(0.0, time.time() - info["create_time"]))
                lines.append(
                    f"  pid {process.pid} {ticket_line(info['name'] or '?', 40)} {info['status']}, "
                    f"user {info['username']}, up for {age}"
                )
        if lines[-1].endswith(f"at least {wanted.min}"):
            lines.append("  none runs")
    return "\n".join(lines)


TABLES: dict[str, tuple[str, Callable[[HostSettings], str] | None, frozenset[str]]] = {
    "file systems": ("File systems", None, frozenset({"disk", "inodes"})),
    "memory": ("Memory", memory_evidence, frozenset({"memory", "swap"})),
    "load": ("Load and processors", load_evidence, frozenset({"load"})),
    "processes": ("Processes that must run", required, frozenset({"process"})),
    "top": ("Top processes", top, frozenset({"memory", "swap", "load"})),
}
"""Title, function (None: the mounts are asked) and the invariants that the evidence matters most to."""


def _cpu(process: psutil.Process) -> float:
    import psutil

    try:
        return process.cpu_percent(None)
    except psutil.Error:  # ended meanwhile
        return 0.0
