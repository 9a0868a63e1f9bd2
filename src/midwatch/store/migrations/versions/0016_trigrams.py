"""The index of the texts of resolved tickets, on PostgreSQL."""

from __future__ import annotations

from alembic import op

from midwatch.store.ticket_search import create_trigrams

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        create_trigrams(connection)
