"""The day's money, shared by every daemon on the store."""

from __future__ import annotations

import asyncio

from ...model import Severity
from ...store.protocol import Budget, Finish
from ._stand import LEASE, Stand

DAY = Budget(10.0, 0.25)


async def calls_in_flight_count_with_their_worst_cost(stand: Stand) -> None:
    """The true cost takes the place of the reserve; a refused call leaves its claim alone."""
    tickets = await stand.open_apart(2)
    first, second = await stand.store.claim("agent", lease=LEASE, limit=2)
    call = await stand.begin(first, 4.0, DAY)
    assert await stand.store.spent_today() == 4.0
    assert await stand.begin_within(second, 4.0, DAY) is None
    assert await stand.store.diagnoses(tickets[1].id) == []
    assert await stand.store.spent_today() == 4.0
    assert await stand.store.finish(first, call, Finish("answered", cost_usd=0.5))
    assert await stand.store.spent_today() == 0.5
    assert await stand.begin_within(second, 4.0, DAY) is not None


async def a_share_is_kept_for_critical_tickets(stand: Stand) -> None:
    await stand.open_apart(1)
    warning = await stand.claim()
    await stand.open("worse", severity=Severity.CRITICAL)
    critical = await stand.claim()
    assert await stand.begin_within(warning, 7.5, DAY) is not None
    assert await stand.begin_within(warning, 0.25, DAY) is None
    assert await stand.begin_within(critical, 2.5, DAY) is not None
    assert await stand.begin_within(critical, 0.25, DAY) is None


async def the_last_money_is_spent_once(stand: Stand) -> None:
    """However many begin at the same moment."""
    await stand.open_apart(6)
    claims = await stand.store.claim("agent", lease=LEASE, limit=6)
    budget = Budget(5.0)
    begun = await asyncio.gather(
        *(stand.begin_within(claim, 2.0, budget) for claim in claims)
    )
    assert len([call for call in begun if call is not None]) == 2
    assert await stand.store.spent_today() == 4.0


async def no_limit_still_counts(stand: Stand) -> None:
    await stand.open("a")
    claim = await stand.claim()
    assert await stand.begin_within(claim, 1e6, Budget(None)) is not None
    assert await stand.store.spent_today() == 1e6


async def nothing_is_allowed_by_no_money(stand: Stand) -> None:
    await stand.open("a", severity=Severity.CRITICAL)
    assert await stand.begin_within(await stand.claim(), 0.01, Budget(0.0)) is None


async def the_budget_renews_with_the_utc_day(stand: Stand) -> None:
    """A call that ends after midnight settles on the day it began."""
    await stand.open_apart(2)
    first, second = await stand.store.claim("agent", lease=86400, limit=2)
    yesterday = await stand.begin(first, 7.5, DAY)
    assert await stand.begin_within(second, 7.5, DAY) is None
    stand.clock.move(12 * 3600)
    assert await stand.store.spent_today() == 0.0
    today = await stand.begin(second, 7.5, DAY)
    assert await stand.store.finish(first, yesterday, Finish("answered", cost_usd=1))
    assert await stand.store.spent_today() == 7.5
    assert await stand.store.finish(second, today, Finish("answered", cost_usd=2))
    assert await stand.store.spent_today() == 2.0
    stand.clock.move(-13 * 3600)
    assert await stand.store.spent_today() == 1.0


CHECKS = (
    calls_in_flight_count_with_their_worst_cost,
    a_share_is_kept_for_critical_tickets,
    the_last_money_is_spent_once,
    no_limit_still_counts,
    nothing_is_allowed_by_no_money,
    the_budget_renews_with_the_utc_day,
)
