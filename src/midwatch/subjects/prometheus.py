"""The subject kind `prometheus`: a server's own firing alerts, and invariants in PromQL from the settings.

The alerts are read from ``/api/v1/rules``, which returns them together with the health of their rules;
``/api/v1/alerts`` does not distinguish an inactive rule from a failing one.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import ClassVar

from midwatch.errors import ObservationFailed, SettingsError
from midwatch.lifecycle import Clock, SystemClock
from midwatch.model import Fact, Invariant, Json, Observation, Signal, Ticket
from midwatch.subjects.base import EvidenceSource, configure
from midwatch.subjects.http import Target, basic_login
from midwatch.subjects.prometheus_alerts import AlertTally, alert_id, alert_key
from midwatch.subjects.prometheus_api import (
    Alert,
    AlertRule,
    Line,
    NotPrometheus,
    PrometheusApi,
    QueryRefused,
    Sample,
)
from midwatch.subjects.prometheus_series import Findings, SeriesTally, series_text
from midwatch.subjects.prometheus_settings import (
    INVARIANTS,
    PrometheusSettings,
    RuleSettings,
)
from midwatch.subjects.prometheus_tools import PrometheusTools
from midwatch.subjects.tools import Tool
from midwatch.text import ticket_line

# ------------------------------------------------------------------ the subject

_SHARE_OF_TIMEOUT = 0.8  # the rest is for the report
_AT_ONCE = 4  # requests to the server
Query = Callable[[float], Awaitable[Findings]]


class PrometheusSubject:
    """A Prometheus server: its alerts, and rules over its series."""

    kind: ClassVar[str] = "prometheus"
    settings_model: ClassVar[type[PrometheusSettings]] = PrometheusSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS

    def __init__(
        self, settings: PrometheusSettings, clock: Clock | None = None
    ) -> None:
        self.settings = settings
        self.name, self.timeout = settings.name, settings.timeout
        self.target = Target.of(settings.url)
        self.addresses = settings.addresses
        self.clock = clock or SystemClock()
        path = f"subjects.{settings.name}"
        own = INVARIANTS if settings.alerts else ()
        self.invariants = configure(
            (*own, *(rule.invariant() for rule in settings.rules)),
            settings.invariants,
            path,
        )
        self._token = ""
        if settings.bearer_token_file is not None:
            try:
                self._read_token(settings.bearer_token_file)
            except ObservationFailed as error:
                raise SettingsError(
                    error.message, path=f"{path}.bearer_token_file"
                ) from None
        self._web = settings.web_client(path, self.clock, keep_alive=True)
        self.api = PrometheusApi(self._web, self.target.url, self._sent_headers)

    @property
    def secrets(self) -> Sequence[str]:
        auth = self.settings.basic_auth
        values = [
            self._token,
            self.target.login[1] if self.target.login else "",
            auth.password.get_secret_value() if auth else "",
            *(value.partition(" ")[2] for value in self._static_login().values()),
            *self.settings.connection_secrets(),
        ]
        return [value for value in values if value]

    async def observe(self, previous: Json) -> Observation:
        """Observe the server. Raises ObservationFailed when it answered none of the requests."""
        if self.settings.bearer_token_file is not None:
            self._read_token(self.settings.bearer_token_file)
        deadline = self.clock.monotonic() + self.settings.timeout * _SHARE_OF_TIMEOUT
        turns = asyncio.Semaphore(_AT_ONCE)

        async def ask(query: Query) -> Findings | ObservationFailed:
            async with turns:
                try:
                    return await query(max(0.01, deadline - self.clock.monotonic()))
                except ObservationFailed as failure:
                    return failure

        queries = self._queries(previous)
        answers = await asyncio.gather(*(ask(query) for query in queries.values()))
        return _observation(dict(zip(queries, answers, strict=True)), previous)

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        return _sources(self, tickets)

    def tools(self) -> Sequence[Tool]:
        limit = self.settings.timeout
        alerts = _EvidenceReader(self, limit, ()).alerts
        return PrometheusTools(
            self.api, self.clock, limit, alerts, compact, _LABELS
        ).tools()

    async def close(self) -> None:
        await self._web.close()

    def _queries(self, previous: Json) -> dict[str, Query]:
        """Return the queries to the server, by invariant."""
        enabled = {invariant.id: invariant for invariant in self.invariants}
        queries = {
            rule.name: self._rule_query(rule, enabled[rule.name], previous)
            for rule in self.settings.rules
            if rule.name in enabled
        }
        if "alert" in enabled:
            queries["alert"] = self._alerts_query(enabled["alert"], previous)
        return queries

    def _alerts_query(self, invariant: Invariant, previous: Json) -> Query:
        async def query(timeout: float) -> Findings:
            tally = AlertTally(self.settings, invariant, _marks(previous))
            return tally.conclude(*await self.api.alert_rules(timeout, tally.add))

        return query

    def _rule_query(
        self, rule: RuleSettings, invariant: Invariant, previous: Json
    ) -> Query:
        async def query(timeout: float) -> Findings:
            tally = SeriesTally(rule, invariant, _remembered(previous, rule.name))
            return tally.conclude(await self.api.query(rule.expr, timeout, tally.add))

        return query

    # ------------------------------------------------------------------ login

    def _sent_headers(self) -> Mapping[str, str]:
        """Return the headers of a request: those of the settings replace those of a login."""
        given = self.settings.headers.items()
        headers = {name.lower(): value.get_secret_value() for name, value in given}
        if self._token:
            return {"authorization": f"Bearer {self._token}", **headers}
        return {**self._static_login(), **headers}

    def _static_login(self) -> Mapping[str, str]:
        auth = self.settings.basic_auth
        if auth is not None:
            return basic_login(auth.username, auth.password.get_secret_value())
        return self.target.login_header()

    def _read_token(self, path: Path) -> None:
        try:
            token = path.read_bytes()[:65536].decode("ascii").strip()
        except OSError as error:
            raise ObservationFailed(
                f"the token file {path} cannot be read: {error.strerror}"
            ) from None
        except UnicodeDecodeError:
            token = ""
        if not token or not token.isprintable():
            raise ObservationFailed(f"the token file {path} does not hold a token")
        self._token = token


def _observation(
    answers: Mapping[str, Findings | ObservationFailed], previous: Json
) -> Observation:
    failures = [
        answer for answer in answers.values() if isinstance(answer, ObservationFailed)
    ]
    silent = [item for item in failures if not isinstance(item, QueryRefused)]
    if silent and len(silent) == len(answers):
        raise ObservationFailed(
            f"Prometheus did not answer: {silent[0].message}", hint=silent[0].hint
        )
    signals: list[Signal] = []
    covered: set[str] = set()
    unavailable: dict[str, str] = {}
    unsupported: dict[str, str] = {}
    ignored: dict[str, tuple[str, ...]] = {}
    background: dict[str, Fact] = {}
    rules: dict[str, object] = {}
    alerts: object = previous.get("alerts") or {}
    for name, answer in answers.items():
        if isinstance(answer, ObservationFailed):
            reason = ticket_line(f"{name}: {answer.one_line()}")
            if (
                name == "alert"
                and isinstance(answer, NotPrometheus)
                and answer.status == 404
            ):
                unsupported[name] = (
                    "the server has no API for rules; set `alerts: false`, or give the URL of the ruler"
                )
            else:
                unavailable[name] = reason
            answer = Findings(remembered=_remembered(previous, name))
        elif name == "alert":
            alerts = answer.remembered
        signals += answer.signals
        covered |= answer.covered
        unavailable.update(answer.unavailable)
        unsupported.update(answer.unsupported)
        background.update(answer.background)
        if answer.ignored:
            ignored[name] = answer.ignored
        if name != "alert" and answer.remembered:
            rules[name] = answer.remembered
    return Observation(
        tuple(signals),
        frozenset(covered),
        unavailable,
        {"alerts": alerts, "rules": rules},
        background,
        unsupported,
        ignored,
    )


def _remembered(previous: Json, rule: str) -> list[str]:
    rules = previous.get("rules")
    return _strings(rules.get(rule)) if isinstance(rules, dict) else []


def _marks(previous: Json) -> dict[str, list[str]]:
    """Return the marks of the alerts that fired, by invariant; an earlier version stored a list."""
    found = previous.get("alerts")
    if isinstance(found, dict):
        return {str(name): _strings(marks) for name, marks in found.items()}
    return {"": _strings(found)}


def _strings(value: object) -> list[str]:
    """Return the strings of a list, else nothing: an older version may have stored something else."""
    return (
        [item for item in value if isinstance(item, str)]
        if isinstance(value, list)
        else []
    )


# ------------------------------------------------------------------ evidence

_MOST_INVARIANTS = 5
_MOST_SERIES = 20
_MOST_ALERTS = 80
# Labels come from what is watched: up to the last place where they can end.
_LABELS = (
    re.compile(r"(?m)^(.*): (?:[-+.\d]|NaN|Inf|min )"),
    re.compile(r"(?m)^(?:firing|pending) .*? since \S+ (.*)$"),
    re.compile(r"(?m)^(?:down|unknown) (.*): "),
)
_MOST_OF_A_RULE = 10
_SPARSE_POINTS = 12
_HOUR, _STEP = 3600.0, 60.0


def _sources(
    subject: PrometheusSubject, tickets: Sequence[Ticket]
) -> Sequence[EvidenceSource]:
    limit = subject.settings.timeout
    shown = subject.target.shown
    keys = {(ticket.key.invariant, ticket.key.component) for ticket in tickets}
    reader = _EvidenceReader(subject, limit * 0.45, keys)

    def source(
        title: str, fetch: Callable[[], Awaitable[str]], rank: int
    ) -> EvidenceSource:
        return EvidenceSource(title, shown, fetch, rank, limit, reported=_LABELS)

    named = dict.fromkeys(
        ticket.key.invariant
        for ticket in tickets
        if ticket.key.invariant.startswith("alert:")
        or ticket.key.invariant in reader.rules
    )
    found = []
    for name in islice(named, _MOST_INVARIANTS):
        found += [
            source(f"Definition of {name}", reader.about(name, reader.definition), 10),
            source(f"{name}: values now", reader.about(name, reader.current), 12),
            source(f"{name}: the last hour", reader.about(name, reader.history), 20),
        ]
    return [
        *found,
        source("Firing and pending alerts", reader.alerts, 15),
        source("Scrape targets that are down", reader.down, 25),
        source("Build of the server", reader.build, 80),
    ]


class _EvidenceReader:
    """Fetches evidence as text.

    `limit` is the timeout of one request in seconds; a source makes two at most. `keys` are the
    invariants and components of the tickets.
    """

    def __init__(
        self,
        subject: PrometheusSubject,
        limit: float,
        keys: Collection[tuple[str, str]],
    ) -> None:
        self._api: PrometheusApi = subject.api
        self.rules = {rule.name: rule for rule in subject.settings.rules}
        self.invariants = {item.id: item for item in subject.invariants}
        self._severity_label = subject.settings.severity_label
        self._clock = subject.clock
        self._limit = limit
        self._keys = keys

    def about(
        self, name: str, fetch: Callable[[str], Awaitable[str]]
    ) -> Callable[[], Awaitable[str]]:
        return lambda: fetch(name)

    async def definition(self, name: str) -> str:
        if name in self.rules:
            invariant = self.invariants.get(name) or self.rules[name].invariant()
            side = "above" if invariant.above else "below"
            bound = "" if invariant.limit is None else f"\n{side}: {invariant.limit:g}"
            return f"rule: {name}\nexpr: {self.rules[name].expr}{bound}\nfor: {invariant.hold_for:g} s"
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

    async def history(self, name: str) -> str:
        end = self._clock.now().timestamp()
        found = await self._api.query_range(
            await self._expression(name), end - _HOUR, end, _STEP, self._limit
        )
        lines = [compact(line) for line in found[:_MOST_SERIES] if line.points]
        return "\n".join([*lines, f"{len(found)} series in the last hour"])

    async def alerts(self) -> str:
        ours: list[Alert] = []
        others: list[Alert] = []
        names: Counter[str] = Counter()
        broken = {invariant for invariant, _ in self._keys}

        def take(alert: Alert) -> None:
            if alert.state == "inactive":
                return
            names[alert.name] += 1
            if (
                alert_id(alert.name) in broken
                and alert_key(alert, self._severity_label) in self._keys
            ):
                ours.append(alert)
            elif names[alert.name] <= _MOST_OF_A_RULE and len(others) < _MOST_ALERTS:
                others.append(alert)

        rules, remarks = await self._api.alert_rules(self._limit, take)
        lines = [f"incomplete: {text}" for text in remarks.incomplete]
        lines += [
            f"{alert.state} {ticket_line(alert.name, 100)} since {ticket_line(alert.active_at, 40)}: "
            f"{_shown(alert.labels)}"
            for alert in [*ours[:_MOST_ALERTS], *others]
        ]
        if (rest := names.total() - len(ours) - len(others)) > 0:
            shown = ", ".join(f"{name} ×{n:,}" for name, n in names.most_common(10))
            lines.append(f"and {rest:,} more; in all {ticket_line(shown)}")
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
        if name in self.rules:
            return self.rules[name].expr
        return (await self._named(name))[0].query

    async def _named(self, name: str) -> list[AlertRule]:
        rules, _ = await self._api.alert_rules(self._limit, lambda alert: None)
        found = [rule for rule in rules if alert_id(rule.name) == name]
        if not found:
            raise ObservationFailed(f"the server has no rule for {name} any more")
        return found


def compact(line: Line) -> str:
    """Return one line: least, greatest and last value, and some points between."""
    values = [value for _, value in line.points]
    every = -(-len(line.points) // _SPARSE_POINTS)
    points = " ".join(f"{_clock(at)}={value:g}" for at, value in line.points[::every])
    return (
        f"{_shown(line.labels)}: min {min(values):g}, max {max(values):g}, last {values[-1]:g} at "
        f"{_clock(line.points[-1][0])} UTC; {points}"
    )


def _shown(labels: Mapping[str, str]) -> str:
    return ticket_line(series_text(labels)) or "(no labels)"


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
    return "\n".join(f"{name}: {ticket_line(value, 2000)}" for name, value in items)
