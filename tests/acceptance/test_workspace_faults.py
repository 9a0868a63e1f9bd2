"""Failures of repositories: the right error, within the timeout, and nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from midwatch.errors import MidwatchError
from midwatch.testing.fakes import GitServer, git_server, make_repository, run_git
from midwatch.workspace.environment import Credential, GitEnvironment
from midwatch.workspace.errors import (
    GitMissing,
    GitTimedOut,
    NotAuthorised,
    RepositoryNotFound,
    RepositoryUnreachable,
    WorkspaceDiskFull,
)
from midwatch.workspace.git import Git, GitCommand, GitLimits
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace_async

from ..waiting import PATIENCE

TOKEN = "tok-5e1f-hunter2"


class CountingClock:
    """A clock that records sleeps and does not wait."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    make_repository(tmp_path / "served/x.git", {"f": "private\n"})
    with git_server(tmp_path / "served", TOKEN) as running:
        yield running


def options(tmp_path: Path, token: str = "", url: str = "") -> WorkspaceOptions:
    credentials = (Credential(url, token),) if token else ()
    return WorkspaceOptions(
        cache=tmp_path / "cache",
        state=tmp_path / "state",
        environment=GitEnvironment(credentials=credentials),
        limits=GitLimits(ask_seconds=10, transfer_seconds=10, attempts=3),
    )


def text_under(*folders: Path) -> str:
    files = [f for folder in folders for f in folder.rglob("*") if f.is_file()]
    return "".join(f.read_bytes().decode("latin-1") for f in files)


def command_lines() -> str:
    lines = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit():
                lines.append(
                    Path("/proc", entry, "cmdline").read_bytes().decode("latin-1")
                )
    return "\n".join(lines)


async def test_a_token_opens_the_door_and_is_nowhere_afterwards(
    tmp_path: Path, server: GitServer
) -> None:
    url = f"{server.url}/x.git"
    chosen = options(tmp_path, TOKEN, server.url)
    [path] = await setup_workspace_async([url], tmp_path / "ws", options=chosen)
    assert (path / "f").read_text() == "private\n"
    assert run_git(path, "config", "remote.origin.url") == url
    everything = text_under(tmp_path / "ws", tmp_path / "state", tmp_path / "cache")
    assert TOKEN not in everything and url in everything
    assert all(
        secret not in everything for secret in chosen.environment.credentials[0].secrets
    )


async def test_a_token_is_on_no_command_line_during_a_clone(tmp_path: Path) -> None:
    make_repository(tmp_path / "served/x.git", {"f": "private\n" * 5000})
    with git_server(tmp_path / "served", TOKEN, gated=True) as server:
        chosen = options(tmp_path, TOKEN, server.url)
        url = f"{server.url}/x.git"
        task = asyncio.create_task(
            setup_workspace_async([url], tmp_path / "ws", options=chosen)
        )
        await asyncio.to_thread(server.transfer_began.wait, PATIENCE)
        lines = command_lines()
        assert "git-remote-http" in lines or "remote-http" in lines
        assert TOKEN not in lines
        server.gate.set()
        await task


@pytest.mark.parametrize("token", ["", "tok-wrong-hunter2"])
async def test_no_or_a_wrong_token(
    tmp_path: Path, server: GitServer, token: str
) -> None:
    chosen = options(tmp_path, token, server.url)
    with pytest.raises(NotAuthorised) as caught:
        await setup_workspace_async(
            [f"{server.url}/x.git"], tmp_path / "ws", options=chosen
        )
    assert "x.git" in caught.value.one_line() and caught.value.hint
    assert "hunter2" not in caught.value.one_line()
    assert not (tmp_path / "ws").exists()


async def test_a_token_does_not_go_to_another_host(
    tmp_path: Path, server: GitServer
) -> None:
    chosen = options(tmp_path, TOKEN, "http://127.0.0.1:1")
    with pytest.raises(NotAuthorised):
        await setup_workspace_async(
            [f"{server.url}/x.git"], tmp_path / "ws", options=chosen
        )


async def test_not_there(tmp_path: Path, server: GitServer) -> None:
    chosen = options(tmp_path, TOKEN, server.url)
    with pytest.raises(RepositoryNotFound):
        await setup_workspace_async(
            [f"{server.url}/y.git"], tmp_path / "ws", options=chosen
        )


async def test_a_host_that_is_down_is_tried_again_then_reported(tmp_path: Path) -> None:
    clock = CountingClock()
    with (
        socket.socket() as taken
    ):  # bound, not listening: no other server can answer there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x.git"
        with pytest.raises(RepositoryUnreachable) as caught:
            await setup_workspace_async(
                [url], tmp_path / "ws", options=options(tmp_path), clock=clock
            )
    assert url in caught.value.one_line()
    assert clock.slept == [1.0, 2.0]


