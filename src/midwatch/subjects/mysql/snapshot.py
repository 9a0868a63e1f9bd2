"""One moment of a server: what its statements returned, read in few round trips. The checks are pure over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from midwatch.errors import ObservationFailed
from midwatch.subjects.mysql import sql
from midwatch.subjects.mysql.connection import Connection, NotPermitted, QueryFailed
from midwatch.subjects.mysql.server_version import ServerVersion, replica_row
from midwatch.subjects.rows import Row

Rows = list[Row] | QueryFailed


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The rows of one moment by name, or why they are not known; see `rows`.

    `read` are the names: variables, status, metrics, counts, sessions, transactions, replicas, accounts, waits, metadata,
    last, columns, numbers, crashed, visible, background. One that was not needed is missing.
    """

    version: ServerVersion
    read: Mapping[str, Rows] = field(default_factory=dict)

    def rows(self, name: str) -> list[Row]:
        """Return the rows. Raises QueryFailed, or NotPermitted with the remedy."""
        found = self.read.get(name, [])
        if isinstance(found, ObservationFailed):
            raise found
        return found

    def known(self, name: str) -> list[Row]:
        """Return the rows, none where they are not known."""
        found = self.read.get(name, [])
        return [] if isinstance(found, ObservationFailed) else found

    def variable(self, name: str) -> str:
        """Return a global variable, empty without it. Raises QueryFailed."""
        return value_of(self.rows("variables"), name)

    def number(self, name: str) -> float | None:
        """Return a counter of the server's status, or None where it has none. Raises QueryFailed."""
        return _number(value_of(self.rows("status"), name))

    def metric(self, name: str) -> float | None:
        """Return a counter of INNODB_METRICS, or None where it is missing or off. Raises QueryFailed."""
        for row in self.rows("metrics"):
            if row["name"] == name and str(row["status"]).lower() in ("enabled", "1"):
                return _number(str(row["value"]))
        return None


def value_of(rows: Sequence[Row], name: str) -> str:
    """Return the value of a row of SHOW VARIABLES or SHOW STATUS, empty without it."""
    folded = name.lower()
    for row in rows:
        if str(row["Variable_name"]).lower() == folded:
            return str(row["Value"])
    return ""


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


METADATA_STATES = ("metadata lock", "global read lock", "backup lock", "commit lock")
"""What the state of a session that waits for a metadata lock ends in."""


def waits_for_metadata(row: Row) -> bool:
    state = str(row["state"] or "").lower()
    return state.startswith("waiting for") and state.endswith(METADATA_STATES)


async def take(
    connection: Connection, *, tables: bool = False, background: bool = False
) -> Snapshot:
    """Read one moment: one round trip, and another one where sessions wait.

    Args:
        connection: An open connection.
        tables: Whether the tables are looked through too.
        background: Whether the variables that were set are read too.

    Raises:
        QueryFailed: Never; each name has its own.
    """
    version = connection.version
    statements = {
        "variables": sql.SHOW_VARIABLES,
        "status": sql.SHOW_STATUS,
        "counts": sql.session_counts(version),
        "transactions": sql.TRANSACTIONS,
        "sessions": sql.sessions(version, connection.account),
        "replicas": version.replicas,
        "accounts": sql.ACCOUNTS,
    }
    if not version.mariadb:
        statements["metrics"] = sql.METRICS
    if background:
        statements["background"] = sql.changed_variables(version)
    if tables:
        statements["columns"] = sql.AUTO_INCREMENT_COLUMNS
        statements["numbers"] = sql.next_numbers(version)
        statements["visible"] = sql.ALL_TABLES
        statements["crashed"] = sql.CRASHED_TABLES
    read = await _read(connection, statements)
    replicas = read["replicas"]
    if isinstance(replicas, list):
        read["replicas"] = [replica_row(row) for row in replicas]
    snapshot = Snapshot(version, read)
    if more := _about_waits(snapshot):
        read |= await _read(connection, more)
        metadata = read.get("plugin")
        if isinstance(metadata, list) and not snapshot.known("metadata"):
            read["metadata"] = metadata
    return snapshot


async def _read(
    connection: Connection, statements: Mapping[str, str]
) -> dict[str, Rows]:
    found = await connection.batch(list(statements.values()))
    return dict(zip(statements, found, strict=True))


def _about_waits(seen: Snapshot) -> dict[str, str]:
    """Return the statements that are needed only while sessions wait or are idle in a transaction."""
    version, more = seen.version, dict[str, str]()
    if any(row["trx_state"] == "LOCK WAIT" for row in seen.known("transactions")):
        more["waits"] = sql.lock_waits(version)
    sessions = seen.known("sessions")
    if any(map(waits_for_metadata, sessions)):
        if version.schema:
            more["metadata"] = sql.METADATA_LOCKS
        if version.mariadb:
            more["plugin"] = sql.METADATA_LOCK_INFO
    idle = [int(row["id"]) for row in sessions if row["command"] == "Sleep"]
    if idle and version.schema:
        more["last"] = sql.last_statements(idle)
    return more


def needs_process(seen: Snapshot) -> None:
    """Raise NotPermitted where the account sees its own sessions only."""
    found = seen.read.get("transactions")
    if isinstance(found, NotPermitted):
        raise found
