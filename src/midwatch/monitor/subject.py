"""One subject under watch: look, check, reconcile, save."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from midwatch.errors import MidwatchError, StaleWatch
from midwatch.lifecycle import Clock
from midwatch.logs import Log
from midwatch.model import Json, Key, Observation, Ticket
from midwatch.monitor.rules import (
    UNOBSERVABLE,
    WHOLE_SUBJECT,
    Baselines,
    Checked,
    Firing,
    Reconciled,
    by_key,
    changes_since,
    check,
    reconcile,
    unobservable,
)
from midwatch.redaction import Sanitizer
from midwatch.settings import MonitorSettings
from midwatch.store.protocol import Changes, Opening, Store, Watch
from midwatch.subjects.base import Subject

_TRIES = 3
"""How often a cycle is computed anew when other writers change its tickets meanwhile."""


@dataclass(frozen=True, slots=True)
class Look:
    """One try at observing a subject: an observation, or the error that stood in the way."""

    observation: Observation | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Cycle:
    """What one cycle did, for one subject or for all. `seconds` is its wall time, `changed` what
    is different from when the subject was last well, where tickets opened."""

    subjects: int = 0
    unobservable: int = 0
    unsaved: int = 0
    open: int = 0
    opened: tuple[Ticket, ...] = ()
    resolved: int = 0
    seconds: float = 0.0
    changed: str = ""


Result = Literal["observed", "unobservable", "unsaved"]


@dataclass(slots=True)
class Tally:
    """What the cycles of a subject came to since the start. `known`: its tickets are."""

    cycles: Counter[Result] = field(default_factory=Counter)
    seconds: float = 0.0
    opened: int = 0
    resolved: int = 0
    last: Result | None = None
    last_success: datetime | None = None

    @property
    def known(self) -> bool:
        return bool(self.cycles["observed"] or self.cycles["unobservable"])

    def add(self, cycle: Cycle, seconds: float, now: datetime) -> None:
        self.last = _result(cycle)
        self.cycles[self.last] += 1
        self.seconds += seconds
        self.opened += len(cycle.opened)
        self.resolved += cycle.resolved
        if self.last == "observed":
            self.last_success = now


def _result(cycle: Cycle) -> Result:
    if cycle.unsaved:
        return "unsaved"
    return "unobservable" if cycle.unobservable else "observed"


class SubjectMonitor:
    """What is remembered of a subject between cycles; the store has the rest."""

    def __init__(
        self,
        subject: Subject,
        store: Store,
        settings: MonitorSettings,
        intake: Sanitizer,
        clock: Clock,
        log: Log,
    ) -> None:
        self.subject = subject
        self.store = store
        self.settings = settings
        self.intake = intake
        self.clock = clock
        self.log = log
        self.invariants = {item.id: item for item in subject.invariants}
        self.tickets: dict[Key, Ticket] = {}
        self.pending: Mapping[Key, float] = {}
        self.tally = Tally()
        self._watch: Watch | None = None
        self._calm = Baselines()
        self._blind: Counter[str] = Counter()
        self._hanging: asyncio.Task[Look] | None = None

    async def cycle(self) -> Cycle:
        """Look once and save what changed. What cannot be saved is computed anew next time."""
        try:
            watch = self._watch or await self._recall()
            look = await self._look(watch.state)
            return await self._save(look)
        except MidwatchError as error:
            self.log.warning(
                "cycle not saved", subject=self.subject.name, error=error.one_line()
            )
            self._watch = None  # what was written is not known: read it again
            return Cycle(1, unsaved=1, open=len(self.tickets))

    async def close(self) -> None:
        if self._hanging is not None:
            self._hanging.cancel()
        await self.subject.close()

    async def _recall(self) -> Watch:
        self._watch = watch = await self.store.watch(self.subject.name)
        self.tickets = by_key(watch.tickets)
        return watch

    # ------------------------------------------------------------------ look

    async def _look(self, state: Json) -> Look:
        """Observe within the subject's time limit, even one that does not heed cancelling."""
        if self._hanging is not None and not self._hanging.done():
            return Look(error="the look before has not ended yet")
        limit = self.subject.timeout
        task = asyncio.create_task(
            self._observe(state), name=f"observe {self.subject.name}"
        )
        timer = asyncio.create_task(self.clock.sleep(limit))
        try:
            await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            task.cancel()
            await asyncio.wait({task}, timeout=0.5)
            self._hanging = task
            return Look(error=f"no answer within {limit:g} s")
        finally:
            timer.cancel()
            task.cancel()

    async def _observe(self, state: Json) -> Look:
        try:
            return Look(await self.subject.observe(state))
        except MidwatchError as error:
            return Look(error=self.intake.sanitize(error.one_line()))
        except Exception as error:  # a subject may be anybody's code
            self.log.exception("subject failed", subject=self.subject.name)
            return Look(error=self.intake.sanitize(f"{type(error).__name__}: {error}"))

    # ------------------------------------------------------------------ check

    def _check(self, watch: Watch, look: Look) -> Checked:
        if look.observation is None:
            return self._check_failure(watch.failures + 1, look.error)
        observation = self.intake.observation(look.observation)
        checked = check(
            self.subject.name,
            self.invariants,
            observation,
            self.pending,
            self.clock.monotonic(),
        )
        return self._with_blind_spots(checked, observation.unavailable)

    def _check_failure(self, failures: int, error: str) -> Checked:
        """A failed look says one thing: how often in a row that was so."""
        if failures < self.settings.unobservable_after:
            return Checked(pending=self.pending)
        ripe = unobservable(self.subject.name, WHOLE_SUBJECT, failures, error)
        return Checked((ripe,), frozenset({ripe.violation.key}), pending=self.pending)

    def _with_blind_spots(
        self, checked: Checked, unavailable: Mapping[str, str]
    ) -> Checked:
        """Add a violation for every invariant that was out of sight for too long."""
        ripe = tuple(
            unobservable(self.subject.name, invariant, self._blind[invariant] + 1, why)
            for invariant, why in unavailable.items()
            if self._blind[invariant] + 1 >= self.settings.unobservable_after
        )

        def known(key: Key) -> bool:
            if key.invariant == UNOBSERVABLE.id:
                return key.component not in unavailable
            return checked.known(key)

        broken = checked.broken | {one.violation.key for one in ripe}
        return replace(checked, ripe=(*checked.ripe, *ripe), broken=broken, known=known)

    # ------------------------------------------------------------------ save

    async def _save(self, look: Look) -> Cycle:
        for _ in range(_TRIES):
            watch = self._watch or await self._recall()
            try:
                return await self._write(watch, look, self._check(watch, look))
            except StaleWatch:
                self._watch = None
        raise StaleWatch()

    async def _write(self, watch: Watch, look: Look, checked: Checked) -> Cycle:
        observation = look.observation
        reconciled = (
            reconcile(self.tickets, checked) if observation else self._failed(checked)
        )
        again = [
            self.tickets[key].id
            for key in (() if observation else checked.broken)
            if key in self.tickets
        ]
        changes = Changes(
            openings=await self._openings(reconciled.openings),
            again=tuple(again),
            missing=_ids(reconciled.missing),
            returned=_ids(reconciled.returned),
            resolved=_ids(reconciled.resolved),
        )
        state = observation.state if observation else watch.state
        saved = await self.store.save_cycle(
            self.subject.name,
            watch.revision,
            changes,
            state=None if state == watch.state else state,
            error=look.error or None,
            group_wait=self.settings.group_wait,
        )
        self.pending = checked.pending
        failures = 0 if observation else watch.failures + 1
        self._watch = replace(
            watch, revision=saved.revision, state=state, failures=failures
        )
        self._remember(look, changes, saved.opened)
        self._tell(look, reconciled, saved.opened)
        changed = self._changed(observation) if saved.opened else ""
        if observation and not checked.broken and not observation.unavailable:
            self._calm.add(self.clock.now(), observation)
        return Cycle(
            subjects=1,
            unobservable=observation is None,
            open=len(self.tickets),
            opened=saved.opened,
            resolved=len(changes.resolved),
            changed=changed,
        )

    def _changed(self, now: Observation | None) -> str:
        calm = self._calm.oldest
        if calm is None or now is None:
            return ""
        return changes_since(calm, now, self.invariants)

    def _failed(self, checked: Checked) -> Reconciled:
        """Nothing but its own ticket follows from a failed look."""
        new = [one for one in checked.ripe if one.violation.key not in self.tickets]
        return Reconciled(openings=tuple(new))

    async def _openings(self, ripe: Sequence[Firing]) -> tuple[Opening, ...]:
        """Openings with what the store knows of their keys' past."""
        if not ripe:
            return ()
        keys = [one.violation.key for one in ripe]
        earlier = await self.store.earlier(
            self.subject.name, keys, self.settings.flapping_window
        )
        openings = []
        for one in ripe:
            past = earlier.get(one.violation.key)
            count = past.openings + 1 if past else 1
            openings.append(
                Opening(
                    self.intake.violation(one.violation),
                    seen_for=one.seen_for,
                    previous_id=past.previous_id if past else None,
                    flapping=count >= self.settings.flapping_openings,
                )
            )
        return tuple(openings)

    def _remember(self, look: Look, changes: Changes, opened: Iterable[Ticket]) -> None:
        """Bring memory to what was just saved."""
        if look.observation is not None:
            out_of_sight = look.observation.unavailable
            self._blind = Counter(
                {name: self._blind[name] + 1 for name in out_of_sight}
            )
        if not changes:
            return
        gone, unseen, seen = map(
            set, (changes.resolved, changes.missing, changes.returned)
        )
        self.tickets = {
            key: _seen(ticket, unseen, seen)
            for key, ticket in self.tickets.items()
            if ticket.id not in gone
        } | by_key(opened)

    def _tell(
        self, look: Look, reconciled: Reconciled, opened: Iterable[Ticket]
    ) -> None:
        name = self.subject.name
        if look.error:
            self.log.warning("not observed", subject=name, error=look.error)
        for ticket in opened:
            self.log.warning(
                "ticket opened",
                ticket=ticket.id,
                subject=name,
                invariant=ticket.key.invariant,
                component=ticket.key.component,
                severity=ticket.severity.label,
                message=ticket.message,
            )
        for ticket in reconciled.resolved:
            self.log.info("ticket resolved", ticket=ticket.id, subject=name)


def _ids(tickets: Iterable[Ticket]) -> tuple[int, ...]:
    return tuple(ticket.id for ticket in tickets)


def _seen(ticket: Ticket, unseen: set[int], seen: set[int]) -> Ticket:
    if ticket.id in unseen:
        return replace(ticket, seen=False)
    return replace(ticket, seen=True) if ticket.id in seen else ticket