@pytest.mark.parametrize("low_speed", [1.0, 60.0])
async def test_a_host_that_accepts_and_stalls(tmp_path: Path, low_speed: float) -> None:
    """The low-speed limit of git or the timeout ends it, whichever is first."""
    limits = GitLimits(ask_seconds=2.5, low_speed_seconds=low_speed, attempts=3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.git"
        chosen = WorkspaceOptions(
            cache=tmp_path / "cache", state=tmp_path / "state", limits=limits
        )
        with pytest.raises(GitTimedOut):
            await setup_workspace_async([url], tmp_path / "ws", options=chosen)
        assert url not in command_lines()


async def test_a_cancelled_clone_leaves_no_file_and_no_process(tmp_path: Path) -> None:
    make_repository(tmp_path / "served/x.git", {"f": "text\n" * 5000})
    good = make_repository(tmp_path / "good.git", {"f": "1\n"})
    with git_server(tmp_path / "served", gated=True) as server:
        url = f"{server.url}/x.git"
        task = asyncio.create_task(
            setup_workspace_async(
                [str(good), url], tmp_path / "ws", options=options(tmp_path)
            )
        )
        await asyncio.to_thread(server.transfer_began.wait, PATIENCE)
        assert url in command_lines()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert url not in command_lines()
        assert not (tmp_path / "ws").exists() and not (tmp_path / "state").exists()
        server.gate.set()
        # What the interruption left in the cache does no harm.
        [path] = await setup_workspace_async(
            [url], tmp_path / "ws", options=options(tmp_path)
        )
        assert (path / "f").exists()


async def test_a_git_that_is_killed_is_an_error(tmp_path: Path) -> None:
    make_repository(tmp_path / "served/x.git", {"f": "text\n" * 5000})
    with git_server(tmp_path / "served", gated=True) as server:
        url = f"{server.url}/x.git"
        # Its helper still runs, until the low-speed limit ends it.
        limits = GitLimits(low_speed_seconds=1, attempts=1)
        chosen = WorkspaceOptions(
            cache=tmp_path / "cache", state=tmp_path / "state", limits=limits
        )
        task = asyncio.create_task(
            setup_workspace_async([url], tmp_path / "ws", options=chosen)
        )
        await asyncio.to_thread(server.transfer_began.wait, PATIENCE)
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                line = Path("/proc", entry, "cmdline").read_bytes()
                if url.encode() in line and b"\0clone\0" in line:
                    os.kill(int(entry), 9)
        with pytest.raises(MidwatchError):
            await task
        assert not (tmp_path / "ws").exists()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.needs_root
@pytest.mark.parametrize("full", ["cache", "workspace"])
async def test_a_full_disk(tmp_path: Path, full: str) -> None:
    noise = os.urandom(1_500_000).hex()
    repo = make_repository(tmp_path / "x.git", {"f": noise})
    with small_disk(tmp_path / "small"):
        small = tmp_path / "small"
        chosen = WorkspaceOptions(
            cache=(small if full == "cache" else tmp_path) / "cache",
            state=tmp_path / "state",
        )
        workspace = (small if full == "workspace" else tmp_path) / "ws"
        with pytest.raises(WorkspaceDiskFull) as caught:
            await setup_workspace_async([str(repo)], workspace, options=chosen)
        assert str(repo) in caught.value.one_line()
        assert not workspace.exists() and not (tmp_path / "state").exists()


async def test_no_git_program(tmp_path: Path) -> None:
    chosen = WorkspaceOptions(
        cache=tmp_path / "cache", environment=GitEnvironment(path=str(tmp_path))
    )
    with pytest.raises(GitMissing):
        await setup_workspace_async(["/x"], tmp_path / "ws", options=chosen)


async def test_output_is_bounded(tmp_path: Path) -> None:
    repo = make_repository(tmp_path / "x.git", {"f": "long\n" * 100_000})
    show = GitCommand(
        ["cat-file", "-p", "main:f"], repository="x", git_dir=repo, max_output=1000
    )
    output = await Git().run(show)
    assert output.cut and len(output.out) == 1000


async def test_output_that_comes_at_once_is_bounded_too(tmp_path: Path) -> None:
    """More is in the pipe than the loop takes unasked, as it may be on a busy machine."""
    program = tmp_path / "git"
    program.write_text(
        f"#!{sys.executable} -IS\nimport fcntl, os, time\n"
        "fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1 << 20)\n"
        "os.write(1, bytes(1 << 20))\ntime.sleep(600)\n"
    )
    program.chmod(0o755)
    show = GitCommand(["cat-file", "-p", "main:f"], repository="x", max_output=1000)
    output = await Git(GitEnvironment(path=str(tmp_path))).run(show)
    assert output.cut and len(output.out) == 1000
