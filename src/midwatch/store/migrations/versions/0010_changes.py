"""The changes of watched systems, and how far repositories have been read for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from midwatch.store.schema import Id, Instant

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    document = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    texts = ("version_from", "version_to", "link", "author")
    op.create_table(
        "changes",
        sa.Column("id", Id, primary_key=True),
        sa.Column("dedup_key", sa.Text(), nullable=False, unique=True),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("since", Instant(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("labels", document, nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in texts),
        sa.Column("details", document, nullable=False),
        sa.Column("recorded_at", Instant(), nullable=False),
    )
    op.create_index("changes_at", "changes", ["at", "id"])
    op.create_index("changes_subject", "changes", ["subject", "at", "id"])
    op.create_table(
        "change_readings",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("state", document, nullable=False),
        sa.Column("read_at", Instant(), nullable=True),
        sa.Column("failed_at", Instant(), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
    )
