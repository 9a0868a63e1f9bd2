"""Lock queues and sessions of a database server in its evidence: what the playbooks of PostgreSQL and MariaDB share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from midwatch.diagnosis_schema import Action, Citation, Finding
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import bounded, evidence_lines, finding, text_fact


@dataclass(frozen=True, slots=True)
class ShownSession:
    """A session on a line of evidence. `since` is the start of its transaction, empty without one."""

    id: int
    citation: Citation
    state: str = ""
    since: str = ""
    user: str = ""
    client: str = ""
    database: str = ""
    query: str = ""

    @property
    def idle(self) -> bool:
        return self.state.startswith("idle in transaction")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A session that waits; `statement` is what it runs if that keeps everybody else out, such as `ALTER TABLE`."""

    id: int
    behind: frozenset[int]
    statement: str
    citation: Citation


W = TypeVar("W", bound=Waiting)


@dataclass(frozen=True, slots=True)
class Queues(Generic[W]):
    """The waits of one moment, by the number of each session. `first` is None where that evidence is missing."""

    roots: dict[int, Citation] = field(default_factory=dict)
    waiters: dict[int, W] = field(default_factory=dict)
    first: Citation | None = None

    def roots_of(self, ids: Iterable[int]) -> list[int]:
        """Return who holds what these sessions wait for, without those that wait themselves."""
        seen: set[int] = set()
        left = [one for one in ids if one in self.waiters]
        while left:
            one = left.pop()
            if one not in seen:
                seen.add(one)
                left += self.waiters[one].behind if one in self.waiters else ()
        return sorted(seen - self.waiters.keys())

    def roots_of_ticket(self, ids: Iterable[int], told: int) -> list[int]:
        """Return who holds what a ticket's sessions wait for, or those behind its blocker; its blocker's ties alone."""
        of_told = self.roots_of(self.behind(told))
        roots = self.roots_of(ids) or of_told
        return of_told or roots if told in roots else roots

    def behind(self, root: int) -> set[int]:
        """Return the sessions that wait for this one, at any depth."""
        found = {root}
        while more := {n for n, w in self.waiters.items() if w.behind & found} - found:
            found |= more
        return found - {root}

    def freed_by(self, root: int) -> set[int]:
        """Return the sessions that wait for this one and for no session that would stay."""
        freed = {root}
        while more := {n for n, w in self.waiters.items() if w.behind <= freed} - freed:
            freed |= more
        return freed - {root}

    def gate(self, among: Iterable[int]) -> W | None:
        """Return the waiting session without which most of the others would not wait, or None.

        It has not got its lock yet: it is the one that loses least.
        """
        waiting = [self.waiters[one] for one in among if one in self.waiters]
        found = [
            (len(freed), -one.id)
            for one in waiting
            if one.statement and (freed := self.freed_by(one.id))
        ]
        return self.waiters[-max(found)[1]] if found else None

    def cited(
        self, roots: Iterable[int], known: Mapping[int, ShownSession]
    ) -> list[Citation | None]:
        """Return a citation of each root, of the tree or else of the session."""
        return [
            self.roots.get(one) or (known[one].citation if one in known else None)
            for one in roots
        ]

    def waits(self, waiting: Iterable[int], word: str) -> list[Finding | None]:
        """Return a finding for each of the first sessions that wait."""
        shown = sorted(set(waiting) & self.waiters.keys())[:5]
        return [finding(f"{word} {n} waits", self.waiters[n].citation) for n in shown]


# ------------------------------------------------------------------ what both say


def session_lines(
    context: Context, titles: Sequence[str], line: re.Pattern[str], word: str
) -> Iterator[tuple[int, Citation, dict[str, str]]]:
    """Yield the sessions on lines of evidence: number, citation and the groups of `line`.

    Args:
        context: The evidence.
        titles: Of the evidence that has sessions, the most telling first.
        line: Its group `id` is the number.
        word: What a session begins with, also behind the words of a root.
    """
    for title in titles:
        for evidence_id, text in evidence_lines(context, title):
            start = text.find(word) if text.startswith("root: ") else 0
            match = line.match(text[start:]) if start >= 0 else None
            if match:
                names = {key: value or "" for key, value in match.groupdict().items()}
                quoted = Citation(evidence_id=evidence_id, quote=bounded(text))
                yield int(names.pop("id")), quoted, names


def numbers(ticket: Ticket, fact: str) -> list[int]:
    """Return the numbers of sessions in a fact."""
    return [int(one) for one in re.findall(r"\d+", text_fact(ticket, fact))]


def missing(holders: Iterable[ShownSession]) -> list[str]:
    idle = any(one.idle for one in holders)
    return ["Why the client does not end its transaction."] if idle else []


def once(actions: Sequence[Action]) -> list[Action]:
    """Return the actions without those that are there already."""
    return [one for n, one in enumerate(actions) if one not in actions[:n]]
