"""What daemons share: the day's money, clocks that jump, pauses and heartbeats."""

from __future__ import annotations

import asyncio

from midwatch.model import Severity
from midwatch.store.protocol import Budget, Finish
from midwatch.testing.store_conformance.stand import LEASE, Stand

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


HOUR = 3600.0


async def a_lease_ends_though_the_clock_went_back(stand: Stand) -> None:
    """A dead holder's claim is free again within its lease, not an hour later."""
    await stand.open("a")
    claim = await stand.claim("dead")
    stand.clock.move(-HOUR)
    stand.clock.move(LEASE)
    assert (await stand.claim("heir")).batch == claim.batch


async def a_living_holder_keeps_its_claim_when_the_clock_goes_back(
    stand: Stand,
) -> None:
    """Once it has renewed after the step."""
    await stand.open("a")
    claim = await stand.claim()
    stand.clock.move(-HOUR)
    assert await stand.store.renew(claim, lease=LEASE)
    stand.clock.move(LEASE - 1)
    assert await stand.nothing_due()
    diagnosis = await stand.begin(claim)
    assert await stand.store.finish(claim, diagnosis, Finish("answered"))


async def a_lease_ends_when_the_clock_goes_forth(stand: Stand) -> None:
    """The claim may pass on; the write of its first holder is then refused."""
    await stand.open("a")
    claim = await stand.claim("first")
    diagnosis = await stand.begin(claim)
    stand.clock.move(HOUR)
    second = await stand.claim("second")
    assert not await stand.store.finish(claim, diagnosis, Finish("answered"))
    stand.clock.move(-HOUR)
    assert await stand.store.renew(second, lease=LEASE)
    assert await stand.store.finish(
        second, await stand.begin(second), Finish("answered")
    )


async def a_wait_ends_though_the_clock_went_back(stand: Stand) -> None:
    """For a failed call and for the group wait of a new batch."""
    await stand.open("a")
    await stand.diagnose(Finish("retry", retry_in=15))
    await stand.open("b", group_wait=10)
    stand.clock.move(-HOUR)
    stand.clock.move(15)
    assert len(await stand.store.claim("agent", lease=LEASE, limit=5)) == 2


async def a_wait_may_be_long(stand: Stand) -> None:
    """What is meant to wait for days does."""
    await stand.open("a")
    await stand.diagnose(Finish("retry", retry_in=30 * HOUR))
    stand.clock.move(29 * HOUR)
    assert await stand.nothing_due()
    stand.clock.move(HOUR)
    await stand.claim()


async def cycles_go_on_when_the_clock_goes_back(stand: Stand) -> None:
    """A batch from the future is not joined, and counts stay right."""
    (before,) = await stand.open("a", group_wait=10)
    stand.clock.move(-HOUR)
    (after,) = await stand.open("b", group_wait=10)
    assert after.batch != before.batch
    await stand.cycle()
    assert (await stand.store.ticket(before.id)).occurrence_count == 3
    assert (await stand.store.ticket(after.id)).last_seen_at == stand.clock.now


async def a_pause_from_the_future_is_void(stand: Stand) -> None:
    """It was set before the clock went back; a new one of its kind holds."""
    await stand.store.pause("rate_limit", 60, "429", "agent-1")
    stand.clock.move(-HOUR)
    assert await stand.store.pauses() == []
    await stand.store.pause("rate_limit", 30, "429 again", "agent-2")
    (pause,) = await stand.store.pauses()
    assert (pause.seconds, pause.actor) == (30.0, "agent-2")


async def a_pause_is_seen_by_all_until_it_ends(stand: Stand) -> None:
    assert await stand.store.pauses() == []
    await stand.store.pause("rate_limit", 60, "429 from the API", "agent-1")
    stand.clock.move(20)
    (pause,) = await stand.store.pauses()
    assert (pause.kind, pause.seconds) == ("rate_limit", 40.0)
    assert pause.until == stand.clock.after(40)
    assert (pause.reason, pause.actor) == ("429 from the API", "agent-1")
    stand.clock.move(40)
    assert await stand.store.pauses() == []


async def a_pause_is_extended_and_never_cut_short(stand: Stand) -> None:
    await stand.store.pause("rate_limit", 60, "first", "agent-1")
    await stand.store.pause("rate_limit", 30, "shorter", "agent-2")
    assert [pause.reason for pause in await stand.store.pauses()] == ["first"]
    await stand.store.pause("rate_limit", 90, "longer", "agent-2")
    (pause,) = await stand.store.pauses()
    assert (pause.seconds, pause.reason) == (90.0, "longer")


async def pauses_of_different_kinds_stand_beside_each_other(stand: Stand) -> None:
    """Longest first; ending one leaves the others."""
    await stand.store.pause("rate_limit", 60, "429", "agent-1")
    await stand.store.pause("auth", 600, "401", "agent-1")
    await stand.store.pause("outage", 10, "529", "agent-1")
    kinds = [pause.kind for pause in await stand.store.pauses()]
    assert kinds == ["auth", "rate_limit", "outage"]
    await stand.store.unpause("auth")
    await stand.store.unpause("auth")
    kinds = [pause.kind for pause in await stand.store.pauses()]
    assert kinds == ["rate_limit", "outage"]


async def heartbeats_tell_who_runs(stand: Stand) -> None:
    """The last beat of each name, by name, if it is recent."""
    info = {"pid": 12, "doing": ["a", None], "share": 0.5}
    await stand.store.beat("b", "monitor", {})
    await stand.store.beat("a", "agent", {})
    stand.clock.move(50)
    await stand.store.beat("a", "agent", info)
    found = await stand.store.daemons(60)
    assert [daemon.name for daemon in found] == ["a", "b"]
    assert (found[0].beat_at, found[0].info) == (stand.clock.now, info)
    stand.clock.move(20)
    assert [daemon.name for daemon in await stand.store.daemons(60)] == ["a"]


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
