"""The pull requests of tickets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from midwatch.store.schema import Id, Instant

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    documents = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    texts = ("branch", "base", "state")
    op.create_table(
        "pull_requests",
        sa.Column("id", Id, primary_key=True),
        sa.Column("ticket_id", Id, sa.ForeignKey("tickets.id"), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in texts),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("head", sa.Text(), nullable=True),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("waiting", sa.Text(), nullable=True),
        sa.Column("approved_by", sa.Text(), nullable=True),
        sa.Column("checks", sa.Text(), nullable=False),
        sa.Column("review", sa.Text(), nullable=False),
        sa.Column("seen", documents, nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("checked_at", Instant(), nullable=True),
        sa.Column("next_check_at", Instant(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("told_resolved_at", Instant(), nullable=True),
    )
    op.create_index(
        "pull_requests_one_per_attempt",
        "pull_requests",
        ["ticket_id", "repository", "attempt"],
        unique=True,
    )
    due = sa.text("next_check_at IS NOT NULL")
    op.create_index(
        "pull_requests_due",
        "pull_requests",
        ["next_check_at", "id"],
        sqlite_where=due,
        postgresql_where=due,
    )
