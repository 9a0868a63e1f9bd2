"""The entry of alembic: runs migrations on the connection that `midwatch.store.upgrade` passes."""

from __future__ import annotations

from alembic import context

from midwatch.store import indexes  # noqa: F401
from midwatch.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
