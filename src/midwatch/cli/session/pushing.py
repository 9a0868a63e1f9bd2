"""What a session did to its repositories: looked at anew, and pushed."""

from __future__ import annotations

from dataclasses import replace

from midwatch.cli.output import GREEN, RED
from midwatch.cli.session.desk import Desk
from midwatch.cli.session.documents import push_document
from midwatch.cli.session.places import Place
from midwatch.cli.session.telling import Teller
from midwatch.errors import MidwatchError, NotFound
from midwatch.session.agentic_session import repository_record
from midwatch.text import one_line
from midwatch.workspace.inspect import RepoState, inspect_workspace
from midwatch.workspace.push import PushResult, push_workspace
from midwatch.workspace.record import ClonedRepo, Workspace, open_workspace, save_record
from midwatch.workspace.urls import check_ref_name


class NotPushed(MidwatchError):
    """Something could not be pushed."""


async def look(desk: Desk, place: Place) -> list[RepoState]:
    """The repositories as they are now; the records follow."""
    workspace = open_workspace(place.state)
    states = await inspect_workspace(workspace, desk.workspace_options(place).git())
    records = [repository_record(state) for state in states]
    await desk.sessions.save_repositories(place.id, records)
    return states


async def push_and_tell(
    desk: Desk, place: Place, teller: Teller, branch: str | None = None
) -> None:
    """Push every repository that has something. Raises NotPushed if one could not be."""
    workspace = open_workspace(place.state)
    if branch is not None:
        workspace = await _onto(desk, place, workspace, branch)
    results = await push_workspace(workspace, desk.workspace_options(place).git())
    for result in results:
        _tell(teller, result)
    await look(desk, place)
    failed = [result for result in results if result.error is not None]
    if failed:
        error = failed[0].error
        assert error is not None
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise NotPushed(
            f"{failed[0].name}{more} not pushed: {error.message}", hint=error.hint
        )


async def _onto(
    desk: Desk, place: Place, workspace: Workspace, branch: str
) -> Workspace:
    """The workspace with another branch to push to, from now on: a fork or another machine
    begins where the session has pushed to."""
    check_ref_name(branch)
    repos = tuple(replace(repo, push_branch=branch) for repo in workspace.repos)
    changed = replace(workspace, repos=repos)
    save_record(changed)
    session = await desk.sessions.get(place.id)
    asked = [
        {**one, "push_branch": branch}
        for one in session.options.get("repositories") or ()
    ]
    options = {**session.options, "repositories": asked}
    await desk.sessions.save_options(place.id, options)
    return changed


def _tell(teller: Teller, result: PushResult) -> None:
    if teller.as_json:
        teller.document(push_document(result))
        return
    where = f"{one_line(result.remote)} {result.branch}"
    name = one_line(result.name)
    if result.outcome == "pushed":
        teller.plain(f"{name}: pushed to {where}", GREEN)
    elif result.outcome == "nothing":
        teller.plain(f"{name}: nothing to push")
    else:
        teller.plain(f"{name}: not pushed to {where}", RED)


def repository_named(workspace: Workspace, wanted: str) -> ClonedRepo:
    """A repository by its name or its number from 0. Raises NotFound."""
    for number, repo in enumerate(workspace.repos):
        if wanted in (repo.name, str(number)):
            return repo
    known = ", ".join(repo.name for repo in workspace.repos)
    raise NotFound(f"there is no repository {wanted[:80]!r}", hint=f"known: {known}")
