"""`midwatch session run | resume | fork`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from midwatch.cli.app import Edge
from midwatch.cli.output import Output
from midwatch.cli.session.options import (
    AllowTool,
    AsJson,
    DenyTool,
    Id,
    IdleTimeout,
    Interactive,
    MaxTurns,
    MaxUsd,
    Model,
    PromptText,
    Push,
    PushBranch,
    Timeout,
    Trust,
)
from midwatch.errors import Conflict, MidwatchError, SettingsError
from midwatch.lifecycle import set_nondumpable
from midwatch.units import format_size, parse_duration, parse_size

if TYPE_CHECKING:
    from midwatch.cli.session.service import Choices, Desk, Place, Request
    from midwatch.kube.runner_task import Identity, PodTask
    from midwatch.kube.runner_workspace import Sync
    from midwatch.kube.status_writer import StatusCluster
    from midwatch.session.events import Phase
    from midwatch.session.mailbox import Kind
    from midwatch.settings import Settings
    from midwatch.store.sessions import StoredSession
    from midwatch.workspace.inspect import Diff

app = typer.Typer()


class SandboxName(StrEnum):
    AUTO = "auto"
    ON = "on"
    OFF = "off"


Sandbox = Annotated[
    SandboxName | None, typer.Option(help="Bash in a sandbox; auto: where it can be.")
]


@app.command()
def run(
    context: typer.Context,
    repo: Annotated[
        list[str],
        typer.Option("--repo", "-r", help="URL@BRANCH, a URL or a path; repeatable."),
    ],
    prompt: PromptText = None,
    main: Annotated[
        int, typer.Option(min=0, help="Which one Claude starts in, from 0.")
    ] = 0,
    interactive: Interactive = False,
    push: Push = False,
    push_branch: PushBranch = None,
    model: Model = None,
    trust: Trust = None,
    sandbox: Sandbox = None,
    max_turns: MaxTurns = None,
    max_usd: MaxUsd = None,
    timeout: Timeout = None,
    idle_timeout: IdleTimeout = None,
    allow_tool: AllowTool = None,
    deny_tool: DenyTool = None,
    as_json: AsJson = False,
) -> None:
    """Clone repositories and let Claude Code work in them. Exit code 0 only if it is Completed."""
    from midwatch.cli.session.service import (
        Request,
        new_id,
        parse_repositories,
        read_prompt,
    )

    if prompt is None and not interactive:
        raise SettingsError("is missing", path="--prompt", hint="say what to do")
    request = Request(
        id=new_id(),
        prompt=None if prompt is None else read_prompt(prompt),
        repositories=parse_repositories(repo, push_branch),
        main=main,
        interactive=interactive,
        push=push,
        choices=chosen(
            model,
            trust,
            sandbox,
            max_turns,
            max_usd,
            timeout,
            idle_timeout,
            allow_tool,
            deny_tool,
        ),
    )

    async def made(desk: Desk) -> Request:
        return request

    carry_out(context.obj, made, as_json)


@app.command()
def resume(
    context: typer.Context,
    session_id: Id,
    prompt: PromptText = None,
    interactive: Interactive = False,
    push: Push = False,
    model: Model = None,
    trust: Trust = None,
    sandbox: Sandbox = None,
    max_turns: MaxTurns = None,
    max_usd: MaxUsd = None,
    timeout: Timeout = None,
    idle_timeout: IdleTimeout = None,
    allow_tool: AllowTool = None,
    deny_tool: DenyTool = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a session, with all that was said; also on another machine with the same database."""
    from midwatch.cli.session.run import resumed
    from midwatch.cli.session.service import read_prompt

    text = None if prompt is None else read_prompt(prompt)
    now = chosen(
        model,
        trust,
        sandbox,
        max_turns,
        max_usd,
        timeout,
        idle_timeout,
        allow_tool,
        deny_tool,
    )

    async def made(desk: Desk) -> Request:
        return await resumed(desk, session_id, text, interactive, push, now)

    carry_out(context.obj, made, as_json)


