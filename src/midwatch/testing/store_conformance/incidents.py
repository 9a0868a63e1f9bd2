"""Checks of incidents: tickets of linked subjects that are one batch, and past incidents found by their words."""

from __future__ import annotations

from midwatch.model import Grounded, Severity, Ticket, Violation
from midwatch.store.protocol import Changes, Finish, Opening
from midwatch.testing.store_conformance.fixture import (
    LEASE,
    StoreFixture,
    ids,
    opening,
)


async def linked_subjects_are_one_incident(fixture: StoreFixture) -> None:
    """What opens on a linked subject within the group wait joins; it does not prolong the wait."""
    (shop,) = await fixture.open("a", subject="shop", group_wait=10)
    (other,) = await fixture.open("a", subject="other", group_wait=10)
    fixture.clock.move(9)
    (cause,) = await fixture.open(
        "b",
        severity=Severity.CRITICAL,
        group_wait=10,
        linked={"shop", "unknown", "db' OR '1'='1"},
    )
    assert cause.batch == shop.batch != other.batch
    fixture.clock.move(1)
    claim, _ = await fixture.store.claim("agent", lease=LEASE, limit=2)
    assert ids(claim.tickets) == (cause.id, shop.id)
    assert claim.severity is Severity.CRITICAL
    (late,) = await fixture.open("c", group_wait=10, linked={"shop"})
    assert late.batch != shop.batch


async def what_links_two_incidents_makes_them_one(fixture: StoreFixture) -> None:
    """Their tickets move into the oldest, with an audit row; nothing else is due."""
    (shop,) = await fixture.open("a", subject="shop", group_wait=10)
    fixture.clock.move(1)
    (api,) = await fixture.open("a", subject="api", group_wait=10)
    assert shop.batch != api.batch
    fixture.clock.move(1)
    (disk,) = await fixture.open(
        "/var", subject="box", group_wait=10, linked={"shop", "api"}
    )
    fixture.clock.move(8)
    claim = await fixture.claim()
    assert (claim.batch, ids(claim.tickets)) == (shop.batch, (shop.id, api.id, disk.id))
    assert await fixture.actions(api) == ["open", "join"]
    call = await fixture.begin(claim)
    explained = Finish("answered", explains=(disk.id, api.id))
    assert await fixture.store.finish(claim, call, explained)
    left = await fixture.claim()
    assert ids(left.tickets) == (shop.id,)


async def a_link_that_shows_itself_later_joins_all_the_same(
    fixture: StoreFixture,
) -> None:
    (shop,) = await fixture.open("a", subject="shop", group_wait=10)
    (db,) = await fixture.open("a", severity=Severity.CRITICAL, group_wait=10)
    (other,) = await fixture.open("a", subject="other", group_wait=10)
    await fixture.store.join("unknown", {"shop", "db"}, 10)
    await fixture.store.join("shop", {"db"}, 0)
    assert (await fixture.store.ticket(db.id)).batch == db.batch != shop.batch
    sites = {f"site-{number}" for number in range(70_000)}
    await fixture.store.join("shop", {"db", *sites}, 10)
    await fixture.store.join("shop", {"db", "unknown"}, 10)
    assert (await fixture.store.ticket(db.id)).batch == shop.batch
    assert (await fixture.store.ticket(other.id)).batch == other.batch
    fixture.clock.move(10)
    claim, _ = await fixture.store.claim("agent", lease=LEASE, limit=3)
    assert ids(claim.tickets) == (db.id, shop.id)
    await fixture.store.join("shop", {"db", "other"}, 3600)
    assert (await fixture.store.ticket(other.id)).batch == other.batch


async def what_an_agent_has_is_not_changed(fixture: StoreFixture) -> None:
    """Nor what a person or a diagnosis has put back into the queue."""
    (shop,) = await fixture.open("a", subject="shop", group_wait=10)
    (claim,) = await fixture.store.claim("agent", lease=LEASE, batch=shop.batch)
    (cause,) = await fixture.open("a", group_wait=10, linked={"shop"})
    assert cause.batch != shop.batch
    assert ids(claim.tickets) == (shop.id,)
    assert (await fixture.store.ticket(shop.id)).batch == claim.batch
    await fixture.store.release(claim)
    again = await fixture.store.retry(shop.id, "ann")
    (more,) = await fixture.open("b", group_wait=10, linked={"shop"})
    assert more.batch == cause.batch != again.batch
    await fixture.cycle(Changes(resolved=(cause.id, more.id)))
    (last,) = await fixture.open("c", group_wait=10, linked={"shop"})
    assert last.batch not in (cause.batch, again.batch)


