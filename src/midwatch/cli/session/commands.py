"""`midwatch session run | resume | fork | list | show | diff | push | rm | prune | serve`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from midwatch.cli.app import Edge
from midwatch.cli.output import YELLOW, Output
from midwatch.cli.session.options import (
    AsJson,
    Id,
    PromptText,
    PushBranch,
    RunOptions,
    parse_option,
    parse_repositories,
    read_first_prompt,
    read_prompt,
    with_run_options,
)
from midwatch.errors import (
    Conflict,
    MidwatchError,
    NotFound,
    SettingsError,
    raise_together,
)
from midwatch.lifecycle import set_nondumpable
from midwatch.session.agent_sdk import import_without_tool_servers
from midwatch.units import format_size, parse_duration, parse_size

if TYPE_CHECKING:
    from midwatch.cli.session.service import SessionContext
    from midwatch.kube.runner_task import Identity, PodTask
    from midwatch.kube.runner_workspace import Sync
    from midwatch.kube.status_writer import StatusCluster
    from midwatch.session.events import Phase
    from midwatch.session.manager import KeptSession, RemovedSession
    from midwatch.session.records import SessionRequest, StoredSession
    from midwatch.settings import Settings
    from midwatch.workspace.inspect import Diff

T = TypeVar("T")
app = typer.Typer()


@app.command()
@with_run_options()
def run(
    context: typer.Context,
    repo: Annotated[
        list[str],
        typer.Option("--repo", "-r", help="URL@BRANCH, a URL or a path; repeatable."),
    ],
    options: RunOptions,
    prompt: PromptText = None,
    main: Annotated[
        int, typer.Option(min=0, help="Index of the main repository (0 is the first).")
    ] = 0,
) -> None:
    """Clone repositories and let Claude Code work in them. Exit code 0 if it is Completed, 3 if a tool call was denied in it."""
    from midwatch.session.records import SessionRequest, new_session_id

    request = SessionRequest(
        id=new_session_id(),
        prompt=read_first_prompt(prompt, options.interactive),
        repositories=parse_repositories(repo, options.push_branch),
        main=main,
        interactive=options.interactive,
        push=options.push,
        overrides=options.overrides(),
    )

    async def make(sessions: SessionContext) -> SessionRequest:
        return request

    run_request(context.obj, make, options.as_json)


@app.command()
@with_run_options("push_branch")
def resume(
    context: typer.Context,
    session_id: Id,
    options: RunOptions,
    prompt: PromptText = None,
) -> None:
    """Continue a session with its whole conversation, also on another machine with the same database."""
    text = None if prompt is None else read_prompt(prompt)
    overrides = options.overrides()

    async def make(sessions: SessionContext) -> SessionRequest:
        return await sessions.manager.resume(
            session_id,
            text,
            interactive=options.interactive,
            push=options.push,
            overrides=overrides,
        )

    run_request(context.obj, make, options.as_json)


@app.command()
@with_run_options()
def fork(
    context: typer.Context,
    session_id: Id,
    options: RunOptions,
    prompt: PromptText = None,
) -> None:
    """Start a new session with the conversation of another one, in fresh clones."""
    text = read_first_prompt(prompt, options.interactive)
    overrides = options.overrides()

    async def make(sessions: SessionContext) -> SessionRequest:
        return await sessions.manager.fork(
            session_id,
            text,
            interactive=options.interactive,
            push=options.push,
            push_branch=options.push_branch,
            overrides=overrides,
        )

    run_request(context.obj, make, options.as_json)


def run_request(
    edge: Edge,
    make: Callable[[SessionContext], Awaitable[SessionRequest]],
    as_json: bool,
) -> None:
    """Make the request, run it to its end and print its events."""
    set_nondumpable()

    async def run(sessions: SessionContext) -> None:
        import_without_tool_servers()
        from midwatch.cli.session.run import traced_runner
        from midwatch.cli.session.view import EventPrinter, print_notice

        await sessions.manager.close_crashed()
        request = await make(sessions)
        paths = sessions.manager.paths(request.id)
        if paths.running:
            raise Conflict(
                f"session {request.id} is running already",
                hint=f"`midwatch session attach {request.id}`",
            )
        if request.notice:
            print_notice(request.notice)
        output = Output.standard(edge.environ)
        printer = EventPrinter(output, as_json, request.id)
        async with traced_runner(sessions, request, printer) as runner:
            allowed = await asyncio.to_thread(runner.permissions)
            printer.plain(f"session {request.id} in {paths.workspace}")
            printer.plain(allowed)
            await runner.run()

    use_sessions(edge, run, create=True)


# ------------------------------------------------------------------ records

Repo = Annotated[
    str | None,
    typer.Option("--repo", help="Only this repository: its name or its index from 0."),
]


@app.command("list")
def list_(
    context: typer.Context,
    phase: Annotated[
        list[str] | None, typer.Option(help="Only in this phase; repeatable.")
    ] = None,
    ticket: Annotated[int | None, typer.Option(help="Only for this ticket.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Print at most this many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List sessions, the newest first."""
    phases = [_phase(name) for name in phase or ()]

    async def read(sessions: SessionContext) -> Sequence[StoredSession]:
        return await sessions.manager.list(
            phases=phases, ticket=ticket, limit=limit + 1
        )

    found = use_sessions(context.obj, read)
    output = Output.standard(context.obj.environ)
    from midwatch.cli.session.view import session_table
    from midwatch.json_shapes import session_row

    if as_json:
        output.json([session_row(one) for one in found[:limit]])
    elif found:
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
    raise SettingsError(
        f"{name!r} is not a phase", path="--phase", hint=f"use one of {known}"
    )


