"""The evidence an engineer would ask a PostgreSQL server for: plain text, one fact a line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ...model import Ticket
from ..base import EvidenceSource
from . import evidence_sql as sql
from .connection import Exhausted, Unreachable
from .logs import tail
from .render import activity, blocking, facts, server
from .round import scene
from .settings import PostgresSettings
from .sharing import SharedConnection


@dataclass(frozen=True, slots=True)
class Piece:
    """`fetch` raises a MidwatchError when it cannot."""

    title: str
    source: str
    fetch: Callable[[SharedConnection], Awaitable[str]]


def _table(statement: str, none: str) -> Callable[[SharedConnection], Awaitable[str]]:
    async def fetch(shared: SharedConnection) -> str:
        async with shared.use() as connection:
            return facts(await connection.rows(statement)) or none

    return fetch


async def _server(shared: SharedConnection) -> str:
    """Never fails for want of a connection: the refusal itself is evidence."""
    try:
        async with shared.use() as connection:
            return server(await connection.rows(sql.SERVER))
    except (Unreachable, Exhausted) as error:
        return f"a connection attempt failed: {error.message}"


async def _activity(shared: SharedConnection) -> str:
    async with shared.use() as connection:
        return activity(await connection.rows(sql.ACTIVITY))


async def _blocking(shared: SharedConnection) -> str:
    async with shared.use() as connection:
        seen = await scene(connection)
        return blocking(seen.blocking, seen.sessions)


async def _log(shared: SharedConnection) -> str:
    if shared.settings.log_file is not None:
        return await tail(shared.settings, None) or "the log is empty"
    async with shared.use() as connection:
        return await tail(shared.settings, connection) or "the log is empty"


PIECES: dict[str, Piece] = {
    "server": Piece("Server: version, uptime, role", "pg_settings", _server),
    "blocking": Piece(
        "Blocking tree: who waits for whom", "pg_blocking_pids", _blocking
    ),
    "activity": Piece(
        "Sessions at work or in a transaction", "pg_stat_activity", _activity
    ),
    "connections": Piece(
        "Connections by application, user and state",
        "pg_stat_activity",
        _table(sql.CONNECTIONS, "no connections"),
    ),
    "locks": Piece(
        "Locks of sessions that wait or are waited for",
        "pg_locks",
        _table(sql.LOCKS, "nobody waits for a lock"),
    ),
    "settings": Piece(
        "Settings that matter", "pg_settings", _table(sql.SETTINGS, "no settings seen")
    ),
    "horizon": Piece(
        "Who holds back vacuum",
        "pg_stat_activity, pg_prepared_xacts, pg_replication_slots",
        _table(sql.HORIZON, "nobody holds back vacuum"),
    ),
    "ids": Piece(
        "Age of transaction ids", "pg_database, pg_class", _table(sql.IDS, "none")
    ),
    "vacuum": Piece(
        "State of vacuum", "pg_stat_user_tables", _table(sql.VACUUM, "no tables")
    ),
    "sizes": Piece(
        "Sizes of databases and tables",
        "pg_database, pg_class",
        _table(sql.SIZES, "none"),
    ),
    "replication": Piece(
        "Standbys",
        "pg_stat_replication",
        _table(sql.STANDBYS, "no standby is connected"),
    ),
    "slots": Piece(
        "Replication slots", "pg_replication_slots", _table(sql.SLOTS, "no slots")
    ),
    "counters": Piece(
        "Counters of the databases", "pg_stat_database", _table(sql.COUNTERS, "none")
    ),
    "log": Piece("The end of the server's log", "log", _log),
}

# Most telling first.
WANTED: dict[str, tuple[str, ...]] = {
    "reachable": ("server", "log"),
    "connections": ("connections", "activity", "server", "blocking", "settings", "log"),
    "blocked_sessions": ("blocking", "activity", "locks", "settings", "log", "server"),
    "idle_in_transaction": ("activity", "blocking", "settings", "horizon", "server"),
    "long_queries": ("activity", "blocking", "settings", "vacuum", "log", "server"),
    "deadlocks": ("log", "counters", "activity", "blocking", "settings", "server"),
    "transaction_id_age": (
        "ids",
        "horizon",
        "vacuum",
        "activity",
        "settings",
        "server",
    ),
    "dead_tuples": ("vacuum", "horizon", "activity", "settings", "server"),
    "replication_lag": (
        "replication",
        "slots",
        "activity",
        "settings",
        "log",
        "server",
    ),
    "inactive_slots": ("slots", "replication", "sizes", "settings", "log", "server"),
    "database_growth": ("sizes", "counters", "slots", "activity", "vacuum", "server"),
    "log_errors": ("log", "server", "activity", "sizes", "settings"),
}
OTHERWISE = ("server", "activity", "log")


def sources(
    settings: PostgresSettings, tickets: Sequence[Ticket]
) -> list[EvidenceSource]:
    """What matters to these tickets, over one shared connection."""
    ranks: dict[str, int] = {}
    for ticket in tickets:
        for place, name in enumerate(WANTED.get(ticket.key.invariant, OTHERWISE)):
            ranks[name] = min(ranks.get(name, 99), 10 * (place + 1))
    shared = SharedConnection(settings)
    limit = settings.connect_timeout + settings.statement_timeout * 2 + 1

    def source(name: str) -> EvidenceSource:
        piece = PIECES[name]
        return EvidenceSource(
            piece.title,
            f"{settings.name}: {piece.source}",
            lambda: piece.fetch(shared),
            rank=ranks[name],
            timeout=limit,
        )

    return [source(name) for name in sorted(ranks, key=lambda name: ranks[name])]
