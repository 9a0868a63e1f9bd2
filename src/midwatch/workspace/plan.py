"""The plan of a workspace: which clone goes where. Pure; refuses before the disk is touched."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], where: str = "") -> RepoSpec:
        """Return the repository in a mapping, whose keys are the attributes, such as `{"url": …, "branch": …}`.

        `where` is the mapping's place for messages. Raises WorkspaceRefused for an unknown or missing key and for
        a value of another type.
        """
        for key in values:
            if key not in _KINDS:
                raise WorkspaceRefused(
                    f"{_place(where, key)}: unknown key", hint=_right_key(key)
                )
        if "url" not in values:
            raise WorkspaceRefused(
                f"{_place(where, 'url')} is missing",
                hint='write {"url": "https://…/app.git", "branch": "main"}',
            )
        return _typed(cls(**values), where)  # type: ignore[arg-type]  # checked next

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


RepoLike = RepoSpec | Mapping[str, object] | str | Path
"""A repository: a `RepoSpec`, a mapping with its attributes, a text such as `URL@BRANCH`, or a path."""

_FIX = {
    str: "give a text",
    int: "give a whole number such as 1",
    bool: "give True or False",
}
_KINDS: dict[str, type] = {
    **dict.fromkeys(("url", "branch", "tag", "name", "push_url", "push_branch"), str),
    "depth": int,
    **dict.fromkeys(("blobless", "submodules", "lfs"), bool),
}


def _right_key(key: object) -> str:
    close = difflib.get_close_matches(str(key).lower(), _KINDS, n=1)
    return f"did you mean {close[0]}?" if close else f"use {', '.join(_KINDS)}"


def _place(where: str, key: object) -> str:
    return f"{where}.{key}" if where else f"{key}"


def _typed(spec: RepoSpec, where: str) -> RepoSpec:
    """Return a repository whose paths are texts. Raises WorkspaceRefused for a value of another type."""
    paths = {}
    for key, kind in _KINDS.items():
        value = getattr(spec, key)
        optional = key != "url" and kind is not bool
        if isinstance(value, Path) and key in ("url", "push_url"):
            paths[key] = str(value)
        elif not _is(value, kind) and not (value is None and optional):
            raise WorkspaceRefused(
                f"{_place(where, key)} is {_shown(value)}", hint=_FIX[kind]
            )
    return replace(spec, **paths)  # type: ignore[arg-type]  # texts


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _shown(value: object) -> str:
    """Return a value for a message: without what it contains, which may be secret."""
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    return f"of the type {type(value).__name__}"


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
    repos: Iterable[RepoLike],
    workspace: Path,
    main_repo_index: int = 0,
    *,
    session_branch: str = "midwatch/session",
    existing: Iterable[str] = (),
) -> WorkspacePlan:
    """Decide the folder and the branches of each clone.

    Args:
        repos: The repositories; a text is parsed by `RepoSpec.parse`, a mapping by `RepoSpec.from_mapping`, a path
            is a `url`.
        workspace: The folder of the workspace.
        main_repo_index: Index of the main repository.
        session_branch: The branch that the session works on.
        existing: Names that are already in the workspace.

    Raises:
        WorkspaceRefused: A repository, a name or the index is not valid.
        WorkspaceExists: A folder for a clone exists.
    """
    specs = repository_specs(repos)
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


def repository_specs(repos: Iterable[RepoLike]) -> list[RepoSpec]:
    """Return the repositories as values of checked types. Raises WorkspaceRefused."""
    if isinstance(repos, (str, bytes, Path, Mapping, RepoSpec)):
        kind = "a text" if isinstance(repos, str) else _shown(repos)
        raise WorkspaceRefused(
            f"the repositories are {kind}", hint="pass a list of repositories"
        )
    if not isinstance(repos, Iterable):
        raise WorkspaceRefused(
            f"the repositories are {_shown(repos)}", hint="pass a list of repositories"
        )
    return [_spec(repo, f"repos[{number}]") for number, repo in enumerate(repos)]


def _spec(repo: object, where: str) -> RepoSpec:
    if isinstance(repo, RepoSpec):
        return _typed(repo, where)
    if isinstance(repo, Mapping):
        return RepoSpec.from_mapping(repo, where)
    if isinstance(repo, str):
        return RepoSpec.parse(repo)
    if isinstance(repo, Path):
        return RepoSpec(str(repo))
    raise WorkspaceRefused(
        f"{where} is {_shown(repo)}",
        hint='use "URL@BRANCH", {"url": …, "branch": …} or RepoSpec(url, branch)',
    )


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
    if not _is(main, int):
        raise WorkspaceRefused(
            f"main_repo_index is {_shown(main)}", hint=f"use 0 to {len(specs) - 1}"
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