async def _past(
    fixture: StoreFixture,
    component: str,
    *,
    subject: str,
    invariant: str,
    finish: Finish | None = None,
    why: str = "",
) -> Ticket:
    """Open a ticket, diagnose it, and resolve it: by hand with `why`, else by observation."""
    new = opening(component, subject=subject, invariant=invariant)
    (ticket,) = await fixture.cycle(Changes((new,)), subject)
    if finish is not None:
        await fixture.diagnose(finish)
    if why:
        await fixture.store.resolve(ticket.id, "ann", why)
    else:
        await fixture.cycle(Changes(resolved=(ticket.id,)), subject)
    return await fixture.store.ticket(ticket.id)


async def the_past_is_found_by_its_words(fixture: StoreFixture) -> None:
    """Of any subject and invariant, with how much of it was verified and what resolved it."""
    full = {
        "verdict": "identified",
        "summary": "The volume was full.",
        "root_cause": "walkeeper never removed archived segments from /mnt/archive",
    }
    finish = Finish("answered", answer=full, confidence="high", grounded=Grounded(3, 4))
    disk = await _past(
        fixture, "/mnt/archive", subject="box", invariant="disk", finish=finish
    )
    by_hand = await _past(
        fixture,
        "Ünïcode »queue«",
        subject="mail",
        invariant="queue",
        why="restarted walkeeper after the segments were gone",
    )
    await _past(fixture, "nothing alike", subject="web", invariant="status", why="x")
    violation = opening("archiver", invariant="log_errors").violation
    message = "walkeeper: could not write segments: No space left on device"
    new = Opening(Violation(violation.key, violation.severity, message))
    (now,) = await fixture.cycle(Changes((new,)))
    found = await fixture.store.past([now])
    assert sorted(one.ticket.id for one in found) == [disk.id, by_hand.id]
    by_id = {one.ticket.id: one for one in found}
    assert by_id[disk.id].ticket == disk
    assert by_id[disk.id].root_cause == full["root_cause"]
    assert (by_id[disk.id].verified, by_id[disk.id].verdict) == (True, "identified")
    assert (by_id[disk.id].grounded, by_id[disk.id].confidence) == (
        Grounded(3, 4),
        "high",
    )
    assert by_id[by_hand.id].ticket.resolution == by_hand.resolution
    assert not any(one.same_key for one in found)
    for query, ticket in (("ARCHIVE volume", disk), ("ünïcode", by_hand)):
        assert [one.ticket for one in await fixture.store.search_past(query)] == [
            ticket
        ]
    assert len(await fixture.store.search_past("segments", limit=1)) == 1
    for hostile in ("", '"', "a'b OR 1=1 --", "NEAR(", "*", "& | ! ( :*", "\0\ud800"):
        assert len(await fixture.store.search_past(hostile)) <= 5


async def an_unverified_diagnosis_is_marked(fixture: StoreFixture) -> None:
    """One without a cause or with most of its claims not found, and one that was not checked."""
    for verdict, grounded in (
        ("identified", None),
        ("identified", Grounded(0, 0)),
        ("identified", Grounded(1, 3)),
        ("suspected", Grounded(3, 3)),
    ):
        answer = {"summary": "x", "verdict": verdict}
        finish = Finish("answered", answer=answer, grounded=grounded)
        await _past(fixture, "a", subject="db", invariant="connections", finish=finish)
        (now,) = await fixture.open("a")
        found = (await fixture.store.past([now]))[0]
        assert (found.verified, found.verdict) == (False, verdict)
        assert found.grounded == grounded
        await fixture.cycle(Changes(resolved=(now.id,)))


async def a_late_diagnosis_is_remembered(fixture: StoreFixture) -> None:
    """One of a ticket that was resolved while it was made, and one that was made elsewhere."""
    (ticket,) = await fixture.open("a")
    claim = await fixture.claim()
    call = await fixture.begin(claim)
    await fixture.cycle(Changes(resolved=(ticket.id,)))
    assert await fixture.store.search_past("flibbertigibbet") == []
    answer = {"summary": "flibbertigibbet", "root_cause": ""}
    await fixture.store.finish(claim, call, Finish("answered", answer=answer))
    (found,) = await fixture.store.search_past("flibbertigibbet")
    assert found.ticket.id == ticket.id
    await fixture.store.update_diagnosis(
        ticket.id,
        Finish("answered", answer={"summary": "gallimaufry"}),
        actor="program",
        model="m",
        prompt_version="1",
    )
    assert await fixture.store.search_past("flibbertigibbet") == []
    (found,) = await fixture.store.search_past("gallimaufry")
    assert found.ticket.id == ticket.id


CHECKS = (
    linked_subjects_are_one_incident,
    what_links_two_incidents_makes_them_one,
    a_link_that_shows_itself_later_joins_all_the_same,
    what_an_agent_has_is_not_changed,
    the_past_is_found_by_its_words,
    an_unverified_diagnosis_is_marked,
    a_late_diagnosis_is_remembered,
)
