"""What a subject of kind `postgres` can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from ...settings import SubjectSettings
from ...units import Bytes, Seconds


class PostgresSettings(SubjectSettings):
    """A PostgreSQL server, seen through one of its databases.

    Let the DSN lead to the server itself, not to a pooler: a pooler's own limits and
    sessions would be watched in its place.
    """

    kind: Literal["postgres"] = "postgres"
    dsn: SecretStr = Field(
        description="postgresql://user:password@host/database or libpq's key=value form."
    )
    log_file: Path | None = Field(
        None,
        description="The server's log in plain text, where this machine can read it. Without one, "
        "the log is read through pg_read_file if the role may.",
    )
    connect_timeout: Seconds = Field(
        3.0, gt=0, le=60, description="Wall clock of one connection attempt."
    )
    statement_timeout: Seconds = Field(
        2.0, ge=0.01, le=60, description="Limit of each statement of ours."
    )
    event_window: Seconds = Field(
        300.0,
        ge=0,
        description="A deadlock or a log line counts for so long after it was seen; "
        "0 counts from one look to the next.",
    )
    growth_window: Seconds = Field(
        3600.0, gt=0, description="The period that database_growth is measured over."
    )
    dead_tuples_floor: int = Field(
        10_000, ge=0, description="Tables with fewer dead rows are left alone."
    )
    replication_lag_bytes: Bytes = Field(
        1_000_000_000.0,
        ge=0,
        description="A standby this far behind breaks replication_lag, whatever the seconds.",
    )
