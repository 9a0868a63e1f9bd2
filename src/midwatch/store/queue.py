"""What the agent writes: claims, calls and how they ended.

A claim is a token on a batch, with a lease. Whatever ends a claim is an update guarded by
that token, so a daemon that was away for longer than its lease changes nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update

from ..errors import ClaimLost
from ..model import FINAL_OUTCOMES, Severity, Ticket, TicketStatus
from .cycles import new_batch
from .protocol import Budget, Claim, Finish
from .rows import UNDIAGNOSED, evidence_document, select_tickets, ticket_of
from .schema import batches, diagnoses, diagnosis_tickets, spending, tickets
from .work import CLOCK_SLACK, Work, audit_row


def claim(
    work: Work,
    holder: str,
    lease: float,
    limit: int,
    least: Severity = Severity.INFO,
    only: int | None = None,
) -> list[Claim]:
    until = work.now + timedelta(seconds=lease)
    wanted = _due(work.now) if only is None else _asked_for(work.now, only)
    due = work.all(
        select(batches.c.id, batches.c.claim_token)
        .where(wanted, batches.c.severity <= least)
        .order_by(batches.c.severity, batches.c.opened_at, batches.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    if not due:
        return []
    ids = [row.id for row in due]
    token = uuid.uuid4().hex
    taken = work.execute(
        update(batches)
        .where(batches.c.id.in_(ids))
        .values(
            claim_holder=holder,
            claim_token=token,
            claim_until=until,
            set_at=work.now,
            attempts=batches.c.attempts + 1,
            next_attempt_at=None,
        )
        .returning(batches.c.id, batches.c.attempts)
    ).all()
    _mark_lost(work, [row.id for row in due if row.claim_token is not None])
    by_batch = _undiagnosed(work, ids)
    attempts = {row.id: row.attempts for row in taken}
    if empty := set(ids) - set(by_batch):
        work.execute(
            update(batches)
            .where(batches.c.id.in_(empty))
            .values(queued=False, **_NO_CLAIM)
        )
    return [
        Claim(batch, token, holder, attempts[batch], tuple(by_batch[batch]))
        for batch in ids
        if batch in by_batch
    ]


def _unclaimed(now: datetime) -> ColumnElement[bool]:
    return or_(batches.c.claim_token.is_(None), batches.c.claim_until <= now)


def _asked_for(now: datetime, batch: int) -> ColumnElement[bool]:
    """This batch, queued and not held, though its wait may not be over."""
    ours = or_(_unclaimed(now), batches.c.set_at > now + CLOCK_SLACK)
    return and_(batches.c.id == batch, batches.c.queued, ours)


def _due(now: datetime) -> ColumnElement[bool]:
    """Queued, not waiting, not held; or its times are from before the clock went back."""
    rested = or_(batches.c.next_attempt_at.is_(None), batches.c.next_attempt_at <= now)
    return and_(
        batches.c.queued,
        or_(and_(_unclaimed(now), rested), batches.c.set_at > now + CLOCK_SLACK),
    )


def _mark_lost(work: Work, ids: Sequence[int]) -> None:
    if ids:
        work.execute(
            update(diagnoses)
            .where(diagnoses.c.batch_id.in_(ids), diagnoses.c.outcome == "running")
            .values(
                outcome="lost",
                finished_at=work.now,
                error="the daemon ended or lost its lease during the call",
            )
        )


def _undiagnosed(work: Work, ids: Sequence[int]) -> dict[int, list[Ticket]]:
    found: dict[int, list[Ticket]] = {}
    for row in work.all(
        select_tickets()
        .where(tickets.c.batch_id.in_(ids), tickets.c.status.in_(UNDIAGNOSED))
        .order_by(tickets.c.severity, tickets.c.id)
    ):
        found.setdefault(row.batch_id, []).append(ticket_of(row))
    return found


def _held(claimed: Claim) -> ColumnElement[bool]:
    return and_(batches.c.id == claimed.batch, batches.c.claim_token == claimed.token)


def renew(work: Work, claimed: Claim, lease: float) -> bool:
    renewed = work.execute(
        update(batches)
        .where(_held(claimed))
        .values(claim_until=work.now + timedelta(seconds=lease), set_at=work.now)
    )
    return renewed.rowcount == 1


# ------------------------------------------------------------------ calls


def begin(
    work: Work,
    claimed: Claim,
    model: str,
    prompt_version: str,
    reserve: float,
    budget: Budget,
) -> int | None:
    if work.one(select(batches.c.id).where(_held(claimed)).with_for_update()) is None:
        raise ClaimLost()
    if not _reserve(work, reserve, budget, claimed.severity):
        return None
    inserted = work.execute(
        diagnoses.insert().values(
            batch_id=claimed.batch,
            token=claimed.token,
            outcome="running",
            model=model,
            prompt_version=prompt_version,
            started_at=work.now,
            cost_usd=reserve,
            evidence=[],
            explains=[],
        )
    ).inserted_primary_key
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
    day = _day(work.now)
    work.insert_or_update(spending, {"day": day, "usd": 0.0})
    room: ColumnElement[bool] = spending.c.day == day
    if budget.daily_usd is not None:
        share = 1.0 if severity is Severity.CRITICAL else 1 - budget.critical_reserve
        room = and_(room, spending.c.usd + usd <= budget.daily_usd * share)
    spent = work.execute(update(spending).where(room).values(usd=spending.c.usd + usd))
    return spent.rowcount == 1


def _day(moment: datetime) -> str:
    return moment.date().isoformat()


def spent_today(work: Work) -> float:
    day = _day(work.now)
    found = work.connection.scalar(select(spending.c.usd).where(spending.c.day == day))
    return float(found or 0.0)


def finish(work: Work, claimed: Claim, diagnosis_id: int, ending: Finish) -> bool:
    row = work.one(
        select(diagnoses.c.outcome, diagnoses.c.cost_usd, diagnoses.c.started_at)
        .where(diagnoses.c.id == diagnosis_id)
        .with_for_update()
    )
    if row is None or row.outcome not in ("running", "lost"):
        # A commit that succeeded although its client saw an error, tried again.
        return row is not None and row.outcome == ending.outcome
    ours = work.one(select(batches.c.subject).where(_held(claimed)).with_for_update())
    _store_call(work, diagnosis_id, ending, late=ours is None)
    work.execute(
        update(spending)
        .where(spending.c.day == _day(row.started_at))
        .values(usd=spending.c.usd + ending.cost_usd - row.cost_usd)
    )
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
    work.execute(
        update(diagnoses)
        .where(diagnoses.c.id == diagnosis_id)
        .values(
            outcome="late" if late else ending.outcome,
            finished_at=work.now,
            answer=ending.answer,
            markdown=ending.markdown,
            confidence=ending.confidence,
            verified_claims=grounded.verified if grounded else None,
            total_claims=grounded.total if grounded else None,
            input_tokens=ending.usage.input_tokens,
            output_tokens=ending.usage.output_tokens,
            cache_read_tokens=ending.usage.cache_read_tokens,
            cache_write_tokens=ending.usage.cache_write_tokens,
            cost_usd=ending.cost_usd,
            error=ending.error,
            request_id=ending.request_id,
            evidence=evidence_document(ending.evidence),
            explains=list(ending.explains or ()),
        )
    )


def _diagnosed(
    work: Work, claimed: Claim, diagnosis_id: int, ending: Finish, subject: str
) -> None:
    """The explained tickets get the diagnosis, whatever their state; the others queue again."""
    ids = [ticket.id for ticket in claimed.tickets]
    # An answer that explains none is for all: else they would be asked without an end.
    explained = set(ending.explains or ids) & set(ids) or set(ids)
    rows = work.all(
        select(tickets.c.id, tickets.c.status, tickets.c.severity)
        .where(tickets.c.id.in_(ids), tickets.c.batch_id == claimed.batch)
        .with_for_update()
    )
    mine = [row for row in rows if row.id in explained]
    waiting = [row for row in mine if row.status in UNDIAGNOSED]
    work.execute(
        update(tickets)
        .where(tickets.c.id.in_([row.id for row in mine]))
        .values(diagnosis_id=diagnosis_id)
    )
    work.execute(
        update(tickets)
        .where(tickets.c.id.in_([row.id for row in waiting]))
        .values(status=TicketStatus.DIAGNOSED.value)
    )
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
    work.execute(
        update(batches)
        .where(batches.c.id == claimed.batch)
        .values(queued=False, last_error=ending.error, **_NO_CLAIM)
    )


def _requeue(
    work: Work, rows: Sequence[Any], claimed: Claim, diagnosis_id: int, subject: str
) -> None:
    if not rows:
        return
    batch = new_batch(work, subject, Severity(min(row.severity for row in rows)))
    work.execute(
        update(tickets)
        .where(tickets.c.id.in_([row.id for row in rows]))
        .values(batch_id=batch)
    )
    why = f"not explained by diagnosis {diagnosis_id}; now in batch {batch}"
    work.note(
        [
            audit_row(row.id, claimed.holder, "requeue", row.status, row.status, why)
            for row in rows
        ]
    )


_NO_CLAIM = {"claim_holder": None, "claim_token": None, "claim_until": None}


def _free(
    work: Work, claimed: Claim, retry_in: float, error: str | None, counted: bool
) -> bool:
    freed = work.execute(
        update(batches)
        .where(_held(claimed))
        .values(
            next_attempt_at=(
                work.now + timedelta(seconds=retry_in) if retry_in else None
            ),
            set_at=work.now,
            last_error=error if error is not None else batches.c.last_error,
            attempts=batches.c.attempts - (0 if counted else 1),
            **_NO_CLAIM,
        )
    )
    return freed.rowcount == 1


def release(
    work: Work, claimed: Claim, retry_in: float, error: str | None, counted: bool
) -> bool:
    freed = _free(work, claimed, retry_in, error, counted)
    if freed:
        _mark_lost(work, [claimed.batch])
    return freed
