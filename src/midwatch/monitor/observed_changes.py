"""Find what was changed on a subject between two observations: settings, versions, certificates, rollouts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from midwatch.agent.reported_changes import bounded_key
from midwatch.model import ChangeKind, Fact, Json, Observation, ObservedChange
from midwatch.redaction import Sanitizer
from midwatch.system_changes import (
    LONGEST_TITLE,
    MOST_LABELS,
    OBSERVED,
    NewChange,
    placed,
)

MOST_FACTS = 400
"""Facts of a configuration that are kept."""
MOST_CHANGES = 40
"""Changes of a configuration that one observation can show; of more it shows the number."""
_MOST_UNSEEN = 2 * MOST_FACTS
"""Facts that are kept of groups that are not shown now: more than settings and tables have. A subject whose names begin with ever
new words reaches it."""
_MOST_KEYS = 200
_NAME, _VALUE = 120, 200
_MISSING = "not shown"
"""What a fact has that is not there: a default, or what the role may not see."""
_KINDS = {
    "certificate": ChangeKind.CERTIFICATE,
    "schema": ChangeKind.SCHEMA,
    "version": ChangeKind.DEPLOY,
}
"""The kinds of changes by the first word of a fact's name; all others are settings."""
_NAMED = ("certificate", "schema")


class ObservedChanges:
    """Compares the observations of one subject.

    What is kept is the number of differences so far, which makes each of them one however often it is computed.
    """

    def __init__(self, subject: str, sanitizer: Sanitizer) -> None:
        self._subject = subject
        self._sanitizer = sanitizer
        self._raw: tuple[Any, ...] | None = None

    def compare(
        self,
        observation: Observation,
        kept: Mapping[str, Any],
        before: datetime | None,
        now: datetime,
    ) -> tuple[list[NewChange], Json]:
        """Return what was changed since the last observation, and what is to be kept.

        Args:
            observation: The observation, as the subject reports it.
            kept: What the last comparison returned; empty for the first one.
            before: When the last successful observation was; None if there was none.
            now: The time.
        """
        facts, changes = observation.configuration, observation.changes
        raw = (dict(facts), tuple(one.key for one in changes))
        if raw == self._raw or not (facts or changes):
            return [], dict(kept)
        next_ = dict(kept)
        found: list[NewChange] = []
        if facts:
            was, clean, forgot = self._comparable(facts, kept)
            if "facts" in kept and was != clean:
                count = int(kept.get("count", 0))
                next_["count"] = count + 1
                found += self._differences(was, clean, count, before, now)
            next_ |= {"facts": clean, **({"forgot": True} if forgot else {})}
        if changes:
            found += self._reported(changes, kept, before, now)
            next_["keys"] = [_digest(one.key) for one in changes][-_MOST_KEYS:]
        return found, next_

    def done(self, observation: Observation) -> None:
        """Remember an observation whose changes are stored: one that says the same needs no comparison."""
        keys = tuple(one.key for one in observation.changes)
        self._raw = (dict(observation.configuration), keys)

    def forget(self) -> None:
        """Forget what was observed: another monitor may store changes from now on."""
        self._raw = None

    def _comparable(
        self, facts: Mapping[str, Fact], kept: Mapping[str, Any]
    ) -> tuple[dict[str, str], dict[str, str], bool]:
        """Return what was known of facts, what is known now, and whether something of it is forgotten.

        A group, such as the settings, of which nothing is there stays as it was: the role may not see it any more. Of too
        many such groups all are forgotten, which is no change; and from then on it is none either when a group
        appears, as it may be one of them.
        """
        was = dict(kept.get("facts", {}))
        clean = self._clean(facts, was)
        unseen = _beside(was, clean)
        forgot = len(unseen) > _MOST_UNSEEN
        if forgot:
            was = {name: value for name, value in was.items() if name not in unseen}
            unseen = {}
        if kept.get("forgot"):
            was |= _beside(clean, was)
        return was, {**unseen, **clean}, forgot

    def _clean(
        self, facts: Mapping[str, Fact], kept: Mapping[str, str]
    ) -> dict[str, str]:
        """Return facts as they are kept. Of one that is unknown the earlier value stays."""
        sanitize = self._sanitizer.sanitize
        clean: dict[str, str] = {}
        for raw, value in sorted(facts.items())[:MOST_FACTS]:
            name = sanitize(raw, _NAME)
            if value is None and name in kept:
                clean[name] = kept[name]
            elif value is not None:
                # Together, as a secret may be known by the name beside it.
                line = sanitize(f"{name}: {value}", _NAME + _VALUE)
                clean[name] = line.removeprefix(f"{name}: ")[:_VALUE]
        return clean

    def _differences(
        self,
        was: Mapping[str, str],
        is_: Mapping[str, str],
        count: int,
        before: datetime | None,
        now: datetime,
    ) -> Iterator[NewChange]:
        names = sorted(name for name in {*was, *is_} if was.get(name) != is_.get(name))
        if max(len(was), len(is_)) >= MOST_FACTS:
            # Behind the last name of the shorter list nothing is known.
            last = min(max(was, default=""), max(is_, default=""))
            names = [name for name in names if name <= last]
        for name in names[:MOST_CHANGES]:
            old, new = was.get(name, ""), is_.get(name, "")
            yield NewChange(
                dedup_key=bounded_key(f"observed {self._subject} {count} {name}"),
                at=now,
                since=before,
                kind=_KINDS.get(_group(name), ChangeKind.CONFIG),
                title=name,
                source=OBSERVED,
                subject=self._subject,
                version_from=old or _MISSING,
                version_to=new or _MISSING,
                # Names of tables and of certificates are chosen by others.
                details={"measured": _group(name) not in _NAMED},
            )
        if (more := len(names) - MOST_CHANGES) > 0:
            yield NewChange(
                dedup_key=bounded_key(f"observed {self._subject} {count} more"),
                at=now,
                since=before,
                kind=ChangeKind.CONFIG,
                title=f"{more} more settings",
                source=OBSERVED,
                subject=self._subject,
            )

    def _reported(
        self,
        changes: tuple[ObservedChange, ...],
        kept: Mapping[str, Any],
        before: datetime | None,
        now: datetime,
    ) -> Iterator[NewChange]:
        known = set(kept.get("keys", ()))
        sanitize = self._sanitizer.sanitize
        for one in changes[-_MOST_KEYS:]:
            # Without a time of its own it can be old: there was no observation that did not have it.
            undated = one.at is None and "keys" not in kept
            if _digest(one.key) in known or undated:
                continue
            yield NewChange(
                dedup_key=bounded_key(f"observed {self._subject} {one.key}"),
                at=now if one.at is None else placed(one.at, None, now),
                since=before if one.at is None else None,
                kind=one.kind,
                title=sanitize(one.title, LONGEST_TITLE),
                source=OBSERVED,
                subject=self._subject,
                labels={
                    sanitize(name, 100): sanitize(value, 200)
                    for name, value in list(one.labels.items())[:MOST_LABELS]
                },
                version_from=sanitize(one.version_from, 200),
                version_to=sanitize(one.version_to, 200),
                author=sanitize(one.author, 100),
            )


def _group(name: str) -> str:
    return name.partition(" ")[0]


def _beside(facts: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    """Return the facts of groups that the others have nothing of."""
    groups = set(map(_group, others))
    return {name: value for name, value in facts.items() if _group(name) not in groups}


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()[:16]
