"""Laws of checking and reconciling, over any sequence of polls.

The oracle derives the state of a key from one poll on its own: broken, well, or unknown.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midwatch.errors import ObservationFailed
from midwatch.model import (
    Json,
    Key,
    Observation,
    Severity,
    Signal,
    Ticket,
    TicketStatus,
)
from midwatch.monitor.loop import MonitorLoop
from midwatch.monitor.rules import (
    UNOBSERVABLE,
    CheckResult,
    Reconciled,
    check,
    reconcile,
)
from midwatch.monitor.settled import Look, Settled, aligned, check_changed
from midwatch.redaction import Redactor, Sanitizer
from midwatch.settings import MonitorSettings
from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.fakes import ALIVE, DISK, FakeSubject, ManualClock

from ..waiting import ScriptedStandstill

INVARIANTS = {"disk": DISK, "alive": ALIVE}
KEYS = [Key("db", name, part) for name in INVARIANTS for part in ("a", "b")]
State = Literal["broken", "well", "unknown"]

# ------------------------------------------------------------------ any sequence of polls


def signals() -> st.SearchStrategy[Signal]:
    """Broken, well or undecided, as the subject reports it or by the limit."""
    saying = st.sampled_from(
        [
            {"holds": False},
            {"holds": True},
            {"holds": None},
            {"value": 0.95},
            {"value": 0.5},
            {"value": math.nan},
        ]
    )
    return st.builds(
        lambda key, outcome: Signal(key.invariant, key.component, "message", **outcome),
        st.sampled_from(KEYS),
        saying,
    )


def observations() -> st.SearchStrategy[Observation]:
    names = st.sampled_from([*INVARIANTS, "*"])
    return st.builds(
        lambda signals_, covered, hidden: Observation(
            tuple(signals_), frozenset(covered - hidden.keys()), hidden
        ),
        st.lists(signals(), max_size=6),
        st.sets(names),
        st.dictionaries(st.sampled_from(list(INVARIANTS)), st.just("hidden")),
    )


polls = st.one_of(st.none(), observations(), observations())
"""None is a poll that failed."""
gaps = st.sampled_from([0.0, 10.0, 30.0, 90.0])
holding = st.frozensets(st.sampled_from(KEYS))


def state(observation: Observation | None, key: Key) -> State:
    """What a poll says of a key."""
    if observation is None:
        return "unknown"
    words = [
        _word(signal)
        for signal in observation.signals
        if (signal.invariant, signal.component) == (key.invariant, key.component)
    ]
    for word in ("broken", "unknown", "well"):
        if word in words:
            return word  # type: ignore[return-value]
    return "well" if observation.covers(key.invariant) else "unknown"


def _word(signal: Signal) -> State:
    if signal.holds is not None:
        return "well" if signal.holds else "broken"
    if signal.value is None or math.isnan(signal.value) or signal.invariant == "alive":
        return "unknown"
    return "broken" if signal.value > 0.9 else "well"


# ------------------------------------------------------------------ the smallest monitor


@dataclass
class Fold:
    """Check and reconcile, and do in memory what the store would do."""

    hold_for: float = 0.0
    tickets: dict[Key, Ticket] = field(default_factory=dict)
    pending: Mapping[Key, float] = field(default_factory=dict)
    number: int = 0

    def check(self, observation: Observation, now: float) -> CheckResult:
        invariants = {
            name: replace(invariant, hold_for=self.hold_for)
            for name, invariant in INVARIANTS.items()
        }
        return check("db", invariants, observation, self.pending, now)

    def poll(self, observation: Observation | None, now: float) -> Reconciled:
        if observation is None:
            return Reconciled()
        checked = self.check(observation, now)
        changes = reconcile(self.tickets, checked)
        self.pending = checked.pending
        for gone in changes.resolved:
            del self.tickets[gone.key]
        for seen, some in ((False, changes.missing), (True, changes.returned)):
            for one in some:
                self.tickets[one.key] = replace(one, seen=seen)
        for one in changes.openings:
            assert one.violation.key not in self.tickets, "one ticket per key"
            self._open(one.violation.key)
        return changes

    def hold(self, keys: frozenset[Key]) -> None:
        self.tickets = {
            key: replace(ticket, held=key in keys)
            for key, ticket in self.tickets.items()
        }

    def _open(self, key: Key) -> None:
        self.number += 1
        at = datetime(2026, 3, 1, tzinfo=UTC)
        self.tickets[key] = Ticket(
            id=self.number,
            key=key,
            severity=Severity.WARNING,
            status=TicketStatus.OPEN,
            held=False,
            message="message",
            facts={},
            first_seen_at=at,
            opened_at=at,
            last_seen_at=at,
            occurrence_count=1,
            batch=1,
        )


@given(st.lists(st.tuples(polls, holding), max_size=12))
def test_only_what_is_known_opens_or_resolves_and_held_ones_stay(
    steps: Sequence[tuple[Observation | None, frozenset[Key]]],
) -> None:
    fold = Fold()
    for number, (poll, held) in enumerate(steps):
        fold.hold(held)
        before = dict(fold.tickets)
        changes = fold.poll(poll, number)
        opened = {one.violation.key for one in changes.openings}
        resolved = {ticket.key for ticket in changes.resolved}
        for key in KEYS:
            word = state(poll, key)
            ticket = before.get(key)
            assert (key in opened) == (word == "broken" and ticket is None)
            free = ticket is not None and not ticket.held
            assert (key in resolved) == (word == "well" and free)
            if key in fold.tickets and poll is not None:
                assert fold.tickets[key].seen == (word == "broken")
        assert len(opened) == len(changes.openings)


@given(st.lists(polls, max_size=8), observations(), st.sampled_from([0.0, 45.0]))
def test_the_same_poll_again_changes_nothing(
    past: Sequence[Observation | None], poll: Observation, hold_for: float
) -> None:
    fold = Fold(hold_for)
    for number, one in enumerate(past):
        fold.poll(one, number * 30.0)
    now = len(past) * 30.0
    fold.poll(poll, now)
    pending = fold.pending
    assert not fold.poll(poll, now)
    assert fold.pending == pending


@given(st.lists(st.tuples(polls, gaps), max_size=15), gaps)
def test_a_break_opens_once_it_has_lasted_and_what_is_unseen_goes_on_lasting(
    steps: Sequence[tuple[Observation | None, float]], hold_for: float
) -> None:
    fold = Fold(hold_for)
    since: dict[Key, float] = {}
    now = 0.0
    for poll, gap in steps:
        now += gap
        before = set(fold.tickets)
        opened = {one.violation.key: one for one in fold.poll(poll, now).openings}
        for key in KEYS:
            word = state(poll, key)
            if word == "well":
                since.pop(key, None)
            elif word == "broken":
                since.setdefault(key, now)
            lasted = now - since.get(key, now)
            firing = word == "broken" and lasted >= hold_for
            assert (key in opened) == (firing and key not in before)
            if key in opened:
                assert opened[key].seen_for == lasted


@given(st.lists(polls, max_size=8))
def test_the_order_of_signals_means_nothing(past: Sequence[Observation | None]) -> None:
    one, other = Fold(), Fold()

    def turned(poll: Observation) -> Observation:
        return replace(poll, signals=poll.signals[::-1])

    for number, poll in enumerate(past):
        one.poll(poll, number)
        other.poll(poll and turned(poll), number)
        assert {key: ticket.seen for key, ticket in one.tickets.items()} == {
            key: ticket.seen for key, ticket in other.tickets.items()
        }


# ------------------------------------------------------------------ the real monitor and store


class World:
    """One event loop and one store in memory for all examples; each has a subject of its own."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.clock = ManualClock()
        opening = open_store("sqlite://", clock=self.clock.database)
        self.store: SqlStore = self.runner.run(opening)
        self.examples = 0

    def subject(self) -> str:
        self.examples += 1
        return f"db{self.examples}"

    def close(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


Act = Literal["hold", "let go", "resolve", "nothing"]
acts = st.tuples(
    st.sampled_from(["hold", "let go", "resolve", "nothing"]), st.sampled_from(KEYS)
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(polls, acts, st.sampled_from([0, 1])), max_size=8))
def test_two_monitors_on_a_store_do_what_the_fold_says(
    world: World,
    steps: Sequence[tuple[Observation | None, tuple[Act, Key], Literal[0, 1]]],
) -> None:
    world.runner.run(_follow(world, steps))


