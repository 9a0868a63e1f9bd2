"""Whether a process is one of a session: then Claude acts in it, and what only a person may decide is refused.

All processes of a session descend from its supervisor, which adopts those whose parent has ended. Inside a sandbox the
supervisor cannot be seen, and a variable of the environment says it. Neither stops a program that does not ask this module: without
a sandbox a session has the user's files, and with them every login that is written there (docs/actions.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from midwatch.errors import PermanentError

MARK = "IN_MIDWATCH_SESSION"
"""The variable of all programs in a session."""
_PROC = Path("/proc")
_SUPERVISOR = "/midwatch/session/supervisor.py"
_PARENT = 1
"""Field 4 of proc_pid_stat(5), counted from behind the name."""
_MOST_ANCESTORS = 1000


class NoPerson(PermanentError):
    """A program of a session asked for what only a person may decide."""

    hint = "a person decides it outside of the session: on the page, or in a shell of their own"


def refuse_in_session(environ: Mapping[str, str], what: str) -> None:
    """Raise NoPerson if this process is one of a session. `what` says what was asked for, such as "approve an action"."""
    if MARK in environ or is_in_session(os.getpid()):
        raise NoPerson(f"a session may not {what}")


def is_in_session(pid: int) -> bool:
    """Return whether a process descends from the supervisor of a session; False where /proc does not show it."""
    for _ in range(_MOST_ANCESTORS):
        if pid <= 1:
            return False
        if _is_supervisor(pid):
            return True
        pid = _parent_of(pid)
    return False


def session_with_socket(inode: int) -> bool:
    """Return whether a process of a session of this machine has a socket open, as far as its files can be seen."""
    wanted = f"socket:[{inode}]"
    return any(wanted in _files_of(pid) and is_in_session(pid) for pid in _processes())


def _processes() -> Iterator[int]:
    try:
        yield from (int(one) for one in os.listdir(_PROC) if one.isdecimal())
    except OSError:  # not Linux
        return


def _files_of(pid: int) -> set[str]:
    folder = _PROC / str(pid) / "fd"
    found = set()
    with suppress(OSError):  # it has ended, or is another user's
        for name in os.listdir(folder):
            with suppress(OSError):  # closed meanwhile
                found.add(os.readlink(folder / name))
    return found


def _is_supervisor(pid: int) -> bool:
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    script = os.fsdecode(words[3]) if words[1:3] == [b"-I", b"-S"] else ""
    return script.endswith(_SUPERVISOR)


def _parent_of(pid: int) -> int:
    try:
        text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
        return int(text.rpartition(")")[2].split()[_PARENT])
    except (OSError, ValueError, IndexError):
        return 0
