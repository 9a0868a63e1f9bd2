"""Checks of what the page reads of the whole store: counts, subjects, and figures by day."""

from __future__ import annotations

from datetime import timedelta

from midwatch.model import Severity
from midwatch.store.protocol import Changes, Finish
from midwatch.testing.store_conformance.fixture import Check, StoreFixture


async def unresolved_tickets_are_counted(fixture: StoreFixture) -> None:
    """By severity and by subject; resolved ones do not count."""
    assert await fixture.store.unresolved_counts() == {}
    await fixture.open("a", "b", severity=Severity.CRITICAL)
    (done,) = await fixture.open("c", severity=Severity.WARNING)
    await fixture.open("d", severity=Severity.INFO)
    await fixture.store.resolve(done.id, "ann", "made room")
    expected = {Severity.CRITICAL: 2, Severity.INFO: 1}
    assert await fixture.store.unresolved_counts() == expected
    await fixture.store.investigate("i-1", "db", "Why is it slow?", by="ann")
    [subject] = await fixture.store.subject_states()
    assert (subject.name, subject.unresolved) == ("db", expected), "no question"


async def each_subject_shows_its_most_urgent(fixture: StoreFixture) -> None:
    """However many another subject has; questions and what is resolved are not among them."""
    await fixture.open("a", "b", "c", severity=Severity.WARNING)
    fixture.clock.move(1)
    (worst,) = await fixture.open("d", severity=Severity.CRITICAL)
    (other,) = await fixture.open("/", subject="host", severity=Severity.INFO)
    await fixture.store.investigate("i-1", "host", "Why is it slow?", by="ann")
    found = await fixture.store.most_urgent(2)
    assert [one.key.component for one in found] == ["d", "a", "/"]
    await fixture.store.resolve(worst.id, "ann", "done")
    await fixture.store.resolve(other.id, "ann", "done")
    found = await fixture.store.most_urgent(2)
    assert [one.key.component for one in found] == ["a", "b"]


async def a_subject_says_when_it_was_seen(fixture: StoreFixture) -> None:
    """A failure keeps the time of the last success, and says why."""
    await fixture.cycle(Changes())
    seen = (await fixture.store.subject_states())[0]
    assert (seen.failures, seen.last_error) == (0, None)
    assert seen.last_good_at == fixture.clock.after(0)
    fixture.clock.move(30)
    await fixture.fail("it does not answer")
    failed = (await fixture.store.subject_states())[0]
    assert failed.last_good_at == fixture.clock.after(-30)
    assert (failed.failures, failed.last_error) == (1, "it does not answer")


async def figures_are_by_day(fixture: StoreFixture) -> None:
    """Days without anything are there too; what is older than the first day is left out."""
    (old,) = await fixture.open("too old")
    await fixture.store.resolve(old.id, "ann", "done")
    fixture.clock.move(3 * 86400)
    before = await fixture.open("a", "b", "c", "d")
    for ticket, seconds in zip(before, (60, 30, 210), strict=False):
        fixture.clock.move(seconds)
        await fixture.store.resolve(ticket.id, "ann", "done")
    assert (await fixture.store.figures(1)).days[0].to_resolve == 90.0
    fixture.clock.move(15)
    await fixture.store.resolve(before[3].id, "ann", "done")
    before = await fixture.open("e", "f")
    claim = await fixture.claim()
    call = await fixture.begin(claim, usd=1.0)
    await fixture.store.finish(claim, call, Finish("answered", cost_usd=0.5))
    fixture.clock.move(86400)
    found = await fixture.store.figures(3)
    today = fixture.clock.after(0).date()
    assert [one.day for one in found.days] == [
        today - timedelta(days=back) for back in (2, 1, 0)
    ]
    assert [one.opened for one in found.days] == [0, 6, 0]
    assert found.days[1].to_resolve == (90.0 + 300.0) / 2
    assert found.days[1].to_diagnose == 0.0
    assert sum(one.cost_usd for one in found.days) == 0.5
    assert found.by_invariant == (("connections", 6),)
    assert (found.days[0].to_detect, found.days[0].to_diagnose) == (None, None)


CHECKS: tuple[Check, ...] = (
    unresolved_tickets_are_counted,
    each_subject_shows_its_most_urgent,
    a_subject_says_when_it_was_seen,
    figures_are_by_day,
)
