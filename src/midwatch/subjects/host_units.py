"""How a process ended: its unit of systemd, the end of its logs, what the kernel says, and its control group.

What is not there (systemd, a journal, control groups) is reported as a finding, and is not an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from midwatch.errors import ObservationFailed
from midwatch.programs import run
from midwatch.text import ticket_line
from midwatch.units import format_size

UNIT_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "SYSTEMD_COLORS": "0",
}
_MOST_OUTPUT = 500_000  # bytes
_PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "ExecMainCode",
    "ExecMainStatus",
    "ExecMainStartTimestamp",
    "ExecMainExitTimestamp",
    "InactiveEnterTimestamp",
    "NRestarts",
    "Restart",
    "UnitFileState",
    "ConditionResult",
    "MemoryMax",
    "StatusText",
)
_CODES = {"1": "exited", "2": "killed", "3": "dumped core"}  # CLD_* of waitid(2)
LOG_LINES = 40
_TAIL = 32_768  # bytes of a log file


async def _output(seconds: float, *command: str) -> tuple[str, str]:
    """Return what a program prints, and why it failed, or ""."""
    try:
        result = await run(
            command,
            env=UNIT_ENVIRONMENT,
            cwd=Path("/"),
            timeout=seconds,
            max_output=_MOST_OUTPUT,
        )
    except ObservationFailed as failure:
        return "", failure.message
    text = result.stdout.decode("utf-8", "replace")
    if result.failure and not result.too_large:
        error = ticket_line(result.stderr.decode("utf-8", "replace").strip(), 200)
        return text, f"{command[0]} {result.failure}" + (f": {error}" if error else "")
    return text, ""


async def unit_state(unit: str, seconds: float) -> str:
    """Return the state of a unit, one property a line, with the exit status in words."""
    shown = ",".join(_PROPERTIES)
    text, failure = await _output(
        seconds, "systemctl", "show", f"--property={shown}", "--", unit
    )
    found = dict(
        line.split("=", 1)
        for line in text.splitlines()
        if line.count("=") and not line.endswith("=")
    )
    if failure or not found:
        return (
            f"unit {ticket_line(unit)}: not known, {failure or 'systemd shows nothing'}"
        )
    lines = [
        f"{name}={ticket_line(found[name])}" for name in _PROPERTIES if name in found
    ]
    code = _CODES.get(found.get("ExecMainCode", ""))
    if code:
        kind = "status" if code == "exited" else "signal"
        lines.append(
            f"its main process {code} with {kind} {ticket_line(found.get('ExecMainStatus', '?'))}"
        )
    return "\n".join(lines)


async def journal(unit: str, seconds: float) -> str:
    """Return the last lines of a unit's journal, each with a mark, or why there are none."""
    text, failure = await _output(
        seconds,
        *("journalctl", "--no-pager", "--quiet", "--output=short-iso"),
        *(f"--lines={LOG_LINES}", f"--unit={unit}"),
    )
    title = f"journal of {ticket_line(unit)}"
    if not text.strip():
        return f"{title}: {failure or 'no lines'}"
    return "\n".join([f"{title}, its last lines:", *marked(text)])


