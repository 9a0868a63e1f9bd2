"""Alembic's folder; `midwatch db upgrade` runs it on a connection that it is handed."""
