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
    split_branch,
)

MAX_REPOSITORIES = 64
_NOT_NAMES = ("_git", "_ssh")
"""What Azure DevOps writes between the project and the repository."""


@dataclass(frozen=True, slots=True)
class RepoSpec:
    """A repository to clone, and where its commits are pushed.

    Attributes:
        url: https, http, ssh or file URL, `user@host:path` or a local path.
        branch: The branch to start from; the default branch without a branch and a tag.
        tag: The tag to start from.
        name: Name of the clone's folder; derived from the URL by default.
        push_url: Where commits are pushed; `url` by default.
        push_branch: The branch that commits are pushed to; the session's branch by default.
        depth: Number of commits to fetch; all by default. Not taken from a mirror.
        blobless: Fetch file contents when they are needed. Not taken from a mirror.
        submodules: Clone the submodules.
        lfs: Fetch the files of Git LFS; needs the program git-lfs.
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

    @classmethod
    def parse(cls, text: str) -> RepoSpec:
        """Return the repository in `URL`, `URL@BRANCH`, `PATH` or `PATH@BRANCH`. Raises WorkspaceRefused."""
        url, branch = split_branch(text)
        return cls(url, branch)

    @property
    def remote(self) -> Remote:
        """The parsed `url`. Raises WorkspaceRefused."""
        return parse_remote(self.url)

    @property
    def push_remote(self) -> Remote:
        """The parsed `push_url`, or `url` without one. Raises WorkspaceRefused."""
        return parse_remote(self.url if self.push_url is None else self.push_url)

    @property
    def folder(self) -> str:
        """`name`, or else the last component of the URL."""
        return self.name if self.name is not None else _derived(self.remote, 1)

    @property
    def start(self) -> str | None:
        """The branch or tag to start from, for messages."""
        return self.branch or self.tag

    @property
    def partial(self) -> bool:
        """Whether the clone lacks commits or file contents, which a mirror cannot serve."""
        return self.depth is not None or self.blobless


@dataclass(frozen=True, slots=True)
class WorkspacePlan:
    """Which clone goes where.

    Attributes:
        workspace: The folder of the workspace.
        repos: The repositories; names, URLs and push branches are set and safe to give to git.
        main: Index of the main repository.
        session_branch: The branch that the session works on.
    """

    workspace: Path
    repos: tuple[RepoSpec, ...]
    main: int
    session_branch: str

    @property
    def paths(self) -> list[Path]:
        """The folders of the clones, in order."""
        return [self.workspace / repo.folder for repo in self.repos]


def plan_workspace(
    repos: Sequence[RepoSpec | str | Path],
    workspace: Path,
    main_repo_index: int = 0,
    *,
    session_branch: str = "midwatch/session",
    existing: Iterable[str] = (),
) -> WorkspacePlan:
    """Decide the folder and the branches of each clone.

    Args:
        repos: The repositories; a text is parsed by `RepoSpec.parse`, a path is a `url`.
        workspace: The folder of the workspace.
        main_repo_index: Index of the main repository.
        session_branch: The branch that the session works on.
        existing: Names that are already in the workspace.

    Raises:
        WorkspaceRefused: A repository, a name or the index is not valid.
        WorkspaceExists: A folder for a clone exists.
    """
    if isinstance(repos, str):
        raise WorkspaceRefused(
            "the repositories are a text", hint="pass a list of repositories"
        )
    specs = [_spec(repo) for repo in repos]
    _check_count(specs, main_repo_index)
    check_ref_name(session_branch)
    remotes = [parse_remote(spec.url) for spec in specs]
    _refuse_duplicates(specs, remotes)
    names = _folder_names(specs, remotes)
    existing_keys = {collision_key(name) for name in existing}
    for name in names:
        if collision_key(name) in existing_keys:
            raise WorkspaceExists(f"{name!r} exists in the workspace {workspace}")
    planned = tuple(
        _resolved(spec, remote, name, session_branch)
        for spec, remote, name in zip(specs, remotes, names, strict=True)
    )
    return WorkspacePlan(workspace, planned, main_repo_index, session_branch)


def _spec(repo: RepoSpec | str | Path) -> RepoSpec:
    if isinstance(repo, RepoSpec):
        return repo
    return RepoSpec.parse(repo) if isinstance(repo, str) else RepoSpec(str(repo))


def _check_count(specs: Sequence[RepoSpec], main: int) -> None:
    if not specs:
        raise WorkspaceRefused(
            "a workspace needs a repository", hint="pass at least one"
        )
    if len(specs) > MAX_REPOSITORIES:
        raise WorkspaceRefused(
            f"{len(specs)} repositories are too many",
            hint=f"use at most {MAX_REPOSITORIES}",
        )
    if not 0 <= main < len(specs):
        raise WorkspaceRefused(
            f"the index {main} of the main repository is out of range",
            hint=f"use 0 to {len(specs) - 1}",
        )


def _refuse_duplicates(specs: Sequence[RepoSpec], remotes: Sequence[Remote]) -> None:
    keys = set()
    for spec, remote in zip(specs, remotes, strict=True):
        key = (remote.url, spec.branch, spec.tag, spec.name)
        if key in keys:
            raise WorkspaceRefused(
                f"repository {remote.url!r} is given twice",
                hint="give it once, or give its clones different names",
            )
        keys.add(key)


def _folder_names(specs: Sequence[RepoSpec], remotes: Sequence[Remote]) -> list[str]:
    """Return the given names; else the last component of the URL, with its parent if that is ambiguous."""
    names = [
        check_folder_name(spec.name) if spec.name is not None else spec.folder
        for spec in specs
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
                f"two clones have the name {key!r}", hint="give them different names"
            )


def _derived(remote: Remote, parts: int) -> str:
    path = [part for part in remote.path if part not in _NOT_NAMES]
    return derive_folder_name(path[-parts:] or (remote.host,))


def _numbered(name: str, used: set[str]) -> str:
    candidate, number = name, 1
    while collision_key(candidate) in used:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _resolved(
    spec: RepoSpec, remote: Remote, name: str, session_branch: str
) -> RepoSpec:
    _check_start(spec, remote)
    return replace(
        spec,
        url=remote.url,
        name=name,
        push_url=spec.push_remote.url,
        push_branch=check_ref_name(spec.push_branch or session_branch, "push branch"),
    )


def _check_start(spec: RepoSpec, remote: Remote) -> None:
    if spec.branch is not None and spec.tag is not None:
        raise WorkspaceRefused(
            f"repository {remote.url!r} has a branch and a tag",
            hint="give a branch or a tag",
        )
    if spec.branch is not None:
        check_ref_name(spec.branch)
    if spec.tag is not None:
        check_ref_name(spec.tag, "tag")
    if spec.depth is not None and spec.depth < 1:
        raise WorkspaceRefused(
            f"depth {spec.depth} is not a number of commits", hint="use 1 or more"
        )
