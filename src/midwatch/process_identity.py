"""Name a process so that others on its host can see that it has ended, and never mistake another one for it.

A name has the host, the boot of its kernel, the namespaces in which a process id and a start time mean the same, the
id and the start time. Who is in the same boot and namespaces can tell; everybody else has to wait, and so has every doubt.
Only Linux has what this needs: elsewhere a process has no name.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

_PROC = Path("/proc")
_NAMESPACES = ("pid", "time")
"""The time namespace shifts the start times that /proc shows (time_namespaces(7))."""
_STATE, _THREADS, _START = 0, 17, 19
"""Fields 3, 20 and 22 of proc_pid_stat(5), counted from behind the name."""


@functools.lru_cache(maxsize=1)
def process_name(pid: int) -> str | None:
    """Return the name of a process in the namespaces of this one, such as of `os.getpid()`; None where it has none."""
    place, fields = _place(), _stat(pid)
    return f"{place} {pid} {fields[_START]}" if place and fields else None


def has_ended(name: str) -> bool:
    """Return whether the process of this name is known to have ended; False if it runs, or if that is not known."""
    place, _, rest = name.rpartition("] ")
    pid, _, start = rest.partition(" ")
    if not (pid.isdecimal() and start.isdecimal()) or f"{place}]" != _place():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # it is someone else's
    fields = _stat(int(pid))
    if not fields:
        return False
    if fields[_START] != start:
        return True  # another process has its id now
    # Its parent has not read yet how it ended. A process whose first thread alone has ended shows its others.
    return fields[_STATE] in "ZX" and fields[_THREADS] == "1"


def _place() -> str | None:
    """Return the host, its boot and the namespaces of this process; None if they are not known."""
    try:
        if os.readlink(_PROC / "self") != str(os.getpid()):
            return None  # it shows the processes of another namespace
        boot = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
        spaces = [os.readlink(_PROC / "self/ns" / one) for one in _NAMESPACES]
    except (OSError, ValueError):
        return None
    # Virtual machines that were made from one snapshot have one boot, and mostly different names.
    return " ".join([os.uname().nodename, boot, *spaces]) if boot else None


def _stat(pid: int) -> list[str]:
    """Return the fields behind the name of a process, or none if they cannot be read."""
    try:
        text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return []
    fields = text.rpartition(")")[2].split()
    return fields if len(fields) > _START else []
