"""The statements of an agent's usual turn on PostgreSQL.

They read the server's clock themselves, unless a time was injected: a round trip costs more than most of what it
asks for. `midwatch.store.queue` has the rules, and does all that is not usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import Any

from sqlalchemy import Float, Row, bindparam, func, text

from midwatch.errors import ClaimLost
from midwatch.model import Json, keepable
from midwatch.store.due import COUNT_ATTEMPT, due, dumped_call
from midwatch.store.engine import CLOCK_SLACK, LOCK_AUDIT, Transaction
from midwatch.store.protocol import Claim, Finish
from midwatch.store.schema import (
    UNDIAGNOSED,
    Instant,
    batches,
    spending,
)

_NOW: Any = func.coalesce(
    bindparam("p_now", type_=Instant), text("statement_timestamp()"), type_=Instant()
)
_SLACK = text(f"interval '{CLOCK_SLACK.total_seconds():g} seconds'")
_LEASE = bindparam("p_lease", type_=Float).op("*")(text("interval '1 second'"))
_DUE = due(_NOW, _NOW.op("+")(_SLACK)).cte("due")
TAKE = (
    COUNT_ATTEMPT.where(batches.c.id == _DUE.c.id)
    .values(claim_until=_NOW.op("+")(_LEASE), set_at=_NOW)
    .returning(*_DUE.c, _NOW.label("now"))
)

_CLOCK = "coalesce(%(now)s::timestamptz, statement_timestamp())"
_DAY = "to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
BEGIN = f"""
WITH clock AS MATERIALIZED (SELECT {_CLOCK} AS now),
held AS MATERIALIZED (
  SELECT id FROM batches WHERE id = %(batch)s AND claim_token = %(token)s FOR UPDATE
),
spent AS (
  UPDATE spending SET usd = usd + %(usd)s FROM held, clock
  WHERE day = {_DAY.format("clock.now")} AND (%(room)s::float IS NULL OR usd + %(usd)s <= %(room)s)
  RETURNING day
),
call AS (
  INSERT INTO diagnoses (
    batch_id, token, outcome, model, prompt_version, started_at, cost_usd, evidence, explains,
    input_tokens, output_tokens, cache_read_tokens, cache_write_tokens
  )
  SELECT %(batch)s, %(token)s, 'running', %(model)s, %(prompt_version)s, clock.now, %(usd)s, %(evidence)s::jsonb, '[]',
    0, 0, 0, 0
  FROM spent, clock
  RETURNING id
),
linked AS (
  INSERT INTO diagnosis_tickets (diagnosis_id, ticket_id)
  SELECT call.id, one FROM call, unnest(%(tickets)s::bigint[]) AS one
)
SELECT clock.now, (SELECT id FROM held) AS held, (SELECT id FROM call) AS call, {_DAY.format("clock.now")} AS day
FROM clock
"""

FINISH = f"""
WITH call AS MATERIALIZED (
  SELECT id, cost_usd, started_at FROM diagnoses WHERE id = %(call)s AND outcome = 'running' FOR UPDATE
),
held AS MATERIALIZED (
  SELECT id FROM batches WHERE id = %(batch)s AND claim_token = %(token)s FOR UPDATE
),
was AS MATERIALIZED (
  SELECT tickets.id, tickets.status FROM tickets, held
  WHERE tickets.id = ANY(%(tickets)s::bigint[]) AND tickets.batch_id = held.id
  FOR UPDATE OF tickets
),
usual AS MATERIALIZED (
  SELECT call.*, {_CLOCK} AS now FROM call, held
  WHERE (SELECT count(*) FROM was WHERE status = ANY(%(undiagnosed)s)) = cardinality(%(tickets)s::bigint[])
  AND NOT EXISTS (SELECT FROM diagnoses WHERE batch_id = %(batch)s AND outcome IN ('lost', 'late'))
  AND NOT EXISTS (SELECT FROM investigations WHERE ticket_id = ANY(%(tickets)s::bigint[]))
),
ended AS (
  UPDATE diagnoses SET outcome = %(outcome)s, finished_at = usual.now, answer = %(answer)s::jsonb,
    markdown = %(markdown)s, confidence = %(confidence)s, verified_claims = %(verified_claims)s, total_claims = %(total_claims)s,
    input_tokens = %(input_tokens)s, output_tokens = %(output_tokens)s,
    cache_read_tokens = %(cache_read_tokens)s, cache_write_tokens = %(cache_write_tokens)s,
    cost_usd = %(cost_usd)s, error = %(error)s, request_id = %(request_id)s,
    evidence = %(evidence)s::jsonb, explains = %(explains)s::jsonb
  FROM usual WHERE diagnoses.id = usual.id
),
spent AS (
  UPDATE spending SET usd = spending.usd + %(cost_usd)s - usual.cost_usd FROM usual
  WHERE day = {_DAY.format("usual.started_at")}
),
settled AS (
  UPDATE tickets SET status = 'diagnosed', diagnosis_id = %(call)s FROM usual
  WHERE tickets.id = ANY(%(tickets)s::bigint[])
),
locked AS MATERIALIZED ({LOCK_AUDIT} FROM usual),
noted AS (
  INSERT INTO audit (ticket_id, at, actor, action, before, after, why)
  SELECT was.id, usual.now, %(holder)s, 'diagnose', was.status, 'diagnosed', %(why)s FROM locked, usual, was
  ORDER BY was.id
),
freed AS (
  UPDATE batches SET queued = false, last_error = %(error)s,
    claim_holder = NULL, claim_token = NULL, claim_until = NULL, claim_process = NULL
  FROM usual WHERE batches.id = %(batch)s
)
SELECT now FROM usual
"""
"""The audit lock is taken before the first id of a row is."""


def take(tx: Transaction, values: Json, lease: float) -> list[Row[Any]]:
    """Claim what is due, and return the batches as they were before, in the order of the queue."""
    found = tx.all(TAKE, {**values, "p_now": tx.known_now, "p_lease": lease})
    if found:
        tx.read_now(found[0].now)
    return sorted(found, key=lambda row: (row.severity, row.opened_at, row.id))


def begin(
    tx: Transaction,
    claim: Claim,
    call: Json,
    ticket_ids: Sequence[int],
    usd: float,
    room: float | None,
) -> int | None:
    """Record a call and reserve its cost, as `queue.begin` does. `room` is what the day may cost in all, in USD."""
    values = {
        **call,
        "batch": claim.batch,
        "token": claim.token,
        "tickets": list(ticket_ids),
        "usd": usd,
        "room": room,
    }
    row = _row(tx, BEGIN, values)
    if row.held is not None and row.call is None:
        # Too little left, or the first call of the day.
        tx.insert_or_update(spending, {"day": row.day, "usd": 0.0})
        row = _row(tx, BEGIN, values)
    if row.held is None:
        raise ClaimLost()
    return None if row.call is None else int(row.call)


def finish_usual(
    tx: Transaction,
    claim: Claim,
    diagnosis_id: int,
    finish: Finish,
    ticket_ids: Sequence[int],
) -> bool:
    """Store an end that settles all tickets of the claim. Return false, and change nothing, if more is to be done.

    That is so if the claim was lost, a ticket was resolved meanwhile or is an investigation, or a call of the batch
    died before.
    """
    values = {
        "call": diagnosis_id,
        "batch": claim.batch,
        "token": claim.token,
        "holder": claim.holder,
        "tickets": list(ticket_ids),
        "undiagnosed": list(UNDIAGNOSED),
        "why": f"diagnosis {diagnosis_id}: {finish.outcome}",
        **dumped_call(finish),
    }
    if _row(tx, FINISH, values) is None:
        return False
    tx.noted = True
    return True


def _row(tx: Transaction, statement: str, values: Json) -> Any:
    """Run a statement that reads the time, and return its only row, or None."""
    kept = {
        name: keepable(value) if isinstance(value, str) else value
        for name, value in values.items()
    }
    kept["now"] = tx.known_now
    row = tx.connection.exec_driver_sql(statement, kept).first()
    if row is not None:
        tx.read_now(row.now.astimezone(UTC))
    return row