async def _follow(
    world: World,
    steps: Sequence[tuple[Observation | None, tuple[Act, Key], Literal[0, 1]]],
) -> None:
    name, store, fold = world.subject(), world.store, Fold()
    subjects = [FakeSubject(name), FakeSubject(name)]
    rules = MonitorSettings(unobservable_after=1000, group_wait=0)
    monitors = [MonitorLoop(store, [one], rules, clock=world.clock) for one in subjects]
    for poll, (act, key), turn in steps:
        await _act(store, name, fold, act, key)
        subjects[turn].then(ObservationFailed("blind") if poll is None else poll)
        cycle = await monitors[turn].cycle()
        assert cycle.unsaved == 0
        fold.poll(poll, 0.0)
        found = [one for one in await _tickets(store, name) if not one.resolved]
        keys = [one.key._replace(subject="db") for one in found]
        assert sorted(map(str, keys)) == sorted(map(str, fold.tickets))
        for one, key in zip(found, keys, strict=True):
            assert (one.held, one.seen) == (
                fold.tickets[key].held,
                fold.tickets[key].seen,
            )
    for one in await _tickets(store, name):
        actions = [row.action for row in await store.history(one.id)]
        assert actions.count("open") == 1 and actions.count("resolve") <= 1


async def _act(store: SqlStore, name: str, fold: Fold, act: Act, key: Key) -> None:
    """What a person does between two polls, to the store and to the fold."""
    ticket = fold.tickets.get(key)
    if ticket is None or act == "nothing":
        return
    [stored] = [
        one
        for one in await _tickets(store, name)
        if one.key._replace(subject="db") == key and not one.resolved
    ]
    if act == "resolve":
        await store.resolve(stored.id, "me", "by hand")
        del fold.tickets[key]
        return
    await store.hold(stored.id, act == "hold", "me")
    fold.tickets[key] = replace(ticket, held=act == "hold")


