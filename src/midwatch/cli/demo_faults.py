"""The demo's system, a private PostgreSQL with a small shop on it, and the faults that break it.

Each fault breaks a real server, names its culprit, and can be undone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, LiteralString

import psycopg
import yaml
from psycopg import sql

from midwatch.errors import TemporaryError
from midwatch.testing.postgres import PrivatePostgres

# ------------------------------------------------------------------ the shop

_TABLES = """
CREATE TABLE orders (id bigint PRIMARY KEY, state text NOT NULL, changed timestamptz DEFAULT now());
INSERT INTO orders SELECT g, 'new' FROM generate_series(1, 2000) g;
"""
# The monitoring role reads statistics, and can connect when all other connections are taken.
_ROLES = """
CREATE ROLE shop LOGIN;
GRANT ALL ON ALL TABLES IN SCHEMA public TO shop;
CREATE ROLE midwatch LOGIN;
GRANT pg_monitor, pg_use_reserved_connections TO midwatch;
"""
_SERVER: dict[str, str | int | float | bool] = {
    "max_connections": 25,
    "reserved_connections": 5,
    "wal_level": "replica",
    "deadlock_timeout": "200ms",
    "log_lock_waits": "on",
    "log_line_prefix": "%m [%p] %u@%d %a ",
}


@contextmanager
def shop() -> Iterator[PrivatePostgres]:
    """Run a server with data and roles while the block runs; its files are removed afterwards."""
    with PrivatePostgres(settings=_SERVER) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("CREATE DATABASE shop")
        with psycopg.connect(server.dsn("shop"), autocommit=True) as admin:
            admin.execute(_TABLES)
            admin.execute(_ROLES)
        yield server


@contextmanager
def workload(server: PrivatePostgres, count: int = 2) -> Iterator[None]:
    """Run a light workload while the block runs; it continues through every failure of the server."""
    over = threading.Event()
    threads = [
        threading.Thread(
            target=_update_orders, args=(server, number, over), daemon=True
        )
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(5)


def _update_orders(server: PrivatePostgres, number: int, over: threading.Event) -> None:
    order = 100 + number
    while not over.wait(0.2):
        with suppress(psycopg.Error):
            with psycopg.connect(
                server.dsn("shop", "shop"),
                application_name=f"web-{number}",
                autocommit=True,
                connect_timeout=2,
            ) as connection:
                while not over.wait(0.05):
                    connection.execute(
                        "UPDATE orders SET state = 'new', changed = now() WHERE id = %s",
                        [order],
                    )


def write_settings(
    server: PrivatePostgres, folder: Path, port: int | None = None
) -> Path:
    """Write the demo's midwatch.yaml. Its limits are low, so that the demo takes seconds.

    Args:
        server: The server that it watches.
        folder: Where the file and the database are.
        port: The port of loopback at which the page is served; None for no page.
    """
    served = {} if port is None else {"server": {"listen": f"127.0.0.1:{port}"}}
    settings = {
        **served,
        "database": f"sqlite:///{folder / 'midwatch.db'}",
        "monitor": {"interval": "1s", "group_wait": "2s"},
        "agent": {"poll_interval": "1s"},
        "log": {"format": "json"},
        "subjects": [
            {
                "name": "orders-db",
                "kind": "postgres",
                "dsn": server.dsn("shop", "midwatch"),
                "log_file": str(server.log_file),
                "event_window": "3s",
                "invariants": {
                    "blocked_sessions": {"limit": "2s"},
                    "idle_in_transaction": {"limit": "2s"},
                    "long_queries": {"limit": "2s"},
                    "inactive_slots": {"limit": "20MB", "for": "0s"},
                },
            }
        ],
    }
    file = folder / "midwatch.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return file


# ------------------------------------------------------------------ the faults

_MAX_WAIT = 20.0  # seconds until the server must be out of connections
_SEND: LiteralString = "UPDATE orders SET state = 'sent' WHERE id = 1"
_REPORT: LiteralString = "SELECT count(*) FROM orders a, orders b, orders c, orders d"
Connection = psycopg.Connection[tuple[object, ...]]


@dataclass(slots=True)
class FaultTarget:
    """The server that a fault breaks, with the connections and threads of the fault."""

    server: PrivatePostgres
    held: ExitStack = field(default_factory=ExitStack)
    threads: list[threading.Thread] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def connect(self, application: str, user: str = "shop") -> Connection:
        """Open a connection under an application name; it is closed at the end of the fault."""
        connection = psycopg.connect(
            self.server.dsn("shop", user),
            application_name=application,
            autocommit=True,
            connect_timeout=5,
        )
        self.held.callback(_close, connection)
        return connection

    def in_background(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread; a database error ends it silently."""

        def guarded() -> None:
            with suppress(psycopg.Error):
                work()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        self.threads.append(thread)

    def end_sessions(self, *applications: str) -> None:
        """Terminate sessions by application name, as an administrator would."""
        with psycopg.connect(self.server.dsn(), autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = ANY(%s)",
                [list(applications)],
            )

    def close(self) -> None:
        """Close connections and wait for threads."""
        self.over.set()
        self.held.close()
        for thread in self.threads:
            thread.join(5)


