"""What is read: lists, the past, the figures."""

from __future__ import annotations

from ...model import Severity, TicketStatus, Usage
from ...store.protocol import Changes, Finish, Opening, TicketFilter
from ._stand import LEASE, Stand, ids, opening


async def tickets_are_filtered_and_limited(stand: Stand) -> None:
    (old,) = await stand.open("old")
    stand.clock.move(1)
    (info,) = await stand.open("info", severity=Severity.INFO)
    stand.clock.move(1)
    (critical,) = await stand.open("critical", severity=Severity.CRITICAL)
    (other,) = await stand.open("other", subject="other")
    await stand.store.resolve(info.id, "ann", "gone")
    unresolved = (TicketStatus.OPEN, TicketStatus.ACKNOWLEDGED, TicketStatus.DIAGNOSED)

    async def listed(query: TicketFilter) -> tuple[int, ...]:
        return ids(await stand.store.tickets(query))

    assert await listed(TicketFilter(unresolved)) == (critical.id, old.id, other.id)
    assert await listed(TicketFilter()) == (other.id, critical.id, info.id, old.id)
    assert await listed(TicketFilter((TicketStatus.RESOLVED,))) == (info.id,)
    assert await listed(TicketFilter(subject="other")) == (other.id,)
    assert await listed(TicketFilter(severity=Severity.CRITICAL)) == (critical.id,)
    assert await listed(TicketFilter(batch=old.batch)) == (old.id,)
    assert await listed(TicketFilter(unresolved, limit=1)) == (critical.id,)
    assert await listed(TicketFilter(limit=0)) == ()
    assert await listed(TicketFilter(subject="db' OR '1'='1")) == ()


async def the_past_teaches(stand: Stand) -> None:
    """What was found and what resolved it: the same key first, then this subject, newest first."""
    answer = {"summary": "a lock", "root_cause": "an idle transaction"}
    for component, subject in (("other", "db"), ("a", "db"), ("a", "elsewhere")):
        (ticket,) = await stand.open(component, subject=subject)
        await stand.diagnose(Finish("answered", answer=answer))
        await stand.cycle(Changes(resolved=(ticket.id,)), subject)
        stand.clock.move(60)
    (now,) = await stand.open("a")
    past = await stand.store.past([now])
    assert [(each.ticket.key.subject, each.ticket.key.component) for each in past] == [
        ("db", "a"),
        ("db", "other"),
        ("elsewhere", "a"),
    ]
    assert [each.same_key for each in past] == [True, False, False]
    assert (past[0].summary, past[0].root_cause) == ("a lock", "an idle transaction")
    assert past[0].ticket.resolution
    assert await stand.store.past([]) == []
    assert len(await stand.store.past([now], limit=2)) == 2


async def the_past_finds_its_key_among_many(stand: Stand) -> None:
    """However many other components of the subject broke since."""
    names = ["a", *(f"c{number}" for number in range(40))]
    for name in names:
        (ticket,) = await stand.open(name)
        await stand.store.resolve(ticket.id, "ann", f"restarted {name}")
        stand.clock.move(1)
    (now,) = await stand.open("a")
    past = await stand.store.past([now], limit=3)
    assert [each.ticket.key.component for each in past] == ["a", "c39", "c38"]


async def errors_are_never_knowledge(stand: Stand) -> None:
    """Nor what resolved by itself without an answer, nor what is not resolved, nor other kinds."""
    for outcome in ("error", "refused", "cut"):
        (ticket,) = await stand.open("a")
        answer = {"summary": outcome, "root_cause": outcome}
        await stand.diagnose(Finish(outcome, answer=answer, error="no"))
        await stand.cycle(Changes(resolved=(ticket.id,)))
    await stand.open("unresolved")
    await stand.diagnose(Finish("answered", answer={"summary": "x"}))
    deadlocks = Changes((opening("a", invariant="deadlocks"),))
    (kind,) = (await stand.cycle(deadlocks)).opened
    await stand.diagnose(Finish("answered", answer={"summary": "x"}))
    await stand.cycle(Changes(resolved=(kind.id,)))
    (now,) = await stand.open("a")
    assert await stand.store.past([now]) == []
    await stand.store.resolve(now.id, "ann", "raised max_connections")
    (again,) = await stand.open("a")
    (past,) = await stand.store.past([again])
    assert (past.ticket.resolution, past.summary) == ("raised max_connections", None)


async def the_figures_are_medians_of_the_period(stand: Stand) -> None:
    empty = await stand.store.stats(3600)
    assert (empty.opened, empty.to_detect, empty.cost_usd) == (0, None, 0)
    assert (empty.usage, dict(empty.outcomes)) == (Usage(), {})
    await stand.open("too old")
    stand.clock.move(7200)
    for number, seconds in enumerate((2.0, 4.0, 9.0)):
        violation = opening(f"c{number}").violation
        saved = await stand.cycle(Changes((Opening(violation, seconds),)))
        claims = await stand.store.claim("agent", lease=LEASE, limit=2)
        claim = next(each for each in claims if each.batch == saved.opened[0].batch)
        call = await stand.begin(claim, usd=1.0)
        stand.clock.move(seconds)
        finish = Finish("answered", Usage(10, 1, 2, 3), 0.5)
        assert await stand.store.finish(claim, call, finish)
        stand.clock.move(10)
        if number:
            await stand.store.resolve(saved.opened[0].id, "ann", "done")
    found = await stand.store.stats(3600)
    assert (found.opened, found.unresolved, found.resolved) == (3, 1, 2)
    assert (found.to_detect, found.to_diagnose, found.to_resolve) == (4.0, 4.0, 16.5)
    assert (found.usage, found.cost_usd) == (Usage(30, 3, 6, 9), 1.5)
    assert dict(found.outcomes) == {"answered": 3}
    assert found.since == stand.clock.after(-3600)


CHECKS = (
    tickets_are_filtered_and_limited,
    the_past_teaches,
    the_past_finds_its_key_among_many,
    errors_are_never_knowledge,
    the_figures_are_medians_of_the_period,
)