@app.command()
def show(context: typer.Context, session_id: Id, as_json: AsJson = False) -> None:
    """Show a session: its phase, its cost, its repositories and its result."""
    found = use_sessions(context.obj, lambda one: one.manager.get(session_id))
    output = Output.standard(context.obj.environ)
    from midwatch.cli.session.view import show_session
    from midwatch.json_shapes import session_document

    if as_json:
        output.json(session_document(found))
    else:
        show_session(output, found)


@app.command()
def diff(
    context: typer.Context, session_id: Id, repo: Repo = None, as_json: AsJson = False
) -> None:
    """Print what a session changed: new files, other branches, stashes, worktrees and submodules included."""
    found = diffs_of(context.obj, session_id, repo)
    if as_json:
        output = Output.standard(context.obj.environ)
        output.json([{"name": n, "diff": d.text, "cut": d.cut} for n, d in found])
    else:
        print_diffs(context.obj, found)


def diffs_of(edge: Edge, session_id: str, repo: str | None) -> list[tuple[str, Diff]]:
    """Return what a session changed, by repository, other branch and submodule.

    `repo` is the name or the index of one repository.
    """

    async def read(sessions: SessionContext) -> list[tuple[str, Diff]]:
        from midwatch.cli.session.run import repository_named
        from midwatch.workspace import inspect
        from midwatch.workspace.record import open_workspace

        paths = sessions.manager.folders.existing(session_id)
        workspace = open_workspace(paths.state)
        await sessions.manager.remove_mount_points(session_id)
        git = sessions.workspace_options(session_id).git()
        repos = workspace.repos if repo is None else [repository_named(workspace, repo)]
        found = [await inspect.diffs_of(one, git) for one in repos]
        return [diff for diffs in found for diff in diffs]

    return use_sessions(edge, read)


def print_diffs(edge: Edge, found: list[tuple[str, Diff]]) -> None:
    output = Output.standard(edge.environ)
    for name, one in found:
        if len(found) > 1 and one.text:
            output.line(f"# {name}")
        if one.text:
            output.line(one.text.rstrip("\n"))
        if one.cut:
            typer.echo(f"the diff of {name} is cut", err=True)


@app.command()
def push(
    context: typer.Context,
    session_id: Id,
    push_branch: PushBranch = None,
    as_json: AsJson = False,
) -> None:
    """Push the commits of a session, and one more commit with its other changes. Never forces."""

    async def act(sessions: SessionContext) -> None:
        from midwatch.cli.session.run import push_session
        from midwatch.cli.session.view import EventPrinter

        paths = sessions.manager.folders.existing(session_id)
        if paths.running:
            raise Conflict(f"session {session_id} is running", hint="wait for its end")
        printer = EventPrinter(Output.standard(sessions.edge.environ), as_json)
        await push_session(sessions, paths, printer, push_branch)

    use_sessions(context.obj, act)


Force = Annotated[
    bool,
    typer.Option("--force", help="Also remove work that is not pushed anywhere."),
]


