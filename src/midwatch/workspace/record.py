"""The record of a workspace, and its all-or-nothing creation.

The state folder of a workspace is outside of it, where no agent can write. It holds the record and,
for each repository, a bare git directory, the trusted one, with the commit that the session started
from. Both are made before the agent starts.

Clones are made in a staging folder and moved to their places when all are complete. The moves cannot be
one step, since workspace and state are two folders: the record is written first, with the name of the
staging folder. A setup that finds it there after a crash completes the moves.
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
from midwatch.files import UnusableFile, read_regular, replace_file
from midwatch.workspace.errors import WorkspaceExists
from midwatch.workspace.plan import WorkspacePlan
from midwatch.workspace.urls import Remote, parse_remote

PREFIX = ".midwatch-"
"""The prefix of the names of staging folders."""
_FILE = "workspace.json"
_VERSION = 1
_MAX_SIZE = 16 << 20
_MOVE_AWAY = "move its folder away, and set the workspace up in another folder"


@dataclass(frozen=True, slots=True)
class ClonedRepo:
    """A repository that was cloned.

    Attributes:
        name: Name of the clone's folder.
        path: The clone. Its `.git` is not trusted once an agent has worked there.
        git_dir: The trusted git directory, in the state folder.
        url: Where it was cloned from.
        base: The commit that the session started from; None if the repository was empty.
        push_url: Where commits are pushed.
        push_branch: The branch that commits are pushed to.
        blobless: Whether file contents are fetched when they are needed.
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
        """The parsed `url`."""
        return parse_remote(self.url)

    @property
    def push_remote(self) -> Remote:
        """The parsed `push_url`."""
        return parse_remote(self.push_url)


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace that was set up.

    Attributes:
        path: Its folder.
        state: Its state folder, outside of `path`.
        main: Index of the main repository, the agent's working directory.
        session_branch: The branch that the session works on.
        repos: The clones, in the order of the request.
        staging: Name of the staging folder in `path` while clones are moved to their places.
    """

    path: Path
    state: Path
    main: int
    session_branch: str
    repos: tuple[ClonedRepo, ...]
    staging: str | None = None

    @property
    def paths(self) -> list[Path]:
        """The folders of the clones, in order."""
        return [repo.path for repo in self.repos]


def git_dir_in(state: Path, name: str) -> Path:
    """Return the trusted git directory of a clone."""
    return state / f"{name}.git"


def open_workspace(state: Path) -> Workspace:
    """Return the workspace of a state folder. Raises NotFound, and WorkspaceExists for a broken record."""
    found = load_record(state)
    if found is None:
        raise NotFound(
            f"{state} has no record of a workspace",
            hint="set the workspace up with its repositories",
        )
    return found


def load_record(state: Path) -> Workspace | None:
    """Return the workspace of a state folder, or None without a record.

    Raises:
        WorkspaceExists: The record cannot be read.
    """
    try:
        text = read_regular(state / _FILE, _MAX_SIZE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnusableFile as error:
        raise WorkspaceExists(
            f"the record {state / _FILE} {error.strerror}", hint=_MOVE_AWAY
        ) from None
    try:
        return _parsed(json.loads(text), state)
    except (ValueError, KeyError, TypeError):
        raise WorkspaceExists(
            f"the record {state / _FILE} cannot be read",
            hint=_MOVE_AWAY,
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
    """Replace the record of a workspace.

    Args:
        workspace: The workspace.
        folder: Where to write, while the state folder is not yet in its place.

    Raises:
        OSError: The old record is unchanged.
    """
    data = {"version": _VERSION} | asdict(workspace)
    text = json.dumps(data, default=str, indent=1)
    replace_file((folder or workspace.state) / _FILE, text.encode())


def describes(workspace: Workspace, plan: WorkspacePlan) -> bool:
    """Return whether a workspace has exactly the clones of a plan."""
    planned = zip(plan.paths, plan.repos, strict=True)
    return [(repo.path, repo.url) for repo in workspace.repos] == [
        (path, repo.url) for path, repo in planned
    ]


@dataclass(frozen=True, slots=True)
class Staging:
    """Where clones and state are made.

    Attributes:
        plan: The plan of the workspace.
        clones: The staging folder of the clones, inside the workspace.
        state: The staging folder of the state, beside `final_state`.
        final_state: The state folder.
    """

    plan: WorkspacePlan
    clones: Path
    state: Path
    final_state: Path

    def commit(self, repos: Iterable[ClonedRepo]) -> Workspace:
        """Record the workspace and move everything to its place.

        Raises:
            WorkspaceExists: A place is taken by now.
        """
        for path in self.plan.paths:
            if os.path.lexists(path):
                raise _occupied(path)
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
async def staged(plan: WorkspacePlan, state: Path) -> AsyncIterator[Staging]:
    """Yield staging folders for a new workspace. What remains in them at the end is removed.

    The folder of the workspace is removed too if it was created here and is empty.

    Args:
        plan: The plan of the workspace.
        state: Its state folder.
    """
    created = [
        path for path in (plan.workspace, *plan.workspace.parents) if not path.exists()
    ]
    number = secrets.token_hex(4)
    clones = plan.workspace / f"{_prefix(state)}{number}"
    new_state = state.with_name(f"{state.name}.new-{number}")
    try:
        clones.mkdir(parents=True)
        new_state.mkdir(parents=True, mode=0o700)
        yield Staging(plan, clones, new_state, state)
    finally:
        # With a record, moves have begun: the next setup completes them.
        if load_record(state) is None:
            # Shielded: a second cancellation must not leave a part of it.
            removing = asyncio.to_thread(_remove, clones, new_state, created)
            await asyncio.shield(removing)


def move_into_place(workspace: Workspace) -> Workspace:
    """Move the clones that are still in the staging folder to their places.

    Returns:
        The workspace without `staging`, as it is recorded then.

    Raises:
        WorkspaceExists: A place is taken.
    """
    if workspace.staging is None:
        return workspace
    staging = workspace.path / workspace.staging
    for repo in workspace.repos:
        source = staging / repo.name
        if source.is_dir() and not repo.path.exists():
            source.rename(repo.path)
        elif not repo.path.is_dir() or source.is_dir():
            raise _occupied(repo.path)
    done = replace(workspace, staging=None)
    save_record(done)
    shutil.rmtree(staging, ignore_errors=True)
    return done


def _occupied(path: Path) -> WorkspaceExists:
    return WorkspaceExists(f"{path} was created by others during the clone")


def sweep(workspace: Path, state: Path) -> None:
    """Remove the leftovers of a killed setup of this workspace. The caller holds its lock."""
    leftovers = [*workspace.glob(f"{_prefix(state)}*")]
    leftovers += state.parent.glob(f"{state.name}.new-*")
    for left in leftovers:
        shutil.rmtree(left, ignore_errors=True)


def _prefix(state: Path) -> str:
    # A setup removes leftovers of its own state folder only.
    return f"{PREFIX}{hashlib.sha256(str(state).encode()).hexdigest()[:8]}-"


def _remove(clones: Path, state: Path, created: list[Path]) -> None:
    shutil.rmtree(clones, ignore_errors=True)
    shutil.rmtree(state, ignore_errors=True)
    for folder in created:
        with contextlib.suppress(OSError):  # another process uses it by now
            folder.rmdir()
