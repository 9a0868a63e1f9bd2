"""Sessions and the transcripts of their conversations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from midwatch.store.schema import Instant

revision = "0002"
down_revision = "0001"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_INSTANT = Instant()
_DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_TRANSCRIPT = ["project_key", "session_id", "subpath"]


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("ticket_id", _ID, nullable=True),
        sa.Column("forked_from", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("interactive", sa.Boolean(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("cwd", sa.Text(), nullable=False),
        sa.Column("directories", _DOCUMENT, nullable=False),
        sa.Column("options", _DOCUMENT, nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("status", _DOCUMENT, nullable=True),
        sa.Column("cost_usd", sa.Float(), nullable=False),
        sa.Column("repositories", _DOCUMENT, nullable=False),
        sa.Column("runner", sa.Text(), nullable=True),
        sa.Column("heartbeat_at", _INSTANT, nullable=False),
        sa.ForeignKeyConstraint(["ticket_id"], ["tickets.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("sessions_created", "sessions", ["created_at", "id"])
    op.create_index("sessions_ticket", "sessions", ["ticket_id"])
    op.create_table(
        "transcript_entries",
        sa.Column("id", _ID, nullable=False),
        sa.Column("project_key", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("subpath", sa.Text(), nullable=False),
        sa.Column("uuid", sa.Text(), nullable=True),
        sa.Column("at", _INSTANT, nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "transcript_entries_order", "transcript_entries", [*_TRANSCRIPT, "id"]
    )
    op.create_index(
        "transcript_entries_once",
        "transcript_entries",
        [*_TRANSCRIPT, "uuid"],
        unique=True,
    )
