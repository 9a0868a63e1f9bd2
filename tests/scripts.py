"""Python programs that are forked from one that has imported everything.

Each is a process of its own, with its own environment, folder, files and `__main__`; only the imports, most of its
processor time, are done once. At its end threads and exit functions run. To free all modules takes ten times as long
as the fork, so that is for a program whose end is tested, which then ends by the interpreter itself (`whole`).
`midwatch_in` makes a command of it, for a shell.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from .waiting import PATIENCE

_ROOM = 1 << 20
"""Bytes that a request may have: a script, its arguments and its environment."""
_MIDWATCH = "from midwatch.cli.main import main; main()"
# It is the outermost program, so an interrupted script ends by the signal, as `python -c` does.
_SERVER = "from tests.scripts import serve; script = serve({}, {}); script()"
_SHIM = """\
#!{python} -IS
import json, os, signal, socket, sys
asked = {{"code": {code!r}, "arguments": ["midwatch", *sys.argv[1:]], "folder": os.getcwd(), "environ": dict(os.environ), "whole": False}}
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


class Script:
    """A running Python program, with the part of `subprocess.Popen` that tests use.

    Args:
        code: The program's text.
        arguments: What it has in `sys.argv` after "-c".
        cwd, env: Its folder and its whole environment; those of the caller without them.
        stdout: Where both of its outputs go: an open file. Its input is /dev/null.
        whole: Whether it ends by the interpreter itself.

    It leads a session of its own, and is killed with this process.
    """

    def __init__(
        self,
        code: str,
        arguments: Sequence[str] = (),
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: IO[Any],
        whole: bool = False,
    ) -> None:
        self.args = ["-c", *arguments]
        self.returncode: int | None = None
        asked = {
            "code": code,
            "arguments": self.args,
            "folder": str(cwd or Path.cwd()),
            "environ": dict(os.environ if env is None else env),
            "whole": whole,
        }
        output = stdout.fileno()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.connect(_address())
        with open(os.devnull) as nothing:
            files = [nothing.fileno(), output, output]
            socket.send_fds(self._server, [json.dumps(asked).encode()], files)
        self.pid = int(self._server.recv(64))

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
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Let the server kill it, with its process group, if it still runs."""
        if self.returncode is None:
            self.returncode = -signal.SIGKILL
            self._server.close()


def run_script(
    code: str, arguments: Sequence[str] = (), *, timeout: float = PATIENCE
) -> tuple[int, str]:
    """Run a program to its whole end. Return its exit code and output. Raises TimeoutExpired after so many seconds."""
    with open(os.memfd_create("script"), "w+b", buffering=0) as output:
        process = Script(code, arguments, stdout=output, whole=True)
        try:
            ended = process.wait(timeout)
        finally:
            process.kill()
        output.seek(0)
        return ended, output.read().decode()


def midwatch_in(folder: Path) -> None:
    """Put the command `midwatch` into a folder, for a PATH: a program that has it forked."""
    file = folder / "midwatch"
    text = _SHIM.format(python=sys.executable, code=_MIDWATCH, address=_address())
    file.write_text(text)
    file.chmod(0o755)


# ------------------------------------------------------------------ the server


@functools.cache
def _address() -> str:
    """Return the socket of this process's server, which is started with the first program."""
    folder = tempfile.mkdtemp(prefix="midwatch-scripts-")
    address = f"{folder}/socket"
    ended, alive = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        descriptors = listener.fileno(), ended
        server = subprocess.Popen(
            [sys.executable, "-c", _SERVER.format(*descriptors)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,
        )
    os.close(ended)

    def end() -> None:
        os.close(alive)
        server.wait(PATIENCE)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return address


def serve(listener: int, ended: int) -> Callable[[], None]:
    """Fork a process for each request until `ended` does; return in each what it is to do.

    A program whose client is gone is killed, with its process group.
    """
    importlib.import_module("tests.preloaded")
    accepting = socket.socket(fileno=listener)
    clients: dict[int, tuple[int, socket.socket]] = {}
    while True:
        waiting: list[Any] = [
            accepting,
            ended,
            *clients,
            *(one for _, one in clients.values()),
        ]
        ready = select.select(waiting, [], [])[0]
        if ended in ready:
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
            pid = os.fork()
            if not pid:
                for one in (accepting, client, *(c for _, c in clients.values())):
                    one.close()
                for descriptor in (ended, *clients):
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
    os.chdir(asked["folder"])
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )
    sys.argv = asked["arguments"]
    sys.path[1:1] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    code = compile(asked["code"], "<string>", "exec")
    if asked["whole"]:
        exec(code, main.__dict__)
    else:
        _end(functools.partial(exec, code, main.__dict__))


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
