"""The statements of an agent's usual turn on SQLite, run by the bare driver, which takes a tenth of SQLAlchemy's time.

`midwatch.store.queue` has the rules, and does all that is not usual. Queries whose conditions are shared are compiled
once from the same expressions.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from sqlalchemy import Select, bindparam, func, select
from sqlalchemy.dialects import sqlite

from midwatch.errors import ClaimLost
from midwatch.model import Json, keepable
from midwatch.store.due import due, dumped_call
from midwatch.store.engine import CLOCK_SLACK, Transaction
from midwatch.store.protocol import Claim, Finish
from midwatch.store.rows import EPOCH, MILLISECOND, instant_of
from midwatch.store.schema import (
    UNDIAGNOSED,
    WAITING,
    Instant,
    dump_json,
    select_tickets,
    tickets,
)


class _Query:
    """A query that SQLAlchemy has compiled, for the bare driver; a list is passed as JSON."""

    def __init__(self, statement: Select[Any]) -> None:
        self._statement = statement

    @cached_property
    def _compiled(self) -> tuple[str, Json, list[Any], Any]:
        dialect = sqlite.dialect(paramstyle="named")
        compiled = self._statement.compile(dialect=dialect)
        columns = self._statement.selected_columns
        readers = [one.type.result_processor(dialect, None) for one in columns]
        row = namedtuple("row", [str(one.key) for one in columns])  # type: ignore[misc]
        return str(compiled), dict(compiled.params), readers, row

    def all(self, database: sqlite3.Connection, values: Json) -> list[Any]:
        """Return the rows, each with an attribute for each column."""
        sql, given, readers, row = self._compiled
        return [
            row._make(
                read(value) if read else value
                for read, value in zip(readers, found, strict=True)
            )
            for found in database.execute(sql, {**given, **_kept(values)})
        ]


def _listed(name: str) -> Any:
    """Return the query of the items of a list that is a parameter."""
    return select(func.json_each(bindparam(name)).table_valued("value").c.value)


_DUE = _Query(
    due(
        bindparam("p_now", type_=Instant),
        bindparam("p_ahead", type_=Instant),
        ended=_listed("p_ended"),
    )
)
_UNDIAGNOSED = _Query(
    select_tickets()
    .where(tickets.c.batch_id.in_(_listed("p_ids")), WAITING)
    .order_by(tickets.c.severity, tickets.c.id)
)

_LISTED = "(SELECT value FROM json_each(:tickets))"
_HELD = "FROM batches WHERE id = :batch AND claim_token = :token"
_FREE = (
    "claim_holder = NULL, claim_token = NULL, claim_until = NULL, claim_process = NULL"
)
TAKE = """
UPDATE batches SET attempts = attempts + 1, next_attempt_at = NULL, claim_holder = :claim_holder,
  claim_token = :claim_token, claim_process = :claim_process, claim_until = :until, set_at = :now
WHERE id IN (SELECT value FROM json_each(:ids))
"""
SPEND = f"""
UPDATE spending SET usd = usd + :usd
WHERE day = :day AND (:room IS NULL OR usd + :usd <= :room) AND EXISTS (SELECT 1 {_HELD})
"""
BEGIN = """
INSERT INTO diagnoses (
  batch_id, token, outcome, model, prompt_version, started_at, cost_usd, evidence, explains,
  input_tokens, output_tokens, cache_read_tokens, cache_write_tokens
)
VALUES (:batch, :token, 'running', :model, :prompt_version, :now, :usd, :evidence, '[]', 0, 0, 0, 0)
"""
LINK = "INSERT INTO diagnosis_tickets (diagnosis_id, ticket_id) SELECT ?, value FROM json_each(?)"
USUAL = f"""
SELECT tickets.id, tickets.status, call.cost_usd, call.started_at
FROM diagnoses AS call, tickets
WHERE call.id = :call AND call.outcome = 'running' AND EXISTS (SELECT 1 {_HELD})
AND tickets.id IN {_LISTED} AND tickets.batch_id = :batch
AND NOT EXISTS (SELECT 1 FROM diagnoses WHERE batch_id = :batch AND outcome IN ('lost', 'late'))
AND NOT EXISTS (SELECT 1 FROM investigations WHERE ticket_id IN {_LISTED})
"""
FINISH = (
    """
