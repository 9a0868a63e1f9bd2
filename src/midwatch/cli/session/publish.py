"""`midwatch session fix --pr` and `midwatch session pr`: what a session changed becomes pull requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from midwatch.cli.output import GREEN, RED, YELLOW
from midwatch.cli.session.run import ticket_repositories
from midwatch.cli.session.service import SessionContext
from midwatch.cli.session.view import EventPrinter
from midwatch.errors import Conflict, MidwatchError, TemporaryError
from midwatch.model import Json
from midwatch.pull_requests.known_forges import KnownForges
from midwatch.pull_requests.publisher import Planned, Published, Publisher, Work
from midwatch.redaction import Redactor
from midwatch.session.options import PullRequestsAsked, git_environment
from midwatch.session.records import SessionPaths, SessionRequest, StoredSession
from midwatch.settings import Settings
from midwatch.store.pull_requests import SqlPullRequests
from midwatch.store.sessions import SqlSessions
from midwatch.store.sql import SqlStore
from midwatch.text import one_line
from midwatch.workspace.inspect import inspect_workspace
from midwatch.workspace.plan import RepoSpec
from midwatch.workspace.record import Workspace, open_workspace, save_record


class NotOpened(MidwatchError):
    """A pull request is not open."""


def open_publisher(
    settings: Settings,
    environ: Mapping[str, str],
    store: SqlStore,
    redactor: Redactor,
) -> Publisher:
    """Return what opens pull requests. Raises SettingsError for a token of `sessions.git` that is missing."""
    chosen = settings.pull_requests
    git = git_environment(settings.sessions, environ)
    forges = KnownForges(settings.forges, environ, git.credentials, chosen.timeout)
    return Publisher(
        forges,
        SqlPullRequests(store.transactions),
        store,
        SqlSessions(store.transactions),
        redactor,
        chosen,
        settings.server.url,
    )


def _publisher(context: SessionContext) -> Publisher:
    return open_publisher(
        context.settings, context.edge.environ, context.store, context.manager.redactor
    )


def afterwards(settings: Settings, push: bool, pull_request: bool) -> str:
    """Return what happens after the session, for the person who confirms it."""
    if not pull_request:
        return "its changes are pushed" if push else "nothing is pushed"
    opened = "a pull request is opened for each repository that changes"
    approval = settings.pull_requests.approval
    return f"{opened}, once a person approves it" if approval else opened


async def plan_fix(
    context: SessionContext, request: SessionRequest, asked: PullRequestsAsked
) -> SessionRequest:
    """Return the request with the branches of its ticket: the session begins on them where they are there.

    Its record says what was asked until that is done. Raises as `Publisher.plan`, before anything is started and paid for.
    """
    assert request.ticket is not None
    plans = await _plan(context, request.ticket, request.repositories, asked.new)
    repositories = tuple(plans[one.url].spec(one) for one in request.repositories)
    return replace(request, repositories=repositories, pull_requests=asked)


async def expect_pull_requests(
    context: SessionContext,
    request: SessionRequest,
    by: str,
    *,
    new: bool = False,
    create: Callable[[Json], Awaitable[None]] | None = None,
) -> Json:
    """Return the resource of a session that pushes to the branches of its ticket, and record that it will.

    Args:
        context: The stores and settings.
        request: The session.
        by: Who asks for it.
        new: Whether another pull request is opened where the last one was merged or closed.
        create: Creates the resource, before anything is recorded; None if the caller does so later.

    Raises:
        SettingsError: The resource would be refused.
        Conflict: The settings want an approval.
        MidwatchError: As `Publisher.plan`, or raised by `create`.
    """
    from midwatch.kube.session_body import resource_name, ticket_session

    assert request.ticket is not None
    ticket_session(request)  # what is wrong with it shows before the forge is asked
    publisher = _publisher(context)
    try:
        publisher.check_pushes_by_itself()
        ticket = await context.store.ticket(request.ticket)
        plans = await publisher.plan(ticket, request.repositories, new=new)
        specs = tuple(plans[one.url].spec(one) for one in request.repositories)
        body = ticket_session(replace(request, repositories=specs))
        if create is not None:
            await create(body)
        await publisher.expect(ticket, plans, resource_name(request), by)
    finally:
        await publisher.forges.close()
    return body


async def _plan(
    context: SessionContext, ticket_id: int, specs: Sequence[RepoSpec], new: bool
) -> dict[str, Planned]:
    publisher = _publisher(context)
    try:
        ticket = await context.store.ticket(ticket_id)
        return await publisher.plan(ticket, specs, new=new)
    finally:
        await publisher.forges.close()


def publishing(
    context: SessionContext, request: SessionRequest, new: bool
) -> Callable[[EventPrinter, str], Awaitable[None]]:
    """Return what is done once the session is Completed, by who holds `SessionPaths.publishing`."""

    async def publish(printer: EventPrinter, by: str) -> None:
        results = await publish_session(context, request.id, by, new=new)
        print_published(printer, results, request.id)

    return publish


async def publish_session(
    context: SessionContext,
    session_id: str,
    by: str,
    *,
    approved_by: str | None = None,
    new: bool = False,
    as_begun: bool = False,
) -> Sequence[Published]:
    """Push what a session changed, and open or update the pull requests of its ticket.

    The caller holds `SessionPaths.publishing`. Afterwards the record no longer says that they are to be opened, unless the
    error was a temporary one: a daemon then tries again.

    Args:
        context: The stores and settings.
        session_id: The session, which has ended.
        by: Who asks for it.
        approved_by: The person who approves it.
        new: Whether another one is opened where the last one was merged or closed.
        as_begun: Refuse another branch than the one that the session was started for.

    Returns:
        What became of each repository.

    Raises:
        Conflict: The session is not for a ticket, or runs; or a pull request cannot be opened.
        MidwatchError: As `Publisher.plan`.
    """
    session, paths = await _ended(context, session_id)
    assert session.ticket is not None
    publisher = _publisher(context)
    try:
        ticket = await context.store.ticket(session.ticket)
        specs = ticket_repositories(context.settings.subjects, ticket.key.subject, None)
        plans = await publisher.plan(ticket, specs, new=new)
        if as_begun:
            _check_branches(paths, plans)
        await context.manager.remove_mount_points(session_id)
        workspace = await _on_branches(context, paths, plans)
        git = context.workspace_options(session_id).git()
        ended_at = session.status.ended_at
        work = Work(ticket, session_id, by, workspace, git, ended_at, approved_by)
        results = await publisher.publish(work, plans)
        states = await inspect_workspace(workspace, git)
        await context.sessions.save_repositories(session_id, states)
    except MidwatchError as error:
        if not isinstance(error, TemporaryError):
            await context.manager.save_asked(session_id, None)
        raise
    finally:
        await publisher.forges.close()
    if not any(is_tried_again(one) for one in results):
        await context.manager.save_asked(session_id, None)
    return results


async def _ended(
    context: SessionContext, session_id: str
) -> tuple[StoredSession, SessionPaths]:
    """Return a session for a ticket on this machine. Raises Conflict if it is not one, or runs."""
    session = await context.manager.get(session_id)
    if session.ticket is None:
        raise Conflict(
            f"session {session_id} was not started for a ticket",
            hint="`midwatch session push` pushes it",
        )
    paths = context.manager.folders.existing(session_id)
    if (
        paths.running
        and context.manager.alive(session)
        and not session.status.phase.terminal
    ):
        raise Conflict(f"session {session_id} is running", hint="wait for its end")
    return session, paths


def is_tried_again(result: Published) -> bool:
    """Return whether a daemon pushes again: it failed, and that may pass. What is pushed `PullRequestWatcher` opens."""
    return result.outcome == "failed" and isinstance(result.error, TemporaryError)


def _check_branches(paths: SessionPaths, plans: Mapping[str, Planned]) -> None:
    """Raise Conflict if the changes would go to another branch than when the session was started."""
    for repo in open_workspace(paths.state).repos:
        planned = plans.get(repo.url)
        if planned is not None and planned.branch != repo.push_branch:
            raise Conflict(
                f"{repo.name}: the branch of the ticket was {repo.push_branch} when the session began, and is {planned.branch}",
                hint=f"`midwatch session pr {paths.id}` pushes to that",
            )


async def _on_branches(
    context: SessionContext, paths: SessionPaths, plans: Mapping[str, Planned]
) -> Workspace:
    """Record the branches of the ticket as those that the session is pushed to, and return the workspace."""
    workspace = open_workspace(paths.state)
    repos = tuple(
        replace(one, push_branch=plans[one.url].branch) if one.url in plans else one
        for one in workspace.repos
    )
    if repos == workspace.repos:
        return workspace
    changed = replace(workspace, repos=repos)
    save_record(changed)
    session = await context.sessions.get(paths.id)
    asked = [
        (
            {**one, "push_branch": plans[one["url"]].branch}
            if one.get("url") in plans
            else one
        )
        for one in session.options.get("repositories") or ()
    ]
    await context.sessions.save_options(
        paths.id, {**session.options, "repositories": asked}
    )
    return changed


_SAID = {
    "opened": ("opened", GREEN),
    "updated": ("new commits in", GREEN),
    "nothing": ("no change", ""),
    "waiting": ("waits for approval", YELLOW),
    "pushed": ("pushed, not open yet", YELLOW),
    "failed": ("not opened", RED),
}


def print_published(
    printer: EventPrinter, results: Sequence[Published], session_id: str
) -> None:
    """Print what became of each repository. Raises NotOpened if one failed, or is not open yet."""
    for one in results:
        _, style = _SAID[one.outcome]
        if printer.as_json:
            printer.document(
                {
                    "type": "pull_request",
                    "name": one.name,
                    "outcome": one.outcome,
                    "url": one.url,
                    "error": one.error and one.error.one_line(),
                }
            )
        else:
            printer.plain(published_line(one), style)
    if any(one.outcome == "waiting" for one in results) and not printer.as_json:
        printer.plain(f"`midwatch session pr {session_id} --approve` pushes and opens")
    if (error := not_opened(results)) is not None:
        raise error


def published_line(result: Published) -> str:
    """Return what became of one repository."""
    said, _ = _SAID[result.outcome]
    where = f" {result.url}" if result.url else ""
    noun = "" if result.outcome == "nothing" else "pull request "
    return f"{one_line(result.name)}: {noun}{said}{where}"


def not_opened(results: Sequence[Published]) -> NotOpened | None:
    """Return the error for what failed or is not open yet; None if nothing did."""
    failed = [one for one in results if one.error is not None]
    if not failed:
        return None
    error = failed[0].error
    assert error is not None
    more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
    state = "not open yet" if failed[0].outcome == "pushed" else "not opened"
    return NotOpened(
        f"{failed[0].name}{more}: pull request {state}: {error.message}",
        hint=error.hint,
    )
