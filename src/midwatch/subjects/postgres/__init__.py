"""The subject kind `postgres`. It needs a role with `pg_monitor` and nothing else."""

from midwatch.subjects.postgres.settings import INVARIANTS, PostgresSettings
from midwatch.subjects.postgres.subject import PostgresSubject

__all__ = ["INVARIANTS", "PostgresSettings", "PostgresSubject"]
