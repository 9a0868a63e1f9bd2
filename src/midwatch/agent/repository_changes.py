"""Read the commits and tags of the subjects' repositories as changes. They are read from the mirrors of sessions.

The date of a commit is that of its author's clock, which can be wrong: a commit happened between the reading that did not have it and
the one that has it. Nothing is checked out, and nothing of a repository runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from midwatch.agent.reported_changes import bounded_key
from midwatch.lifecycle import Clock
from midwatch.model import ChangeKind, Json
from midwatch.redaction import Sanitizer
from midwatch.store.protocol import Store
from midwatch.system_changes import (
    LONGEST_TITLE,
    MOST_FILES,
    REPOSITORY,
    NewChange,
    Reading,
    SystemChange,
    placed,
)
from midwatch.workspace.errors import NoSuchBranch
from midwatch.workspace.git import Git, GitCommand, map_disk_error
from midwatch.workspace.mirrors import Mirrors
from midwatch.workspace.refs import Advertised, ask_remote, is_oid
from midwatch.workspace.urls import Remote, parse_remote

_SECONDS = 15.0  # of one local command
_OUTPUT = 8_000_000  # bytes of a log
_DIFF = 1_000_000  # bytes of a commit's difference
_SMALL = 20  # changed lines of a difference that is small
_MOST_TAGS = 50
"""Tags that one reading stores, the newest ones. Twice as many are remembered."""
_VARIABLES = {"GIT_LITERAL_PATHSPECS": "1", "GIT_ATTR_NOSYSTEM": "1"}
# %s folds the first paragraph of a message into one line; git cuts it, as it may have megabytes.
_COMMIT = f"%x00%H%x00%ct%x00%<(100,trunc)%an%x00%<({LONGEST_TITLE},trunc)%s%x00"
_FIELDS = 5
_TAG = "%(refname:strip=2)%00%(objectname)%00%(creatordate:unix)%00%(taggername)%00%(contents:subject)"


@dataclass(frozen=True, slots=True)
class WatchedRepository:
    """A repository of a subject: its URL, its branch, None for the default one, and the paths that matter, empty for all."""

    subject: str
    url: str
    branch: str | None = None
    paths: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What distinguishes its readings."""
        text = "\n".join([self.url, self.branch or "", *self.paths])
        return f"{self.subject} {hashlib.sha256(text.encode()).hexdigest()[:24]}"


@dataclass(frozen=True, slots=True)
class _Commit:
    oid: str
    at: datetime
    author: str
    title: str
    files: tuple[str, ...]
    more_files: int


class RepositoryChanges:
    """Reads repositories, and stores what is new.

    Args:
        repositories: The repositories of all subjects.
        mirrors: Where they are fetched to, by `git`.
        git: Runs git.
        store: Where changes are stored.
        sanitizer: Cleans and redacts.
        clock: The source of time.
        window: Seconds before the first reading of which the commits are stored.
        most: The most commits that one reading stores.
    """

    def __init__(
        self,
        repositories: Sequence[WatchedRepository],
        mirrors: Mirrors,
        git: Git,
        store: Store,
        sanitizer: Sanitizer,
        clock: Clock,
        window: float,
        most: int,
    ) -> None:
        self.repositories = tuple(repositories)
        self._mirrors, self._git = mirrors, git
        self._store = store
        self._sanitizer = sanitizer
        self._clock = clock
        self._window = timedelta(seconds=window)
        self._most = most

    async def read(self, repository: WatchedRepository) -> int:
        """Store the commits and tags that are new since the last reading. Return how many changes these are.

        Raises:
            RepositoryError: The repository does not answer, or has no such branch.
            CacheBusy: Its mirror is in use for too long.
            MidwatchError: The database cannot be used.
        """
        try:
            return await self._read(repository)
        except OSError as error:
            raise map_disk_error(error, repository.url) from error

    async def _read(self, repository: WatchedRepository) -> int:
        known = await self._store.change_reading(repository.name)
        remote = parse_remote(repository.url)
        advertised = await ask_remote(self._git, remote, repository.branch)
        branch = repository.branch or advertised.default_branch or ""
        head = advertised.refs.get(f"refs/heads/{branch}", "")
        if not head and any(one.startswith("refs/heads/") for one in advertised.refs):
            raise NoSuchBranch(
                remote.url, "the repository has no such branch", branch=branch
            )
        state: Json = {"head": head, "tags_digest": _digest(advertised)}
        same = all(known.state.get(name) == value for name, value in state.items())
        if same or not head:  # a repository without a commit has none that is new
            state["tags"] = known.state.get("tags", [])
            reading = replace(known, state={**known.state, **state})
            await self._store.record_changes([], reading)
            return 0
        async with self._mirrors.reading(remote, advertised) as path:
            look = _Look(self, repository, remote, path, branch, known)
            new = await look.commits(head)
            tags, state["tags"] = await look.tags()
        found = [*new, *tags]
        await self._store.record_changes(found, replace(known, state=state))
        return len(found)

    async def failed(self, repository: WatchedRepository, error: str) -> None:
        """Record that a repository could not be read. Raises MidwatchError."""
        await self._store.fail_reading(repository.name, self._sanitizer.sanitize(error))

    async def readings(
        self, subjects: Iterable[str]
    ) -> list[tuple[WatchedRepository, Reading]]:
        """Return how far the repositories of some subjects have been read."""
        wanted = set(subjects)
        return [
            (one, await self._store.change_reading(one.name))
            for one in self.repositories
            if one.subject in wanted
        ]

    async def lines(
        self, change: SystemChange, words: Sequence[str], most: int
    ) -> list[str]:
        """Return lines that a commit changed: those that have most of some words first.

        It reads the mirror as it is: a commit that is not there has no lines.

        Args:
            change: The commit.
            words: The words, in any letter case.
            most: The most lines.

        Raises:
            RepositoryError: Git failed.
            CacheBusy: The mirror is in use for too long.
        """
        url = str(change.details.get("url") or "")
        known = next((one for one in self.repositories if one.url == url), None)
        if known is None or not is_oid(change.commit):
            return []
        remote = parse_remote(known.url)
        async with self._mirrors.as_fetched(remote) as path:
            if path is None or change.commit in _boundary(path):
                return []
            text = await self._run(
                remote,
                path,
                ["show", "--format=", "--diff-merges=first-parent", "--unified=0"]
                + ["--no-color", "--no-ext-diff", "--no-textconv"]
                + [change.commit, "--", *known.paths],
                _DIFF,
            )
        return _mentioning(text, words, most)

    async def _run(
        self, remote: Remote, path: Path, arguments: list[str], most: int = _OUTPUT
    ) -> str:
        command = GitCommand(
            arguments,
            repository=remote.url,
            git_dir=path,
            timeout=_SECONDS,
            max_output=most,
            ok=frozenset({0, 1}),
            variables=_VARIABLES,
        )
        return (await self._git.run(command)).text


