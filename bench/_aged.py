"""Databases of any age: resolved tickets with diagnoses, history and past incidents, written in bulk."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from midwatch.model import Severity
from midwatch.store.cycles import save_cycle, watch
from midwatch.store.engine import Transaction, open_transactions, parse_database
from midwatch.store.protocol import Changes
from midwatch.store.schema import database_now
from midwatch.store.sums import sum_hours
from midwatch.store.upgrade import upgrade
from midwatch.testing.store_conformance.fixture import opening

_STEP = 2_588  # ms
"""Time between two tickets: a million are 30 days. A database is older because it has more."""
SUBJECTS, INVARIANTS, COMPONENTS = 20, 10, 50
UNRESOLVED = 40
RARE = "hyperscaler"
"""A word of the first ticket alone."""
_AT_ONCE = 100_000
_COMMON = (
    "pool many connections restarted service latency pgbouncer exhausted clients waiting"
    " timeout backend released transaction idle deployment rollback replica lag checkpoint"
    " configuration memory rebooted worker queue depth consumer blocked vacuum threshold"
)


async def age(database: str, count: int) -> None:
    """Make a database with `count` resolved tickets and some that are not.

    Args:
        database: URL of an empty database.
        count: Resolved tickets, each with a batch, a diagnosis, three audit rows, a delivery and what is searched of it.
    """
    transactions = open_transactions(parse_database(database), longest=3600.0)
    await upgrade(transactions)
    for first in range(1, count + 1, _AT_ONCE):
        last = min(first + _AT_ONCE - 1, count)
        await transactions.run(_fill, first, last, count)
    await transactions.run(_finish)
    await transactions.run(_open)
    if transactions.dialect == "postgresql":
        await transactions.run(lambda c: c.execute(text("ANALYZE")))
    await transactions.close()


def _fill(connection: Connection, first: int, last: int, count: int) -> None:
    values = {"first": first, "last": last}
    for statement in _statements(connection, count):
        connection.execute(text(statement), values)


def _statements(connection: Connection, count: int) -> Iterator[str]:
    sqlite = connection.dialect.name == "sqlite"
    began = int(database_now(connection).timestamp() * 1000) - count * _STEP - 1_200_000

    def at(seconds: int) -> str:
        ms = f"({began} + n * {_STEP} + {seconds * 1000})"
        return ms if sqlite else f"to_timestamp({ms} / 1000.0)"

    def document(value: str) -> str:
        return f"'{value}'" if sqlite else f"CAST('{value}' AS jsonb)"

    yes, no = ("1", "0") if sqlite else ("true", "false")
    numbers = "WITH RECURSIVE numbers(n) AS (SELECT CAST(:first AS bigint) UNION ALL SELECT n + 1 FROM numbers WHERE n < :last)"
    subject = f"CASE n % {SUBJECTS} WHEN 0 THEN 'db' ELSE 'db-' || (n % {SUBJECTS}) END"
    kind = f"(n / {SUBJECTS} % {INVARIANTS})"
    invariant = f"CASE {kind} WHEN 0 THEN 'connections' ELSE 'invariant-' || {kind} END"
    # Every tenth ticket is one of a key that flaps.
    component = f"CASE WHEN n % {SUBJECTS} = 3 THEN 'hot' ELSE 'pool-' || (n / 200 % {COMPONENTS}) END"
    rare = f"CASE WHEN n = 1 THEN ' {RARE}' ELSE '' END"
    message = f"'pool ' || n || ': 97 of 100 connections are taken' || {rare}"
    words = f"'{_COMMON} ' || n || ' pid' || (n * 7) || {rare}"
    piece = '"id": "E1", "title": "sessions", "source": "pg_stat_activity", "at": "2026-01-01T00:00:00+00:00"'
    evidence = f'[{{{piece}, "text": "{"connections " * 80}"}}]'
    answer = '{"verdict": "identified", "root_cause": "a lock", "summary": "a lock"}'
    yield (
        f"{numbers} INSERT INTO batches (id, subject, severity, opened_at, queued, attempts, set_at)"
        f" SELECT n, {subject}, n % 3, {at(0)}, {no}, 1, {at(0)} FROM numbers"
    )
    yield (
        f"{numbers} INSERT INTO tickets (id, subject, invariant, component, severity, status, held, message, facts,"
        " unseen_since, first_seen_at, opened_at, last_seen_at, occurrence_count, flapping, batch_id, resolved_at,"
        f" resolution, diagnosis_id) SELECT n, {subject}, {invariant}, {component}, n % 3, 'resolved', {no}, {message},"
        f" {document('{}')}, {at(-60)}, {at(-30)}, {at(0)}, {at(300)}, 10, {no}, n, {at(600)},"
        " 'the invariant was observed to hold again', n FROM numbers"
    )
    yield (
        f"{numbers} INSERT INTO diagnoses (id, batch_id, token, outcome, model, prompt_version, started_at, finished_at,"
        " answer, markdown, confidence, verified_claims, total_claims, input_tokens, output_tokens, cache_read_tokens,"
        f" cache_write_tokens, cost_usd, evidence, explains) SELECT n, n, 't' || n, 'answered', 'claude', '1', {at(10)},"
        f" {at(40)}, {document(answer)}, 'a lock',"
        f" 'high', 3, 3, 20000, 900, 0, 0, 0.07, {document(evidence)}, {document('[]')} FROM numbers"
    )
    yield (
        f"{numbers} INSERT INTO diagnosis_tickets (diagnosis_id, ticket_id) SELECT n, n FROM numbers"
    )
    for number, (action, seconds) in enumerate(
        (("open", 0), ("diagnose", 40), ("resolve", 600))
    ):
        yield (
            f"{numbers} INSERT INTO audit (id, ticket_id, at, actor, action, why)"
            f" SELECT 3 * n - 2 + {number}, n, {at(seconds)}, 'monitor', '{action}', '' FROM numbers"
        )
    yield (
        f"{numbers} INSERT INTO deliveries (id, dedup_key, route, target, event, thread, ticket_id, content, state,"
        f" created_at, due_at, due_since, attempts, ended_at) SELECT n, 'd' || n, 'team', 'slack', 'opened',"
        f" 'batch ' || n, n, {document('{}')}, 'sent', {at(0)}, {at(0)}, {at(0)}, 1, {at(1)} FROM numbers"
    )
    yield (
        f"{numbers} INSERT INTO alerts (subject, fingerprint, starts_at, status, ends_at, received_at, invariant,"
        f" component, severity, message, facts) SELECT {subject}, 'f' || (n % 1000), {at(0)}, 'resolved', {at(600)},"
        f" {at(600)}, {invariant}, {component}, 1, 'x', {document('{}')} FROM numbers"
    )
    yield (
        f'{numbers} INSERT INTO silenced (id, subject, invariant, component, severity, message, "by", first_seen_at,'
        f" ended_at) SELECT n, {subject}, {invariant}, {component}, 1, 'x', 'silence 1', {at(0)}, {at(1)} FROM numbers"
        " WHERE n % 10 = 0"
    )
    yield (
        f"{numbers} INSERT INTO investigations (id, ticket_id, question, requested_by, created_at)"
        f" SELECT 'i' || n, n, 'Why?', 'ann', {at(0)} FROM numbers WHERE n % 10 = 0"
    )
    empty = document("{}")
    yield (
        f"{numbers} INSERT INTO changes (id, dedup_key, subject, at, kind, title, source, labels, version_from,"
        f" version_to, link, author, details, recorded_at) SELECT n, 'c' || n, {subject}, {at(0)}, 'deploy', 'x', 'api',"
        f" {empty}, '', '', '', '', {empty}, {at(0)} FROM numbers"
    )
    yield (
        f"{numbers} INSERT INTO delivery_threads (target, thread, reference, updated_at)"
        f" SELECT 'slack', 'batch ' || n, {document('{}')}, {at(0)} FROM numbers"
    )
    yield (
        f"{numbers} INSERT INTO past_incidents (ticket_id, subject, invariant, component, words)"
        f" SELECT n, {subject}, {invariant}, {component}, {words} FROM numbers"
    )
    if sqlite:
        yield (
            "INSERT INTO past_words (rowid, words) SELECT ticket_id, words FROM past_incidents"
            " WHERE ticket_id BETWEEN :first AND :last"
        )


_WORDS = (
    "INSERT INTO past_words (word, ticket_id) SELECT word, ticket_id FROM"
    " (SELECT word, ticket_id, row_number() OVER (PARTITION BY word ORDER BY ticket_id DESC) AS place"
    " FROM past_incidents, unnest(string_to_array(words, ' ')) AS word WHERE word <> '') AS found WHERE place <= 40"
)


def _subject(number: int) -> str:
    return f"db-{number}" if number else "db"


def _finish(connection: Connection) -> None:
    """Add what is computed from the rows, and let the sequences of PostgreSQL go on behind them."""
    tx = Transaction(connection, database_now)
    for number in range(SUBJECTS):
        watch(tx, _subject(number), "postgres")
    for _ in range(200):
        sum_hours(tx)
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL work_mem = '256MB'"))
        connection.execute(text(_WORDS))
        for table in ("batches", "tickets", "diagnoses", "audit", "deliveries"):
            last = f"(SELECT max(id) FROM {table})"
            sequence = f"pg_get_serial_sequence('{table}', 'id')"
            connection.execute(text(f"SELECT setval({sequence}, {last})"))


def _open(connection: Connection) -> None:
    """Open tickets that stay unresolved, and take their batches off the queue."""
    tx = Transaction(connection, database_now)
    for number in range(SUBJECTS):
        subject = _subject(number)
        opened = [
            opening(f"now-{one}", subject=subject, severity=Severity.WARNING)
            for one in range(UNRESOLVED // SUBJECTS)
        ]
        known = watch(tx, subject)
        save_cycle(tx, subject, known.revision, Changes(tuple(opened)))
    connection.execute(text("UPDATE batches SET queued = false WHERE queued"))
