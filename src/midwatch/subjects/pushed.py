"""The subject kind `alerts`: another system pushes its alerts to the server; the store has what fires."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SecretStr, model_validator

from midwatch.errors import ObservationFailed
from midwatch.model import Invariant, Json, Observation, Ticket
from midwatch.received import KeptAlert, PushedAlerts, PushedAlertsReader
from midwatch.settings import Group
from midwatch.subjects.alert_settings import (
    INVARIANTS,
    AlertSettings,
    PushedHeartbeatSettings,
)
from midwatch.subjects.alert_signals import AlertReader
from midwatch.subjects.base import EvidenceSource, configure
from midwatch.subjects.prometheus_evidence import LABELS
from midwatch.text import ticket_line
from midwatch.units import format_duration

Sender = Literal["alertmanager", "grafana", "pagerduty", "generic"]


class FieldSettings(Group):
    """Where a generic sender has what is needed, as JMESPath."""

    alerts: str = Field("@", description="The list of alerts, or the one alert.")
    name: str = Field(description="Its name.")
    status: str | None = Field(
        None, description="Its status; without this it always fires."
    )
    resolved: list[str] = Field(
        default_factory=lambda: [
            *("resolved", "ok", "up", "success", "closed", "normal", "recovery"),
            *("false", "0"),
        ],
        description="Values of the status, in lower case, that mean that it does not fire any more.",
    )
    where: str | None = Field(
        None, description="Alerts for which this is false, null or empty do not count."
    )
    fingerprint: str | None = Field(
        None, description="What identifies it; by default its name and labels."
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="Its labels, which name the component."
    )
    severity: str | None = Field(None, description="How urgent it is.")
    message: str | None = Field(None, description="A line for people.")
    starts_at: str | None = Field(
        None, description="When it began: RFC 3339, or seconds or milliseconds."
    )
    changed_at: str | None = Field(
        None,
        description="When it got this status: it decides which of two reports is the later one.",
    )
    facts: dict[str, str] = Field(
        default_factory=dict, description="Further facts, such as links and values."
    )

    @model_validator(mode="after")
    def _compiled(self) -> Self:
        for name, value in self:
            for text in value.values() if isinstance(value, dict) else [value]:
                if name != "resolved" and text is not None:
                    check_jmespath(text)
        return self


def check_jmespath(text: str) -> None:
    """Raise ValueError if the text is not JMESPath, or if JMESPath is not installed."""
    try:
        import jmespath
    except ImportError:
        raise ValueError(
            "JMESPath is not installed; pip install 'midwatch[server]'"
        ) from None
    try:
        jmespath.compile(text)
    except jmespath.exceptions.JMESPathError as error:
        at = getattr(error, "lex_position", None)
        where = "" if at is None else f" (see character {at + 1})"
        raise ValueError(f"{text!r:.80} is not JMESPath{where}") from None


class PushedSettings(AlertSettings):
    """A system that pushes its alerts to /hooks/SENDER or /hooks/SENDER/NAME of the server."""

    kind: str = "alerts"
    sender: Sender = Field(description="What pushes them.")
    heartbeat: PushedHeartbeatSettings | None = Field(
        None,
        description="The alert that always fires. Without one, a sender that is down is taken for a quiet one.",
    )
    signing_secrets: list[SecretStr] = Field(
        default_factory=list,
        description="Secrets with which the sender signs its requests; several while one is replaced. With them a "
        "request needs a right signature, and no token.",
    )
    signature_header: str | None = Field(
        None,
        description="The header with the signature, HMAC-SHA256 of the body in hexadecimal; by default that of the sender.",
    )
    timestamp_header: str | None = Field(
        None,
        description="The header with the time of the signature, where the sender signs that too: TIME:BODY.",
    )
    fields: FieldSettings | None = Field(
        None, description="For the sender generic: where its fields are."
    )

    @model_validator(mode="after")
    def _of_the_sender(self) -> Self:
        if (self.sender == "generic") != (self.fields is not None):
            raise ValueError("fields are for the sender generic, which needs them")
        if self.sender == "pagerduty" and not self.signing_secrets:
            raise ValueError("the sender pagerduty needs its signing_secrets")
        if any(not one.get_secret_value().strip() for one in self.signing_secrets):
            raise ValueError("a signing secret is empty")
        return self


class PushedSubject:
    """A system that pushes its alerts. What the monitor observes is what the store has of them."""

    kind: ClassVar[str] = "alerts"
    settings_model: ClassVar[type[PushedSettings]] = PushedSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS

    def __init__(self, settings: PushedSettings) -> None:
        self.settings = settings
        self.name, self.timeout = settings.name, settings.timeout
        self.sender: str = settings.sender
        path = f"subjects.{settings.name}"
        self.invariants = configure(INVARIANTS, settings.invariants, path)
        self.alerts = AlertReader(settings, next(iter(self.invariants), None))
        self._reader: PushedAlertsReader | None = None

    @property
    def secrets(self) -> Sequence[str]:
        return [one.get_secret_value() for one in self.settings.signing_secrets]

    def read_pushed_from(self, reader: PushedAlertsReader) -> None:
        self._reader = reader

    async def observe(self, previous: Json) -> Observation:
        """Return what fires. Raises ObservationFailed while the heartbeat alert is overdue."""
        pushed = await self._pushed()
        waiting = self._check_heartbeat(pushed, previous)
        doubted, state = self._doubted(pushed, previous)
        found = [
            self.alerts.kept_signal(one)
            for one in (*pushed.alerts, *doubted)
            if self.alerts.counts(one)
        ]
        return Observation(
            signals=self.alerts.within_storm(found, pushed.ticketed),
            covered=frozenset() if waiting else frozenset({"*"}),
            unavailable=unavailable_of(pushed),
            state={**waiting, **state},
        )

    def _doubted(
        self, pushed: PushedAlerts, previous: Json
    ) -> tuple[Sequence[KeptAlert], Json]:
        """Return the alerts whose resolution is not believed yet, and the state to keep.

        They were resolved while the heartbeat was overdue: perhaps as the sender heard of them no more. Their tickets stay until
        the heartbeat has been there again for a while.
        """
        heartbeat = self.settings.heartbeat
        if heartbeat is None or not pushed.doubted:
            return (), {}
        heard_at = _time_of(previous.get("heard_at"))
        since = _time_of(previous.get("heard_since"))
        if (
            since is None
            or heard_at is None
            or (pushed.now - heard_at).total_seconds() > heartbeat.within
            or (pushed.now - since).total_seconds() > pushed.doubted_for
        ):
            since = pushed.now
        state = {"heard_since": since.isoformat(), "heard_at": pushed.now.isoformat()}
        believed = (pushed.now - since).total_seconds() >= heartbeat.settle
        return () if believed else pushed.doubted, state

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        return pushed_sources(self._pushed, f"alerts pushed by {self.sender}")

    async def close(self) -> None:
        pass

    async def _pushed(self) -> PushedAlerts:
        if self._reader is None:
            raise ObservationFailed(
                "pushed alerts are in the database, which is not open here",
                hint="run `midwatch monitor` or `midwatch up`",
            )
        return await self._reader.pushed_alerts(self.name)

    def _check_heartbeat(self, pushed: PushedAlerts, previous: Json) -> Json:
        """Return the state to keep while the first heartbeat is still to come; empty once one came.

        Raises:
            ObservationFailed: It is overdue.
        """
        heartbeat = self.settings.heartbeat
        if heartbeat is None:
            return {}
        due = format_duration(heartbeat.within)
        hint = f"check the sender, and that it sends {heartbeat.alert} to /hooks/{self.sender}/{self.name}"
        if pushed.heartbeat_age is None:
            since = _time_of(previous.get("waiting_since")) or pushed.now
            if (pushed.now - since).total_seconds() > heartbeat.within:
                raise ObservationFailed(
                    f"the heartbeat alert {heartbeat.alert} has not been received yet, and is due every {due}",
                    hint=hint,
                )
            return {"waiting_since": since.isoformat()}
        if pushed.heartbeat_age > heartbeat.within:
            age = format_duration(pushed.heartbeat_age)
            raise ObservationFailed(
                f"the sender is silent: its heartbeat alert {heartbeat.alert} was last received {age} ago, "
                f"and is due every {due}",
                hint=hint,
            )
        return {}


def unavailable_of(pushed: PushedAlerts) -> dict[str, str]:
    """Return why alerts are unknown although their sender works: it left some out of a request."""
    count = sum(number for number, _ in pushed.truncated.values())
    if not count:
        return {}
    return {
        "alert": f"the sender left {count:,} alerts out of its requests; set max_alerts of its receiver to 0, or higher"
    }


def _time_of(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None


# ------------------------------------------------------------------ evidence

_MOST_LINES = 80


def pushed_sources(
    read: Callable[[], Awaitable[PushedAlerts]], source: str
) -> list[EvidenceSource]:
    """Return the evidence on pushed alerts: which fire, and when their sender was heard of."""

    async def firing() -> str:
        return firing_text(await read())

    async def heard() -> str:
        return heard_text(await read())

    return [
        EvidenceSource(
            "Firing and pending alerts", source, firing, 15, reported=LABELS
        ),
        EvidenceSource("The sender", source, heard, 60),
    ]


def firing_text(pushed: PushedAlerts) -> str:
    """Return a line for each alert that fires, as for a Prometheus server."""
    lines = [
        f"firing {one.facts.get('alertname', one.invariant)} since "
        f"{one.facts.get('active_at', '?')}: {ticket_line(one.component, 200)}; {one.message}"
        for one in pushed.alerts[:_MOST_LINES]
    ]
    left_out = len(pushed.alerts) - len(lines)
    if left_out > 0:
        lines.append(f"and {left_out:,} more")
    return "\n".join(lines) or "no alert fires"


def heard_text(pushed: PushedAlerts) -> str:
    """Return when the sender was last heard of."""
    lines = []
    for what, age in (
        ("last request", pushed.silent_for),
        ("last heartbeat alert", pushed.heartbeat_age),
    ):
        lines.append(
            f"{what}: {'none so far' if age is None else f'{format_duration(age)} ago'}"
        )
    return "\n".join(lines)
