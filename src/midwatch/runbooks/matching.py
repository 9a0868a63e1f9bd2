"""Which runbooks are for a ticket, the most specific first (pure).

Each condition of a runbook that the ticket meets has points, and the sum is the order:

==========================================  ======
the invariant by its whole id                   10
the subject by its whole name                    8
each matcher with = on a label                   4
the invariant or the subject by a pattern        3
each matcher with =~                             2
the kind of the subject                          2
the severity, each matcher with != or !~         1
==========================================  ======

A pattern that fits everything ("*") has none. With equal points the one with more literal characters in the patterns
that fit comes first, then the order of the sources in the settings and of their paths. The page that the alert itself names is
before all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

from midwatch.errors import MidwatchError
from midwatch.matchers import Matcher
from midwatch.model import Ticket
from midwatch.runbooks.runbook import Match, Runbook
from midwatch.silences import labels_of_ticket

_WILD = re.compile(r"[*?\[]")
_INVARIANT, _SUBJECT, _PATTERN, _KIND, _SEVERITY = 10, 8, 3, 2, 1
_OPERATORS = {"=": 4, "=~": 2, "!=": 1, "!~": 1}


@dataclass(frozen=True, slots=True)
class Hit:
    """A runbook that is for a ticket.

    Attributes:
        runbook: The runbook.
        points: How specific it is, see above.
        why: The conditions that the ticket meets, in words.
    """

    runbook: Runbook
    points: int
    why: tuple[str, ...]

    @property
    def reason(self) -> str:
        return ", ".join(self.why)


@dataclass(frozen=True, slots=True)
class _Entry:
    place: int
    runbook: Runbook
    match: Match


class RunbookIndex:
    """Runbooks by what they match.

    Args:
        runbooks: All of them, in the order of their sources and paths.
    """

    def __init__(self, runbooks: Iterable[Runbook]) -> None:
        self._by_invariant: dict[str, list[_Entry]] = {}
        self._by_subject: dict[str, list[_Entry]] = {}
        self._by_kind: dict[str, list[_Entry]] = {}
        self._rest: list[_Entry] = []
        for place, one in enumerate(runbooks):
            if one.match is not None:
                self._add(_Entry(place, one, one.match))

    def _add(self, entry: _Entry) -> None:
        match = entry.match
        for names, index in (
            (match.invariants, self._by_invariant),
            (match.subjects, self._by_subject),
            (match.kinds, self._by_kind),
        ):
            if names and not any(map(_is_pattern, names)):
                for name in set(names):
                    index.setdefault(name, []).append(entry)
                return
        self._rest.append(entry)

    def best(self, ticket: Ticket, kind: str, most: int) -> list[Hit]:
        """Return the most specific runbooks for a ticket, the first one most.

        Args:
            ticket: The ticket.
            kind: The kind of its subject; empty where the subject is not in the settings any more.
            most: How many, at most.
        """
        labels = labels_of_ticket(ticket, kind)
        found: list[tuple[int, int, int, Hit]] = []
        for entry in (
            *self._by_invariant.get(ticket.key.invariant, ()),
            *self._by_subject.get(ticket.key.subject, ()),
            *self._by_kind.get(kind, ()),
            *self._rest,
        ):
            met = _met(entry, labels)
            if met is not None:
                points = sum(one.points for one in met)
                literal = sum(one.literal for one in met)
                why = tuple(one.why for one in met)
                hit = Hit(entry.runbook, points, why)
                found.append((-points, -literal, entry.place, hit))
        found.sort(key=lambda one: one[:3])
        return [hit for *_, hit in found[:most]]


@dataclass(frozen=True, slots=True)
class _Met:
    why: str
    points: int
    literal: int = 0


def _met(entry: _Entry, labels: Mapping[str, str]) -> list[_Met] | None:
    """Return the conditions that the labels meet; None if they do not meet one."""
    match, found = entry.match, []
    if match.kinds:
        if labels["kind"] not in match.kinds:
            return None
        found.append(_Met(f"kind {labels['kind']}", _KIND))
    for name, patterns, exact in (
        ("invariant", match.invariants, _INVARIANT),
        ("subject", match.subjects, _SUBJECT),
    ):
        if patterns:
            met = _named(name, labels[name], patterns, exact)
            if met is None:
                return None
            found.append(met)
    if match.severity:
        if labels["severity"] not in match.severity:
            return None
        found.append(_Met(f"severity {labels['severity']}", _SEVERITY))
    for one in entry.runbook.labels:
        if not _fits(one, labels):
            return None
        found.append(_Met(f"label {one}", _OPERATORS[one.op]))
    return found


def _fits(matcher: Matcher, labels: Mapping[str, str]) -> bool:
    try:
        return matcher.matches(labels)
    except MidwatchError:  # checked when it was read
        return False


def _named(name: str, value: str, patterns: Sequence[str], exact: int) -> _Met | None:
    """Return how the most specific of the patterns fits a value; None if none does."""
    if value in patterns:
        return _Met(f"{name} {value}", exact, len(value))
    fitting = [
        one for one in patterns if _is_pattern(one) and _compiled(one).match(value)
    ]
    if not fitting:
        return None
    best = max(fitting, key=lambda one: (_literal(one), one))
    literal = _literal(best)
    return _Met(f"{name} {best}", _PATTERN if literal else 0, literal)


def _is_pattern(text: str) -> bool:
    return _WILD.search(text) is not None


def _literal(pattern: str) -> int:
    """Return how many characters of a pattern stand for themselves."""
    return len(re.sub(r"\[[^\]]*\]|[*?]", "", pattern))


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))
