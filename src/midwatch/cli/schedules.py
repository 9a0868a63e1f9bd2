"""`midwatch schedules list | next | run | serve`: sessions that start at times."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer

from midwatch.cli.app import Edge, open_app
from midwatch.cli.output import YELLOW, Cell, Output
from midwatch.cli.tickets import AsJson
from midwatch.errors import NotFound, SettingsError
from midwatch.lifecycle import Liveness, StopEvent, stop_on_signals

if TYPE_CHECKING:
    from midwatch.schedule_settings import ScheduleSettings
    from midwatch.session.records import SessionRequest
    from midwatch.settings import Settings
    from midwatch.store.schedules import History, Run

app = typer.Typer()

Named = Annotated[str, typer.Argument(metavar="NAME", help="The name of a schedule.")]


@dataclass(frozen=True, slots=True)
class _Listed:
    """A schedule of the settings, and what the store has of it."""

    schedule: ScheduleSettings
    next: datetime | None
    history: History

    def document(self) -> dict[str, Any]:
        one, ran, missed = self.schedule, self.history.ran, self.history.missed
        return {
            "name": one.name,
            "cron": one.cron,
            "timezone": one.timezone,
            "enabled": one.enabled,
            "concurrency": one.concurrency,
            "next": self.next,
            "last": ran
            and {"at": ran.at, "session": ran.session, "phase": _phase(ran)},
            "missed": self.history.missed_count,
            "last_missed": missed and {"at": missed.at, "reason": missed.reason},
        }


@app.command("list")
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """List the schedules: the next time, the last session and its end, and missed times with the last reason."""
    edge: Edge = context.obj
    settings = edge.settings()
    found = asyncio.run(_listed(settings)) if settings.schedules else []
    output = Output.standard(edge.environ)
    if as_json:
        output.json([one.document() for one in found])
        return
    if not found:
        typer.echo("no schedules", err=True)
        return
    rows = [_row(output, one) for one in found]
    titles = ("name", "expression", "next", "last", "session", "end", "missed")
    output.table(titles, rows, shrink=("expression",))
    for one in found:
        if missed := one.history.missed:
            when = output.when(missed.at)
            text = f"{one.schedule.name}: missed {when}: {missed.reason}"
            output.line(text, YELLOW)


def _row(output: Output, one: _Listed) -> list[Cell]:
    ran = one.history.ran
    return [
        Cell(one.schedule.name),
        Cell(f"{one.schedule.cron} {one.schedule.timezone}"),
        Cell(output.when(one.next) if one.schedule.enabled else "not enabled"),
        Cell(output.when(ran.at) if ran else "-"),
        Cell((ran and ran.session) or "-"),
        Cell(_phase(ran) if ran else "-"),
        Cell(str(one.history.missed_count)),
    ]


def _phase(run: Run) -> str:
    if run.phase is not None:
        return run.phase
    return {"claimed": "starting", "missed": "not started"}.get(run.state, "no record")


async def _listed(settings: Settings) -> list[_Listed]:
    from midwatch.scheduler import key_of
    from midwatch.store.schedules import SqlSchedules
    from midwatch.store.sql import open_store

    store = await open_store(settings.database, create=True)
    try:
        schedules = SqlSchedules(store.transactions)
        now = datetime.now(UTC)
        return [
            _Listed(
                one,
                one.times.next(now) if one.enabled else None,
                await schedules.history(key_of(one)),
            )
            for one in settings.schedules
        ]
    finally:
        await store.close()


@app.command("next")
def next_(
    context: typer.Context,
    name: Named,
    count: Annotated[
        int, typer.Option(min=1, max=1000, help="Print this many times.")
    ] = 5,
    as_json: AsJson = False,
) -> None:
    """Print the next times of a schedule, in its time zone and in UTC."""
    edge: Edge = context.obj
    schedule = schedule_named(edge.settings(), name)
    end = datetime.max.replace(tzinfo=UTC)
    times = list(islice(schedule.times.between(datetime.now(UTC), end), count))
    output = Output.standard(edge.environ)
    if as_json:
        output.json([at.isoformat() for at in times])
        return
    for at in times:
        local = at.astimezone(ZoneInfo(schedule.timezone))
        output.line(f"{local:%a %Y-%m-%d %H:%M %z}  {at:%Y-%m-%d %H:%M} UTC")


@app.command()
def run(
    context: typer.Context,
    name: Named,
    as_json: AsJson = False,
    id_: Annotated[str | None, typer.Option("--id", hidden=True)] = None,
) -> None:
    """Run the session of a schedule now, also of one that is not enabled. It counts for no time of it.

    While it runs, Forbid and Replace treat it as any other session of the schedule.
    """
    from midwatch.cli.session.commands import run_request
    from midwatch.cli.session.service import SessionContext
    from midwatch.scheduler import key_of
    from midwatch.store.schedules import SqlSchedules

    edge: Edge = context.obj
    schedule = schedule_named(edge.settings(), name)

    async def make(sessions: SessionContext) -> SessionRequest:
        request = request_of(schedule, id_)
        if id_ is None:  # a daemon has a claim for what it starts
            sessions.access()
            schedules = SqlSchedules(sessions.store.transactions)
            await schedules.started_by_hand(key_of(schedule), request.id)
        return request

    run_request(edge, make, as_json)


@app.command()
def serve(context: typer.Context) -> None:
    """Start the sessions of the schedules at their times, until SIGTERM; `midwatch up` does it too."""
    asyncio.run(_serve(context.obj))


async def _serve(edge: Edge) -> None:
    from midwatch.cli.running import end_in
    from midwatch.cli.serve import scheduler

    async with open_app(edge, sys.stdout, create=True) as opened:
        daemon = scheduler(opened, Liveness())
        if daemon is None:
            raise SettingsError(
                "there is no schedule",
                path="schedules",
                hint="add one: {name: …, cron: 0 6 * * *, repositories: [{url: …}], prompt: …}",
            )
        stop = StopEvent()
        with stop_on_signals(stop, end_in):
            opened.log.info(
                "schedules started", schedules=len(opened.settings.schedules)
            )
            await daemon.run(stop)
        opened.log.info("schedules stopped", reason=stop.reason)


def schedule_named(settings: Settings, name: str) -> ScheduleSettings:
    """Return a schedule of the settings. Raises NotFound."""
    for one in settings.schedules:
        if one.name == name:
            return one
    known = _names(settings.schedules)
    raise NotFound(f"there is no schedule {name[:80]!r}", hint=f"known: {known}")


def _names(schedules: Sequence[ScheduleSettings]) -> str:
    return ", ".join(one.name for one in schedules) or "none"


def request_of(
    schedule: ScheduleSettings, session_id: str | None = None
) -> SessionRequest:
    """Return the request for a session of a schedule. Raises WorkspaceRefused for a URL that is not valid."""
    from midwatch.session.options import OptionOverrides
    from midwatch.session.records import SessionRequest, new_session_id
    from midwatch.workspace.plan import RepoSpec
    from midwatch.workspace.urls import parse_remote

    return SessionRequest(
        id=session_id or new_session_id(),
        prompt=schedule.prompt,
        repositories=tuple(
            RepoSpec(
                parse_remote(one.url).url, one.branch, push_branch=schedule.push_branch
            )
            for one in schedule.repositories
        ),
        main=schedule.main,
        push=schedule.push,
        overrides=OptionOverrides(
            model=schedule.model,
            trust=schedule.trust_repository,
            sandbox=schedule.sandbox,
            max_turns=schedule.max_turns,
            max_usd=schedule.max_usd,
            wall=schedule.wall,
            idle=schedule.idle,
            allow=tuple(schedule.allowed_tools),
            deny=tuple(schedule.denied_tools),
        ),
    )
