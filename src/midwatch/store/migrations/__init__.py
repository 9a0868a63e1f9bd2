"""The migrations, which `midwatch db upgrade` runs through alembic."""
