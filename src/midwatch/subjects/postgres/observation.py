"""One observation in progress: its context, and its lock waits (pure but for queries)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from midwatch.model import Invariant, Json
from midwatch.subjects.findings import EnabledInvariants
from midwatch.subjects.lock_queues import Blocking
from midwatch.subjects.postgres import sql
from midwatch.subjects.postgres.connection import Connection, QueryFailed
from midwatch.subjects.postgres.settings import PostgresSettings
from midwatch.subjects.rows import Row, text


@dataclass(slots=True)
class ObservationContext(EnabledInvariants):
    """What the checks of one observation share.

    `at` is the time in epoch seconds. `previous` is the state of the last observation, `state` the one
    that this observation leaves for the next. `invariants` are the enabled ones by id. `ignored` counts
    what their `ignore` left out, by id and text.
    """

    connection: Connection
    settings: PostgresSettings
    at: float
    previous: Json
    state: Json
    invariants: Mapping[str, Invariant] = field(default_factory=dict)
    ignored: dict[str, Counter[str]] = field(default_factory=dict)
    _activity: list[Row] | QueryFailed | None = None

    async def activity(self) -> list[Row]:
        """Return sessions that are active or hold a transaction; queried once. Raises QueryFailed."""
        if self._activity is None:
            try:
                self._activity = await self.connection.rows(sql.ACTIVITY)
            except QueryFailed as error:
                self._activity = error
        if isinstance(self._activity, QueryFailed):
            raise self._activity
        return self._activity


@dataclass(frozen=True, slots=True)
class LockWaits:
    """The lock waits of one moment with the sessions that take part, by pid."""

    blocking: Blocking
    sessions: Mapping[int, Row] = field(default_factory=dict)


async def load_lock_waits(connection: Connection) -> LockWaits:
    """Return the current lock waits. Raises QueryFailed."""
    blocking = Blocking.of(await connection.rows(sql.WAITS))
    if not blocking.waits:
        return LockWaits(blocking)
    rows = await connection.rows(sql.SESSIONS, {"pids": blocking.pids})
    return LockWaits(blocking, {int(row["pid"]): row for row in rows})


# ------------------------------------------------------------------ statistics that are off


async def untracked(connection: Connection, setting: str) -> list[Row]:
    """Return where a setting keeps statistics from being collected. Raises QueryFailed.

    Rows have `database` and `role`: both None for the whole server, both empty for each role.
    """
    return await connection.rows(sql.NOT_TRACKED, {"setting": setting})


def tracking_off(setting: str, where: Sequence[Row]) -> tuple[str, str]:
    """Return what is wrong and the remedy for a setting that is off at these places."""
    row = where[0]
    name = text(row["role"], 64) or "ALL"
    scope = f" IN DATABASE {text(row['database'], 64)}" if row["database"] else ""
    if row["role"] is None:
        place, remedy = "", f"ALTER SYSTEM SET {setting} = on; SELECT pg_reload_conf()"
    elif row["database"] and not row["role"]:
        place = f" for database {text(row['database'], 64)}"
        remedy = f"ALTER DATABASE {text(row['database'], 64)} RESET {setting}"
    else:
        place = f" for role {name}"
        remedy = f"ALTER ROLE {name}{scope} RESET {setting}"
    more = f" and {len(where) - 1} more" if len(where) > 1 else ""
    return f"{setting} is off{place}{more}", f"turn it on: {remedy}"
