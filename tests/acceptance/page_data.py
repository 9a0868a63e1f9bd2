"""Tickets for tests of the page: one with a diagnosis, one with first aid, and whatever else a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from midwatch.agent.grounding import ground
from midwatch.agent.report import diagnosis_markdown
from midwatch.diagnosis_schema import (
    Action,
    Alternative,
    Citation,
    DiagnosisOutput,
    Finding,
    MetricReading,
    Moment,
)
from midwatch.model import Evidence, Key, Origin, Severity, Ticket, Usage, Violation
from midwatch.store.protocol import Finish, Opening
from midwatch.store.schema import evidence_document
from midwatch.store.sql import SqlStore, open_store

T = TypeVar("T")
AT = datetime(2026, 11, 29, 15, 0, tzinfo=UTC)


def in_database(folder: Path, use: Callable[[SqlStore], Awaitable[T]]) -> T:
    """Use the database of a folder as another process does."""

    async def run() -> T:
        store = await open_store(f"sqlite:///{folder}/midwatch.db")
        try:
            return await use(store)
        finally:
            await store.close()

    # Playwright has a loop that runs in this thread.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result()


def opening(
    component: str = "orders",
    severity: Severity = Severity.CRITICAL,
    message: str = "31 sessions wait for a lock, the longest for 13m",
    subject: str = "orders-db",
    invariant: str = "lock_wait",
    **facts: object,
) -> Opening:
    """Return a violation that becomes a ticket."""
    key = Key(subject, invariant, component)
    return Opening(Violation(key, severity, message, facts=facts))


SESSIONS = """\
pid   | state               | wait | since | query
4711  | idle in transaction |      | 14m   | UPDATE orders SET status = 'paid' WHERE id = 17
4802  | active              | Lock | 13m   | UPDATE orders SET status = 'sent' WHERE id = 17
31 sessions wait, all behind 4711"""
LOG = "\n".join(
    f"2026-11-29 15:00:{second:02} UTC [48{second:02}] LOG:  process 48{second:02} still waiting for ShareLock"
    for second in range(60)
)
EVIDENCE = (
    Evidence("E1", "Sessions that wait for a lock", "pg_stat_activity", AT, SESSIONS),
    Evidence("E2", "The log", "postgresql.log", AT, LOG, origin=Origin.REPORTED),
    Evidence(
        "E3", "Settings", "pg_settings", AT, "idle_in_transaction_session_timeout = 0"
    ),
)


def answer(explains: int = 1, text: str = "") -> DiagnosisOutput:
    """Return a diagnosis of `EVIDENCE`. Where `text` is given it is in each field of it."""

    def said(plain: str) -> str:
        return f"{plain} {text}" if text else plain

    def cited(number: str, quote: str) -> Citation:
        return Citation(evidence_id=number, quote=quote)

    waiting = cited("E1", "31 sessions wait, all behind 4711")
    return DiagnosisOutput(
        summary=said("Session 4711 holds a row lock, and 31 sessions queue behind it."),
        verdict="identified",
        root_cause=said("The session with pid 4711 left its transaction open."),
        root_cause_citations=[cited("E1", "4711  | idle in transaction"), waiting],
        confidence="high",
        confidence_reason=said("the lock tree names one root"),
        explained_tickets=[explains],
        timeline=[
            Moment(
                at=said("15:00:07"),
                what=said("a session waits"),
                citations=[cited("E2", "process 4807 still waiting for ShareLock")],
            )
        ],
        affected_components=[said("orders")],
        metric_readings=[
            MetricReading(name=said("waiting"), value="31", citation=waiting)
        ],
        supporting_evidence=[
            Finding(
                statement=said("Nothing ends an idle transaction."),
                citations=[cited("E3", "idle_in_transaction_session_timeout = 0")],
            ),
            Finding(
                statement=said("The payment was tried twice."),
                citations=[cited("E2", said("retry payment"))],
            ),
        ],
        alternatives_considered=[
            Alternative(
                hypothesis=said("A slow query"),
                supporting=said("many wait"),
                contradicting=said("4711 is idle"),
                conclusion=said("ruled out"),
            )
        ],
        recommended_actions=[
            Action(
                what=said("End the session that holds the lock"),
                commands=[said("SELECT pg_terminate_backend(4711);")],
                risk=said("its open transaction is lost"),
                reversible=False,
            )
        ],
        severity="critical",
        risks=[said("The payment may have to be made again.")],
        missing=[said("Which client 4711 is.")],
    )


async def diagnose(
    store: SqlStore,
    ticket: Ticket,
    text: str = "",
    evidence: tuple[Evidence, ...] = EVIDENCE,
) -> None:
    """Store a diagnosis of a ticket, as an agent does."""
    output = answer(ticket.id, text)
    grounding = ground(output, evidence)
    finish = Finish(
        "answered",
        Usage(21_000, 900),
        0.0812,
        answer=output.model_dump(mode="json"),
        markdown=diagnosis_markdown(output, grounding, evidence),
        confidence=grounding.confidence,
        grounded=grounding.grounded,
        evidence=evidence,
        explains=(ticket.id,),
    )
    await store.update_diagnosis(
        ticket.id, finish, actor="agent host:7", model="claude-test", prompt_version="9"
    )


async def give_first_aid(store: SqlStore, ticket: Ticket, text: str = "") -> None:
    """Store first aid of a ticket, as a playbook does."""
    output = answer(ticket.id, text)
    document = {
        "summary": output.summary,
        "answer": output.model_dump(mode="json"),
        "markdown": "## First aid\n",
        "evidence": evidence_document(EVIDENCE),
        "grounded": {"verified": 4, "total": 5},
    }
    await store.save_first_aid([ticket.id], document)
