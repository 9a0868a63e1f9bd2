"""The series of an expression as signals, and the names of series as components.

An invariant in PromQL is known for a series that exists. A series that was broken and is gone is kept in
the state and stays unknown until it returns, unless its rule has ``absent: clear``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from midwatch.model import Fact, Facts, Invariant, Json, Signal
from midwatch.subjects.prometheus_api import Remarks, Sample
from midwatch.subjects.prometheus_settings import RuleSettings
from midwatch.text import component_name, ticket_line
from midwatch.units import format_value

MAX_SERIES = 1000  # of one rule
MAX_BROKEN = 40
"""Broken series that have a ticket each; of more than these, a storm, only `IN_A_STORM` do."""
IN_A_STORM = 10
MAX_REMEMBERED = 200  # broken or gone
MORE = "more"
"""The component of the one signal that stands for all that have none of their own."""
MOST_LABELS = 100
"""Labels of an alert or a series that are facts."""
_MOST_IGNORED = 10  # named ones
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
_NAME = re.compile(r"[\w.:/-]+")


@dataclass(frozen=True, slots=True)
class Findings:
    """What one query showed: a part of an `Observation`, and what the next query needs."""

    signals: tuple[Signal, ...] = ()
    covered: frozenset[str] = frozenset()
    unavailable: Mapping[str, str] = field(default_factory=dict)
    unsupported: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    background: Mapping[str, Fact] = field(default_factory=dict)
    remembered: Json | list[str] = field(default_factory=list)
    silenced: tuple[str, ...] = ()


class SeriesTally:
    """Takes the series of a rule one by one, in bounded memory, and concludes with signals.

    `before` are the components that were broken, or gone since, when last observed. Where several series
    have one component, the worst counts.
    """

    def __init__(
        self, rule: RuleSettings, invariant: Invariant, before: Collection[str]
    ) -> None:
        self._rule, self._invariant = rule, invariant
        self._before = frozenset(before)
        self._samples: dict[str, Sample] = {}
        self._more_broken = 0
        self._ignored: set[str] = set()  # some of them
        self._ignored_count = 0

    def add(self, sample: Sample) -> None:
        """Take one series."""
        name = component(self._rule, sample.labels)
        if self._invariant.ignores(sample.labels):
            self._ignored_count += 1
            if name in self._before or len(self._ignored) < _MOST_IGNORED:
                self._ignored.add(name)
            return
        known = self._samples.get(name)
        if known is None or self._badness(sample) > self._badness(known):
            self._samples[name] = sample
        if len(self._samples) > 4 * MAX_SERIES:
            self._prune(MAX_SERIES)

    def _prune(self, most: int) -> None:
        """Keep those that were broken before and the worst, `most` in all; count the broken ones left out."""
        if len(self._samples) <= most:
            return
        ranked = sorted(self._samples, key=self._urgency)
        for name in ranked[most:]:
            self._more_broken += self._holds(self._samples[name]) is False
        self._samples = {name: self._samples[name] for name in ranked[:most]}

    def _urgency(self, name: str) -> tuple[bool, float]:
        return name not in self._before, -self._badness(self._samples[name])

    def conclude(self, remarks: Remarks) -> Findings:
        """Return a signal for each series that counts. One with neither `value` nor `holds` is unknown."""
        rule = self._rule
        self._prune(MAX_SERIES)
        gone: list[str] = []
        missing = ""
        if rule.absent == "unknown" and self._invariant.limit is not None:
            gone = sorted(self._before - self._samples.keys() - self._ignored)
            if not self._samples and not self._ignored and not remarks.incomplete:
                missing = (
                    f"the expression of {rule.name} returns no series; correct it, or set `absent: clear` "
                    "if it returns some only when something is wrong"
                )
        partial = "; ".join(remarks.incomplete)
        reason = ticket_line(f"partial answer: {partial}") if partial else ""
        broken = self._most_broken(MAX_REMEMBERED - len(gone))
        signals = [
            self._signal(name, sample)
            for name, sample in self._samples.items()
            if name in broken or self._counts(sample)
        ]
        signals += [
            Signal(rule.name, name, f"{rule.name}: {name} was broken and is gone")
            for name in gone
        ]
        if self._more_broken:
            signals.append(self._more())
        return Findings(
            signals=tuple(signals),
            covered=frozenset() if reason or missing else frozenset({rule.name}),
            unavailable={rule.name: reason} if reason else {},
            unsupported={rule.name: missing} if missing else {},
            ignored=self._left_out(),
            remembered=sorted([*broken, *gone]),
        )

    def _most_broken(self, room: int) -> frozenset[str]:
        """Return the broken components that have signals of their own, and count the others.

        One that was broken and is not a number now is unknown, and remembered like a broken one.
        """
        found = [
            name
            for name, sample in self._samples.items()
            if (holds := self._holds(sample)) is False
            or (holds is None and name in self._before and self._counts(sample))
        ]
        storm = len(found) + self._more_broken > MAX_BROKEN
        most = max(
            sum(name in self._before for name in found),  # these have tickets
            min(IN_A_STORM if storm else MAX_BROKEN, room),
        )
        found.sort(key=self._urgency)
        for name in found[most:]:
            del self._samples[name]
            self._more_broken += 1
        return frozenset(found[:most])

    def _counts(self, sample: Sample) -> bool:
        return self._holds(sample) is not None or self._rule.absent == "unknown"

    def _holds(self, sample: Sample) -> bool | None:
        """Return whether a series is within the limit; None where they cannot be compared."""
        limit = self._invariant.limit
        if limit is None:
            return False
        if math.isnan(sample.value):
            return None
        return sample.value <= limit if self._invariant.above else sample.value >= limit

    def _badness(self, sample: Sample) -> float:
        if math.isnan(sample.value):
            return -math.inf
        return sample.value if self._invariant.above else -sample.value

    def _signal(self, name: str, sample: Sample) -> Signal:
        rule, invariant = self._rule, self._invariant
        # JSON and databases have no infinity: such a value is in the message only.
        finite = math.isfinite(sample.value)
        shown = (
            format_value(sample.value, invariant.unit)
            if finite
            else f"{sample.value:+f}".upper()
        )
        if rule.message:
            message = fill(rule.message, {**sample.labels, "value": shown})
        else:
            message = f"{rule.name}: {name} is {shown}{self._limit_text()}"
        facts: Facts = {
            "expr": ticket_line(rule.expr, 1000),
            "value": shown,
            **label_facts(sample.labels),
        }
        return Signal(
            invariant=rule.name,
            component=name,
            message=ticket_line(message),
            value=sample.value if finite else None,
            holds=self._holds(sample),
            facts=facts,
        )

    def _more(self) -> Signal:
        message = f"{self._rule.name}: and {self._more_broken:,} more series are broken{self._limit_text()}"
        return Signal(
            self._rule.name,
            MORE,
            message,
            holds=False,
            facts={
                "series": self._more_broken,
                "expr": ticket_line(self._rule.expr, 1000),
            },
        )

    def _limit_text(self) -> str:
        limit = self._invariant.limit
        if limit is None:
            return ""
        return f" (limit {format_value(limit, self._invariant.unit)})"

    def _left_out(self) -> tuple[str, ...]:
        names = sorted(self._ignored)[:_MOST_IGNORED]
        rest = self._ignored_count - len(names)
        return (*names, *([f"{rest:,} more series"] if rest > 0 else []))


# ------------------------------------------------------------------ names


def component(rule: RuleSettings, labels: Mapping[str, str]) -> str:
    """Return the component of a series: as the rule has it, else its metric's name and all its labels."""
    match rule.component:
        case str() as template:
            return component_name(fill(template, labels)) or rule.name
        case list() as names:
            text = label_text({name: labels.get(name, "") for name in names})
        case _:
            text = series_text(labels)
    return component_of(text, rule.name)


