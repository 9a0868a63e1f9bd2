"""One attempt to diagnose a claimed batch, from gathering the evidence to the write that ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from midwatch import pricing
from midwatch.agent.diagnosis import (
    PROMPT_VERSION,
    Prompt,
    Step,
    conclude,
    next_step,
    paid,
)
from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.investigation import Investigation, Investigator
from midwatch.diagnosis_schema import Kind, NotSent, Reply
from midwatch.errors import ClaimLost, MidwatchError, TemporaryError
from midwatch.lifecycle import (
    Alive,
    Backoff,
    Clock,
    StopEvent,
    background,
    cancel,
    off_loop,
)
from midwatch.logs import Log
from midwatch.model import Context, Severity
from midwatch.redaction import Redactor
from midwatch.settings import AgentSettings
from midwatch.store.protocol import Budget, Claim, Finish, PauseKind, Store
from midwatch.telemetry.spans import NoTelemetry, Telemetry
from midwatch.text import clean, one_line

GATHER_SECONDS = 15.0
"""Seconds to wait for the evidence of a diagnosis at most."""
SLACK = 120.0
"""Seconds beyond its own timeout until a step counts as stuck: more than the transactions of a step
take on a store that can hardly be reached."""
_SPEND_PROBE_SECONDS = 3600.0
"""Seconds until the API is asked again after the account's spend limit: it does not name the time of
renewal."""
_LAST_WRITE_SECONDS = 1.0
_WRITE_TRIES = 20
_LONGEST_WRITE_WAIT = 30.0


class Model(Protocol):
    """A model that can be asked: `midwatch.agent.claude.Claude`, or a fake.

    `ask` may raise NotSent instead of the CancelledError that cancels it.
    """

    model: str

    async def ask(self, prompt: Prompt, max_tokens: int) -> Reply: ...


@dataclass(slots=True)
class AttemptContext:
    """What all attempts of a runner share.

    `failures` counts calls in a row without an answer, `spent_usd` is the cost of the calls that were
    stored, `longest_call` is in seconds. `trace` gets the text of every request and answer.
    """

    store: Store
    gatherer: ContextGatherer
    settings: AgentSettings
    max_tokens: int
    redactor: Redactor
    clock: Clock
    log: Log
    random: Callable[[], float]
    longest_call: float = 300.0
    failures: int = 0
    spent_usd: float = 0.0
    investigator: Investigator | None = None
    trace: Callable[[str], None] | None = None
    telemetry: Telemetry = field(default_factory=NoTelemetry)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is claimed in the transaction that ends an attempt, as `Store.finish_and_claim` has it."""

    lease: float
    least: Severity
    gone: frozenset[str]


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """How an attempt ended: the outcome of its diagnosis, or "given_up", "lost", "stopped", "budget", "failed".

    `following` is the claim that was made with its last write.
    """

    outcome: str
    cost_usd: float = 0.0
    following: Claim | None = None


