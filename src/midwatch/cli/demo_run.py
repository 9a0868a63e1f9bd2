"""The steps of `midwatch demo`: healthy, broken, ticket, first aid, diagnosis, repaired, resolved."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from midwatch.cli.app import App, Edge, open_app
from midwatch.cli.output import Output
from midwatch.cli.running import run_both
from midwatch.errors import MidwatchError, TemporaryError
from midwatch.evaluation.run import write_settings
from midwatch.evaluation.scenario import Scenario, fill
from midwatch.evaluation.system import System
from midwatch.lifecycle import StopEvent, cancel, first, stop_on_signals
from midwatch.model import Diagnosis, Grounded, Json, Ticket, TicketStatus
from midwatch.store.protocol import Store, TicketFilter
from midwatch.units import format_duration

T = TypeVar("T")
_TICKET_SECONDS = 90.0
_FIRST_AID_SECONDS = 30.0
_DIAGNOSIS_SECONDS = 330.0
_RESOLVE_SECONDS = 90.0


class DemoFailed(MidwatchError):
    """A step of the demo failed."""

    hint = "run it with --keep and read midwatch.log"


@dataclass(slots=True)
class DemoRun:
    """One run of the demo. Times are seconds since the fault began; `page` is the URL of the page, if it is served."""

    system: System
    printer: StepPrinter
    page: str | None = None
    began: float = 0.0
    times: dict[str, float] = field(default_factory=dict)

    def mark(self, what: str) -> float:
        """Record the time of an event, and return it."""
        self.times[what] = elapsed = time.monotonic() - self.began
        return elapsed


async def run_demo(
    scenario: Scenario,
    environ: Mapping[str, str],
    folder: Path,
    console: Console,
    serve: bool = False,
) -> None:
    """Run a scenario of the evaluation with the daemons; with `serve` it shows the page and waits before the repair.

    Raises DemoFailed for a step that failed, PartMissing for a program that is not on this machine.
    """
    groups = {"monitor": {"interval": "1s"}, "agent": {"poll_interval": "1s"}}
    port = _free_port() if serve else None
    if port is not None:
        groups["server"] = {"listen": f"127.0.0.1:{port}"}
    page = None if port is None else f"http://127.0.0.1:{port}"
    # What happened in the last minutes counts as broken; the demo does not wait for so long.
    brief = [{**one, "event_window": "3s"} for one in scenario.subjects]
    system = System(scenario.model_copy(update={"subjects": brief}), folder)
    run = DemoRun(system, StepPrinter(console), page)
    began = time.monotonic()
    try:
        await asyncio.to_thread(system.start)
        run.printer.server(time.monotonic() - began)
        edge = Edge(environ, write_settings(system, **groups))
        with open(folder / "midwatch.log", "w", encoding="utf-8") as log:
            async with open_app(edge, log, create=True) as app:
                stop = StopEvent()
                with stop_on_signals(stop):
                    await _with_daemons(app, stop, _steps(run, app, stop))
    finally:
        await asyncio.to_thread(system.close)
    run.printer.summary(run.times)


async def _with_daemons(app: App, stop: StopEvent, steps: Awaitable[None]) -> None:
    """Run the steps while monitor and agent run; a signal ends all of them."""
    daemons = asyncio.create_task(run_both(app, stop))
    running = asyncio.ensure_future(steps)
    try:
        await first(asyncio.wait({running}), asyncio.wait({daemons}), stop.wait())
        if running.done():
            running.result()
        elif daemons.done():
            daemons.result()
            raise DemoFailed("the daemons ended")
        else:
            raise DemoFailed("the demo was interrupted", hint="")
    finally:
        stop.set("the demo is over")
        await cancel(running)
        await asyncio.gather(daemons, return_exceptions=True)


async def _steps(run: DemoRun, app: App, stop: StopEvent) -> None:
    system, printer = run.system, run.printer
    scenario = system.scenario
    invariant = scenario.expect[0]
    await _until("a first check", _TICKET_SECONDS, lambda: _watched(app.store))
    if await _unresolved(app.store):
        raise DemoFailed("there was a ticket before the fault")
    printer.healthy()
    run.began = time.monotonic()
    await asyncio.to_thread(system.run, scenario.fault)
    printer.broken(scenario.title)
    ticket = await _until(
        f"a ticket for {invariant}",
        _TICKET_SECONDS,
        lambda: _ticket_of(app.store, invariant),
    )
    printer.ticket(ticket, run.mark("ticket"))
    aided = await _until(
        "first aid", _FIRST_AID_SECONDS, lambda: _with_first_aid(app.store, ticket.id)
    )
    aid = aided.first_aid or {}
    right = [*scenario.truth.culprit, *scenario.truth.says]
    culprits = {fill(one, system.names): fill(one, system.names, True) for one in right}
    printer.first_aid(aid, run.mark("first aid"))
    _check_answer("first aid", aid["answer"], Grounded(**aid["grounded"]), culprits)
    if app.model() is None:
        printer.no_key()
    else:
        diagnosis = await _until(
            "a diagnosis", _DIAGNOSIS_SECONDS, lambda: _diagnosed(app.store, ticket.id)
        )
        _check_diagnosis(diagnosis, culprits)
        printer.diagnosis(diagnosis, run.mark("diagnosis"))
    if run.page is not None:
        printer.page(f"{run.page}/tickets/{ticket.id}")
        await first(_enter(), stop.wait())
        if stop:
            raise DemoFailed("the demo was interrupted", hint="")
    await asyncio.to_thread(system.run, scenario.repair)
    printer.repaired(run.mark("repaired"))
    await _until(
        "every ticket to resolve", _RESOLVE_SECONDS, lambda: _all_resolved(app.store)
    )
    rows = await app.store.history(ticket.id)
    if rows[-1].actor != "monitor":
        raise DemoFailed(f"ticket {ticket.id} was resolved by {rows[-1].actor}")
    printer.resolved(ticket, run.mark("resolved"))


_PORT = 8470


def _free_port() -> int:
    """Return a port of loopback: the usual one if it is free."""
    for port in (_PORT, 0):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)) as found:
            return int(found.getsockname()[1])
    raise DemoFailed("no port of 127.0.0.1 is free", hint="")


async def _enter() -> None:
    """Return once a line or the end of standard input can be read."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(sys.stdin, readable.set)
    except (OSError, ValueError):  # a regular file or nothing: it can always be read
        return
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sys.stdin)


