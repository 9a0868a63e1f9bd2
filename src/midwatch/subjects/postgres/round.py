"""One observation in progress: what its single looks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...model import Json
from . import queries
from .connection import Connection, QueryFailed
from .settings import PostgresSettings
from .tree import Blocking
from .wording import Row


class NothingToSee(QueryFailed):
    """There is nothing to look at, or nothing to compare with yet: unknown, and no failure."""


@dataclass(slots=True)
class Round:
    """`previous` is the state of the last look, `state` what this one leaves for the next.

    `at` is epoch seconds.
    """

    connection: Connection
    settings: PostgresSettings
    at: float
    previous: Json
    state: Json
    _activity: list[Row] | QueryFailed | None = None

    async def activity(self) -> list[Row]:
        """Sessions that do something or hold a transaction; asked for once."""
        if self._activity is None:
            try:
                self._activity = await self.connection.rows(queries.ACTIVITY)
            except QueryFailed as error:
                self._activity = error
        if isinstance(self._activity, QueryFailed):
            raise self._activity
        return self._activity


@dataclass(frozen=True, slots=True)
class Scene:
    """The waits of one moment with the sessions that take part."""

    blocking: Blocking
    sessions: Mapping[int, Row] = field(default_factory=dict)


async def scene(connection: Connection) -> Scene:
    """Raises QueryFailed."""
    blocking = Blocking.of(await connection.rows(queries.WAITS))
    if not blocking.waits:
        return Scene(blocking)
    rows = await connection.rows(queries.SESSIONS, {"pids": blocking.pids})
    return Scene(blocking, {int(row["pid"]): row for row in rows})
