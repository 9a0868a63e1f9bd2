"""The agent daemon: claim a batch of tickets, gather evidence, ask Claude, store the diagnosis, back off."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from midwatch.agent.attempt import (
    SLACK,
    Attempt,
    AttemptContext,
    AttemptOutcome,
    Model,
    Wanted,
)
from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.investigation import Investigator
from midwatch.agent.traced_model import TracedModel
from midwatch.errors import MidwatchError
from midwatch.lifecycle import Alive, Clock, Liveness, StopEvent, SystemClock, first
from midwatch.logs import Log, quiet_log
from midwatch.model import Severity
from midwatch.process_identity import has_ended, process_name
from midwatch.redaction import Redactor
from midwatch.settings import AgentSettings
from midwatch.store.protocol import Claim, PauseKind, Store, with_notice
from midwatch.telemetry import gen_ai
from midwatch.telemetry.spans import Attributes, NoTelemetry, Telemetry

_BUDGET_RECHECK = 60.0
"""Seconds until a spent budget is checked again: calls that cost less than was reserved free a part of
it, and a new day renews it."""

_LOOK_SECONDS = 1.0
"""Seconds between two looks at the claims of other agents: how late one is taken that has become free."""

_ANSWERED = ("answered", "cut", "stopped", "budget")
"""Outcomes of an attempt that are no failure."""

ModelSource = Callable[[], Model | None]
PauseReason = PauseKind | Literal["no_key", "budget", "store", "stopped"]


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why no call is made now, and for how many seconds at least. `kind` is the reason for metrics."""

    reason: str
    seconds: float
    kind: PauseReason = field(default="stopped", compare=False)


