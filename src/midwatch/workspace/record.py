"""What is known of a workspace outside of it, where no agent can change it.

The state folder of a workspace holds this record and, for each repository, a bare git directory of
ours with the commit that the session began from. Both are made before the agent starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterable
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


# ------------------------------------------------------------ staging
# All or nothing: clones are made aside and moved into their places when all are whole.
#
# A state folder and a workspace are two folders, so the moves cannot be one step. The record is
# written before them with the name of the staging folder; who finds it there after a crash finishes the moves.

PREFIX = ".midwatch-"


@dataclass(frozen=True, slots=True)
class Staging:
    """Where clones and state are made: `clones` inside the workspace, `state` beside the real one."""

    plan: Plan
    clones: Path
    state: Path
    final_state: Path

    def commit(self, repos: Iterable[ClonedRepo]) -> Workspace:
        """Everything is whole: record it, then move it into place. Raises WorkspaceExists."""
        for repo in self.plan.repos:
            if os.path.lexists(repo.path):
                raise WorkspaceExists(
                    f"{repo.path} was taken while it was being cloned"
                )
        workspace = Workspace(
            path=self.plan.workspace,
            state=self.final_state,
            main=self.plan.main,
            session_branch=self.plan.session_branch,
            repos=tuple(repos),
            staging=self.clones.name,
        )
        save_record(workspace, self.state)
        self.state.rename(self.final_state)
        return move_into_place(workspace)


@contextlib.asynccontextmanager
async def staged(plan: Plan, state: Path) -> AsyncIterator[Staging]:
    """A place to make the workspace in; what is left there at the end is removed.

    The workspace folder itself is removed too if it was made here and stays empty.
    """
    made = _missing_parents(plan.workspace)
    number = secrets.token_hex(4)
    clones = plan.workspace / f"{_prefix(state)}{number}"
    fresh_state = state.with_name(f"{state.name}.new-{number}")
    try:
        clones.mkdir(parents=True)
        fresh_state.mkdir(parents=True, mode=0o700)
        yield Staging(plan, clones, fresh_state, state)
    finally:
        # With a record, moves have begun: what is left is for the next set-up to finish.
        if load_record(state) is None:
            # Shielded: a second cancellation must not leave half of it.
            await asyncio.shield(asyncio.to_thread(_remove, clones, fresh_state, made))


def move_into_place(workspace: Workspace) -> Workspace:
    """Move what is still in the staging folder. Raises WorkspaceExists if a place is taken."""
    if workspace.staging is None:
        return workspace
    staging = workspace.path / workspace.staging
    for repo in workspace.repos:
        source = staging / repo.name
        if source.is_dir() and not repo.path.exists():
            source.rename(repo.path)
        elif not repo.path.is_dir() or source.is_dir():
            raise WorkspaceExists(f"{repo.path} was taken while it was being cloned")
    done = finished(workspace)
    save_record(done)
    shutil.rmtree(staging, ignore_errors=True)
    return done


def sweep(workspace: Path, state: Path) -> None:
    """Remove what a killed set-up of this very workspace left; its lock must be held."""
    leftovers = [*workspace.glob(f"{_prefix(state)}*")]
    leftovers += state.parent.glob(f"{state.name}.new-*")
    for left in leftovers:
        shutil.rmtree(left, ignore_errors=True)


def _prefix(state: Path) -> str:
    # Two state folders never sweep each other's clones.
    return f"{PREFIX}{hashlib.sha256(str(state).encode()).hexdigest()[:8]}-"


def _missing_parents(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove(clones: Path, state: Path, made: list[Path]) -> None:
    shutil.rmtree(clones, ignore_errors=True)
    shutil.rmtree(state, ignore_errors=True)
    for folder in made:
        with contextlib.suppress(OSError):  # somebody else uses it by now
            folder.rmdir()