def component_of(text: str, default: str) -> str:
    """Return `text` as a component. Two texts that differ only in what a component cannot show stay different."""
    name = component_name(text)
    if not name:
        return default
    if name == text or "…~" in name:
        return name
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
    return f"{name[:180]}~{digest}"


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return `template` with its {names} replaced; a name without a value becomes "".

    A name of UTF-8 is one if there is such a value: {service.name}, {my label}. Other text in braces stays.
    """

    def value(match: re.Match[str]) -> str:
        missing = "" if _NAME.fullmatch(match[1]) else match[0]
        return values.get(match[1], missing)

    return _PLACEHOLDER.sub(value, template)


def series_text(labels: Mapping[str, str]) -> str:
    """Return `up{instance=a, job=b}`, or the labels alone where the series has no name."""
    name = labels.get("__name__", "")
    text = label_text({key: labels[key] for key in labels if key != "__name__"})
    return f"{name}{{{text}}}" if name and text else name or text


def label_text(labels: Mapping[str, str]) -> str:
    """Return `instance=a, job=b`, in the order of the names; a value that could be read as more than one is quoted."""
    return ", ".join(f"{name}={_value(labels[name])}" for name in sorted(labels))


def _value(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if _AMBIGUOUS(value) else value


_LONGEST_ADDRESS = 1000
_AMBIGUOUS = re.compile(r'["{}]|, |^\s|\s$').search


def runbook_fact(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return the address of an alert's runbook as a fact, if its annotations name one."""
    runbook = annotations.get("runbook_url")
    return {"runbook_url": ticket_line(runbook, _LONGEST_ADDRESS)} if runbook else {}


def label_facts(labels: Mapping[str, str]) -> Facts:
    """Return labels as facts, which matchers of silences and routes read; and how many are left out, if any."""
    found: Facts = {
        f"label_{ticket_line(name, 60)}": ticket_line(value, 200)
        for name, value in sorted(labels.items())[:MOST_LABELS]
    }
    if (rest := len(labels) - MOST_LABELS) > 0:
        found = {**found, "labels_left_out": rest}
    return found
