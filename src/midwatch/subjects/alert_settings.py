"""The settings and the invariant that the kinds `alerts` and `alertmanager` share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from midwatch.model import Invariant, Severity
from midwatch.setting_group import Seconds
from midwatch.settings import Group, SubjectSettings
from midwatch.subjects.prometheus_settings import DEFAULT_SEVERITIES, SeverityName

ALERT = Invariant(
    "alert",
    "No alert of the sender fires",
    "Stands for all alerts of the sender; a firing one has the id alert:NAME. Their severity comes from the label "
    "`severity`, else from here. In a storm the most urgent alerts have tickets, and one ticket counts the rest.",
    about=("*",),
)
INVARIANTS = (ALERT,)


class HeartbeatSettings(Group):
    """An alert that always fires, and shows that the sender works."""

    alert: str = Field("Watchdog", min_length=1, description="Its name.")
    within: Seconds = Field(
        300.0,
        gt=0,
        description="How long it may not be heard of; then the state of all alerts is unknown.",
    )


class PushedHeartbeatSettings(HeartbeatSettings):
    """An alert that always fires, and shows that the sender works."""

    settle: Seconds = Field(
        600.0,
        ge=0,
        description="How long it is heard of again before a resolution is believed that came while it was overdue: by then the "
        "sender has reported what still fires. Twice the group_interval of Alertmanager, which is 5 minutes by default.",
    )


class AlertSettings(SubjectSettings):
    """Alerts that another system raises."""

    component: Annotated[list[str], Field(min_length=1)] | str | None = Field(
        None,
        description="Labels that name the component, or a template such as {cluster}/{instance}; by default all labels "
        "but the name and the severity.",
    )
    severity_label: str = Field(
        "severity", description="The label that has the severity."
    )
    severities: dict[str, SeverityName] = Field(
        default={},
        description="Severities by value of that label, besides the usual ones.",
    )
    ignore: list[str] = Field(
        default_factory=lambda: ["Watchdog", "InfoInhibitor", "DeadMansSwitch"],
        description="Names of alerts that do not count: these fire to show that alerting works, or to silence others. "
        "`invariants: {alert: {ignore: […]}}` leaves out alerts by their labels.",
    )
    heartbeat: HeartbeatSettings | None = Field(
        None,
        description="The alert that always fires. Without one, a sender that is down is taken for a quiet one.",
    )
    most_tickets: int = Field(
        200,
        ge=1,
        le=100_000,
        description="Alerts that have a ticket each; one more ticket counts the rest.",
    )

    def severity(self, word: str | None) -> Severity | None:
        """Return the severity for a sender's word; None without a word."""
        if not word:
            return None
        given = {name.lower(): severity for name, severity in self.severities.items()}
        meanings: dict[str, SeverityName] = {
            **DEFAULT_SEVERITIES,
            **_MORE_SEVERITIES,
            **given,
        }
        return Severity.parse(meanings.get(word.lower(), "warning"))


_MORE_SEVERITIES: dict[str, SeverityName] = {
    "p1": "critical",
    "p2": "critical",
    "high": "critical",
    "fatal": "critical",
    "emergency": "critical",
    "p5": "info",
    "debug": "info",
    "informational": "info",
    "ok": "info",
}
