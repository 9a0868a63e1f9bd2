"""Keeping what this process knows from other processes of its user."""

from __future__ import annotations

import ctypes
import sys

_SET_DUMPABLE = 4  # PR_SET_DUMPABLE, see prctl(2)


def shield_process() -> bool:
    """Close this process's environment and memory to all but root; whether that was possible.

    Claude's Bash runs as the same user, and `/proc/PID/environ` has the keys that the runner was started
    with. It is for this process alone: a program that it starts is open again (execve(2) says so), so
    that no secret may be in a child's environment while Claude works. Linux only.
    """
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0) == 0)
