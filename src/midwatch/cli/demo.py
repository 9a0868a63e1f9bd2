"""`midwatch demo` itself."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, LiteralString, TypeVar

import psycopg
import typer
import yaml
from psycopg import sql
from rich.console import Console
from rich.markdown import Markdown
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from midwatch.cli.app import App, Edge, open_app
from midwatch.cli.daemons import run_both
from midwatch.errors import MidwatchError, SettingsError, TemporaryError
from midwatch.lifecycle import StopEvent, stop_on_signals
from midwatch.model import Diagnosis, Json, Ticket, TicketStatus
from midwatch.store.protocol import Store, TicketFilter
from midwatch.testing.postgres import PrivatePostgres
from midwatch.units import format_duration

app = typer.Typer()


@app.command()
def demo(
    context: typer.Context,
    fault: Annotated[
        str, typer.Option("--fault", help="Which fault; --list names them.")
    ] = "lock-pile-up",
    keep: Annotated[
        Path | None,
        typer.Option("--keep", help="Leave settings, database and log in this folder."),
    ] = None,
    names: Annotated[bool, typer.Option("--list", help="Name the faults.")] = False,
) -> None:
    """Watch a real PostgreSQL break and recover, on this machine."""

    if names:
        for name, known in FAULTS.items():
            typer.echo(f"{name:15} {known.title}")
        return
    if fault not in FAULTS:
        raise SettingsError(
            f"{fault!r} is no fault of the demo",
            path="--fault",
            hint=f"one of {', '.join(FAULTS)}",
        )
    _play(context.obj, fault, keep)


def _play(edge: Edge, name: str, keep: Path | None) -> None:
    from rich.console import Console

    # Until the daemons take it over, SIGTERM ends the demo as Ctrl-C does: cleaned up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    # The user's own Midwatch settings are not the demo's.
    environ = {
        key: value
        for key, value in edge.environ.items()
        if not key.upper().startswith("MIDWATCH_")
    }
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        asyncio.run(play(FAULTS[name](), environ, keep.resolve(), console))
        console.print(
            f"kept: midwatch --config {keep / 'midwatch.yaml'} tickets list --all"
        )
        return
    with tempfile.TemporaryDirectory(prefix="midwatch-demo-") as folder:
        asyncio.run(play(FAULTS[name](), environ, Path(folder), console))


# ------------------------------------------------------------ faults
# The faults of the demo: each breaks a real server, names its culprit, and can be undone.

_PATIENCE = 20.0
_SEND: LiteralString = "UPDATE orders SET state = 'sent' WHERE id = 1"
_REPORT: LiteralString = "SELECT count(*) FROM orders a, orders b, orders c, orders d"
Connection = psycopg.Connection[tuple[object, ...]]


@dataclass(slots=True)
class FaultTarget:
    """The server that suffers, and everything a fault holds on to."""

    server: PrivatePostgres
    held: ExitStack = field(default_factory=ExitStack)
    threads: list[threading.Thread] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def connect(self, application: str, user: str = "shop") -> Connection:
        connection = psycopg.connect(
            self.server.dsn("shop", user),
            application_name=application,
            autocommit=True,
            connect_timeout=5,
        )
        self.held.callback(_close, connection)
        return connection

    def in_background(self, work: Callable[[], None]) -> None:
        """Run something that may be cut off in the middle: that is the point of a fault."""

        def guarded() -> None:
            with suppress(psycopg.Error):
                work()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        self.threads.append(thread)

    def end_sessions(self, *applications: str) -> None:
        """What an operator would do to the culprits."""
        with psycopg.connect(self.server.dsn(), autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = ANY(%s)",
                [list(applications)],
            )

    def close(self) -> None:
        self.over.set()
        self.held.close()
        for thread in self.threads:
            thread.join(5)


def _close(connection: Connection) -> None:
    with suppress(psycopg.Error):
        connection.close()


class Fault:
    """A fault: what it is, which invariant it breaks, how it begins and ends.

    `inject` returns the words that a right answer has to contain: who or what is to blame.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    invariant: ClassVar[str]

    def inject(self, ward: FaultTarget) -> Sequence[str]:
        raise NotImplementedError

    def remove(self, ward: FaultTarget) -> None:
        raise NotImplementedError


class LockPileUp(Fault):
    name = "lock-pile-up"
    title = "checkout-service updates an order, then sits idle in its transaction; others queue up behind it"
    invariant = "blocked_sessions"

    def inject(self, ward: FaultTarget) -> Sequence[str]:
        culprit = ward.connect("checkout-service")
        culprit.execute("BEGIN")
        culprit.execute("UPDATE orders SET state = 'paying' WHERE id = 1")
        for number in range(1, 4):
            waiting = ward.connect(f"orders-api-{number}")
            ward.in_background(partial(_run, waiting, _SEND))
        return [str(culprit.info.backend_pid), "checkout-service"]

    def remove(self, ward: FaultTarget) -> None:
        ward.end_sessions("checkout-service")


