"""Actions that a person approved, and how each ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from midwatch.store.schema import Id, Instant

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    document = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    op.create_table(
        "action_runs",
        sa.Column("id", Id, primary_key=True),
        sa.Column("ticket_id", Id, sa.ForeignKey("tickets.id"), nullable=False),
        sa.Column("proposal", sa.Text(), nullable=False),
        sa.Column("diagnosis_id", Id, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("target", document, nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("approved_by", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("approved_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=False),
        sa.Column("run_by", sa.Text()),
        sa.Column("process", sa.Text()),
        sa.Column("started_at", Instant()),
        sa.Column("until", Instant()),
        sa.Column("ended_at", Instant()),
        sa.Column("output", sa.Text()),
    )
    op.create_index(
        "action_runs_once", "action_runs", ["ticket_id", "proposal"], unique=True
    )
