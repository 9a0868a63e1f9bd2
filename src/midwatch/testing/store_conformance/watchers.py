"""Checks of how monitors share the subjects, and of observations that are saved together."""

from __future__ import annotations

from midwatch.errors import SubjectTaken
from midwatch.fair_shares import Member
from midwatch.store.protocol import Changes
from midwatch.store.shares_protocol import Unchanged
from midwatch.testing.store_conformance.fixture import LEASE, StoreFixture, raises

_KNOWN = frozenset({"db", "web"})


def _member(name: str) -> Member:
    return Member(f"id of {name}", name, "", _KNOWN, LEASE)


async def each_subject_has_one_watcher(fixture: StoreFixture) -> None:
    """A monitor that joins is given its share by the one that has it, once that is not observing it."""
    store, a, b = fixture.store, _member("a"), _member("b")
    alone = await store.share(a, {"subjects": 2})
    assert alone.subjects == _KNOWN and alone.next_end is None
    assert await store.stay(a, alone, {}) == alone
    joined = await store.share(b, {})
    assert (joined.subjects, joined.members) == (frozenset(), 2)
    stayed = await store.stay(a, alone, {})
    assert stayed and (stayed.subjects, stayed.version) == (_KNOWN, "")
    busy = await store.share(a, {}, busy=_KNOWN)
    assert (busy.subjects, busy.version) == (_KNOWN, "")
    less = await store.share(a, {})
    more = await store.stay(b, joined, {})
    assert more and more.version == less.version
    assert len(less.subjects) == 1 and less.subjects | more.subjects == _KNOWN
    assert {one.watcher for one in await store.subject_states()} == {"a", "b"}
    assert {one.name for one in await store.daemons(60)} == {"a", "b"}


async def what_a_dead_monitor_watched_goes_to_others(fixture: StoreFixture) -> None:
    """When its lease is over, when its process has ended, or when it left; not before."""
    store, a, b = fixture.store, _member("a"), _member("b")
    first = await store.share(a, {})
    share = await store.share(b, {})
    fixture.clock.move(LEASE - 1)
    stayed = await store.stay(b, share, {})
    assert stayed and (stayed.subjects, stayed.next_end) == (frozenset(), 1.0)
    fixture.clock.move(1)
    stayed = await store.stay(b, stayed, {})
    assert stayed and stayed.version == ""
    assert (await store.share(b, {})).subjects == _KNOWN
    assert await store.stay(a, first, {}) is None
    await store.share(a, {}, ended=lambda process: False)
    await store.leave(b.id)
    assert (await store.share(a, {})).subjects == _KNOWN


async def only_the_watcher_saves(fixture: StoreFixture) -> None:
    """A monitor that lost a subject writes nothing to it; one that saves for no share is not asked."""
    store, a, b = fixture.store, _member("a"), _member("b")
    await store.share(a, {})
    revision = (await store.watch("db")).revision
    late = store.save_cycle("db", revision, Changes(), watcher=b.id)
    await raises(SubjectTaken, late)
    saved = await store.save_unchanged(
        [
            Unchanged("db", revision, watcher=b.id),
            Unchanged("web", revision, watcher=a.id),
        ]
    )
    assert (saved.taken, saved.stale) == (frozenset({"db"}), frozenset())
    await store.save_cycle("db", revision, Changes())


async def observations_without_changes_are_saved_together(
    fixture: StoreFixture,
) -> None:
    """Each as by a cycle of its own: count, state and failures; those on another revision are named and not saved."""
    (ticket,) = await fixture.open("a")
    store = fixture.store
    for name in ("web", "box", "host"):
        await store.watch(name)
    await store.save_cycle("box", 0, Changes(), error="no answer")
    fixture.clock.move(30)
    revision = (await store.watch("db")).revision
    saved = await store.save_unchanged(
        [
            Unchanged("db", revision),
            Unchanged("web", 0, state={"x": 1}),
            Unchanged("box", 0, error="no answer again"),
            Unchanged("host", 7),
        ]
    )
    assert (saved.stale, saved.taken) == (frozenset({"host"}), frozenset())
    assert saved.now == fixture.clock.now
    again = await store.ticket(ticket.id)
    assert (again.occurrence_count, again.last_seen_at) == (2, fixture.clock.now)
    assert (await store.watch("web")).state == {"x": 1}
    assert (await store.watch("box")).failures == 2
    looked = {one.name: one.last_look_at for one in await store.subject_states()}
    assert looked["host"] is None and looked["web"] == fixture.clock.now


CHECKS = (
    each_subject_has_one_watcher,
    what_a_dead_monitor_watched_goes_to_others,
    only_the_watcher_saves,
    observations_without_changes_are_saved_together,
)
