"""The database's clock stepped an hour back or forth: nothing waits for it to come round."""

from __future__ import annotations

from ...store.protocol import Finish
from ._stand import LEASE, Stand

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


CHECKS = (
    a_lease_ends_though_the_clock_went_back,
    a_living_holder_keeps_its_claim_when_the_clock_goes_back,
    a_lease_ends_when_the_clock_goes_forth,
    a_wait_ends_though_the_clock_went_back,
    a_wait_may_be_long,
    cycles_go_on_when_the_clock_goes_back,
    a_pause_from_the_future_is_void,
)
