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
    await fixture.open("too old")
    fixture.clock.move(3 * 86400)
    before = await fixture.open("a", "b")
    fixture.clock.move(60)
    await fixture.store.resolve(before[0].id, "ann", "done")
    claim = await fixture.claim()
    call = await fixture.begin(claim, usd=1.0)
    await fixture.store.finish(claim, call, Finish("answered", cost_usd=0.5))
    fixture.clock.move(86400)
    found = await fixture.store.figures(3)
    today = fixture.clock.after(0).date()
    assert [one.day for one in found.days] == [
        today - timedelta(days=back) for back in (2, 1, 0)
    ]
    assert [one.opened for one in found.days] == [0, 2, 0]
    assert found.days[1].to_resolve == 60.0
    assert sum(one.cost_usd for one in found.days) == 0.5
    assert found.by_invariant == (("connections", 2),)
    assert (found.days[0].to_detect, found.days[0].to_diagnose) == (None, None)


CHECKS: tuple[Check, ...] = (
    unresolved_tickets_are_counted,
    a_subject_says_when_it_was_seen,
    figures_are_by_day,
)