class _Look:
    """One reading of one branch."""

    def __init__(
        self,
        of: RepositoryChanges,
        repository: WatchedRepository,
        remote: Remote,
        path: Path,
        branch: str,
        known: Reading,
    ) -> None:
        self._of = of
        self._repository = repository
        self._remote, self._path, self._branch = remote, path, branch
        self._known = known
        self._now = of._clock.now()

    async def commits(self, head: str) -> list[NewChange]:
        """Return the commits that are new on the branch; of very many the newest, and how many more there are."""
        before = str(self._known.state.get("head") or "")
        if before == head:
            return []
        found: list[NewChange] = []
        there = bool(before) and await self._has(before)
        if before and not (there and await self._is_ancestor(before, head)):
            found.append(self._rewritten(before, head))
        span = (
            [f"^{before}"] if there else [f"--since={int(self._since().timestamp())}"]
        )
        commits = await self._log([*span, head])
        found += [self._commit(one) for one in commits[: self._of._most]]
        if len(commits) > self._of._most:
            found.append(await self._more([*span, head], head))
        return found

    def _since(self) -> datetime:
        """Return the time from which on commits count where no earlier head is known."""
        return self._known.read_at or self._now - self._of._window

    async def _has(self, oid: str) -> bool:
        text = await self._git(["cat-file", "--batch-check"], f"{oid}^{{commit}}\n")
        return text.split()[1:2] == ["commit"]

    async def _is_ancestor(self, before: str, head: str) -> bool:
        text = await self._git(["rev-list", "--max-count=1", before, f"^{head}"])
        return not text.strip()

    async def _log(self, span: Sequence[str]) -> list[_Commit]:
        text = await self._git(
            ["log", "--first-parent", "--diff-merges=first-parent", "--no-color"]
            + ["--no-ext-diff", "--name-only", "--no-renames", f"--format={_COMMIT}"]
            + [f"--max-count={self._of._most + 1}", *span, "--"]
            + [*self._repository.paths]
        )
        return list(_parsed(text, _boundary(self._path)))

    async def _git(self, arguments: list[str], stdin: str = "") -> str:
        command = GitCommand(
            arguments,
            repository=self._remote.url,
            git_dir=self._path,
            stdin=stdin.encode() if stdin else None,
            timeout=_SECONDS,
            max_output=_OUTPUT,
            variables=_VARIABLES,
        )
        return (await self._of._git.run(command)).text

    def _new(
        self, kind: ChangeKind, key: str, at: datetime | None, title: str, **more: str
    ) -> NewChange:
        since = self._known.read_at
        when = self._now if at is None else placed(at, since, self._now)
        return NewChange(
            dedup_key=bounded_key(f"{kind} {key} {self._repository.subject}"),
            at=when,
            since=since if at is None or when != at else None,
            kind=kind,
            title=self._clean(title),
            source=REPOSITORY,
            subject=self._repository.subject,
            author=self._clean(more.get("author", ""), 100),
            version_to=self._clean(more.get("version", ""), 100),
            details={
                "url": self._repository.url,
                "repository": self._remote.url,
                "branch": self._clean(self._branch, 100),
            },
        )

    def _clean(self, text: str, limit: int = LONGEST_TITLE) -> str:
        return self._of._sanitizer.sanitize(text, limit)

    def _commit(self, one: _Commit) -> NewChange:
        new = self._new(
            ChangeKind.COMMIT, one.oid, one.at, one.title, author=one.author
        )
        files: Json = {"files": [self._clean(file, 200) for file in one.files]}
        if one.more_files:
            files["more_files"] = one.more_files
        return replace(new, details={**new.details, "commit": one.oid, **files})

    def _rewritten(self, before: str, head: str) -> NewChange:
        title = f"the branch was rewritten: {head[:12]} does not follow {before[:12]}"
        new = self._new(ChangeKind.OTHER, f"{before} {head}", None, title)
        return replace(new, details={**new.details, "rewritten": True, "head": head})

    async def _more(self, span: Sequence[str], head: str) -> NewChange:
        text = await self._git(
            ["rev-list", "--count", "--first-parent", *span, "--"]
            + [*self._repository.paths]
        )
        count = int(text.strip() or 0) - self._of._most
        title = f"{count:,} more commits before those, up to {head[:12]}"
        new = self._new(ChangeKind.COMMIT, f"before {head}", None, title)
        return replace(new, details={**new.details, "more": count})

    async def tags(self) -> tuple[list[NewChange], list[str]]:
        """Return the tags that are new or were moved, and what is to be remembered of the newest ones."""
        text = await self._git(
            ["for-each-ref", "--sort=-creatordate", f"--count={2 * _MOST_TAGS}"]
            + [f"--format={_TAG}", "refs/tags"]
        )
        rows = [line.split("\0") for line in text.split("\n")]
        tags = [row for row in rows if len(row) == 5]
        remembered = [f"{name} {oid}" for name, oid, *_ in tags]
        first = "tags" not in self._known.state
        known = set(self._known.state.get("tags", ()))
        new = []
        for name, oid, created, tagger, subject in tags[:_MOST_TAGS]:
            at = _instant(created)
            if f"{name} {oid}" in known or (
                first and (at or self._now) < self._since()
            ):
                continue
            title = f"tag {name}" + (f": {subject}" if subject else "")
            key = f"{name} {oid}"
            new.append(
                self._new(ChangeKind.TAG, key, at, title, author=tagger, version=name)
            )
        return new, remembered


