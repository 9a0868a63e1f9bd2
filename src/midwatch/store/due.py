"""Which batches an agent can claim, and what a claim and the call that ends it are in their rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import (
    BindParameter,
    Integer,
    Select,
    and_,
    bindparam,
    exists,
    or_,
    select,
    update,
)

from midwatch.model import Json
from midwatch.store.protocol import Finish
from midwatch.store.schema import (
    batches,
    diagnoses,
    dump_json,
    evidence_document,
    pauses,
)
from midwatch.store.silences import not_silent

NO_CLAIM = {
    "claim_holder": None,
    "claim_token": None,
    "claim_until": None,
    "claim_process": None,
}
COUNT_ATTEMPT = update(batches).values(
    attempts=batches.c.attempts + 1, next_attempt_at=None
)


_ENDED: BindParameter[Any] = bindparam("p_ended", expanding=True)


def due(
    now: Any, ahead: Any, *, asked_for: bool = False, ended: Any = _ENDED
) -> Select[Any]:
    """Return the query of batches that can be claimed, and of whether a call was made for them before.

    They are queued, and have no claim whose lease lasts and whose process may run. Unless a person asked for one of them,
    they are due and not silent as a whole, and no pause lasts.

    Args:
        now: The present time, as a parameter or an expression.
        ahead: A time further in the future than any that was set, unless the clock went back since.
        asked_for: Whether it is for one batch.
        ended: The processes that have ended, as a parameter or a query.
    """
    columns = batches.c
    unclaimed = or_(
        columns.claim_token.is_(None),
        columns.claim_until <= now,
        columns.claim_process.in_(ended),
    )
    void = columns.set_at > ahead
    found = (
        select(
            columns.id,
            columns.claim_token,
            columns.attempts,
            columns.severity,
            columns.opened_at,
            exists().where(diagnoses.c.batch_id == columns.id).label("begun"),
        )
        .where(columns.queued, columns.severity <= bindparam("p_least"))
        .order_by(columns.severity, columns.opened_at, columns.id)
        .limit(bindparam("p_limit", type_=Integer))
        .with_for_update(skip_locked=True, of=batches)
    )
    if asked_for:
        return found.where(columns.id == bindparam("p_batch"), or_(unclaimed, void))
    rested = or_(columns.next_attempt_at.is_(None), columns.next_attempt_at <= now)
    paused = exists().where(pauses.c.until > now, pauses.c.set_at <= ahead)
    return found.where(or_(and_(unclaimed, rested), void), not_silent(now), ~paused)


def ended_call(finish: Finish) -> Json:
    """Return the columns of a call that ended, but for when."""
    grounded = finish.grounded
    return {
        "outcome": finish.outcome,
        "answer": finish.answer,
        "markdown": finish.markdown,
        "confidence": finish.confidence,
        "verified_claims": grounded.verified if grounded else None,
        "total_claims": grounded.total if grounded else None,
        "cost_usd": finish.cost_usd,
        "error": finish.error,
        "request_id": finish.request_id,
        "evidence": evidence_document(finish.evidence),
        "explains": list(finish.explains or ()),
        **asdict(finish.usage),
    }


def dumped_call(finish: Finish) -> Json:
    """Return the same for a bare driver: documents as JSON."""
    columns = ended_call(finish)
    for name in ("answer", "evidence", "explains"):
        if columns[name] is not None:
            columns[name] = dump_json(columns[name])
    return columns
