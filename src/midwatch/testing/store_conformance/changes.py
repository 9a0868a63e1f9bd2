"""Checks of the changes of watched systems, and of how far repositories have been read for them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from midwatch.errors import NotFound
from midwatch.model import ChangeKind
from midwatch.system_changes import ChangeFilter, NewChange, Reading
from midwatch.testing.store_conformance.fixture import Check, StoreFixture, raises


def change(key: str, at: datetime, subject: str = "db") -> NewChange:
    """Return a change to store."""
    return NewChange(
        key, at, ChangeKind.DEPLOY, f"deploy {key}", "api ci", subject=subject
    )


async def _listed(fixture: StoreFixture, query: ChangeFilter) -> list[str]:
    return [one.title for one in await fixture.store.system_changes(query)]


async def a_change_is_stored_once(fixture: StoreFixture) -> None:
    """A report that comes again, with whatever words, leaves the first one as it is."""
    new = replace(
        change("1", fixture.clock.after(-60)),
        since=fixture.clock.after(-90),
        labels={"service": "shop\x00"},
        version_from="1.2",
        version_to="1.3",
        link="https://ci.example.org/7",
        author="ann",
        details={"commit": "ab" * 20, "files": ["a.py"]},
    )
    [made] = await fixture.store.record_changes([new])
    assert (made.at, made.since) == (new.at, new.since)
    assert made.recorded_at == fixture.clock.now
    assert dict(made.labels) == {"service": "shop\ufffd"}
    assert (made.version_from, made.version_to, made.author) == ("1.2", "1.3", "ann")
    assert (made.commit, list(made.files)) == ("ab" * 20, ["a.py"])
    again = replace(new, title="another title")
    assert await fixture.store.record_changes([again, again]) == [made]
    assert await fixture.store.system_change(made.id) == made
    await raises(NotFound, fixture.store.system_change(made.id + 1))
    await raises(NotFound, fixture.store.system_change(2**70))
    assert await _listed(fixture, ChangeFilter()) == ["deploy 1"]


async def a_change_of_the_future_happened_now(fixture: StoreFixture) -> None:
    """The clock of who reports it may be wrong; it was there when it was stored."""
    new = replace(
        change("1", fixture.clock.after(3600)), since=fixture.clock.after(1800)
    )
    [made] = await fixture.store.record_changes([new])
    assert made.at == made.since == fixture.clock.now


async def changes_are_listed_in_pages(fixture: StoreFixture) -> None:
    """The newest first, each once, whatever is stored meanwhile."""
    at = fixture.clock.after
    await fixture.store.record_changes(
        [change(str(n), at(-60 * (n // 2))) for n in range(6)]
        + [change("other", at(-1), "web")]
    )
    seen: list[int] = []
    query = ChangeFilter(subject="db", limit=2)
    while page := await fixture.store.system_changes(query):
        seen += [one.id for one in page]
        query = replace(query, after=(page[-1].at, page[-1].id))
        await fixture.store.record_changes([change(f"late {len(seen)}", at(0))])
    assert len(seen) == len(set(seen)) == 6
    since = ChangeFilter(subject="db", since=at(-60), until=at(0))
    assert await _listed(fixture, since) == ["deploy 3", "deploy 2"]
    assert await _listed(fixture, ChangeFilter(kind=ChangeKind.COMMIT)) == []


async def changes_before_an_onset_are_found(fixture: StoreFixture) -> None:
    """Those of the subjects in the period, and those of which the period is known and overlaps it."""
    at = fixture.clock.after
    onset = at(-1000)
    between = replace(change("between", at(-900)), since=at(-1100))
    await fixture.store.record_changes(
        [
            change("before", at(-1200)),
            change("after", at(-990)),
            change("long before", at(-90_000)),
            change("of another", at(-1200), "web"),
            change("by labels", at(-1300), ""),
            between,
            replace(between, dedup_key="later", since=at(-950)),
        ]
    )
    found = await fixture.store.changes_before(
        ["db", ""], onset - timedelta(hours=24), onset, 10
    )
    assert [one.title for one in found] == [
        "deploy between",
        "deploy before",
        "deploy by labels",
    ]
    # More subjects than a statement may have parameters: the sites of one proxy depend on each other.
    sites = [f"site-{number}" for number in range(70_000)]
    few = await fixture.store.changes_before([*sites, "db"], at(-90_000), at(0), 1)
    assert len(few) == 1 and few[0].at == at(-900)


async def old_changes_are_removed(fixture: StoreFixture) -> None:
    at = fixture.clock.after
    await fixture.store.record_changes([change("new", at(-10)), change("old", at(-99))])
    assert await fixture.store.forget_changes(50) == 1
    assert await fixture.store.forget_changes(50) == 0
    assert await _listed(fixture, ChangeFilter()) == ["deploy new"]


async def a_reading_is_stored_with_its_changes(fixture: StoreFixture) -> None:
    """A failure leaves what was read before, and when that was."""
    store = fixture.store
    assert await store.change_reading("shop") == Reading("shop")
    await store.fail_reading("shop", "no answer")
    failed = await store.change_reading("shop")
    assert (failed.read_at, failed.failed_at) == (None, fixture.clock.now)
    read = Reading("shop", {"head": "ab", "tags": ["v1"]})
    await store.record_changes([change("1", fixture.clock.now)], read)
    first = replace(read, read_at=fixture.clock.now)
    assert await store.change_reading("shop") == first
    fixture.clock.move(60)
    await store.fail_reading("shop", "no answer")
    began = fixture.clock.now
    fixture.clock.move(60)
    await store.fail_reading("shop", "refused")
    now = await store.change_reading("shop")
    assert now == replace(first, failed_at=began, error="refused")


CHECKS: tuple[Check, ...] = (
    a_change_is_stored_once,
    a_change_of_the_future_happened_now,
    changes_are_listed_in_pages,
    changes_before_an_onset_are_found,
    old_changes_are_removed,
    a_reading_is_stored_with_its_changes,
)
