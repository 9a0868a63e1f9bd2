"""What MariaDB and MySQL name differently, by version. Pure.

Sources: the manuals of MariaDB (10.5 to 11) and of MySQL (5.7, 8.0, 8.4).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from midwatch.errors import Unsupported
from midwatch.subjects.rows import Row

_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


@dataclass(frozen=True, slots=True)
class ServerVersion:
    """The product and version of a server: `number` is (10, 11, 6), `schema` whether performance_schema is on."""

    mariadb: bool
    number: tuple[int, int, int]
    schema: bool = False

    @classmethod
    def parse(cls, version: str, schema: bool = False) -> ServerVersion:
        """Return that of @@version, or of the handshake. Raises Unsupported for one that is too old."""
        mariadb = "mariadb" in version.lower()
        # MariaDB up to 10 put this before its own version, for replicas that were MySQL.
        plain = version.removeprefix("5.5.5-") if mariadb else version
        found = _NUMBERS.match(plain)
        if found is None:
            raise Unsupported(
                f"the server's version {version[:60]!r} cannot be read",
                hint="use the address of the server itself, not of a proxy",
            )
        number = (int(found[1]), int(found[2]), int(found[3] or 0))
        if number < ((10, 5, 0) if mariadb else (5, 7, 0)):
            raise Unsupported(
                f"{version[:60]} is not supported",
                hint="MariaDB 10.5 or MySQL 5.7 or later is needed",
            )
        return cls(mariadb, number, schema)

    @property
    def product(self) -> str:
        return "MariaDB" if self.mariadb else "MySQL"

    @property
    def processlist(self) -> str:
        """The table of sessions. That of performance_schema takes no lock of the server's."""
        if not self.mariadb and self.schema and self.number >= (8, 0, 22):
            return "performance_schema.processlist"
        return "information_schema.PROCESSLIST"

    @property
    def session_seconds(self) -> str:
        return "p.TIME_MS / 1000" if self.mariadb else "p.TIME"

    @property
    def lock_waits_in_schema(self) -> bool:
        """Whether lock waits are in performance_schema (MySQL 8), not in information_schema."""
        return not self.mariadb and self.number >= (8, 0, 0)

    @property
    def replicas(self) -> str:
        """The statement for the replication channels."""
        if self.mariadb:
            return "SHOW ALL SLAVES STATUS"
        return (
            "SHOW REPLICA STATUS" if self.number >= (8, 0, 22) else "SHOW SLAVE STATUS"
        )

    @property
    def timeout_variable(self) -> tuple[str, float]:
        """The variable that ends a statement, and how many of its units are a second."""
        return (
            ("max_statement_time", 1) if self.mariadb else ("max_execution_time", 1000)
        )

    @property
    def table_statistics(self) -> str:
        """The table with the next AUTO_INCREMENT of each table that was opened."""
        old = self.mariadb or self.number < (8, 0, 0)
        return f"information_schema.INNODB_{'SYS_' if old else ''}TABLESTATS"

    @property
    def tablespaces(self) -> str:
        old = self.mariadb or self.number < (8, 0, 0)
        return f"information_schema.INNODB_{'SYS_' if old else ''}TABLESPACES"

    @property
    def grants(self) -> dict[str, str]:
        """What each invariant needs: the privilege, as GRANT names it, and on what."""
        replication = (
            "SLAVE MONITOR ON *.*" if self.mariadb else "REPLICATION CLIENT ON *.*"
        )
        return {"replication": replication, "process": "PROCESS ON *.*"}


# The names of MySQL 8.0.22 and later, in small letters, for those of before and of MariaDB.
_RENAMED = {
    "connection_name": "channel_name",
    "gtid_io_pos": "retrieved_gtid_set",
    "gtid_slave_pos": "executed_gtid_set",
}


def replica_row(row: Row) -> Row:
    """Return a row of a replication channel with the names of today: `replica_io_running`, `seconds_behind_source`."""
    found = {}
    for name, value in row.items():
        new = name.lower()
        new = _RENAMED.get(new) or new.replace("slave", "replica").replace(
            "master", "source"
        )
        found[new] = value
    return found
