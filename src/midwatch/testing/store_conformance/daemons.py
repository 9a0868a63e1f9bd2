"""Checks of what daemons share: the daily budget, clock steps, pauses and heartbeats."""

from __future__ import annotations

import asyncio

from midwatch.model import Severity
from midwatch.store.protocol import Budget, Finish
from midwatch.testing.store_conformance.fixture import LEASE, StoreFixture

DAY = Budget(10.0, 0.25)


async def calls_in_flight_count_with_their_worst_cost(fixture: StoreFixture) -> None:
    """The true cost takes the place of the reserve; a refused call leaves its claim alone."""
    tickets = await fixture.open_apart(2)
    first, second = await fixture.store.claim("agent", lease=LEASE, limit=2)
    call = await fixture.begin(first, 4.0, DAY)
    assert await fixture.store.spent_today() == 4.0
    assert await fixture.begin_within(second, 4.0, DAY) is None
    assert await fixture.store.diagnoses(tickets[1].id) == []
    assert await fixture.store.spent_today() == 4.0
    assert await fixture.store.finish(first, call, Finish("answered", cost_usd=0.5))
    assert await fixture.store.spent_today() == 0.5
    assert await fixture.begin_within(second, 4.0, DAY) is not None


async def a_share_is_kept_for_critical_tickets(fixture: StoreFixture) -> None:
    await fixture.open_apart(1)
    warning = await fixture.claim()
    await fixture.open("worse", severity=Severity.CRITICAL)
    critical = await fixture.claim()
    assert await fixture.begin_within(warning, 7.5, DAY) is not None
    assert await fixture.begin_within(warning, 0.25, DAY) is None
    assert await fixture.begin_within(critical, 2.5, DAY) is not None
    assert await fixture.begin_within(critical, 0.25, DAY) is None


async def the_last_money_is_spent_once(fixture: StoreFixture) -> None:
    """Also when many calls begin at the same time."""
    await fixture.open_apart(6)
    claims = await fixture.store.claim("agent", lease=LEASE, limit=6)
    budget = Budget(5.0)
    begun = await asyncio.gather(
        *(fixture.begin_within(claim, 2.0, budget) for claim in claims)
    )
    assert len([call for call in begun if call is not None]) == 2
    assert await fixture.store.spent_today() == 4.0


async def no_limit_still_counts(fixture: StoreFixture) -> None:
    await fixture.open("a")
    claim = await fixture.claim()
    assert await fixture.begin_within(claim, 1e6, Budget(None)) is not None
    assert await fixture.store.spent_today() == 1e6


async def nothing_is_allowed_by_no_money(fixture: StoreFixture) -> None:
    await fixture.open("a", severity=Severity.CRITICAL)
    assert await fixture.begin_within(await fixture.claim(), 0.01, Budget(0.0)) is None


async def the_budget_renews_with_the_utc_day(fixture: StoreFixture) -> None:
    """A call that ends after midnight settles on the day it began."""
    await fixture.open_apart(2)
    first, second = await fixture.store.claim("agent", lease=86400, limit=2)
    yesterday = await fixture.begin(first, 7.5, DAY)
    assert await fixture.begin_within(second, 7.5, DAY) is None
    fixture.clock.move(12 * 3600)
    assert await fixture.store.spent_today() == 0.0
    today = await fixture.begin(second, 7.5, DAY)
    assert await fixture.store.finish(first, yesterday, Finish("answered", cost_usd=1))
    assert await fixture.store.spent_today() == 7.5
    assert await fixture.store.finish(second, today, Finish("answered", cost_usd=2))
    assert await fixture.store.spent_today() == 2.0
    fixture.clock.move(-13 * 3600)
    assert await fixture.store.spent_today() == 1.0


HOUR = 3600.0


async def a_lease_ends_though_the_clock_went_back(fixture: StoreFixture) -> None:
    """A dead holder's claim is free again within its lease, not an hour later."""
    await fixture.open("a")
    claim = await fixture.claim("dead")
    fixture.clock.move(-HOUR)
    fixture.clock.move(LEASE)
    assert (await fixture.claim("heir")).batch == claim.batch


async def a_living_holder_keeps_its_claim_when_the_clock_goes_back(
    fixture: StoreFixture,
) -> None:
    """Once it has renewed after the step."""
    await fixture.open("a")
    claim = await fixture.claim()
    fixture.clock.move(-HOUR)
    assert await fixture.store.renew(claim, lease=LEASE)
    fixture.clock.move(LEASE - 1)
    assert await fixture.nothing_due()
    diagnosis = await fixture.begin(claim)
    assert await fixture.store.finish(claim, diagnosis, Finish("answered"))


async def a_lease_ends_when_the_clock_goes_forth(fixture: StoreFixture) -> None:
    """The claim may pass on; the write of its first holder is then refused."""
    await fixture.open("a")
    claim = await fixture.claim("first")
    diagnosis = await fixture.begin(claim)
    fixture.clock.move(HOUR)
    second = await fixture.claim("second")
    assert not await fixture.store.finish(claim, diagnosis, Finish("answered"))
    fixture.clock.move(-HOUR)
    assert await fixture.store.renew(second, lease=LEASE)
    assert await fixture.store.finish(
        second, await fixture.begin(second), Finish("answered")
    )