def log_tail(path: str, lines: int = LOG_LINES) -> str:
    """Return the last lines of a log file, each with a mark (blocking). A file that is not a regular one is not opened."""
    shown = ticket_line(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        with open(descriptor, "rb") as file:
            if not Path(f"/proc/self/fd/{descriptor}").is_file():
                return f"log {shown}: not a regular file"
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            text = file.read(_TAIL).decode("utf-8", "replace")
    except OSError as error:
        return f"log {shown}: {error.strerror}"
    kept = text.splitlines()[1 if size > _TAIL else 0 :][-lines:]
    return "\n".join([f"log {shown}, its last lines:", *marked("\n".join(kept))])


def marked(text: str) -> Iterator[str]:
    """Yield the lines with a mark, so that none imitates a line written here."""
    return (f"| {line}" for line in text.splitlines())


_KERNEL = re.compile(
    r"out of memory|oom.kill|oom_reaper|killed process|segfault|general protection|traps:|i/o error|read.only"
    r"|ext4-fs error|xfs .*(?:error|shutdown)|btrfs.*error|hung task|blocked for more than|nf_conntrack: .*full"
    r"|medium error|no space",
    re.IGNORECASE,
)


async def kernel(seconds: float) -> str:
    """Return the last lines of the kernel's log about memory, crashes and disks."""
    text, failure = await _output(
        seconds / 2,
        *("journalctl", "--no-pager", "--quiet", "--dmesg", "--boot"),
        *("--output=short-iso", "--lines=2000"),
    )
    if not text.strip():
        text, failure = await _output(seconds / 2, "dmesg", "--time-format=iso")
    found = [line for line in text.splitlines() if _KERNEL.search(line)]
    if not text.strip():
        return f"the kernel's log cannot be read: {failure or 'it is empty'}"
    return "\n".join(found[-20:]) or "nothing about memory, crashes or disks"


# ------------------------------------------------------------------ control groups (blocking)

CGROUPS = Path("/sys/fs/cgroup")
_MOST_GROUPS = 3000
_MOST_SHOWN = 10


def control_groups(pids: Sequence[int] = ()) -> str:
    """Return the memory of the control groups that use most, that have a limit, or in which a process was killed.

    `pids` are processes whose groups are shown in any case. Versions 1 and 2 are read.
    """
    own = [*(group for pid in (*pids, os.getpid()) for group in _groups_of(pid))]
    base = CGROUPS / "memory" if (CGROUPS / "memory").is_dir() else CGROUPS
    found = [one for one in map(_group, dict.fromkeys((*own, *_below(base)))) if one]
    found.sort(key=lambda one: (-one[1], -one[0]))
    lines = [text for _, _, text in found[:_MOST_SHOWN]]
    if kills := _number(Path("/proc/vmstat"), "oom_kill"):
        lines.append(f"processes killed for memory since the machine started: {kills}")
    return "\n".join(lines) or "no control groups for memory"


def _groups_of(pid: int) -> Iterator[Path]:
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield CGROUPS / "memory" / path.lstrip("/")
        elif not controllers:
            yield CGROUPS / path.lstrip("/")


def _below(base: Path) -> Iterable[Path]:
    """Return the groups below `base`, those near the root first."""
    found: list[Path] = []
    waiting = [base]
    while waiting and len(found) < _MOST_GROUPS:
        folder = waiting.pop(0)
        found.append(folder)
        try:
            with os.scandir(folder) as entries:
                waiting += [
                    Path(one.path)
                    for one in entries
                    if one.is_dir(follow_symlinks=False)
                ]
        except OSError:
            continue
    return found


def _group(path: Path) -> tuple[int, int, str] | None:
    """Return the used bytes of a group, how many of its processes were killed, and a line; None for one without either."""
    used = _value(path / "memory.current") or _value(path / "memory.usage_in_bytes")
    limit = _value(path / "memory.max") or _value(path / "memory.limit_in_bytes")
    events, old = path / "memory.events", path / "memory.oom_control"
    killed = _number(events, "oom_kill") or _number(old, "oom_kill") or 0
    limited = limit is not None and limit < 1 << 60
    if used is None or not (used or killed):
        return None
    parts = [f"uses {format_size(used)}"]
    if limited and limit:
        parts.append(f"{used / limit:.0%} of its limit {format_size(limit)}")
    at_limit = _number(events, "max") or _value(path / "memory.failcnt")
    if at_limit:
        parts.append(f"at its limit {at_limit:,} times")
    if killed:
        parts.append(f"{killed} processes killed for memory")
    return used, killed, f"group {ticket_line(str(path), 150)}: {', '.join(parts)}"


def _value(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is not a number
        return None


def _number(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
        return next(
            (int(line.split()[1]) for line in lines if line.split()[:1] == [name]), None
        )
    except (OSError, ValueError, IndexError):
        return None
