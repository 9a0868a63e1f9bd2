"""Set a workspace up: plan it, clone all repositories in parallel, all or nothing.

A clone has its objects in the trusted git directory and copies of them in the workspace.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from midwatch.files import locked_if_free
from midwatch.lifecycle import Clock, cancel
from midwatch.workspace.environment import (
    REFUSED_FILE,
    GitEnvironment,
    cache_folder,
)
from midwatch.workspace.errors import (
    GitFailed,
    NoSuchBranch,
    RepositoryCorrupted,
    WorkspaceExists,
    WorkspaceRefused,
)
from midwatch.workspace.git import (
    Git,
    GitCommand,
    GitLimits,
    OnProgress,
    Progress,
    ProgressPhase,
    map_disk_error,
)
from midwatch.workspace.mirrors import DEFAULT_MAX_BYTES, Mirrors
from midwatch.workspace.plan import (
    RepoLike,
    RepoSpec,
    WorkspacePlan,
    plan_workspace,
    repository_specs,
)
from midwatch.workspace.record import (
    PREFIX,
    ClonedRepo,
    Staging,
    Workspace,
    describes,
    git_dir_in,
    load_record,
    move_into_place,
    staged,
    sweep,
)
from midwatch.workspace.refs import (
    Advertised,
    ConfigVariable,
    ask_remote,
    base_config,
    copy_objects,
    link_objects,
    make_git_dir,
    read_refs,
)
from midwatch.workspace.submodules import PROTOCOLS

# ------------------------------------------------------------ one repository


@dataclass(frozen=True, slots=True)
class Identity:
    """The author and committer of commits."""

    name: str = "Midwatch"
    email: str = "midwatch@localhost"


@dataclass(frozen=True, slots=True)
class Cloner:
    """Clones the repositories of a plan into staging folders.

    Attributes:
        git: Runs git.
        mirrors: The mirrors to clone from; None to clone from the remotes.
        staging: Where the clones are made.
        identity: The author of commits in the clones.
        on_progress: Called with the progress of each repository.
    """

    git: Git
    mirrors: Mirrors | None
    staging: Staging
    identity: Identity
    on_progress: OnProgress | None = None

    async def clone(self, repo: RepoSpec) -> str | None:
        """Clone a repository. Return the commit that it starts from, or None if it is empty."""
        self._report(repo, "asking")
        advertised = await ask_remote(self.git, repo.remote, repo.start)
        start = _start_ref(repo, advertised)
        try:
            base = await self._clone_from(repo, advertised, start)
        except RepositoryCorrupted:
            if self.mirrors is None or repo.partial:
                raise
            # The mirror may be broken: try once more with a new one.
            await self.mirrors.discard(repo.remote)
            self._remove_partial(repo)
            base = await self._clone_from(repo, advertised, start)
        self._report(repo, "done")
        return base

    async def _clone_from(
        self, repo: RepoSpec, advertised: Advertised, start: str | None
    ) -> str | None:
        git_dir = git_dir_in(self.staging.state, repo.folder)
        if start is None:
            make_git_dir(
                git_dir, "refs/heads/main", _trusted_config(repo, advertised), {}
            )
            self._make_clone_dir(repo, advertised, {}, None)
            return None
        async with self._source(repo, advertised, start) as source:
            refs = read_refs(source)
            make_git_dir(
                git_dir, "refs/heads/none", _trusted_config(repo, advertised), refs
            )
            await asyncio.to_thread(link_objects, source, git_dir)
        base = refs.get(start)
        if base is None or repo.tag is not None:  # a tag may be an object of its own
            base = await self._commit_of(repo, git_dir, start)
        clone = self._make_clone_dir(repo, advertised, refs, base)
        await asyncio.to_thread(copy_objects, git_dir, clone / ".git")
        await self._check_out(repo, clone)
        if repo.blobless:
            await asyncio.to_thread(copy_objects, clone / ".git", git_dir)
        return base

    @contextlib.asynccontextmanager
    async def _source(
        self, repo: RepoSpec, advertised: Advertised, start: str
    ) -> AsyncIterator[Path]:
        """Yield a git directory with the objects and refs, unchanged while the block runs."""
        if self.mirrors is not None and not repo.partial:
            report = self.on_progress
            async with self.mirrors.reading(repo.remote, advertised, report) as mirror:
                yield mirror
            return
        fetched = self.staging.state / f"{repo.folder}.fetched"
        try:
            await self._fetch(repo, start, fetched)
            yield fetched
        finally:
            shutil.rmtree(fetched, ignore_errors=True)

    async def _fetch(self, repo: RepoSpec, start: str, target: Path) -> None:
        args = ["clone", "--bare", "--template=", "--progress"]
        if repo.depth is not None:
            name = start.split("/", 2)[2]
            args += [f"--depth={repo.depth}", "--single-branch", f"--branch={name}"]
        if repo.blobless:
            args.append("--filter=blob:none")
        args += ["--end-of-options", repo.remote.transport_url, str(target)]
        command = self._command(repo, args, network=True)
        await self.git.retry(lambda: self.git.run(command))

    async def _commit_of(self, repo: RepoSpec, git_dir: Path, start: str) -> str:
        args = ["rev-parse", "--verify", "--quiet", "--end-of-options"]
        output = await self.git.run(
            GitCommand(
                [*args, f"{start}^{{commit}}"],
                repository=repo.url,
                git_dir=git_dir,
                ok=frozenset({0, 1}),
            )
        )
        if output.code:
            raise NoSuchBranch(
                repo.url, "the ref does not name a commit", branch=repo.start
            )
        return output.text.strip()

    def _make_clone_dir(
        self,
        repo: RepoSpec,
        advertised: Advertised,
        refs: dict[str, str],
        base: str | None,
    ) -> Path:
        branch = f"refs/heads/{self.staging.plan.session_branch}"
        kept_refs = {
            name.replace("refs/heads/", "refs/remotes/origin/", 1): oid
            for name, oid in refs.items()
        }
        if base is not None:
            kept_refs[branch] = base
        clone = self.staging.clones / repo.folder
        make_git_dir(
            clone / ".git", branch, self._clone_config(repo, advertised), kept_refs
        )
        return clone

    def _clone_config(
        self, repo: RepoSpec, advertised: Advertised
    ) -> list[ConfigVariable]:
        return base_config(False, advertised.object_format, repo.blobless) + [
            ("remote", "origin", "url", repo.url),
            ("remote", "origin", "fetch", "+refs/heads/*:refs/remotes/origin/*"),
            ("user", "", "name", self.identity.name),
            ("user", "", "email", self.identity.email),
        ]

    async def _check_out(self, repo: RepoSpec, clone: Path) -> None:
        args = ["checkout", "--force", "--progress"]
        # A blobless clone fetches the files that it checks out.
        await self.git.run(self._command(repo, args, clone, network=repo.blobless))
        if repo.submodules:
            await self._add_submodules(repo, clone)
        if repo.lfs:
            await self._add_lfs(repo, clone)

    async def _add_submodules(self, repo: RepoSpec, clone: Path) -> None:
        command = GitCommand(
            ["submodule", "update", "--init", "--recursive"],
            repository=repo.url,
            branch=repo.start,
            folder=clone,
            remote=repo.remote,
            protocols=PROTOCOLS[repo.remote.scheme],
            all_credentials=True,
        )
        await self.git.run(command)

    async def _add_lfs(self, repo: RepoSpec, clone: Path) -> None:
        try:
            await self.git.run(self._command(repo, ["lfs", "version"], clone))
        except GitFailed:
            raise GitFailed(
                repo.url,
                "the program git-lfs is missing",
                hint="install git-lfs, or clone without Git LFS",
            ) from None
        settings = ["lfs", "install", "--local", "--skip-repo"]
        await self.git.run(self._command(repo, settings, clone))
        refused = self.staging.state / f"{repo.folder}.refused"
        pull = self._command(repo, ["lfs", "pull"], clone, network=True)
        try:
            await self.git.run(replace(pull, variables={REFUSED_FILE: str(refused)}))
        finally:
            refused.unlink(missing_ok=True)

    def _command(
        self,
        repo: RepoSpec,
        args: list[str],
        clone: Path | None = None,
        network: bool = False,
    ) -> GitCommand:
        return GitCommand(
            args,
            repository=repo.url,
            branch=repo.start,
            git_dir=clone / ".git" if clone else None,
            work_tree=clone,
            remote=repo.remote if network else None,
            on_progress=self.on_progress,
        )

    def _remove_partial(self, repo: RepoSpec) -> None:
        shutil.rmtree(git_dir_in(self.staging.state, repo.folder), ignore_errors=True)
        shutil.rmtree(self.staging.clones / repo.folder, ignore_errors=True)

    def _report(self, repo: RepoSpec, phase: ProgressPhase) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(repo.url, phase))


def _trusted_config(repo: RepoSpec, advertised: Advertised) -> list[ConfigVariable]:
    settings = base_config(True, advertised.object_format, repo.blobless)
    if repo.blobless:
        settings.append(("remote", "origin", "url", repo.remote.transport_url))
    return settings


def _start_ref(repo: RepoSpec, advertised: Advertised) -> str | None:
    """Return the full name of the ref to start from, or None if the repository is empty.

    Raises NoSuchBranch.
    """
    refs, url = advertised.refs, repo.url
    if repo.start is None and not refs:
        return None
    if repo.tag is not None:
        start, cause = f"refs/tags/{repo.tag}", "the repository has no tag of this name"
    elif repo.branch is not None:
        start, cause = (
            f"refs/heads/{repo.branch}",
            "the repository has no branch of this name",
        )
    else:
        start, cause = (
            f"refs/heads/{advertised.default_branch}",
            "the repository has no default branch",
        )
    if start in refs:
        return start
    if f"refs/tags/{repo.branch}" in refs:
        raise NoSuchBranch(
            url,
            "this is the name of a tag",
            branch=repo.branch,
            hint="give it as `tag`",
        )
    raise NoSuchBranch(url, cause, branch=repo.start)


# ------------------------------------------------------------ the workspace


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
    repos: Iterable[RepoLike],
    workspace: Path | str,
    main_repo_index: int = 0,
    *,
    chdir: bool = False,
    options: WorkspaceOptions | None = None,
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """Clone `repos` side by side under `workspace`, all or none.

    In a running event loop this blocks the loop: use `setup_workspace_async` there. It documents
    the errors.

    Args:
        repos: The repositories: `{"url": …, "branch": …}` with the attributes of `RepoSpec` as keys, a `RepoSpec`, a
            path, or a text: `URL`, `URL@BRANCH`, `PATH` or `PATH@BRANCH`.
        workspace: The folder to clone into; it is created if it is missing.
        main_repo_index: Index of the main repository, the agent's working directory.
        chdir: Whether to make the main repository the working directory of this process.
        options: How to set the workspace up.
        on_progress: Called with the progress of each repository.

    Returns:
        The folders of the clones, in order.
    """

    def run() -> list[Path]:
        setting_up = setup_workspace_async(
            repos,
            workspace,
            main_repo_index,
            chdir=chdir,
            options=options,
            on_progress=on_progress,
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
    repos: Iterable[RepoLike],
    workspace: Path | str,
    main_repo_index: int = 0,
    *,
    chdir: bool = False,
    options: WorkspaceOptions | None = None,
    on_progress: OnProgress | None = None,
    clock: Clock | None = None,
) -> list[Path]:
    """Clone `repos` side by side under `workspace`.

    All or nothing: if a clone fails, or this is cancelled, everything created is removed and the files
    from before stay. A workspace that already has exactly these clones is not changed.

    Args:
        repos: The repositories, as for `setup_workspace`.
        workspace: The folder to clone into; it is created if it is missing.
        main_repo_index: Index of the main repository, the agent's working directory.
        chdir: Whether to make the main repository the working directory of this process.
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
        RepositoryError: A repository failed; the error names it. RepositoryUnreachable, GitTimedOut and WorkspaceDiskFull are
            temporary. NotAuthorised, RepositoryNotFound, NoSuchBranch and others are permanent.
    """
    options = options or WorkspaceOptions()
    specs, folder = repository_specs(repos), _absolute(workspace)
    state = options.state_of(folder)

    def planned(existing: Sequence[str] = ()) -> WorkspacePlan:
        branch = options.session_branch
        return plan_workspace(
            specs, folder, main_repo_index, session_branch=branch, existing=existing
        )

    plan = planned()
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
        return _entered(found.paths, main_repo_index if chdir else None)
    except OSError as error:
        raise map_disk_error(error, str(folder)) from error


def _entered(paths: list[Path], index: int | None) -> list[Path]:
    """Return `paths`, with that of the index as the working directory of this process."""
    if index is not None:
        os.chdir(paths[index])
    return paths


def _absolute(workspace: Path | str) -> Path:
    text = str(workspace) if isinstance(workspace, Path) else workspace
    if (
        not isinstance(text, str)
        or not text.strip()
        or "\0" in text
        or any("\ud800" <= one <= "\udfff" for one in text)  # not UTF-8
    ):
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
