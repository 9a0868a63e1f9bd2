"""`midwatch session list | show | diff | push | rm | prune`: what is kept of sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from midwatch.cli.output import Output
from midwatch.cli.session.app import AsJson, Id, PushBranch
from midwatch.cli.wiring import Edge
from midwatch.errors import Conflict, SettingsError
from midwatch.units import format_size, parse_duration, parse_size

if TYPE_CHECKING:
    from midwatch.cli.session.desk import Desk
    from midwatch.session.events import Phase
    from midwatch.store.sessions import StoredSession
    from midwatch.workspace.inspect import Diff

app = typer.Typer()

T = TypeVar("T")
Repo = Annotated[
    str | None,
    typer.Option("--repo", help="Only this one: a name, or a number from 0."),
]


@app.command("list")
def list_(
    context: typer.Context,
    phase: Annotated[
        list[str] | None, typer.Option(help="Only in this phase; may be repeated.")
    ] = None,
    ticket: Annotated[int | None, typer.Option(help="Only for this ticket.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Sessions, the newest first."""
    phases = [_phase(name) for name in phase or ()]

    async def read(desk: Desk) -> list[StoredSession]:
        await desk.close_crashed()
        return await desk.sessions.listed(phases=phases, ticket=ticket, limit=limit + 1)

    found = at_desk(context.obj, read)
    output = Output.standard(context.obj.environ)
    if as_json:
        from midwatch.cli.session.documents import session_row

        output.json([session_row(one) for one in found[:limit]])
    elif found:
        from midwatch.cli.session.pages import session_table

        session_table(output, found[:limit])
    else:
        typer.echo("no sessions", err=True)
    if len(found) > limit:
        typer.echo(f"the first {limit} are shown; --limit shows more", err=True)


def _phase(name: str) -> Phase:
    from midwatch.session.events import Phase

    for phase in Phase:
        if phase.value.lower() == name.lower():
            return phase
    known = ", ".join(phase.value for phase in Phase)
    raise SettingsError(f"{name!r} is no phase", path="--phase", hint=f"one of {known}")


@app.command()
def show(context: typer.Context, session_id: Id, as_json: AsJson = False) -> None:
    """A session: how it stands, what it cost, what it did."""
    found = at_desk(context.obj, lambda desk: desk.session(session_id))
    output = Output.standard(context.obj.environ)
    if as_json:
        from midwatch.cli.session.documents import session_document

        output.json(session_document(found))
    else:
        from midwatch.cli.session.pages import show_session

        show_session(output, found)


@app.command()
def diff(
    context: typer.Context, session_id: Id, repo: Repo = None, as_json: AsJson = False
) -> None:
    """What a session changed, new files included."""
    found = diffs_of(context.obj, session_id, repo)
    if as_json:
        output = Output.standard(context.obj.environ)
        output.json([{"name": n, "diff": d.text, "cut": d.cut} for n, d in found])
    else:
        print_diffs(context.obj, found)


def diffs_of(edge: Edge, session_id: str, repo: str | None) -> list[tuple[str, Diff]]:
    """What a session changed, by repository; `repo` is one's name or number."""

    async def read(desk: Desk) -> list[tuple[str, Diff]]:
        from midwatch.cli.session.pushing import repository_named
        from midwatch.workspace.inspect import diff_of
        from midwatch.workspace.record import open_workspace

        place = desk.places.present(session_id)
        workspace = open_workspace(place.state)
        git = desk.workspace_options(place).git()
        repos = workspace.repos if repo is None else [repository_named(workspace, repo)]
        return [(one.name, await diff_of(one, git)) for one in repos]

    return at_desk(edge, read)


def print_diffs(edge: Edge, found: list[tuple[str, Diff]]) -> None:
    output = Output.standard(edge.environ)
    for name, one in found:
        if len(found) > 1 and one.text:
            output.line(f"# {name}")
        if one.text:
            output.line(one.text.rstrip("\n"))
        if one.cut:
            typer.echo(f"the diff of {name} goes on", err=True)


@app.command()
def push(
    context: typer.Context,
    session_id: Id,
    push_branch: PushBranch = None,
    as_json: AsJson = False,
) -> None:
    """Push what a session did: its commits and, in one more, the rest. Nothing is forced."""

    async def act(desk: Desk) -> None:
        from midwatch.cli.session.pushing import push_and_tell
        from midwatch.cli.session.telling import Teller

        place = desk.places.present(session_id)
        if place.running:
            raise Conflict(f"session {session_id} is running", hint="wait for its end")
        teller = Teller(Output.standard(desk.edge.environ), as_json)
        await push_and_tell(desk, place, teller, push_branch)

    at_desk(context.obj, act)


@app.command()
def rm(
    context: typer.Context,
    session_ids: Annotated[list[str], typer.Argument(metavar="ID…")],
    as_json: AsJson = False,
) -> None:
    """Remove sessions for good: folder, workspace, transcript and record."""

    async def act(desk: Desk) -> None:
        from midwatch.cli.session.removing import remove

        for session_id in session_ids:
            await remove(desk, session_id)

    at_desk(context.obj, act)
    output = Output.standard(context.obj.environ)
    if as_json:
        output.json({"removed": session_ids})
    else:
        for session_id in session_ids:
            output.line(f"session {session_id}: removed")


@app.command()
def prune(
    context: typer.Context,
    older_than: Annotated[
        str | None, typer.Option(help="Remove what ended longer ago, such as 7d.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="Then the oldest, until so much is left: 10GB.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove old sessions of this machine; by default as the settings have it."""
    age, size = _age(older_than), _size(max_size)

    async def act(desk: Desk) -> list[tuple[str, int]]:
        from midwatch.cli.session.removing import prune_sessions

        kept = desk.settings.sessions
        return await prune_sessions(
            desk,
            kept.keep_for if age is None else age,
            kept.keep_bytes if size is None else size,
            dry_run,
        )

    removed = at_desk(context.obj, act)
    output = Output.standard(context.obj.environ)
    if as_json:
        told = [{"id": name, "size": size} for name, size in removed]
        output.json({"removed": told, "dry_run": dry_run})
        return
    for name, freed in removed:
        said = "would be removed" if dry_run else "removed"
        output.line(f"session {name}: {said}, {format_size(freed)}")


def _age(text: str | None) -> float | None:
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise SettingsError(str(error), path="--older-than") from None


def _size(text: str | None) -> float | None:
    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise SettingsError(str(error), path="--max-size") from None


def at_desk(edge: Edge, use: Callable[[Desk], Awaitable[T]]) -> T:
    """Open the desk, do one thing, close it."""

    async def run() -> T:
        from midwatch.cli.session.desk import open_desk

        async with open_desk(edge) as desk:
            return await use(desk)

    return asyncio.run(run())
