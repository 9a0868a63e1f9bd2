"""Python programs that are forked from one that has imported everything.

Each is a process of its own, with its own environment, folder, files and `__main__`; only the imports, most of its
processor time, are done once for all workers of a run. At its end threads and exit functions run. To free all modules takes
ten times as long as the fork, so that is for a program whose end is tested, which then ends by the interpreter itself (`whole`).
`midwatch_in` makes a command of it, for a shell. What a test says about imports, start or size needs the real program.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, Self

from .waiting import PATIENCE

_ROOM = 1 << 20
"""Bytes that a request may have: a script, its arguments and its environment."""
MIDWATCH = "from midwatch.cli.main import main; main()"
# It is the outermost program, so an interrupted script ends by the signal, as `python -c` does.
_SERVER = "from tests.scripts import serve; script = serve({}); script()"
_HERE, _READY = b"here", b"ready"
_SHIM = """\
#!{python} -IS
import json, os, signal, socket, sys
asked = {{"code": {code!r}, "arguments": ["midwatch", *sys.argv[1:]], "folder": os.getcwd(), "environ": dict(os.environ)}}
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
pid = int(server.recv(64))
def pass_on(number, frame):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, pass_on)
code = int(server.recv(64))
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
_NEW_MOUNTS, _NEW_USER = 0x20000, 0x10000000
_BIND, _PRIVATE_BELOW = 0x1000, 0x44000
"""CLONE_NEWNS, CLONE_NEWUSER; MS_BIND, MS_REC | MS_PRIVATE."""


@dataclass(frozen=True, slots=True)
class Mounts:
    """What a process has mounted in a namespace of its own: folders, each at another one.

    `as_user` is for a caller who may mount in a user namespace alone.
    """

    binds: Sequence[tuple[str, str]]
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


class Script:
    """A running Python program, with the part of `subprocess.Popen` that tests use.

    Args:
        code: The program's text.
        arguments: Its `sys.argv`.
        cwd, env: Its folder and its whole environment; those of the caller without them.
        stdin: An open file or a descriptor; /dev/null without it.
        stdout, stderr: Likewise; without them where the caller writes errors, and where `stdout` goes.
        mounts: What is mounted for it alone; `cwd` is made within, if it is missing.
        whole: Whether it ends by the interpreter itself.

    It leads a session of its own, and is killed with its group once this object or process is gone.
    """

    def __init__(
        self,
        code: str,
        arguments: Sequence[str] = ("-c",),
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] = 2,
        stderr: int | IO[Any] | None = None,
        mounts: Mounts | None = None,
        whole: bool = False,
    ) -> None:
        self.args = list(arguments)
        self.returncode: int | None = None
        asked = {
            "code": code,
            "arguments": self.args,
            "folder": str(cwd or Path.cwd()),
            "environ": dict(os.environ if env is None else env),
            "mounts": mounts and asdict(mounts),
            "whole": whole,
        }
        address = _address()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.connect(address)
        with open(os.devnull) as nothing:
            given = (
                nothing if stdin is None else stdin,
                stdout,
                stdout if stderr is None else stderr,
            )
            files = [one if isinstance(one, int) else one.fileno() for one in given]
            socket.send_fds(self._server, [json.dumps(asked).encode()], files)
        self.pid = int(self._server.recv(64))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def __del__(self) -> None:
        self._server.close()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float = PATIENCE) -> int:
        """Return the exit code; that of a signal is negative. Raises TimeoutExpired after so many seconds."""
        if self.returncode is None:
            if not select.select([self._server], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._server.recv(64))
            self._server.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        # The server that forked it may have seen its end before us.
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_script(
    code: str, arguments: Sequence[str] = (), *, timeout: float = PATIENCE
) -> tuple[int, str]:
    """Run a program to its whole end. Return its exit code and output. Raises TimeoutExpired after so many seconds."""
    with open(os.memfd_create("script"), "w+b", buffering=0) as output:
        process = Script(code, ["-c", *arguments], stdout=output, whole=True)
        try:
            ended = process.wait(timeout)
        finally:
            process.kill()
        output.seek(0)
        return ended, output.read().decode()


