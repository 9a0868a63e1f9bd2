"""Rows to values."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, case, select
from sqlalchemy.sql import ColumnElement

from midwatch.model import (
    Diagnosis,
    Evidence,
    Grounded,
    Json,
    Key,
    Severity,
    Ticket,
    TicketStatus,
    Usage,
)
from midwatch.store.schema import batches, diagnoses, subjects, tickets

RESOLVED_BY_OBSERVATION = "the invariant was observed to hold again"
UNDIAGNOSED = (TicketStatus.OPEN.value, TicketStatus.ACKNOWLEDGED.value)

_seen = tickets.c.seen_cycle.is_not(None)
_count: ColumnElement[int] = case(
    (_seen, tickets.c.occurrence_count + subjects.c.cycle - tickets.c.seen_cycle),
    else_=tickets.c.occurrence_count,
)
_last_seen = case((_seen, subjects.c.last_good_at), else_=tickets.c.last_seen_at)

_TICKET_COLUMNS = (
    tickets,
    _count.label("count_now"),
    _last_seen.label("last_seen_now"),
    batches.c.attempts,
    batches.c.next_attempt_at,
    batches.c.last_error,
)


def select_tickets() -> Select[Any]:
    """Tickets as `ticket_of` reads them."""
    return select(*_TICKET_COLUMNS).select_from(
        tickets.join(batches, batches.c.id == tickets.c.batch_id).join(
            subjects, subjects.c.name == tickets.c.subject
        )
    )


def ticket_of(row: Row[Any]) -> Ticket:
    return Ticket(
        id=row.id,
        key=Key(row.subject, row.invariant, row.component),
        severity=Severity(row.severity),
        status=TicketStatus(row.status),
        held=row.held,
        message=row.message,
        facts=row.facts,
        first_seen_at=row.first_seen_at,
        opened_at=row.opened_at,
        last_seen_at=row.last_seen_now,
        occurrence_count=row.count_now,
        batch=row.batch_id,
        seen=row.seen_cycle is not None,
        flapping=row.flapping,
        previous_id=row.previous_id,
        acknowledged_at=row.acknowledged_at,
        acknowledged_by=row.acknowledged_by,
        resolved_at=row.resolved_at,
        resolution=row.resolution,
        first_aid=row.first_aid,
        diagnosis_id=row.diagnosis_id,
        attempts=row.attempts,
        next_attempt_at=row.next_attempt_at,
        last_error=row.last_error,
    )


def diagnosis_of(row: Row[Any]) -> Diagnosis:
    return Diagnosis(
        id=row.id,
        batch=row.batch_id,
        outcome=row.outcome,
        model=row.model,
        prompt_version=row.prompt_version,
        started_at=row.started_at,
        finished_at=row.finished_at,
        answer=row.answer,
        markdown=row.markdown,
        confidence=row.confidence,
        grounded=(
            None
            if row.total_claims is None
            else Grounded(row.verified_claims, row.total_claims)
        ),
        usage=usage_of(row),
        cost_usd=row.cost_usd,
        error=row.error,
        request_id=row.request_id,
        evidence=tuple(map(_evidence_of, row.evidence)),
        explains=tuple(row.explains),
    )


def usage_of(row: Any) -> Usage:
    return Usage(
        row.input_tokens or 0,
        row.output_tokens or 0,
        row.cache_read_tokens or 0,
        row.cache_write_tokens or 0,
    )


def select_diagnoses() -> Select[Any]:
    return select(diagnoses)


def evidence_document(evidence: tuple[Evidence, ...]) -> list[Json]:
    return [{**asdict(piece), "at": piece.at.isoformat()} for piece in evidence]


def _evidence_of(document: Json) -> Evidence:
    return Evidence(**{**document, "at": datetime.fromisoformat(document["at"])})
