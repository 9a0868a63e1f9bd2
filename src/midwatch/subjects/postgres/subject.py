"""PostgresSubject: one observation after the other, and the evidence in between.

psycopg is imported when a subject is built, not when its kind is listed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from midwatch.lifecycle import Clock, SystemClock
from midwatch.model import Fact, Invariant, Json, Observation, Signal, Ticket
from midwatch.subjects.base import EvidenceSource, configure
from midwatch.subjects.postgres.settings import INVARIANTS, PostgresSettings

if TYPE_CHECKING:
    from midwatch.subjects.postgres.connection import Connection
    from midwatch.subjects.postgres.observation import Findings, ObservationContext

SERVER = "server"


class PostgresSubject:
    """A PostgreSQL server. Raises SettingsError for a DSN or an invariant that is wrong."""

    kind: ClassVar[str] = "postgres"
    settings_model: ClassVar[type[PostgresSettings]] = PostgresSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS

    def __init__(self, settings: PostgresSettings, clock: Clock | None = None) -> None:
        from midwatch.subjects.postgres.connection import check_dsn, secrets_of

        self._settings = settings
        self._clock = clock or SystemClock()
        self.name = settings.name
        self.timeout: float = settings.timeout
        self.invariants: tuple[Invariant, ...] = configure(
            INVARIANTS, settings.invariants, f"subjects.{settings.name}"
        )
        check_dsn(settings)
        self.secrets: tuple[str, ...] = secrets_of(settings)

    async def observe(self, previous: Json) -> Observation:
        """Look once. What cannot be known because the server is down or full is left out of
        `covered` and of `unavailable`: there is one thing to say about it, and it is said.
        """
        from midwatch.subjects.postgres.connection import (
            Connection,
            Exhausted,
            Unreachable,
        )
        from midwatch.subjects.postgres.observation import Findings, ObservationContext

        at = self._clock.now().timestamp()
        findings = Findings(self.invariants, dict(previous))
        try:
            async with asyncio.timeout(self._settings.timeout):
                async with Connection(self._settings) as connection:
                    findings.saw("reachable", [_reachable(True, "the server answers")])
                    round_ = ObservationContext(
                        connection, self._settings, at, previous, findings.state
                    )
                    await self._look_around(round_, findings)
        except Exhausted as error:
            findings.saw("reachable", [_reachable(True, "the server answers: full")])
            findings.glimpsed("connections", _full(error.component, error.message))
            await self._see_log_only(previous, at, findings)
        except Unreachable as error:
            findings.saw("reachable", [_reachable(False, error.message)])
            await self._see_log_only(previous, at, findings)
        except TimeoutError:
            findings.rest(f"the look took longer than {self._settings.timeout:g}s")
        return findings.observation()

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        from midwatch.subjects.postgres.evidence import sources

        return sources(self._settings, tickets)

    async def close(self) -> None:
        """Nothing stays open between two looks."""

    async def _look_around(
        self, round_: ObservationContext, findings: Findings
    ) -> None:
        from midwatch.subjects.postgres.checks import LOOKS

        loop = asyncio.get_running_loop()
        # The last statement must end within the subject's time limit.
        spent = self._settings.connect_timeout + self._settings.statement_timeout + 1
        until = loop.time() + max(self._settings.timeout - spent, 1.0)
        for look in LOOKS:
            if loop.time() > until:
                findings.failed(look.invariant, "no time was left for it")
            elif look.all_stats and not round_.connection.all_stats:
                findings.failed(
                    look.invariant,
                    "the role may not see others' sessions: it needs pg_monitor",
                )
            else:
                await findings.look(look.invariant, partial(look.see, round_))
        findings.background.update(await _background(round_.connection))

    async def _see_log_only(
        self, previous: Json, at: float, findings: Findings
    ) -> None:
        """The log on this machine can be read whatever the server does."""
        from midwatch.subjects.postgres.log import see_log

        await findings.look(
            "log_errors",
            lambda: see_log(self._settings, None, previous, findings.state, at),
        )


async def _background(connection: Connection) -> dict[str, Fact]:
    """Settings that somebody made, the version, and who is connected; empty if it fails."""
    from midwatch.subjects.postgres import sql as queries
    from midwatch.subjects.postgres.connection import QueryFailed, text

    try:
        rows = await connection.rows(queries.BACKGROUND)
    except QueryFailed:
        return {}
    return {text(row["name"], 120): text(row["value"], 200) for row in rows}


def _reachable(holds: bool, message: str) -> Signal:
    return Signal(
        "reachable",
        SERVER,
        message,
        holds=holds,
        facts={"error": "" if holds else message},
    )


def _full(component: str, message: str) -> Signal:
    return Signal(
        "connections",
        component,
        f"a connection was refused: {message}",
        value=1.0,
        holds=False,
        facts={"refused": True, "error": message},
    )
