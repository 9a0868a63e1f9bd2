"""What the agent writes: claims, calls and how they ended.

A claim is a token on a batch, with a lease. Whatever ends a claim is an update guarded by
that token, so a daemon that was away for longer than its lease changes nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select

from midwatch.errors import ClaimLost
from midwatch.model import FINAL_OUTCOMES, Json, Severity, Ticket, TicketStatus
from midwatch.store import statements as st
from midwatch.store.cycles import new_batch
from midwatch.store.protocol import Budget, Claim, Finish
from midwatch.store.rows import UNDIAGNOSED, evidence_document, ticket_of
from midwatch.store.schema import diagnosis_tickets, spending
from midwatch.store.work import CLOCK_SLACK, Work, audit_row


def claim(
    work: Work,
    holder: str,
    lease: float,
    limit: int,
    least: Severity = Severity.INFO,
    only: int | None = None,
) -> list[Claim]:
    now = work.now
    wanted = {"p_now": now, "p_ahead": now + CLOCK_SLACK, "p_least": least}
    due = (
        work.all(st.SELECT_DUE, {**wanted, "p_limit": limit})
        if only is None
        else work.all(st.SELECT_ASKED_FOR, {**wanted, "p_limit": 1, "p_batch": only})
    )
    if not due:
        return []
    ids = [row.id for row in due]
    token = uuid.uuid4().hex
    told: Json = {
        "claim_holder": holder,
        "claim_token": token,
        "claim_until": now + timedelta(seconds=lease),
        "set_at": now,
    }
    taken = work.all(st.TAKE, {"p_ids": ids, **told})
    _mark_lost(work, [row.id for row in due if row.claim_token is not None])
    by_batch = _undiagnosed(work, ids)
    attempts = {row.id: row.attempts for row in taken}
    if empty := set(ids) - set(by_batch):
        work.execute(st.UNQUEUE, {"p_ids": list(empty)})
    return [
        Claim(batch, token, holder, attempts[batch], tuple(by_batch[batch]))
        for batch in ids
        if batch in by_batch
    ]


def _mark_lost(work: Work, ids: Sequence[int]) -> None:
    if ids:
        why = "the daemon ended or lost its lease during the call"
        told = {"p_ids": ids, "finished_at": work.now, "error": why}
        work.execute(st.MARK_LOST, told)


def _undiagnosed(work: Work, ids: Sequence[int]) -> dict[int, list[Ticket]]:
    found: dict[int, list[Ticket]] = {}
    for row in work.all(st.SELECT_UNDIAGNOSED, {"p_ids": ids}):
        found.setdefault(row.batch_id, []).append(ticket_of(row))
    return found


def _held(claimed: Claim) -> Json:
    return {"p_batch": claimed.batch, "p_token": claimed.token}


def renew(work: Work, claimed: Claim, lease: float) -> bool:
    until = work.now + timedelta(seconds=lease)
    times = {"claim_until": until, "set_at": work.now}
    return work.execute(st.UPDATE_HELD, {**_held(claimed), **times}).rowcount == 1


# ------------------------------------------------------------------ calls


def begin(
    work: Work,
    claimed: Claim,
    model: str,
    prompt_version: str,
    reserve: float,
    budget: Budget,
) -> int | None:
    if work.one(st.SELECT_HELD, _held(claimed)) is None:
        raise ClaimLost()
    if not _reserve(work, reserve, budget, claimed.severity):
        return None
    call = {
        "batch_id": claimed.batch,
        "token": claimed.token,
        "outcome": "running",
        "model": model,
        "prompt_version": prompt_version,
        "started_at": work.now,
        "cost_usd": reserve,
        "evidence": [],
        "explains": [],
    }
    inserted = work.execute(st.INSERT_CALL, call).inserted_primary_key
    assert inserted is not None
    diagnosis_id = int(inserted[0])
    work.execute(
        diagnosis_tickets.insert(),
        [
            {"diagnosis_id": diagnosis_id, "ticket_id": ticket.id}
            for ticket in claimed.tickets
        ],
    )
    return diagnosis_id


def _reserve(work: Work, usd: float, budget: Budget, severity: Severity) -> bool:
    values: Json = {"p_day": _day(work.now), "p_usd": usd}
    statement = st.SPEND
    if budget.daily_usd is not None:
        share = 1.0 if severity is Severity.CRITICAL else 1 - budget.critical_reserve
        statement, values["p_room"] = st.SPEND_WITHIN, budget.daily_usd * share
    if work.execute(statement, values).rowcount == 1:
        return True
    # Too little left, or the first call of the day.
    work.insert_or_update(spending, {"day": values["p_day"], "usd": 0.0})
    return work.execute(statement, values).rowcount == 1


def _day(moment: datetime) -> str:
    return moment.date().isoformat()


def spent_today(work: Work) -> float:
    day = _day(work.now)
    found = work.connection.scalar(select(spending.c.usd).where(spending.c.day == day))
    return float(found or 0.0)


def finish(work: Work, claimed: Claim, diagnosis_id: int, ending: Finish) -> bool:
    row = work.one(st.SELECT_CALL, {"p_id": diagnosis_id})
    if row is None or row.outcome not in ("running", "lost"):
        # A commit that succeeded although its client saw an error, tried again.
        return row is not None and row.outcome == ending.outcome
    ours = work.one(st.SELECT_HELD, _held(claimed))
    _store_call(work, diagnosis_id, ending, late=ours is None)
    difference = ending.cost_usd - row.cost_usd
    work.execute(st.SPEND, {"p_day": _day(row.started_at), "p_usd": difference})
    if ours is None:
        return False
    if not ending.keep:
        if ending.outcome in FINAL_OUTCOMES:
            _diagnosed(work, claimed, diagnosis_id, ending, ours.subject)
        else:
            _free(work, claimed, ending.retry_in, ending.error, ending.counted)
    return True


def _store_call(work: Work, diagnosis_id: int, ending: Finish, late: bool) -> None:
    grounded = ending.grounded
    told = {
        "outcome": "late" if late else ending.outcome,
        "finished_at": work.now,
        "answer": ending.answer,
        "markdown": ending.markdown,
        "confidence": ending.confidence,
        "verified_claims": grounded.verified if grounded else None,
        "total_claims": grounded.total if grounded else None,
        "cost_usd": ending.cost_usd,
        "error": ending.error,
        "request_id": ending.request_id,
        "evidence": evidence_document(ending.evidence),
        "explains": list(ending.explains or ()),
        **asdict(ending.usage),
    }
    work.execute(st.UPDATE_CALL, {"p_id": diagnosis_id, **told})


def _diagnosed(
    work: Work, claimed: Claim, diagnosis_id: int, ending: Finish, subject: str
) -> None:
    """The explained tickets get the diagnosis, whatever their state; the others queue again."""
    ids = [ticket.id for ticket in claimed.tickets]
    # An answer that explains none is for all: else they would be asked without an end.
    explained = set(ending.explains or ids) & set(ids) or set(ids)
    rows = work.all(st.SELECT_CLAIMED, {"p_ids": ids, "p_batch": claimed.batch})
    mine = [row for row in rows if row.id in explained]
    waiting = [row for row in mine if row.status in UNDIAGNOSED]
    ended = [row for row in mine if row.status not in UNDIAGNOSED]
    told: Json = {"diagnosis_id": diagnosis_id}
    _update_tickets(work, ended, told)
    _update_tickets(work, waiting, {**told, "status": TicketStatus.DIAGNOSED.value})
    why = f"diagnosis {diagnosis_id}: {ending.outcome}"
    work.note(
        [
            audit_row(
                row.id,
                claimed.holder,
                "diagnose",
                row.status,
                TicketStatus.DIAGNOSED,
                why,
            )
            for row in waiting
        ]
    )
    others = [
        row for row in rows if row.id not in explained and row.status in UNDIAGNOSED
    ]
    _requeue(work, others, claimed, diagnosis_id, subject)
    left = {"queued": False, "last_error": ending.error, **st.NO_CLAIM}
    work.execute(st.UPDATE_HELD, {**_held(claimed), **left})


def _update_tickets(work: Work, rows: Sequence[Any], values: Json) -> None:
    if rows:
        work.execute(st.UPDATE_TICKETS, {"p_ids": [row.id for row in rows], **values})


def _requeue(
    work: Work, rows: Sequence[Any], claimed: Claim, diagnosis_id: int, subject: str
) -> None:
    if not rows:
        return
    batch = new_batch(work, subject, Severity(min(row.severity for row in rows)))
    _update_tickets(work, rows, {"batch_id": batch})
    why = f"not explained by diagnosis {diagnosis_id}; now in batch {batch}"
    work.note(
        [
            audit_row(row.id, claimed.holder, "requeue", row.status, row.status, why)
            for row in rows
        ]
    )


def _free(
    work: Work, claimed: Claim, retry_in: float, error: str | None, counted: bool
) -> bool:
    values: Json = {
        **_held(claimed),
        **st.NO_CLAIM,
        "next_attempt_at": work.now + timedelta(seconds=retry_in) if retry_in else None,
        "set_at": work.now,
    }
    if error is not None:
        values["last_error"] = error
    freed = work.execute(st.UPDATE_HELD if counted else st.UNCOUNT_HELD, values)
    return freed.rowcount == 1


def release(
    work: Work, claimed: Claim, retry_in: float, error: str | None, counted: bool
) -> bool:
    freed = _free(work, claimed, retry_in, error, counted)
    if freed:
        _mark_lost(work, [claimed.batch])
    return freed
