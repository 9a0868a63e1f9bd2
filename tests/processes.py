"""`midwatch` processes, forked from one that has imported everything (see `tests.scripts`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from .scripts import MIDWATCH, Mounts, Script
from .waiting import PATIENCE

PROGRAM = str(Path(sys.executable).with_name("midwatch"))


class Midwatch(Script):
    """A `midwatch` process.

    Args:
        arguments: The command line after the program's name.
        cwd, env, stdin, stdout, stderr, mounts: As a script has them.
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
        mounts: Mounts | None = None,
    ) -> None:
        super().__init__(
            MIDWATCH,
            ["midwatch", *map(str, arguments)],
            cwd=cwd,
            env=env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            mounts=mounts,
        )


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
) -> Midwatch | subprocess.Popen[bytes]:
    """Start a command without input, in a session of its own. It is forked where it is `midwatch` itself."""
    if is_midwatch(command, env):
        return Midwatch(command[1:], cwd=cwd, env=env, stdout=stdout, stderr=stderr)
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
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
