"""A private MariaDB server in a temporary folder, from Debian's programs; tests that need it are skipped without them."""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import asyncmy
import pytest
from asyncmy.cursors import DictCursor

from .waiting import wait_until

PROGRAMS = ("mariadbd", "mariadb", "mariadb-install-db", "mariadb-admin")


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


needs_mariadb = pytest.mark.skipif(
    not all(map(_program, PROGRAMS)), reason="Debian's mariadb-server is not installed"
)


def free_port() -> int:
    """Return a port below those that the kernel gives to connections: it stays free while a server is stopped."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


class PrivateMariadb:
    """A server on a socket and a port of loopback; root has no password.

    It has its own folder of temporary files: a server that starts removes the
    temporary tables of every other one there.
    """

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mw-maria-"))
        self.port = free_port()
        self.socket = self.folder / "db.sock"
        self.log = self.folder / "error.log"
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        user = getpass.getuser()
        done = subprocess.run(
            [
                str(_program("mariadb-install-db")),
                "--no-defaults",
                f"--datadir={self.folder / 'data'}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                f"--user={user}",
            ],
            capture_output=True,
            env=os.environ | {"TMPDIR": str(self.temporary)},
            timeout=180,
        )
        try:
            assert done.returncode == 0, (done.stdout + done.stderr).decode()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [
            str(_program("mariadbd")),
            "--no-defaults",
            f"--user={getpass.getuser()}",
            f"--datadir={self.folder / 'data'}",
            f"--socket={self.socket}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--pid-file={self.folder / 'pid'}",
            f"--log-error={self.log}",
            f"--tmpdir={self.temporary}",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=16M",
            *self.options,
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
        done = subprocess.run(
            [
                str(_program("mariadb-admin")),
                "--no-defaults",
                "-u",
                "root",
                "-S",
                str(self.socket),
                "ping",
            ],
            capture_output=True,
            timeout=60,
        )
        return done.returncode == 0

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End the server and wait for it."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(how)
            process.wait(timeout=90)

    def run(self, script: str) -> str:
        """Run SQL as root and return what the client prints."""
        done = subprocess.run(
            [
                str(_program("mariadb")),
                "--no-defaults",
                "-u",
                "root",
                "-S",
                str(self.socket),
                "-BN",
            ],
            input=script.encode(),
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    async def connect(self, user: str = "root", **options: Any) -> Any:
        """Return an open connection of a client."""
        given = {
            "unix_socket": str(self.socket),
            "user": user,
            "cursor_cls": DictCursor,
            "autocommit": True,
        }
        return await asyncmy.connect(**(given | options))


async def sql(connection: Any, statement: str) -> Sequence[Any]:
    """Run a statement on a connection of a client and return its rows."""
    async with connection.cursor() as cursor:
        await cursor.execute(statement)
        return await cursor.fetchall() if cursor.description else ()
