"""`midwatch` processes that are forked from one that has imported everything.

Each is a process of its own, with its own environment, folder and files, and runs the entry point of
the command; only the imports, which take most of its processor time, are done once. What a test says
about imports, start or size needs the real program.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any

from .waiting import PATIENCE

PROGRAM = str(Path(sys.executable).with_name("midwatch"))
# There is one server that forks in a process, and what was set last is what it imports: use this one.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preloaded"])


_NEW_MOUNTS, _NEW_USER = 0x20000, 0x10000000
_BIND, _PRIVATE_BELOW = 0x1000, 0x44000
"""CLONE_NEWNS, CLONE_NEWUSER; MS_BIND, MS_REC | MS_PRIVATE."""


@dataclass(frozen=True, slots=True)
class Mounts:
    """What a process has mounted in a namespace of its own: folders, each at another one.

    `as_user` is for a caller who may mount in a user namespace alone.
    """

    binds: tuple[tuple[str, str], ...]
    as_user: bool

    def enter(self) -> None:
        """Mount them for this process. Raises OSError."""
        libc = ctypes.CDLL(None, use_errno=True)
        user, group = os.geteuid(), os.getegid()
        _call(libc.unshare, _NEW_MOUNTS | (_NEW_USER if self.as_user else 0))
        if self.as_user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        _call(libc.mount, None, b"/", None, _PRIVATE_BELOW, None)
        for source, target in self.binds:
            at = os.fsencode(target)
            _call(libc.mount, os.fsencode(source), at, None, _BIND, None)


def _call(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class _Passed:
    """A file descriptor, as the child gets it: the number of its copy there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> Any:
        return _received, (DupFd(self._descriptor),)


def _received(copy: Any) -> int:
    return int(copy.detach())


def _main(
    arguments: Sequence[str],
    folder: str,
    environ: Mapping[str, str],
    files: Sequence[int],
    session: bool,
    mounts: Mounts | None,
) -> None:
    from midwatch.cli.main import main

    if session:
        os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
    for file in set(files):
        os.close(file)
    os.environ.clear()
    os.environ.update(environ)
    time.tzset()
    if mounts is not None:
        mounts.enter()
        os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    sys.stdin = io.TextIOWrapper(open(0, "rb", closefd=False), encoding="utf-8")
    sys.stdout = _text(1, "surrogateescape")
    sys.stderr = _text(2, "backslashreplace")
    sys.argv = ["midwatch", *arguments]
    try:
        main()
    finally:
        atexit._run_exitfuncs()


def _text(number: int, errors: str) -> IO[str]:
    lines = number == 2 or os.isatty(number)
    raw = open(number, "wb", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, line_buffering=lines)


class Midwatch:
    """A `midwatch` process, with the part of `subprocess.Popen` that tests use.

    Args:
        arguments: The command line after the program's name.
        cwd, env: Its folder and its whole environment.
        stdout, stderr: Open files or descriptors.
        stdin: Likewise; /dev/null without it.
        start_new_session: Whether it leads a session of its own.
        mounts: What is mounted for it alone; `cwd` is made within, if it is missing.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: int | IO[Any],
        stderr: int | IO[Any],
        stdin: int | IO[Any] | None = None,
        start_new_session: bool = False,
        mounts: Mounts | None = None,
    ) -> None:
        self.args = ["midwatch", *map(str, arguments)]
        with open(os.devnull) as nothing:
            files = [
                _Passed(file if isinstance(file, int) else file.fileno())
                for file in (nothing if stdin is None else stdin, stdout, stderr)
            ]
            self._process = FORKS.Process(
                target=_main,
                args=(
                    self.args[1:],
                    str(cwd),
                    dict(env),
                    files,
                    start_new_session,
                    mounts,
                ),
            )
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __enter__(self) -> Midwatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = PATIENCE) -> int:
        """Return the exit code; that of a signal is negative. Raises TimeoutExpired after so many seconds."""
        if not wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired(self.args, timeout)
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        # The server that forked it may have seen its end before us.
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def is_midwatch(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """Return whether a command starts `midwatch`, and so can be forked."""
    return shutil.which(command[0], path=env["PATH"]) == PROGRAM


def start(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdout: int | IO[Any],
    stderr: int | IO[Any],
    start_new_session: bool = False,
) -> Midwatch | subprocess.Popen[bytes]:
    """Start a command without input. It is forked where it is `midwatch` itself."""
    if is_midwatch(command, env):
        return Midwatch(
            command[1:],
            cwd=cwd,
            env=env,
            stdout=stdout,
            stderr=stderr,
            start_new_session=start_new_session,
        )
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=start_new_session,
    )


def run(
    arguments: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    input: str = "",
    timeout: float = PATIENCE,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Raises TimeoutExpired after so many seconds, when it is killed."""
    with _temporary(input) as stdin, _temporary() as stdout, _temporary() as stderr:
        process = Midwatch(
            arguments, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr
        )
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(
            process.args, code, _content(stdout), _content(stderr)
        )


def _temporary(content: str = "") -> IO[bytes]:
    file = open(os.memfd_create("midwatch"), "w+b", buffering=0)
    file.write(content.encode())
    file.seek(0)
    return file


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()
