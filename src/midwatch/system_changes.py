"""Changes of watched systems: deployments, commits, settings, certificates (values only).

A change says that something was altered, by whom and when. It never says that this broke anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from midwatch.model import ChangeKind, Json

REPORTED_KINDS = (
    ChangeKind.DEPLOY,
    ChangeKind.CONFIG,
    ChangeKind.FLAG,
    ChangeKind.MIGRATION,
    ChangeKind.OTHER,
)
"""The kinds that people and programs report."""
OBSERVED = "observation"
"""The source of a change that Midwatch saw itself, between two observations of a subject."""
REPOSITORY = "repository"
"""The source of a change that Midwatch read from a repository of a subject."""
LONGEST_TITLE = 300
LONGEST_TEXT = 500
MOST_FILES = 20
MOST_LABELS = 30


@dataclass(frozen=True, slots=True)
class NewChange:
    """A change to store. All texts are clean and without secrets.

    Attributes:
        dedup_key: What makes it one: a second change with it is not stored.
        at: When it happened, or when it was seen where only a period is known. The store sets one of the future to now.
        kind: What was changed.
        title: One line, of at most `LONGEST_TITLE` characters.
        source: Who says so: `OBSERVED`, `REPOSITORY`, or the name of a sender, such as "api ann" or "github ci".
        subject: The subject that was changed; empty for one that is known by its labels alone.
        since: It happened after this, where only a period is known.
        labels: What it is about. A ticket that has all of them is concerned.
        version_from: The version before.
        version_to: The version after.
        link: A URL for people.
        author: Who made it.
        details: More of it: `files`, `commit`, `repository`, `branch`.
    """

    dedup_key: str
    at: datetime
    kind: ChangeKind
    title: str
    source: str
    subject: str = ""
    since: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    version_from: str = ""
    version_to: str = ""
    link: str = ""
    author: str = ""
    details: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SystemChange:
    """A stored change, as `NewChange` describes it. `recorded_at` is when it was stored, by the database's clock."""

    id: int
    at: datetime
    kind: ChangeKind
    title: str
    source: str
    subject: str
    since: datetime | None
    labels: Mapping[str, str]
    version_from: str
    version_to: str
    link: str
    author: str
    details: Json
    recorded_at: datetime

    @property
    def began_at(self) -> datetime:
        """The earliest time at which it can have happened."""
        return self.at if self.since is None else min(self.since, self.at)

    @property
    def observed(self) -> bool:
        """Whether Midwatch saw it itself, so that it needs the word of no one else."""
        return self.source == OBSERVED

    @property
    def measured(self) -> bool:
        """Whether all words of it are those of Midwatch and of the system, and none of a person or a program."""
        return self.observed and bool(self.details.get("measured"))

    @property
    def commit(self) -> str:
        """The object id of its commit; empty for other changes."""
        return str(self.details.get("commit") or "")

    @property
    def files(self) -> Sequence[str]:
        """The files of its commit, at most `MOST_FILES`."""
        return [str(one) for one in self.details.get("files") or ()]


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """Which changes are listed, the newest first.

    Attributes:
        subject: Only those of this subject; "" for those that are known by labels alone.
        kind: Only those of this kind.
        since: Only those that happened at this time or later.
        until: Only those that happened before this time.
        limit: The most changes.
        after: The time and id of the last one of the page before.
    """

    subject: str | None = None
    kind: ChangeKind | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: int = 50
    after: tuple[datetime, int] | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """How far a branch of a repository has been read for a subject.

    Attributes:
        name: The subject, the URL and the branch.
        state: What the next reading is compared with: heads and tags by name.
        read_at: When it was last read, by the database's clock; None before the first time.
        failed_at: When it could not be read since; None if the last reading was complete.
        error: Why.
    """

    name: str
    state: Json = field(default_factory=dict)
    read_at: datetime | None = None
    failed_at: datetime | None = None
    error: str = ""


def placed(at: datetime, since: datetime | None, seen: datetime) -> datetime:
    """Return when a change with a time of its own can have happened.

    A clock that is wrong, or an old date of a rebased commit, cannot move it out of the period in which it appeared.

    Args:
        at: The time that the change says.
        since: It was not there at this time; None if nothing is known.
        seen: It was there at this time.
    """
    if at > seen:
        return seen
    return seen if since is not None and at < since else at


def before_onset(change: SystemChange, onset: datetime) -> timedelta:
    """Return by how much a change lies before an onset; negative if it lies after it."""
    return onset - change.at
