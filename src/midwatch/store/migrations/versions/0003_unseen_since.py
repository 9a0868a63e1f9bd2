"""When a ticket's subject was last observed before the violation was first seen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from midwatch.store.schema import Instant

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("tickets", sa.Column("unseen_since", Instant(), nullable=True))