UPDATE diagnoses SET outcome = :outcome, finished_at = :now, answer = :answer, markdown = :markdown,
  confidence = :confidence, verified_claims = :verified_claims, total_claims = :total_claims,
  input_tokens = :input_tokens, output_tokens = :output_tokens,
  cache_read_tokens = :cache_read_tokens, cache_write_tokens = :cache_write_tokens,
  cost_usd = :cost_usd, error = :error, request_id = :request_id, evidence = :evidence, explains = :explains
WHERE id = :call
""",
    "UPDATE spending SET usd = usd + :difference WHERE day = :day",
    f"UPDATE tickets SET status = 'diagnosed', diagnosis_id = :call WHERE id IN {_LISTED}",
    f"UPDATE batches SET queued = 0, last_error = :error, {_FREE} WHERE id = :batch",
)
NOTE = """
INSERT INTO audit (ticket_id, at, actor, action, before, after, why)
VALUES (?, ?, ?, 'diagnose', ?, 'diagnosed', ?)
"""


def take(tx: Transaction, wanted: Json, taken: Json, lease: float) -> list[Any]:
    """Claim what is due, and return the batches as they were before, in the order of the queue."""
    now, database = _milliseconds(tx), driver(tx)
    ahead = now + CLOCK_SLACK // MILLISECOND
    found = _DUE.all(database, {**wanted, "p_now": now, "p_ahead": ahead})
    if found:
        times = {"now": now, "until": now + round(lease * 1000)}
        ids = [row.id for row in found]
        database.execute(TAKE, _kept({**taken, **times, "ids": ids}))
    return found


def undiagnosed(tx: Transaction, ids: Sequence[int]) -> list[Any]:
    """Return the rows of the undiagnosed tickets of batches, as `midwatch.store.rows.ticket_of` takes them."""
    return _UNDIAGNOSED.all(driver(tx), {"p_ids": ids})


def begin(
    tx: Transaction,
    claim: Claim,
    call: Json,
    ticket_ids: Sequence[int],
    usd: float,
    room: float | None,
) -> int | None:
    """Record a call and reserve its cost, as `queue.begin` does. `room` is what the day may cost in all, in USD."""
    database = driver(tx)
    values = _kept(
        {
            **call,
            "batch": claim.batch,
            "token": claim.token,
            "now": _milliseconds(tx),
            "day": tx.now.date().isoformat(),
            "usd": usd,
            "room": room,
        }
    )
    if database.execute(SPEND, values).rowcount != 1:
        if database.execute(f"SELECT 1 {_HELD}", values).fetchone() is None:
            raise ClaimLost()
        # Too little left, or the first call of the day.
        database.execute("INSERT OR IGNORE INTO spending VALUES (:day, 0)", values)
        if database.execute(SPEND, values).rowcount != 1:
            return None
    made = database.execute(BEGIN, values).lastrowid
    assert made is not None
    database.execute(LINK, (made, dump_json(list(ticket_ids))))
    return made


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
    database, now = driver(tx), _milliseconds(tx)
    key = {"call": diagnosis_id, "batch": claim.batch, "token": claim.token}
    key["tickets"] = dump_json(list(ticket_ids))
    was = database.execute(USUAL, key).fetchall()
    if len(was) != len(ticket_ids) or any(row[1] not in UNDIAGNOSED for row in was):
        return False
    *_, reserved, started = was[0]
    values = {
        **key,
        "now": now,
        "day": instant_of(started).date().isoformat(),
        "difference": finish.cost_usd - reserved,
        **dumped_call(finish),
    }
    values = _kept(values)
    for statement in FINISH:
        database.execute(statement, values)
    actor, why = keepable(claim.holder), f"diagnosis {diagnosis_id}: {finish.outcome}"
    rows = [(id_, now, actor, before, why) for id_, before, *_ in was]
    database.executemany(NOTE, rows)
    tx.noted = True
    return True


def driver(tx: Transaction) -> sqlite3.Connection:
    """Return the connection of the bare driver."""
    found = tx.connection.connection.driver_connection
    assert isinstance(found, sqlite3.Connection)
    return found


def _milliseconds(tx: Transaction) -> int:
    return (tx.now - EPOCH) // MILLISECOND


def _kept(values: Json) -> Json:
    """Return parameters as they are stored."""
    return {
        name: (
            keepable(value)
            if isinstance(value, str)
            else dump_json(value) if isinstance(value, list) else value
        )
        for name, value in values.items()
    }
