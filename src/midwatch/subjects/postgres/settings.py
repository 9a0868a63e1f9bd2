"""Settings and invariants of the subject kind `postgres`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from midwatch.model import Invariant, Severity, Unit
from midwatch.setting_group import Bytes, Seconds
from midwatch.settings import SubjectSettings
from midwatch.subjects.actionable import ActionSettings


class PostgresActionSettings(ActionSettings):
    """What Midwatch may do to the server once a person has approved it; nothing by default."""

    allow: list[Literal["cancel_backend", "terminate_backend", "reload"]] = Field(
        default=[],
        description="The actions that a person may approve: cancel_backend, terminate_backend, reload.",
    )
    dsn: SecretStr | None = Field(
        None,
        description="The DSN of a role that may do it: with pg_read_all_stats and pg_signal_backend for sessions, EXECUTE on "
        "pg_reload_conf() for reload. The role of the monitor stays as it is.",
    )

    @model_validator(mode="after")
    def _has_dsn(self) -> Self:
        if self.allow and self.dsn is None:
            raise ValueError("actions need a role of their own: set actions.dsn")
        return self


class PostgresSettings(SubjectSettings):
    """A PostgreSQL server, observed through one of its databases.

    The DSN must name the server itself, not a pooler: otherwise the limits and sessions of the
    pooler would be checked.
    """

    kind: Literal["postgres"] = "postgres"
    dsn: SecretStr = Field(
        description="postgresql://user:password@host/database or libpq's key=value form."
    )
    log_file: Path | None = Field(
        None,
        description="The server's current log, where this machine can read it: plain text, csvlog (`.csv`) or "
        "jsonlog (`.json`). Without one, the log is read through the server if the role may.",
    )
    connect_timeout: Seconds = Field(
        3.0, gt=0, le=60, description="Timeout of one connection attempt."
    )
    statement_timeout: Seconds = Field(
        2.0, ge=0.01, le=60, description="Timeout of each statement of the monitor."
    )
    event_window: Seconds = Field(
        300.0,
        ge=0,
        description="How long a deadlock or a log line counts; "
        "0 counts from one observation to the next.",
    )
    growth_window: Seconds = Field(
        3600.0, gt=0, description="The period that database_growth is measured over."
    )
    dead_tuples_floor: int = Field(
        10_000, ge=0, description="Tables with fewer dead rows are not checked."
    )
    replication_lag_bytes: Bytes = Field(
        1_000_000_000.0,
        ge=0,
        description="A standby this many bytes behind breaks replication_lag, regardless of the seconds.",
    )
    actions: PostgresActionSettings = Field(
        PostgresActionSettings(),
        description="What Midwatch may do to it once a person has approved it.",
    )


# ------------------------------------------------------------------ invariants

CRITICAL, WARNING = Severity.CRITICAL, Severity.WARNING

_SESSION = ("application", "role", "database")
# They read for hours on purpose; pg_dump also keeps a transaction open while others of its processes read.
_BACKUP_TOOLS: tuple[dict[str, str], ...] = tuple(
    {"application": pattern}
    for pattern in (
        "pg_dump*",
        "pg_basebackup*",
        "pg[bB]ack[rR]est*",
        "[bB]arman*",
        "wal-g*",
        "wal-e*",
        "pg_probackup*",
        "pghoard*",
    )
)

# What a restart, a person and a clean-up of sessions write; a server that is down is another ticket.
_ORDINARY_ERRORS: tuple[dict[str, str], ...] = tuple(
    {"message": pattern}
    for pattern in (
        "the database system is *",
        "terminating connection due to administrator command*",
        "canceling statement due to user request*",
    )
)

INVARIANTS: tuple[Invariant, ...] = (
    Invariant(
        "reachable",
        "The server answers",
        "A connection is made and a trivial statement answered within connect_timeout. A server "
        "that is full (too many clients) does answer; a refused login is an error in the "
        "settings, not a violation.",
        severity=CRITICAL,
        vital=True,
    ),
    Invariant(
        "connections",
        "Connections stay below the limit",
        "Client connections as a share of max_connections less the reserved ones; also of the "
        "limits set for single databases and roles (a warning at most). Above 90% a burst exhausts "
        "them; a connection refused for lack of a slot counts as 100%. Midwatch's own sessions and the "
        "limit of its role do not count.",
        severity=CRITICAL,
        unit=Unit.RATIO,
        limit=0.9,
        about=("database", "role"),
    ),
    Invariant(
        "blocked_sessions",
        "No session waits long for a lock",
        "The longest wait for a lock, per database. The ticket names the root of the longest queue: the "
        "session that blocks the others and does not wait itself. Waits for advisory locks are a ticket "
        "of their own, a warning at most: applications use them to elect a leader.",
        severity=CRITICAL,
        unit=Unit.SECONDS,
        limit=10,
        about=(
            *_SESSION,
            "lock_type",
            "table",
            "blocker_application",
            "blocker_role",
        ),
    ),
    Invariant(
        "idle_in_transaction",
        "No transaction is left open and idle",
        "How long the worst session has been idle inside a transaction, per database. It keeps "
        "its locks and holds vacuum back. Backup tools do not count. Needs track_activities.",
        unit=Unit.SECONDS,
        limit=60,
        about=_SESSION,
        ignore=_BACKUP_TOOLS,
    ),
    Invariant(
        "long_queries",
        "No statement runs too long",
        "How long the longest statement has been running, per database. Replication, background "
        "work, backup tools, statements that wait for a lock (see blocked_sessions) and the monitor's own do "
        "not count. Needs track_activities.",
        unit=Unit.SECONDS,
        limit=300,
        about=_SESSION,
        ignore=_BACKUP_TOOLS,
    ),
    Invariant(
        "deadlocks",
        "No deadlocks",
        "Deadlocks within event_window, per database, by the counter in pg_stat_database. "
        "Needs track_counts.",
        unit=Unit.COUNT,
        limit=0,
        about=("database",),
    ),
    Invariant(
        "transaction_id_age",
        "Transaction ids are far from running out",
        "Age of the oldest transaction id or multixact not yet frozen as a share of 2^31, per database. "
        "At 100% the server refuses writes. An anti-wraparound vacuum starts at 9% "
        "(autovacuum_freeze_max_age), so 40% means that it has not completed for a long time.",
        unit=Unit.RATIO,
        limit=0.4,
        about=("database",),
    ),
    Invariant(
        "dead_tuples",
        "Vacuum keeps up with dead rows",
        "Dead rows as a share of all rows, per table of the DSN's database that has at least "
        "dead_tuples_floor of them. Autovacuum starts at 20% by default; 40% means that it "
        "does not keep up. Needs track_counts; unknown on a standby, and for a table whose statistics were "
        "reset until it is analyzed.",
        unit=Unit.RATIO,
        limit=0.4,
        hold_for=300,
        about=("table", "schema", "database"),
    ),
    Invariant(
        "replication_lag",
        "Standbys keep up",
        "How far the replay of each standby is behind in time; more than replication_lag_bytes "
        "behind breaks it too. On a standby itself: the age of what was last replayed "
        "while there is more to replay, and the time without a connection to its primary. A standby that was "
        "connected and is not is unknown, and breaks it after the limit, until it returns, its slot is dropped "
        "or it is ignored.",
        unit=Unit.SECONDS,
        limit=60,
        hold_for=60,
        about=("standby", "client", "slot"),
    ),
    Invariant(
        "inactive_slots",
        "No unused slot keeps the write-ahead log",
        "Write-ahead log kept for each replication slot without a reader. It grows until the "
        "disk is full. A slot that was invalidated breaks it regardless of its size. Temporary slots, and "
        "those that a standby synchronises from its primary, do not count.",
        unit=Unit.BYTES,
        limit=1_000_000_000,
        hold_for=300,
        about=("slot", "slot_type", "database"),
    ),
    Invariant(
        "database_growth",
        "Databases grow at a usual pace",
        "Bytes that a database grew by within growth_window (an hour), per database. Unknown "
        "until two sizes have been taken.",
        unit=Unit.BYTES,
        limit=10_000_000_000,
        about=("database",),
    ),
    Invariant(
        "log_errors",
        "The log has no line about a crash",
        "Lines within event_window about a crashed process, a panic, exhausted memory, processes or disk, "
        "removed write-ahead log or damaged data, per kind. Needs log_file, or a role that may read the "
        "log through the server. From jsonlog and csvlog no client can forge a line; plain text is split "
        "by log_line_prefix. In another language than English, only PANIC and SQLSTATEs are recognised.",
        severity=CRITICAL,
        unit=Unit.COUNT,
        limit=0,
        about=("kind", "database", "role", "application"),
    ),
    Invariant(
        "log_error_storm",
        "Errors in the log are as frequent as usual",
        "Errors of one shape (numbers and literals do not count) within event_window, if the shape is new or ten times "
        "as frequent as usual. What is usual is learned from the log, over about an hour. Lines of log_errors and of Midwatch's own "
        "sessions do not count. Needs the log, as log_errors.",
        unit=Unit.COUNT,
        limit=20,
        about=("message", "state", "database", "role", "application"),
        ignore=_ORDINARY_ERRORS,
    ),
    Invariant(
        "checksum_failures",
        "No page fails its checksum",
        "Damaged pages since the statistics were reset, per database, by the counter in pg_stat_database: "
        "also those that left no line in the log. It holds again after pg_stat_reset() in that database. "
        "Needs track_counts.",
        severity=CRITICAL,
        unit=Unit.COUNT,
        limit=0,
        about=("database",),
    ),
)
