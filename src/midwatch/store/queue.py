"""Store operations of agents: claims, calls and their outcomes; pauses and heartbeats.

A claim is a token on a batch, with a lease. Every update that ends a claim is guarded by that
token, so a daemon that stopped for longer than its lease changes nothing.

Statements are built once: building one costs several times what a database takes to run it (`make bench`).
The usual turn of an agent has statements of its own for each database. Parameters named p_… stand in conditions; all others are columns.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BindParameter,
    Float,
    Row,
    and_,
    bindparam,
    delete,
    select,
    update,
)

from midwatch.model import (
    FINAL_OUTCOMES,
    Evidence,
    Json,
    Severity,
    Ticket,
    TicketStatus,
)
from midwatch.store import queue_postgres, queue_sqlite
from midwatch.store.cycles import new_batch
from midwatch.store.due import COUNT_ATTEMPT, NO_CLAIM, due, ended_call
from midwatch.store.engine import CLOCK_SLACK, Transaction, audit_row
from midwatch.store.investigations import end_investigations
from midwatch.store.memory import remember
from midwatch.store.protocol import (
    Budget,
    Claim,
    Daemon,
    Finish,
    Held,
    Pause,
    PauseKind,
)
from midwatch.store.rows import severity_of, ticket_of
from midwatch.store.schema import (
    UNDIAGNOSED,
    WAITING,
    Instant,
    batches,
    daemons,
    diagnoses,
    diagnosis_tickets,
    dump_json,
    evidence_document,
    pauses,
    select_tickets,
    spending,
    tickets,
)
from midwatch.store.sums import sum_hours

_IDS: BindParameter[Any] = bindparam("p_ids", expanding=True)
_NOW, _AHEAD = (bindparam(name, type_=Instant) for name in ("p_now", "p_ahead"))
SELECT_ASKED_FOR = due(_NOW, _AHEAD, asked_for=True)
TAKE = COUNT_ATTEMPT.where(batches.c.id.in_(_IDS))
SELECT_CLAIMS = select(
    batches.c.claim_token, batches.c.claim_process, batches.c.claim_until
).where(batches.c.queued, batches.c.claim_token.is_not(None))
UNQUEUE = update(batches).where(batches.c.id.in_(_IDS)).values(queued=False, **NO_CLAIM)
MARK_LOST = (
    update(diagnoses)
    .where(diagnoses.c.batch_id.in_(_IDS), diagnoses.c.outcome == "running")
    .values(outcome="lost")
)
SELECT_UNDIAGNOSED = (
    select_tickets()
    .where(tickets.c.batch_id.in_(_IDS), WAITING)
    .order_by(tickets.c.severity, tickets.c.id)
)

_HELD = and_(
    batches.c.id == bindparam("p_batch"), batches.c.claim_token == bindparam("p_token")
)
SELECT_HELD = (
    select(batches.c.subject, batches.c.opened_at).where(_HELD).with_for_update()
)
UPDATE_HELD = update(batches).where(_HELD)
UNCOUNT_HELD = UPDATE_HELD.values(attempts=batches.c.attempts - 1)

SPEND = (
    update(spending)
    .where(spending.c.day == bindparam("p_day"))
    .values(usd=spending.c.usd + bindparam("p_usd", type_=Float))
)

SELECT_CALL = (
    select(
        diagnoses.c.outcome,
        diagnoses.c.cost_usd,
        diagnoses.c.started_at,
        diagnoses.c.model,
    )
    .where(diagnoses.c.id == bindparam("p_id"))
    .with_for_update()
)
SELECT_UNSETTLED = (
    select(diagnoses.c.id, diagnoses.c.cost_usd, diagnoses.c.started_at)
    .where(
        diagnoses.c.batch_id == bindparam("p_batch"),
        diagnoses.c.model == bindparam("p_model"),
        diagnoses.c.outcome.in_(("lost", "late")),
        diagnoses.c.input_tokens + diagnoses.c.output_tokens == 0,
    )
    .with_for_update()
)
"""Calls that died, whose tokens are not known."""
INSERT_CALL = diagnoses.insert()
UPDATE_CALL = update(diagnoses).where(diagnoses.c.id == bindparam("p_id"))
SELECT_CLAIMED = (
    select(
        tickets.c.id,
        tickets.c.subject,
        tickets.c.status,
        tickets.c.severity,
        tickets.c.left_out_by,
    )
    .where(tickets.c.id.in_(_IDS), tickets.c.batch_id == bindparam("p_batch"))
    .with_for_update()
)
UPDATE_TICKETS = update(tickets).where(tickets.c.id.in_(_IDS))


def claim(
    tx: Transaction,
    holder: str,
    *,
    lease: float,
    limit: int = 1,
    least: Severity = Severity.INFO,
    batch: int | None = None,
    process: str | None = None,
    ended: Collection[str] = (),
) -> list[Claim]:
    """Claim up to `limit` batches that are due, or `batch` even if it is not."""
    token = uuid.uuid4().hex
    taken: Json = {
        "claim_holder": holder,
        "claim_token": token,
        "claim_process": process,
    }
    wanted: Json = {"p_least": least, "p_limit": limit, "p_ended": list(ended)}
    if batch is not None:
        wanted |= {"p_limit": 1, "p_batch": batch}
    found: Sequence[Any]
    if batch is not None:
        found = _take(tx, wanted, taken, lease)
    elif tx.postgres:
        found = queue_postgres.take(tx, {**wanted, **taken}, lease)
    else:
        found = queue_sqlite.take(tx, wanted, taken, lease)
    if not found:
        return []
    ids = [row.id for row in found]
    _mark_lost(tx, [row.id for row in found if row.claim_token is not None])
    by_batch = _undiagnosed(tx, ids)
    if batch is None:  # who asks for a batch asks for all of it
        by_batch = {
            id_: _without_silent(tx, tickets_, holder)
            for id_, tickets_ in by_batch.items()
        }
    if empty := set(ids) - set(by_batch):
        tx.execute(UNQUEUE, {"p_ids": list(empty)})
    return [
        Claim(
            row.id,
            token,
            holder,
            row.attempts + 1,
            tuple(by_batch[row.id]),
            process,
            row.begun,
        )
        for row in found
        if row.id in by_batch
    ]


def _take(
    tx: Transaction, wanted: Json, values: Json, lease: float
) -> Sequence[Row[Any]]:
    """Claim a batch that a person asked for, and return it as it was before."""
    now = tx.now
    times = {"p_now": now, "p_ahead": now + CLOCK_SLACK}
    if found := tx.all(SELECT_ASKED_FOR, {**wanted, **times}):
        until = now + timedelta(seconds=lease)
        taken = {**values, "claim_until": until, "set_at": now}
        tx.execute(TAKE, {"p_ids": [row.id for row in found], **taken})
    return found


def claims_held(tx: Transaction) -> list[Held]:
    """Return the claims that batches have, in no order."""
    return [
        Held(
            row.claim_token,
            row.claim_process,
            (row.claim_until - tx.now).total_seconds(),
        )
        for row in tx.all(SELECT_CLAIMS)
    ]


def _mark_lost(tx: Transaction, ids: Sequence[int]) -> None:
    if ids:
        why = "the daemon ended or lost its lease during the call"
        tx.execute(MARK_LOST, {"p_ids": ids, "finished_at": tx.now, "error": why})


def _undiagnosed(tx: Transaction, ids: Sequence[int]) -> dict[int, list[Ticket]]:
    found: dict[int, list[Ticket]] = {}
    rows: Sequence[Any]
    if tx.postgres:
        rows = tx.all(SELECT_UNDIAGNOSED, {"p_ids": ids})
    else:
        rows = queue_sqlite.undiagnosed(tx, ids)
    for row in rows:
        found.setdefault(row.batch_id, []).append(ticket_of(row))
    return found


def _without_silent(tx: Transaction, found: list[Ticket], holder: str) -> list[Ticket]:
    """Put the silent tickets of a batch into one of their own, which waits for their silence. Return the others."""
    silent = [one for one in found if one.silenced_at(tx.now)]
    if not silent or len(silent) == len(found):
        return found
    row = tx.one(select(batches).where(batches.c.id == found[0].batch))
    assert row is not None
    severity = min(one.severity for one in silent)
    apart = new_batch(tx, silent[0].key.subject, severity, opened_at=row.opened_at)
    before = {"attempts": row.attempts - 1, "last_error": row.last_error}
    tx.execute(update(batches).where(batches.c.id == apart).values(before))
    tx.execute(UPDATE_TICKETS, {"p_ids": [one.id for one in silent], "batch_id": apart})
    tx.note(
        [
            audit_row(
                one.id,
                holder,
                "requeue",
                one.status,
                one.status,
                f"kept silent by {one.silenced_by}; now in batch {apart}",
            )
            for one in silent
        ]
    )
    return [one for one in found if one not in silent]


def _held(claim: Claim) -> Json:
    return {"p_batch": claim.batch, "p_token": claim.token}


def renew(tx: Transaction, claim: Claim, *, lease: float) -> bool:
    """Extend a lease. Return false if the claim was lost."""
    until = tx.now + timedelta(seconds=lease)
    times = {"claim_until": until, "set_at": tx.now}
    return tx.execute(UPDATE_HELD, {**_held(claim), **times}).rowcount == 1


def begin(
    tx: Transaction,
    claim: Claim,
    *,
    model: str,
    prompt_version: str,
    reserve_usd: float,
    budget: Budget,
    evidence: Sequence[Evidence] = (),
) -> int | None:
    """Record a call and reserve its cost; None if the budget does not allow it. Raises ClaimLost."""
    share = 1.0 if claim.severity is Severity.CRITICAL else 1 - budget.critical_reserve
    room = None if budget.daily_usd is None else budget.daily_usd * share
    ids = [ticket.id for ticket in claim.tickets]
    call = {"model": model, "prompt_version": prompt_version}
    call["evidence"] = dump_json(evidence_document(tuple(evidence)))
    begin_call = queue_postgres.begin if tx.postgres else queue_sqlite.begin
    return begin_call(tx, claim, call, ids, reserve_usd, room)


def _insert_call(tx: Transaction, call: Json, ticket_ids: Sequence[int]) -> int:
    inserted = tx.execute(INSERT_CALL, call).inserted_primary_key
    assert inserted is not None
    diagnosis_id = int(inserted[0])
    links = [{"diagnosis_id": diagnosis_id, "ticket_id": id_} for id_ in ticket_ids]
    tx.execute(diagnosis_tickets.insert(), links)
    return diagnosis_id


def insert_diagnosis(
    tx: Transaction,
    batch: int,
    ticket_ids: Sequence[int],
    finish: Finish,
    model: str,
    prompt_version: str,
) -> int:
    """Store a diagnosis that no agent made, and return its id. The tickets do not change."""
    call = {
        "batch_id": batch,
        "token": uuid.uuid4().hex,
        "model": model,
        "prompt_version": prompt_version,
        "started_at": tx.now,
        **ended_call(finish),
        "finished_at": tx.now,
        "explains": list(ticket_ids),
    }
    return _insert_call(tx, call, ticket_ids)


def _day(moment: datetime) -> str:
    return moment.date().isoformat()


def spent_today(tx: Transaction) -> float:
    """Return the USD spent and reserved since midnight UTC."""
    day = _day(tx.now)
    found = tx.connection.scalar(select(spending.c.usd).where(spending.c.day == day))
    return float(found or 0.0)


def finish(tx: Transaction, claim: Claim, diagnosis_id: int, finish: Finish) -> bool:
    """Store how a call ended. Return false if the claim was lost."""
    ids = [ticket.id for ticket in claim.tickets]
    settles = not finish.keep and finish.outcome in FINAL_OUTCOMES
    if settles and not finish.given_up:
        usual = (queue_postgres if tx.postgres else queue_sqlite).finish_usual
        if len(finish.settled(ids)) == len(ids):
            if usual(tx, claim, diagnosis_id, finish, ids):
                return True
    row = tx.one(SELECT_CALL, {"p_id": diagnosis_id})
    if row is None or row.outcome not in ("running", "lost"):
        # The commit of an earlier try succeeded although its client saw an error.
        return row is not None and row.outcome == finish.outcome
    held = tx.one(SELECT_HELD, _held(claim))
    _store_call(tx, diagnosis_id, finish, late=held is None)
    difference = finish.cost_usd - row.cost_usd
    tx.execute(SPEND, {"p_day": _day(row.started_at), "p_usd": difference})
    if finish.usage.output_tokens:
        _settle_lost(tx, claim.batch, row.model, finish.cost_usd)
    if held is None:
        return False
    if not finish.keep:
        if finish.outcome in FINAL_OUTCOMES:
            _diagnosed(tx, claim, diagnosis_id, finish, held)
        else:
            _free(tx, claim, finish.retry_in, finish.error, finish.counted)
    return True


def finish_and_claim(
    tx: Transaction,
    ended: Claim,
    diagnosis_id: int,
    how: Finish,
    *,
    lease: float,
    least: Severity = Severity.INFO,
    gone: Collection[str] = (),
) -> tuple[bool, list[Claim]]:
    """Store how a call ended, and claim the next batch for the same holder."""
    stored = finish(tx, ended, diagnosis_id, how)
    following = claim(
        tx, ended.holder, lease=lease, least=least, process=ended.process, ended=gone
    )
    return stored, following


def _settle_lost(tx: Transaction, batch: int, model: str, usd: float) -> None:
    """Book calls of the batch that died at their worst case as what this call of the same batch cost.

    They were cut off before the end of an answer to the same question.
    """
    for lost in tx.all(SELECT_UNSETTLED, {"p_batch": batch, "p_model": model}):
        if lost.cost_usd > usd:
            tx.execute(UPDATE_CALL, {"p_id": lost.id, "cost_usd": usd})
            back = {"p_day": _day(lost.started_at), "p_usd": usd - lost.cost_usd}
            tx.execute(SPEND, back)


def _store_call(tx: Transaction, diagnosis_id: int, finish: Finish, late: bool) -> None:
    outcome = {"outcome": "late"} if late else {}
    values = {**ended_call(finish), "finished_at": tx.now, **outcome}
    tx.execute(UPDATE_CALL, {"p_id": diagnosis_id, **values})


def _diagnosed(
    tx: Transaction, claim: Claim, diagnosis_id: int, finish: Finish, held: Any
) -> None:
    """Settle the tickets that the answer names, whatever their status; queue the others again."""
    ids = [ticket.id for ticket in claim.tickets]
    settled = set(finish.settled(ids))
    rows = tx.all(SELECT_CLAIMED, {"p_ids": ids, "p_batch": claim.batch})
    waiting = [row for row in rows if row.status in UNDIAGNOSED]
    diagnosed: Json = {"diagnosis_id": diagnosis_id}
    ended = [row for row in rows if row.id in settled and row.status not in UNDIAGNOSED]
    _update_tickets(tx, ended, diagnosed)
    remember(tx, [row.id for row in ended])
    after = TicketStatus.GIVEN_UP if finish.given_up else TicketStatus.DIAGNOSED
    why = f"diagnosis {diagnosis_id}: {finish.outcome}"
    tx.note(
        [
            audit_row(row.id, claim.holder, "diagnose", row.status, row.status, why)
            for row in ended
        ]
    )
    matched = [row for row in waiting if row.id in settled]
    _settle(tx, matched, claim, after, why, diagnosed)
    others = [row for row in waiting if row.id not in settled]
    given_up = _leave_out(tx, others, claim, diagnosis_id, bool(settled), held)
    left = {"queued": False, "last_error": finish.error or given_up, **NO_CLAIM}
    tx.execute(UPDATE_HELD, {**_held(claim), **left})


def _settle(
    tx: Transaction,
    rows: Sequence[Any],
    claim: Claim,
    after: TicketStatus,
    why: str,
    values: Json,
) -> None:
    """Take tickets off the queue, with an audit row each."""
    _update_tickets(tx, rows, {**values, "status": after.value})
    action = "give up" if after is TicketStatus.GIVEN_UP else "diagnose"
    tx.note(
        [
            audit_row(row.id, claim.holder, action, row.status, after, why)
            for row in rows
        ]
    )
    made = values.get("diagnosis_id") or values["left_out_by"]
    end_investigations(tx, [row.id for row in rows], claim.holder, made)


def _leave_out(
    tx: Transaction,
    rows: Sequence[Any],
    claim: Claim,
    diagnosis_id: int,
    others_named: bool,
    held: Any,
) -> str | None:
    """Queue again the tickets that an answer did not name; each ends after a bounded number of calls.

    Those that are left out for the first time are one batch. Those that are left out again get a batch each, whose
    answer settles them. If the answer named none at all, they are given up: that the evidence does not
    carry an answer was paid for twice.

    Returns:
        Why tickets were given up, or None.
    """
    before = [row for row in rows if row.left_out_by is not None]
    first = [row for row in rows if row.left_out_by is None]
    pointer: Json = {"left_out_by": diagnosis_id}
    _requeue(tx, first, claim, pointer, held)
    if others_named:
        for row in before:
            _requeue(tx, [row], claim, pointer, held)
    elif before:
        earlier = sorted({row.left_out_by for row in before})
        named = ", ".join(map(str, earlier))
        why = f"left out by diagnosis {named} and by {diagnosis_id}, which names no ticket"
        _settle(tx, before, claim, TicketStatus.GIVEN_UP, why, pointer)
        return why
    return None


def _update_tickets(tx: Transaction, rows: Sequence[Any], values: Json) -> None:
    if rows:
        tx.execute(UPDATE_TICKETS, {"p_ids": [row.id for row in rows], **values})


def _requeue(
    tx: Transaction,
    rows: Sequence[Any],
    claim: Claim,
    pointer: Json,
    held: Any,
) -> None:
    """Put tickets into one new batch. It is as old as that of the claim: new openings do not join it."""
    if not rows:
        return
    severity = min(severity_of(row.severity) for row in rows)
    batch = new_batch(tx, rows[0].subject, severity, opened_at=held.opened_at)
    _update_tickets(tx, rows, {**pointer, "batch_id": batch})
    why = f"left out by diagnosis {pointer['left_out_by']}; now in batch {batch}"
    tx.note(
        [
            audit_row(row.id, claim.holder, "requeue", row.status, row.status, why)
            for row in rows
        ]
    )


def _free(
    tx: Transaction, claim: Claim, retry_in: float, error: str | None, counted: bool
) -> bool:
    values: Json = {
        **_held(claim),
        **NO_CLAIM,
        "next_attempt_at": tx.now + timedelta(seconds=retry_in) if retry_in else None,
        "set_at": tx.now,
    }
    if error is not None:
        values["last_error"] = error
    freed = tx.execute(UPDATE_HELD if counted else UNCOUNT_HELD, values)
    return freed.rowcount == 1


def release(
    tx: Transaction,
    claim: Claim,
    *,
    retry_in: float = 0.0,
    error: str | None = None,
    counted: bool = False,
) -> bool:
    """Give a batch back without a diagnosis. Return false if the claim was lost."""
    freed = _free(tx, claim, retry_in, error, counted)
    if freed:
        _mark_lost(tx, [claim.batch])
    return freed


def pause(
    tx: Transaction, kind: PauseKind, seconds: float, reason: str, actor: str
) -> None:
    """Pause all agents on this store. A longer pause of this kind stays."""
    until = tx.now + timedelta(seconds=seconds)
    for present in list_pauses(tx):
        if present.kind == kind and present.until >= until:
            return
    values = {"until": until, "set_at": tx.now, "reason": reason, "actor": actor}
    tx.insert_or_update(pauses, {"kind": kind, **values}, values)


def unpause(tx: Transaction, kind: PauseKind) -> None:
    """End the pause of this kind."""
    tx.execute(delete(pauses).where(pauses.c.kind == kind))


def list_pauses(tx: Transaction) -> list[Pause]:
    """Return the pauses that have not ended, longest first.

    A pause that was set in the future is from before the clock went back, and void.
    """
    rows = tx.all(
        select(pauses)
        .where(pauses.c.until > tx.now, pauses.c.set_at <= tx.now + CLOCK_SLACK)
        .order_by(pauses.c.until.desc())
    )
    return [
        Pause(
            row.kind,
            row.until,
            (row.until - tx.now).total_seconds(),
            row.reason,
            row.actor,
        )
        for row in rows
    ]


def beat(tx: Transaction, name: str, kind: str, info: Json) -> None:
    """Save the heartbeat of a daemon, and sum hours that have ended."""
    values = {"kind": kind, "beat_at": tx.now, "info": info}
    tx.insert_or_update(daemons, {"name": name, **values}, values)
    sum_hours(tx)


def list_daemons(tx: Transaction, within: float) -> list[Daemon]:
    """Return the daemons with a heartbeat in the last `within` seconds, by name."""
    rows = tx.all(
        select(daemons)
        .where(daemons.c.beat_at > tx.now - timedelta(seconds=within))
        .order_by(daemons.c.name)
    )
    return [Daemon(row.name, row.kind, row.beat_at, row.info) for row in rows]
