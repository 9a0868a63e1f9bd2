"""Find the submodules of a clone after an agent has worked there, as clones that can be inspected like it.

Each gets a trusted git directory inside of that of its clone. Which commit it started from is in the base of the
clone, and so is its URL: what the agent wrote to `.gitmodules` or `.git/config` is not used. Its `.git` is read
only if it is inside of the clone.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import posixpath
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from midwatch.files import replace_file
from midwatch.workspace.errors import RepositoryError, WorkspaceRefused
from midwatch.workspace.git import Git, GitCommand
from midwatch.workspace.record import ClonedRepo, Submodule
from midwatch.workspace.refs import base_config, make_git_dir
from midwatch.workspace.trusted import (
    YES_OR_NO,
    locked_clone,
    run_trusted,
    take_base,
    tree_of,
)
from midwatch.workspace.untrusted import (
    UntrustedRepositoryError,
    git_place_of,
    read_shallow,
)
from midwatch.workspace.urls import parse_remote

MAX_SUBMODULES = 200
MAX_DEPTH = 5
"""How deep submodules of submodules are inspected."""
PROTOCOLS = {
    "https": "https:ssh",
    "ssh": "ssh:https",
    "http": "http:https",
    "file": "file",
}
"""The protocols that the submodules of a repository may use, by its own."""
_REMOTE_REFS = "refs/midwatch/remote"
_GITLINK = b"160000"
_NO_URL = "its URL is not known"


async def find_submodules(
    git: Git, repo: ClonedRepo, tree: str, base_tree: str
) -> list[Submodule]:
    """Return the submodules in the tree of a clone or of its base, at most MAX_SUBMODULES.

    Those that the agent did not initialise have no `inner`.

    Args:
        git: Runs git.
        repo: The clone, or a submodule of it.
        tree: The content of the clone.
        base_tree: The content of its base.

    Raises:
        RepositoryError: The trusted git directory is broken.
    """
    now = await _gitlinks(git, repo, tree)
    before = now if tree == base_tree else await _gitlinks(git, repo, base_tree)
    if not now and not before:
        return []
    urls = await _urls(git, repo)
    places = sorted({**before, **now})[:MAX_SUBMODULES]
    found = [
        _submodule(repo, p, before.get(p), now.get(p), urls.get(p, "")) for p in places
    ]
    return [await _prepared(git, one) for one in found]


async def _gitlinks(git: Git, repo: ClonedRepo, tree: str) -> dict[str, str]:
    """Return the commits of the submodules in a tree, by path."""
    output = await run_trusted(git, repo, ["ls-tree", "-r", "-z", tree])
    links = {}
    for line in output.out.split(b"\0"):
        if line.startswith(_GITLINK):
            fields, _, path = line.partition(b"\t")
            links[os.fsdecode(path)] = fields.split(b" ")[2].decode("ascii")
    return links


async def _urls(git: Git, repo: ClonedRepo) -> dict[str, str]:
    """Return the URLs of the submodules by path, from the base of the clone."""
    if repo.base is None:
        return {}
    blob = f"{repo.base}:.gitmodules"
    exists = ["cat-file", "-e", blob]
    if (await run_trusted(git, repo, exists, ok=frozenset({0, 1, 128}))).code:
        return {}
    args = ["config", "--blob", blob, "--null", "--get-regexp", r"\.(path|url)$"]
    try:
        text = (await run_trusted(git, repo, args, ok=YES_OR_NO)).text
    except RepositoryError:  # not a config file
        return {}
    found: dict[str, dict[str, str]] = {}
    for entry in text.split("\0"):
        key, _, value = entry.partition("\n")
        name, _, variable = key.rpartition(".")
        found.setdefault(name, {})[variable] = value
    return {
        one["path"]: _resolved(repo.url, one["url"])
        for one in found.values()
        if "path" in one and "url" in one
    }


def _resolved(parent: str, url: str) -> str:
    """Return the URL of a submodule, resolved as git does; empty if it may not be used."""
    if url.startswith(("./", "../")):
        head, separator, path = parent.rstrip("/").rpartition(":")
        if "://" in parent or not separator:
            start = parent.index("/", parent.find("://") + 3) if "://" in parent else 0
            head, path = parent[:start], parent[start:].rstrip("/")
            separator = ""
        url = head + separator + posixpath.normpath(f"{path}/{url}")
    try:
        remote, scheme = parse_remote(url), parse_remote(parent).scheme
    except (WorkspaceRefused, ValueError):
        return ""
    return remote.url if remote.scheme in PROTOCOLS[scheme].split(":") else ""


def _submodule(
    repo: ClonedRepo, place: str, base: str | None, commit: str | None, url: str
) -> Submodule:
    top = repo.top if isinstance(repo, Submodule) else repo.path
    path = repo.path / place
    inner, problem = "", None
    try:
        found = git_place_of(top, os.path.relpath(path, top))
        inner = found[1] if found else ""
    except UntrustedRepositoryError as error:
        problem = str(error)
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    return Submodule(
        name=f"{repo.name}/{place}",
        path=path,
        git_dir=repo.git_dir / "modules" / digest,
        url=url,
        base=base,
        push_url=url,
        push_branch=repo.push_branch,
        top=top,
        inner=inner,
        place=place,
        commit=commit,
        problem=problem,
    )


async def _prepared(git: Git, sub: Submodule) -> Submodule:
    """Return a submodule whose trusted git directory exists and has its base."""
    oid = sub.base or sub.commit or ""
    await asyncio.to_thread(_make_git_dir, sub.git_dir, len(oid) == 64)
    if not sub.inner:
        return sub
    try:
        async with locked_clone(git, sub):
            shallow = await asyncio.to_thread(read_shallow, sub.agent_git)
            if shallow:  # what it hides is in no diff and in no push
                text = "".join(f"{oid}\n" for oid in shallow)
                replace_file(sub.git_dir / "shallow", text.encode())
            await take_base(git, sub)
    except UntrustedRepositoryError as error:
        return replace(sub, base=None, problem=sub.problem or str(error))
    return sub


def _make_git_dir(git_dir: Path, sha256: bool) -> None:
    """Make the trusted git directory of a submodule, unless it exists. Raises OSError."""
    if (git_dir / "packed-refs").exists():  # the last file that is written
        return
    shutil.rmtree(git_dir, ignore_errors=True)
    object_format = "sha256" if sha256 else "sha1"
    config = base_config(True, object_format, promisor=False)
    make_git_dir(git_dir, "refs/heads/none", config, {})


async def missing_on_remote(
    git: Git,
    repo: ClonedRepo,
    commit: str,
    submodules: Mapping[str, Submodule],
) -> tuple[str, str] | None:
    """Return the first submodule whose commit its remote does not have, with the reason; None if there is none.

    Args:
        git: Runs git.
        repo: The clone.
        commit: The commit of the clone that is to be pushed.
        submodules: The submodules of the clone, by place.
    """
    base = await tree_of(git, repo, repo.base)
    args = ["diff-tree", "-r", "-z", "--raw", "--no-abbrev", "--no-renames"]
    args += ["--ignore-submodules=none", base, await tree_of(git, repo, commit)]
    fields = (await run_trusted(git, repo, args)).out.split(b"\0")
    for change, path in zip(fields[0::2], fields[1::2], strict=False):
        _, mode, _, oid, _ = change.split(b" ")
        if mode == _GITLINK:
            place = os.fsdecode(path)
            why = await _why_not_on_remote(git, submodules.get(place), oid.decode())
            if why is not None:
                return place, why
    return None


async def _why_not_on_remote(git: Git, sub: Submodule | None, oid: str) -> str | None:
    if sub is None or not sub.url:
        return _NO_URL
    if oid == sub.base or await on_remote(git, sub, oid):
        return None
    try:
        await fetch_remote_refs(git, sub)
    except RepositoryError as error:
        return f"its remote cannot be asked: {error.cause}"
    return None if await on_remote(git, sub, oid) else f"{sub.url} does not have it"


async def fetch_remote_refs(git: Git, sub: Submodule) -> None:
    """Fetch the branches of a submodule from its remote into the trusted git directory. Raises RepositoryError."""
    remote = sub.remote
    args = ["fetch", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"]
    args += ["--end-of-options", remote.transport_url]
    command = GitCommand(
        [*args, f"+refs/heads/*:{_REMOTE_REFS}/*"],
        repository=sub.url,
        git_dir=sub.git_dir,
        remote=remote,
    )
    await git.retry(lambda: git.run(command))


async def on_remote(git: Git, sub: Submodule, oid: str) -> bool:
    """Return whether the remote of a submodule had a commit when it was last asked."""
    args = ["rev-list", "--max-count=1", oid, "--not", f"--glob={_REMOTE_REFS}/*"]
    try:
        return not (await run_trusted(git, sub, args)).out.strip()
    except RepositoryError:  # the commit is not here
        return False