@app.command()
def rm(
    context: typer.Context,
    session_ids: Annotated[list[str], typer.Argument(metavar="ID…")],
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Remove sessions: folder, workspace, transcript and record.

    A session with work that is not pushed is kept, unless --force is given.
    """

    removed: list[str] = []
    errors: list[MidwatchError] = []

    async def act(sessions: SessionContext) -> None:
        for session_id in dict.fromkeys(session_ids):
            try:
                await sessions.manager.remove(session_id, force=force)
            except (NotFound, Conflict) as error:
                errors.append(error)
            else:
                removed.append(session_id)

    use_sessions(context.obj, act)
    output = Output.standard(context.obj.environ)
    if as_json and (removed or len(session_ids) > 1):
        output.json({"removed": removed})
    elif not as_json:
        for session_id in removed:
            output.line(f"session {session_id}: removed")
    raise_together(errors)


@app.command()
def prune(
    context: typer.Context,
    older_than: Annotated[
        str | None,
        typer.Option(help="Remove sessions that ended longer ago, such as 7d."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            help="Then remove the oldest until the rest has this size, such as 10GB."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be removed.")
    ] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Remove old sessions of this machine; the defaults are in the settings.

    A session with work that is not pushed is kept, unless --force is given.
    """
    age = parse_option(older_than, parse_duration, "--older-than")
    size = parse_option(max_size, parse_size, "--max-size")

    async def act(sessions: SessionContext) -> Sequence[RemovedSession]:
        settings = sessions.manager.settings
        return await sessions.manager.prune(
            settings.keep_for if age is None else age,
            settings.keep_bytes if size is None else size,
            dry_run=dry_run,
            force=force,
            on_kept=kept.append,
        )

    kept: list[KeptSession] = []
    removed = use_sessions(context.obj, act)
    output = Output.standard(context.obj.environ)
    if as_json:
        document = {"removed": [asdict(one) for one in removed], "dry_run": dry_run}
        output.json(document | {"kept": [asdict(one) for one in kept]})
        return
    done = "would be removed" if dry_run else "removed"
    for one in removed:
        output.line(f"session {one.id}: {done}, {format_size(one.size)}")
    for left in kept:
        taken = format_size(left.size)
        output.line(
            f"session {left.id}: kept, {taken}: not pushed: {left.work}", YELLOW
        )
    if kept:
        hint = "`midwatch session push ID` pushes it, --force removes it"
        typer.echo(hint, err=True)


def use_sessions(
    edge: Edge,
    use: Callable[[SessionContext], Awaitable[T]],
    *,
    create: bool = False,
) -> T:
    """Return the result of `use` on an open session manager.

    `create` makes a missing SQLite database.
    """

    async def run() -> T:
        from midwatch.cli.session.service import open_sessions

        async with open_sessions(edge, create=create) as sessions:
            return await use(sessions)

    return asyncio.run(run())


# ------------------------------------------------------------------ serve
# `midwatch session serve`: the runner in a pod, configured by its environment alone.


@app.command()
def serve(context: typer.Context) -> None:
    """Run the session of a pod, configured by its environment (see docs/kubernetes.md).

    Exit code: 0 Completed or Stopped, 1 Failed, 2 invalid environment, 3 the status could not be
    written, 143 the pod was terminated before the end.
    """
    set_nondumpable()
    raise typer.Exit(asyncio.run(_serve(context.obj)))


async def _serve(edge: Edge) -> int:
    from midwatch.cli.session.view import print_notice
    from midwatch.kube.environment import BAD_ENVIRONMENT, sorted_variables
    from midwatch.kube.runner_task import read_identity, read_task, refuse

    variables = sorted_variables(edge.environ)
    own = replace(edge, environ=variables.own)
    try:
        identity = read_identity(variables.own)
        settings = own.settings()
        async with _cluster(identity, settings) as cluster:
            try:
                provider = settings.anthropic.provider
                task = read_task(variables, provider)
                return await _run(own, settings, task, cluster)
            except SettingsError as error:
                await refuse(identity, cluster, error)
                raise
    except SettingsError as error:
        print_notice(error.one_line())
        return BAD_ENVIRONMENT


async def _run(
    edge: Edge, settings: Settings, task: PodTask, cluster: StatusCluster
) -> int:
    import_without_tool_servers()
    from midwatch.cli.session.run import TerminalEvents
    from midwatch.cli.session.view import EventPrinter, print_notice
    from midwatch.kube.runner import Dependencies, pod_runner
    from midwatch.redaction import Redactor
    from midwatch.session.options import git_environment, session_options
    from midwatch.session.traced_events import traced_events

    for name in task.variables.left_out:
        print_notice(f"{name} is a reserved name: that key of a secret is ignored")
    traced = traced_events(
        TerminalEvents(EventPrinter(Output.standard(edge.environ))),
        settings.telemetry,
        Redactor(task.secrets),
        provider=settings.anthropic.provider,
        session_id=task.identity.name,
    )
    async with _sync(task) as sync, traced as events:
        dependencies = Dependencies(
            cluster=cluster,
            sync=sync,
            options=session_options(settings.sessions),
            environment=git_environment(settings.sessions, task.variables.of_git),
            events=events,
            settings=settings.sessions,
        )
        return await pod_runner(task, dependencies).run()


@contextlib.asynccontextmanager
async def _cluster(
    identity: Identity, settings: Settings
) -> AsyncIterator[StatusCluster]:
    """Connect to the API server; yield `NoCluster` if no status is to be written. Raises SettingsError."""
    from midwatch.kube.status_writer import NoCluster

    if not identity.writes_status:
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
    """Connect to the content proxy; yield None if there is none. Raises SettingsError."""
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
