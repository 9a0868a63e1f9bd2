"""The plan of a workspace: which clone goes where. Pure; refuses before the disk is touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from midwatch.workspace.errors import WorkspaceExists, WorkspaceRefused
from midwatch.workspace.urls import (
    Remote,
    check_folder_name,
    check_ref_name,
    collision_key,
    derive_folder_name,
    parse_remote,
)

MAX_REPOSITORIES = 64


@dataclass(frozen=True, slots=True)
class RepoSpec:
    """A repository that a person asks for.

    `branch` or `tag` says where to start (the repository's own default without either). `name`
    is the folder's. Commits are pushed to `push_url` (else `url`) and `push_branch` (else the
    session's own branch). `depth` is a number of commits; `blobless` leaves old file contents
    on the server until they are needed. Both go past the mirrors.
    """

    url: str
    branch: str | None = None
    tag: str | None = None
    name: str | None = None
    push_url: str | None = None
    push_branch: str | None = None
    depth: int | None = None
    blobless: bool = False
    submodules: bool = False
    lfs: bool = False


@dataclass(frozen=True, slots=True)
class PlannedRepo:
    """A repository with everything decided; nothing in it can mislead git."""

    name: str
    path: Path
    remote: Remote
    branch: str | None
    tag: str | None
    push_remote: Remote
    push_branch: str
    depth: int | None
    blobless: bool
    submodules: bool
    lfs: bool

    @property
    def wanted(self) -> str | None:
        """The branch or tag asked for, for messages."""
        return self.branch or self.tag

    @property
    def partial(self) -> bool:
        return self.depth is not None or self.blobless


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything goes. `session_branch` is the branch that the session works on."""

    workspace: Path
    repos: tuple[PlannedRepo, ...]
    main: int
    session_branch: str

    @property
    def paths(self) -> list[Path]:
        return [repo.path for repo in self.repos]


def plan_workspace(
    repos: Sequence[RepoSpec | str | Path],
    workspace: Path,
    main_repo_index: int = 0,
    *,
    session_branch: str = "midwatch/session",
    existing: Iterable[str] = (),
) -> Plan:
    """Decide folder names and branches; `existing` are the names already in the workspace.

    Raises WorkspaceRefused for what must not reach git or the disk, and WorkspaceExists for a
    folder that is taken.
    """
    if isinstance(repos, str):
        raise WorkspaceRefused("the repositories are one text", hint="give a list")
    specs = [
        repo if isinstance(repo, RepoSpec) else RepoSpec(str(repo)) for repo in repos
    ]
    _check_count(specs, main_repo_index)
    check_ref_name(session_branch)
    remotes = [parse_remote(spec.url) for spec in specs]
    _refuse_duplicates(specs, remotes)
    names = _folder_names(specs, remotes)
    taken = {collision_key(name) for name in existing}
    for name in names:
        if collision_key(name) in taken:
            raise WorkspaceExists(f"the workspace already has something named {name!r}")
    planned = tuple(
        _planned(spec, remote, name, workspace, session_branch)
        for spec, remote, name in zip(specs, remotes, names, strict=True)
    )
    return Plan(workspace, planned, main_repo_index, session_branch)


def _check_count(specs: Sequence[RepoSpec], main: int) -> None:
    if not specs:
        raise WorkspaceRefused("a workspace needs a repository", hint="name one")
    if len(specs) > MAX_REPOSITORIES:
        raise WorkspaceRefused(
            f"{len(specs)} repositories are too many",
            hint=f"at most {MAX_REPOSITORIES}",
        )
    if not 0 <= main < len(specs):
        raise WorkspaceRefused(
            f"main repository {main} does not exist",
            hint=f"choose from 0 to {len(specs) - 1}",
        )


def _refuse_duplicates(specs: Sequence[RepoSpec], remotes: Sequence[Remote]) -> None:
    seen = set()
    for spec, remote in zip(specs, remotes, strict=True):
        key = (remote.url, spec.branch, spec.tag, spec.name)
        if key in seen:
            raise WorkspaceRefused(
                f"repository {remote.url!r} is named twice",
                hint="name it once, or give its clones different names",
            )
        seen.add(key)


def _folder_names(specs: Sequence[RepoSpec], remotes: Sequence[Remote]) -> list[str]:
    """The names asked for; else the last component, with its parent where that is ambiguous."""
    names = [
        check_folder_name(spec.name) if spec.name is not None else _derived(remote, 1)
        for spec, remote in zip(specs, remotes, strict=True)
    ]
    count = Counter(collision_key(name) for name in names)
    used = {collision_key(spec.name) for spec in specs if spec.name is not None}
    _refuse_equal_names([spec.name for spec in specs if spec.name is not None])
    for index, spec in enumerate(specs):
        if spec.name is None:
            if count[collision_key(names[index])] > 1:
                names[index] = _derived(remotes[index], 2)
            names[index] = _numbered(names[index], used)
            used.add(collision_key(names[index]))
    return names


def _refuse_equal_names(names: Sequence[str]) -> None:
    for key, times in Counter(collision_key(name) for name in names).items():
        if times > 1:
            raise WorkspaceRefused(
                f"two clones would be named {key!r}", hint="give them different names"
            )


def _derived(remote: Remote, parts: int) -> str:
    return derive_folder_name(remote.path[-parts:] or (remote.host,))


def _numbered(name: str, used: set[str]) -> str:
    candidate, number = name, 1
    while collision_key(candidate) in used:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _planned(
    spec: RepoSpec, remote: Remote, name: str, workspace: Path, session_branch: str
) -> PlannedRepo:
    _check_start(spec, remote)
    push_branch = check_ref_name(spec.push_branch or session_branch, "push branch")
    planned = PlannedRepo(
        name=name,
        path=workspace / name,
        remote=remote,
        branch=spec.branch,
        tag=spec.tag,
        push_remote=remote,
        push_branch=push_branch,
        depth=spec.depth,
        blobless=spec.blobless,
        submodules=spec.submodules,
        lfs=spec.lfs,
    )
    if spec.push_url is None:
        return planned
    return replace(planned, push_remote=parse_remote(spec.push_url))


def _check_start(spec: RepoSpec, remote: Remote) -> None:
    if spec.branch is not None and spec.tag is not None:
        raise WorkspaceRefused(
            f"repository {remote.url!r} has a branch and a tag", hint="give one of them"
        )
    if spec.branch is not None:
        check_ref_name(spec.branch)
    if spec.tag is not None:
        check_ref_name(spec.tag, "tag")
    if spec.depth is not None and spec.depth < 1:
        raise WorkspaceRefused(
            f"depth {spec.depth} is not a number of commits", hint="1 or more"
        )
