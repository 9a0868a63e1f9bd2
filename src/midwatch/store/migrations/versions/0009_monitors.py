"""The monitors that share the subjects, and who watches each."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from midwatch.store.schema import Instant

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    names = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    op.create_table(
        "monitors",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("knows", names, nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("renewed_at", Instant(), nullable=False),
        sa.Column("lease", sa.Float(), nullable=False),
        sa.Column("given", sa.Integer(), nullable=False),
    )
    op.add_column("subjects", sa.Column("watcher", sa.Text(), nullable=True))
    op.create_index("subjects_watcher", "subjects", ["watcher"])
