"""PostgreSQL as a subject: it needs a role with `pg_monitor` and nothing else."""

from .invariants import INVARIANTS
from .settings import PostgresSettings
from .subject import PostgresSubject

__all__ = ["INVARIANTS", "PostgresSettings", "PostgresSubject"]