async def _until(
    what: str, seconds: float, poll: Callable[[], Awaitable[T | None]]
) -> T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(TemporaryError):
            if (found := await poll()) is not None:
                return found
        await asyncio.sleep(0.1)
    raise DemoFailed(f"timed out waiting for {what} after {format_duration(seconds)}")


async def _watched(store: Store) -> bool | None:
    return True if await store.daemons(within=60) else None


async def _unresolved(store: Store) -> list[Ticket]:
    unresolved = [status for status in TicketStatus if status != TicketStatus.RESOLVED]
    return await store.tickets(TicketFilter(unresolved))


async def _ticket_of(store: Store, invariant: str) -> Ticket | None:
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
        raise DemoFailed(f"Claude was not asked: {pause.reason}", hint="check the key")
    return None


async def _all_resolved(store: Store) -> bool | None:
    return None if await _unresolved(store) else True


def _check_diagnosis(diagnosis: Diagnosis, culprits: Mapping[str, str]) -> None:
    if diagnosis.answer is None:
        raise DemoFailed(f"the diagnosis is {diagnosis.outcome}: {diagnosis.error}")
    grounded = diagnosis.grounded or Grounded(0, 0)
    _check_answer("the diagnosis", diagnosis.answer, grounded, culprits)


def _check_answer(
    what: str, answer: Json, grounded: Grounded, culprits: Mapping[str, str]
) -> None:
    """Raise DemoFailed unless the answer names the culprits (patterns, by name), and cites the evidence."""
    text = f"{answer['summary']} {answer['root_cause']}"
    found = {name for name, pattern in culprits.items() if re.search(pattern, text)}
    if missing := [name for name in culprits if name not in found]:
        raise DemoFailed(f"{what} does not name {', '.join(missing)}: {text}")
    if not grounded.verified:
        raise DemoFailed(f"no claim of {what} was found in the evidence")


# ------------------------------------------------------------------ the terminal


class StepPrinter:
    """Print one line for each step of the demo, with the seconds since the fault."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def server(self, seconds: float) -> None:
        self._line(
            "start",
            f"a private PostgreSQL with a small shop on it ({format_duration(seconds)})",
            "dim",
        )

    def healthy(self) -> None:
        self._line("healthy", "orders-db is watched, every invariant holds", "green")

    def broken(self, title: str) -> None:
        self._line("broken", title, "red", 0.0)

    def ticket(self, ticket: Ticket, seconds: float) -> None:
        key = ticket.key
        what = f"{ticket.id} opened, {ticket.severity.label}: {key.subject} {key.invariant} ({key.component})"
        self._line("ticket", what, "red", seconds)
        self._console.print(Padding(Text(ticket.message), (0, 0, 0, 18)))

    def first_aid(self, aid: Json, seconds: float) -> None:
        self._line(
            "first aid", _checked(Grounded(**aid["grounded"])), "yellow", seconds
        )
        self._markdown(aid["markdown"])

    def no_key(self) -> None:
        what = "not asked: there is no API key (set ANTHROPIC_API_KEY for a full diagnosis)"
        self._line("Claude", what, "dim")

    def diagnosis(self, diagnosis: Diagnosis, seconds: float) -> None:
        grounded = diagnosis.grounded or Grounded(0, 0)
        what = f"{diagnosis.model}, ${diagnosis.cost_usd:.3f}; {_checked(grounded)}"
        self._line("Claude", what, "cyan", seconds)
        self._markdown(diagnosis.markdown or "")

    def page(self, url: str) -> None:
        self._line("page", f"{url} (press Enter to repair the fault)", "bold")

    def repaired(self, seconds: float) -> None:
        self._line("repaired", "the fault was removed", "green", seconds)

    def resolved(self, ticket: Ticket, seconds: float) -> None:
        what = f"ticket {ticket.id}: the monitor saw the invariant hold again"
        self._line("resolved", what, "green", seconds)

    def summary(self, times: Mapping[str, float]) -> None:
        parts = [
            f"{what} {format_duration(seconds)}" for what, seconds in times.items()
        ]
        self._line("times", " · ".join(parts), "bold")

    def _line(
        self, word: str, text: str, style: str, seconds: float | None = None
    ) -> None:
        line = Table.grid(padding=(0, 1))
        for width in (7, 9, None):
            line.add_column(width=width)
        since = "" if seconds is None else f"{seconds:6.1f}s"
        line.add_row(Text(since, "dim"), Text(word, style), Text(text))
        self._console.print(line)

    def _markdown(self, text: str) -> None:
        console = self._console
        colour = console.color_system is not None
        output = Output(
            console.file, console.is_terminal, colour, console.width, datetime.now(UTC)
        )
        output.line()
        output.markdown(text, unfold=False)
        output.line()


def _checked(grounded: Grounded) -> str:
    return f"{grounded.verified} of {grounded.total} claims found in the evidence"
