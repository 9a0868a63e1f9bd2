"""The times of schedules: how far they were looked at, and what became of each."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from midwatch.store.schema import Instant

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("definition", sa.Text(), nullable=False),
        sa.Column("seen_until", Instant(), nullable=False),
        sa.Column("missed", sa.Integer(), nullable=False),
    )
    op.create_table(
        "scheduled_runs",
        sa.Column("schedule", sa.Text(), primary_key=True),
        sa.Column("at", Instant(), primary_key=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("claimed_at", Instant(), nullable=False),
    )
    op.create_index(
        "scheduled_runs_claimed",
        "scheduled_runs",
        ["claimed_at"],
        sqlite_where=sa.text("state = 'claimed'"),
        postgresql_where=sa.text("state = 'claimed'"),
    )