def _parsed(text: str, boundary: frozenset[str]) -> Iterator[_Commit]:
    """Yield the commits of a log in the format `_COMMIT`, in which no field has a NUL."""
    fields = text.split("\0")[1:]
    for start in range(0, len(fields) - _FIELDS + 1, _FIELDS):
        oid, at, author, title, names = fields[start : start + _FIELDS]
        instant = _instant(at)
        if not is_oid(oid) or instant is None:
            continue
        # What the commit at which a shallow history ends changed is unknown.
        files = [] if oid in boundary else [one for one in names.split("\n") if one]
        yield _Commit(
            oid,
            instant,
            author.strip(),
            title.strip(),
            tuple(files[:MOST_FILES]),
            max(len(files) - MOST_FILES, 0),
        )


def _instant(seconds: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(int(seconds), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _boundary(path: Path) -> frozenset[str]:
    """Return the commits at which the history of a shallow mirror ends."""
    try:
        return frozenset((path / "shallow").read_text("ascii").split())
    except (OSError, UnicodeDecodeError):
        return frozenset()


def _digest(advertised: Advertised) -> str:
    tags: Mapping[str, str] = {
        name: oid
        for name, oid in advertised.refs.items()
        if name.startswith("refs/tags/")
    }
    text = "\n".join(f"{name} {oid}" for name, oid in sorted(tags.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _mentioning(text: str, words: Sequence[str], most: int) -> list[str]:
    """Return lines of a difference that were added or removed, behind their file: those with most of the words first.

    Lines without any follow only where the whole difference is small.
    """
    wanted = [word.casefold() for word in words]
    file, found = "", []
    for number, line in enumerate(text.split("\n")):
        if line.startswith(("+++ ", "--- ")):
            name = line[4:].strip().strip('"')
            file = name[2:] if name[:2] in ("a/", "b/") else file
        elif line[:1] in ("+", "-") and line[1:].strip():
            folded = line.casefold()
            count = sum(word in folded for word in wanted)
            found.append((-count, number, f"{file}: {line.rstrip()}"))
    small = len(found) <= _SMALL
    return [line for count, _, line in sorted(found)[:most] if count or small]
