"""One clone: objects into a git directory of ours, copies of them into the workspace, checkout."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from midwatch.workspace.errors import GitFailed, NoSuchBranch, RepositoryCorrupted
from midwatch.workspace.git import Command, Git, OnProgress, Phase, Progress
from midwatch.workspace.mirrors import Mirrors
from midwatch.workspace.plan import PlannedRepo
from midwatch.workspace.record import Staging, git_dir_in
from midwatch.workspace.refs import (
    Advertised,
    Setting,
    ask_remote,
    base_settings,
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
    """Who commits in the clones."""

    name: str = "Midwatch"
    email: str = "midwatch@localhost"


@dataclass(frozen=True, slots=True)
class Cloner:
    """Clones planned repositories into a staging place. `mirrors` is None to go without."""

    git: Git
    mirrors: Mirrors | None
    staging: Staging
    identity: Identity
    on_progress: OnProgress | None = None

    async def clone(self, repo: PlannedRepo) -> str | None:
        """Clone it and return the commit that it starts from (None in an empty repository)."""
        self._tell(repo, "asking")
        advertised = await ask_remote(self.git, repo.remote, repo.wanted)
        start = _start_ref(repo, advertised)
        try:
            base = await self._clone_from(repo, advertised, start)
        except RepositoryCorrupted:
            if self.mirrors is None or repo.partial:
                raise
            # The mirror may be what is broken: once more from a new one.
            await self.mirrors.discard(repo.remote)
            self._remove_half(repo)
            base = await self._clone_from(repo, advertised, start)
        self._tell(repo, "done")
        return base

    async def _clone_from(
        self, repo: PlannedRepo, advertised: Advertised, start: str | None
    ) -> str | None:
        git_dir = git_dir_in(self.staging.state, repo.name)
        if start is None:
            make_git_dir(git_dir, "refs/heads/main", _trusted(repo, advertised), {})
            self._make_clone_dir(repo, advertised, {}, None)
            return None
        async with self._source(repo, advertised, start) as source:
            refs = read_refs(source)
            make_git_dir(git_dir, "refs/heads/none", _trusted(repo, advertised), refs)
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
        self, repo: PlannedRepo, advertised: Advertised, start: str
    ) -> AsyncIterator[Path]:
        """A git directory to take objects and refs from, unchanged while inside."""
        if self.mirrors is not None and not repo.partial:
            tell = self.on_progress
            async with self.mirrors.reading(repo.remote, advertised, tell) as mirror:
                yield mirror
            return
        fetched = self.staging.state / f"{repo.name}.fetched"
        try:
            await self._fetch(repo, start, fetched)
            yield fetched
        finally:
            shutil.rmtree(fetched, ignore_errors=True)

    async def _fetch(self, repo: PlannedRepo, start: str, target: Path) -> None:
        args = ["clone", "--bare", "--template=", "--progress"]
        if repo.depth is not None:
            name = start.split("/", 2)[2]
            args += [f"--depth={repo.depth}", "--single-branch", f"--branch={name}"]
        if repo.blobless:
            args.append("--filter=blob:none")
        args += ["--end-of-options", repo.remote.transport_url, str(target)]
        command = self._command(repo, args, network=True)
        await self.git.retry(lambda: self.git.run(command))

    async def _commit_of(self, repo: PlannedRepo, git_dir: Path, start: str) -> str:
        args = ["rev-parse", "--verify", "--quiet", "--end-of-options"]
        output = await self.git.run(
            Command(
                [*args, f"{start}^{{commit}}"],
                repository=repo.remote.url,
                git_dir=git_dir,
                ok=frozenset({0, 1}),
            )
        )
        if output.code:
            raise NoSuchBranch(
                repo.remote.url, "it does not name a commit", branch=repo.wanted
            )
        return output.text.strip()

    def _make_clone_dir(
        self,
        repo: PlannedRepo,
        advertised: Advertised,
        refs: dict[str, str],
        base: str | None,
    ) -> Path:
        branch = f"refs/heads/{self.staging.plan.session_branch}"
        kept = {
            name.replace("refs/heads/", "refs/remotes/origin/", 1): oid
            for name, oid in refs.items()
        }
        if base is not None:
            kept[branch] = base
        clone = self.staging.clones / repo.name
        make_git_dir(clone / ".git", branch, self._of_clone(repo, advertised), kept)
        return clone

    def _of_clone(self, repo: PlannedRepo, advertised: Advertised) -> list[Setting]:
        return base_settings(False, advertised.object_format, repo.blobless) + [
            ("remote", "origin", "url", repo.remote.url),
            ("remote", "origin", "fetch", "+refs/heads/*:refs/remotes/origin/*"),
            ("user", "", "name", self.identity.name),
            ("user", "", "email", self.identity.email),
        ]

    async def _check_out(self, repo: PlannedRepo, clone: Path) -> None:
        args = ["checkout", "--force", "--progress"]
        # A blobless clone asks its remote for the files that it checks out.
        await self.git.run(self._command(repo, args, clone, network=repo.blobless))
        if repo.submodules:
            await self._add_submodules(repo, clone)
        if repo.lfs:
            await self._add_lfs(repo, clone)

    async def _add_submodules(self, repo: PlannedRepo, clone: Path) -> None:
        command = Command(
            ["submodule", "update", "--init", "--recursive"],
            repository=repo.remote.url,
            branch=repo.wanted,
            folder=clone,
            remote=repo.remote,
            protocols=_SUBMODULE_PROTOCOLS[repo.remote.scheme],
        )
        await self.git.run(command)

    async def _add_lfs(self, repo: PlannedRepo, clone: Path) -> None:
        try:
            await self.git.run(self._command(repo, ["lfs", "version"], clone))
        except GitFailed:
            raise GitFailed(
                repo.remote.url,
                "the program git-lfs is missing",
                hint="install git-lfs, or clone without LFS",
            ) from None
        settings = ["lfs", "install", "--local", "--skip-repo"]
        await self.git.run(self._command(repo, settings, clone))
        await self.git.run(self._command(repo, ["lfs", "pull"], clone, network=True))

    def _command(
        self,
        repo: PlannedRepo,
        args: list[str],
        clone: Path | None = None,
        network: bool = False,
    ) -> Command:
        return Command(
            args,
            repository=repo.remote.url,
            branch=repo.wanted,
            git_dir=clone / ".git" if clone else None,
            work_tree=clone,
            remote=repo.remote if network else None,
            on_progress=self.on_progress,
        )

    def _remove_half(self, repo: PlannedRepo) -> None:
        shutil.rmtree(git_dir_in(self.staging.state, repo.name), ignore_errors=True)
        shutil.rmtree(self.staging.clones / repo.name, ignore_errors=True)

    def _tell(self, repo: PlannedRepo, phase: Phase) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(repo.remote.url, phase))


def _trusted(repo: PlannedRepo, advertised: Advertised) -> list[Setting]:
    settings = base_settings(True, advertised.object_format, repo.blobless)
    if repo.blobless:
        settings.append(("remote", "origin", "url", repo.remote.transport_url))
    return settings


def _start_ref(repo: PlannedRepo, advertised: Advertised) -> str | None:
    """The full name of the ref to start from; None if the repository is empty.

    Raises NoSuchBranch.
    """
    refs, url = advertised.refs, repo.remote.url
    if repo.wanted is None and not refs:
        return None
    if repo.tag is not None:
        start, cause = f"refs/tags/{repo.tag}", "it has no tag of this name"
    elif repo.branch is not None:
        start, cause = f"refs/heads/{repo.branch}", "it has no branch of this name"
    else:
        start, cause = f"refs/heads/{advertised.default_branch}", "it has no default"
    if start in refs:
        return start
    if f"refs/tags/{repo.branch}" in refs:
        raise NoSuchBranch(
            url, "it is a tag", branch=repo.branch, hint="name it as tag"
        )
    raise NoSuchBranch(url, cause, branch=repo.wanted)
