"""Run the claude program as a child that ends with the runner. This file is started as a script.

``python -I -S supervisor.py PLAN ARGUMENT…`` with an empty environment. It must start quickly and
without any installed package, so it uses the standard library only. For the same reason it has its own lock
and does not import `midwatch.files`.

PLAN is a file of NUL-terminated texts: the program, the file for the pids, the named pipe with the
API key, the pid of the runner, seconds of grace, and then all variables of the program as NAME=VALUE.
(Not JSON: the import of that module takes a third of the whole start.)

The key is in its memory only while it copies it from one pipe to the other, and the process is not dumpable: no
other process of the user can read its memory or environment.

It ensures that the program ends when the runner ends, also after a SIGKILL; that the program's own processes
and temporary files are removed; and that the key is in no environment, argument or file.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import sys
import time

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_SET_DUMPABLE = 4  # PR_SET_DUMPABLE
_SET_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_KEY_VARIABLE = "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR"
_TEMPORARY, _TEMPORARY_OF_TOOLS = "CLAUDE_CODE_TMPDIR", "TMPDIR"
_PREFIX = "midwatch-claude-"
_MAX_PATH = 70  # bytes; the sandbox has sockets in it, whose paths end at 108
_MAX_KEY = 65_536  # bytes; a pipe has room for them
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # open nothing that blocks
_CHECK_INTERVAL = 0.5  # seconds between two checks of the runner


class Plan:
    """The plan file of the runner."""

    def __init__(self, path: str) -> None:
        opened = os.open(path, os.O_RDONLY | _SAFE)
        with open(opened, encoding="utf-8", errors="surrogateescape") as file:
            texts = file.read().split("\0")[:-1]
        self.program, self.record, self.key_pipe = texts[:3]
        self.runner, self.grace = int(texts[3]), float(texts[4])
        self.env = dict(text.split("=", 1) for text in texts[5:])


def main() -> int:
    _prctl(_SET_DUMPABLE, 0)
    plan = Plan(sys.argv[1])
    wake, stop_signals = _signals()
    os.setsid()  # no controlling terminal: no prompts, and no SIGINT that is meant for the runner
    _prctl(_SET_SUBREAPER, 1)
    _prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != plan.runner:
        return 1
    temporary = _temporary_folder(plan.env)
    try:
        child = _spawn(plan, sys.argv[2:])
        _record(plan.record, child)
        _close_standard_streams()
        code = _wait(child, plan, wake, stop_signals)
        _kill_descendants(plan.grace)
    finally:
        if temporary is not None:
            _remove_temporary(temporary)
    return code


def _signals() -> tuple[int, list[int]]:
    """Return a descriptor that is readable after every signal, and the list of signals that ask for a stop."""
    stop_signals: list[int] = []
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.set_blocking(read, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _: stop_signals.append(got))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read, stop_signals


def _temporary_folder(env: dict[str, str]) -> str | None:
    """Make a temporary folder for the program and put it into `env`. Return None if `env` names one, or on failure.

    It is locked while this process lives: an unlocked folder is not in use.
    """
    if _TEMPORARY in env:
        return None
    parent = env.get(_TEMPORARY_OF_TOOLS) or "/tmp"
    folder = f"{parent}/{_PREFIX}{os.getpid()}-{time.time_ns() & 0xFFFFFFFF:x}"
    if not os.path.isabs(folder) or len(os.fsencode(folder)) > _MAX_PATH:
        return None
    try:
        os.mkdir(folder, 0o700)
    except OSError:
        return None
    if _lock(folder) is None:
        _remove(folder)
        return None
    env[_TEMPORARY] = env[_TEMPORARY_OF_TOOLS] = folder
    return folder


def _lock(folder: str) -> int | None:
    """Return the folder, open and locked; None if it is in use, or not a folder of this user."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(opened).st_uid == os.getuid():
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return opened
    except OSError:
        pass
    os.close(opened)
    return None