class AgentRunner:
    """Diagnoses the tickets in the queue until it is stopped.

    Any number of runners share one store: a batch is claimed by one of them at a time.

    Args:
        store: Where tickets are claimed and diagnoses are saved.
        gatherer: Gathers the evidence for a batch.
        model: Returns the model to ask now, or None while there is no API key.
        settings: The group `agent` of the settings; `concurrency` is the number of calls in flight.
        max_tokens: Limit of an answer, in tokens.
        redactor: Removes secrets from answers and errors.
        clock: The source of time; tests inject one.
        log: Where events are logged; the default drops them.
        random: Returns a number from 0 to 1 for the jitter of a back-off.
        name: Name of this daemon in claims and heartbeats.
        longest_call: Seconds that one call may take; only liveness uses it.
        progress: The liveness that a health probe asks.
        investigator: What Claude may ask of the subjects; None for nothing.
        trace: Gets the text of every request and answer.
        telemetry: Records each attempt as a trace.
    """

    def __init__(
        self,
        store: Store,
        gatherer: ContextGatherer,
        model: ModelSource,
        settings: AgentSettings = AgentSettings(),
        *,
        max_tokens: int = 8000,
        redactor: Redactor | None = None,
        clock: Clock | None = None,
        log: Log | None = None,
        random: Callable[[], float] = random.random,
        name: str = "agent",
        longest_call: float = 300.0,
        progress: Liveness | None = None,
        investigator: Investigator | None = None,
        trace: Callable[[str], None] | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.name = name
        self.clock = clock or SystemClock()
        self.log = log or quiet_log()
        self.progress = progress or Liveness(self.clock)
        self.outcomes: Counter[str] = Counter()
        self.pauses: Counter[PauseReason] = Counter()
        self.paused: PauseReason | None = None
        self.last_success: datetime | None = None
        self.model = model
        self._shared = AttemptContext(
            store,
            gatherer,
            settings,
            max_tokens,
            redactor or Redactor(),
            self.clock,
            self.log,
            random,
            longest_call,
            investigator=investigator,
            trace=trace,
            telemetry=telemetry or NoTelemetry(),
        )
        self._blocked_by = ""
        self._budget_spent_until: dict[Severity, float] = {}
        self._wake = asyncio.Event()
        self._free_claims: frozenset[str] = frozenset()
        self._ended: frozenset[str] = frozenset()

    async def run(self, stop: StopEvent) -> None:
        """Diagnose batches until `stop` is set. Errors of calls and of the store are logged, never raised."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat(stop), name="agent heartbeat")
            group.create_task(self._watch_claims(stop), name="agent watch of claims")
            group.create_task(self._work(stop, group), name="agent queue")

    async def drain(self, stop: StopEvent) -> Blocked | None:
        """Diagnose all batches that are due now.

        Returns:
            None when no batch is due any more, or why no call is made.

        Raises:
            MidwatchError: The store cannot be used.
        """
        await self._look()
        while not stop:
            if blocked := self._blocked() or await self._paused():
                return blocked
            claims = await self._claim(1)
            if not claims:
                return None
            await self._attempts(claims[0], stop)
        return Blocked("stopped", 0.0)

    async def diagnose(
        self, batch: int, stop: StopEvent
    ) -> AttemptOutcome | Blocked | None:
        """Diagnose this batch now, also one that waits for its next attempt.

        Returns:
            How the attempt ended; why no call is made; or None if the batch is not in the queue or
            another daemon has claimed it.

        Raises:
            MidwatchError: The store cannot be used.
        """
        if blocked := self._blocked() or await self._paused():
            return blocked
        await self._look()
        claims = await self.store.claim(
            self.name,
            lease=self.settings.lease,
            batch=batch,
            process=process_name(os.getpid()),
            ended=self._ended,
        )
        return await self._attempt(claims[0], stop) if claims else None

    async def _work(self, stop: StopEvent, group: asyncio.TaskGroup) -> None:
        """Claim batches for as many workers as are free, and start these."""
        free = [f"agent worker {n}" for n in range(self.settings.concurrency)]
        await self._safely(self._look())

        async def attempts(claim: Claim, name: str) -> None:
            def alive(within: float) -> None:
                self.progress.expect(name, within)

            failed = await self._safely(self._attempts(claim, stop, alive))
            if failed:
                alive(self.settings.poll_interval + SLACK)
                await stop.pause(self.settings.poll_interval)
            self.progress.expect_nothing(name)
            free.append(name)
            self._wake.set()

        while not stop:
            self._wake.clear()
            if not free:
                self.progress.expect_nothing("agent queue")
                await first(stop.wait(), self._wake.wait())
                continue
            self.progress.expect("agent queue", SLACK)
            claims, wait = await self._turn(len(free))
            for claim in claims:
                name = free.pop(0)
                group.create_task(attempts(claim, name), name=name)
            if free:
                self.progress.expect("agent queue", wait + SLACK)
                await first(stop.pause(wait), self._wake.wait())

    async def _turn(self, limit: int) -> tuple[list[Claim], float]:
        """Claim up to `limit` batches that are due. Return them and the seconds to wait before the next turn."""
        idle = self.settings.poll_interval
        try:
            blocked = self._blocked()
            claims = [] if blocked else await self._claim(limit)
            if not blocked and not claims:
                blocked = await self._paused()
        except MidwatchError as error:
            self._report(f"the store is unavailable: {error.one_line()}", "store")
            return [], idle
        if blocked:
            self._report(blocked.reason, blocked.kind)
            return [], min(blocked.seconds, idle)
        self._report("", None)
        self.last_success = self.clock.now()
        return claims, idle

    async def _safely(self, work: Awaitable[object]) -> bool:
        """Wait for work whose bugs must not end the daemon. Return whether it failed."""
        try:
            await work
        except MidwatchError as error:
            self.log.warning("turn failed", error=error.one_line())
        except Exception:
            self.log.exception("turn failed")
        else:
            return False
        return True

    async def _watch_claims(self, stop: StopEvent) -> None:
        """Wake the queue when a claim of another agent has become free, without a wait for the next poll."""
        while not stop:
            wait = _LOOK_SECONDS
            try:
                wait = await self._look()
            except MidwatchError:
                pass  # the queue reports that the store is unavailable
            await stop.pause(wait)

    async def _look(self) -> float:
        """Look at the claims of others: which are over, and which were of a process of this host that has ended.

        Returns:
            The seconds until the next look.
        """
        own = process_name(os.getpid())
        held = [one for one in await self.store.claims_held() if one.process != own]
        named = {one.process for one in held if one.process is not None}
        self._ended = frozenset(filter(has_ended, named))
        over = (one for one in held if one.seconds <= 0 or one.process in self._ended)
        tokens = frozenset(one.token for one in over)
        if tokens - self._free_claims:
            self._wake.set()
        self._free_claims = tokens
        ends = (one.seconds for one in held if one.seconds > 0)
        return min(_LOOK_SECONDS, *ends, _LOOK_SECONDS)

    # ------------------------------------------------------------------ claim and attempt

    def _blocked(self) -> Blocked | None:
        """Return why this runner may make no call now, or None."""
        if self.model() is None:
            return Blocked(
                getattr(self.model, "problem", "")
                or "no API key: tickets get first aid only (set ANTHROPIC_API_KEY or anthropic.api_key_file)",
                self.settings.auth_probe_interval,
                "no_key",
            )
        wait = (
            self._budget_spent_until.get(Severity.CRITICAL, 0.0)
            - self.clock.monotonic()
        )
        if wait > 0:
            return Blocked("the budget of the day is spent", wait, "budget")
        return None

    async def _paused(self) -> Blocked | None:
        """Return why no agent may make a call now, or None."""
        if pauses := await self.store.pauses():
            longest = pauses[0]
            reason = f"{longest.kind}: {longest.reason}"
            return Blocked(reason, longest.seconds, longest.kind)
        return None

    def _wanted(self) -> Wanted:
        until = self._budget_spent_until.get(Severity.INFO, 0.0)
        tight = until > self.clock.monotonic()
        return Wanted(
            self.settings.lease,
            Severity.CRITICAL if tight else Severity.INFO,
            self._ended,
        )

    async def _claim(self, limit: int) -> list[Claim]:
        wanted = self._wanted()
        return await self.store.claim(
            self.name,
            lease=wanted.lease,
            limit=limit,
            least=wanted.least,
            process=process_name(os.getpid()),
            ended=wanted.gone,
        )

    async def _attempts(
        self, claim: Claim, stop: StopEvent, alive: Alive = lambda within: None
    ) -> None:
        """Attempt a claim, and then each that was made with the last write of the one before."""

        def wanted() -> Wanted | None:
            return None if stop or self._blocked() else self._wanted()

        following: Claim | None = claim
        while following is not None:
            ended = await self._attempt(following, stop, alive, wanted)
            following = ended.following if ended else None
            if following is not None:
                self.last_success = self.clock.now()
                if stop:
                    await self.store.release(following)
                    return

    async def _attempt(
        self,
        claim: Claim,
        stop: StopEvent,
        alive: Alive = lambda within: None,
        wanted: Callable[[], Wanted | None] = lambda: None,
    ) -> AttemptOutcome | None:
        model = self.model()
        if model is None:  # the key was removed since the claim
            await self.store.release(claim)
            return None
        ended = await self._traced(claim, model, stop, alive, wanted)
        self.outcomes[ended.outcome] += 1
        if ended.outcome == "budget":
            self._note_spent_budget(claim.severity)
        return ended

    async def _traced(
        self,
        claim: Claim,
        model: Model,
        stop: StopEvent,
        alive: Alive,
        wanted: Callable[[], Wanted | None],
    ) -> AttemptOutcome:
        """Make an attempt, and record it as a trace."""
        telemetry = self._shared.telemetry
        traced = TracedModel(model, telemetry)
        attributes: Attributes = {
            **gen_ai.agent("diagnosis", traced.provider, model.model),
            "midwatch.batch": claim.batch,
            "midwatch.tickets": tuple(ticket.id for ticket in claim.tickets),
            "midwatch.subject": claim.tickets[0].key.subject,
            "midwatch.severity": claim.severity.label,
            "midwatch.attempt": claim.attempt,
        }
        with telemetry.span("invoke_agent diagnosis", attributes) as span:
            ended = await Attempt(self._shared, claim, traced, alive, wanted).run(stop)
            cost = {"midwatch.cost_usd": ended.cost_usd}
            span.set({"midwatch.outcome": ended.outcome, **cost})
            if ended.outcome not in _ANSWERED:
                span.fail(ended.outcome)
            return ended

    def _note_spent_budget(self, severity: Severity) -> None:
        """Claim only critical tickets for a while; if one of those was refused, claim none."""
        again = self.clock.monotonic() + _BUDGET_RECHECK
        critical = severity is Severity.CRITICAL
        self._budget_spent_until[Severity.CRITICAL if critical else Severity.INFO] = (
            again
        )
        left = "nothing" if critical else "only critical tickets"
        self.log.warning(
            "the budget of the day is spent",
            usd=self.settings.daily_budget_usd,
            diagnosing=left,
        )

    # ------------------------------------------------------------------ report

    @property
    def spent_usd(self) -> float:
        """US dollars that this runner's calls have cost since its start."""
        return self._shared.spent_usd

    def _report(self, reason: str, kind: PauseReason | None) -> None:
        """Log once that the runner pauses, and once that it resumes."""
        if kind is not None and kind != self.paused:
            self.pauses[kind] += 1
        self.paused = kind
        if reason == self._blocked_by:
            return
        self._blocked_by = reason
        if reason:
            self.log.warning("not diagnosing", reason=reason)
        else:
            self.log.info("diagnosing")

    async def _beat(self, stop: StopEvent) -> None:
        while not stop:
            info = {
                "state": self._blocked_by or "diagnosing",
                "concurrency": self.settings.concurrency,
                **self.outcomes,
            }
            try:
                await self.store.beat(self.name, "agent", with_notice(self.store, info))
            except MidwatchError as error:
                self.log.warning("heartbeat not saved", error=error.one_line())
            await stop.pause(max(self.settings.poll_interval, 10.0))
