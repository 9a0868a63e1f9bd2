"""Alembic's entry: runs on the connection that `midwatch.store.upgrade` hands over."""

from __future__ import annotations

from alembic import context

from midwatch.store import upgrade as _indexes  # noqa: F401
from midwatch.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
