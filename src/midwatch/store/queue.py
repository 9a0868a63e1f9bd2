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

from sqlalchemy import (
    BindParameter,
    Float,
    Integer,
    and_,
    bindparam,
    delete,
    or_,
    select,
    update,
)

from midwatch.errors import ClaimLost
from midwatch.model import FINAL_OUTCOMES, Json, Severity, Ticket, TicketStatus
from midwatch.store.cycles import new_batch
from midwatch.store.engine import CLOCK_SLACK, Transaction, audit_row
from midwatch.store.protocol import Budget, Claim, Daemon, Finish, Pause, PauseKind
from midwatch.store.schema import (
    UNDIAGNOSED,
    Instant,
    batches,
    daemons,
    diagnoses,
    diagnosis_tickets,
    evidence_document,
    pauses,
    select_tickets,
    spending,
    ticket_of,
    tickets,
)

# ------------------------------------------------------------ statements
# The agent's statements, built once: building one costs several times what a database takes
# to run it (`make bench`).
#
# Parameters named p_… stand in conditions; all others that a statement is run with are columns.

NO_CLAIM = {"claim_holder": None, "claim_token": None, "claim_until": None}

_NOW = bindparam("p_now", type_=Instant)
_IDS: BindParameter[Any] = bindparam("p_ids", expanding=True)
_UNCLAIMED = or_(batches.c.claim_token.is_(None), batches.c.claim_until <= _NOW)
_RESTED = or_(batches.c.next_attempt_at.is_(None), batches.c.next_attempt_at <= _NOW)
# Times set in the future are from before the clock went back.
_VOID = batches.c.set_at > bindparam("p_ahead", type_=Instant)
_QUEUED = (
    select(batches.c.id, batches.c.claim_token)
    .where(batches.c.queued, batches.c.severity <= bindparam("p_least"))
    .order_by(batches.c.severity, batches.c.opened_at, batches.c.id)
    .limit(bindparam("p_limit", type_=Integer))
    .with_for_update(skip_locked=True)
)
SELECT_DUE = _QUEUED.where(or_(and_(_UNCLAIMED, _RESTED), _VOID))
"""Batches that are queued, not waiting and not held."""
SELECT_ASKED_FOR = _QUEUED.where(
    batches.c.id == bindparam("p_batch"), or_(_UNCLAIMED, _VOID)
)
"""That batch if it is queued and not held, though its wait may not be over."""
TAKE = (
    update(batches)
    .where(batches.c.id.in_(_IDS))
    .values(attempts=batches.c.attempts + 1, next_attempt_at=None)
    .returning(batches.c.id, batches.c.attempts)
)
UNQUEUE = update(batches).where(batches.c.id.in_(_IDS)).values(queued=False, **NO_CLAIM)
MARK_LOST = (
    update(diagnoses)
    .where(diagnoses.c.batch_id.in_(_IDS), diagnoses.c.outcome == "running")
    .values(outcome="lost")
)
SELECT_UNDIAGNOSED = (
    select_tickets()
    .where(tickets.c.batch_id.in_(_IDS), tickets.c.status.in_(UNDIAGNOSED))
    .order_by(tickets.c.severity, tickets.c.id)
)

_HELD = and_(
    batches.c.id == bindparam("p_batch"), batches.c.claim_token == bindparam("p_token")
)
SELECT_HELD = select(batches.c.subject).where(_HELD).with_for_update()
UPDATE_HELD = update(batches).where(_HELD)
UNCOUNT_HELD = UPDATE_HELD.values(attempts=batches.c.attempts - 1)

_USD = bindparam("p_usd", type_=Float)
SPEND = (
    update(spending)
    .where(spending.c.day == bindparam("p_day"))
    .values(usd=spending.c.usd + _USD)
)
SPEND_WITHIN = SPEND.where(spending.c.usd + _USD <= bindparam("p_room", type_=Float))

