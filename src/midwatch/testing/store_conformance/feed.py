"""Checks of the feed of changes: the audit rows of all tickets, in order, from any place."""

from __future__ import annotations

from midwatch.errors import StaleWatch
from midwatch.model import Key, Severity
from midwatch.store.on_call import Change, Cursor
from midwatch.store.protocol import Changes, Finish
from midwatch.testing.store_conformance.fixture import (
    Check,
    StoreFixture,
    ids,
    opening,
    raises,
)


def _steps(found: list[Change]) -> list[tuple[int, str]]:
    return [(change.ticket_id, change.action) for change in found]


async def every_change_is_in_the_feed(fixture: StoreFixture) -> None:
    """In order, of people and daemons, with what a reader needs to know of the ticket."""
    first, second = await fixture.open("a", "b", severity=Severity.CRITICAL)
    await fixture.store.save_first_aid([first.id], {"summary": "a lock"})
    await fixture.store.acknowledge(second.id, "ann", "on it")
    await fixture.diagnose()
    await fixture.store.hold(first.id, True, "ann")
    await fixture.store.hold(first.id, False, "ann")
    await fixture.store.retry(first.id, "bob")
    fixture.clock.move(5)
    await fixture.cycle(Changes(resolved=(first.id,)))
    found = await fixture.store.changes()
    assert _steps(found) == [
        (first.id, "open"),
        (second.id, "open"),
        (first.id, "first_aid"),
        (second.id, "acknowledge"),
        (first.id, "diagnose"),
        (second.id, "diagnose"),
        (first.id, "hold"),
        (first.id, "unhold"),
        (first.id, "retry"),
        (first.id, "resolve"),
    ]
    assert [change.cursor for change in found] == sorted(
        {change.cursor for change in found}
    )
    opened, last = found[1], found[-1]
    assert opened.key == Key("db", "connections", "b")
    assert (opened.subject, opened.invariant, opened.component) == (
        "db",
        "connections",
        "b",
    )
    assert (opened.severity, opened.message) == (Severity.CRITICAL, "b is not well")
    assert (opened.batch, opened.before, opened.after) == (second.batch, None, "open")
    assert (found[3].actor, found[3].why) == ("ann", "on it")
    assert (last.at, last.before, last.after) == (
        fixture.clock.now,
        "open",
        "resolved",
    )


async def a_reader_goes_on_where_it_was(fixture: StoreFixture) -> None:
    """From any cursor, as it was written down, in pages of any size."""
    assert await fixture.store.changes() == []
    beginning = await fixture.store.last_cursor()
    for name in "abcde":
        await fixture.open(name)
    every = await fixture.store.changes(beginning)
    assert len(every) == 5
    assert await fixture.store.changes() == every
    read: list[Change] = []
    cursor = None
    while page := await fixture.store.changes(cursor, limit=2):
        assert len(page) <= 2
        read += page
        cursor = Cursor.parse(str(page[-1].cursor))
    assert read == every
    assert await fixture.store.last_cursor() == every[-1].cursor
    assert await fixture.store.changes(every[-1].cursor) == []


async def a_change_that_fails_is_not_in_the_feed(fixture: StoreFixture) -> None:
    """Neither is what only counts a ticket as seen again."""
    (ticket,) = await fixture.open("a")
    cursor = await fixture.store.last_cursor()
    stale = Changes((opening("b"), opening("a")), (ticket.id,))
    await raises(StaleWatch, fixture.cycle(stale))
    await fixture.cycle()
    await fixture.store.open_ticket(opening("a"), "ann")
    assert await fixture.store.changes(cursor) == []


async def a_cursor_of_another_database_begins_again(fixture: StoreFixture) -> None:
    """A database that was put in the place of another one has fewer rows, and all are news."""
    tickets = await fixture.open("a", "b")
    found = await fixture.store.changes(Cursor(10**15))
    assert tuple(change.ticket_id for change in found) == ids(tickets)


async def late_diagnoses_are_in_the_feed(fixture: StoreFixture) -> None:
    """A ticket that was resolved during the call gets its diagnosis all the same, and that is a change."""
    (ticket,) = await fixture.open("a")
    claim = await fixture.claim()
    call = await fixture.begin(claim)
    await fixture.store.resolve(ticket.id, "ann", "restarted")
    cursor = await fixture.store.last_cursor()
    assert await fixture.store.finish(claim, call, Finish("answered"))
    (change,) = await fixture.store.changes(cursor)
    assert (change.action, change.before, change.after) == (
        "diagnose",
        "resolved",
        "resolved",
    )


async def readers_are_remembered_by_name(fixture: StoreFixture) -> None:
    assert await fixture.store.cursor("page") is None
    await fixture.store.save_cursor("page", Cursor(3))
    await fixture.store.save_cursor("mail", Cursor(5))
    await fixture.store.save_cursor("page", Cursor(4))
    assert await fixture.store.cursor("page") == Cursor(4)
    assert await fixture.store.cursor("mail") == Cursor(5)


async def listeners_hear_of_changes(fixture: StoreFixture) -> None:
    """After the change is there to be read; reads and counts are none."""
    heard: list[str] = []
    (ticket,) = await fixture.open("a")
    fixture.store.on_change(lambda: heard.append("change"))
    await fixture.cycle()
    await fixture.store.changes()
    assert heard == []
    await fixture.store.acknowledge(ticket.id, "ann")
    assert heard == ["change"]


CHECKS: tuple[Check, ...] = (
    every_change_is_in_the_feed,
    a_reader_goes_on_where_it_was,
    a_change_that_fails_is_not_in_the_feed,
    a_cursor_of_another_database_begins_again,
    late_diagnoses_are_in_the_feed,
    readers_are_remembered_by_name,
    listeners_hear_of_changes,
)
