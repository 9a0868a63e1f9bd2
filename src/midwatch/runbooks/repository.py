"""Read the runbooks of a git repository from its mirror: no file is checked out, and nothing of it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from midwatch.errors import MidwatchError
from midwatch.lifecycle import off_loop
from midwatch.runbook_settings import RunbookRepositorySettings
from midwatch.runbooks.folder import (
    MOST_FILES,
    SUFFIXES,
    Known,
    Listing,
    Parsed,
    Problem,
    parsed_file,
)
from midwatch.runbooks.runbook import MAX_BYTES, Redact
from midwatch.workspace.errors import NoSuchBranch
from midwatch.workspace.git import Git, GitCommand, GitLimits
from midwatch.workspace.mirrors import Mirrors
from midwatch.workspace.refs import Advertised, ask_remote, read_refs
from midwatch.workspace.urls import Remote, parse_remote, redact_url

LIMITS = GitLimits(
    ask_seconds=15.0, transfer_seconds=120.0, local_seconds=30.0, attempts=2
)
"""Limits of git for runbooks, which are fetched in the background."""
LOCK_SECONDS = 60.0
"""Seconds to wait for a session that fetches the same."""
_MOST_LISTED = 20_000_000  # bytes of the list of files
_MOST_READ = 40_000_000  # bytes of files that are read at once


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was read of a repository: the commit, its files, and why the remote did not answer, or ""."""

    commit: str
    listing: Listing
    away: str = ""


@dataclass(frozen=True, slots=True)
class _Blob:
    path: str
    oid: str


def source_name(chosen: RunbookRepositorySettings) -> str:
    """Return what to call a repository with its ref and its folder, without a secret."""
    url = redact_url(chosen.url) + (f"@{chosen.ref}" if chosen.ref else "")
    return f"{url}/{chosen.folder}" if chosen.folder else url


async def read_repository(
    chosen: RunbookRepositorySettings,
    git: Git,
    mirrors: Mirrors,
    redact: Redact,
    known: Known,
) -> Fetched:
    """Fetch a repository, and return its runbooks. While the remote is away the mirror is read as it is.

    Args:
        chosen: The repository.
        git: Runs git.
        mirrors: Where it is fetched to.
        redact: Removes secrets from a whole text.
        known: `Listing.known` of the last time: what has the same content is not read again.

    Raises:
        MidwatchError: It cannot be fetched, and there is no mirror of it.
    """
    remote = parse_remote(chosen.url)
    async with _mirror(chosen, remote, git, mirrors) as (path, commit, away):
        listing = Listing()
        blobs = await _blobs(chosen, remote, git, path, commit, listing)
        # The title of a file without one is its name.
        new = [one for one in blobs if (one.path, one.oid) not in known]
        contents = await _contents(remote, git, path, new)
        size = sum(map(len, contents.values()))
    source = source_name(chosen)

    def parse() -> None:
        for one in blobs:
            key = (one.path, one.oid)
            if key in known:
                parsed: Parsed = known[key]
            elif one.oid in contents:
                data = contents[one.oid]
                parsed = parsed_file(data, source, one.path, redact, commit)
            else:
                text = "was not read: the files together are too large"
                listing.problems.append(Problem(one.path, text))
                continue
            listing.add(key, one.path, parsed)
        listing.problems.sort(key=lambda one: one.path)

    await off_loop(size, parse)
    return Fetched(commit, listing, away)


@asynccontextmanager
async def _mirror(
    chosen: RunbookRepositorySettings, remote: Remote, git: Git, mirrors: Mirrors
) -> AsyncIterator[tuple[Path, str, str]]:
    """Yield the mirror, the commit of the ref, and why the remote does not answer, or ""."""
    async with AsyncExitStack() as stack:
        away = ""
        try:
            advertised = await ask_remote(git, remote, chosen.ref)
            commit = _commit(chosen, remote, advertised)
            reading = mirrors.reading(remote, advertised)
            path = await stack.enter_async_context(reading)
        except NoSuchBranch:
            raise
        except MidwatchError as error:
            kept = await stack.enter_async_context(mirrors.as_fetched(remote))
            if kept is None:
                raise
            path, away = kept, error.one_line()
            head = (kept / "HEAD").read_text("utf-8", "replace").strip()
            default = head.removeprefix("ref: refs/heads/")
            commit = _commit(chosen, remote, Advertised(default, read_refs(kept)))
        yield path, commit, away


def _commit(
    chosen: RunbookRepositorySettings, remote: Remote, advertised: Advertised
) -> str:
    name = chosen.ref or advertised.default_branch or ""
    for ref in (f"refs/heads/{name}", f"refs/tags/{name}"):
        if ref in advertised.refs:
            return advertised.refs[ref]
    cause = "there is no such branch or tag"
    raise NoSuchBranch(remote.url, cause, branch=chosen.ref)


async def _blobs(
    chosen: RunbookRepositorySettings,
    remote: Remote,
    git: Git,
    path: Path,
    commit: str,
    listing: Listing,
) -> list[_Blob]:
    """Return the files that may be runbooks, by path; what cannot be one is a problem of the listing."""
    within = f"{commit}:{chosen.folder}" if chosen.folder else commit
    arguments = ["ls-tree", "-r", "-z", "-l", "--full-tree", within]
    output = await git.run(_local(remote, path, arguments, _MOST_LISTED))
    found: list[_Blob] = []
    for row in output.text.split("\0"):
        meta, _, name = row.partition("\t")
        parts = meta.split()
        hidden = any(part.startswith(".") for part in name.split("/"))
        if len(parts) != 4 or hidden or not name.lower().endswith(SUFFIXES):
            continue
        mode, kind, oid, size = parts
        if kind != "blob" or mode == "120000":
            what = "a symbolic link" if mode == "120000" else "a submodule"
            listing.problems.append(Problem(name, f"is {what}, which is not followed"))
        elif int(size) > MAX_BYTES:
            text = f"is larger than {MAX_BYTES:,} bytes"
            listing.problems.append(Problem(name, text))
        elif len(found) < MOST_FILES:
            found.append(_Blob(name, oid))
        else:
            text = f"has more than {MOST_FILES:,} files; the others are not read"
            listing.problems.append(Problem("", text))
            break
    return found


async def _contents(
    remote: Remote, git: Git, path: Path, blobs: Sequence[_Blob]
) -> dict[str, bytes]:
    """Return the contents of files by object id."""
    if not blobs:
        return {}
    asked = "".join(f"{oid}\n" for oid in dict.fromkeys(one.oid for one in blobs))
    command = _local(remote, path, ["cat-file", "--batch"], _MOST_READ, asked.encode())
    out = (await git.run(command)).out
    found: dict[str, bytes] = {}
    at = 0
    while (end := out.find(b"\n", at)) >= 0:
        oid, _, size = out[at:end].decode("ascii", "replace").partition(" blob ")
        if not size.isdigit() or end + 1 + int(size) > len(out):
            break
        found[oid] = out[end + 1 : end + 1 + int(size)]
        at = end + 2 + int(size)
    return found


def _local(
    remote: Remote,
    path: Path,
    arguments: list[str],
    most: int,
    stdin: bytes | None = None,
) -> GitCommand:
    return GitCommand(
        arguments, repository=remote.url, git_dir=path, stdin=stdin, max_output=most
    )
