"""Setting a pod's workspace up: anew, or as the pod before this one left it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from midwatch.kube.pod.places import PodPlaces
from midwatch.kube.pod.task import PodTask
from midwatch.session.log import disk_error
from midwatch.workspace.errors import WorkspaceExists
from midwatch.workspace.plan import plan_workspace
from midwatch.workspace.record import (
    Workspace,
    load_record,
    open_workspace,
    save_record,
)
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace_async


async def prepare_workspace(
    task: PodTask,
    places: PodPlaces,
    options: WorkspaceOptions,
    note: Callable[[str], None],
) -> Workspace:
    """The workspace as it was left, else fresh clones. Raises what `setup_workspace_async` raises.

    Clones that no whole record tells of cannot be worked in: nothing says where they began, and
    their `.git` is not to be trusted. They are moved aside, never removed, and cloned anew in their
    place, so that the working directory stays the one that the transcript knows.
    """
    for path in set_aside(task, places):
        note(f"what no record tells of was moved to {path}, and is cloned anew")
    given = task.environment
    await setup_workspace_async(
        task.specs,
        given.workspace_path,
        given.main_repo_index,
        options=options,
        on_progress=None,
    )
    return _pushed_as_asked(open_workspace(places.repositories), task)


def set_aside(task: PodTask, places: PodPlaces) -> list[Path]:
    """Move clones and records that do not belong together out of the way; where they are now."""
    given = task.environment
    plan = plan_workspace(task.specs, given.workspace_path, given.main_repo_index)
    wanted = [repo.path for repo in plan.repos]
    if _whole(places.repositories):
        return []
    left = [path for path in (*wanted, places.repositories) if os.path.lexists(path)]
    return [_moved(path) for path in left]


def _whole(record: Path) -> bool:
    """Whether a record and its clones fit: all there, all gone, or still being moved."""
    try:
        found = load_record(record)
    except WorkspaceExists:
        return False
    if found is None:
        return False
    present = {repo.path.is_dir() for repo in found.repos}
    return found.staging is not None or len(present) == 1


def _moved(path: Path) -> Path:
    """Beside it, under a name that is free: a rename, which needs no space."""
    number = 1
    while os.path.lexists(to := path.parent / f".midwatch-saved-{number}" / path.name):
        number += 1
    try:
        to.parent.mkdir(exist_ok=True)
        path.rename(to)
    except OSError as error:
        raise disk_error(error, path) from error
    return to


def _pushed_as_asked(workspace: Workspace, task: PodTask) -> Workspace:
    """A session that goes on with another one pushes to where its own resource says."""
    plan = plan_workspace(
        task.specs,
        task.environment.workspace_path,
        task.environment.main_repo_index,
        session_branch=workspace.session_branch,
    )
    targets = [(one.push_remote.url, one.push_branch) for one in plan.repos]
    repos = tuple(
        replace(repo, push_url=url, push_branch=branch)
        for repo, (url, branch) in zip(workspace.repos, targets, strict=True)
    )
    changed = replace(workspace, repos=repos, main=plan.main)
    if changed != workspace:
        save_record(changed)
    return changed
