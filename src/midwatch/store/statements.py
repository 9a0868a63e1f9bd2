"""The agent's statements, built once: building one costs several times what a database takes
to run it (`make bench`).

Parameters named p_… stand in conditions; all others that a statement is run with are columns.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BindParameter,
    Float,
    Integer,
    and_,
    bindparam,
    or_,
    select,
    update,
)

from midwatch.store.rows import UNDIAGNOSED, select_tickets
from midwatch.store.schema import Instant, batches, diagnoses, spending, tickets

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
