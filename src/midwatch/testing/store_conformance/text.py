"""Hostile text in every field is stored and returned unchanged.

There are two exceptions: NUL, which text in PostgreSQL cannot hold, and lone surrogates, which
UTF-8 cannot. Both are returned as U+FFFD, on every database.
"""

from __future__ import annotations

import math
import random
import string

from midwatch.errors import StaleWatch
from midwatch.model import Evidence, Facts, Key, Severity, Ticket, Violation
from midwatch.store.protocol import Changes, Claim, Finish, Opening, TicketFilter
from midwatch.testing.store_conformance.fixture import (
    NO_LIMIT,
    StoreFixture,
    ids,
    opening,
    raises,
)

LONG = "0123456789abcde\n" * (1 << 16)
"""A mebibyte."""
ROUND_TRIPS = (
    "\x1b[2J\x1b]0;owned\x07 red",
    "'; DROP TABLE tickets; -- \" %s %(x)s :x ? \\ \\u0000 {} $1",
    "🔥 ünï \u202e\u200b \ufffd \U0010ffff",
    "\x01\x7f\r\n\t",
    LONG,
)
REPLACED = {
    "a\x00b": "a\ufffdb",
    "a\ud800b\udfffc": "a\ufffdb\ufffdc",
    "\\u0000 \x00 \\ud800": "\\u0000 \ufffd \\ud800",
}
TEXTS = {**{text: text for text in ROUND_TRIPS}, **REPLACED}


async def hostile_text_stays_text(fixture: StoreFixture) -> None:
    """In every field of a ticket, an audit row, a call and its answer."""
    for number, (text, expected) in enumerate(TEXTS.items()):
        ticket = await _opened(fixture, f"c{number}", text)
        assert (ticket.message, ticket.facts["text"]) == (expected, expected)
        await fixture.store.acknowledge(ticket.id, text, text)
        claim = (await fixture.store.claim(text, lease=30))[0]
        assert claim.holder in (text, expected)
        await _hostile_call(fixture, claim, ticket, text, expected)
        resolved = await fixture.store.resolve(ticket.id, text, text)
        assert (resolved.acknowledged_by, resolved.resolution) == (expected, expected)
        rows = await fixture.store.history(ticket.id)
        assert {row.actor for row in rows[1:]} == {expected}
        assert (rows[0].why, rows[-1].why) == (expected, expected)


async def _opened(fixture: StoreFixture, component: str, text: str) -> Ticket:
    key = Key("db", "connections", component)
    violation = Violation(key, Severity.WARNING, text, facts={"text": text})
    (ticket,) = await fixture.cycle(Changes((Opening(violation),)))
    assert ticket == await fixture.store.ticket(ticket.id)
    return ticket


async def _hostile_call(
    fixture: StoreFixture, claim: Claim, ticket: Ticket, text: str, expected: str
) -> None:
    diagnosis = await fixture.store.begin(
        claim, model=text, prompt_version=text, reserve_usd=0, budget=NO_LIMIT
    )
    assert diagnosis is not None
    finish = Finish(
        "error",
        answer={"nested": [{text[:9]: text}]},
        markdown=text,
        confidence=text,
        error=text,
        request_id=text,
        evidence=(Evidence("E1", text, text, fixture.clock.now, text),),
    )
    assert await fixture.store.finish(claim, diagnosis, finish)
    found = await fixture.store.diagnosis(diagnosis)
    assert (found.model, found.prompt_version) == (expected, expected)
    assert (found.markdown, found.confidence) == (expected, expected)
    assert (found.error, found.request_id) == (expected, expected)
    assert found.answer is not None
    assert list(found.answer["nested"][0].values()) == [expected]
    (evidence,) = found.evidence
    assert (evidence.title, evidence.source, evidence.text) == (expected,) * 3
    assert (await fixture.store.ticket(ticket.id)).last_error == expected


async def hostile_text_between_daemons(fixture: StoreFixture) -> None:
    """In states, failures, first aid, pauses, heartbeats and the names of subjects."""
    (ticket,) = await fixture.open("a")
    for text, expected in TEXTS.items():
        revision = (await fixture.store.watch("db")).revision
        await fixture.store.save_cycle("db", revision, Changes(), state={"log": [text]})
        assert (await fixture.store.watch("db")).state == {"log": [expected]}
        await fixture.fail(text)
        await fixture.store.save_first_aid([ticket.id], {"summary": text})
        first_aid = (await fixture.store.ticket(ticket.id)).first_aid
        assert first_aid == {"summary": expected}
        await fixture.store.pause("outage", 60, text, text)
        (pause,) = await fixture.store.pauses()
        assert (pause.reason, pause.actor) == (expected, expected)
        await fixture.store.unpause("outage")
        await fixture.store.beat("agent", text, {"text": text})
        (daemon,) = await fixture.store.daemons(60)
        assert (daemon.kind, daemon.info) == (expected, {"text": expected})


async def any_text_can_be_a_key(fixture: StoreFixture) -> None:
    """A key is returned unchanged, finds its ticket and is unique."""
    noise = "".join(random.Random(7).choices(string.printable, k=5000))
    parts = [*TEXTS, LONG + "1", noise, noise + "1", "🔥" * 600 + "1", "🔥" * 600]
    for text in parts:
        key = Key(text, text, text)
        subject = key.subject
        violation = Violation(key, Severity.WARNING, "broken")
        changes = Changes((Opening(violation),))
        (ticket,) = await fixture.cycle(changes, subject)
        assert ticket.key == key
        assert ids((await fixture.store.watch(subject)).tickets) == (ticket.id,)
        assert ids(await fixture.store.openings(key, 60)) == (ticket.id,)
        assert list(await fixture.store.earlier(subject, [key], 60)) == [key]
        query = TicketFilter(subject=subject)
        assert ids(await fixture.store.tickets(query)) == (ticket.id,)
        await raises(StaleWatch, fixture.cycle(changes, subject))
    assert len(await fixture.store.tickets(TicketFilter(limit=99))) == len(parts)


async def numbers_that_json_has_not(fixture: StoreFixture) -> None:
    """NaN and infinity, which JSON does not have, are stored in facts as text."""
    facts: Facts = {"rate": math.nan, "big": 10**25, "text": "NaN"}
    key = Key("db", "connections", "a")
    violation = Violation(key, Severity.WARNING, "odd", math.inf, -math.inf, facts)
    (ticket,) = await fixture.cycle(Changes((Opening(violation),)))
    assert ticket.facts == {
        "rate": "nan",
        "big": 10**25,
        "text": "NaN",
        "value": "inf",
        "limit": "-inf",
    }


async def equal_facts_stay_apart(fixture: StoreFixture) -> None:
    """What Python takes for equal, and JSON does not, is stored as each ticket has it."""
    values = (1, True, 1.0)
    openings = [opening(f"c{at}", facts={"up": one}) for at, one in enumerate(values)]
    await fixture.cycle(Changes(tuple(openings)))
    found = await fixture.store.tickets(TicketFilter())
    facts = {ticket.key.component: ticket.facts["up"] for ticket in found}
    for at, value in enumerate(values):
        # A database may keep 1.0 as 1.
        assert isinstance(facts[f"c{at}"], bool) is isinstance(value, bool)


CHECKS = (
    hostile_text_stays_text,
    hostile_text_between_daemons,
    any_text_can_be_a_key,
    numbers_that_json_has_not,
    equal_facts_stay_apart,
)