@dataclass(slots=True)
class Attempt:
    """The work on one claim.

    `wanted` returns what is claimed next, asked with the last write; None for nothing.
    `call` is the diagnosis row of the call in flight; `unsaved` is how that call ended, until it is
    stored; `reserved` is the part of the budget, in US dollars, that was reserved for it.
    """

    shared: AttemptContext
    claim: Claim
    model: Model
    alive: Alive = lambda within: None
    wanted: Callable[[], Wanted | None] = lambda: None
    call: int | None = None
    unsaved: Finish | None = None
    reserved: float = 0.0
    why_cancelled: str = ""
    began: float = 0.0

    async def run(self, stop: StopEvent) -> AttemptOutcome:
        """Work until the claim ends, its lease is lost, or the grace period after a stop is over."""
        self.began = self.shared.clock.monotonic()
        work = asyncio.create_task(
            self._work(), name=f"diagnose batch {self.claim.batch}"
        )
        async with background(self._keep_lease(work), self._stop_late(stop, work)):
            try:
                await asyncio.wait({work})
            finally:
                await cancel(work)
        if work.cancelled():
            return await self._abandon()
        if error := work.exception():
            return await self._unexpected(error)
        return work.result()

    # ------------------------------------------------------------------ the steps

    async def _work(self) -> AttemptOutcome:
        settings = self.shared.settings
        if self.claim.attempt > settings.max_attempts:
            return await self._give_up()
        self.alive(GATHER_SECONDS + SLACK)
        if not pricing.is_loaded():
            await asyncio.to_thread(pricing.load)
        inquiry = await self._inquiry()
        context = inquiry.earlier or await self._gather()
        step: Step | None = Step(context, self.shared.max_tokens)
        while step is not None:
            passed = self.shared.clock.monotonic() - self.began
            inquiry.seconds = inquiry.before + passed
            step = inquiry.step(step, self.model.model)
            if not await self._begin(step):
                return AttemptOutcome("budget")
            reply = await self._ask(step)
            asked = reply.kind is Kind.ASKED
            following = next_step(step, reply)
            if following is None and not asked:
                return await self._settle(step, reply)
            done = paid(reply, "asked" if asked else "retry", step.known)
            await self._finish(replace(done, keep=True))
            inquiry.spend(reply.usage, done.cost_usd)
            if asked:
                self.alive(inquiry.limits.time + SLACK)
                following = await inquiry.ask(step, reply)
            step = following
        raise AssertionError("unreachable")

    async def _gather(self) -> Context:
        with self.shared.telemetry.span("gather evidence") as span:
            context = await self.shared.gatherer.gather(
                self.claim.tickets,
                timeout=GATHER_SECONDS,
                tokens=self.shared.settings.context_tokens,
            )
            missing = sum(not one.available for one in context.evidence)
            pieces = len(context.evidence)
            span.set({"midwatch.evidence": pieces, "midwatch.unavailable": missing})
            return context

    async def _inquiry(self) -> Investigation:
        """Return the investigation of the batch, as attempts that were interrupted left it."""
        shared, tickets = self.shared, self.claim.tickets
        investigator = shared.investigator or Investigator(shared.gatherer, {})
        if not self.claim.begun:
            return investigator.begin(tickets)
        past = await shared.store.diagnoses(tickets[0].id)
        of_batch = [one for one in past if one.batch == self.claim.batch]
        return investigator.resume(tickets, of_batch, shared.clock.now())

    async def _ask(self, step: Step) -> Reply:
        self.alive(self.shared.longest_call + SLACK)
        prompt, trace = step.prompt, self.shared.trace
        if trace:
            trace(prompt.show())
        try:
            reply = await self.model.ask(prompt, step.max_tokens)
        except NotSent:
            self.reserved = 0.0
            raise
        if trace:
            trace(self.shared.redactor.text(clean(reply.show(), longest=None)))
        return reply

    async def _begin(self, step: Step) -> bool:
        settings = self.shared.settings
        self.reserved = step.worst_case_usd(self.model.model)
        self.call = await self.shared.store.begin(
            self.claim,
            model=self.model.model,
            prompt_version=PROMPT_VERSION,
            reserve_usd=self.reserved,
            budget=Budget(settings.daily_budget_usd, settings.critical_reserve),
            evidence=step.known.evidence if step.rounds else (),
        )
        if self.call is None:
            await self.shared.store.release(self.claim)
        return self.call is not None

    async def _settle(self, step: Step, reply: Reply) -> AttemptOutcome:
        """Store what this reply means for the tickets: pause, retry, or a diagnosis."""
        if reply.kind is Kind.UNREACHABLE:
            return await self._unreachable(step, reply)
        self.shared.failures = 0
        pause = self._pause_for(reply)
        if pause is None:
            size = sum(len(one.text) for one in step.known.evidence)
            finish = await off_loop(size, conclude, reply, step, self.shared.redactor)
            return await self._finish(finish)
        kind, seconds = pause
        # The pause comes first: between the two writes no runner may claim and call again.
        await self.shared.store.pause(
            kind, seconds, self._sanitized(reply.error), self.claim.holder
        )
        return await self._finish(
            replace(paid(reply, "retry", step.known), counted=False)
        )

    def _pause_for(self, reply: Reply) -> tuple[PauseKind, float] | None:
        settings = self.shared.settings
        if reply.kind is Kind.RATE_LIMITED:
            return "rate_limit", reply.retry_after or settings.rate_limit_pause
        if reply.kind is Kind.SPEND_LIMIT:
            return "spend_limit", reply.retry_after or _SPEND_PROBE_SECONDS
        if reply.kind is Kind.UNAUTHORISED:
            return "auth", settings.auth_probe_interval
        return None

    async def _unreachable(self, step: Step, reply: Reply) -> AttemptOutcome:
        """Back off; in an outage pause every runner instead of spending attempts."""
        settings = self.shared.settings
        self.shared.failures += 1
        outage = self.shared.failures >= settings.outage_after
        if outage:
            await self.shared.store.pause(
                "outage",
                settings.outage_pause,
                self._sanitized(reply.error),
                self.claim.holder,
            )
        elif self.claim.attempt >= settings.max_attempts:
            failed = self._unanswered(step, reply)
            given_up = replace(failed, outcome="error", given_up=True)
            return await self._finish(given_up)
        wait = min(
            settings.backoff * 2 ** (self.claim.attempt - 1), settings.backoff_max
        )
        jittered = wait * (0.5 + self.shared.random() / 2)
        retry = self._unanswered(step, reply)
        return await self._finish(replace(retry, retry_in=jittered, counted=not outage))

    def _unanswered(self, step: Step, reply: Reply) -> Finish:
        """Return the end of a call without an answer. Where the API may have billed it, its worst case stays."""
        if not reply.lost:
            return paid(reply, "retry", step.known)
        return Finish(
            "lost",
            cost_usd=self.reserved,
            error=reply.error,
            evidence=step.known.evidence,
        )

    async def _give_up(self) -> AttemptOutcome:
        """Give the tickets up: the daemon ended in the middle of every attempt so far."""
        last = (
            self.claim.tickets[0].last_error or "the daemon ended during each of them"
        )
        text = f"gave up after {self.claim.attempt - 1} attempts: {last}"
        return await self._store_error(text, given_up=True)

    # ------------------------------------------------------------------ the writes

    async def _finish(self, finish: Finish) -> AttemptOutcome:
        """Store how the call ended. The write is retried: an answer that was paid for is not dropped."""
        assert self.call is not None
        if finish.error:
            finish = replace(finish, error=self._sanitized(finish.error))
        call, self.unsaved = self.call, finish
        backoff = Backoff(0.5, _LONGEST_WRITE_WAIT)
        for tries in range(1, _WRITE_TRIES + 1):
            self.alive(_LONGEST_WRITE_WAIT + SLACK)
            try:
                stored, following = await self._store(call, finish)
                break
            except TemporaryError as error:
                self.shared.log.warning(
                    "answer not stored yet",
                    batch=self.claim.batch,
                    error=error.one_line(),
                )
                if tries == _WRITE_TRIES:
                    raise
                await self.shared.clock.sleep(backoff.next())
        self.call = self.unsaved = None
        self._report(finish, stored)
        outcome = "given_up" if finish.given_up else finish.outcome
        return AttemptOutcome(outcome if stored else "lost", finish.cost_usd, following)

    async def _store(self, call: int, finish: Finish) -> tuple[bool, Claim | None]:
        """Store how the call ended; with an end of the claim, make the next one in the same transaction."""
        store, wanted = self.shared.store, None if finish.keep else self.wanted()
        if wanted is None:
            return await store.finish(self.claim, call, finish), None
        stored, claims = await store.finish_and_claim(
            self.claim,
            call,
            finish,
            lease=wanted.lease,
            least=wanted.least,
            gone=wanted.gone,
        )
        return stored, claims[0] if claims else None

    async def _abandon(self) -> AttemptOutcome:
        """Make the last write of a cancelled attempt, which does not count against the ticket."""
        writing = asyncio.create_task(self._write_abandoned())
        await asyncio.wait({writing}, timeout=_LAST_WRITE_SECONDS)
        if error := _write_error(writing):
            self.shared.log.warning(
                "claim not released; its lease will end",
                batch=self.claim.batch,
                error=error,
            )
        return AttemptOutcome(self.why_cancelled or "stopped")

    async def _write_abandoned(self) -> None:
        if self.call is None:
            await self.shared.store.release(self.claim)
            return
        finish = self._unsaved_finish()
        stored = await self.shared.store.finish(self.claim, self.call, finish)
        self._report(finish, stored)

    def _unsaved_finish(self) -> Finish:
        """Return the answer that is not stored yet; without one the call is lost."""
        if (known := self.unsaved) is not None:
            counted = known.counted and not known.keep
            return replace(known, keep=False, counted=counted)
        return Finish(
            "lost",
            cost_usd=self.reserved,  # the API may have processed and billed the call
            error=f"{self.why_cancelled or 'stopped'} during the call",
            counted=False,
        )

    async def _unexpected(self, error: BaseException) -> AttemptOutcome:
        if isinstance(error, ClaimLost):
            self.shared.log.warning("claim lost", batch=self.claim.batch)
            return AttemptOutcome("lost")
        if isinstance(error, MidwatchError):  # the store; the lease will end
            self.shared.log.error(
                "attempt not stored", batch=self.claim.batch, error=error.one_line()
            )
            return AttemptOutcome("failed")
        self.shared.log.error("attempt failed", batch=self.claim.batch, exc_info=error)
        try:
            return await self._store_error(f"{type(error).__name__}: {error}")
        except MidwatchError as unsaved:
            self.shared.log.error(
                "attempt not stored", batch=self.claim.batch, error=unsaved.one_line()
            )
            return AttemptOutcome("failed")

    async def _store_error(
        self, text: str, *, given_up: bool = False
    ) -> AttemptOutcome:
        """Store the error as the diagnosis: the ticket leaves the queue and shows why."""
        if self.call is None:
            self.reserved = 0.0
            self.call = await self.shared.store.begin(
                self.claim,
                model=self.model.model,
                prompt_version=PROMPT_VERSION,
                reserve_usd=0.0,
                budget=Budget(None),
            )
        finish = Finish("error", error=text, cost_usd=self.reserved, given_up=given_up)
        return await self._finish(finish)

    def _sanitized(self, text: str) -> str:
        return one_line(self.shared.redactor.text(clean(text)), 500)

    def _report(self, finish: Finish, stored: bool) -> None:
        """Count and log how the call ended."""
        self.shared.spent_usd += finish.cost_usd
        usage = finish.usage
        outcome = "given_up" if finish.given_up else finish.outcome
        tickets = [ticket.id for ticket in self.claim.tickets]
        left_out = [id_ for id_ in tickets if id_ not in finish.settled(tickets)]
        self.shared.log.info(
            "diagnosed" if finish.outcome == "answered" and stored else "attempt ended",
            tickets=tickets,
            **({"left_out": left_out} if left_out else {}),
            batch=self.claim.batch,
            attempt=self.claim.attempt,
            outcome=outcome if stored else "late",
            seconds=round(self.shared.clock.monotonic() - self.began, 2),
            tokens=usage.input_tokens
            + usage.cache_read_tokens
            + usage.cache_write_tokens
            + usage.output_tokens,
            usd=round(finish.cost_usd, 4),
            **({"error": finish.error} if finish.error else {}),
        )

    # ------------------------------------------------------------------ lease and stop

    async def _keep_lease(self, work: asyncio.Task[AttemptOutcome]) -> None:
        """Renew the lease until cancelled; cancel the work when another daemon has claimed the batch."""
        lease = self.shared.settings.lease
        while True:
            await self.shared.clock.sleep(lease / 3)
            try:
                if not await self.shared.store.renew(self.claim, lease=lease):
                    self.why_cancelled = "lost"
                    work.cancel()
                    return
            except MidwatchError as error:
                self.shared.log.warning(
                    "lease not renewed", batch=self.claim.batch, error=error.one_line()
                )

    async def _stop_late(
        self, stop: StopEvent, work: asyncio.Task[AttemptOutcome]
    ) -> None:
        """Cancel the work when the grace period after a stop is over."""
        await stop.wait()
        await self.shared.clock.sleep(self.shared.settings.grace)
        self.why_cancelled = "stopped"
        work.cancel()


def _write_error(writing: asyncio.Task[None]) -> str:
    """Return why a last write is not done, or "". The database and the lease decide about a late one."""
    if not writing.done():
        writing.add_done_callback(lambda late: late.cancelled() or late.exception())
        return f"no answer within {_LAST_WRITE_SECONDS:g} s"
    error = writing.exception()
    if error is None:
        return ""
    if not isinstance(error, MidwatchError):
        raise error
    return error.one_line()
