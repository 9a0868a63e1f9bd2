"""What is known of a workspace outside of it, where no agent can change it.

The state folder of a workspace holds this record and, for each repository, a bare git directory of
ours with the commit that the session began from. Both are made before the agent starts.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from midwatch.errors import NotFound
from midwatch.workspace.errors import WorkspaceExists
from midwatch.workspace.plan import Plan, PlannedRepo
from midwatch.workspace.urls import Remote, parse_remote

_FILE = "workspace.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class ClonedRepo:
    """One clone. `base` is the commit that the session began from, None in an empty repository.

    `git_dir` is ours and trusted; the clone's own `.git` is not, once an agent has been there.
    """

    name: str
    path: Path
    git_dir: Path
    url: str
    base: str | None
    push_url: str
    push_branch: str
    blobless: bool = False

    @property
    def remote(self) -> Remote:
        return parse_remote(self.url)

    @property
    def push_remote(self) -> Remote:
        return parse_remote(self.push_url)


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace that was set up; `main` is the index of the agent's working directory.

    `staging` is set while clones are still moved to their places.
    """

    path: Path
    state: Path
    main: int
    session_branch: str
    repos: tuple[ClonedRepo, ...]
    staging: str | None = None

    @property
    def paths(self) -> list[Path]:
        return [repo.path for repo in self.repos]


def cloned(repo: PlannedRepo, state: Path, base: str | None) -> ClonedRepo:
    return ClonedRepo(
        name=repo.name,
        path=repo.path,
        git_dir=git_dir_in(state, repo.name),
        url=repo.remote.url,
        base=base,
        push_url=repo.push_remote.url,
        push_branch=repo.push_branch,
        blobless=repo.blobless,
    )


def git_dir_in(state: Path, name: str) -> Path:
    return state / f"{name}.git"


def open_workspace(state: Path) -> Workspace:
    """The workspace whose state folder this is. Raises NotFound."""
    found = load_record(state)
    if found is None:
        raise NotFound(
            f"no workspace is recorded in {state}",
            hint="set it up with its repositories",
        )
    return found


def load_record(state: Path) -> Workspace | None:
    """The record in a state folder, or None where there is none.

    Raises WorkspaceExists for one that cannot be read.
    """
    try:
        text = (state / _FILE).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _parsed(json.loads(text), state)
    except (ValueError, KeyError, TypeError):
        raise WorkspaceExists(
            f"the record {state / _FILE} cannot be read",
            hint="move that folder away and set the workspace up elsewhere",
        ) from None


def _parsed(data: dict[str, Any], state: Path) -> Workspace:
    repos = tuple(
        ClonedRepo(
            **{**repo, "path": Path(repo["path"]), "git_dir": Path(repo["git_dir"])}
        )
        for repo in data["repos"]
    )
    return Workspace(
        path=Path(data["path"]),
        state=state,
        main=data["main"],
        session_branch=data["session_branch"],
        repos=repos,
        staging=data["staging"],
    )


def save_record(workspace: Workspace, folder: Path | None = None) -> None:
    """Write the record, whole or not at all; `folder` where the state is still being made."""
    place = (folder or workspace.state) / _FILE
    data = {"version": _VERSION} | asdict(workspace)
    temporary = place.with_suffix(".new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(data, file, default=str, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(place)


def describes(workspace: Workspace, plan: Plan) -> bool:
    """Whether a plan asks for just what the workspace has."""
    return [(r.path, r.url) for r in workspace.repos] == [
        (r.path, r.remote.url) for r in plan.repos
    ]


def finished(workspace: Workspace) -> Workspace:
    return replace(workspace, staging=None)