def midwatch_in(folder: Path) -> None:
    """Put the command `midwatch` into a folder, for a PATH: a program that has it forked."""
    file = folder / "midwatch"
    text = _SHIM.format(python=sys.executable, code=MIDWATCH, address=_address())
    file.write_text(text)
    file.chmod(0o755)


# ------------------------------------------------------------------ the server


@functools.cache
def _address() -> str:
    """Return the socket of the server of all workers, which the first of them starts, and which ends with the last."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)
    address = f"\0midwatch-scripts-{run}"
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        _start(address)
        here = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.suppress(OSError):
            here.connect(address)
            here.send(_HERE)
            if here.recv(64) == _READY:
                atexit.register(here.close)
                return address
        here.close()  # it was about to end, or has not begun to listen
        time.sleep(0.01)
    raise TimeoutError("the server of scripts does not start")


def _start(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            listener.bind(address)
        except OSError:
            return  # there is one
        listener.listen(64)
        server = subprocess.Popen(
            [sys.executable, "-c", _SERVER.format(listener.fileno())],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        # It goes on until the last of the workers has ended.
        atexit.register(server.wait, PATIENCE)


def serve(listener: int) -> Callable[[], None]:
    """Fork a process for each request, as long as one is there that may ask; return in each what it is to do.

    A program whose client is gone is killed, with its process group.
    """
    importlib.import_module("tests.preloaded")
    accepting = socket.socket(fileno=listener)
    here: set[socket.socket] = set()
    clients: dict[int, tuple[int, socket.socket]] = {}
    while True:
        waiting: list[Any] = [
            accepting,
            *here,
            *clients,
            *(one for _, one in clients.values()),
        ]
        ready = select.select(waiting, [], [])[0]
        for gone in here.intersection(ready):
            gone.close()
            here.discard(gone)
            if not here:
                for pid, _ in clients.values():
                    _kill(pid)
                os._exit(0)
        for pidfd, (pid, client) in list(clients.items()):
            if pidfd in ready:
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError):
                    client.send(str(code).encode())
                client.close()
                os.close(pidfd)
                del clients[pidfd]
            elif client in ready:
                _kill(pid)
        if accepting in ready:
            client, _ = accepting.accept()
            request, files, _, _ = socket.recv_fds(client, _ROOM, 3)
            if request == _HERE:
                client.send(_READY)
                here.add(client)
                continue
            pid = os.fork()
            if not pid:
                for one in (
                    accepting,
                    client,
                    *here,
                    *(c for _, c in clients.values()),
                ):
                    one.close()
                for descriptor in clients:
                    os.close(descriptor)
                return functools.partial(_run, json.loads(request), files)
            for file in files:
                os.close(file)
            clients[os.pidfd_open(pid)] = pid, client
            client.send(str(pid).encode())


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # it may not lead its group yet
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _run(asked: Mapping[str, Any], files: Sequence[int]) -> None:
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["environ"])
    time.tzset()
    if mounts := asked.get("mounts"):
        Mounts(**mounts).enter()
        os.makedirs(asked["folder"], exist_ok=True)
    os.chdir(asked["folder"])
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = _text(1, "surrogateescape")
    sys.stderr = _text(2, "backslashreplace")
    sys.argv = asked["arguments"]
    sys.path[1:1] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    code = compile(asked["code"], "<string>", "exec")
    if asked.get("whole"):
        exec(code, main.__dict__)
    else:
        _end(functools.partial(exec, code, main.__dict__))


def _text(number: int, errors: str) -> IO[str]:
    lines = number == 2 or os.isatty(number)
    raw = open(number, "wb", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, line_buffering=lines)


def _end(program: Callable[[], object]) -> NoReturn:
    """Run a program and end this process with the exit code that Python gives it."""
    code = 0
    try:
        program()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)
