"""The class MysqlSubject: observations of a MariaDB or MySQL server, and evidence from it.

asyncmy is imported with the first observation, not when the kind is listed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

from midwatch.errors import SettingsError
from midwatch.lifecycle import Clock, SystemClock, load_modules
from midwatch.model import Fact, Invariant, Json, Observation, Signal, Ticket
from midwatch.subjects.base import Address, EvidenceSource, configure
from midwatch.subjects.findings import Findings
from midwatch.subjects.mysql.address import address_of, secrets_of
from midwatch.subjects.mysql.settings import INVARIANTS, MysqlSettings
from midwatch.subjects.rows import text
from midwatch.subjects.tools import Tool

if TYPE_CHECKING:
    from midwatch.subjects.mysql.checks import Check
    from midwatch.subjects.mysql.connection import Connection
    from midwatch.subjects.mysql.context import MysqlContext
    from midwatch.subjects.mysql.snapshot import Snapshot

SERVER = "server"
_OBSERVING = (
    "midwatch.subjects.mysql.checks",
    "midwatch.subjects.mysql.error_log",
)
_LOOK_AGAIN = 60.0  # seconds between two looks at the tables while one is broken


class MysqlSubject:
    """A MariaDB or MySQL server. Raises SettingsError for a wrong DSN or invariant, or without the driver."""

    kind: ClassVar[str] = "mysql"
    settings_model: ClassVar[type[MysqlSettings]] = MysqlSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS

    def __init__(self, settings: MysqlSettings, clock: Clock | None = None) -> None:
        path = f"subjects.{settings.name}"
        if find_spec("asyncmy") is None:
            raise SettingsError(
                "the kind mysql needs the package asyncmy",
                path=path,
                hint="pip install 'midwatch[mysql]'",
            )
        self._settings = settings
        self._clock = clock or SystemClock()
        self.name = settings.name
        self.timeout: float = settings.timeout
        self.invariants: tuple[Invariant, ...] = configure(
            INVARIANTS, settings.invariants, path
        )
        self.addresses: tuple[Address, ...] = (address_of(settings).as_address(),)
        self.secrets: tuple[str, ...] = secrets_of(settings)

    async def observe(self, previous: Json) -> Observation:
        """Run all checks once over one snapshot of the server.

        On a server that is down or full, other invariants are unknown, and the one violation explains it.
        """
        await load_modules(*_OBSERVING)
        from midwatch.subjects.mysql.connection import (
            Connection,
            Exhausted,
            Unreachable,
        )

        at = self._clock.now().timestamp()
        log_file = str(self._settings.log_file or "")
        findings = Findings(self.invariants, dict(previous))
        try:
            async with asyncio.timeout(self._settings.timeout):
                async with Connection(self._settings) as connection:
                    findings.answers()
                    await self._run_checks(connection, previous, at, findings)
        except Exhausted as error:
            findings.answers(": full")
            await self._check_log(log_file, previous, at, findings)
            findings.partial("connections", _full(error.message))
            findings.mark_unobserved(error.message)
        except Unreachable as error:
            findings.unreachable(error.message)
            await self._check_log(log_file, previous, at, findings)
            if "reachable" not in findings.enabled:
                findings.mark_unobserved(error.message)
        except TimeoutError:
            findings.mark_late(self._settings.timeout)
        return findings.observation()

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        from midwatch.subjects.mysql.evidence import sources

        return sources(self._settings, tickets)

    def tools(self) -> Sequence[Tool]:
        from midwatch.subjects.mysql.mysql_tools import MysqlTools

        return MysqlTools(self._settings).tools()

    async def close(self) -> None:
        """Do nothing: no connection stays open between two observations."""

    async def _run_checks(
        self, connection: Connection, previous: Json, at: float, findings: Findings
    ) -> None:
        from midwatch.subjects.mysql.checks import CHECKS
        from midwatch.subjects.mysql.context import MysqlContext
        from midwatch.subjects.mysql.snapshot import take
        from midwatch.subjects.mysql.tables import tables_are_known

        looks = self._looks_at_tables(previous, at)
        seen = await take(connection, tables=looks, background=True)
        state = findings.state
        state["counters"] = dict(state.get("counters") or {})
        enabled = {invariant.id: invariant for invariant in self.invariants}
        context = MysqlContext(seen, self._settings, at, previous, state, enabled)
        for check in CHECKS:
            await findings.check(check.invariant, partial(_run, check, context))
        if looks and tables_are_known(seen):
            state["tables_at"] = at
        findings.add_ignored(context.ignored)
        findings.background.update(_background(seen))
        await self._check_log(_log_of(self._settings, seen), previous, at, findings)

    def _looks_at_tables(self, previous: Json, at: float) -> bool:
        """Return whether the tables are to be looked through: often while something there is broken."""
        last = previous.get("tables_at")
        if not isinstance(last, (int, float)) or last > at:
            return True
        broken = bool(previous.get("crashed_tables") or previous.get("auto_increment"))
        interval = self._settings.tables_interval
        return at - last >= (min(interval, _LOOK_AGAIN) if broken else interval)

    async def _check_log(
        self, place: str, previous: Json, at: float, findings: Findings
    ) -> None:
        """Read the error log, which on this machine needs no server."""
        from midwatch.subjects.mysql.error_log import check_log

        enabled = {invariant.id: invariant for invariant in self.invariants}
        if "log_errors" not in enabled:
            return
        place = place or str(previous.get("log_place") or "")
        findings.state["log_place"] = place
        invariant = enabled["log_errors"]
        run = partial(check_log, self._settings, place, findings, at, invariant)
        await findings.check("log_errors", run)


async def _run(check: Check, context: MysqlContext) -> Sequence[Signal]:
    return check.run(context)


def _log_of(settings: MysqlSettings, seen: Snapshot) -> str:
    from midwatch.subjects.mysql.error_log import log_place
    from midwatch.subjects.mysql.snapshot import value_of

    variables = seen.known("variables")
    return log_place(
        settings, value_of(variables, "log_error"), value_of(variables, "datadir")
    )


def _background(seen: Snapshot) -> dict[str, Fact]:
    """Return what a person would compare: variables that were set, the version, connected users."""
    found: dict[str, Fact] = {
        f"setting {text(row['name'], 100)}": text(row["value"], 200)
        for row in seen.known("background")
        if "password" not in str(row["name"])
    }
    number = ".".join(map(str, seen.version.number))
    found["version"] = f"{seen.version.product} {number}"
    for row in seen.known("counts")[:50]:
        name = f"sessions of user {text(row['user'], 64)} at {text(row['client'], 64)}, {text(row['command'], 20)}"
        found[name] = int(row["sessions"])
    return found


def _full(message: str) -> Signal:
    return Signal(
        "connections",
        SERVER,
        f"a connection was refused: {message}",
        value=1.0,
        holds=False,
        facts={"refused": 1, "error": message},
    )
