"""The agent daemon: claim a batch of tickets, gather evidence, ask Claude, store the diagnosis, back off."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from midwatch.agent.attempt import SLACK, Attempt, AttemptContext, AttemptOutcome, Model
from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.investigation import Investigator
from midwatch.agent.traced_model import TracedModel
from midwatch.errors import MidwatchError
from midwatch.lifecycle import Alive, Clock, Liveness, StopEvent, SystemClock
from midwatch.logs import Log, quiet_log
from midwatch.model import Severity
from midwatch.redaction import Redactor
from midwatch.settings import AgentSettings
from midwatch.store.protocol import Claim, PauseKind, Store, with_notice
from midwatch.telemetry import gen_ai
from midwatch.telemetry.spans import Attributes, NoTelemetry, Telemetry

_BUDGET_RECHECK = 60.0
"""Seconds until a spent budget is checked again: calls that cost less than was reserved free a part of
it, and a new day renews it."""

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

    async def run(self, stop: StopEvent) -> None:
        """Diagnose batches until `stop` is set. Errors of calls and of the store are logged, never raised."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat(stop), name="agent heartbeat")
            for number in range(self.settings.concurrency):
                name = f"agent worker {number}"
                group.create_task(self._work(stop, name), name=name)

    async def drain(self, stop: StopEvent) -> Blocked | None:
        """Diagnose all batches that are due now.

        Returns:
            None when no batch is due any more, or why no call is made.

        Raises:
            MidwatchError: The store cannot be used.
        """
        while not stop:
            if blocked := await self._blocked():
                return blocked
            claim = await self._claim()
            if claim is None:
                return None
            await self._attempt(claim, stop)
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
        if blocked := await self._blocked():
            return blocked
        claims = await self.store.claim(
            self.name, lease=self.settings.lease, batch=batch
        )
        return await self._attempt(claims[0], stop) if claims else None

    async def _work(self, stop: StopEvent, name: str) -> None:
        def alive(within: float) -> None:
            self.progress.expect(name, within)

        while not stop:
            alive(SLACK)
            try:
                wait = await self._turn(stop, alive)
            except Exception:  # a bug here must not end the daemon
                self.log.exception("turn failed")
                wait = self.settings.poll_interval
            alive(wait + SLACK)
            await stop.pause(wait)

    async def _turn(self, stop: StopEvent, alive: Alive) -> float:
        """Diagnose one batch if one is due. Return the seconds to wait before the next turn."""
        idle = self.settings.poll_interval
        try:
            if blocked := await self._blocked():
                self._report(blocked.reason, blocked.kind)
                return min(blocked.seconds, idle)
            claim = await self._claim()
        except MidwatchError as error:
            self._report(f"the store is unavailable: {error.one_line()}", "store")
            return idle
        self._report("", None)
        self.last_success = self.clock.now()
        if claim is None:
            return idle
        await self._attempt(claim, stop, alive)
        return 0.0

    # ------------------------------------------------------------------ claim and attempt

    async def _blocked(self) -> Blocked | None:
        """Return why no call may be made now, or None."""
        if self.model() is None:
            return Blocked(
                getattr(self.model, "problem", "")
                or "no API key: tickets get first aid only (set ANTHROPIC_API_KEY or anthropic.api_key_file)",
                self.settings.auth_probe_interval,
                "no_key",
            )
        if pauses := await self.store.pauses():
            longest = pauses[0]
            reason = f"{longest.kind}: {longest.reason}"
            return Blocked(reason, longest.seconds, longest.kind)
        wait = (
            self._budget_spent_until.get(Severity.CRITICAL, 0.0)
            - self.clock.monotonic()
        )
        if wait > 0:
            return Blocked("the budget of the day is spent", wait, "budget")
        return None

    async def _claim(self) -> Claim | None:
        tight = (
            self._budget_spent_until.get(Severity.INFO, 0.0) > self.clock.monotonic()
        )
        claims = await self.store.claim(
            self.name,
            lease=self.settings.lease,
            least=Severity.CRITICAL if tight else Severity.INFO,
        )
        return claims[0] if claims else None

    async def _attempt(
        self, claim: Claim, stop: StopEvent, alive: Alive = lambda within: None
    ) -> AttemptOutcome | None:
        model = self.model()
        if model is None:  # the key was removed since `_blocked`
            await self.store.release(claim)
            return None
        ended = await self._traced(claim, model, stop, alive)
        self.outcomes[ended.outcome] += 1
        if ended.outcome == "budget":
            self._note_spent_budget(claim.severity)
        return ended

    async def _traced(
        self, claim: Claim, model: Model, stop: StopEvent, alive: Alive
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
            ended = await Attempt(self._shared, claim, traced, alive).run(stop)
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
