"""Settings and invariants of the subject kind `mysql`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from midwatch.model import Invariant, Severity, Unit
from midwatch.setting_group import Seconds
from midwatch.settings import SubjectSettings


class MysqlSettings(SubjectSettings):
    """A MariaDB or MySQL server.

    The address must be that of the server itself, not of a proxy: otherwise the limits and sessions of
    the proxy would be checked.
    """

    kind: Literal["mysql"] = "mysql"
    dsn: SecretStr | None = Field(
        None,
        description="mysql://user:password@host:3306, or with ?socket=/path; instead of the fields below.",
    )
    host: str | None = Field(
        None, description="Its host name or address.", min_length=1
    )
    port: int = Field(3306, ge=1, le=65535, description="Its port.")
    extra_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="MariaDB's extra_port, which is used when all connections are taken.",
    )
    socket: Path | None = Field(None, description="Its unix socket, instead of `host`.")
    user: str | None = Field(None, description="The account.", min_length=1)
    password: SecretStr | None = Field(None, description="Its password.")
    tls: Literal["off", "required", "verify"] | None = Field(
        None,
        description="`verify` checks the certificate and the host name, `required` only encrypts. Without it: `verify` "
        "where ca_file or client_certificate is given, else `off`. On a socket the certificate is not checked.",
    )
    ca_file: Path | None = Field(
        None, description="Certificate authorities to trust instead of the system's."
    )
    client_certificate: Path | None = Field(
        None, description="A PEM file with the certificate of the account, and its key."
    )
    client_key: Path | None = Field(
        None, description="A PEM file with the key, if `client_certificate` has none."
    )
    log_file: Path | None = Field(
        None,
        description="The server's error log, where this machine can read it. Without one, @@log_error is tried for a "
        "server on this machine.",
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
        description="How long a deadlock, a refused connection or a log line counts; "
        "0 counts from one observation to the next.",
    )
    tables_interval: Seconds = Field(
        600.0,
        ge=0,
        description="How often the tables are looked through (auto_increment, crashed_tables).",
    )

    @model_validator(mode="after")
    def _one_address(self) -> Self:
        if self.dsn is None and self.host is None and self.socket is None:
            raise ValueError("give the server's dsn, or its host or socket")
        if self.dsn is not None and (self.host or self.socket or self.user):
            raise ValueError("give either the dsn, or host, socket and user")
        if self.host is not None and self.socket is not None:
            raise ValueError("give either host or socket")
        if self.client_key and not self.client_certificate:
            raise ValueError("client_key needs client_certificate")
        return self


# ------------------------------------------------------------------ invariants

CRITICAL, WARNING = Severity.CRITICAL, Severity.WARNING

_SESSION = ("user", "client", "database", "statement")
# They read for hours on purpose. mysqldump and mariadb-dump write this comment into each of their SELECTs.
_BACKUPS: tuple[dict[str, str], ...] = (
    {"statement": "SELECT /[*]!40001 SQL_NO_CACHE [*]/*"},
    {"user": "*backup*"},
)

INVARIANTS: tuple[Invariant, ...] = (
    Invariant(
        "reachable",
        "The server answers",
        "A connection is made and a trivial statement answered within connect_timeout. A server that is full "
        "(Too many connections) does answer; a refused login is an error in the settings, not a violation.",
        severity=CRITICAL,
        vital=True,
    ),
    Invariant(
        "connections",
        "Connections stay below the limit",
        "Connections as a share of max_connections; also of the limits of single users (MAX_USER_CONNECTIONS, a "
        "warning at most). Above 90% a burst exhausts them; a connection that was refused for lack of one within "
        "event_window counts as 100%.",
        severity=CRITICAL,
        unit=Unit.RATIO,
        limit=0.9,
        about=("user",),
    ),
    Invariant(
        "refused_logins",
        "Few logins fail",
        "Connection attempts that failed within event_window (Aborted_connects): wrong passwords, connections "
        "that are opened and closed without a login, as some load balancers do to check a port.",
        unit=Unit.COUNT,
        limit=100,
    ),
    Invariant(
        "blocked_sessions",
        "No session waits long for a lock",
        "The longest wait for a row, a table or its metadata, per database. The ticket names the root of the longest "
        "queue: the session that blocks the others and does not wait itself. Who holds a metadata lock is known "
        "exactly with performance_schema or the plugin METADATA_LOCK_INFO; else the open transactions that can hold it are named. "
        "Waits for user locks (GET_LOCK) are a ticket of their own, a warning at most.",
        severity=CRITICAL,
        unit=Unit.SECONDS,
        limit=10,
        about=("user", "client", "database", "lock_type", "table", "blocker_user"),
    ),
    Invariant(
        "idle_in_transaction",
        "No transaction is left open and idle",
        "How long the worst session has done nothing inside an InnoDB transaction, per database. It keeps its "
        "locks, and purge cannot remove what it may still see.",
        unit=Unit.SECONDS,
        limit=60,
        about=_SESSION,
        ignore=_BACKUPS,
    ),
    Invariant(
        "long_queries",
        "No statement runs too long",
        "How long the longest statement has been running, per database. Replication, work of the server itself, dumps "
        "and statements that wait for a lock (see blocked_sessions) do not count.",
        unit=Unit.SECONDS,
        limit=300,
        about=_SESSION,
        ignore=_BACKUPS,
    ),
    Invariant(
        "long_transactions",
        "No transaction stays open for hours",
        "How long the oldest InnoDB transaction has been open, per database, whatever it does. Replication and dumps do not count.",
        unit=Unit.SECONDS,
        limit=3600,
        about=_SESSION,
        ignore=_BACKUPS,
    ),
    Invariant(
        "deadlocks",
        "No deadlocks",
        "Deadlocks within event_window, by the counter of InnoDB.",
        unit=Unit.COUNT,
        limit=0,
    ),
    Invariant(
        "replication_running",
        "Replication runs",
        "Both threads of each replication channel of this server: the one that receives (IO) and the one that applies "
        "(SQL). One that stopped with an error is critical at once; one that somebody stopped, or that tries to connect "
        "for a minute, is a warning.",
        severity=CRITICAL,
        about=("channel", "source"),
    ),
    Invariant(
        "replication_lag",
        "Replicas keep up",
        "How far this server's replay is behind its source, per channel, without a delay that is set on purpose "
        "(MASTER_DELAY, SOURCE_DELAY). Unknown while a thread is stopped.",
        unit=Unit.SECONDS,
        limit=60,
        hold_for=60,
        about=("channel", "source"),
    ),
    Invariant(
        "replica_read_only",
        "A replica takes no writes of clients",
        "read_only is on where this server replicates from another one. Disable it where sources replicate from each "
        "other on purpose.",
        hold_for=60,
    ),
    Invariant(
        "cluster",
        "The node takes part in its cluster",
        "A Galera node belongs to the primary component, is ready and synced. Only where wsrep_on is ON.",
        severity=CRITICAL,
    ),
    Invariant(
        "history_length",
        "Purge keeps up",
        "The length of InnoDB's history list: old versions of rows that are not removed yet, because of an old "
        "transaction or of purge that is too slow. Reads become slower and the undo log grows.",
        unit=Unit.COUNT,
        limit=1_000_000,
        hold_for=60,
    ),
    Invariant(
        "slow_queries",
        "Few statements are slow",
        "Statements slower than long_query_time within event_window, as a share of all; below 20 slow ones it holds.",
        unit=Unit.RATIO,
        limit=0.05,
        hold_for=60,
    ),
    Invariant(
        "innodb_waits",
        "No statement waits for InnoDB's memory",
        "Waits within event_window for a free page of the buffer pool (Innodb_buffer_pool_wait_free) and for space "
        "in the log buffer (Innodb_log_waits): writes come faster than the disk takes them.",
        unit=Unit.COUNT,
        limit=100,
    ),
    Invariant(
        "buffer_pool_misses",
        "The buffer pool has what is read",
        "Reads within event_window that had to go to the disk, as a share of all; with fewer than 10,000 of them it holds.",
        unit=Unit.RATIO,
        limit=0.1,
        hold_for=300,
    ),
    Invariant(
        "auto_increment",
        "No AUTO_INCREMENT is near its end",
        "The next number as a share of what the column's type can hold, per table of InnoDB that was opened since the "
        "start. At 100% every INSERT fails. Looked at every tables_interval.",
        unit=Unit.RATIO,
        limit=0.85,
        about=("database", "table"),
    ),
    Invariant(
        "crashed_tables",
        "No table is marked as crashed",
        "Tables that the server cannot open because they are damaged, such as Aria and MyISAM tables after a kill. "
        "Looked at every tables_interval. MySQL 8 and later do not show it: see log_errors.",
        severity=CRITICAL,
        about=("database", "table"),
    ),
    Invariant(
        "log_errors",
        "The error log has no line about a crash",
        "Lines within event_window about a crash, an assertion, exhausted memory or disk, damaged data or a crashed "
        "table, per kind. Needs log_file, or a server on this machine whose log is readable.",
        severity=CRITICAL,
        unit=Unit.COUNT,
        limit=0,
        about=("kind",),
    ),
)
