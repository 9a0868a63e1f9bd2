"""Tickets, diagnoses and history as JSON; docs/json.md is the table of these fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

from midwatch.cli.output import iso
from midwatch.model import AuditRow, Diagnosis, Json, Ticket
from midwatch.store.protocol import Brief, TicketSession


def ticket_row(ticket: Ticket, brief: Brief | None) -> Json:
    """A ticket in a list: without its long texts."""
    return {
        **_facts(ticket),
        "diagnosis": None if brief is None else asdict(brief),
    }


def ticket_document(
    ticket: Ticket, diagnosis: Diagnosis | None, sessions: Sequence[TicketSession]
) -> Json:
    """A ticket with everything that is known of it."""
    return {
        **_facts(ticket),
        "facts": dict(ticket.facts),
        "first_aid": ticket.first_aid,
        "diagnosis": None if diagnosis is None else diagnosis_document(diagnosis),
        "sessions": [
            {**asdict(session), "created_at": iso(session.created_at)}
            for session in sessions
        ],
    }


def _facts(ticket: Ticket) -> Json:
    return {
        "id": ticket.id,
        "subject": ticket.key.subject,
        "invariant": ticket.key.invariant,
        "component": ticket.key.component,
        "severity": ticket.severity.label,
        "status": ticket.status.value,
        "held": ticket.held,
        "flapping": ticket.flapping,
        "seen": ticket.seen,
        "message": ticket.message,
        "first_seen_at": iso(ticket.first_seen_at),
        "opened_at": iso(ticket.opened_at),
        "last_seen_at": iso(ticket.last_seen_at),
        "occurrence_count": ticket.occurrence_count,
        "batch": ticket.batch,
        "previous_id": ticket.previous_id,
        "acknowledged_at": _iso(ticket.acknowledged_at),
        "acknowledged_by": ticket.acknowledged_by,
        "attempts": ticket.attempts,
        "next_attempt_at": _iso(ticket.next_attempt_at),
        "last_error": ticket.last_error,
        "resolved_at": _iso(ticket.resolved_at),
        "resolution": ticket.resolution,
    }


def diagnosis_document(diagnosis: Diagnosis) -> Json:
    answer = diagnosis.answer or {}
    return {
        "id": diagnosis.id,
        "outcome": diagnosis.outcome,
        "verdict": answer.get("verdict"),
        "summary": answer.get("summary"),
        "root_cause": answer.get("root_cause"),
        "confidence": diagnosis.confidence,
        "grounded": None if diagnosis.grounded is None else asdict(diagnosis.grounded),
        "explains": list(diagnosis.explains),
        "model": diagnosis.model,
        "prompt_version": diagnosis.prompt_version,
        "started_at": iso(diagnosis.started_at),
        "finished_at": _iso(diagnosis.finished_at),
        "usage": asdict(diagnosis.usage),
        "cost_usd": diagnosis.cost_usd,
        "error": diagnosis.error,
        "request_id": diagnosis.request_id,
        "answer": diagnosis.answer,
        "evidence": [
            {**asdict(piece), "at": iso(piece.at)} for piece in diagnosis.evidence
        ],
        "markdown": diagnosis.markdown,
    }


def history_document(row: AuditRow) -> Json:
    return {
        "ticket": row.ticket_id,
        "at": iso(row.at),
        "actor": row.actor,
        "action": row.action,
        "from": row.before,
        "to": row.after,
        "why": row.why,
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else iso(at)