def _close(connection: Connection) -> None:
    with suppress(psycopg.Error):
        connection.close()


class Fault:
    """What breaks, the invariant that shows it, and how to begin and end it."""

    name: ClassVar[str]
    title: ClassVar[str]
    invariant: ClassVar[str]

    def inject(self, target: FaultTarget) -> Sequence[str]:
        """Begin the fault. Return the names that a correct diagnosis must contain."""
        raise NotImplementedError

    def remove(self, target: FaultTarget) -> None:
        """End the fault."""
        raise NotImplementedError


class LockPileUp(Fault):
    name = "lock-pile-up"
    title = "checkout-service updates an order, then sits idle in its transaction; others queue up behind it"
    invariant = "blocked_sessions"

    def inject(self, target: FaultTarget) -> Sequence[str]:
        culprit = target.connect("checkout-service")
        culprit.execute("BEGIN")
        culprit.execute("UPDATE orders SET state = 'paying' WHERE id = 1")
        for number in range(1, 4):
            waiting = target.connect(f"orders-api-{number}")
            target.in_background(partial(_run, waiting, _SEND))
        return [str(culprit.info.backend_pid), "checkout-service"]

    def remove(self, target: FaultTarget) -> None:
        target.end_sessions("checkout-service")


class ConnectionsExhausted(Fault):
    name = "connections"
    title = "report-exporter leaks connections until the server has none left"
    invariant = "connections"

    def inject(self, target: FaultTarget) -> Sequence[str]:
        deadline = time.monotonic() + _MAX_WAIT
        while time.monotonic() < deadline:
            try:
                target.connect("report-exporter")
            except psycopg.OperationalError:
                return ["report-exporter"]
        raise TemporaryError("the server never ran out of connections")

    def remove(self, target: FaultTarget) -> None:
        target.held.close()


class RunawayQuery(Fault):
    name = "runaway-query"
    title = "nightly-report joins a table with itself, three times, without a condition"
    invariant = "long_queries"

    def inject(self, target: FaultTarget) -> Sequence[str]:
        culprit = target.connect("nightly-report")
        target.in_background(partial(_run, culprit, _REPORT))
        return [str(culprit.info.backend_pid), "nightly-report"]

    def remove(self, target: FaultTarget) -> None:
        target.end_sessions("nightly-report")


class ServerKilled(Fault):
    name = "server-killed"
    title = "kill -9 of the server, as the kernel's out-of-memory killer does it"
    invariant = "reachable"

    def inject(self, target: FaultTarget) -> Sequence[str]:
        target.server.kill()
        return ["killed"]

    def remove(self, target: FaultTarget) -> None:
        target.server.restart()


class Deadlocks(Fault):
    name = "deadlocks"
    title = "two jobs lock the same two orders, each in its own order, again and again"
    invariant = "deadlocks"

    def inject(self, target: FaultTarget) -> Sequence[str]:
        for state, rows in (("refunded", (1, 2)), ("resent", (2, 1))):
            connection = target.connect(f"{state}-job")
            work = partial(_update_in_order, connection, state, rows, target.over)
            target.in_background(work)
        return ["refunded", "resent"]

    def remove(self, target: FaultTarget) -> None:
        target.over.set()


class InactiveSlot(Fault):
    name = "inactive-slot"
    title = "a standby was shut down for good; its replication slot keeps the write-ahead log"
    invariant = "inactive_slots"

    def inject(self, target: FaultTarget) -> Sequence[str]:
        with psycopg.connect(target.server.dsn("shop"), autocommit=True) as admin:
            admin.execute(
                "SELECT pg_create_physical_replication_slot('old_standby', true)"
            )
            admin.execute(
                "CREATE TABLE ballast AS SELECT g, repeat('x', 1000) AS filler"
                " FROM generate_series(1, 30000) g"
            )
        return ["old_standby"]

    def remove(self, target: FaultTarget) -> None:
        with psycopg.connect(target.server.dsn("shop"), autocommit=True) as admin:
            admin.execute("SELECT pg_drop_replication_slot('old_standby')")


FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        LockPileUp,
        ConnectionsExhausted,
        RunawayQuery,
        ServerKilled,
        Deadlocks,
        InactiveSlot,
    )
}


def _run(connection: Connection, statement: LiteralString) -> None:
    connection.execute(statement)


def _update_in_order(
    connection: Connection, state: str, rows: Sequence[int], over: threading.Event
) -> None:
    while not over.is_set():
        try:
            with connection.transaction():
                for row in rows:
                    connection.execute(
                        sql.SQL("UPDATE orders SET state = {} WHERE id = {}").format(
                            sql.Literal(state), sql.Literal(row)
                        )
                    )
                    over.wait(0.05)
        except psycopg.errors.DeadlockDetected:
            over.wait(0.1)