class ConnectionsExhausted(Fault):
    name = "connections"
    title = "report-exporter leaks connections until the server has none left"
    invariant = "connections"

    def inject(self, ward: FaultTarget) -> Sequence[str]:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            try:
                ward.connect("report-exporter")
            except psycopg.OperationalError:
                return ["report-exporter"]
        raise TemporaryError("the server never ran out of connections")

    def remove(self, ward: FaultTarget) -> None:
        ward.held.close()


class RunawayQuery(Fault):
    name = "runaway-query"
    title = "nightly-report joins a table with itself, three times, without a condition"
    invariant = "long_queries"

    def inject(self, ward: FaultTarget) -> Sequence[str]:
        culprit = ward.connect("nightly-report")
        ward.in_background(partial(_run, culprit, _REPORT))
        return [str(culprit.info.backend_pid), "nightly-report"]

    def remove(self, ward: FaultTarget) -> None:
        ward.end_sessions("nightly-report")


class ServerKilled(Fault):
    name = "server-killed"
    title = "kill -9 of the server, as the kernel's out-of-memory killer does it"
    invariant = "reachable"

    def inject(self, ward: FaultTarget) -> Sequence[str]:
        ward.server.kill()
        return ["killed"]

    def remove(self, ward: FaultTarget) -> None:
        ward.server.restart()


class Deadlocks(Fault):
    name = "deadlocks"
    title = "two jobs lock the same two orders, each in its own order, again and again"
    invariant = "deadlocks"

    def inject(self, ward: FaultTarget) -> Sequence[str]:
        for state, rows in (("refunded", (1, 2)), ("resent", (2, 1))):
            connection = ward.connect(f"{state}-job")
            work = partial(_quarrel, connection, state, rows, ward.over)
            ward.in_background(work)
        return ["refunded", "resent"]

    def remove(self, ward: FaultTarget) -> None:
        ward.over.set()


class InactiveSlot(Fault):
    name = "inactive-slot"
    title = (
        "a standby went away for good; its replication slot keeps the write-ahead log"
    )
    invariant = "inactive_slots"

    def inject(self, ward: FaultTarget) -> Sequence[str]:
        with psycopg.connect(ward.server.dsn("shop"), autocommit=True) as admin:
            admin.execute(
                "SELECT pg_create_physical_replication_slot('old_standby', true)"
            )
            admin.execute(
                "CREATE TABLE ballast AS SELECT g, repeat('x', 1000) AS filler"
                " FROM generate_series(1, 30000) g"
            )
        return ["old_standby"]

    def remove(self, ward: FaultTarget) -> None:
        with psycopg.connect(ward.server.dsn("shop"), autocommit=True) as admin:
            admin.execute("SELECT pg_drop_replication_slot('old_standby')")


FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        LockPileUp,
        ConnectionsExhausted,
        RunawayQuery,
        ServerKilled,
        Deadlocks,
        InactiveSlot,
    )
}


def _run(connection: Connection, statement: LiteralString) -> None:
    connection.execute(statement)


def _quarrel(
    connection: Connection, state: str, rows: Sequence[int], over: threading.Event
) -> None:
    while not over.is_set():
        try:
            with connection.transaction():
                for row in rows:
                    connection.execute(
                        sql.SQL("UPDATE orders SET state = {} WHERE id = {}").format(
                            sql.Literal(state), sql.Literal(row)
                        )
                    )
                    over.wait(0.05)
        except psycopg.errors.DeadlockDetected:
            over.wait(0.1)


# ------------------------------------------------------------ shop
# The demo's system: a private PostgreSQL with a small shop on it, and its settings.

_TABLES = """
CREATE TABLE orders (id bigint PRIMARY KEY, state text NOT NULL, changed timestamptz DEFAULT now());
INSERT INTO orders SELECT g, 'new' FROM generate_series(1, 2000) g;
"""
# A monitoring role, as it should be: it reads statistics, and connects when nobody else can.
_ROLES = """
CREATE ROLE shop LOGIN;
GRANT ALL ON ALL TABLES IN SCHEMA public TO shop;
CREATE ROLE midwatch LOGIN;
GRANT pg_monitor, pg_use_reserved_connections TO midwatch;
"""
_SERVER: dict[str, str | int | float | bool] = {
    "max_connections": 25,
    "reserved_connections": 5,
    "wal_level": "replica",
    "deadlock_timeout": "200ms",
    "log_lock_waits": "on",
    "log_line_prefix": "%m [%p] %u@%d %a ",
}


