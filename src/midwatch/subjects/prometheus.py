"""The subject kind `prometheus`: a server's own firing alerts, and PromQL invariants of ours.

An alerting rule of the server is the invariant ``alert:NAME``, so that a rule whose evaluation fails
makes only that alert unknown: all alerts are covered ("*") but those named in `unavailable`. The
alerts are read from ``/api/v1/rules``, which tells them together with the health of their rules;
``/api/v1/alerts`` alone cannot tell a quiet rule from a failing one.

A PromQL invariant is known for a series that is there. A series that was broken and is gone is
kept in the state and stays unknown until it returns, unless its rule says ``absent: clear``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from ..errors import ObservationFailed, SettingsError
from ..lifecycle import Clock, SystemClock
from ..model import Invariant, Json, Observation, Ticket
from ._http_target import Target, basic_login
from ._prometheus_api import PrometheusApi, QueryRefused
from ._prometheus_look import Seen, alerts_seen, rule_seen
from ._prometheus_settings import INVARIANTS, PrometheusSettings, RuleSettings
from ._text import one_line
from ._web import WebClient
from .base import EvidenceSource
from .configure import configure

_SHARE_OF_TIMEOUT = 0.8  # the rest is for saying what happened
_AT_ONCE = 4  # requests to the server
Look = Callable[[float], Awaitable[Seen]]


class PrometheusSubject:
    """A Prometheus server and what its series tell."""

    kind: ClassVar[str] = "prometheus"
    settings_model: ClassVar[type[PrometheusSettings]] = PrometheusSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS

    def __init__(
        self, settings: PrometheusSettings, clock: Clock | None = None
    ) -> None:
        self.settings = settings
        self.target = Target.of(settings.url)
        self.clock = clock or SystemClock()
        path = f"subjects.{settings.name}"
        own = INVARIANTS if settings.alerts else ()
        self._invariants = configure(
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
        self._web = WebClient(
            verify=settings.verify,
            ca_file=settings.ca_file,
            path=f"{path}.ca_file",
            keep_alive=True,
            clock=self.clock,
        )
        self.api = PrometheusApi(self._web, self.target.url, self._login)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def timeout(self) -> float:
        return self.settings.timeout

    @property
    def invariants(self) -> Sequence[Invariant]:
        return self._invariants

    @property
    def secrets(self) -> Sequence[str]:
        auth = self.settings.basic_auth
        values = [
            self._token,
            self.target.login[1] if self.target.login else "",
            auth.password.get_secret_value() if auth else "",
            *(value.partition(" ")[2] for value in self._static_login().values()),
        ]
        return [value for value in values if value]

    async def observe(self, previous: Json) -> Observation:
        """Raises ObservationFailed when the server answered none of the requests."""
        if self.settings.bearer_token_file is not None:
            self._read_token(self.settings.bearer_token_file)
        deadline = self.clock.monotonic() + self.settings.timeout * _SHARE_OF_TIMEOUT
        turns = asyncio.Semaphore(_AT_ONCE)

        async def ask(look: Look) -> Seen | ObservationFailed:
            async with turns:
                try:
                    return await look(max(0.01, deadline - self.clock.monotonic()))
                except ObservationFailed as failure:
                    return failure

        looks = self._looks(previous)
        answers = await asyncio.gather(*(ask(look) for look in looks.values()))
        return _observation(dict(zip(looks, answers, strict=True)), previous)

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        from ._prometheus_evidence import sources

        return sources(self, tickets)

    async def close(self) -> None:
        await self._web.close()

    def _looks(self, previous: Json) -> dict[str, Look]:
        """What is asked of the server, by invariant."""
        enabled = {invariant.id: invariant for invariant in self._invariants}
        looks = {
            rule.name: self._rule_look(rule, enabled[rule.name], previous)
            for rule in self.settings.rules
            if rule.name in enabled
        }
        if "alert" in enabled:
            looks["alert"] = self._alerts_look(enabled["alert"], previous)
        return looks

    def _alerts_look(self, invariant: Invariant, previous: Json) -> Look:
        async def look(timeout: float) -> Seen:
            found = await self.api.alert_rules(timeout)
            before = _strings(previous.get("alerts"))
            return alerts_seen(found, self.settings, invariant, before)

        return look

    def _rule_look(
        self, rule: RuleSettings, invariant: Invariant, previous: Json
    ) -> Look:
        async def look(timeout: float) -> Seen:
            result = await self.api.query(rule.expr, timeout)
            return rule_seen(rule, invariant, result, _before(previous, rule.name))

        return look

    # ------------------------------------------------ log-in
    def _login(self) -> Mapping[str, str]:
        if self._token:
            return {"authorization": f"Bearer {self._token}"}
        return self._static_login()

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
    answers: Mapping[str, Seen | ObservationFailed], previous: Json
) -> Observation:
    failures = [
        answer for answer in answers.values() if isinstance(answer, ObservationFailed)
    ]
    silent = [item for item in failures if not isinstance(item, QueryRefused)]
    if silent and len(silent) == len(answers):
        raise ObservationFailed(
            f"Prometheus did not answer: {silent[0].message}", hint=silent[0].hint
        )
    unavailable: dict[str, str] = {}
    covered: set[str] = set()
    state: Json = {"alerts": _strings(previous.get("alerts")), "rules": {}}
    for name, answer in answers.items():
        if isinstance(answer, ObservationFailed):
            unavailable[name] = one_line(f"{name}: {answer.line()}")
            remembered: Sequence[str] = _before(previous, name)
        else:
            unavailable.update(answer.unavailable)
            remembered = answer.remembered
            if name not in answer.unavailable:
                covered.add("*" if name == "alert" else name)
        if name == "alert":
            if not isinstance(answer, ObservationFailed):
                state["alerts"] = list(remembered)
        elif remembered:
            state["rules"][name] = list(remembered)
    signals = tuple(
        signal
        for answer in answers.values()
        if isinstance(answer, Seen)
        for signal in answer.signals
    )
    return Observation(signals, frozenset(covered), unavailable, state)


def _before(previous: Json, rule: str) -> list[str]:
    rules = previous.get("rules")
    return _strings(rules.get(rule)) if isinstance(rules, dict) else []


def _strings(value: object) -> list[str]:
    """The strings in what should be a list of them; an older version may have kept something else."""
    return (
        [item for item in value if isinstance(item, str)]
        if isinstance(value, list)
        else []
    )
