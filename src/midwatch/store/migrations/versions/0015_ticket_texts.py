"""The index of the texts of resolved tickets, on SQLite."""

from __future__ import annotations

from alembic import op

from midwatch.store.ticket_search import add_resolved_tickets, create_ticket_texts

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name == "sqlite" and create_ticket_texts(connection):
        add_resolved_tickets(connection)
