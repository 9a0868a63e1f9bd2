"""Clone a repository: objects into the trusted git directory, copies into the workspace, checkout."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from midwatch.workspace.errors import GitFailed, NoSuchBranch, RepositoryCorrupted
from midwatch.workspace.git import Git, GitCommand, OnProgress, Progress, ProgressPhase
from midwatch.workspace.mirrors import Mirrors
from midwatch.workspace.plan import RepoSpec
from midwatch.workspace.record import Staging, git_dir_in
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

_SUBMODULE_PROTOCOLS = {
    "https": "https:ssh",
    "ssh": "ssh:https",
    "http": "http:https",
    "file": "file",
}


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
            protocols=_SUBMODULE_PROTOCOLS[repo.remote.scheme],
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
        await self.git.run(self._command(repo, ["lfs", "pull"], clone, network=True))

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
