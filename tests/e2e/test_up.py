"""`midwatch up`, `monitor` and `agent` as a user runs them, on real systems."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from midwatch.evaluation.scenario import LIBRARY, load
from midwatch.evaluation.system import System
from midwatch.model import TicketStatus
from midwatch.store.engine import open_transactions, parse_database
from midwatch.store.sql import SqlStore, open_store
from midwatch.store.upgrade import upgrade
from midwatch.testing.messages_api import (
    Answer,
    Hold,
    Request,
    Rule,
    ScriptedMessagesAPI,
    fingerprint,
    rate_limited,
    unauthorized,
)
from midwatch.testing.postgres import PrivatePostgres

from ..waiting import PATIENCE
from .support import (
    KEY,
    Board,
    asking,
    blaming,
    daemon,
    healthy_board,
    ticket_that,
    tickets,
    until,
    write_settings,
)

FIELDS = {"tickets", "attempt", "outcome", "seconds", "tokens", "usd"}


@pytest.fixture(scope="module")
def server() -> Iterator[PrivatePostgres]:
    with PrivatePostgres() as started:
        yield started


@pytest.fixture
def lock_queue(tmp_path: Path) -> Iterator[System]:
    """The scenario of that name, before its fault."""
    folder = tmp_path / "system"
    folder.mkdir()
    system = System(load(LIBRARY / "lock-queue"), folder).start()
    yield system
    system.close()


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return healthy_board(tmp_path)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    """The database of the daemons, as another process sees it."""
    opened = await open_store(f"sqlite:///{tmp_path / 'midwatch.db'}")
    yield opened
    await opened.close()


async def test_a_lock_queue_from_the_ticket_to_its_end(
    lock_queue: System, store: SqlStore, tmp_path: Path
) -> None:
    config = write_settings(
        tmp_path,
        {
            "name": "orders-db",
            "kind": "postgres",
            "dsn": lock_queue.names["pg.dsn"],
            "log_file": lock_queue.names["pg.log"],
            "invariants": {"blocked_sessions": {"limit": "500ms"}},
        },
    )
    # The first call may begin before there is first aid: it costs no attempt, and the next one has all of it.
    hold = Hold(rate_limited(retry_after=0.1))
    first = iter([hold])
    read = blaming(r"pid \d+", "checkout", cause="It began with: {line}")

    def held(request: Request) -> Hold | Answer:
        return next(first, None) or read(request)

    with (
        ScriptedMessagesAPI(Rule(held)) as api,
        daemon(config, "up", **asking(api.base_url)) as up,
    ):
        await up.said("cycle", unobservable=0)
        assert await tickets(store) == []
        await asyncio.to_thread(lock_queue.run, lock_queue.scenario.fault)
        pid, name = lock_queue.names["checkout.pid"], "checkout"
        opened = await ticket_that(store, "has first aid", lambda one: one.first_aid)
        assert opened.key.invariant == "blocked_sessions"
        assert opened.first_aid and pid in opened.first_aid["root_cause"]
        written_at = datetime.fromisoformat(opened.first_aid["written_at"])
        assert (written_at - opened.opened_at).total_seconds() < PATIENCE
        hold.release()  # first aid does not wait for the answer
        diagnosed = await ticket_that(
            store, "is diagnosed", lambda one: one.diagnosis_id
        )
        stored = await store.diagnosis(diagnosed.diagnosis_id or 0)
        assert stored.outcome == "answered" and stored.answer and stored.grounded
        assert stored.grounded.verified == stored.grounded.total == 1
        assert (
            pid in stored.answer["root_cause"] and name in stored.answer["root_cause"]
        )
        assert stored.usage.input_tokens == 2000 and stored.cost_usd > 0
        await asyncio.to_thread(lock_queue.run, lock_queue.scenario.repair)
        await until("the end", lambda: _all_resolved(store))
        assert (await store.history(opened.id))[-1].actor == "monitor"
        line = await up.said("diagnosed")
        assert FIELDS <= line.keys() and line["tickets"] == [opened.id]
        assert (line["attempt"], line["outcome"], line["tokens"]) == (
            1,
            "answered",
            2300,
        )
        assert up.end(signal.SIGTERM)[0] == 0
    *_, call = api.calls
    changed = call.prompt.partition("What changed since every invariant held")[2][:1000]
    assert f"application {name}, idle in transaction: none → 1" in changed


async def _all_resolved(store: SqlStore) -> bool:
    return all(ticket.resolved for ticket in await tickets(store))


async def test_a_signal_ends_up_while_a_call_and_a_look_hang(
    board: Board, store: SqlStore, tmp_path: Path
) -> None:
    slow = {"name": "slow", "kind": "command", "command": ["sleep", "900"]}
    config = write_settings(
        tmp_path, board.subject(), {**slow, "timeout": "900s"}, agent={"grace": "500ms"}
    )
    board.show("db")
    hold = Hold()
    with (
        ScriptedMessagesAPI(Rule(hold)) as api,
        daemon(config, "up", **asking(api.base_url)) as up,
    ):
        await hold.arrived(timeout=PATIENCE)
        code, seconds = await asyncio.to_thread(up.end, signal.SIGTERM)
        assert (code, seconds < PATIENCE) == (0, True), seconds
        assert up.lines()[-1]["event"] == "stopped"
        assert up.lines()[-1]["reason"] == "SIGTERM"
    [ticket] = await tickets(store)
    assert ticket.status is TicketStatus.OPEN and ticket.attempts == 0
    assert await store.claim("next", lease=30), "it was released"


async def test_a_key_that_comes_late_and_wrong_heals_without_a_restart(
    board: Board, store: SqlStore, tmp_path: Path
) -> None:
    key_file = tmp_path / "key"
    key_file.touch()
    config = write_settings(
        tmp_path, board.subject(), anthropic={"api_key_file": str(key_file)}
    )
    right = Rule(blaming("db"), when=lambda request: request.key == fingerprint(KEY))
    with (
        ScriptedMessagesAPI(right, unauthorized()) as api,
        daemon(config, "up", ANTHROPIC_BASE_URL=api.base_url) as up,
    ):
        said = await up.said("not diagnosing")
        assert "no API key" in said["reason"] and "ANTHROPIC_API_KEY" in said["reason"]
        board.show("db")
        aided = await ticket_that(store, "has first aid", lambda one: one.first_aid)
        seen = len(up.lines("cycle"))
        await until("some more cycles", lambda: len(up.lines("cycle")) > seen + 3)
        assert len(up.lines("not diagnosing")) == 1, "it says so once"
        assert aided.attempts == 0 and aided.status is TicketStatus.OPEN

        _replace(key_file, "sk-ant-test-wrong-key\n")
        await api.wait_for_requests(2, timeout=PATIENCE)
        await until("a second reason", lambda: up.lines("not diagnosing")[1:])
        refused = up.lines("not diagnosing")[-1]
        assert "auth" in refused["reason"] and "sk-ant" not in up.text

        _replace(key_file, KEY)
        await ticket_that(store, "is diagnosed", lambda one: one.diagnosis_id)
        line = await up.said("diagnosed")
        assert line["attempt"] == 1, "the refused calls cost the ticket nothing"


def _replace(file: Path, text: str) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'midwatch.db'}"
    url: str = request.getfixturevalue("server").dsn()
    transactions = open_transactions(parse_database(url))
    await upgrade(transactions)
    await transactions.close()
    return url


async def test_monitor_and_agent_apart_on_one_database(
    board: Board, database: str, tmp_path: Path
) -> None:
    config = write_settings(tmp_path, board.subject(), database=database)
    board.show("db", "cache")
    api = ScriptedMessagesAPI(Rule(blaming("cache", "broken")))
    with (
        api,
        daemon(config, "monitor") as monitor,
        daemon(config, "agent", **asking(api.base_url)) as agent,
    ):
        line = await agent.said("diagnosed")
        assert len(line["tickets"]) == 2, "one incident, one call"
        board.show()
        while len(monitor.lines("ticket resolved")) < 2:
            await asyncio.sleep(0.05)
        store = await open_store(database)

        async def both_alive() -> bool:
            alive = {one.kind for one in await store.daemons(within=60)}
            return alive == {"monitor", "agent"}

        await until("both daemons have a heartbeat", both_alive)
        outcomes = (await store.stats(3600)).outcomes
        await store.close()
        for process in (monitor, agent):
            code, seconds = await asyncio.to_thread(process.end, signal.SIGTERM)
            assert code == 0 and seconds < PATIENCE
    assert outcomes == {"answered": 1}
    assert len(api.calls) == 1


async def test_a_subject_has_its_own_interval(
    board: Board, store: SqlStore, tmp_path: Path
) -> None:
    """The other one is observed once: only an observation opens or resolves a ticket."""
    seen = tmp_path / "seen"
    look = f"echo once >> {seen}; echo '{{}}'"
    config = write_settings(
        tmp_path,
        board.subject(interval="1s"),
        {"name": "daily", "kind": "command", "command": ["sh", "-c", look]},
        monitor={"interval": "1d"},
    )
    with daemon(config, "monitor") as monitor:

        async def observed() -> bool:
            return {one.name for one in await store.subject_states()} == {
                "board",
                "daily",
            }

        await until("both are observed", observed)
        board.show("db")
        broken = await ticket_that(store, "is open", lambda one: not one.resolved)
        assert broken.key.subject == "board"
        board.show()
        await until("its end", lambda: _all_resolved(store))
        assert monitor.end(signal.SIGTERM)[0] == 0
    assert seen.read_text() == "once\n"