def _remove_temporary(folder: str) -> None:
    """Remove the folder, and folders of supervisors that were killed."""
    _remove(folder)
    parent = os.path.dirname(folder)
    try:
        names = os.listdir(parent)
    except OSError:
        return
    for name in names:
        left = os.path.join(parent, name)
        if name.startswith(_PREFIX) and (opened := _lock(left)) is not None:
            _remove(left)
            os.close(opened)


def _remove(folder: str) -> None:
    """Remove a folder, and ignore errors. Links are not followed."""
    for path, folders, files in os.walk(folder, topdown=False):
        for name in files + folders:
            _try_to_remove(os.path.join(path, name))
    _try_to_remove(folder)


def _try_to_remove(path: str) -> None:
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        else:
            os.unlink(path)
    except OSError:
        pass


def _spawn(plan: Plan, arguments: list[str]) -> int:
    key = _key_file(plan.key_pipe)
    env = {**plan.env, _KEY_VARIABLE: str(key)}
    child = os.fork()
    if child:
        os.close(key)
        return child
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        os.execve(plan.program, [plan.program, *arguments], env)
    except OSError as error:
        print(f"cannot run {plan.program}: {error.strerror}", file=sys.stderr)
    os._exit(127)


def _key_file(named_pipe: str) -> int:
    """Return a descriptor from which the program reads the key, once. The key is then in no memory of this process."""
    pipe = os.open(named_pipe, os.O_RDONLY | _SAFE)  # the runner has written it
    key = bytearray(_MAX_KEY)
    try:
        length = key.find(b"\n", 0, os.readv(pipe, [key]))
        read, write = os.pipe()
        if length > 0:
            os.write(write, memoryview(key)[:length])
    finally:
        key[:] = bytes(_MAX_KEY)
        os.close(pipe)
    os.close(write)
    os.set_inheritable(read, True)
    return read


def _record(path: str, child: int) -> None:
    """Record the pids with their start times: a pid alone may later belong to another process."""
    _try_to_remove(f"{path}.new")
    with open(f"{path}.new", "x", encoding="utf-8") as file:
        for pid in (child, os.getpid()):
            file.write(f"{pid} {start_time(pid)}\n")
    os.rename(f"{path}.new", path)


def start_time(pid: int) -> str:
    """Return when a process started, in the kernel's clock ticks; empty if unknown."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _close_standard_streams() -> None:
    """Close standard input and output here: the runner then sees their end when the program ends."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)


def _wait(child: int, plan: Plan, wake: int, stop_signals: list[int]) -> int:
    """Wait for the program. Return its exit code, 128 + N after signal N."""
    terminated_at = 0.0
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if ended:
            continue
        if not terminated_at and (stop_signals or os.getppid() != plan.runner):
            terminated_at = time.monotonic()
            os.kill(child, signal.SIGTERM)
        elif terminated_at and time.monotonic() - terminated_at > plan.grace:
            os.kill(child, signal.SIGKILL)
        select.select([wake], [], [], _CHECK_INTERVAL)
        try:
            os.read(wake, 512)
        except BlockingIOError:
            pass


def _kill_descendants(grace: float) -> None:
    """Kill the processes that the program left. This process is their subreaper, so it is their parent now."""
    until = time.monotonic() + grace
    while time.monotonic() < until:
        for pid in _child_pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)
        except ChildProcessError:
            return


def _child_pids() -> list[int]:
    me = str(os.getpid())
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if name.isdigit():
            try:
                with open(
                    f"/proc/{name}/stat", encoding="utf-8", errors="replace"
                ) as file:
                    if file.read().rpartition(")")[2].split()[1] == me:
                        found.append(int(name))
            except (OSError, IndexError):
                continue
    return found


def _prctl(option: int, value: int) -> None:
    """Call prctl(2) on Linux; other systems rely on the regular check of the parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, int(value), 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
