"""Setting a workspace up: plan it, clone everything at once, all or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from midwatch.lifecycle import Clock
from midwatch.workspace.clone import Cloner, Identity
from midwatch.workspace.environment import GitEnvironment, default_home
from midwatch.workspace.errors import WorkspaceExists, WorkspaceRefused
from midwatch.workspace.git import Git, GitLimits, OnProgress, disk_fault
from midwatch.workspace.locks import locked_if_free
from midwatch.workspace.mirrors import DEFAULT_MAX_BYTES, Mirrors
from midwatch.workspace.plan import Plan, PlannedRepo, RepoSpec, plan_workspace
from midwatch.workspace.record import (
    PREFIX,
    ClonedRepo,
    Workspace,
    cloned,
    describes,
    load_record,
    move_into_place,
    staged,
    sweep,
)


def default_cache() -> Path:
    """The user's cache folder for mirrors and the state of workspaces."""
    return default_home() / ".cache" / "midwatch"


@dataclass(frozen=True, slots=True)
class WorkspaceOptions:
    """How a workspace is set up.

    The session works on `branch`, by default `midwatch/<session>`. `cache` holds the mirrors
    (`mirror_bytes` in all; none with `use_mirrors` false) and, unless `state` names another
    folder, what is known of the workspace; neither may be inside the workspace. `concurrency` is the number of
    clones at a time.
    """

    session: str = "session"
    branch: str | None = None
    cache: Path | None = None
    state: Path | None = None
    use_mirrors: bool = True
    mirror_bytes: int = DEFAULT_MAX_BYTES
    concurrency: int = 4
    identity: Identity = field(default_factory=Identity)
    environment: GitEnvironment = field(default_factory=GitEnvironment)
    limits: GitLimits = field(default_factory=GitLimits)

    def git(self) -> Git:
        return Git(self.environment, self.limits)

    @property
    def session_branch(self) -> str:
        return self.branch or f"midwatch/{self.session}"

    @property
    def cache_folder(self) -> Path:
        """The cache, absolute: git runs in other folders than we do."""
        return Path(os.path.abspath(self.cache or default_cache()))

    def state_of(self, workspace: Path) -> Path:
        """The state folder of a workspace."""
        if self.state is not None:
            return Path(os.path.abspath(self.state))
        name = hashlib.sha256(os.path.abspath(workspace).encode()).hexdigest()[:40]
        return self.cache_folder / "workspaces" / name

    def mirrors(self, git: Git) -> Mirrors:
        """The mirrors in this cache."""
        root = self.cache_folder / "mirrors"
        return Mirrors(root, git, max_bytes=self.mirror_bytes)


