"""The faults of the demo: each breaks a real server, names its culprit, and can be undone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, LiteralString

import psycopg
from psycopg import sql

from midwatch.errors import TemporaryError
from midwatch.testing.postgres import PrivatePostgres

_PATIENCE = 20.0
_SEND: LiteralString = "UPDATE orders SET state = 'sent' WHERE id = 1"
_REPORT: LiteralString = "SELECT count(*) FROM orders a, orders b, orders c, orders d"
Connection = psycopg.Connection[tuple[object, ...]]


@dataclass(slots=True)
class Ward:
    """The server that suffers, and everything a fault holds on to."""

    server: PrivatePostgres
    held: ExitStack = field(default_factory=ExitStack)
    threads: list[threading.Thread] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def connect(self, application: str, user: str = "shop") -> Connection:
        connection = psycopg.connect(
            self.server.dsn("shop", user),
            application_name=application,
            autocommit=True,
            connect_timeout=5,
        )
        self.held.callback(_close, connection)
        return connection

    def in_background(self, work: Callable[[], None]) -> None:
        """Run something that may be cut off in the middle: that is the point of a fault."""

        def guarded() -> None:
            with suppress(psycopg.Error):
                work()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        self.threads.append(thread)

    def end_sessions(self, *applications: str) -> None:
        """What an operator would do to the culprits."""
        with psycopg.connect(self.server.dsn(), autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = ANY(%s)",
                [list(applications)],
            )

    def close(self) -> None:
        self.over.set()
        self.held.close()
        for thread in self.threads:
            thread.join(5)


def _close(connection: Connection) -> None:
    with suppress(psycopg.Error):
        connection.close()


class Fault:
    """A fault: what it is, which invariant it breaks, how it begins and ends.

    `inject` returns the words that a right answer has to contain: who or what is to blame.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    invariant: ClassVar[str]

    def inject(self, ward: Ward) -> Sequence[str]:
        raise NotImplementedError

    def remove(self, ward: Ward) -> None:
        raise NotImplementedError


class LockPileUp(Fault):
    name = "lock-pile-up"
    title = "checkout-service updates an order, then sits idle in its transaction; others queue up behind it"
    invariant = "blocked_sessions"

    def inject(self, ward: Ward) -> Sequence[str]:
        culprit = ward.connect("checkout-service")
        culprit.execute("BEGIN")
        culprit.execute("UPDATE orders SET state = 'paying' WHERE id = 1")
        for number in range(1, 4):
            waiting = ward.connect(f"orders-api-{number}")
            ward.in_background(partial(_run, waiting, _SEND))
        return [str(culprit.info.backend_pid), "checkout-service"]

    def remove(self, ward: Ward) -> None:
        ward.end_sessions("checkout-service")


class ConnectionsExhausted(Fault):
    name = "connections"
    title = "report-exporter leaks connections until the server has none left"
    invariant = "connections"

    def inject(self, ward: Ward) -> Sequence[str]:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            try:
                ward.connect("report-exporter")
            except psycopg.OperationalError:
                return ["report-exporter"]
        raise TemporaryError("the server never ran out of connections")

    def remove(self, ward: Ward) -> None:
        ward.held.close()


class RunawayQuery(Fault):
    name = "runaway-query"
    title = "nightly-report joins a table with itself, three times, without a condition"
    invariant = "long_queries"

    def inject(self, ward: Ward) -> Sequence[str]:
        culprit = ward.connect("nightly-report")
        ward.in_background(partial(_run, culprit, _REPORT))
        return [str(culprit.info.backend_pid), "nightly-report"]

    def remove(self, ward: Ward) -> None:
        ward.end_sessions("nightly-report")


class ServerKilled(Fault):
    name = "server-killed"
    title = "kill -9 of the server, as the kernel's out-of-memory killer does it"
    invariant = "reachable"

    def inject(self, ward: Ward) -> Sequence[str]:
        ward.server.kill()
        return ["killed"]

    def remove(self, ward: Ward) -> None:
        ward.server.restart()


class Deadlocks(Fault):
    name = "deadlocks"
    title = "two jobs lock the same two orders, each in its own order, again and again"
    invariant = "deadlocks"

    def inject(self, ward: Ward) -> Sequence[str]:
        for state, rows in (("refunded", (1, 2)), ("resent", (2, 1))):
            connection = ward.connect(f"{state}-job")
            work = partial(_quarrel, connection, state, rows, ward.over)
            ward.in_background(work)
        return ["refunded", "resent"]

    def remove(self, ward: Ward) -> None:
        ward.over.set()


class InactiveSlot(Fault):
    name = "inactive-slot"
    title = (
        "a standby went away for good; its replication slot keeps the write-ahead log"
    )
    invariant = "inactive_slots"

    def inject(self, ward: Ward) -> Sequence[str]:
        with psycopg.connect(ward.server.dsn("shop"), autocommit=True) as admin:
            admin.execute(
                "SELECT pg_create_physical_replication_slot('old_standby', true)"
            )
            admin.execute(
                "CREATE TABLE ballast AS SELECT g, repeat('x', 1000) AS filler"
                " FROM generate_series(1, 30000) g"
            )
        return ["old_standby"]

    def remove(self, ward: Ward) -> None:
        with psycopg.connect(ward.server.dsn("shop"), autocommit=True) as admin:
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


def _quarrel(
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
