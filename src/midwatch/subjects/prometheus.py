"""The subject kind `prometheus`: a server's own firing alerts, and invariants in PromQL from the settings.

The alerts are read from ``/api/v1/rules``, which returns them together with the health of their rules;
``/api/v1/alerts`` does not distinguish an inactive rule from a failing one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from midwatch.errors import ObservationFailed
from midwatch.lifecycle import Clock, SystemClock
from midwatch.model import Fact, Invariant, Json, Observation, Signal, Ticket
from midwatch.subjects.base import EvidenceSource, configure
from midwatch.subjects.http import Target
from midwatch.subjects.prometheus_alerts import AlertTally
from midwatch.subjects.prometheus_api import (
    NotPrometheus,
    PrometheusApi,
    QueryRefused,
)
from midwatch.subjects.prometheus_evidence import LABELS, EvidenceReader, compact
from midwatch.subjects.prometheus_series import Findings, SeriesTally
from midwatch.subjects.prometheus_settings import (
    INVARIANTS,
    PrometheusSettings,
    RuleSettings,
)
from midwatch.subjects.prometheus_silences import SilenceReader, Silences
from midwatch.subjects.prometheus_tools import PrometheusTools
from midwatch.subjects.tools import Tool
from midwatch.subjects.web_login import WebLogin
from midwatch.text import ticket_line

# ------------------------------------------------------------------ the subject

_SHARE_OF_TIMEOUT = 0.8  # the rest is for the report
_SHARE_OF_SILENCES = 0.5  # of the time that the alerts left
_LONGEST_AWAITED = 1.0  # seconds
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
        self._login = WebLogin(settings, self.target, path)
        self._web = settings.web_client(path, self.clock, keep_alive=True)
        self.api = PrometheusApi(self._web, self.target.url, self._login.headers)
        self._silences = SilenceReader(
            settings, self.api, self._web, self._login, path, self.clock
        )

    @property
    def secrets(self) -> Sequence[str]:
        return [*self._login.secrets, *self._silences.secrets]

    async def observe(self, previous: Json) -> Observation:
        """Observe the server. Raises ObservationFailed when it answered none of the requests."""
        self._login.refresh()
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
        reader = EvidenceReader(
            self.api, self.settings, self.invariants, self.clock, tickets
        )
        return reader.sources(self.target.shown)

    def tools(self) -> Sequence[Tool]:
        limit = self.settings.timeout
        reader = EvidenceReader(
            self.api, self.settings, self.invariants, self.clock, ()
        )
        return PrometheusTools(
            self.api, self.clock, limit, reader.alerts, compact, LABELS
        ).tools()

    async def close(self) -> None:
        await self._web.close()
        await self._silences.close()

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
        before = _marks(previous), _strings(previous.get("silenced"))

        async def query(timeout: float) -> Findings:
            deadline = self.clock.monotonic() + timeout
            tally = AlertTally(self.settings, invariant, *before)
            answer = await self.api.alert_rules(timeout, tally.add)
            # The first observation asks also if nothing fires, so that `midwatch check` tells what does not work.
            if not self._silences.enabled or (previous and not tally.names):
                return tally.conclude(*answer)
            silences = await self._read_silences(tally, deadline)
            if silences and not tally.silence(silences):
                # Of a storm only the most urgent were kept, and those may be silenced.
                again = AlertTally(self.settings, invariant, *before, silences)
                left = max(0.01, deadline - self.clock.monotonic())
                try:
                    answer = await self.api.alert_rules(left, again.add)
                    tally = again
                except ObservationFailed:
                    pass  # the rest counts as firing
            findings = tally.conclude(*answer)
            told = {"silences": silences.problem} if silences.problem else {}
            return replace(findings, unsupported={**findings.unsupported, **told})

        return query

    async def _read_silences(self, tally: AlertTally, deadline: float) -> Silences:
        """Return what is silenced. Prometheus sends an alert a moment after it fires: what is not there yet is awaited."""
        began = self.clock.monotonic()
        until = began + (deadline - began) * _SHARE_OF_SILENCES
        silences = await self._silences.read(tally.names, until)
        if tally.awaited(silences):
            left = until - self.clock.monotonic()
            await self.clock.sleep(max(0.0, min(_LONGEST_AWAITED, left / 2)))
            silences = await self._silences.read(tally.names, until)
        return silences

    def _rule_query(
        self, rule: RuleSettings, invariant: Invariant, previous: Json
    ) -> Query:
        async def query(timeout: float) -> Findings:
            tally = SeriesTally(rule, invariant, _remembered(previous, rule.name))
            return tally.conclude(await self.api.query(rule.expr, timeout, tally.add))

        return query


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
    silenced = _strings(previous.get("silenced"))
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
            alerts, silenced = answer.remembered, [*answer.silenced]
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
        {
            "alerts": alerts,
            "rules": rules,
            **({"silenced": silenced} if silenced else {}),
        },
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
