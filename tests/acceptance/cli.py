"""Real `midwatch` processes: started in a folder of their own, with an environment that is built."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from midwatch.store.sql import SqlStore, open_store

from .. import processes
from ..waiting import PATIENCE

T = TypeVar("T")
MIDWATCH = processes.PROGRAM
KEY = "sk-ant-dummy-0123456789"


def environ(folder: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8", **more}


def midwatch(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one command in `folder`, where its settings and its database are."""
    return processes.run(arguments, cwd=folder, env=environ(folder, **(env or {})))


def said(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """What a command prints that has to succeed."""
    done = midwatch(folder, *arguments, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def said_json(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> Any:
    return json.loads(said(folder, *arguments, "--json", env=env))


def refused(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, code: int = 1
) -> str:
    """The one line of a command that has to fail with this exit code."""
    done = midwatch(folder, *arguments, env=env)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def on_a_terminal(folder: Path, *arguments: str, columns: int = 80) -> str:
    """What a command shows on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = processes.Midwatch(
        arguments,
        cwd=folder,
        env=environ(folder, TERM="xterm-256color"),
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # the last writer closed the terminal
        pass
    finally:
        os.close(ours)
    assert process.wait(PATIENCE) == 0, shown
    return shown.decode().replace("\r\n", "\n")


def in_store(folder: Path, use: Callable[[SqlStore], Awaitable[T]]) -> T:
    """Do something with the database of `folder` directly."""

    async def run() -> T:
        store = await open_store(f"sqlite:///{folder / 'midwatch.db'}")
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(run())


async def comes_true(so: Callable[[], object], timeout: float) -> None:
    """Look every 10 ms, between which the loop goes on. Raises TimeoutError after so many seconds."""
    async with asyncio.timeout(timeout):
        while not so():
            await asyncio.sleep(0.01)
