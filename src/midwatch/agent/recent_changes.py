"""The changes that count for a ticket: of its subject, of what that depends on, or with its labels, before the onset.

What was changed shortly before a fault is evidence by itself, but it never proves a cause. What people wrote, such as
the message of a commit, is marked: it cannot pass for what was measured.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from midwatch.change_settings import ChangeSettings
from midwatch.errors import MidwatchError
from midwatch.lifecycle import Clock
from midwatch.model import ChangeKind, Context, Ticket
from midwatch.silences import labels_of_ticket
from midwatch.store.protocol import Store
from midwatch.subjects.base import EvidenceSource
from midwatch.system_changes import SystemChange
from midwatch.text import one_line, reported, take_marks
from midwatch.units import format_count, format_duration

if TYPE_CHECKING:
    from midwatch.agent.repository_changes import RepositoryChanges

TITLE = "Changes before the onset"
RANK = 1
"""What changed comes before all other evidence but the violations."""
SHORTLY = "changed shortly before the onset"
"""Begins the heading of the changes that first aid names."""
_EARLIER = "changed earlier, or just after the onset:"
_SLACK = timedelta(seconds=60)
"""How far the clocks of two systems may differ: a change that seems to follow the onset may precede it."""
_MOST_READ = 500
"""Changes of one subject that are looked at for one ticket."""
_MOST_WITH_LINES = 5
_LINES = 4
_LINES_SECONDS = 0.3
"""Commits whose differences are searched, the lines of each, and the seconds for all of them."""
_MOST_WORDS = 40
_WEIGHTS = {
    ChangeKind.DEPLOY: 4,
    ChangeKind.CONFIG: 4,
    ChangeKind.MIGRATION: 4,
    ChangeKind.FLAG: 4,
    ChangeKind.SCHEMA: 3,
    ChangeKind.CERTIFICATE: 3,
    ChangeKind.OTHER: 2,
    ChangeKind.TAG: 2,
    ChangeKind.COMMIT: 2,
}
_NEAR = (300.0, 900.0, 3600.0, 6 * 3600.0)
"""Seconds before the onset: what lies within the same two of them is as near."""
_WORD = re.compile(r"[A-Za-z_][\w-]{3,}|/[\w./-]{3,}")
_COMMON = frozenset(
    "about after answer answered answers been before broken does every failed from have http https limit localhost more not"
    " only other request requests running seconds server service since still than that this ticket time took were when with"
    " within".split()
)
_LINE = re.compile(r"(?P<when>.{1,80}? the onset): (?P<what>[^:]{1,200})(?::|$)")


@dataclass(frozen=True, slots=True)
class NearChange:
    """A change that counts for a ticket.

    Attributes:
        change: The change.
        shortly: Whether it lies within `changes.shortly` before the onset.
        depends: The subject of the tickets that depends on the changed one; empty for their own.
        own: Whether a ticket has all labels of the change: it is about what was changed.
        lines: Lines of its difference that have words of the tickets.
    """

    change: SystemChange
    shortly: bool
    depends: str = ""
    own: bool = False
    lines: tuple[str, ...] = ()


class RecentChanges:
    """Finds the changes that count for tickets.

    Args:
        store: The stored changes.
        settings: Which of them count.
        clock: The source of time.
        reach: Returns what a subject depends on, by name; None for nothing.
        kinds: The kind of each subject by name.
        repositories: Where commits come from; None without repositories.
    """

    def __init__(
        self,
        store: Store,
        settings: ChangeSettings,
        clock: Clock,
        reach: Callable[[str], Iterable[str]] | None = None,
        kinds: Mapping[str, str] | None = None,
        repositories: RepositoryChanges | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._reach = reach
        self._kinds = kinds or {}
        self._repositories = repositories

    async def before(self, tickets: Sequence[Ticket]) -> list[NearChange]:
        """Return the changes that count for tickets, the nearest and weightiest first. Raises MidwatchError."""
        if not tickets:
            return []
        onset = min(ticket.first_seen_at for ticket in tickets)
        own = list(dict.fromkeys(ticket.key.subject for ticket in tickets))
        depends = self._depends(own)
        found = await self._store.changes_before(
            {*own, *depends, ""},
            onset - timedelta(seconds=self._settings.window),
            onset + _SLACK,
            _MOST_READ,
        )
        labels = [
            labels_of_ticket(one, self._kinds.get(one.key.subject, ""))
            for one in tickets
        ]
        near = [
            NearChange(
                one,
                one.began_at <= onset
                and (onset - one.at).total_seconds() <= self._settings.shortly,
                depends.get(one.subject, ""),
                _matches(one.labels, labels),
            )
            for one in found
            if one.subject or _matches(one.labels, labels)
        ]
        near.sort(key=lambda one: _order(one, onset))
        return near[: self._settings.most]

    def _depends(self, own: Sequence[str]) -> dict[str, str]:
        """Return what the subjects need, by name, each with the one that needs it."""
        if self._reach is None:
            return {}
        needed = {on: name for name in own for on in self._reach(name)}
        return {on: name for on, name in needed.items() if on not in own}

    # ------------------------------------------------------------------ as evidence

    def source(self, tickets: Sequence[Ticket]) -> EvidenceSource:
        """Return the source of evidence about the changes before the onset of tickets."""
        return EvidenceSource(TITLE, "midwatch", lambda: self._text(tickets), rank=RANK)

    async def _text(self, tickets: Sequence[Ticket]) -> str:
        onset = min(ticket.first_seen_at for ticket in tickets)
        near = await self._with_lines(await self.before(tickets), words_of(tickets))
        unknown = await self._unknown(tickets)
        return "\n".join(_page(near, onset, self._settings, unknown))

    async def _with_lines(
        self, near: Sequence[NearChange], words: Sequence[str]
    ) -> list[NearChange]:
        """Add the lines of the first commits that mention what is broken; those that take too long have none."""
        found = list(near)
        if self._repositories is None:
            return found
        commits = [at for at, one in enumerate(found) if one.change.commit]
        try:
            async with asyncio.timeout(_LINES_SECONDS):
                for at in commits[:_MOST_WITH_LINES]:
                    one = found[at]
                    lines = await self._repositories.lines(one.change, words, _LINES)
                    found[at] = NearChange(
                        one.change, one.shortly, one.depends, one.own, tuple(lines)
                    )
        except (MidwatchError, TimeoutError):
            pass
        return found

    async def _unknown(self, tickets: Sequence[Ticket]) -> list[str]:
        """Return which repositories were not read, or not completely: commits of them may be missing."""
        if self._repositories is None:
            return []
        own = list(dict.fromkeys(ticket.key.subject for ticket in tickets))
        lines = []
        for one, reading in await self._repositories.readings(
            [*own, *self._depends(own)]
        ):
            name = one_line(one.url, 200)
            if reading.read_at is None:
                why = f": {reported(reading.error)}" if reading.error else ""
                lines.append(f"unknown: the repository {name} was not read yet{why}")
            elif reading.failed_at is not None:
                lines.append(
                    f"unknown: the repository {name} could not be read since {_time(reading.failed_at)}, last read "
                    f"{_time(reading.read_at)}: {reported(reading.error)}"
                )
        return lines

    # ------------------------------------------------------------------ as an answer

    async def lately(self, subjects: Sequence[str], seconds: float) -> str:
        """Return the changes of subjects and of what they need in the last seconds as text. Raises MidwatchError."""
        now = self._clock.now()
        depends = self._depends(subjects)
        found = await self._store.changes_before(
            {*subjects, *depends}, now - timedelta(seconds=seconds), now, _MOST_READ
        )
        return "\n".join(
            f"{_time(one.at)}: {describe(one)}" for one in found[: self._settings.most]
        )


# ------------------------------------------------------------------ which come first


def _matches(wanted: Mapping[str, str], labels: Iterable[Mapping[str, str]]) -> bool:
    """Return whether a ticket has all labels of a change. One without labels is of no ticket."""
    return bool(wanted) and any(
        all(one.get(name) == value for name, value in wanted.items()) for one in labels
    )


def _order(near: NearChange, onset: datetime) -> tuple[int, int, float, int]:
    seconds = (onset - near.change.at).total_seconds()
    nearness = sum(abs(seconds) > one for one in _NEAR) - near.own
    weight = _WEIGHTS[near.change.kind] - bool(near.depends)
    return nearness, -weight, abs(seconds), -near.change.id


def words_of(tickets: Iterable[Ticket]) -> list[str]:
    """Return the words by which a difference is searched: of components, messages and first aid, without common ones."""
    texts = [
        f"{one.key.component} {one.message} {(one.first_aid or {}).get('root_cause') or ''}"
        for one in tickets
    ]
    found = (match[0].strip("./-") for text in texts for match in _WORD.finditer(text))
    names = dict.fromkeys(
        word for word in found if len(word) > 3 and word.casefold() not in _COMMON
    )
    return list(names)[:_MOST_WORDS]


# ------------------------------------------------------------------ texts


def _page(
    near: Sequence[NearChange],
    onset: datetime,
    settings: ChangeSettings,
    unknown: Sequence[str],
) -> Iterator[str]:
    shortly = [one for one in near if one.shortly]
    earlier = [one for one in near if not one.shortly]
    if not near:
        window = format_duration(settings.window)
        yield f"no change is known in the {window} before the onset at {_time(onset)}"
    if shortly:
        yield f"{SHORTLY} at {_time(onset)}, which proves no cause:"
        for one in shortly:
            yield from _described(one, onset)
    if earlier:
        yield _EARLIER
        for one in earlier:
            yield from _described(one, onset)
    yield from unknown


def _described(near: NearChange, onset: datetime) -> Iterator[str]:
    needed = f", which {near.depends} depends on" if near.depends else ""
    yield f"{distance(near.change, onset)}: {describe(near.change, needed)}"
    if near.change.files:
        more = int(near.change.details.get("more_files") or 0)
        rest = f" and {more:,} more" if more else ""
        files = reported(one_line(", ".join(near.change.files), 400))
        yield f"  files: {files}{rest}"
    for line in near.lines:
        yield f"  changed line: {reported(one_line(line, 300))}"


def distance(change: SystemChange, onset: datetime) -> str:
    """Return how long before an onset a change happened, or between which times."""
    latest = (onset - change.at).total_seconds()
    earliest = (onset - change.began_at).total_seconds()
    if earliest - latest < 1:
        return _relative(latest)
    if latest < -1 and earliest > 0:
        before, after = format_duration(earliest), format_duration(-latest)
        return f"between {before} before and {after} after the onset"
    if latest <= 0:
        return f"at most {format_duration(max(earliest, 0))} before the onset"
    return f"between {format_duration(earliest)} and {format_duration(latest)} before the onset"


def _relative(seconds: float) -> str:
    if seconds < 0:
        return f"{format_duration(-seconds)} after the onset"
    return f"{format_duration(seconds)} before the onset"


def heading(change: SystemChange) -> str:
    """Return what kind of change it is and of what, in words of Midwatch alone."""
    what = change.kind.value
    if change.commit:
        what = f"{what} {change.commit[:12]}"
    elif change.details.get("rewritten"):
        what = "rewritten branch"
    elif change.details.get("more"):
        what = format_count(int(change.details["more"]), "more commit")
    return f"{what} of {change.subject}" if change.subject else what


def describe(change: SystemChange, needed: str = "") -> str:
    """Return a change in one line for evidence, with marks on what others wrote."""
    foreign = str if change.measured else reported
    parts = [foreign(one_line(change.title, 300))]
    if change.version_from or change.version_to:
        before, after = change.version_from or "none", change.version_to or "none"
        parts.append(
            f"from {foreign(one_line(before, 200))} to {foreign(one_line(after, 200))}"
        )
    if change.author:
        parts.append(f"by {reported(one_line(change.author, 100))}")
    if not change.subject and change.labels:
        labels = ", ".join(f"{name}={value}" for name, value in change.labels.items())
        parts.append(f"labels {reported(one_line(labels, 300))}")
    if change.link:
        parts.append(reported(one_line(change.link, 300)))
    seen = (
        "seen by Midwatch"
        if change.observed
        else f"reported by {one_line(change.source, 100)}"
    )
    if change.details.get("url"):
        branch = one_line(str(change.details.get("branch") or ""), 100)
        seen = f"read from the repository, branch {reported(branch)}"
    return f"{heading(change)}{needed}: {'; '.join(parts)} ({seen})"


def change_line(change: SystemChange, onset: datetime | None = None) -> str:
    """Return a change in one line for people and programs; with an onset, how long before it that was."""
    when = "" if onset is None else f"{distance(change, onset)}: "
    text, _ = take_marks(describe(change))
    return f"{when}{text}"


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")


# ------------------------------------------------------------------ first aid


@dataclass(frozen=True, slots=True)
class Lead:
    """A change that first aid names first: the evidence and its line, its distance, and what it is in Midwatch's words."""

    evidence_id: str
    line: str
    when: str
    what: str


def leads(context: Context, most: int) -> list[Lead]:
    """Return the changes shortly before the onset, as the evidence of a context has them."""
    found: list[Lead] = []
    for evidence in context.evidence:
        if evidence.title != TITLE or not evidence.available:
            continue
        within = False
        for line in evidence.text.splitlines():
            if not line.startswith(" "):
                match = _LINE.match(line)
                within = line.startswith(SHORTLY) if match is None else within
                if within and match is not None:
                    found.append(Lead(evidence.id, line, match["when"], match["what"]))
    return found[:most]
