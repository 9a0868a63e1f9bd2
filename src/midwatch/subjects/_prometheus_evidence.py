"""Evidence of the kind `prometheus`: values now and over the last hour, alerts, targets, rules."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from ..errors import ObservationFailed
from ..model import Ticket
from ._prometheus_api import AlertRule, Line, PrometheusApi
from ._prometheus_look import alert_id, label_text
from ._text import one_line
from .base import EvidenceSource

if TYPE_CHECKING:
    from .prometheus import PrometheusSubject

_MOST_INVARIANTS = 5
_MOST_SERIES = 20
_SPARSE_POINTS = 12
_HOUR, _STEP = 3600.0, 60.0


def sources(
    subject: PrometheusSubject, tickets: Sequence[Ticket]
) -> Sequence[EvidenceSource]:
    limit = subject.settings.timeout
    shown = subject.target.shown
    desk = _Desk(subject, limit * 0.45)

    def source(
        title: str, fetch: Callable[[], Awaitable[str]], rank: int
    ) -> EvidenceSource:
        return EvidenceSource(title, shown, fetch, rank, limit)

    named = dict.fromkeys(ticket.key.invariant for ticket in tickets)
    found = []
    for name in islice(named, _MOST_INVARIANTS):
        found += [
            source(f"Definition of {name}", desk.about(name, desk.definition), 10),
            source(f"{name}: values now", desk.about(name, desk.current), 12),
            source(f"{name}: the last hour", desk.about(name, desk.history), 20),
        ]
    return [
        *found,
        source("Firing and pending alerts", desk.alerts, 15),
        source("Scrape targets that are down", desk.down, 25),
        source("Build of the server", desk.build, 80),
    ]


class _Desk:
    """Fetches and writes down. `limit` is seconds for one request; a source makes two at most."""

    def __init__(self, subject: PrometheusSubject, limit: float) -> None:
        self._api: PrometheusApi = subject.api
        self._rules = {rule.name: rule for rule in subject.settings.rules}
        self._invariants = {item.id: item for item in subject.invariants}
        self._clock = subject.clock
        self._limit = limit

    def about(
        self, name: str, tell: Callable[[str], Awaitable[str]]
    ) -> Callable[[], Awaitable[str]]:
        return lambda: tell(name)

    async def definition(self, name: str) -> str:
        if name in self._rules:
            invariant = self._invariants.get(name) or self._rules[name].invariant()
            side = "above" if invariant.above else "below"
            bound = "" if invariant.limit is None else f"\n{side}: {invariant.limit:g}"
            return f"rule: {name}\nexpr: {self._rules[name].expr}{bound}\nfor: {invariant.hold_for:g} s"
        return "\n\n".join(_rule_text(rule) for rule in await self._named(name))

    async def current(self, name: str) -> str:
        result = await self._api.query(await self._expression(name), self._limit)
        lines = [f"warning: {text}" for text in result.warnings]
        for sample in result.samples[:_MOST_SERIES]:
            lines.append(
                f"{one_line(label_text(sample.labels)) or '(no labels)'}: {sample.value:g}"
            )
        lines.append(f"{len(result.samples)} series")
        return "\n".join(lines)

    async def history(self, name: str) -> str:
        end = self._clock.now().timestamp()
        found = await self._api.query_range(
            await self._expression(name), end - _HOUR, end, _STEP, self._limit
        )
        lines = [compact(line) for line in found[:_MOST_SERIES] if line.points]
        return "\n".join([*lines, f"{len(found)} series in the last hour"])

    async def alerts(self) -> str:
        rules = await self._api.alert_rules(self._limit)
        lines = [
            f"{alert.state} {one_line(alert.name, 100)} since {one_line(alert.active_at, 40)}: "
            f"{one_line(label_text(alert.labels))}"
            for rule in rules
            for alert in rule.alerts
        ]
        lines += [
            f"health {rule.health} {one_line(rule.name, 100)}: {rule.error}"
            for rule in rules
            if rule.health != "ok"
        ]
        return "\n".join(lines[:100]) or "no alert fires, and every rule is evaluated"

    async def down(self) -> str:
        targets = await self._api.targets(self._limit)
        lines = [
            f"{target.health} {one_line(label_text(target.labels))}: {target.error}"
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
        rules = await self._api.alert_rules(self._limit)
        found = [rule for rule in rules if alert_id(rule.name) == name]
        if not found:
            raise ObservationFailed(f"the server has no rule for {name} any more")
        return found


def compact(line: Line) -> str:
    """One line: least, greatest and last value, and some points on the way."""
    values = [value for _, value in line.points]
    every = -(-len(line.points) // _SPARSE_POINTS)
    points = " ".join(f"{_clock(at)}={value:g}" for at, value in line.points[::every])
    name = one_line(label_text(line.labels)) or "(no labels)"
    return (
        f"{name}: min {min(values):g}, max {max(values):g}, last {values[-1]:g} at "
        f"{_clock(line.points[-1][0])} UTC; {points}"
    )


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M")


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
    return "\n".join(f"{name}: {one_line(value, 2000)}" for name, value in items)
