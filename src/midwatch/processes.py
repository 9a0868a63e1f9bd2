"""Tell the processes of this machine apart, and see that one has ended: its leases need not be waited for."""

from __future__ import annotations

import os
from pathlib import Path


def this_process() -> str:
    """Return which process this is: the boot of the machine, the pid namespace, the pid and when it began (proc(5)).

    It is empty where that cannot be known, such as on macOS.
    """
    try:
        return f"{_machine()} {os.getpid()} {_began(os.getpid())}"
    except OSError:
        return ""


def has_ended(process: str) -> bool:
    """Return whether a process of this machine and pid namespace is gone; false for all that cannot be seen from here."""
    machine, _, rest = process.partition(" ")
    pid, _, began = rest.partition(" ")
    try:
        if not pid.isdecimal() or machine != _machine():
            return False
        return _began(int(pid)) != began
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"


def _began(pid: int) -> str:
    """Return when a process began, in ticks since the boot. Raises FileNotFoundError for one that is gone or a zombie."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise FileNotFoundError(f"/proc/{pid}")
    return fields[19]