SELECT_CALL = (
    select(diagnoses.c.outcome, diagnoses.c.cost_usd, diagnoses.c.started_at)
    .where(diagnoses.c.id == bindparam("p_id"))
    .with_for_update()
)
INSERT_CALL = diagnoses.insert()
UPDATE_CALL = update(diagnoses).where(diagnoses.c.id == bindparam("p_id"))
SELECT_CLAIMED = (
    select(tickets.c.id, tickets.c.status, tickets.c.severity)
    .where(tickets.c.id.in_(_IDS), tickets.c.batch_id == bindparam("p_batch"))
    .with_for_update()
)
UPDATE_TICKETS = update(tickets).where(tickets.c.id.in_(_IDS))


def claim(
    work: Transaction,
    holder: str,
    lease: float,
    limit: int,
    least: Severity = Severity.INFO,
    only: int | None = None,
) -> list[Claim]:
    now = work.now
    wanted = {"p_now": now, "p_ahead": now + CLOCK_SLACK, "p_least": least}
    due = (
        work.all(SELECT_DUE, {**wanted, "p_limit": limit})
        if only is None
        else work.all(SELECT_ASKED_FOR, {**wanted, "p_limit": 1, "p_batch": only})
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
    taken = work.all(TAKE, {"p_ids": ids, **told})
    _mark_lost(work, [row.id for row in due if row.claim_token is not None])
    by_batch = _undiagnosed(work, ids)
    attempts = {row.id: row.attempts for row in taken}
    if empty := set(ids) - set(by_batch):
        work.execute(UNQUEUE, {"p_ids": list(empty)})
    return [
        Claim(batch, token, holder, attempts[batch], tuple(by_batch[batch]))
        for batch in ids
        if batch in by_batch
    ]


def _mark_lost(work: Transaction, ids: Sequence[int]) -> None:
    if ids:
        why = "the daemon ended or lost its lease during the call"
        told = {"p_ids": ids, "finished_at": work.now, "error": why}
        work.execute(MARK_LOST, told)


def _undiagnosed(work: Transaction, ids: Sequence[int]) -> dict[int, list[Ticket]]:
    found: dict[int, list[Ticket]] = {}
    for row in work.all(SELECT_UNDIAGNOSED, {"p_ids": ids}):
        found.setdefault(row.batch_id, []).append(ticket_of(row))
    return found


def _held(claimed: Claim) -> Json:
    return {"p_batch": claimed.batch, "p_token": claimed.token}


def renew(work: Transaction, claimed: Claim, lease: float) -> bool:
    until = work.now + timedelta(seconds=lease)
    times = {"claim_until": until, "set_at": work.now}
    return work.execute(UPDATE_HELD, {**_held(claimed), **times}).rowcount == 1


# ------------------------------------------------------------------ calls


def begin(
    work: Transaction,
    claimed: Claim,
    model: str,
    prompt_version: str,
    reserve: float,
    budget: Budget,
) -> int | None:
    if work.one(SELECT_HELD, _held(claimed)) is None:
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
    inserted = work.execute(INSERT_CALL, call).inserted_primary_key
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


def _reserve(work: Transaction, usd: float, budget: Budget, severity: Severity) -> bool:
    values: Json = {"p_day": _day(work.now), "p_usd": usd}
    statement = SPEND
    if budget.daily_usd is not None:
        share = 1.0 if severity is Severity.CRITICAL else 1 - budget.critical_reserve
        statement, values["p_room"] = SPEND_WITHIN, budget.daily_usd * share
    if work.execute(statement, values).rowcount == 1:
        return True
    # Too little left, or the first call of the day.
    work.insert_or_update(spending, {"day": values["p_day"], "usd": 0.0})
    return work.execute(statement, values).rowcount == 1


def _day(moment: datetime) -> str:
    return moment.date().isoformat()


def spent_today(work: Transaction) -> float:
    day = _day(work.now)
    found = work.connection.scalar(select(spending.c.usd).where(spending.c.day == day))
    return float(found or 0.0)


def finish(
    work: Transaction, claimed: Claim, diagnosis_id: int, ending: Finish
) -> bool:
    row = work.one(SELECT_CALL, {"p_id": diagnosis_id})
    if row is None or row.outcome not in ("running", "lost"):
        # A commit that succeeded although its client saw an error, tried again.
        return row is not None and row.outcome == ending.outcome
    ours = work.one(SELECT_HELD, _held(claimed))
    _store_call(work, diagnosis_id, ending, late=ours is None)
    difference = ending.cost_usd - row.cost_usd
    work.execute(SPEND, {"p_day": _day(row.started_at), "p_usd": difference})
    if ours is None:
        return False
    if not ending.keep:
        if ending.outcome in FINAL_OUTCOMES:
            _diagnosed(work, claimed, diagnosis_id, ending, ours.subject)
        else:
            _free(work, claimed, ending.retry_in, ending.error, ending.counted)
    return True


def _store_call(
    work: Transaction, diagnosis_id: int, ending: Finish, late: bool
) -> None:
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
    work.execute(UPDATE_CALL, {"p_id": diagnosis_id, **told})


def _diagnosed(
    work: Transaction, claimed: Claim, diagnosis_id: int, ending: Finish, subject: str
) -> None:
    """The explained tickets get the diagnosis, whatever their state; the others queue again."""
    ids = [ticket.id for ticket in claimed.tickets]
    # An answer that explains none is for all: else they would be asked without an end.
    explained = set(ending.explains or ids) & set(ids) or set(ids)
    rows = work.all(SELECT_CLAIMED, {"p_ids": ids, "p_batch": claimed.batch})
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
    left = {"queued": False, "last_error": ending.error, **NO_CLAIM}
    work.execute(UPDATE_HELD, {**_held(claimed), **left})


def _update_tickets(work: Transaction, rows: Sequence[Any], values: Json) -> None:
    if rows:
        work.execute(UPDATE_TICKETS, {"p_ids": [row.id for row in rows], **values})


def _requeue(
    work: Transaction,
    rows: Sequence[Any],
    claimed: Claim,
    diagnosis_id: int,
    subject: str,
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
    work: Transaction, claimed: Claim, retry_in: float, error: str | None, counted: bool
) -> bool:
    values: Json = {
        **_held(claimed),
        **NO_CLAIM,
        "next_attempt_at": work.now + timedelta(seconds=retry_in) if retry_in else None,
        "set_at": work.now,
    }
    if error is not None:
        values["last_error"] = error
    freed = work.execute(UPDATE_HELD if counted else UNCOUNT_HELD, values)
    return freed.rowcount == 1


def release(
    work: Transaction, claimed: Claim, retry_in: float, error: str | None, counted: bool
) -> bool:
    freed = _free(work, claimed, retry_in, error, counted)
    if freed:
        _mark_lost(work, [claimed.batch])
    return freed


# ------------------------------------------------------------ pauses
# What daemons tell each other: shared pauses and heartbeats.


def pause(
    work: Transaction, kind: PauseKind, seconds: float, reason: str, actor: str
) -> None:
    until = work.now + timedelta(seconds=seconds)
    for present in in_force(work):
        if present.kind == kind and present.until >= until:
            return
    told = {"until": until, "set_at": work.now, "reason": reason, "actor": actor}
    work.insert_or_update(pauses, {"kind": kind, **told}, told)


def unpause(work: Transaction, kind: PauseKind) -> None:
    work.execute(delete(pauses).where(pauses.c.kind == kind))


def in_force(work: Transaction) -> list[Pause]:
    """The pauses that last, longest first. One set in the future is from before a clock
    went back, and void."""
    rows = work.all(
        select(pauses)
        .where(pauses.c.until > work.now, pauses.c.set_at <= work.now + CLOCK_SLACK)
        .order_by(pauses.c.until.desc())
    )
    return [
        Pause(
            row.kind,
            row.until,
            (row.until - work.now).total_seconds(),
            row.reason,
            row.actor,
        )
        for row in rows
    ]


def beat(work: Transaction, name: str, kind: str, info: Json) -> None:
    told = {"kind": kind, "beat_at": work.now, "info": info}
    work.insert_or_update(daemons, {"name": name, **told}, told)


def alive(work: Transaction, within: float) -> list[Daemon]:
    rows = work.all(
        select(daemons)
        .where(daemons.c.beat_at > work.now - timedelta(seconds=within))
        .order_by(daemons.c.name)
    )
    return [Daemon(row.name, row.kind, row.beat_at, row.info) for row in rows]