@app.command()
def fork(
    context: typer.Context,
    session_id: Id,
    prompt: PromptText = None,
    interactive: Interactive = False,
    push: Push = False,
    push_branch: PushBranch = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Begin a new session with all that was said in another one, in fresh clones."""
    from midwatch.cli.session.run import forked
    from midwatch.cli.session.service import read_prompt

    if prompt is None and not interactive:
        raise SettingsError("is missing", path="--prompt", hint="say what to do")
    text = None if prompt is None else read_prompt(prompt)
    now = chosen(model)

    async def made(desk: Desk) -> Request:
        return await forked(desk, session_id, text, interactive, push, push_branch, now)

    carry_out(context.obj, made, as_json)


# ------------------------------------------------------------------ shared


def chosen(
    model: str | None = None,
    trust: bool | None = None,
    sandbox: SandboxName | None = None,
    max_turns: int | None = None,
    max_usd: float | None = None,
    timeout: str | None = None,
    idle_timeout: str | None = None,
    allow_tool: list[str] | None = None,
    deny_tool: list[str] | None = None,
) -> Choices:
    """What the options say. Raises SettingsError for what is no duration."""
    from midwatch.cli.session.service import Choices

    return Choices(
        model=model,
        trust=trust,
        sandbox=None if sandbox is None else sandbox.value,
        max_turns=max_turns,
        max_usd=max_usd,
        wall=_duration(timeout, "--timeout"),
        idle=_duration(idle_timeout, "--idle-timeout"),
        allow=tuple(allow_tool or ()),
        deny=tuple(deny_tool or ()),
    )


def _duration(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise SettingsError(str(error), path=option) from None
    if seconds <= 0:
        raise SettingsError("must be longer than nothing", path=option)
    return seconds


def carry_out(
    edge: Edge, make: Callable[[Desk], Awaitable[Request]], as_json: bool
) -> None:
    """Make the request and run it to its end, on standard output."""
    set_nondumpable()
    asyncio.run(_carry_out(edge, make, as_json))


async def _carry_out(
    edge: Edge, make: Callable[[Desk], Awaitable[Request]], as_json: bool
) -> None:
    from midwatch.cli.session.run import local_runner
    from midwatch.cli.session.service import open_desk
    from midwatch.cli.session.view import EventPrinter

    async with open_desk(edge) as desk:
        await desk.close_crashed()
        request = await make(desk)
        place = desk.places.place(request.id)
        if place.running:
            raise Conflict(
                f"session {request.id} is running already",
                hint=f"`midwatch session attach {request.id}`",
            )
        teller = EventPrinter(Output.standard(edge.environ), as_json)
        teller.plain(f"session {request.id} in {place.workspace}")
        await local_runner(desk, request, teller).run()


# ------------------------------------------------------------ fix
# `midwatch session fix`: a session that carries out what a ticket calls for.


@app.command("fix")
def fix(
    context: typer.Context,
    ticket_id: Annotated[int, typer.Argument(metavar="TICKET", help="Its number.")],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before it starts.")
    ] = False,
    show_prompt: Annotated[
        bool, typer.Option("--show-prompt", help="Print the prompt; start nothing.")
    ] = False,
    interactive: Interactive = False,
    push: Push = False,
    push_branch: PushBranch = None,
    model: Model = None,
    sandbox: Sandbox = None,
    max_turns: MaxTurns = None,
    max_usd: MaxUsd = None,
    timeout: Timeout = None,
    idle_timeout: IdleTimeout = None,
    allow_tool: AllowTool = None,
    deny_tool: DenyTool = None,
    as_json: AsJson = False,
) -> None:
    """Let Claude Code work on a ticket, in the repositories that its subject names.

    What it does resolves nothing: the ticket resolves when its invariant is seen to hold again.
    """
    import asyncio

    from midwatch.cli.session.run import Fix

    set_nondumpable()
    edge: Edge = context.obj
    chosen_ = chosen(
        model,
        None,
        sandbox,
        max_turns,
        max_usd,
        timeout,
        idle_timeout,
        allow_tool,
        deny_tool,
    )
    plan = Fix(ticket_id, interactive, push, push_branch, chosen_, as_json)
    prompt = asyncio.run(plan.prepare(edge))
    if show_prompt:
        typer.echo(prompt)
        return
    if not yes:
        _ask(plan, prompt)
    asyncio.run(plan.carry_out(edge))


def _ask(plan: object, prompt: str) -> None:
    """Raises Conflict where nobody is there to approve, or somebody does not."""
    print(prompt, file=sys.stderr)
    print(f"\n{plan}", file=sys.stderr)
    if not sys.stdin.isatty():
        raise Conflict("nobody is there to approve it", hint="--yes starts it unasked")
    if not typer.confirm("Start this session?", err=True):
        raise Conflict("not started")


# ------------------------------------------------------------ shelf
# `midwatch session list | show | diff | push | rm | prune`: what is kept of sessions.

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
        from midwatch.cli.session.view import session_row

        output.json([session_row(one) for one in found[:limit]])
    elif found:
        from midwatch.cli.session.view import session_table

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
        from midwatch.cli.session.view import session_document

        output.json(session_document(found))
    else:
        from midwatch.cli.session.view import show_session

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
        from midwatch.cli.session.run import repository_named
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
        from midwatch.cli.session.run import push_session
        from midwatch.cli.session.view import EventPrinter

        place = desk.places.present(session_id)
        if place.running:
            raise Conflict(f"session {session_id} is running", hint="wait for its end")
        teller = EventPrinter(Output.standard(desk.edge.environ), as_json)
        await push_session(desk, place, teller, push_branch)

    at_desk(context.obj, act)


@app.command()
def rm(
    context: typer.Context,
    session_ids: Annotated[list[str], typer.Argument(metavar="ID…")],
    as_json: AsJson = False,
) -> None:
    """Remove sessions for good: folder, workspace, transcript and record."""

    async def act(desk: Desk) -> None:
        from midwatch.cli.session.service import remove

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
        from midwatch.cli.session.service import prune_sessions

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
        from midwatch.cli.session.service import open_desk

        async with open_desk(edge) as desk:
            return await use(desk)

    return asyncio.run(run())


# ------------------------------------------------------------ mail
# `midwatch session send | interrupt | approve | deny | end | attach`: the two files of a session.

RequestId = Annotated[
    str | None,
    typer.Argument(metavar="[REQUEST]", help="Which one, if several are asked."),
]


@app.command()
def send(
    context: typer.Context,
    session_id: Id,
    text: Annotated[str, typer.Argument(help="TEXT, @FILE, or - for stdin.")],
    as_json: AsJson = False,
) -> None:
    """Say something to an interactive session; `/end` ends it."""
    from midwatch.cli.session.service import read_prompt

    _post(context.obj, session_id, "user_message", read_prompt(text), as_json)


@app.command()
def interrupt(context: typer.Context, session_id: Id, as_json: AsJson = False) -> None:
    """End the turn under way, not the session."""
    _post(context.obj, session_id, "interrupt", None, as_json)


@app.command()
def end(context: typer.Context, session_id: Id, as_json: AsJson = False) -> None:
    """End an interactive session, once what was said before is answered."""
    _post(context.obj, session_id, "end_session", None, as_json)


@app.command()
def approve(
    context: typer.Context,
    session_id: Id,
    request: RequestId = None,
    as_json: AsJson = False,
) -> None:
    """Let Claude use the tool that it asks for."""
    _answer(context.obj, session_id, request, True, "", as_json)


@app.command()
def deny(
    context: typer.Context,
    session_id: Id,
    request: RequestId = None,
    why: Annotated[str, typer.Option("--why", help="What Claude is told.")] = "",
    as_json: AsJson = False,
) -> None:
    """Do not let Claude use the tool that it asks for."""
    _answer(context.obj, session_id, request, False, why, as_json)


@app.command()
def attach(
    context: typer.Context,
    session_id: Id,
    after: Annotated[
        int, typer.Option("--after", min=0, help="Begin behind this event's number.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Follow a session; each line of standard input is said to it, as in a chat.

    `/interrupt`, `/approve`, `/deny` and `/end` are commands. Who leaves ends nothing.
    """
    from midwatch.cli.session.view import EventPrinter, follow

    edge: Edge = context.obj
    place = _place(edge, session_id)
    follow(place, EventPrinter(Output.standard(edge.environ), as_json), after)


# ------------------------------------------------------------------ shared


def _answer(
    edge: Edge,
    session_id: str,
    request: str | None,
    allow: bool,
    why: str,
    as_json: bool,
) -> None:
    from midwatch.cli.session.view import pending_request

    asked = request or pending_request(_place(edge, session_id))
    content = {"request_id": asked, "allow": allow, "message": why}
    _post(edge, session_id, "permission_response", content, as_json)


def _post(edge: Edge, session_id: str, kind: Kind, content: Any, as_json: bool) -> None:
    from midwatch.cli.session.view import expectation, write

    place = _place(edge, session_id)
    message_id = write(place, kind, content, datetime.now(UTC))
    output = Output.standard(edge.environ)
    if as_json:
        output.json({"session": session_id, "message": message_id, "type": kind})
    else:
        output.line(f"{kind} {message_id}: {expectation(place)}")


def _place(edge: Edge, session_id: str) -> Place:
    """Raises NotFound."""
    from midwatch.cli.session.service import Places

    settings = edge.settings()
    if not session_id:
        raise SettingsError("is empty", path="ID", hint="see `midwatch session list`")
    return Places.of(settings.sessions).present(session_id)


# ------------------------------------------------------------ serve
# `midwatch session serve`: the runner in a pod, configured by its environment alone.


@app.command()
def serve(context: typer.Context) -> None:
    """Run the session of a pod, as its environment says (docs/kubernetes.md has the table).

    Exit code: 0 Completed or Stopped, 1 Failed, 2 the environment is wrong, 3 the status could not be
    written, 143 the pod was taken away before the end.
    """
    set_nondumpable()
    raise typer.Exit(asyncio.run(_serve(context.obj)))


async def _serve(edge: Edge) -> int:
    from midwatch.cli.session.view import aside
    from midwatch.kube.environment import BAD_ENVIRONMENT, sorted_variables
    from midwatch.kube.runner_task import read_identity, read_task, refuse

    variables = sorted_variables(edge.environ)
    own = replace(edge, environ=variables.own)
    try:
        identity = read_identity(variables.own)
        settings = own.settings()
        async with _cluster(identity, settings) as cluster:
            try:
                return await _run(own, settings, read_task(variables), cluster)
            except SettingsError as error:
                await refuse(identity, cluster, error)
                raise
    except SettingsError as error:
        aside(error.one_line())
        return BAD_ENVIRONMENT


async def _run(
    edge: Edge, settings: Settings, task: PodTask, cluster: StatusCluster
) -> int:
    from midwatch.cli.session.run import TerminalEvents
    from midwatch.cli.session.service import Choices, git_environment, session_options
    from midwatch.cli.session.view import EventPrinter, aside
    from midwatch.kube.runner import Dependencies, pod_runner

    for name in task.variables.left_out:
        aside(f"{name} is a reserved name: that key of a secret is left out")
    async with _sync(task) as sync:
        dependencies = Dependencies(
            cluster=cluster,
            sync=sync,
            options=session_options(settings.sessions, Choices()),
            environment=git_environment(settings.sessions, task.variables.of_git),
            events=TerminalEvents(EventPrinter(Output.standard(edge.environ))),
            settings=settings.sessions,
        )
        return await pod_runner(task, dependencies).run()


@contextlib.asynccontextmanager
async def _cluster(
    identity: Identity, settings: Settings
) -> AsyncIterator[StatusCluster]:
    """The API server, or what stands in where nothing is to be told. Raises SettingsError."""
    from midwatch.kube.status_writer import NoCluster

    if not identity.told:
        yield NoCluster()
        return
    try:
        from midwatch.kube.client import Cluster
    except ImportError as error:
        raise _missing(error, "kubernetes") from error
    operator = settings.operator
    async with Cluster.connect(operator.kubeconfig, operator.context) as cluster:
        yield cluster


@contextlib.asynccontextmanager
async def _sync(task: PodTask) -> AsyncIterator[Sync | None]:
    """The way to the content proxy, where there is one. Raises SettingsError."""
    content = task.content
    if content is None:
        yield None
        return
    try:
        from midwatch.content.sync.client import ContentClient
        from midwatch.content.sync.session import WorkspaceSync
    except ImportError as error:
        raise _missing(error, "content") from error
    from midwatch.kube.runner_workspace import LOCAL_OWNED, PodPlaces, stays_here

    given = task.environment
    places = PodPlaces(given.workspace_path, given.state_path, given.cache_path)
    attempt = task.identity.attempt
    async with ContentClient(
        content.url, content.token, content.folder, attempt=attempt
    ) as client:
        yield WorkspaceSync(
            client,
            places.roots,
            places.sync_state,
            interval=given.sync_interval,
            local_owned=LOCAL_OWNED,
            ignored=stays_here,
        )


def _missing(error: ImportError, extra: str) -> MidwatchError:
    return SettingsError(
        f"{error.name or error} is not installed",
        hint=f"pip install 'midwatch[{extra},sessions]'",
    )
