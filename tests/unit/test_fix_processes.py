"""A session that fixes a ticket is started once, also when the server dies between its start and the answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from midwatch.errors import NotFound
from midwatch.lifecycle import SystemClock
from midwatch.logs import quiet_log
from midwatch.redaction import Redactor
from midwatch.server.actions import Actions
from midwatch.server.auth import Principal, Role, scopes_of
from midwatch.server.fix_processes import FixProcesses, SessionNotStarted
from midwatch.server.mcp_tools import ToolContext, Tools
from midwatch.session.records import SessionStore
from midwatch.store.protocol import Store
from midwatch.store.sql import open_store
from midwatch.testing.fakes import open_tickets

pytestmark = pytest.mark.integration


class Stored:
    """The records of sessions, as a folder with a file for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def get(self, session_id: str) -> Path:
        if not (file := self.folder / session_id).exists():
            raise NotFound("no session")
        return file


STARTS = """
import pathlib, sys
ids = sys.argv[sys.argv.index("--id") + 1]
with open(pathlib.Path(sys.argv[1]) / ids, "a") as file:
    file.write("started\\n")
"""


def processes(folder: Path, script: str) -> FixProcesses:
    """A server that has just started."""
    return FixProcesses(
        [sys.executable, "-c", script, str(folder)],
        {},
        cast(SessionStore, Stored(folder)),
        Redactor([]),
        quiet_log(),
        SystemClock(),
    )


@pytest.fixture(autouse=True)
async def ended() -> AsyncIterator[None]:
    """Wait for the end of what a test started: a process outlives its server, not the loop that watches it."""
    yield
    named = (
        one for one in asyncio.all_tasks() if one.get_name().startswith("session ")
    )
    await asyncio.gather(*named, return_exceptions=True)


async def test_a_request_that_comes_again_after_a_crash_starts_nothing(
    tmp_path: Path,
) -> None:
    for _ in range(2):
        server = processes(tmp_path, STARTS)
        started = await server.fix(
            3, by="ann", prompt="", interactive=False, session_id="s-0123456789ab"
        )
        assert started == "s-0123456789ab"
    assert (tmp_path / started).read_text() == "started\n"
    other = await processes(tmp_path, STARTS).fix(
        3, by="ann", prompt="", interactive=False
    )
    assert other != started


async def test_a_session_that_did_not_start_is_started_when_it_is_asked_for_again(
    tmp_path: Path,
) -> None:
    with pytest.raises(SessionNotStarted, match="no repositories"):
        await processes(tmp_path, "raise SystemExit('no repositories')").fix(
            3, by="ann", prompt="", interactive=False, session_id="s-1"
        )
    again = processes(tmp_path, STARTS)
    assert "s-1" == await again.fix(
        3, by="ann", prompt="", interactive=False, session_id="s-1"
    )


ANN = Principal("ann", Role.OPERATOR, scopes_of(Role.OPERATOR), "loopback")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(f"sqlite:///{tmp_path / 'midwatch.db'}")
    await open_tickets(opened, "locked", subject="box")
    yield opened
    await opened.close()


async def test_a_request_that_comes_twice_starts_one_session(
    tmp_path: Path, store: Store
) -> None:
    """As by a double click, or a call that is repeated while the first is under way, at another server."""
    servers = [
        Actions(store, Redactor([]), processes(tmp_path, STARTS)) for _ in range(2)
    ]
    started, same = await asyncio.gather(
        *(one.fix_once(ANN, 1, "Look.", "k") for one in servers)
    )
    assert started == same
    assert await servers[1].fix_once(ANN, 1, "Look.", "k") == started
    assert (tmp_path / started.session).read_text() == "started\n"
    for prompt, key in (("Look.", "other"), ("Look twice.", "k")):
        assert await servers[0].fix_once(ANN, 1, prompt, key) != started


SAYS = """
import pathlib, sys
ids = sys.argv[sys.argv.index("--id") + 1]
(pathlib.Path(sys.argv[1]) / ids).write_text(" ".join(sys.argv[2:]))
"""


async def test_a_session_of_mcp_with_a_pull_request_ends_by_itself(
    tmp_path: Path, store: Store
) -> None:
    """No tool ends it, and one that waits for messages would never come to its pull request."""
    actions = Actions(store, Redactor([]), processes(tmp_path, SAYS))
    unused = cast(Any, None)
    tools = Tools(ToolContext(store, actions, (), SystemClock(), unused), ANN)
    for pull_request in (True, False):
        told = await tools.start_fix(1, "Look.", pull_request)
        command = (tmp_path / told.split()[1]).read_text().split()
        assert command[:3] == ["session", "fix", "1"]
        assert ("--pr" in command) == pull_request
        assert ("--interactive" in command) != pull_request


async def test_a_start_that_failed_can_be_tried_again_with_its_key(
    tmp_path: Path, store: Store
) -> None:
    failing = processes(tmp_path, "raise SystemExit('no repositories')")
    with pytest.raises(SessionNotStarted):
        await Actions(store, Redactor([]), failing).fix_once(ANN, 1, "", "k")
    again = Actions(store, Redactor([]), processes(tmp_path, STARTS))
    assert await again.fix_once(ANN, 1, "", "k")