@contextmanager
def shop() -> Iterator[PrivatePostgres]:
    """A running server with data and roles; it and its files are gone afterwards."""
    with PrivatePostgres(settings=_SERVER) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("CREATE DATABASE shop")
        with psycopg.connect(server.dsn("shop"), autocommit=True) as admin:
            admin.execute(_TABLES)
            admin.execute(_ROLES)
        yield server


@contextmanager
def customers(server: PrivatePostgres, count: int = 2) -> Iterator[None]:
    """A light workload that goes on, whatever happens to the server."""
    over = threading.Event()
    threads = [
        threading.Thread(target=_buy, args=(server, number, over), daemon=True)
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(5)


def _buy(server: PrivatePostgres, number: int, over: threading.Event) -> None:
    order = 100 + number
    while not over.wait(0.2):
        with suppress(psycopg.Error):
            with psycopg.connect(
                server.dsn("shop", "shop"),
                application_name=f"web-{number}",
                autocommit=True,
                connect_timeout=2,
            ) as connection:
                while not over.wait(0.05):
                    connection.execute(
                        "UPDATE orders SET state = 'new', changed = now() WHERE id = %s",
                        [order],
                    )


def write_settings(server: PrivatePostgres, folder: Path) -> Path:
    """The demo's midwatch.yaml: the limits are low, so that nobody waits for minutes."""
    settings = {
        "database": f"sqlite:///{folder / 'midwatch.db'}",
        "monitor": {"interval": "1s", "group_wait": "2s"},
        "agent": {"poll_interval": "1s"},
        "log": {"format": "json"},
        "subjects": [
            {
                "name": "orders-db",
                "kind": "postgres",
                "dsn": server.dsn("shop", "midwatch"),
                "log_file": str(server.log_file),
                "event_window": "3s",
                "invariants": {
                    "blocked_sessions": {"limit": "2s"},
                    "idle_in_transaction": {"limit": "2s"},
                    "long_queries": {"limit": "2s"},
                    "inactive_slots": {"limit": "20MB", "for": "0s"},
                },
            }
        ],
    }
    file = folder / "midwatch.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return file


# ------------------------------------------------------------ telling
# What the demo shows on the terminal.


class ScenePrinter:
    """One line for each turn of the story, with the seconds since the fault."""

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
        self._line("first aid", _checked(aid["grounded"]), "yellow", seconds)
        self._markdown(aid["markdown"])

    def no_key(self) -> None:
        what = "not asked: there is no API key (set ANTHROPIC_API_KEY for a full diagnosis)"
        self._line("Claude", what, "dim")

    def diagnosis(self, diagnosis: Diagnosis, seconds: float) -> None:
        grounded = diagnosis.grounded
        counts = {
            "verified": grounded.verified if grounded else 0,
            "total": grounded.total if grounded else 0,
        }
        what = f"{diagnosis.model}, ${diagnosis.cost_usd:.3f}; {_checked(counts)}"
        self._line("Claude", what, "cyan", seconds)
        self._markdown(diagnosis.markdown or "")

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
        self._console.print(Padding(Markdown(text, hyperlinks=False), (1, 0, 1, 8)))


def _checked(grounded: Json) -> str:
    return f"{grounded['verified']} of {grounded['total']} claims found in the evidence"


# ------------------------------------------------------------ story
# The demo's story: healthy, broken, ticket, first aid, diagnosis, repaired, resolved.

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
    tell: ScenePrinter
    began: float = 0.0
    times: dict[str, float] = field(default_factory=dict)

    def mark(self, what: str) -> float:
        self.times[what] = elapsed = time.monotonic() - self.began
        return elapsed


async def play(
    fault: Fault, environ: Mapping[str, str], folder: Path, console: Console
) -> None:
    """Run the whole story. Raises StoryBroke when something is not as it should be."""
    story = Story(fault, ScenePrinter(console))
    began = time.monotonic()
    with shop() as server, customers(server):
        story.tell.server(time.monotonic() - began)
        edge = Edge(environ, write_settings(server, folder))
        ward = FaultTarget(server)
        with open(folder / "midwatch.log", "w", encoding="utf-8") as log:
            async with open_app(edge, log) as app:
                stop = StopEvent()
                with stop_on_signals(stop):
                    try:
                        await _with_daemons(app, stop, _scenes(story, app, ward, stop))
                    finally:
                        await asyncio.to_thread(ward.close)
    story.tell.summary(story.times)


async def _with_daemons(app: App, stop: StopEvent, scenes: Awaitable[None]) -> None:
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


async def _scenes(story: Story, app: App, ward: FaultTarget, stop: StopEvent) -> None:
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


# ------------------------------------------------------------ init
# `midwatch demo`: a real PostgreSQL breaks, is noticed, explained, and recovers.
