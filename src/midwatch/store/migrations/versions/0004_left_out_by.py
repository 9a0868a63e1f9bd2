"""The last diagnosis of a ticket's batch that did not name the ticket."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from midwatch.store.schema import Id

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("tickets", sa.Column("left_out_by", Id, nullable=True))
