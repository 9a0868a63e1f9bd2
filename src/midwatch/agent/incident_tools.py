"""Tools of Midwatch itself: past incidents, and the state of linked subjects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, create_model

from midwatch.agent.evidence import FOREIGN_WORDS
from midwatch.agent.recent_changes import RecentChanges
from midwatch.model import Invariant, Observation, Origin, Signal
from midwatch.store.protocol import Past
from midwatch.subjects.base import Subject
from midwatch.subjects.tools import Answer, Arguments, Tool
from midwatch.text import mark_reported, one_line, reported
from midwatch.units import format_value

Search = Callable[[str, int], Awaitable[Sequence[Past]]]
_MOST_PAST = 5
_MOST_SIGNALS = 40


class SearchArguments(Arguments):
    words: str = Field(description="What to search for.", min_length=2, max_length=200)


def search_tool(search: Search, describe: Callable[[Past], str]) -> Tool:
    """Return the tool `search`. `describe` returns a past incident as text."""

    async def run(asked: SearchArguments) -> Answer:
        found = await search(asked.words, _MOST_PAST)
        text = "\n\n".join(map(describe, found))
        return Answer(f"search {asked.words}", text, Origin.EARLIER)

    return Tool(
        "search",
        "Past incidents of any system by words: what was found, what resolved them.",
        SearchArguments,
        run,
    )


class ChangesArguments(Arguments):
    hours: float = Field(24, description="How far to look back.", gt=0, le=720)


def changes_tool(changes: RecentChanges, subjects: Sequence[str]) -> Tool:
    """Return the tool `changes`: what was changed lately on the subjects of an incident, and on what they depend on."""

    async def run(asked: ChangesArguments) -> Answer:
        text = await changes.lately(subjects, asked.hours * 3600)
        return Answer(f"changes of the last {asked.hours:g} hours", text)

    return Tool(
        "changes",
        "Deployments, commits and changed settings of these systems and what they depend on, the latest first.",
        ChangesArguments,
        run,
    )


def state_tool(linked: Mapping[str, Subject]) -> Tool | None:
    """Return the tool `state`, which observes a linked subject now; None without one."""
    if not linked:
        return None
    fields: dict[str, Any] = {"subject": (Literal[tuple(linked)], Field())}
    arguments = create_model("state", __base__=Arguments, **fields)

    async def run(asked: Any) -> Answer:
        subject = linked[asked.subject]
        async with asyncio.timeout(subject.timeout):
            seen = await subject.observe({})
        lines = list(_state(subject, seen))
        return Answer(f"observe {subject.name}", "\n".join(lines[:_MOST_SIGNALS]))

    longest = max(subject.timeout for subject in linked.values())
    about = (
        "The state of a linked system now: what is broken on it and what is unknown."
    )
    return Tool("state", about, arguments, run, longest + 1)


def _state(subject: Subject, seen: Observation) -> Iterator[str]:
    """Yield the lines of a state, with marks on what clients wrote, as on the messages of tickets."""
    known = {one.id: one for one in subject.invariants}
    broken = [one for one in seen.signals if _breaks(one, known.get(one.invariant))]
    yield f"{len(broken)} of {len(seen.signals)} signals are beyond their limits"
    for one in broken:
        where, message = one_line(one.component, 300), one_line(one.message, 300)
        if subject.kind in FOREIGN_WORDS:
            message = reported(message)
        else:
            foreign = [fact for fact in one.facts.values() if isinstance(fact, str)]
            message = mark_reported(message, [where, *foreign])
        yield f"broken: {one.invariant} on {reported(where)}: {message}"
    for name, why in {**seen.unavailable, **seen.unsupported}.items():
        yield f"unknown: {name}: {one_line(why, 300)}"
    for one in seen.signals:
        if one not in broken and one.value is not None:
            unit = known[one.invariant].unit if one.invariant in known else None
            value = format_value(one.value, unit) if unit else f"{one.value:g}"
            where = reported(one_line(one.component, 300))
            yield f"holds: {one.invariant} on {where}: {value}"


def _breaks(signal: Signal, invariant: Invariant | None) -> bool:
    if signal.holds is not None:
        return not signal.holds
    if signal.value is None or invariant is None or invariant.limit is None:
        return False
    over = signal.value > invariant.limit
    return over if invariant.above else signal.value < invariant.limit
