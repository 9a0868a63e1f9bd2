"""Set a workspace up: plan it, clone all repositories in parallel, all or nothing."""

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

from midwatch.files import locked_if_free
from midwatch.lifecycle import Clock, cancel
from midwatch.workspace.clone import Cloner, Identity
from midwatch.workspace.environment import GitEnvironment, cache_folder
from midwatch.workspace.errors import WorkspaceExists, WorkspaceRefused
from midwatch.workspace.git import Git, GitLimits, OnProgress, map_disk_error
from midwatch.workspace.mirrors import DEFAULT_MAX_BYTES, Mirrors
from midwatch.workspace.plan import RepoSpec, WorkspacePlan, plan_workspace
from midwatch.workspace.record import (
    PREFIX,
    ClonedRepo,
    Workspace,
    describes,
    git_dir_in,
    load_record,
    move_into_place,
    staged,
    sweep,
)


def default_cache() -> Path:
    """Return the user's cache folder, for mirrors and the state of workspaces."""
    return cache_folder()


@dataclass(frozen=True, slots=True)
class WorkspaceOptions:
    """How a workspace is set up.

    Attributes:
        session: Name of the session, part of the default `branch`.
        branch: The branch that the session works on; `midwatch/<session>` by default.
        cache: The folder of mirrors, outside of the workspace; `$XDG_CACHE_HOME/midwatch` by default, else `~/.cache/midwatch`.
        state: The state folder, outside of the workspace; in the cache by default.
        use_mirrors: Clone from mirrors.
        mirror_bytes: The largest size of all mirrors together.
        concurrency: The number of clones at the same time.
        identity: The author of commits in the clones.
        environment: What git sees of the environment, with credentials.
        limits: Timeouts and other limits of git.
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
        """Return what runs git with this environment and these limits."""
        return Git(self.environment, self.limits)

    @property
    def session_branch(self) -> str:
        """The branch that the session works on."""
        return self.branch or f"midwatch/{self.session}"

    @property
    def cache_folder(self) -> Path:
        """The cache folder, absolute: git runs in other folders."""
        return Path(os.path.abspath(self.cache or default_cache()))

    def state_of(self, workspace: Path) -> Path:
        """Return the state folder of a workspace."""
        if self.state is not None:
            return Path(os.path.abspath(self.state))
        name = hashlib.sha256(os.path.abspath(workspace).encode()).hexdigest()[:40]
        return self.cache_folder / "workspaces" / name

    def mirrors(self, git: Git) -> Mirrors:
        """Return the mirrors in this cache."""
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
    """Clone `repos` side by side under `workspace`, all or none.

    In a running event loop this blocks the loop: use `setup_workspace_async` there. It documents
    the errors.

    Args:
        repos: The repositories; a text or path is a `RepoSpec.url`.
        workspace: The folder to clone into; it is created if it is missing.
        main_repo_index: Index of the main repository, the agent's working directory.
        options: How to set the workspace up.
        on_progress: Called with the progress of each repository.

    Returns:
        The folders of the clones, in order.
    """

    def run() -> list[Path]:
        setting_up = setup_workspace_async(
            repos, workspace, main_repo_index, options=options, on_progress=on_progress
        )
        return asyncio.run(setting_up)

    if not _in_a_loop():
        # In this thread, so that Ctrl-C cancels it and removes what was begun.
        return run()
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
    """Clone `repos` side by side under `workspace`.

    All or nothing: if a clone fails, or this is cancelled, everything created is removed and the files
    from before stay. A workspace that already has exactly these clones is not changed.

    Args:
        repos: The repositories; a text or path is a `RepoSpec.url`.
        workspace: The folder to clone into; it is created if it is missing.
        main_repo_index: Index of the main repository, the agent's working directory.
        options: How to set the workspace up.
        on_progress: Called with the progress of each repository.
        clock: Replaces the system's clock in tests.

    Returns:
        The folders of the clones, in order.

    Raises:
        WorkspaceRefused: The request is invalid. The disk is unchanged, as with WorkspaceExists.
        WorkspaceExists: The workspace has other clones, a folder is taken, or another setup runs.
        GitMissing: There is no git program.
        CacheBusy: Another process uses a mirror for too long.
        RepositoryError: A repository failed; the error names it. RepositoryUnreachable,
            GitTimedOut and WorkspaceDiskFull are temporary. NotAuthorised, RepositoryNotFound,
            NoSuchBranch, RepositoryCorrupted, WorkspaceNotWritable and GitFailed are permanent.
    """
    options = options or WorkspaceOptions()
    folder = _absolute(workspace)
    state = options.state_of(folder)

    def planned(existing: Sequence[str]) -> WorkspacePlan:
        branch = options.session_branch
        return plan_workspace(
            repos, folder, main_repo_index, session_branch=branch, existing=existing
        )

    plan = planned(())
    _check_state(state, folder)
    try:
        with _setup_lock(state):
            found = _attached(state, plan)
            if found is None:
                plan = planned(_names_in(folder))
                sweep(folder, state)
                _check_free(state)
                git = Git(options.environment, options.limits, clock)
                found = await _set_up(plan, state, git, options, on_progress)
    except OSError as error:
        raise map_disk_error(error, str(folder)) from error
    return found.paths


def _absolute(workspace: Path | str) -> Path:
    text = os.fspath(workspace)
    if not text.strip() or "\0" in text:
        raise WorkspaceRefused(
            f"{text!r} is not a folder for a workspace",
            hint="give the path of a folder",
        )
    return Path(os.path.abspath(text))


async def _set_up(
    plan: WorkspacePlan,
    state: Path,
    git: Git,
    options: WorkspaceOptions,
    on_progress: OnProgress | None,
) -> Workspace:
    mirrors = options.mirrors(git) if options.use_mirrors else None
    async with staged(plan, state) as staging:
        cloner = Cloner(git, mirrors, staging, options.identity, on_progress)
        slots = asyncio.Semaphore(max(1, options.concurrency))

        async def clone(repo: RepoSpec) -> ClonedRepo:
            async with slots:
                return await _clone(cloner, repo)

        return staging.commit(await _all_or_first_error(clone, plan.repos))


async def _clone(cloner: Cloner, repo: RepoSpec) -> ClonedRepo:
    try:
        base = await cloner.clone(repo)
    except OSError as error:
        raise map_disk_error(error, repo.url) from error
    plan, state = cloner.staging.plan, cloner.staging.final_state
    return ClonedRepo(
        name=repo.folder,
        path=plan.workspace / repo.folder,
        git_dir=git_dir_in(state, repo.folder),
        url=repo.url,
        base=base,
        push_url=repo.push_remote.url,
        push_branch=repo.push_branch or plan.session_branch,
        blobless=repo.blobless,
    )


async def _all_or_first_error(
    work: Callable[[RepoSpec], Coroutine[None, None, ClonedRepo]],
    repos: Sequence[RepoSpec],
) -> list[ClonedRepo]:
    """Do `work` on all in parallel. The first error is raised once the others have ended."""
    tasks = [asyncio.create_task(work(r), name=f"clone {r.folder}") for r in repos]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await cancel(*tasks)


def _attached(state: Path, plan: WorkspacePlan) -> Workspace | None:
    """Return the workspace if it already has the clones of the plan."""
    found = load_record(state)
    if found is None:
        return None
    if not describes(found, plan):
        raise WorkspaceExists(f"{plan.workspace} is a workspace of other repositories")
    if found.staging is not None and (found.path / found.staging).is_dir():
        found = move_into_place(found)
    present = [repo.path.is_dir() for repo in found.repos]
    if all(present):
        return found
    if any(present):
        lost = found.repos[present.index(False)].path
        raise WorkspaceExists(f"{lost}, a clone of the workspace, is missing")
    shutil.rmtree(state)
    return None


def _check_state(state: Path, workspace: Path) -> None:
    if state.is_relative_to(workspace):
        raise WorkspaceRefused(
            f"the state folder {state} is inside the workspace",
            hint="choose a folder where the agent cannot write",
        )


def _check_free(state: Path) -> None:
    if state.is_dir() and any(state.iterdir()):
        raise WorkspaceExists(f"the state folder {state} has other files")


def _names_in(workspace: Path) -> list[str]:
    try:
        return [n for n in os.listdir(workspace) if not n.startswith(PREFIX)]
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise WorkspaceExists(f"{workspace} is a file") from None


@contextlib.contextmanager
def _setup_lock(state: Path) -> Iterator[None]:
    with locked_if_free(state.with_name(f"{state.name}.lock")) as held:
        if not held:
            raise WorkspaceExists(
                "another session sets this workspace up",
                hint="try again when it has ended, or choose another folder",
            )
        yield
