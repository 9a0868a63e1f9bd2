"""What daemons tell each other: pauses and heartbeats."""

from __future__ import annotations

from ._stand import Stand


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
    a_pause_is_seen_by_all_until_it_ends,
    a_pause_is_extended_and_never_cut_short,
    pauses_of_different_kinds_stand_beside_each_other,
    heartbeats_tell_who_runs,
)
