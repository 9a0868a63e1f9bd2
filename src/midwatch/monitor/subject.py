"""The monitor of one subject: poll, check, reconcile, save."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from midwatch.agent.links import Links
from midwatch.errors import MidwatchError, StaleWatch, SubjectTaken
from midwatch.lifecycle import Clock, first
from midwatch.logs import Log
from midwatch.model import (
    Json,
    Key,
    Observation,
    OpenTicket,
    Severity,
    Violation,
)
from midwatch.monitor.cycle_log import log_cycle
from midwatch.monitor.kept_state import (
    CONFIGURATION,
    SEEN,
    UNSEEN,
    kept_state,
    own_state,
)
from midwatch.monitor.observed_changes import ObservedChanges
from midwatch.monitor.result import Cycle, Poll, SubjectStats
from midwatch.monitor.rules import (
    UNOBSERVABLE,
    WHOLE_SUBJECT,
    Baselines,
    CheckResult,
    Reconciled,
    by_key,
    changes_since,
    check,
    reconcile,
    unobservable,
)
from midwatch.monitor.saving import GroupSaver
from midwatch.monitor.settled import Look, Settled, Step, check_changed
from midwatch.monitor.silencing import Silenced, silence
from midwatch.monitor.standstill import MOST_ATTEMPTS, Mark, Standstill
from midwatch.received import TakesAlerts
from midwatch.redaction import Sanitizer
from midwatch.settings import MonitorSettings
from midwatch.silences import in_force, unusable
from midwatch.store.protocol import (
    Changes,
    Opening,
    SavedCycle,
    Store,
    Watch,
)
from midwatch.store.shares_protocol import Unchanged
from midwatch.subjects.base import Subject

_TRIES = 3
"""How often a cycle is computed when other writers change its tickets meanwhile."""
_REPEAT_WITHIN = 60.0
"""Seconds of a cycle within which a poll that a standstill spoiled is made again."""
_STANDING = 180.0
"""Seconds of nothing but polls that a standstill spoiled, after which they count as failed."""
_MANY = 5_000
"""Signals of an observation from which on it is checked on a thread: some ten milliseconds."""


class SubjectMonitor:
    """Runs the cycles of one subject and remembers between them what the store does not have.

    `watcher` is the id of this monitor while several share the subjects: only the one that watches a subject saves then.
    """

    def __init__(
        self,
        subject: Subject,
        store: Store,
        settings: MonitorSettings,
        sanitizer: Sanitizer,
        clock: Clock,
        log: Log,
        links: Links,
        saver: GroupSaver,
        standstill: Standstill | None = None,
    ) -> None:
        self.subject = subject
        self.store = store
        self.settings = settings
        self.sanitizer = sanitizer
        self.clock = clock
        self.log = log
        self.links = links
        self.standstill = standstill
        self.invariants = {item.id: item for item in subject.invariants}
        self.tickets: dict[Key, OpenTicket] = {}
        self.pending: dict[Key, float] = {}
        self.silent: frozenset[Key] = frozenset()
        self.kind = str(getattr(subject, "kind", ""))
        self.stats = SubjectStats()
        self._watch: Watch | None = None
        self._now: tuple[datetime, float] | None = None
        self._settled: Settled | None = None
        self._baselines = Baselines()
        self._unavailable_for: Counter[str] = Counter()
        self._told: dict[str, str] = {}
        self._unusable: Mapping[int, str] = {}
        self._linked_to: frozenset[str] = frozenset()
        self._spoiled_since: float | None = None
        self._stuck: asyncio.Task[Poll] | None = None
        self._takes_alerts = isinstance(subject, TakesAlerts)
        self.unaided: list[int] = []
        self._observed = ObservedChanges(subject.name, sanitizer)
        self._observed_at: datetime | None = None
        self.saver = saver
        self.watcher: str | None = None

    async def cycle(self) -> Cycle:
        """Poll once and save what changed. What cannot be saved is computed again in the next cycle."""
        try:
            watch = self._watch or await self._load()
            poll = await self._poll_awake(watch)
            if poll is None:
                return Cycle(1, unobservable=1, open=len(self.tickets))
            return await self._save(poll)
        except SubjectTaken:
            self.log.info("another monitor watches it", subject=self.subject.name)
            return Cycle()
        except MidwatchError as error:
            self.log.warning(
                "cycle not saved", subject=self.subject.name, error=error.one_line()
            )
            self._watch = None  # what was written is not known: read it again
            return Cycle(1, unsaved=1, open=len(self.tickets))

    def forget(self) -> None:
        """Forget what the store has too: another monitor watches the subject from now on."""
        self._watch = self._settled = None
        self.tickets, self.pending, self.silent = {}, {}, frozenset()
        self._baselines = Baselines()
        self.unaided = []
        self._spoiled_since = self._observed_at = None
        self._observed.forget()

    async def close(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
        await self.subject.close()

    async def _load(self) -> Watch:
        self._settled = None
        watch = await self.store.watch(self.subject.name, self.kind)
        self._watch = replace(watch, tickets=())  # `self.tickets` has them
        known, self.tickets = self.tickets, by_key(watch.tickets)
        if self._takes_alerts:
            seen = {ticket.id for ticket in known.values()}
            self.unaided += [
                ticket.id
                for ticket in self.tickets.values()
                if ticket.new and ticket.id not in seen
            ]
        self._unavailable_for = Counter(watch.state.get(UNSEEN, {}))
        self._set_time(watch.now)
        self._carry_silenced(watch)
        found = unusable(watch.silences, self._time())
        for id_, why in found.items():
            if self._unusable.get(id_) != why:
                self.log.warning("silence cannot be applied", silence=id_, error=why)
        self._unusable = found
        return watch

    def _carry_silenced(self, watch: Watch) -> None:
        """Let what was silent before a restart keep its start: it opens its ticket when the silence ends."""
        now = self._awake()
        began = {
            one.key: now - max((self._time() - one.first_seen_at).total_seconds(), 0.0)
            for one in watch.silenced
        }
        self.pending = {**began, **self.pending}

    def _set_time(self, now: datetime | None) -> None:
        self._now = (now or self.clock.now(), self.clock.monotonic())

    def _time(self) -> datetime:
        """Return the time by the database's clock, by which silences begin and end."""
        if self._now is None:
            return self.clock.now()
        then, monotonic = self._now
        return then + timedelta(seconds=self.clock.monotonic() - monotonic)

    # ------------------------------------------------------------------ poll

    async def _poll_awake(self, watch: Watch) -> Poll | None:
        """Poll again while Midwatch itself stands still during the poll.

        Return None where that happened each time: such a poll is no failure and no success. When there
        was nothing else for minutes, it is a failure.
        """
        own = own_state(watch.state)
        if (standstill := self.standstill) is None:
            return await self._poll(own)
        until = self._awake() + _REPEAT_WITHIN
        for attempt in range(1, MOST_ATTEMPTS + 1):
            if attempt == MOST_ATTEMPTS and (seconds := standstill.settling()):
                await self.clock.sleep(seconds)
            mark = standstill.mark()
            poll = await self._poll(own)
            if not await self._spoiled(standstill, mark, watch, poll):
                self._spoiled_since = None
                return poll
            stuck = self._stuck is not None and not self._stuck.done()
            if stuck or self._awake() > until:
                break
        why, now = standstill.reason(mark), self.clock.monotonic()
        if self._spoiled_since is None:
            self._spoiled_since = now
        if now - self._spoiled_since >= _STANDING:
            return Poll(error=why)
        self.log.warning("not observed", subject=self.subject.name, error=why)
        return None

    async def _spoiled(
        self, standstill: Standstill, mark: Mark, watch: Watch, poll: Poll
    ) -> bool:
        found, limit = poll.observation, self.subject.timeout
        if not standstill.spoils(mark, limit, bad=True):
            return False
        if found is None or standstill.spoils(mark, limit, bad=False):
            return True
        if found.unavailable.keys() - self._unavailable_for.keys():
            return True
        silent = {one.key for one in watch.silenced}
        broken = (await self._step(watch, poll)).checked.broken
        return any(key not in self.tickets and key not in silent for key in broken)

    async def _poll(self, state: Json) -> Poll:
        """Observe within the subject's timeout, also a subject that ignores its cancellation."""
        if self._stuck is not None and not self._stuck.done():
            return Poll(error="the last observation has not ended yet")
        limit = self.subject.timeout
        task = asyncio.create_task(
            self._observe(state), name=f"observe {self.subject.name}"
        )
        try:
            await first(asyncio.wait({task}), self.clock.sleep(limit))
            if task.done():
                return task.result()
            task.cancel()
            await asyncio.wait({task}, timeout=0.5)
            self._stuck = task
            return Poll(error=f"no answer within {limit:g} s")
        finally:
            task.cancel()

    async def _observe(self, state: Json) -> Poll:
        try:
            return Poll(await self.subject.observe(state))
        except MidwatchError as error:
            return Poll(error=self.sanitizer.sanitize(error.one_line()))
        except Exception as error:  # a subject may be a plug-in
            self.log.exception("subject failed", subject=self.subject.name)
            return Poll(
                error=self.sanitizer.sanitize(f"{type(error).__name__}: {error}")
            )

    # ------------------------------------------------------------------ check

    async def _step(self, watch: Watch, poll: Poll) -> Step:
        """Check a poll; one with very many signals on a thread, as the loop must not stand still meanwhile."""
        observation = poll.observation
        if observation is None:
            failed = self._check_failure(watch.failures + 1, poll.error)
            return Step(failed, self.tickets)
        if len(observation.signals) < _MANY:
            return self._check(watch, observation)
        return await asyncio.to_thread(self._check, watch, observation)

    def _check(self, watch: Watch, observation: Observation) -> Step:
        lost = self._lost(watch, observation.unsupported)
        if observation.unavailable or lost:
            return self._check_all(watch, observation, lost)
        raw, settled = Look.at(observation, self.invariants), self._settled
        if settled is None or not settled.raw.covers_as(raw):
            looks = Settled.at(raw, self.sanitizer)
            return replace(self._check_all(watch, observation), looks=looks)
        return check_changed(
            self.subject.name,
            self.invariants,
            observation,
            raw,
            settled,
            self.sanitizer,
            self.pending,
            self._awake(),
            self.tickets,
        )

    def _check_all(
        self, watch: Watch, observation: Observation, lost: Mapping[str, str] = {}
    ) -> Step:
        observation = self.sanitizer.observation(observation)
        checked = check(
            self.subject.name,
            self.invariants,
            observation,
            self.pending,
            self._awake(),
            () if watch.silences or watch.silenced else self.tickets,
        )
        unavailable = {**observation.unavailable, **lost}
        return Step(self._with_unavailable(checked, unavailable), self.tickets)

    def _awake(self) -> float:
        """Return monotonic seconds without those in which Midwatch itself stood still."""
        stood = self.standstill.late() if self.standstill else 0.0
        return self.clock.monotonic() - stood

    def _lost(self, watch: Watch, unsupported: Mapping[str, str]) -> dict[str, str]:
        """Return what was seen before and is impossible to see now; log the rest once."""
        if not unsupported:
            return {}
        seen = {*watch.state.get(SEEN, ()), *(key.invariant for key in self.tickets)}
        for invariant, why in unsupported.items():
            if invariant not in seen and self._told.get(invariant) != why:
                self._told[invariant] = why
                self.log.warning(
                    "invariant cannot be checked",
                    subject=self.subject.name,
                    invariant=invariant,
                    reason=self.sanitizer.sanitize(why),
                )
        return {name: why for name, why in unsupported.items() if name in seen}

    def _state(self, watch: Watch, observation: Observation | None, seen: Json) -> Json:
        """Return the state to keep. `seen` is what the next observation's configuration is compared with."""
        if observation is None:
            return watch.state
        covered = filter(observation.covers, self.invariants)
        return kept_state(
            observation.state,
            {*watch.state.get(SEEN, ()), *covered} & self.invariants.keys(),
            self._unseen(observation),
            seen,
            self.settings.unobservable_after,
        )

    async def _record_changes(self, watch: Watch, observation: Observation) -> Json:
        """Store what was changed since the last observation. Return what the next one is compared with."""
        new, seen = self._observed.compare(
            observation,
            watch.state.get(CONFIGURATION, {}),
            self._observed_at or watch.last_good_at,
            self._time(),
        )
        if new:
            await self.store.record_changes(new)
        return seen

    def _unseen(self, observation: Observation) -> Counter[str]:
        """Return for how many polls in a row each invariant has not been observed, this one included."""
        names = {**observation.unavailable, **observation.unsupported}
        return Counter({name: self._unavailable_for[name] + 1 for name in names})

    def _check_failure(self, failures: int, error: str) -> CheckResult:
        """Count the failed polls in a row; too many are a violation of their own."""
        if failures < self.settings.unobservable_after:
            return CheckResult(pending=self.pending)
        firing = unobservable(self.subject.name, WHOLE_SUBJECT, failures, error)
        return CheckResult(
            (firing,), frozenset({firing.violation.key}), pending=self.pending
        )

    def _with_unavailable(
        self, checked: CheckResult, unavailable: Mapping[str, str]
    ) -> CheckResult:
        """Add a violation for every invariant that was unavailable for too long."""
        firing = tuple(
            unobservable(
                self.subject.name,
                invariant,
                self._unavailable_for[invariant] + 1,
                why,
                self._severity(invariant),
            )
            for invariant, why in unavailable.items()
            if self._unavailable_for[invariant] + 1 >= self.settings.unobservable_after
        )

        def known(key: Key) -> bool:
            if key.invariant == UNOBSERVABLE.id:
                return key.component not in unavailable
            return checked.known(key)

        if not firing:  # and so the large sets are not copied
            return replace(checked, known=known)
        broken = checked.broken | {one.violation.key for one in firing}
        return replace(
            checked, firing=(*checked.firing, *firing), broken=broken, known=known
        )

    def _severity(self, invariant: str) -> Severity:
        """Return how urgent it is that an invariant is out of sight: as urgent as that it is broken."""
        if invariant in self.invariants:
            return self.invariants[invariant].severity
        open_ = (
            ticket.severity
            for key, ticket in self.tickets.items()
            if key.invariant == invariant
        )
        return min(open_, default=Severity.WARNING)

    # ------------------------------------------------------------------ save

    async def _save(self, poll: Poll) -> Cycle:
        for left in reversed(range(_TRIES)):
            watch = self._watch or await self._load()
            try:
                return await self._write(watch, poll, await self._step(watch, poll))
            except StaleWatch:
                self._watch = None
            if self._takes_alerts and left:
                # What was pushed meanwhile is not in the observation: its ticket would be resolved.
                again = await self._poll_awake(await self._load())
                if again is None:
                    return Cycle(1, unobservable=1, open=len(self.tickets))
                poll = again
        if self._takes_alerts:
            return await self._save_look(poll)
        raise StaleWatch()

    async def _save_look(self, poll: Poll) -> Cycle:
        """Save that the subject was observed, or was not: pushes change its tickets faster than a cycle is computed.

        They open and resolve by themselves; what only the monitor decides waits for the next cycle.
        """
        await self.store.save_look(self.subject.name, poll.error or None, self.watcher)
        self._watch = None
        return Cycle(
            subjects=1,
            unobservable=poll.observation is None,
            open=len(self.tickets),
            silenced=len(self.silent),
        )

    def _keep_pending(self, step: Step) -> None:
        if step.of is None:
            self.pending = step.checked.pending
            return
        for key in step.of:
            self.pending.pop(key, None)
        self.pending |= step.checked.pending

    def _settle(self, watch: Watch, step: Step) -> None:
        self._settled = None
        if step.looks is not None and not (watch.silences or watch.silenced):
            broken, tickets = step.checked.broken, self.tickets
            waiting = frozenset(key for key in broken if key not in tickets)
            self._settled = replace(step.looks, waiting=waiting)

    def _unchanged(self, watch: Watch, state: Json, error: str = "") -> Unchanged:
        return Unchanged(
            self.subject.name,
            watch.revision,
            None if state == watch.state else state,
            error or None,
            watch.silences_revision,
            self.watcher,
        )

    async def _write(self, watch: Watch, poll: Poll, step: Step) -> Cycle:
        observation, checked = poll.observation, step.checked
        reconciled = (
            reconcile(step.tickets, checked) if observation else self._failed(checked)
        )
        again = () if observation else self._ids_of(checked.broken)
        silenced = self._silence(watch, reconciled, step)
        changes = Changes(
            openings=await self._openings(silenced.openings),
            again=again,
            missing=_ids(reconciled.missing),
            returned=_ids(reconciled.returned),
            resolved=_ids(reconciled.resolved),
            silenced=silenced.silent,
            audible=silenced.audible,
        )
        seen = await self._record_changes(watch, observation) if observation else {}
        state = self._state(watch, observation, seen)
        saved = await self._saved(changes, self._unchanged(watch, state, poll.error))
        self._keep_pending(step)
        self.silent = silenced.quiet
        self._set_time(saved.now)
        if observation is not None:
            self._observed.done(observation)
            self._observed_at = self._time()
        failures = 0 if observation else watch.failures + 1
        self._watch = replace(
            watch, revision=saved.revision, state=state, failures=failures
        )
        texts = bool(watch.silences or watch.silenced)
        self._remember(poll, reconciled, changes.openings, saved.opened, texts)
        log_cycle(self.log, self.subject.name, poll, changes, saved.opened)
        if changes.silenced or changes.audible:
            self._watch = None  # read again what is silent
        else:
            self._settle(watch, step)
        changed = self._changed_since_baseline(observation) if saved.opened else ""
        broken = step.looks.clean.broken if step.looks else checked.broken
        if observation and not broken and not observation.unavailable:
            self._baselines.add(self.clock.now(), observation)
        return Cycle(
            subjects=1,
            unobservable=observation is None,
            open=len(self.tickets),
            opened=len(saved.opened),
            resolved=len(changes.resolved),
            changed=changed,
            silenced=len(self.silent),
        )

    def _ids_of(self, keys: Iterable[Key]) -> tuple[int, ...]:
        return tuple(self.tickets[key].id for key in keys if key in self.tickets)

    async def _saved(self, changes: Changes, observed: Unchanged) -> SavedCycle:
        """Save an observation: at once where it changes a ticket, else with those of other subjects."""
        if not changes:
            return await self.saver.save(observed)
        return await self.store.save_cycle(
            observed.subject,
            observed.revision,
            changes,
            state=observed.state,
            error=observed.error,
            group_wait=self.settings.group_wait,
            linked=self._linked(changes.openings),
            silences=observed.silences,
            watcher=observed.watcher,
        )

    def _silence(self, watch: Watch, reconciled: Reconciled, step: Step) -> Silenced:
        """Decide what is silent, with texts that are safe to store."""
        present = {one.key: one for one in watch.silenced}
        found = silence(
            reconciled,
            step.checked,
            step.tickets,
            present,
            in_force(watch.silences, self._time()),
            self.kind,
        )
        safe = tuple(
            replace(one, message=self.sanitizer.sanitize(one.message))
            for one in found.silent
        )
        return replace(found, silent=safe)

    def _changed_since_baseline(self, now: Observation | None) -> str:
        baseline = self._baselines.oldest
        if baseline is None or now is None:
            return ""
        return changes_since(baseline, now, self.invariants)

    def _failed(self, checked: CheckResult) -> Reconciled:
        """Return the changes after a failed poll: at most its own ticket opens."""
        new = [one for one in checked.firing if one.violation.key not in self.tickets]
        return Reconciled(openings=tuple(new))

    async def _openings(self, found: Sequence[Opening]) -> tuple[Opening, ...]:
        """Make the texts of openings safe, and add the history that the store has of their keys."""
        if not found:
            return ()
        keys = [one.violation.key for one in found]
        earlier = await self.store.earlier(
            self.subject.name, keys, self.settings.flapping_window
        )
        safe = await self._safe([one.violation for one in found])
        most = self.settings.flapping_openings
        return tuple(
            _of(violation, one).after(earlier.get(key), most)
            for key, violation, one in zip(keys, safe, found, strict=True)
        )

    async def _safe(self, violations: Sequence[Violation]) -> list[Violation]:
        """Return violations with texts that are safe to store."""
        if len(violations) < _MANY // 10:
            return self.sanitizer.violations(violations)
        return await asyncio.to_thread(self.sanitizer.violations, violations)

    def _linked(self, openings: Sequence[Opening]) -> frozenset[str]:
        """Return the subjects whose tickets belong to the same incident as these openings."""
        if not openings:
            return frozenset()
        found = (opening.violation for opening in openings)
        self.links.learn_openings(
            self.subject.name,
            ((f"{one.message}\n{one.key.component}", one.facts) for one in found),
        )
        self._linked_to = self.links.related(self.subject.name)
        return self._linked_to

    async def join_linked(self) -> None:
        """Join the incident of what just opened with those of subjects to which the first evidence shows a link."""
        name = self.subject.name
        before, self._linked_to = self._linked_to, frozenset()
        if (linked := self.links.related(name)) - before:
            await self.store.join(name, linked, self.settings.group_wait)

    def _remember(
        self,
        poll: Poll,
        changes: Reconciled,
        openings: Iterable[Opening],
        opened: Sequence[int],
        texts: bool,
    ) -> None:
        """Update what is remembered between cycles from what was saved."""
        if poll.observation is not None:
            self._unavailable_for = self._unseen(poll.observation)
        for ticket in changes.resolved:
            del self.tickets[ticket.key]
        for seen, some in ((False, changes.missing), (True, changes.returned)):
            for ticket in some:
                self.tickets[ticket.key] = replace(ticket, seen=seen)
        seen = poll.observation is not None
        for id_, new in zip(opened, openings, strict=True):
            found = new.violation
            self.tickets[found.key] = OpenTicket.of(id_, found, seen, texts)
        self.unaided += opened


def _of(safe: Violation, opening: Opening) -> Opening:
    """Return an opening of its violation with safe texts, mostly the same object: there may be a hundred thousand."""
    if safe is opening.violation:
        return opening
    return replace(opening, violation=safe)


def _ids(tickets: Iterable[OpenTicket]) -> tuple[int, ...]:
    return tuple(ticket.id for ticket in tickets)
