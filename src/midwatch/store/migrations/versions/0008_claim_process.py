"""The process that holds a claim: others on its host see when it has ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("batches", sa.Column("claim_process", sa.Text(), nullable=True))
