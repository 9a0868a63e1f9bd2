"""Checks of what programs ask for: searches, pages, changes of what was read, investigations, and stored answers."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from midwatch.errors import Conflict, NotFound, Outdated
from midwatch.model import INVESTIGATION, UNRESOLVED, Severity, Ticket, TicketStatus
from midwatch.store.figures import Place
from midwatch.store.protocol import Changes, Finish, TicketFilter
from midwatch.testing.store_conformance.fixture import (
    StoreFixture,
    ids,
    opening,
    raises,
)


async def tickets_are_searched(fixture: StoreFixture) -> None:
    """Each word stands in a text of the ticket, in any case; no character of it is a pattern."""
    disk = opening("Disk_1 100%", invariant="disk_full")
    (full,) = await fixture.cycle(Changes((disk,)))
    (empty,) = await fixture.open("pool", subject="web")
    await fixture.store.resolve(empty.id, "ann", "Restarted the pooler")

    async def found(text: str) -> tuple[int, ...]:
        return ids(await fixture.store.tickets(TicketFilter(text=text)))

    (apart,) = await fixture.open("abc bcd", subject="web")
    await fixture.store.resolve(apart.id, "ann", 'Noted "Ärger"')
    assert await found('"Ärger"') == await found("bcd ab") == (apart.id,)
    assert await found("abcd") == ()
    assert await found("dISK") == (full.id,)
    assert await found("not 100% db") == (full.id,)
    assert await found("restarted web") == (empty.id,)
    assert await found(" well ") == (apart.id, empty.id, full.id)
    for nothing in ("disk restarted", "1_0", "d%k", "\\", "'", "\0", "\ud800"):
        assert await found(nothing) == ()
    of_invariant = TicketFilter(invariant="disk_full")
    assert ids(await fixture.store.tickets(of_invariant)) == (full.id,)


async def pages_are_stable_while_tickets_open(fixture: StoreFixture) -> None:
    """Who reads page after page sees each ticket once, whatever opens or resolves meanwhile."""
    for severity in (Severity.INFO, Severity.CRITICAL, Severity.WARNING):
        name = severity.label
        await fixture.open(f"{name} a", f"{name} b", severity=severity)
        fixture.clock.move(0.001)
    before = await fixture.store.tickets(TicketFilter(UNRESOLVED))
    for newest_first in (False, True):
        query = TicketFilter(UNRESOLVED, limit=2, newest_first=newest_first)
        whole = ids(await fixture.store.tickets(replace(query, limit=99)))
        seen: list[Ticket] = []
        while page := await fixture.store.tickets(query):
            seen += page
            query = replace(query, after=Place.of(page[-1]))
            name = f"{newest_first} {len(seen)}"
            await fixture.open(name, severity=Severity.CRITICAL)
        assert tuple(id_ for id_ in ids(seen) if id_ in whole) == whole
        assert len(set(ids(seen))) == len(seen)
    order = [(one.severity, one.opened_at, one.id) for one in before]
    assert order == sorted(order)


async def what_was_changed_meanwhile_is_not_changed(fixture: StoreFixture) -> None:
    """A person decides on what was read: with another version nothing is written."""
    (ticket,) = await fixture.open("a")
    version = await fixture.store.version(ticket.id)
    await fixture.store.acknowledge(ticket.id, "ann", version=version)
    after = await fixture.store.version(ticket.id)
    assert after > version
    for change in (
        fixture.store.acknowledge(ticket.id, "bob", version=version),
        fixture.store.hold(ticket.id, True, "bob", version=version),
        fixture.store.resolve(ticket.id, "bob", "done", version=version),
        fixture.store.retry(ticket.id, "bob", version=version),
    ):
        await raises(Outdated, change)
    assert await fixture.store.version(ticket.id) == after
    fixture.clock.move(30)
    await fixture.cycle()
    await fixture.store.resolve(ticket.id, "bob", "done", version=after)


async def an_investigation_is_answered_and_ends(fixture: StoreFixture) -> None:
    """It has a ticket and a batch of its own; the diagnosis resolves it, and becomes knowledge."""
    store = fixture.store
    (other,) = await fixture.open("a", group_wait=60)
    made = await store.investigate(
        "i-1",
        "db",
        "Why is it slow?",
        by="ann",
        severity=Severity.CRITICAL,
        facts={"a": 1},
    )
    assert (made.id, made.subject, made.requested_by) == ("i-1", "db", "ann")
    assert made.ended_at is None and made.diagnosis_id is None
    ticket = await store.ticket(made.ticket_id)
    assert (ticket.key.invariant, ticket.message) == (INVESTIGATION, "Why is it slow?")
    assert ticket.facts["a"] == 1 and ticket.batch != other.batch
    claim, diagnosis = await fixture.diagnose(
        Finish("answered", answer={"root_cause": "x"}, explains=(ticket.id,))
    )
    assert ids(claim.tickets) == (ticket.id,)
    ended = await store.investigation("i-1")
    assert (ended.ended_at, ended.diagnosis_id) == (fixture.clock.now, diagnosis)
    ticket = await store.ticket(made.ticket_id)
    assert ticket.status is TicketStatus.RESOLVED
    assert (await fixture.actions(ticket))[-2:] == ["diagnose", "resolve"]
    assert ids(one.ticket for one in await store.search_past("slow")) == (ticket.id,)
    await raises(Conflict, store.cancel_investigation("i-1", "ann"))


async def an_investigation_that_is_resolved_by_hand_calls_back(
    fixture: StoreFixture,
) -> None:
    """However it ends, who asked learns of it, once."""
    where = "https://ci.example.org/done"
    asked = [
        await fixture.store.investigate(id_, "db", "Why?", by="ci", callback_url=url)
        for id_, url in (("i-1", where), ("i-2", None))
    ]
    for one in asked:
        await fixture.store.resolve(one.ticket_id, "ann", "known")
    [called] = await fixture.store.deliveries()
    assert (called.target, called.event) == (where, "investigation")
    assert called.content == {"investigation": "i-1"}


async def an_investigation_is_opened_once(fixture: StoreFixture) -> None:
    """The same id again changes nothing, even after it has ended."""
    made = await fixture.store.investigate("i-1", "db", "Why?", by="ann")
    again = await fixture.store.investigate("i-1", "web", "What?", by="bob")
    assert again == made
    ended = await fixture.store.cancel_investigation("i-1", "bob")
    assert ended.cancelled_at == ended.ended_at == fixture.clock.now
    fixture.clock.move(1)
    assert await fixture.store.cancel_investigation("i-1", "bob") == ended
    assert await fixture.store.investigate("i-1", "db", "Why?", by="ann") == ended
    assert await fixture.nothing_due()
    await raises(NotFound, fixture.store.investigation("i-2"))
    await raises(NotFound, fixture.store.cancel_investigation("i-2", "bob"))


async def investigations_are_listed_in_pages(fixture: StoreFixture) -> None:
    for number in range(5):
        await fixture.store.investigate(f"i-{number}", "db", "Why?", by="ann")
        fixture.clock.move(number % 2)
    seen: list[str] = []
    after = None
    while page := await fixture.store.investigations(2, after):
        seen += [one.id for one in page]
        after = (page[-1].created_at, page[-1].id)
        await fixture.store.investigate(f"i-later-{len(seen)}", "db", "Why?", by="ann")
    assert [one for one in seen if "later" not in one] == sorted(seen, reverse=True)


async def an_answer_is_stored_for_its_request(fixture: StoreFixture) -> None:
    """The first carries it out; the next get its answer, for a day."""
    store = fixture.store
    assert await store.begin_request("ann", "k", "digest") is None
    await raises(Conflict, store.begin_request("ann", "k", "digest"))
    await store.end_request("ann", "k", 201, {"id": 7, "text": "\x00ä"})
    known = await store.begin_request("ann", "k", "digest")
    assert known is not None
    assert (known.digest, known.status, known.answer["id"]) == ("digest", 201, 7)
    other = await store.begin_request("ann", "k", "other")
    assert other is not None and other.digest == "digest"
    assert await store.begin_request("bob", "k", "digest") is None
    fixture.clock.move(86_401)
    assert await store.begin_request("ann", "k", "digest") is None


async def one_of_several_at_once_is_carried_out(fixture: StoreFixture) -> None:
    """A client that sends again while the first is on its way does not have it done twice."""
    begin = [fixture.store.begin_request("ann", "k", "digest") for _ in range(8)]
    found = await asyncio.gather(*begin, return_exceptions=True)
    assert found.count(None) == 1
    assert sum(isinstance(one, Conflict) for one in found) == 7


async def a_request_that_failed_is_carried_out_again(fixture: StoreFixture) -> None:
    """So is one whose process died."""
    store = fixture.store
    assert await store.begin_request("ann", "k", "digest") is None
    await store.end_request("ann", "k", 503, None)
    assert await store.begin_request("ann", "k", "digest") is None
    fixture.clock.move(121)
    assert await store.begin_request("ann", "k", "digest") is None


CHECKS = (
    tickets_are_searched,
    pages_are_stable_while_tickets_open,
    what_was_changed_meanwhile_is_not_changed,
    an_investigation_is_answered_and_ends,
    an_investigation_that_is_resolved_by_hand_calls_back,
    an_investigation_is_opened_once,
    investigations_are_listed_in_pages,
    an_answer_is_stored_for_its_request,
    one_of_several_at_once_is_carried_out,
    a_request_that_failed_is_carried_out_again,
)
