"""Indexes and sums with which nothing that is read grows with the age of a database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

from midwatch.store.schema import Instant, database_now

revision = "0007"
down_revision = "0006"

_TOKENS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
)
_PER_WORD = 40
_KEY = ["subject", "invariant"]
_PLACE = ["opened_at", "id"]
_INDEXES = {
    "tickets_urgency": ("tickets", ["severity", *_PLACE]),
    "tickets_subject": ("tickets", ["subject", "severity", *_PLACE]),
    "tickets_invariant": ("tickets", ["invariant", "severity", *_PLACE]),
    "tickets_subject_invariant": ("tickets", [*_KEY, "severity", *_PLACE]),
    "tickets_key": ("tickets", [*_KEY, "component", *_PLACE]),
    "deliveries_state": ("deliveries", ["state", "created_at", "id"]),
    "delivery_threads_updated": ("delivery_threads", ["updated_at"]),
    "investigations_created": ("investigations", ["created_at", "id"]),
    "sessions_phase": ("sessions", ["phase", "created_at", "id"]),
    "tokens_parent": ("tokens", ["parent_id"]),
    "tokens_end": ("tokens", ["expires_at"]),
}


def upgrade() -> None:
    # What takes long comes first, as it only reads: writers wait for the indexes alone.
    postgres = op.get_bind().dialect.name == "postgresql"
    _create_sums()
    if postgres:
        op.execute("SET LOCAL work_mem = '64MB'")
        op.execute("SET LOCAL maintenance_work_mem = '256MB'")
        _index_words()
    _sum(postgres)
    for name, (table, columns) in _INDEXES.items():
        op.create_index(name, table, columns)
    unsettled = sa.text("outcome IN ('running', 'lost', 'late')")
    op.create_index(
        "diagnoses_unsettled",
        "diagnoses",
        ["started_at"],
        sqlite_where=unsettled,
        postgresql_where=unsettled,
    )
    op.drop_index("alerts_firing", "alerts")
    in_question = sa.text("status != 'resolved'")
    op.create_index(
        "alerts_in_question",
        "alerts",
        ["subject", "invariant", "component"],
        sqlite_where=in_question,
        postgresql_where=in_question,
    )
    op.drop_index("tickets_past", "tickets")
    op.drop_index("tickets_opened", "tickets")
    op.create_index("tickets_opened", "tickets", _PLACE)
    if postgres:
        op.drop_index("past_incidents_words", "past_incidents")
    else:
        # As statements have it: SQLite uses a partial index only for its own condition.
        op.drop_index("batches_queue", "batches")
        order = ["severity", "opened_at", "id"]
        queued = sa.text("queued = 1")
        op.create_index("batches_queue", "batches", order, sqlite_where=queued)


def _index_words() -> None:
    """Replace the index of tsvectors, which returns all that have a word, by a table in the order of age."""
    op.execute("ALTER INDEX past_words RENAME TO past_incidents_words")
    op.create_table(
        "past_words",
        sa.Column("word", sa.Text(), nullable=False),
        sa.Column("ticket_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("word", "ticket_id"),
    )
    op.execute(
        "INSERT INTO past_words (word, ticket_id) SELECT word, ticket_id FROM"
        " (SELECT word, ticket_id, row_number() OVER (PARTITION BY word ORDER BY ticket_id DESC) AS place FROM"
        " (SELECT DISTINCT word, ticket_id FROM past_incidents, unnest(string_to_array(words, ' ')) AS word"
        " WHERE word <> '') AS found) AS ordered"
        f" WHERE place <= {_PER_WORD}"
    )


def _columns(kind: TypeEngine[Any], *names: str) -> Iterator[sa.Column[Any]]:
    return (sa.Column(name, kind, nullable=False) for name in names)


def _create_sums() -> None:
    op.create_table(
        "hourly_tickets",
        *_columns(Instant(), "hour"),
        *_columns(sa.Text(), "invariant"),
        *_columns(sa.Integer(), "opened"),
        sa.PrimaryKeyConstraint("hour", "invariant"),
    )
    op.create_table(
        "hourly_calls",
        *_columns(Instant(), "hour"),
        *_columns(sa.Text(), "outcome"),
        *_columns(sa.Integer(), "calls"),
        *_columns(sa.BigInteger(), *_TOKENS),
        *_columns(sa.Float(), "cost_usd"),
        sa.PrimaryKeyConstraint("hour", "outcome"),
    )
    op.create_table(
        "summed",
        *_columns(sa.Text(), "name"),
        *_columns(Instant(), "until"),
        sa.PrimaryKeyConstraint("name"),
    )


def _sum(postgres: bool) -> None:
    """Sum the hours that ended long ago; daemons add the others."""
    connection = op.get_bind()
    until = database_now(connection).replace(minute=0, second=0, microsecond=0)
    until -= timedelta(hours=6)
    limit = sa.bindparam("until", until, type_=Instant())
    tokens = ", ".join(f"sum({name})" for name in _TOKENS)
    for name, statement in (
        (
            "tickets",
            f"INSERT INTO hourly_tickets SELECT {_hour('opened_at', postgres)} AS hour, invariant, count(*)"
            " FROM tickets WHERE opened_at < :until GROUP BY 1, 2",
        ),
        (
            "calls",
            f"INSERT INTO hourly_calls SELECT {_hour('started_at', postgres)} AS hour, outcome, count(*), {tokens},"
            " sum(cost_usd) FROM diagnoses WHERE started_at < :until"
            " AND outcome NOT IN ('running', 'lost', 'late') GROUP BY 1, 2",
        ),
    ):
        connection.execute(sa.text(statement).bindparams(limit))
        row = sa.text("INSERT INTO summed VALUES (:name, :until)").bindparams(limit)
        connection.execute(row, {"name": name})


def _hour(column: str, postgres: bool) -> str:
    if postgres:
        return f"date_trunc('hour', {column} AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    return f"{column} / 3600000 * 3600000"