def setup_workspace(
    repos: Sequence[RepoSpec | str | Path],
    workspace: Path | str,
    main_repo_index: int = 0,
    *,
    options: WorkspaceOptions | None = None,
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """`setup_workspace_async` for code that does not await; where a loop runs, it blocks that."""

    def run() -> list[Path]:
        setting_up = setup_workspace_async(
            repos, workspace, main_repo_index, options=options, on_progress=on_progress
        )
        return asyncio.run(setting_up)

    if not _in_a_loop():
        return run()  # here, so that Ctrl-C cancels it and what was begun is removed
    with ThreadPoolExecutor(1) as pool:  # as in a notebook
        return pool.submit(run).result()


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def setup_workspace_async(
    repos: Sequence[RepoSpec | str | Path],
    workspace: Path | str,
    main_repo_index: int = 0,
    *,
    options: WorkspaceOptions | None = None,
    on_progress: OnProgress | None = None,
    clock: Clock | None = None,
) -> list[Path]:
    """Clone `repos` side by side under `workspace`; returns the clones' paths in order.

    All or nothing: when one fails, or this is cancelled, everything made is removed and what was there
    before stays. A workspace that already has just these clones is taken as it is.

    Raises WorkspaceRefused and WorkspaceExists before the disk is touched; RepositoryUnreachable,
    GitTimedOut, NotAuthorised, RepositoryNotFound, NoSuchBranch, RepositoryCorrupted,
    WorkspaceDiskFull, WorkspaceNotWritable and GitFailed name the repository that failed.
    """
    options = options or WorkspaceOptions()
    place = _place(workspace)
    state = options.state_of(place)

    def planned(existing: Sequence[str]) -> Plan:
        branch = options.session_branch
        return plan_workspace(
            repos, place, main_repo_index, session_branch=branch, existing=existing
        )

    plan = planned(())
    _check_state(state, place)
    try:
        with _alone(state):
            found = _attached(state, plan)
            if found is None:
                plan = planned(_names_in(place))
                sweep(place, state)
                _check_free(state)
                git = Git(options.environment, options.limits, clock)
                found = await _set_up(plan, state, git, options, on_progress)
    except OSError as error:
        raise disk_fault(error, str(place)) from error
    return found.paths


def _place(workspace: Path | str) -> Path:
    text = os.fspath(workspace)
    if not text.strip() or "\0" in text:
        raise WorkspaceRefused(
            f"{text!r} cannot be the folder of a workspace", hint="name a folder"
        )
    return Path(os.path.abspath(text))


async def _set_up(
    plan: Plan,
    state: Path,
    git: Git,
    options: WorkspaceOptions,
    on_progress: OnProgress | None,
) -> Workspace:
    mirrors = options.mirrors(git) if options.use_mirrors else None
    async with staged(plan, state) as staging:
        cloner = Cloner(git, mirrors, staging, options.identity, on_progress)
        slots = asyncio.Semaphore(max(1, options.concurrency))

        async def clone(repo: PlannedRepo) -> ClonedRepo:
            async with slots:
                return cloned(repo, state, await _cloned(cloner, repo))

        return staging.commit(await _all_or_first_error(clone, plan.repos))


async def _cloned(cloner: Cloner, repo: PlannedRepo) -> str | None:
    try:
        return await cloner.clone(repo)
    except OSError as error:
        raise disk_fault(error, repo.remote.url) from error


async def _all_or_first_error(
    work: Callable[[PlannedRepo], Coroutine[None, None, ClonedRepo]],
    repos: Sequence[PlannedRepo],
) -> list[ClonedRepo]:
    """Do `work` on all at once; the first error ends the others before it is raised."""
    tasks = [asyncio.create_task(work(r), name=f"clone {r.name}") for r in repos]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _attached(state: Path, plan: Plan) -> Workspace | None:
    """The workspace as it is, if it is already what the plan asks for."""
    found = load_record(state)
    if found is None:
        return None
    if not describes(found, plan):
        raise WorkspaceExists(f"{plan.workspace} has a workspace of other repositories")
    if found.staging is not None and (found.path / found.staging).is_dir():
        found = move_into_place(found)
    present = [repo.path.is_dir() for repo in found.repos]
    if all(present):
        return found
    if any(present):
        lost = found.repos[present.index(False)].path
        raise WorkspaceExists(f"the workspace has lost its clone {lost}")
    shutil.rmtree(state)
    return None


def _check_state(state: Path, workspace: Path) -> None:
    if state.is_relative_to(workspace):
        raise WorkspaceRefused(
            f"the state folder {state} is inside the workspace",
            hint="put it where the agent cannot write",
        )


def _check_free(state: Path) -> None:
    if state.is_dir() and any(state.iterdir()):
        raise WorkspaceExists(f"the state folder {state} holds something else")


def _names_in(workspace: Path) -> list[str]:
    try:
        return [n for n in os.listdir(workspace) if not n.startswith(PREFIX)]
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise WorkspaceExists(f"{workspace} is a file, not a folder") from None


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    with locked_if_free(state.with_name(f"{state.name}.lock")) as free:
        if not free:
            raise WorkspaceExists("another session is setting this workspace up")
        yield