async def _tickets(store: SqlStore, subject: str) -> list[Ticket]:
    return await store.tickets(TicketFilter(subject=subject, limit=1000))


# ------------------------------------------------------------------ every way of not knowing

Way = Literal["broken", "well", "unavailable", "unsupported", "silent", "not a number"]
ways = st.sampled_from(get_args(Way))
steps_ = st.one_of(
    st.sampled_from(["failed", "stood still", "restart"]), st.tuples(ways, ways)
)
_AFTER = 3


def observed(pair: tuple[Way, Way]) -> Observation:
    """Return an observation in which each of the two invariants is in this state, on one component."""
    found = dict(zip(INVARIANTS, pair, strict=True))
    signals_ = {"broken": {"holds": False}, "well": {"holds": True}}
    unknown: dict[str, Any] = {"not a number": {"value": math.nan}}
    return Observation(
        tuple(
            Signal(name, "a", "message", **{**signals_, **unknown}[way])
            for name, way in found.items()
            if way in {**signals_, **unknown}
        ),
        frozenset(name for name, way in found.items() if way in signals_),
        {name: "why" for name, way in found.items() if way == "unavailable"},
        unsupported={
            name: "fix" for name, way in found.items() if way == "unsupported"
        },
    )


@dataclass
class Oracle:
    """The unresolved tickets, as the laws have them."""

    tickets: set[tuple[str, str]] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    unseen: Counter[str] = field(default_factory=Counter)
    failures: int = 0

    def failed(self) -> None:
        self.failures += 1
        if self.failures >= _AFTER:
            self.tickets.add((UNOBSERVABLE.id, "observation"))

    def observed(self, pair: tuple[Way, Way]) -> None:
        self.failures = 0
        self.tickets.discard((UNOBSERVABLE.id, "observation"))
        for name, way in zip(INVARIANTS, pair, strict=True):
            self._observed(name, way, (UNOBSERVABLE.id, name))

    def _observed(self, name: str, way: Way, blind: tuple[str, str]) -> None:
        hidden = way in ("unavailable", "unsupported")
        self.unseen[name] = self.unseen[name] + 1 if hidden else 0
        lost = way == "unavailable" or name in self.seen or (name, "a") in self.tickets
        if way == "broken":
            self.tickets.add((name, "a"))
        elif way == "well":
            self.tickets.discard((name, "a"))
        if not hidden or not lost:
            self.tickets.discard(blind)
        elif self.unseen[name] >= _AFTER:
            self.tickets.add(blind)
        if way in ("broken", "well"):
            self.seen.add(name)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(steps_, max_size=14))
def test_no_way_of_not_knowing_opens_or_resolves_what_is_not_known(
    world: World, steps: Sequence[str | tuple[Way, Way]]
) -> None:
    world.runner.run(_not_knowing(world, steps))


