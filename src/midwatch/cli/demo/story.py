"""The demo's story: healthy, broken, ticket, first aid, diagnosis, repaired, resolved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from midwatch.cli.daemons import run_both
from midwatch.cli.demo.faults import Fault, Ward
from midwatch.cli.demo.shop import customers, shop, write_settings
from midwatch.cli.demo.telling import Teller
from midwatch.cli.wiring import App, Edge, open_app
from midwatch.errors import MidwatchError, TemporaryError
from midwatch.lifecycle import Stop, signals_set
from midwatch.model import Diagnosis, Json, Ticket, TicketStatus
from midwatch.store.protocol import Store, TicketFilter

T = TypeVar("T")
_TICKET_SECONDS = 30.0
_FIRST_AID_SECONDS = 5.0
_DIAGNOSIS_SECONDS = 330.0
_RESOLVE_SECONDS = 60.0


class StoryBroke(MidwatchError):
    """The demo did not go as it should."""

    hint = "run it with --keep and look at midwatch.log"


@dataclass(slots=True)
class Story:
    """One run. Times are seconds since the fault began."""

    fault: Fault
    tell: Teller
    began: float = 0.0
    times: dict[str, float] = field(default_factory=dict)

    def mark(self, what: str) -> float:
        self.times[what] = elapsed = time.monotonic() - self.began
        return elapsed


async def play(
    fault: Fault, environ: Mapping[str, str], folder: Path, console: Console
) -> None:
    """Run the whole story. Raises StoryBroke when something is not as it should be."""
    story = Story(fault, Teller(console))
    began = time.monotonic()
    with shop() as server, customers(server):
        story.tell.server(time.monotonic() - began)
        edge = Edge(environ, write_settings(server, folder))
        ward = Ward(server)
        with open(folder / "midwatch.log", "w", encoding="utf-8") as log:
            async with open_app(edge, log) as app:
                stop = Stop()
                with signals_set(stop):
                    try:
                        await _with_daemons(app, stop, _scenes(story, app, ward, stop))
                    finally:
                        await asyncio.to_thread(ward.close)
    story.tell.summary(story.times)


async def _with_daemons(app: App, stop: Stop, scenes: Awaitable[None]) -> None:
    """Monitor and agent run beside the scenes; a signal ends all of them."""
    daemons = asyncio.create_task(run_both(app, stop))
    played = asyncio.ensure_future(scenes)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait(
            {daemons, played, stopping}, return_when=asyncio.FIRST_COMPLETED
        )
        if stopping.done() and not played.done():
            raise StoryBroke("the demo was interrupted", hint="")
        if daemons.done():
            daemons.result()
            raise StoryBroke("the daemons ended")
        played.result()
    finally:
        stop.set("the demo is over")
        for task in (played, stopping):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(daemons, stopping, return_exceptions=True)


async def _scenes(story: Story, app: App, ward: Ward, stop: Stop) -> None:
    fault, tell = story.fault, story.tell
    await _until("a first look", _TICKET_SECONDS, lambda: _watched(app.store))
    if await _unresolved(app.store):
        raise StoryBroke("there was a ticket before the fault")
    tell.healthy()
    story.began = time.monotonic()
    culprits = await asyncio.to_thread(fault.inject, ward)
    tell.broken(fault.title)
    ticket = await _until(
        f"a ticket for {fault.invariant}",
        _TICKET_SECONDS,
        lambda: _ticket_for(app.store, fault.invariant),
    )
    tell.ticket(ticket, story.mark("ticket"))
    aided = await _until(
        "first aid", _FIRST_AID_SECONDS, lambda: _with_first_aid(app.store, ticket.id)
    )
    aid = aided.first_aid or {}
    tell.first_aid(aid, story.mark("first aid"))
    _check_answer("first aid", aid["answer"], aid["grounded"], culprits)
    if app.model() is None:
        tell.no_key()
    else:
        diagnosis = await _until(
            "a diagnosis", _DIAGNOSIS_SECONDS, lambda: _diagnosed(app.store, ticket.id)
        )
        _check_diagnosis(diagnosis, culprits)
        tell.diagnosis(diagnosis, story.mark("diagnosis"))
    await asyncio.to_thread(fault.remove, ward)
    tell.repaired(story.mark("repaired"))
    await _until(
        "every ticket to resolve", _RESOLVE_SECONDS, lambda: _all_resolved(app.store)
    )
    rows = await app.store.history(ticket.id)
    if rows[-1].actor != "monitor":
        raise StoryBroke(f"ticket {ticket.id} was resolved by {rows[-1].actor}")
    tell.resolved(ticket, story.mark("resolved"))


async def _until(
    what: str, seconds: float, look: Callable[[], Awaitable[T | None]]
) -> T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(TemporaryError):
            if (found := await look()) is not None:
                return found
        await asyncio.sleep(0.1)
    raise StoryBroke(f"waited {seconds:g} s in vain for {what}")


async def _watched(store: Store) -> bool | None:
    return True if await store.daemons(within=60) else None


async def _unresolved(store: Store) -> list[Ticket]:
    unresolved = [status for status in TicketStatus if status != TicketStatus.RESOLVED]
    return await store.tickets(TicketFilter(unresolved))


async def _ticket_for(store: Store, invariant: str) -> Ticket | None:
    found = await store.tickets(TicketFilter())
    return next((one for one in found if one.key.invariant == invariant), None)


async def _with_first_aid(store: Store, ticket_id: int) -> Ticket | None:
    ticket = await store.ticket(ticket_id)
    return ticket if ticket.first_aid else None


async def _diagnosed(store: Store, ticket_id: int) -> Diagnosis | None:
    ticket = await store.ticket(ticket_id)
    if ticket.diagnosis_id is not None:
        return await store.diagnosis(ticket.diagnosis_id)
    for pause in await store.pauses():
        raise StoryBroke(f"Claude was not asked: {pause.reason}", hint="check the key")
    return None


async def _all_resolved(store: Store) -> bool | None:
    return None if await _unresolved(store) else True


def _check_diagnosis(diagnosis: Diagnosis, culprits: Sequence[str]) -> None:
    if diagnosis.answer is None:
        raise StoryBroke(f"the diagnosis is {diagnosis.outcome}: {diagnosis.error}")
    grounded = diagnosis.grounded
    counts = {
        "verified": grounded.verified if grounded else 0,
        "total": grounded.total if grounded else 0,
    }
    _check_answer("the diagnosis", diagnosis.answer, counts, culprits)


def _check_answer(
    what: str, answer: Json, grounded: Json, culprits: Sequence[str]
) -> None:
    """It names the culprit, and its claims were found in the evidence."""
    said = f"{answer['summary']} {answer['root_cause']}"
    if missing := [name for name in culprits if name not in said]:
        raise StoryBroke(f"{what} does not name {', '.join(missing)}: {said}")
    if not grounded["verified"]:
        raise StoryBroke(f"no claim of {what} was found in the evidence")
