"""Sessions on SQL: written by a runner, read by everybody, closed when the runner is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Connection, insert

from midwatch.errors import NotFound
from midwatch.model import Json, Key, Severity, TicketStatus, Usage
from midwatch.session.events import Failure, ModelUsage, Phase
from midwatch.session.options import PullRequestsAsked
from midwatch.session.records import SessionRecords, SessionSpec
from midwatch.session.status import SessionStatus
from midwatch.store.engine import open_transactions, parse_database
from midwatch.store.schema import batches, subjects, tickets
from midwatch.store.sessions import SqlSessions
from midwatch.store.sql import SqlStore, open_store
from midwatch.store.upgrade import _config, upgrade
from midwatch.testing.fakes import ManualClock, open_tickets
from midwatch.workspace.inspect import FileChange, RepoState

AT = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)
SPEC = SessionSpec("s-1", AT, "/srv/a", ("/srv/b",), "claude-x", prompt="Fix it.")
RUNNING = SessionStatus(phase=Phase.RUNNING, run=1, last_seq=4, started_at=AT)


@pytest.fixture
async def shared_store(
    shared_database: str, clock: ManualClock
) -> AsyncIterator[SqlStore]:
    opened = await open_store(shared_database, clock=clock.database)
    yield opened
    await opened.close()


@pytest.fixture
def records(shared_store: SqlStore, clock: ManualClock) -> SqlSessions:
    return SqlSessions(shared_store.transactions, clock.database)


async def test_everything_comes_back(records: SqlSessions) -> None:
    runner: SessionRecords = records
    spent = {"claude-x": ModelUsage(Usage(100, 20), 0.25)}
    failed = replace(
        RUNNING,
        phase=Phase.FAILED,
        reason="KeyRefused",
        spend=spent,
        result="done \0 \ud800",
        error=Failure(kind="KeyRefused", message="no", status=401),
    )
    files = FileChange("x", "added", 2, 0), FileChange("y", "changed", 1, None)
    repository = RepoState(
        "a", "/srv/a.git", "changed", None, None, "b", 0, (), files, 1
    )
    await runner.save_spec(replace(SPEC, options={"main": 0}))
    await runner.save_status("s-1", failed)
    await runner.heartbeat("s-1", "host:1", AT)
    await runner.save_repositories("s-1", [repository])
    found = await records.get("s-1")
    assert found.status == replace(failed, result="done � �")
    assert (found.cwd, found.directories, found.model) == (
        "/srv/a",
        ("/srv/b",),
        "claude-x",
    )
    assert found.repositories[0]["files"] == 2 and found.options == {"main": 0}
    assert found.repositories[0]["added"] == 3
    assert (found.runner, found.created_at, found.prompt) == ("host:1", AT, "Fix it.")


async def test_a_resume_keeps_when_it_began_and_what_happened(
    records: SqlSessions,
) -> None:
    await records.save_spec(SPEC)
    await records.save_status("s-1", RUNNING)
    later = replace(SPEC, created_at=AT.replace(hour=23), cwd="/elsewhere")
    await records.save_spec(later)
    found = await records.get("s-1")
    assert (found.created_at, found.cwd) == (AT, "/elsewhere")
    assert found.status == RUNNING


async def test_a_silent_runner_has_crashed_and_a_live_one_has_not(
    records: SqlSessions, clock: ManualClock
) -> None:
    await records.save_spec(SPEC)
    await records.save_status("s-1", RUNNING)
    await clock.advance(20)
    silent = await records.get("s-1")
    assert silent.silent_for == 20
    await records.heartbeat("s-1", "host:1", AT)
    assert not await records.fail_crashed(silent), "it was heard of meanwhile"
    await clock.advance(20)
    assert await records.fail_crashed(await records.get("s-1"))
    found = await records.get("s-1")
    assert (found.status.phase, found.status.reason) == (Phase.FAILED, "RunnerCrashed")
    assert found.status.error is not None and "resume s-1" in found.status.error.hint
    assert not await records.fail_crashed(found), "once is enough"
    await records.save_status("s-1", RUNNING)  # it was only frozen
    assert (await records.get("s-1")).status == RUNNING


async def test_listing_and_removing(records: SqlSessions) -> None:
    for number in (1, 2, 3):
        at = AT.replace(minute=number)
        await records.save_spec(replace(SPEC, id=f"s-{number}", created_at=at))
    await records.save_status("s-2", RUNNING)
    assert [one.id for one in await records.listed()] == ["s-3", "s-2", "s-1"]
    assert [one.id for one in await records.listed(limit=1)] == ["s-3"]
    running = await records.listed(phases=[Phase.RUNNING])
    assert [one.id for one in running] == ["s-2"]
    await records.remove("s-2")
    await records.save_status("s-2", RUNNING)  # its runner has not noticed: nothing
    for attempt in (records.get("s-2"), records.remove("s-2")):
        with pytest.raises(NotFound, match="no session s-2"):
            await attempt


async def test_what_is_still_to_be_published_is_found(
    records: SqlSessions, clock: ManualClock
) -> None:
    """Not what failed, is done, was never asked for, or is too old."""
    asked = {PullRequestsAsked.KEY: PullRequestsAsked("ada").to_json()}
    done: Json = {PullRequestsAsked.KEY: None}
    now = clock.now()
    for name, options, phase, age in (
        ("s-old", asked, Phase.COMPLETED, 3601),
        ("s-1", asked, Phase.COMPLETED, 3599),
        ("s-2", asked, Phase.RUNNING, 60),
        ("s-failed", asked, Phase.FAILED, 60),
        ("s-stopped", asked, Phase.STOPPED, 60),
        ("s-done", done, Phase.COMPLETED, 60),
        ("s-never", {}, Phase.COMPLETED, 60),
    ):
        begun = now - timedelta(seconds=age)
        spec = replace(SPEC, id=name, options=options, created_at=begun)
        await records.save_spec(spec)
        await records.save_status(name, replace(RUNNING, phase=phase))
    found = await records.unpublished(3600)
    assert [one.id for one in found] == ["s-1", "s-2"]
    assert PullRequestsAsked.of(found[0].options) == PullRequestsAsked("ada")


async def test_a_ticket_knows_its_sessions_and_stays_as_it_is(
    shared_store: SqlStore, records: SqlSessions
) -> None:
    (ticket,) = await open_tickets(shared_store, "queue-1")
    await records.save_spec(replace(SPEC, ticket=ticket.id))
    await records.note(ticket.id, "s-1", "ada@host", "started")
    assert [one.id for one in await records.listed(ticket=ticket.id)] == ["s-1"]
    assert [one.id for one in await shared_store.sessions_of(ticket.id)] == ["s-1"]
    row = (await shared_store.history(ticket.id))[-1]
    assert (row.action, row.actor, row.why) == (
        "session",
        "ada@host",
        "session s-1: started",
    )
    assert (await shared_store.ticket(ticket.id)).status is TicketStatus.OPEN
    with pytest.raises(NotFound):
        await records.note(4711, "s-1", "ada@host", "started")


async def test_a_database_of_before_sessions_keeps_its_tickets(
    sqlite_file: Path, empty_postgres: str
) -> None:
    for url in (f"sqlite:///{sqlite_file}", empty_postgres):
        transactions = open_transactions(parse_database(url))
        await transactions.run(lambda c: command.upgrade(_config(c), "0001"))
        number = await transactions.run(_first_ticket)
        assert await upgrade(transactions) == "0001"
        await transactions.close()
        store = await open_store(url)
        assert (await store.ticket(number)).key == KEY
        assert await store.sessions_of(number) == []
        await store.close()


KEY = Key("fake", "alive", "queue-1")


def _first_ticket(connection: Connection) -> int:
    """Insert a ticket into the columns of the first schema, and return its number."""
    shared = {"subject": KEY.subject, "severity": Severity.WARNING, "opened_at": AT}
    connection.execute(
        insert(subjects).values(
            name=KEY.subject, revision=0, cycle=0, failures=0, state={}
        )
    )
    (batch,) = connection.execute(
        insert(batches).values(**shared, queued=True, attempts=0, set_at=AT)
    ).inserted_primary_key
    (number,) = connection.execute(
        insert(tickets).values(
            **shared,
            invariant=KEY.invariant,
            component=KEY.component,
            status=TicketStatus.OPEN,
            held=False,
            message="queue-1 is broken",
            facts={},
            first_seen_at=AT,
            last_seen_at=AT,
            occurrence_count=1,
            flapping=False,
            batch_id=batch,
        )
    ).inserted_primary_key
    return int(number)