async def _not_knowing(world: World, steps: Sequence[str | tuple[Way, Way]]) -> None:
    name, oracle, still = world.subject(), Oracle(), ScriptedStandstill(lambda: 0.0)
    subject = Standing(name, still)
    rules = MonitorSettings(unobservable_after=_AFTER, group_wait=0)

    def monitor() -> MonitorLoop:
        return MonitorLoop(
            world.store, [subject], rules, clock=world.clock, standstill=still
        )

    loop = monitor()
    for step in steps:
        subject.stands = step == "stood still"
        if step == "restart":
            loop = monitor()
            continue
        if step == "failed":
            subject.then(ObservationFailed("blind"))
            oracle.failed()
        elif not isinstance(step, str):
            subject.then(observed(step))
            oracle.observed(step)
        cycle = await loop.cycle()
        assert cycle.unobservable == (step in ("failed", "stood still"))
        found = await _tickets(world.store, name)
        unresolved = {
            (one.key.invariant, one.key.component): one.severity
            for one in found
            if not one.resolved
        }
        assert unresolved.keys() == oracle.tickets
        for (kind, component), severity in unresolved.items():
            if kind == UNOBSERVABLE.id and component in INVARIANTS:
                assert severity is INVARIANTS[component].severity


class Standing(FakeSubject):
    """A subject during whose observations the process stands still for long."""

    def __init__(self, name: str, still: ScriptedStandstill) -> None:
        super().__init__(name)
        self.still, self.stands = still, False

    async def observe(self, previous: Json) -> Observation:
        if self.stands:
            self.still.stand(4.0)
        return await super().observe(previous)


# ------------------------------------------------------------------ only what changed


@given(
    st.integers(0, 2500),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1200), st.integers(0, 40))),
    st.booleans(),
)
def test_two_looks_differ_in_what_was_edited(
    size: int, edits: Sequence[tuple[float, int, int]], twice: bool
) -> None:
    """Each edit takes signals out somewhere and puts others there; names come once, or again with another outcome."""

    def broken(name: str) -> Signal:
        return Signal("alive", name, "message", holds=False)

    signals_ = [broken(f"pod-{n}") for n in range(size)]
    signals_ += [replace(one, holds=True) for one in signals_ if twice]
    new = itertools.count()
    edited = list(signals_)
    for place, gone, come in edits:
        at = int(place * len(edited))
        edited[at : at + gone] = [broken(f"new-{next(new)}") for _ in range(come)]
    before, after = (
        Look.at(Observation(tuple(some), frozenset({"*"})), INVARIANTS)
        for some in (signals_, edited)
    )
    parts = aligned(after.components, before.components)
    for part in parts:
        same = after.components[part.after] == before.components[part.before]
        assert same or not part.is_same
    for number, look in enumerate((after, before)):
        pieces = (look.components[part[number]] for part in parts)
        assert [*itertools.chain.from_iterable(pieces)] == look.components
    then, now = (
        {(one.invariant, one.component, one.holds) for one in some}
        for some in (signals_, edited)
    )
    differing = {(invariant, name) for invariant, name, _ in then ^ now}
    assert differing <= {*after.changed(before, parts)}
    if len(parts) < 1000 and not twice:
        assert differing == {*after.changed(before, parts)}


@given(st.lists(st.tuples(observations(), gaps), max_size=6), holding)
def test_a_check_of_what_changed_finds_what_a_whole_check_finds(
    polls_: list[tuple[Observation, float]], held: frozenset[Key]
) -> None:
    fold, now = Fold(hold_for=30.0), 0.0
    settled: Settled | None = None
    sanitizer = Sanitizer(Redactor())
    for observation, gap in polls_:
        now += gap
        observation = replace(observation, unavailable={})
        raw = Look.at(observation, INVARIANTS)
        partly = None
        if settled is not None and settled.raw.covers_as(raw):
            invariants = {
                name: replace(one, hold_for=fold.hold_for)
                for name, one in INVARIANTS.items()
            }
            partly = check_changed(
                "db",
                invariants,
                observation,
                raw,
                settled,
                sanitizer,
                fold.pending,
                now,
                fold.tickets,
            )
        before, tickets = dict(fold.pending), dict(fold.tickets)
        changes = fold.poll(observation, now)
        if partly is not None:
            found = reconcile(partly.tickets, partly.checked)
            assert _shape(found) == _shape(changes)
            kept = {key: at for key, at in before.items() if key not in partly.of}
            assert {**kept, **partly.checked.pending} == fold.pending
            assert tickets.keys() >= partly.tickets.keys()
        broken = fold.check(observation, now).broken
        waiting = frozenset(key for key in broken if key not in fold.tickets)
        settled = replace(Settled.at(raw, sanitizer), waiting=waiting)
        if fold.tickets.keys() & held:
            fold.hold(held)  # the monitor reads the tickets again then
            settled = None


def _shape(changes: Reconciled) -> tuple[object, ...]:
    return (
        {one.violation.key for one in changes.openings},
        *({one.id for one in some} for some in (changes.missing, changes.returned)),
        {one.id for one in changes.resolved},
    )