async def a_wait_ends_though_the_clock_went_back(fixture: StoreFixture) -> None:
    """For a failed call and for the group wait of a new batch."""
    await fixture.open("a")
    await fixture.diagnose(Finish("retry", retry_in=15))
    await fixture.open("b", group_wait=10)
    fixture.clock.move(-HOUR)
    fixture.clock.move(15)
    assert len(await fixture.store.claim("agent", lease=LEASE, limit=5)) == 2


async def a_wait_may_be_long(fixture: StoreFixture) -> None:
    """A wait of several days is kept."""
    await fixture.open("a")
    await fixture.diagnose(Finish("retry", retry_in=30 * HOUR))
    fixture.clock.move(29 * HOUR)
    assert await fixture.nothing_due()
    fixture.clock.move(HOUR)
    await fixture.claim()


async def cycles_go_on_when_the_clock_goes_back(fixture: StoreFixture) -> None:
    """A batch from the future is not joined, and counts stay right."""
    (before,) = await fixture.open("a", group_wait=10)
    fixture.clock.move(-HOUR)
    (after,) = await fixture.open("b", group_wait=10)
    assert after.batch != before.batch
    await fixture.cycle()
    assert (await fixture.store.ticket(before.id)).occurrence_count == 3
    assert (await fixture.store.ticket(after.id)).last_seen_at == fixture.clock.now


async def a_pause_from_the_future_is_void(fixture: StoreFixture) -> None:
    """It was set before the clock went back; a new one of its kind holds."""
    await fixture.store.pause("rate_limit", 60, "429", "agent-1")
    fixture.clock.move(-HOUR)
    assert await fixture.store.pauses() == []
    await fixture.store.pause("rate_limit", 30, "429 again", "agent-2")
    (pause,) = await fixture.store.pauses()
    assert (pause.seconds, pause.actor) == (30.0, "agent-2")


async def a_pause_is_seen_by_all_until_it_ends(fixture: StoreFixture) -> None:
    assert await fixture.store.pauses() == []
    await fixture.store.pause("rate_limit", 60, "429 from the API", "agent-1")
    fixture.clock.move(20)
    (pause,) = await fixture.store.pauses()
    assert (pause.kind, pause.seconds) == ("rate_limit", 40.0)
    assert pause.until == fixture.clock.after(40)
    assert (pause.reason, pause.actor) == ("429 from the API", "agent-1")
    fixture.clock.move(40)
    assert await fixture.store.pauses() == []


async def a_pause_is_extended_and_never_cut_short(fixture: StoreFixture) -> None:
    await fixture.store.pause("rate_limit", 60, "first", "agent-1")
    await fixture.store.pause("rate_limit", 30, "shorter", "agent-2")
    assert [pause.reason for pause in await fixture.store.pauses()] == ["first"]
    await fixture.store.pause("rate_limit", 90, "longer", "agent-2")
    (pause,) = await fixture.store.pauses()
    assert (pause.seconds, pause.reason) == (90.0, "longer")


async def pauses_of_different_kinds_stand_beside_each_other(
    fixture: StoreFixture,
) -> None:
    """Longest first; ending one leaves the others."""
    await fixture.store.pause("rate_limit", 60, "429", "agent-1")
    await fixture.store.pause("auth", 600, "401", "agent-1")
    await fixture.store.pause("outage", 10, "529", "agent-1")
    kinds = [pause.kind for pause in await fixture.store.pauses()]
    assert kinds == ["auth", "rate_limit", "outage"]
    await fixture.store.unpause("auth")
    await fixture.store.unpause("auth")
    kinds = [pause.kind for pause in await fixture.store.pauses()]
    assert kinds == ["rate_limit", "outage"]


async def heartbeats_tell_who_runs(fixture: StoreFixture) -> None:
    """The last beat of each name, by name, if it is recent."""
    info = {"pid": 12, "doing": ["a", None], "share": 0.5}
    await fixture.store.beat("b", "monitor", {})
    await fixture.store.beat("a", "agent", {})
    fixture.clock.move(50)
    await fixture.store.beat("a", "agent", info)
    found = await fixture.store.daemons(60)
    assert [daemon.name for daemon in found] == ["a", "b"]
    assert (found[0].beat_at, found[0].info) == (fixture.clock.now, info)
    fixture.clock.move(20)
    assert [daemon.name for daemon in await fixture.store.daemons(60)] == ["a"]


CHECKS = (
    calls_in_flight_count_with_their_worst_cost,
    a_share_is_kept_for_critical_tickets,
    the_last_money_is_spent_once,
    no_limit_still_counts,
    nothing_is_allowed_by_no_money,
    the_budget_renews_with_the_utc_day,
    a_lease_ends_though_the_clock_went_back,
    a_living_holder_keeps_its_claim_when_the_clock_goes_back,
    a_lease_ends_when_the_clock_goes_forth,
    a_wait_ends_though_the_clock_went_back,
    a_wait_may_be_long,
    cycles_go_on_when_the_clock_goes_back,
    a_pause_from_the_future_is_void,
    a_pause_is_seen_by_all_until_it_ends,
    a_pause_is_extended_and_never_cut_short,
    pauses_of_different_kinds_stand_beside_each_other,
    heartbeats_tell_who_runs,
)
