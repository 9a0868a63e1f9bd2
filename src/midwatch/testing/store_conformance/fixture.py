"""The fixture of a check: a new store, a clock that the check moves, and steps that checks share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from midwatch._moved import renamed
from midwatch.errors import MidwatchError
from midwatch.model import Facts, Key, OpenTicket, Severity, Ticket, Violation
from midwatch.store.protocol import (
    Budget,
    Changes,
    Claim,
    Finish,
    Opening,
    Store,
)
from midwatch.testing.fakes import opened_in

NO_LIMIT = Budget(None)
LEASE = 30.0


class MovableClock:
    """A clock for a store, which only the check moves. It ignores the arguments that a store passes."""

    def __init__(self, start: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)) -> None:
        self.now = start

    def __call__(self, *_: Any) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        """Move forward by `seconds`, or back if negative."""
        self.now += timedelta(seconds=seconds)

    def after(self, seconds: float) -> datetime:
        return self.now + timedelta(seconds=seconds)


MakeStore = Callable[[MovableClock], Awaitable[Store]]


@dataclass(frozen=True, slots=True)
class StoreFixture:
    """The store under test, its clock, and the steps that checks share."""

    store: Store
    clock: MovableClock

    async def cycle(
        self,
        changes: Changes = Changes(),
        subject: str = "db",
        group_wait: float = 0.0,
        linked: Collection[str] = (),
    ) -> tuple[Ticket, ...]:
        """Save a successful observation on the current revision. Return the tickets that it opens."""
        revision = (await self.store.watch(subject)).revision
        saved = await self.store.save_cycle(
            subject, revision, changes, group_wait=group_wait, linked=linked
        )
        return await opened_in(self.store, saved)

    async def fail(
        self, error: str, changes: Changes = Changes(), subject: str = "db"
    ) -> tuple[Ticket, ...]:
        """Save a failed observation on the current revision. Return the tickets that it opens."""
        revision = (await self.store.watch(subject)).revision
        saved = await self.store.save_cycle(subject, revision, changes, error=error)
        return await opened_in(self.store, saved)

    async def open(
        self,
        *components: str,
        subject: str = "db",
        severity: Severity = Severity.WARNING,
        group_wait: float = 0.0,
        linked: Collection[str] = (),
    ) -> tuple[Ticket, ...]:
        """Open one ticket per component, all in one cycle."""
        openings = tuple(
            opening(component, subject=subject, severity=severity)
            for component in components
        )
        return await self.cycle(Changes(openings), subject, group_wait, linked)

    async def open_apart(self, count: int) -> list[Ticket]:
        """Open `count` tickets, each in its own batch, a second apart."""
        found: list[Ticket] = []
        for number in range(count):
            found += await self.open(f"c{number}")
            self.clock.move(1)
        return found

    async def claim(self, holder: str = "agent", lease: float = LEASE) -> Claim:
        claims = await self.store.claim(holder, lease=lease)
        assert len(claims) == 1, "one batch is due"
        return claims[0]

    async def begin(
        self, claim: Claim, usd: float = 0.0, budget: Budget = NO_LIMIT
    ) -> int:
        diagnosis = await self.begin_within(claim, usd, budget)
        assert diagnosis is not None, "the budget allows the call"
        return diagnosis

    async def begin_within(
        self, claim: Claim, usd: float, budget: Budget
    ) -> int | None:
        return await self.store.begin(
            claim,
            model="claude-test",
            prompt_version="7",
            reserve_usd=usd,
            budget=budget,
        )

    async def diagnose(self, finish: Finish = Finish("answered")) -> tuple[Claim, int]:
        """Claim the next batch, begin a call and end it with `finish`."""
        claim = await self.claim()
        diagnosis = await self.begin(claim)
        assert await self.store.finish(claim, diagnosis, finish)
        return claim, diagnosis

    async def nothing_due(self) -> bool:
        return await self.store.claim("onlooker", lease=LEASE) == []

    async def actions(self, ticket: Ticket) -> list[str]:
        return [row.action for row in await self.store.history(ticket.id)]


Check = Callable[[StoreFixture], Awaitable[None]]


async def run_check(check: Check, make_store: MakeStore) -> None:
    """Run one check on a store of its own, which is closed afterwards."""
    clock = MovableClock()
    store = await make_store(clock)
    try:
        await check(StoreFixture(store, clock))
    finally:
        await store.close()


def opening(
    component: str,
    *,
    subject: str = "db",
    invariant: str = "connections",
    severity: Severity = Severity.WARNING,
    facts: Facts | None = None,
    previous_id: int | None = None,
) -> Opening:
    return Opening(
        Violation(
            Key(subject, invariant, component),
            severity,
            f"{component} is not well",
            facts=facts or {},
        ),
        previous_id=previous_id,
    )


def ids(tickets: Iterable[Ticket | OpenTicket]) -> tuple[int, ...]:
    return tuple(ticket.id for ticket in tickets)


async def raises(kind: type[MidwatchError], call: Awaitable[object]) -> None:
    try:
        await call
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


def __getattr__(name: str) -> object:
    return renamed(__name__, name)
