"""The class PostgresSubject: observations of a PostgreSQL server, and evidence from it.

psycopg is imported when a subject is created, not when its kind is listed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from midwatch.errors import ObservationFailed
from midwatch.lifecycle import Clock, SystemClock, load_modules
from midwatch.model import Fact, Invariant, Json, Observation, Signal, Ticket
from midwatch.subjects.actionable import (
    ActionCheck,
    ActionKind,
    ActionResult,
    ActionSettings,
)
from midwatch.subjects.actionable import Findings as FindingsOfDiagnosis
from midwatch.subjects.actionable import ProposedAction
from midwatch.subjects.base import Address, EvidenceSource, configure
from midwatch.subjects.postgres.settings import INVARIANTS, PostgresSettings
from midwatch.subjects.tools import Tool

if TYPE_CHECKING:
    from midwatch.subjects.findings import Findings
    from midwatch.subjects.postgres.connection import Connection
    from midwatch.subjects.postgres.observation import ObservationContext

SERVER = "server"
_OBSERVING = (
    "midwatch.subjects.postgres.checks",
    "midwatch.subjects.postgres.log",
)


class PostgresSubject:
    """A PostgreSQL server. Raises SettingsError for a wrong DSN or invariant."""

    kind: ClassVar[str] = "postgres"
    settings_model: ClassVar[type[PostgresSettings]] = PostgresSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS

    def __init__(self, settings: PostgresSettings, clock: Clock | None = None) -> None:
        from midwatch.subjects.postgres.connection import (
            addresses_of,
            check_dsn,
            secrets_of,
        )

        self._settings = settings
        self._clock = clock or SystemClock()
        self.name = settings.name
        self.timeout: float = settings.timeout
        self.invariants: tuple[Invariant, ...] = configure(
            INVARIANTS, settings.invariants, f"subjects.{settings.name}"
        )
        check_dsn(settings)
        acting = settings.model_copy(
            update={"dsn": settings.actions.dsn or settings.dsn}
        )
        check_dsn(acting, "actions.dsn")
        self.secrets: tuple[str, ...] = (*secrets_of(settings), *secrets_of(acting))
        self.addresses: tuple[Address, ...] = addresses_of(settings)

    async def observe(self, previous: Json) -> Observation:
        """Run all checks once over one connection.

        On a server that is down or full, other invariants are neither in `covered` nor in `unavailable`:
        they are unknown, and the one violation explains it.
        """
        await load_modules(*_OBSERVING)
        from midwatch.subjects.findings import Findings
        from midwatch.subjects.postgres.connection import (
            Connection,
            Exhausted,
            Unreachable,
        )
        from midwatch.subjects.postgres.observation import ObservationContext

        at = self._clock.now().timestamp()
        findings = Findings(self.invariants, dict(previous))
        try:
            async with asyncio.timeout(self._settings.timeout):
                async with Connection(self._settings) as connection:
                    findings.answers()
                    context = ObservationContext(
                        connection,
                        self._settings,
                        at,
                        previous,
                        findings.state,
                        {invariant.id: invariant for invariant in self.invariants},
                    )
                    await self._check_log(connection, previous, at, findings)
                    await self._run_checks(context, findings)
        except Exhausted as error:
            findings.answers(": full")
            await self._check_log(None, previous, at, findings)
            if self._explains("connections", error.component):
                findings.partial("connections", _full(error.component, error.message))
            else:
                findings.mark_unobserved(error.message)
        except Unreachable as error:
            findings.unreachable(error.message)
            await self._check_log(None, previous, at, findings)
            if not self._explains("reachable", SERVER):
                findings.mark_unobserved(error.message)
        except TimeoutError:
            findings.mark_late(self._settings.timeout)
        return findings.observation()

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        from midwatch.subjects.postgres.evidence import sources

        return sources(self._settings, tickets)

    def tools(self) -> Sequence[Tool]:
        from midwatch.subjects.postgres.postgres_tools import PostgresTools

        return PostgresTools(self._settings).tools()

    # -------------------------------------------------- approved actions

    @property
    def action_kinds(self) -> Sequence[ActionKind]:
        from midwatch.subjects.postgres.session_control import KINDS

        return KINDS

    @property
    def allowed_actions(self) -> Sequence[str]:
        return tuple(self._settings.actions.allow)

    @property
    def action_settings(self) -> ActionSettings:
        return self._settings.actions

    def propose_actions(
        self, findings: FindingsOfDiagnosis
    ) -> Sequence[ProposedAction]:
        from midwatch.subjects.postgres.session_control import propose

        return tuple(propose(findings))

    async def check_action(self, action: ProposedAction) -> ActionCheck:
        from midwatch.subjects.postgres.session_control import PostgresActions

        return await PostgresActions(self._settings).check(action)

    async def run_action(self, action: ProposedAction) -> ActionResult:
        from midwatch.subjects.postgres.session_control import PostgresActions

        return await PostgresActions(self._settings).run(action)

    async def probe_actions(self) -> str:
        from midwatch.subjects.postgres.session_control import PostgresActions

        return await PostgresActions(self._settings).probe(self.allowed_actions)

    async def close(self) -> None:
        """Do nothing: no connection stays open between two observations."""

    async def _run_checks(
        self, context: ObservationContext, findings: Findings
    ) -> None:
        from midwatch.subjects.postgres.checks import CHECKS

        loop = asyncio.get_running_loop()
        # The last statement must end within the subject's time limit.
        spent = self._settings.connect_timeout + self._settings.statement_timeout + 1
        until = loop.time() + max(self._settings.timeout - spent, 1.0)
        for check in CHECKS:
            if loop.time() > until:
                findings.mark_unavailable(
                    check.invariant, "the observation's timeout left no time for it"
                )
            elif check.all_stats and not context.connection.all_stats:
                findings.mark_unsupported(
                    check.invariant,
                    "the role may not see the sessions of others; grant pg_monitor to it",
                )
            else:
                await findings.check(check.invariant, partial(check.run, context))
        findings.add_ignored(context.ignored)
        facts = await _background(context.connection)
        for name, value in facts.items():
            configured = not name.startswith(_SESSIONS)
            kept = findings.configuration if configured else findings.background
            kept[name] = value

    def _explains(self, invariant: str, component: str) -> bool:
        """Return whether a violation of the invariant will tell why the others are unknown."""
        kind, _, name = component.partition(" ")
        return any(
            one.id == invariant and not one.ignores({kind: name})
            for one in self.invariants
        )

    async def _check_log(
        self,
        connection: Connection | None,
        previous: Json,
        at: float,
        findings: Findings,
    ) -> None:
        """Read the log. On this machine it needs no server."""
        from midwatch.subjects.postgres.log import LogReport, check_log

        enabled = {invariant.id: invariant for invariant in self.invariants}
        known = {invariant.id: invariant for invariant in INVARIANTS}
        crashes, storms = "log_errors", "log_error_storm"
        reports: list[LogReport | ObservationFailed] = []

        async def report() -> LogReport:
            """Read the log once for both invariants."""
            if not reports:
                try:
                    reports.append(
                        await check_log(
                            self._settings,
                            connection,
                            previous,
                            findings.state,
                            at,
                            enabled.get(crashes, known[crashes]),
                            enabled.get(storms),
                        )
                    )
                except ObservationFailed as error:
                    reports.append(error)
            [found] = reports
            if isinstance(found, LogReport):
                return found
            try:
                raise found
            finally:
                del found  # its traceback has this frame

        async def run(name: str) -> Sequence[Signal]:
            found = await report()
            signals = found.signals if name == crashes else found.storms
            if ignored := found.ignored if name == crashes else found.storms_ignored:
                findings.ignored[name] = ignored
            if found.problem is not None:
                for signal in signals:
                    findings.partial(name, signal)
                raise found.problem
            return signals

        for name in (crashes, storms):
            await findings.check(name, partial(run, name))
        reports.clear()  # an error in it has a frame that has it


_SESSIONS = "sessions of "
"""Begins the names of facts about who is connected; the others are settings, the version and tables."""


async def _background(connection: Connection) -> dict[str, Fact]:
    """Return non-default settings, the version, tables and the connected clients; empty if a query fails."""
    from midwatch.subjects.postgres import sql
    from midwatch.subjects.postgres.connection import QueryFailed
    from midwatch.subjects.rows import text

    try:
        rows = [*await connection.rows(sql.BACKGROUND)]
        rows += await connection.rows(sql.SCHEMA)
    except QueryFailed:
        return {}
    return {text(row["name"], 200): text(row["value"], 200) for row in rows}


def _full(component: str, message: str) -> Signal:
    return Signal(
        "connections",
        component,
        f"a connection was refused: {message}",
        value=1.0,
        holds=False,
        facts={"refused": True, "error": message},
    )
