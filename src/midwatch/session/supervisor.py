"""Runs the claude program as a child that never outlives the runner. Started as a script, not imported.

``python -I -S supervisor.py PLAN ARGUMENT…`` with an empty environment. It must start quickly and must
not depend on anything installed, so it uses the standard library alone: also for its lock, which
`midwatch.files` has for everything else.

PLAN is a file of texts with a NUL behind each: the program, where the pids go, a named pipe with the
API key, the pid of the runner, seconds of grace, and then all variables of the program as NAME=VALUE.
(Not JSON: to import that module takes a third of the whole start.)

What it makes sure of: the program ends when the runner does, however that ends; what the program
left running ends with it, and its temporary files go; the key is in no environment, argument or file.
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
_SET_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_KEY_VARIABLE = "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR"
_TEMPORARY, _TEMPORARY_OF_TOOLS = "CLAUDE_CODE_TMPDIR", "TMPDIR"
_PREFIX = "midwatch-claude-"
_LONGEST = 70  # bytes; the sandbox has sockets in it, whose paths end at 108
_TICK = 0.5  # seconds between two checks of the runner


class Plan:
    """The plan file of the runner."""

    def __init__(self, path: str) -> None:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            texts = file.read().split("\0")[:-1]
        self.program, self.record, self.key_pipe = texts[:3]
        self.runner, self.grace = int(texts[3]), float(texts[4])
        self.env = dict(text.split("=", 1) for text in texts[5:])


def main() -> int:
    plan = Plan(sys.argv[1])
    wake, stopping = _signals()
    os.setsid()  # no terminal to ask on, and no Ctrl-C that was meant for the runner
    _prctl(_SET_SUBREAPER, 1)
    _prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != plan.runner:
        return 1
    temporary = _temporary_folder(plan.env)
    try:
        child = _spawn(plan, sys.argv[2:])
        _record(plan.record, child)
        _let_go_of_the_streams()
        code = _wait(child, plan, wake, stopping)
        _end_the_rest(plan.grace)
    finally:
        if temporary is not None:
            _clean_up(temporary)
    return code


def _signals() -> tuple[int, list[int]]:
    """A file that becomes readable at every signal, and the ones that ask to stop."""
    stopping: list[int] = []
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.set_blocking(read, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _: stopping.append(got))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read, stopping


def _temporary_folder(env: dict[str, str]) -> str | None:
    """Make a temporary folder for the program and put it into `env`. Return None if `env` names one, or on failure.

    It is locked as long as this process lives, so that others see whether it is still in use.
    """
    if _TEMPORARY in env:
        return None
    above = env.get(_TEMPORARY_OF_TOOLS) or "/tmp"
    folder = f"{above}/{_PREFIX}{os.getpid()}-{time.time_ns() & 0xFFFFFFFF:x}"
    if not os.path.isabs(folder) or len(os.fsencode(folder)) > _LONGEST:
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


def _clean_up(folder: str) -> None:
    """Remove the folder, and those that killed supervisors left behind."""
    _remove(folder)
    above = os.path.dirname(folder)
    try:
        names = os.listdir(above)
    except OSError:
        return
    for name in names:
        left = os.path.join(above, name)
        if name.startswith(_PREFIX) and (opened := _lock(left)) is not None:
            _remove(left)
            os.close(opened)


def _remove(folder: str) -> None:
    """Remove what can be removed of a folder; links are not followed."""
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
    env = {**plan.env, _KEY_VARIABLE: str(_key_file(plan.key_pipe))}
    child = os.fork()
    if child:
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
    """Return a descriptor from which the program reads the key, once."""
    with open(named_pipe, encoding="utf-8") as pipe:
        key = pipe.readline().rstrip("\n")
    read, write = os.pipe()
    os.write(write, key.encode())
    os.close(write)
    os.set_inheritable(read, True)
    return read


def _record(path: str, child: int) -> None:
    """Record the pids with their start times: a pid alone may later belong to another process."""
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        for pid in (child, os.getpid()):
            file.write(f"{pid} {started(pid)}\n")
    os.rename(f"{path}.new", path)


def started(pid: int) -> str:
    """Return when a process started, in the kernel's clock ticks; empty if unknown."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _let_go_of_the_streams() -> None:
    """Only the program holds them from here on, so that its end shows at once."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)


def _wait(child: int, plan: Plan, wake: int, stopping: list[int]) -> int:
    """Wait for the program. Return its exit code as a shell has it."""
    asked = 0.0
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if ended:
            continue
        if not asked and (stopping or os.getppid() != plan.runner):
            asked = time.monotonic()
            os.kill(child, signal.SIGTERM)
        elif asked and time.monotonic() - asked > plan.grace:
            os.kill(child, signal.SIGKILL)
        select.select([wake], [], [], _TICK)
        try:
            os.read(wake, 512)
        except BlockingIOError:
            pass


def _end_the_rest(grace: float) -> None:
    """Kill what the program left behind: this process is its subreaper, so it is the parent now."""
    until = time.monotonic() + grace
    while time.monotonic() < until:
        for pid in _children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)
        except ChildProcessError:
            return


def _children() -> list[int]:
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
    """Call prctl(2) on Linux; elsewhere the regular checks of the runner have to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, int(value), 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
