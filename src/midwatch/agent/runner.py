"""AgentRunner: claim, gather, diagnose, store, back off."""

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
from midwatch.errors import MidwatchError
from midwatch.lifecycle import Alive, Clock, Liveness, StopEvent, SystemClock
from midwatch.logs import Log, quiet_log
from midwatch.model import Severity
from midwatch.redaction import Redactor
from midwatch.settings import AgentSettings
from midwatch.store.protocol import Claim, PauseKind, Store

_BUDGET_RECHECK = 60.0
"""Seconds until a spent budget is looked at again: calls that ended cheaper make room, and
a new day does."""

ModelSource = Callable[[], Model | None]
Standstill = PauseKind | Literal["no_key", "budget", "store", "stopped"]


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why no call is made now, and for how many seconds at least; `kind` is the reason in one word."""

    reason: str
    seconds: float
    kind: Standstill = field(default="stopped", compare=False)


class AgentRunner:
    """Diagnoses what is queued, until the stop.

    `model` gives the model to ask now, or None while there is no key. One runner keeps
    `settings.concurrency` calls in flight; any number of runners share one store.
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
    ) -> None:
        self.store = store
        self.settings = settings
        self.name = name
        self.clock = clock or SystemClock()
        self.log = log or quiet_log()
        self.progress = progress or Liveness(self.clock)
        self.outcomes: Counter[str] = Counter()
        self.pauses: Counter[Standstill] = Counter()
        self.standstill: Standstill | None = None
        self.last_success: datetime | None = None
        self.model = model
        self._desk = AttemptContext(
            store,
            gatherer,
            settings,
            max_tokens,
            redactor or Redactor(),
            self.clock,
            self.log,
            random,
            longest_call,
        )
        self._said = ""
        self._tight: dict[Severity, float] = {}

    async def run(self, stop: StopEvent) -> None:
        """Work until `stop`; what happens to a call or to the store is logged, never raised."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat(stop), name="agent heartbeat")
            for number in range(self.settings.concurrency):
                name = f"agent worker {number}"
                group.create_task(self._work(stop, name), name=name)

    async def drain(self, stop: StopEvent) -> Blocked | None:
        """Diagnose what is due now and return; Blocked when something stands in the way.

        Raises the store's errors.
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
        """Diagnose this batch now, even one that waits for its next attempt.

        None when it is not in the queue or another daemon has it. Raises the store's errors.
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
            except Exception:  # a fault of ours must not end the daemon
                self.log.exception("turn failed")
                wait = self.settings.poll_interval
            alive(wait + SLACK)
            await stop.pause(wait)

    async def _turn(self, stop: StopEvent, alive: Alive) -> float:
        """Diagnose one batch if there is one; returns the seconds to wait before the next."""
        idle = self.settings.poll_interval
        try:
            if blocked := await self._blocked():
                self._say(blocked.reason, blocked.kind)
                return min(blocked.seconds, idle)
            claim = await self._claim()
        except MidwatchError as error:
            self._say(f"the store cannot be used: {error.one_line()}", "store")
            return idle
        self._say("", None)
        self.last_success = self.clock.now()
        if claim is None:
            return idle
        await self._attempt(claim, stop, alive)
        return 0.0

    # ------------------------------------------------------------------ may we?

    async def _blocked(self) -> Blocked | None:
        if self.model() is None:
            return Blocked(
                "no API key: tickets get first aid only (set ANTHROPIC_API_KEY or anthropic.api_key_file)",
                self.settings.auth_probe_interval,
                "no_key",
            )
        if pauses := await self.store.pauses():
            longest = pauses[0]
            reason = f"{longest.kind}: {longest.reason}"
            return Blocked(reason, longest.seconds, longest.kind)
        wait = self._tight.get(Severity.CRITICAL, 0.0) - self.clock.monotonic()
        if wait > 0:
            return Blocked("the budget of the day is spent", wait, "budget")
        return None

    async def _claim(self) -> Claim | None:
        tight = self._tight.get(Severity.INFO, 0.0) > self.clock.monotonic()
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
        if model is None:  # the key went away between two lines
            await self.store.release(claim)
            return None
        ended = await Attempt(self._desk, claim, model, alive).run(stop)
        self.outcomes[ended.outcome] += 1
        if ended.outcome == "budget":
            self._budget_spent(claim.severity)
        return ended

    def _budget_spent(self, severity: Severity) -> None:
        """The rest of the budget is for critical tickets; then it is for nobody."""
        again = self.clock.monotonic() + _BUDGET_RECHECK
        critical = severity is Severity.CRITICAL
        self._tight[Severity.CRITICAL if critical else Severity.INFO] = again
        left = "nothing" if critical else "only critical tickets"
        self.log.warning(
            "the budget of the day is spent",
            usd=self.settings.daily_budget_usd,
            diagnosing=left,
        )

    # ------------------------------------------------------------------ telling

    @property
    def spent_usd(self) -> float:
        """What this runner's calls have cost since its start."""
        return self._desk.spent_usd

    def _say(self, reason: str, kind: Standstill | None) -> None:
        """Say a standstill once, and once that it is over."""
        if kind is not None and kind != self.standstill:
            self.pauses[kind] += 1
        self.standstill = kind
        if reason == self._said:
            return
        self._said = reason
        if reason:
            self.log.warning("not diagnosing", reason=reason)
        else:
            self.log.info("diagnosing")

    async def _beat(self, stop: StopEvent) -> None:
        while not stop:
            info = {
                "state": self._said or "diagnosing",
                "concurrency": self.settings.concurrency,
                **self.outcomes,
            }
            try:
                await self.store.beat(self.name, "agent", info)
            except MidwatchError as error:
                self.log.warning("heartbeat not saved", error=error.one_line())
            await stop.pause(max(self.settings.poll_interval, 10.0))
