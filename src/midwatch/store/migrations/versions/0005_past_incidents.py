"""Past incidents, and the index of their words."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import OperationalError

from midwatch.store.memory import texts_of, words_of
from midwatch.store.schema import Document

revision = "0005"
down_revision = "0004"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_CHUNK = 500


def upgrade() -> None:
    op.create_table(
        "past_incidents",
        sa.Column("ticket_id", _ID, nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("invariant", sa.Text(), nullable=False),
        sa.Column("component", sa.Text(), nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["ticket_id"], ["tickets.id"]),
        sa.PrimaryKeyConstraint("ticket_id"),
    )
    _remember_all(op.get_bind())
    key = ["subject", "invariant", "component", "ticket_id"]
    op.create_index("past_incidents_key", "past_incidents", key)
    op.create_index(
        "past_incidents_subject",
        "past_incidents",
        ["subject", "invariant", "ticket_id"],
    )
    op.create_index(
        "past_incidents_invariant", "past_incidents", ["invariant", "ticket_id"]
    )
    if op.get_bind().dialect.name == "postgresql":
        # Without a list of pending entries, which each search would read.
        op.execute(
            "CREATE INDEX past_words ON past_incidents USING gin"
            " (array_to_tsvector(string_to_array(words, ' '))) WITH (fastupdate = off)"
        )
        return
    try:
        op.execute("CREATE VIRTUAL TABLE past_words USING fts5(words)")
    except OperationalError:
        return  # this SQLite has no FTS5
    op.execute(
        "INSERT INTO past_words (rowid, words) SELECT ticket_id, words FROM past_incidents"
    )


def _remember_all(connection: sa.Connection) -> None:
    """Add the tickets that were resolved with an answered diagnosis or by hand."""
    tickets = sa.table(
        "tickets",
        sa.column("id"),
        *(sa.column(name) for name in ("subject", "invariant", "component")),
        *(sa.column(name) for name in ("message", "resolution", "status")),
        sa.column("facts", Document()),
        sa.column("diagnosis_id"),
    )
    diagnoses = sa.table(
        "diagnoses",
        sa.column("id"),
        sa.column("outcome"),
        sa.column("answer", Document()),
    )
    past = sa.table(
        "past_incidents",
        *(sa.column(name) for name in ("ticket_id", "subject", "invariant")),
        *(sa.column(name) for name in ("component", "words")),
    )
    answered = sa.and_(
        diagnoses.c.id == tickets.c.diagnosis_id, diagnoses.c.outcome == "answered"
    )
    by_itself = "the invariant was observed to hold again"
    statement = (
        sa.select(tickets, diagnoses.c.answer)
        .select_from(tickets.outerjoin(diagnoses, answered))
        .where(
            tickets.c.status == "resolved",
            sa.or_(diagnoses.c.id.is_not(None), tickets.c.resolution != by_itself),
        )
        .order_by(tickets.c.id)
        .limit(_CHUNK)
    )
    last = 0
    while rows := connection.execute(statement.where(tickets.c.id > last)).all():
        last = rows[-1].id
        connection.execute(
            past.insert(),
            [
                {
                    "ticket_id": row.id,
                    "subject": row.subject,
                    "invariant": row.invariant,
                    "component": row.component,
                    "words": " ".join(words_of(texts_of(row, row.answer))),
                }
                for row in rows
            ],
        )
