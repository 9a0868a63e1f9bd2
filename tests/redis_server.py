"""A private Redis server in a folder; tests that need it are skipped without the program."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as driver

from .waiting import PATIENCE

PROGRAM = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(
    PROGRAM is None, reason="the program `redis-server` is not on the PATH"
)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Redis:
    """A server in a folder of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.options = folder, options
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.client: Any = driver.Redis(port=self.port, socket_timeout=PATIENCE)
        self.start()

    def start(self) -> None:
        assert PROGRAM is not None
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self.process = subprocess.Popen(
            [PROGRAM, *options, *self.options],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.wait(lambda: self.client.ping())

    def wait(self, holds: Any) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(driver.RedisError):
                if holds():
                    return
            assert time.monotonic() < end, "the server did not get there"
            time.sleep(0.02)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running(folder: Path, *options: str) -> Iterator[Redis]:
    server = Redis(folder, *options)
    try:
        yield server
    finally:
        server.stop()
