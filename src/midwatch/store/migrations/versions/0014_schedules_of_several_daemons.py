"""Schedules of one name in the settings of several daemons: a row for each of their definitions.

Rows from before have no fingerprint, which only the settings tell; the first daemon with a schedule of that name takes them over.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from midwatch.store.schema import Instant

revision = "0014"
down_revision = "0013"

_SCHEDULES = "name, definition, seen_until, missed"
_RUNS = "schedule, at, state, session_id, reason, claimed_at"


def upgrade() -> None:
    # SQLite cannot change a primary key.
    op.drop_index("scheduled_runs_claimed", "scheduled_runs")
    op.rename_table("schedules", "earlier_schedules")
    op.rename_table("scheduled_runs", "earlier_runs")
    if op.get_bind().dialect.name == "postgresql":  # the new tables get these names
        op.drop_constraint("schedules_pkey", "earlier_schedules")
        op.drop_constraint("scheduled_runs_pkey", "earlier_runs")
    op.create_table(
        "schedules",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("fingerprint", sa.Text(), primary_key=True),
        sa.Column("definition", sa.Text(), primary_key=True),
        sa.Column("seen_until", Instant(), nullable=False),
        sa.Column("missed", sa.Integer(), nullable=False),
        sa.Column("superseded", sa.Boolean(), nullable=False),
    )
    op.create_table(
        "scheduled_runs",
        sa.Column("schedule", sa.Text(), primary_key=True),
        sa.Column("fingerprint", sa.Text(), primary_key=True),
        sa.Column("at", Instant(), primary_key=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("claimed_at", Instant(), nullable=False),
    )
    op.execute(
        f"INSERT INTO schedules (fingerprint, superseded, {_SCHEDULES})"
        f" SELECT '', false, {_SCHEDULES} FROM earlier_schedules"
    )
    op.execute(
        f"INSERT INTO scheduled_runs (fingerprint, {_RUNS})"
        f" SELECT '', {_RUNS} FROM earlier_runs"
    )
    op.drop_table("earlier_schedules")
    op.drop_table("earlier_runs")
    op.create_index(
        "scheduled_runs_claimed",
        "scheduled_runs",
        ["claimed_at"],
        sqlite_where=sa.text("state = 'claimed'"),
        postgresql_where=sa.text("state = 'claimed'"),
    )
