"""`TicketDB`, as a program uses it: the laws of the store hold, and every error is typed and has a hint."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from midwatch import TicketDB
from midwatch.diagnosis_schema import DiagnosisOutput
from midwatch.errors import (
    Conflict,
    MidwatchError,
    NotFound,
    PermanentError,
    SettingsError,
    StoreUnavailable,
)
from midwatch.model import Evidence, Severity, TicketStatus
from midwatch.store.protocol import Budget
from midwatch.store.sql import open_store

SECRET = "sk-ant-api03-" + "Zx9" * 20
EVIDENCE = Evidence(
    "E1", "Locks", "postgres", datetime.now(UTC), f"pid 42 blocks 3 sessions\n{SECRET}"
)
CITATION = {"evidence_id": "E1", "quote": "pid 42 blocks 3 sessions"}


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[TicketDB]:
    async with TicketDB(f"sqlite:///{tmp_path}/tickets.db", actor="pager") as opened:
        yield opened


async def opened(db: TicketDB, component: str = "shop", **more: Any) -> int:
    ticket = await db.open_ticket(
        "orders", "locks", component, "3 sessions wait", **more
    )
    return ticket.id


@pytest.mark.parametrize(
    "name, value",
    [("subject", ""), ("subject", None), ("invariant", 3), ("message", b"x")],
)
async def test_a_ticket_is_opened_with_texts(
    db: TicketDB, name: str, value: Any
) -> None:
    texts = dict(subject="a", invariant="b", component="c", message="d")
    with pytest.raises(SettingsError) as raised:
        await db.open_ticket(**{**texts, name: value})
    assert raised.value.path == name and raised.value.hint
    assert await db.list() == []


@pytest.mark.parametrize("evidence", ["log", [{"text": "log"}]])
async def test_only_evidence_is_evidence(db: TicketDB, evidence: Any) -> None:
    number = await opened(db)
    with pytest.raises(SettingsError, match="evidence"):
        await db.update_diagnosis(number, {"summary": "s"}, evidence=evidence)
    with pytest.raises(SettingsError, match="why"):
        await db.resolve(number, None)  # type: ignore[arg-type]
    assert (await db.get(number)).status is TicketStatus.OPEN


async def test_a_ticket_lives_from_open_to_resolved(db: TicketDB) -> None:
    first = await db.open_ticket("orders", "locks", "shop", "waits", facts={"pid": 42})
    assert (first.status, first.severity) == (TicketStatus.OPEN, Severity.WARNING)
    again = await db.open_ticket("orders", "locks", "shop", "waits")
    assert (again.id, again.occurrence_count) == (first.id, 2)
    assert (await db.hold(first.id, why="migration")).held
    assert not (await db.unhold(first.id)).held
    assert (await db.get(first.id)).facts["pid"] == 42
    assert [ticket.id for ticket in await db.list()] == [first.id]
    resolved = await db.resolve(first.id, "restarted")
    assert (resolved.status, resolved.resolution) == ("resolved", "restarted")
    assert await db.list() == []
    assert [ticket.id for ticket in await db.list(status="resolved")] == [first.id]
    history = await db.history(first.id)
    assert [row.action for row in history] == ["open", "hold", "unhold", "resolve"]
    assert {row.actor for row in history} == {"pager"}
    for act in (db.hold(first.id), db.unhold(first.id), db.resolve(first.id, "x")):
        with pytest.raises(Conflict):
            await act


async def test_a_key_that_opens_often_is_flapping(db: TicketDB) -> None:
    flapping = []
    previous = None
    for _ in range(3):
        ticket = await db.open_ticket("orders", "locks", "shop", "waits")
        assert ticket.previous_id == previous
        previous = ticket.id
        flapping.append(ticket.flapping)
        await db.resolve(ticket.id, "passed")
    assert flapping == [False, False, True]


async def test_lists_are_filtered(db: TicketDB) -> None:
    one = await opened(db, "a", severity="critical")
    two = await opened(db, "b", severity=Severity.INFO)
    assert [ticket.id for ticket in await db.list(subject="orders")] == [one, two]
    assert [ticket.id for ticket in await db.list(severity="info")] == [two]
    assert [ticket.id for ticket in await db.list(limit=1)] == [one]
    assert await db.list(subject="other") == []


async def test_a_diagnosis_on_a_resolved_ticket_keeps_it_resolved(db: TicketDB) -> None:
    number = await opened(db)
    resolved = await db.resolve(number, "restarted")
    after = await db.update_diagnosis(number, {"summary": "A lock was held."})
    assert after.status is TicketStatus.RESOLVED
    assert (after.resolved_at, after.resolution) == (resolved.resolved_at, "restarted")
    [stored] = await db.diagnoses(number)
    assert after.diagnosis_id == stored.id
    assert stored.answer is not None and stored.answer["summary"] == "A lock was held."


async def test_a_waiting_ticket_is_diagnosed_and_paid_for_by_no_agent(
    db: TicketDB, tmp_path: Path
) -> None:
    number = await opened(db)
    after = await db.update_diagnosis(number, {"summary": "A lock."}, model="mine")
    assert after.status is TicketStatus.DIAGNOSED
    store = await open_store(f"sqlite:///{tmp_path}/tickets.db")
    assert await store.claim("agent", lease=30) == []
    assert await store.spent_today() == 0
    await store.close()
    again = await db.update_diagnosis(number, {"summary": "Another."})
    stored = await db.diagnoses(number)
    assert [one.model for one in stored] == ["mine", "pager"]
    assert again.diagnosis_id == stored[-1].id


async def test_an_agent_and_a_program_do_not_write_over_each_other(
    db: TicketDB, tmp_path: Path
) -> None:
    number = await opened(db)
    store = await open_store(f"sqlite:///{tmp_path}/tickets.db")
    [claim] = await store.claim("agent", lease=30)
    call = await store.begin(
        claim, model="m", prompt_version="1", reserve_usd=0.0, budget=Budget(None)
    )
    assert call is not None
    with pytest.raises(Conflict, match="being diagnosed by agent") as refused:
        await db.update_diagnosis(number, {"summary": "Mine."})
    assert "try again" in refused.value.hint
    assert await store.release(claim)
    await store.close()
    assert (await db.update_diagnosis(number, {"summary": "Mine."})).diagnosis_id


async def test_claims_are_checked_and_secrets_stay_out(
    db: TicketDB, tmp_path: Path
) -> None:
    number = await opened(db)
    claims = {
        "summary": f"A lock, {SECRET}",
        "root_cause": "pid 42",
        "verdict": "identified",
        "confidence": "high",
        "confidence_reason": "it is shown",
        "root_cause_citations": [CITATION],
        "supporting_evidence": [
            {
                "statement": "invented",
                "citations": [{**CITATION, "quote": "pid 7 blocks"}],
            }
        ],
    }
    await db.update_diagnosis(number, claims, evidence=[EVIDENCE])
    [stored] = await db.diagnoses(number)
    assert stored.grounded is not None
    assert (stored.grounded.verified, stored.grounded.total) == (1, 2)
    assert stored.confidence == "medium" and "nverified" in str(stored.markdown)
    await opened(db, SECRET)
    await db.hold(number, why=SECRET)
    await db.resolve(number, SECRET)
    connection = sqlite3.connect(tmp_path / "tickets.db")
    tables = (
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'ticket_texts'"
    )
    content = "".join(
        str(row)
        for (table,) in connection.execute(tables).fetchall()
        for row in connection.execute(f'SELECT * FROM "{table}"')
    )
    assert "pid 42 blocks 3 sessions" in content and SECRET not in content


async def test_a_claim_without_evidence_is_not_trusted(db: TicketDB) -> None:
    number = await opened(db)
    full = {
        "summary": "s",
        "root_cause": "pid 42",
        "verdict": "identified",
        "confidence": "high",
        "confidence_reason": "r",
        "root_cause_citations": [CITATION],
        "explained_tickets": [number],
        "severity": "critical",
    }
    lists = {name: [] for name in DiagnosisOutput.model_fields if name not in full}
    await db.update_diagnosis(number, DiagnosisOutput.model_validate({**lists, **full}))
    [stored] = await db.diagnoses(number)
    assert stored.answer is not None
    assert (stored.answer["verdict"], stored.confidence) == ("suspected", "low")


@pytest.mark.parametrize(
    ("diagnosis", "message"),
    [
        ({}, "diagnosis.summary: is missing"),
        ({"summary": "s", "verdict": "sure"}, "diagnosis.verdict: 'sure' is not"),
        ({"summary": "s", "rootcause": "x"}, "diagnosis.rootcause: unknown field"),
        ({"summary": 3}, "diagnosis.summary: "),
        ({"summary": "s", "risks": "x"}, "diagnosis.risks: 'x' is not a list"),
        ("It is the lock.", "diagnosis: a str is not a diagnosis"),
        (None, "diagnosis: a NoneType is not a diagnosis"),
    ],
)
async def test_a_diagnosis_that_does_not_fit_names_the_field(
    db: TicketDB, diagnosis: Any, message: str
) -> None:
    number = await opened(db)
    with pytest.raises(SettingsError) as refused:
        await db.update_diagnosis(number, diagnosis)
    assert refused.value.message.startswith(message)
    assert "pydantic" not in refused.value.one_line()
    assert await db.diagnoses(number) == []


async def test_what_is_not_there_is_not_found(db: TicketDB) -> None:
    for number in (99, -1, 2**70, "1", None, True):
        wrong: Any = number
        for act in (
            db.get(wrong),
            db.diagnoses(wrong),
            db.history(wrong),
            db.hold(wrong),
            db.unhold(wrong),
            db.resolve(wrong, ""),
            db.update_diagnosis(wrong, {"summary": "s"}),
        ):
            with pytest.raises(NotFound) as missing:
                await act
            assert missing.value.hint


async def test_a_wrong_filter_names_what_there_is(db: TicketDB) -> None:
    with pytest.raises(SettingsError, match="severity: 'bad' .* critical, warning"):
        await db.list(severity="bad")
    with pytest.raises(SettingsError, match="status: 'bad' .* open, acknowledged"):
        await db.list(status="bad")
    with pytest.raises(SettingsError, match="severity: 'bad'"):
        await opened(db, severity="bad")


async def test_it_opens_in_three_ways(tmp_path: Path) -> None:
    path = tmp_path / "tickets.db"
    awaited = await TicketDB.open(path)
    number = await opened(awaited)
    await awaited.close()
    await awaited.close()
    async with TicketDB.open(f"sqlite:///{path}") as second:
        assert (await second.get(number)).message == "3 sessions wait"
    for closed in (awaited, TicketDB(path)):
        with pytest.raises(PermanentError, match="not open") as refused:
            await closed.list()
        assert "async with" in refused.value.hint


@pytest.mark.parametrize(
    ("database", "kind"),
    [
        ("tickets.db", SettingsError),
        ("mysql://localhost/x", SettingsError),
        ("sqlite:////no/such/folder/tickets.db", StoreUnavailable),
        ("postgresql://nobody@127.0.0.1:1/x", StoreUnavailable),
    ],
)
async def test_a_database_that_cannot_be_used(
    database: str, kind: type[MidwatchError]
) -> None:
    with pytest.raises(kind) as failed:
        await TicketDB.open(database)
    assert failed.value.hint
