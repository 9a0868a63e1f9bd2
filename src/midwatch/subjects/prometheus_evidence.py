"""Evidence of a Prometheus server: an alert's expression without its comparison, its target, and other alerts."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice

from midwatch.errors import ObservationFailed
from midwatch.lifecycle import Clock
from midwatch.model import Invariant, Ticket
from midwatch.subjects.base import EvidenceSource
from midwatch.subjects.prometheus_alerts import alert_id, alert_key
from midwatch.subjects.prometheus_api import (
    Alert,
    AlertRule,
    Line,
    PrometheusApi,
    Sample,
)
from midwatch.subjects.prometheus_series import series_text
from midwatch.subjects.prometheus_settings import PrometheusSettings
from midwatch.subjects.promql import Compared, compared, metrics, parts_of
from midwatch.text import ticket_line
from midwatch.units import parse_time

_MOST_INVARIANTS = 5
_MOST_SERIES = 20
_MOST_ALERTS = 80
_MOST_OF_A_RULE = 10
_MOST_METRICS = 3  # that are named with an alert
_SPARSE_POINTS = 10
_POINTS = 120
_HOUR, _LONGEST = 3600.0, 24 * 3600.0
_RECENT = 900.0  # seconds of the trend

# Labels come from what is watched: up to the last place where they can end.
LABELS = (
    re.compile(
        r"(?m)^(.*): (?:[-+.\d]|NaN|Inf|none|last |not a number|started |counts |gone |new )"
    ),
    re.compile(r"(?m)^(?:firing|pending) .*? since \S+ (.*)$"),
    re.compile(r"(?m)^(?:down|unknown) (.*): "),
)

_PLACES = ("instance", "pod", "node", "host", "hostname", "nodename", "container")
"""Labels that name one target; `job` and `namespace` tell two of one name apart."""


class EvidenceReader:
    """Fetches evidence on tickets as text. A source makes three requests at once at most, within its timeout."""

    def __init__(
        self,
        api: PrometheusApi,
        settings: PrometheusSettings,
        invariants: Sequence[Invariant],
        clock: Clock,
        tickets: Sequence[Ticket],
    ) -> None:
        self._api = api
        self._rules = {rule.name: rule for rule in settings.rules}
        self._invariants = {item.id: item for item in invariants}
        self._severity_label = settings.severity_label
        self._clock = clock
        self._timeout = settings.timeout
        self._limit = settings.timeout * 0.45  # two requests, one after the other
        self._tickets = tickets
        self._keys = {(one.key.invariant, one.key.component) for one in tickets}

    def sources(self, shown: str) -> list[EvidenceSource]:
        """Return the sources. `shown` is the URL of the server, without secrets."""

        def source(
            title: str, fetch: Callable[[], Awaitable[str]], rank: int
        ) -> EvidenceSource:
            return EvidenceSource(
                title, shown, fetch, rank, self._timeout, reported=LABELS
            )

        named = dict.fromkeys(
            name
            for name in (one.key.invariant for one in self._tickets)
            if name.startswith("alert:") or name in self._rules
        )
        found = []
        for name in islice(named, _MOST_INVARIANTS):
            found += [
                source(f"Definition of {name}", _about(name, self.definition), 10),
                source(f"{name}: values now", _about(name, self.current), 12),
                source(f"{name}: over time", _about(name, self.history), 14),
                source(f"{name}: its largest parts", _about(name, self.parts), 16),
            ]
        target = next(filter(None, map(target_of, self._tickets)), {})
        if target:
            selector = _selector(target)
            found.append(
                source(
                    f"Other series of {ticket_line(selector, 90)}",
                    lambda: self.neighbours(selector),
                    22,
                )
            )
        return [
            *found,
            source("Firing and pending alerts", self.alerts, 15),
            source("Scrape targets that are down", self.down, 18),
            source("Build of the server", self.build, 80),
        ]

    # ------------------------------------------------------------------ the rule

    async def definition(self, name: str) -> str:
        if name in self._rules:
            rule = self._rules[name]
            invariant = self._invariants.get(name) or rule.invariant()
            side = "above" if invariant.above else "below"
            bound = "" if invariant.limit is None else f"\n{side}: {invariant.limit:g}"
            return (
                f"rule: {name}\nexpr: {rule.expr}{bound}\nfor: {invariant.hold_for:g} s"
            )
        return "\n\n".join(_rule_text(rule) for rule in await self._named(name))

    async def current(self, name: str) -> str:
        samples: list[Sample] = []
        count = 0

        def take(sample: Sample) -> None:
            nonlocal count
            count += 1
            if count <= _MOST_SERIES:
                samples.append(sample)

        expr = await self._expression(name)
        remarks = await self._api.query(expr, self._limit, take)
        return "\n".join(
            [
                *(f"incomplete: {text}" for text in remarks.incomplete),
                *(f"warning: {text}" for text in remarks.advice),
                *(f"{_shown(one.labels)}: {one.value:g}" for one in samples),
                f"{count} series",
            ]
        )

    async def parts(self, name: str) -> str:
        """Return the largest series of an aggregate, which has lost the labels that tell them apart."""
        expr = parts_of(await self._expression(name))
        if not expr:
            return "the expression adds nothing up"
        samples: list[Sample] = []
        await self._api.query(expr, self._limit, samples.append)
        samples.sort(key=lambda one: -one.value)
        lines = [f"{_selector(one.labels)}: {one.value:g}" for one in samples[:10]]
        return "\n".join([f"expr: {ticket_line(expr, 500)}", *lines])

    async def history(self, name: str) -> str:
        """Return the series without the comparison of the alert: when it became true, and where they go."""
        parts = self._without_comparison(name, await self._expression(name))
        wanted = [labels_of(one) for one in self._tickets if one.key.invariant == name]
        end = self._clock.now().timestamp()
        onset = min(*map(self._onset, self._tickets), end)
        span = min(end - onset + _HOUR, _LONGEST)
        step = max(15.0, math.ceil(span / _POINTS))
        start = end - step * math.ceil(span / step)  # so that the last point is now

        async def one(part: Compared) -> list[str]:
            found = await self._api.query_range(
                *(part.expr, start, end, step, self._limit),
                keep=lambda line: bool(line.points) and _fits(line.labels, wanted),
            )
            lines = [over_time(line, part, step) for line in found[:_MOST_SERIES]]
            head = f"expr: {ticket_line(part.expr, 500)}"
            return [head, *lines, f"{len(found)} series of these labels"]

        texts = await asyncio.gather(*map(one, parts), return_exceptions=True)
        failures = [text for text in texts if isinstance(text, BaseException)]
        if len(failures) == len(texts):
            raise failures[0]
        return "\n".join(
            line
            for text in texts
            for line in (
                text
                if isinstance(text, list)
                else [ticket_line(f"unavailable: {text}")]
            )
        )

    def _without_comparison(self, name: str, expr: str) -> list[Compared]:
        invariant = self._invariants.get(name)
        if name in self._rules and invariant is not None:
            if invariant.limit is not None:
                return [
                    Compared(expr, ">" if invariant.above else "<", invariant.limit)
                ]
        return compared(expr)[:3]

    @staticmethod
    def _onset(ticket: Ticket) -> float:
        """Return when an alert became active, in Unix seconds."""
        return (
            parse_time(ticket.facts.get("active_at")) or ticket.first_seen_at
        ).timestamp()

    # ------------------------------------------------------------------ the target

    async def neighbours(self, selector: str) -> str:
        """Return the series of the same target: whether it is up, and what changed most in the last hour."""
        texts = (selector, f"{selector} offset 10m", f"{selector} offset 1h")
        now, ten, hour = await asyncio.gather(*map(self._values, texts))
        lines = [
            _change(name, now.get(name), ten.get(name), hour.get(name))
            for name in {**hour, **now}
        ]
        ranked = sorted(filter(None, lines), key=lambda item: (-item[0], item[1]))
        shown = [text for score, text in ranked if score > 0][:_MOST_SERIES]
        return "\n".join([*shown, f"{len(now)} series now, {len(hour)} an hour ago"])

    async def _values(self, expr: str) -> dict[str, float]:
        found: dict[str, float] = {}

        def take(sample: Sample) -> None:
            name = sample.labels.get("__name__", "")
            if len(found) < 5000 and not _DULL.search(name):
                kept = {k: v for k, v in sample.labels.items() if k not in _OF_TARGET}
                found[_shown(kept)] = sample.value

        await self._api.query(expr, self._limit, take)
        return found

    async def alerts(self) -> str:
        ours: list[Alert] = []
        near: list[Alert] = []
        others: list[Alert] = []
        names: Counter[str] = Counter()
        places = {place for one in self._tickets for place in places_of(labels_of(one))}

        def take(alert: Alert) -> None:
            if alert.state == "inactive":
                return
            names[alert.name] += 1
            if alert_key(alert, self._severity_label) in self._keys:
                ours.append(alert)
            elif places & places_of(alert.labels) and len(near) < _MOST_ALERTS:
                near.append(alert)
            elif names[alert.name] <= _MOST_OF_A_RULE and len(others) < _MOST_ALERTS:
                others.append(alert)

        rules, remarks = await self._api.alert_rules(self._limit, take)
        about = {rule.name: metrics(rule.query)[:_MOST_METRICS] for rule in rules}
        lines = [f"incomplete: {text}" for text in remarks.incomplete]
        for group, mark in ((ours, ""), (near, "; same target"), (others, "")):
            group.sort(key=lambda alert: (alert.active_at, alert.name))
            lines += [
                _alert_text(alert, about.get(alert.name, [])) + mark
                for alert in group[:_MOST_ALERTS]
            ]
        shown = len(ours[:_MOST_ALERTS]) + len(near) + len(others)
        if (rest := names.total() - shown) > 0:
            counts = ", ".join(f"{name} ×{n:,}" for name, n in names.most_common(10))
            lines.append(f"and {rest:,} more; in all {ticket_line(counts)}")
        lines += [
            f"health {rule.health} {ticket_line(rule.name, 100)}: {rule.error}"
            for rule in rules
            if rule.health != "ok"
        ][:_MOST_ALERTS]
        return "\n".join(lines) or "no alert fires, and every rule is evaluated"

    async def down(self) -> str:
        targets = await self._api.targets(self._limit)
        lines = [
            f"{target.health} {_shown(target.labels)}: {target.error}"
            for target in targets
            if target.health != "up"
        ]
        return "\n".join(
            [*lines[:50], f"{len(lines)} of {len(targets)} targets not up"]
        )

    async def build(self) -> str:
        found = await self._api.build(self._limit)
        return _pairs(sorted(found.items()))

    async def _expression(self, name: str) -> str:
        if name in self._rules:
            return self._rules[name].expr
        return (await self._named(name))[0].query

    async def _named(self, name: str) -> list[AlertRule]:
        rules, _ = await self._api.alert_rules(self._limit, lambda alert: None)
        found = [rule for rule in rules if alert_id(rule.name) == name]
        if not found:
            raise ObservationFailed(f"the server has no rule for {name} any more")
        return found


def _about(
    name: str, fetch: Callable[[str], Awaitable[str]]
) -> Callable[[], Awaitable[str]]:
    return lambda: fetch(name)


# ------------------------------------------------------------------ labels (pure)

_OF_TARGET = frozenset((*_PLACES, "job", "namespace"))


def labels_of(ticket: Ticket) -> dict[str, str]:
    """Return the labels that the facts of a ticket have."""
    return {
        name.removeprefix("label_"): str(value)
        for name, value in ticket.facts.items()
        if name.startswith("label_")
    }


def target_of(ticket: Ticket) -> dict[str, str]:
    """Return the labels that name the target of a ticket, or nothing."""
    labels = labels_of(ticket)
    if not any(labels.get(name) for name in _PLACES):
        return {}
    return {name: labels[name] for name in sorted(_OF_TARGET) if labels.get(name)}


def places_of(labels: Mapping[str, str]) -> set[str]:
    """Return the machines and pods that labels name, without ports: exporters of one machine differ in these."""
    found = {labels[name] for name in _PLACES if labels.get(name)}
    return {re.sub(r":\d+$", "", place).lower() for place in found}


def _selector(labels: Mapping[str, str]) -> str:
    matchers = (
        f"{name}={json.dumps(value, ensure_ascii=False)}"
        for name, value in labels.items()
    )
    return "{" + ", ".join(matchers) + "}"


def _fits(labels: Mapping[str, str], wanted: Sequence[Mapping[str, str]]) -> bool:
    """Return whether a series can be that of an alert: no label that both have differs."""
    return not wanted or any(
        all(
            one.get(name, value) == value
            for name, value in labels.items()
            if name != "__name__"
        )
        for one in wanted
    )


# ------------------------------------------------------------------ as text (pure)


def over_time(line: Line, part: Compared, step: float) -> str:
    """Return one series: since when the comparison is true, its range, its trend, and some points."""
    points = [(at, value) for at, value in line.points if not math.isnan(value)]
    if not points:
        return f"{_shown(line.labels)}: not a number"
    values = [value for _, value in points]
    last_at, last = points[-1]
    texts = [f"last {last:g} at {_clock(last_at)} UTC"]
    texts.append(f"min {min(values):g}, max {max(values):g}")
    if part.limit is not None:
        texts.append(_since(points, part))
    elif (
        line.points[0][0] + step < last_at
        and len(points) < (last_at - points[0][0]) / step * 0.9
    ):
        texts.append("with gaps")
    if trend := _trend(points):
        texts.append(trend)
    every = -(-len(points) // _SPARSE_POINTS)
    sparse = " ".join(f"{_clock(at)}={value:g}" for at, value in points[::every])
    return f"{_shown(line.labels)}: {'; '.join(texts)}; {sparse}"


def compact(line: Line) -> str:
    """Return one series that is not compared with anything."""
    return over_time(line, Compared(""), math.inf)


def _since(points: Sequence[tuple[float, float]], part: Compared) -> str:
    """Return since when a comparison is true without a break."""
    condition = f"{part.operator} {part.limit:g}"
    if not part.holds(points[-1][1]):
        return f"not {condition} now"
    first = len(points) - 1
    while first and part.holds(points[first - 1][1]):
        first -= 1
    at, value = points[first]
    if not first:
        return f"{condition} since before {_clock(at)} UTC"
    before_at, before = points[first - 1]
    return f"{condition} since {_clock(at)} UTC ({before:g} at {_clock(before_at)}, then {value:g})"


def _trend(points: Sequence[tuple[float, float]]) -> str:
    """Return how much a series changes a minute, over the last quarter of an hour."""
    end = points[-1][0]
    recent = [(at, value) for at, value in points if at >= end - _RECENT]
    if len(recent) < 3 or recent[-1][0] - recent[0][0] < 60:
        return ""
    minutes = (recent[-1][0] - recent[0][0]) / 60
    slope = (recent[-1][1] - recent[0][1]) / minutes
    if math.isinf(slope) or math.isnan(slope):
        return ""
    return (
        f"trend {slope:+.3g} a minute over {minutes:.0f} minutes" if slope else "steady"
    )


_DULL = re.compile(r"^(?:go_|promhttp_|scrape_(?!duration)|process_virtual)|_bucket$")
_COUNTER = re.compile(r"_(?:total|count|sum)\b")


def _change(
    name: str, now: float | None, ten: float | None, hour: float | None
) -> tuple[float, str] | None:
    """Return how much a series changed, between 0 and 3, and a line; the rate of a counter is compared, not its value."""
    if name.startswith("up") and not name.startswith("up_"):
        return (
            3.0,
            f"{name}: {_value(now)} now, {_value(ten)} 10 minutes ago, {_value(hour)} an hour ago",
        )
    if "process_start_time_seconds" in name and now is not None:
        started = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S")
        again = ", it was started again" if hour is not None and hour != now else ""
        return (2.5 if again else 0.5), f"{name}: started {started} UTC{again}"
    if now is None or hour is None:
        gone = "gone now" if now is None else "new within the hour"
        return 0.3, f"{name}: {gone}, {_value(hour if now is None else now)}"
    if _COUNTER.search(name) and ten is not None:
        if not 0 <= ten - hour or not 0 <= now - ten:
            return 0.2, f"{name}: counts from the start again"
        recent, before = (now - ten) / 10, (ten - hour) / 50
        return (
            _relative(recent, before),
            f"{name}: {recent:.4g} a minute in the last 10 minutes, {before:.4g} before",
        )
    return (
        _relative(now, hour),
        f"{name}: {now:g} now, {_value(ten)} 10 minutes ago, {hour:g} an hour ago",
    )


def _relative(now: float, before: float) -> float:
    """Return 0 for no change, 1 for one from or to nothing."""
    if math.isnan(now) or math.isnan(before) or now == before:
        return 0.0
    share = abs(now - before) / (abs(now) + abs(before))
    return 0.0 if math.isnan(share) or share < 0.05 else share


def _value(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _alert_text(alert: Alert, about: Sequence[str]) -> str:
    on = f"; on {ticket_line(', '.join(about), 150)}" if about else ""
    return (
        f"{alert.state} {ticket_line(alert.name, 100)} since {ticket_line(alert.active_at, 40)}: "
        f"{_shown(alert.labels)}{on}"
    )


def _shown(labels: Mapping[str, str]) -> str:
    return ticket_line(series_text(labels)) or "(no labels)"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def _rule_text(rule: AlertRule) -> str:
    return _pairs(
        (
            ("alert", rule.name),
            ("group", rule.group),
            ("expr", rule.query),
            ("for", f"{rule.duration:g} s"),
            ("health", rule.health),
            ("last error", rule.error or "none"),
        )
    )


def _pairs(items: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name}: {ticket_line(value, 2000)}" for name, value in items)
