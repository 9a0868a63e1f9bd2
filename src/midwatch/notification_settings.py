"""Settings of notifications: targets, routes to them, and how messages are delivered."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, get_args
from urllib.parse import unquote, urlsplit

from pydantic import Field, model_validator

from midwatch.setting_group import Group, Name, Seconds, TimeZone, Url

Event = Literal[
    "opened",
    "first_aid",
    "diagnosed",
    "acknowledged",
    "resolved",
    "held_too_long",
]
EVENTS: tuple[Event, ...] = get_args(Event)
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)
_TIME = r"([01]\d|2[0-3]):[0-5]\d"
_SECRET_LENGTH = 8


class WebhookTarget(Group):
    """An address that gets each event as JSON."""

    url: Url = Field(description="Where the JSON is posted.")
    secret: str | None = Field(
        None, min_length=16, description="Signs each request; null for no signature."
    )


class SlackTarget(Group):
    """A channel of Slack: one message for an incident, which is edited, with a thread."""

    token: str = Field(min_length=1, description="The bot's token, with chat:write.")
    channel: str = Field(
        min_length=1, description="The channel's id, such as C0123ABC."
    )
    base_url: Url = Field(
        "https://slack.com/api/", description="The Web API; another one for a gateway."
    )


class PagerDutyTarget(Group):
    """A service of PagerDuty, by its Events API v2: one alert for an incident."""

    routing_key: str = Field(min_length=1, description="The integration's key.")
    url: Url = Field(
        "https://events.pagerduty.com/v2/enqueue", description="The Events API."
    )


class OpsgenieTarget(Group):
    """A team of Opsgenie: one alert for an incident."""

    api_key: str = Field(min_length=1, description="The integration's key.")
    url: Url = Field(
        "https://api.opsgenie.com",
        description="The Alert API; https://api.eu.opsgenie.com in Europe.",
    )


class AppriseTarget(Group):
    """Anything that Apprise reaches, such as mail: mailtos://…, discord://…, ntfy://…."""

    url: str = Field(min_length=3, description="The Apprise URL.")


class TargetSettings(Group):
    """Where messages go: a name and one service."""

    name: Name = Field(description="Its name in routes; unique.")
    webhook: WebhookTarget | None = Field(None, description="Any program, by HTTP.")
    slack: SlackTarget | None = Field(None, description="A channel of Slack.")
    pagerduty: PagerDutyTarget | None = Field(None, description="PagerDuty.")
    opsgenie: OpsgenieTarget | None = Field(None, description="Opsgenie.")
    apprise: AppriseTarget | None = Field(None, description="Any other service.")

    @model_validator(mode="after")
    def _one_service(self) -> TargetSettings:
        if len(list(self.services())) != 1:
            raise ValueError(
                "give a target one of webhook, slack, pagerduty, opsgenie and apprise"
            )
        return self

    def services(self) -> Iterator[Group]:
        """Yield what is set of the services."""
        every = (
            self.webhook,
            self.slack,
            self.pagerduty,
            self.opsgenie,
            self.apprise,
        )
        yield from (one for one in every if one is not None)


class RouteSettings(Group):
    """Which events of which tickets go where. The first route that matches a ticket is the one that counts."""

    name: Name = Field(description="Its name; unique.")
    match: list[str] = Field(
        default=[],
        description='Matchers that must all hold, such as severity="critical" or component=~"orders.*", over '
        "severity, subject, kind, invariant, component and an alert's own labels.",
    )
    events: list[Event] = Field(
        default_factory=lambda: list(EVENTS), description="Events that are sent."
    )
    to: list[Name] = Field(min_length=1, description="Names of targets.")
    hours: str | None = Field(
        None,
        pattern=rf"^{_TIME}-{_TIME}$",
        description="Time of day in which it begins to tell of a ticket, such as 08:00-18:00; 22:00-06:00 goes over midnight.",
    )
    days: list[Day] = Field(
        default_factory=lambda: list(DAYS),
        min_length=1,
        description="Days of the week on which it begins to tell of a ticket.",
    )
    timezone: TimeZone = Field(
        "UTC", description="The zone of `hours`, `days` and `digest_at`."
    )
    escalate_after: Seconds | None = Field(
        None,
        gt=0,
        description="A ticket that no one acknowledged in this time goes to the next route that matches; null for never.",
    )
    digest: Seconds | None = Field(
        None,
        ge=60,
        description="Tell all at once at this interval, such as 24h; null tells at once.",
    )
    digest_at: str = Field(
        "00:00",
        pattern=rf"^{_TIME}$",
        description="A time of day at which a digest is sent; the others are at its interval from it.",
    )
    goes_on: bool = Field(
        False, alias="continue", description="Whether later routes count as well."
    )


class TemplateSettings(Group):
    """Templates of messages, in Jinja2. docs/notifications.md lists what they can show."""

    title: str | None = Field(
        None, max_length=2000, description="The title; null for Midwatch's own."
    )
    body: str | None = Field(
        None, max_length=20_000, description="The text; null for Midwatch's own."
    )
    digest: str | None = Field(
        None, max_length=20_000, description="A digest; null for Midwatch's own."
    )


class NotificationSettings(Group):
    """Messages to people about tickets. Without a route nothing is sent."""

    targets: list[TargetSettings] = Field(
        default=[], description="Where messages can go."
    )
    routes: list[RouteSettings] = Field(
        default=[], description="What goes where, in order."
    )
    templates: TemplateSettings = Field(
        TemplateSettings(), description="How messages are worded."
    )
    poll_interval: Seconds = Field(
        1.0, ge=0.05, description="Wait between two looks for changes of tickets."
    )
    group_wait: Seconds = Field(
        5.0,
        ge=0,
        le=600,
        description="What happens to an incident within this time is one message.",
    )
    held_after: Seconds = Field(
        86400.0, gt=0, description="A ticket is held too long after this time."
    )
    timeout: Seconds = Field(
        15.0, gt=0, le=300, description="Longest time that one request may take."
    )
    backoff: Seconds = Field(
        5.0, gt=0, description="First wait after a failed request; doubles each time."
    )
    backoff_max: Seconds = Field(
        600.0, gt=0, description="Longest wait after a failed request."
    )
    give_up_after: Seconds = Field(
        86400.0,
        gt=0,
        description="A message that could not be sent in this time is given up.",
    )
    keep_for: Seconds = Field(
        90 * 86400.0,
        ge=86400.0,
        description="How long it is kept what was sent of a resolved ticket.",
    )
    callback_hosts: list[str] = Field(
        default=[],
        description="Hosts that an investigation may call back, such as ci.example.org or 10.0.0.5:8080; empty for none.",
    )
    callback_secret: str | None = Field(
        None, min_length=16, description="Signs callbacks; null for no signature."
    )

    @model_validator(mode="after")
    def _names(self) -> NotificationSettings:
        names = [target.name for target in self.targets]
        routes = [route.name for route in self.routes]
        for what, given in (("target", names), ("route", routes)):
            if doubled := {name for name in given if given.count(name) > 1}:
                raise ValueError(f"two {what}s have the name {min(doubled)}")
        for route in self.routes:
            if unknown := set(route.to) - set(names):
                raise ValueError(
                    f"the route {route.name} names {min(unknown)}, which is not a target"
                )
        return self

    def secrets(self) -> Iterator[str]:
        """Yield what must not be shown or sent: keys, and the parts of addresses that may be one."""
        yield self.callback_secret or ""
        for target in self.targets:
            for service in target.services():
                for name, value in service:
                    if name in ("token", "secret", "routing_key", "api_key"):
                        yield value or ""
            if target.webhook is not None:
                yield from _parts(target.webhook.url)
            if target.apprise is not None:
                yield from _parts(target.apprise.url)


def _parts(url: str) -> Iterator[str]:
    """Yield the parts of a URL that may be a key: all that is neither its host nor short."""
    parts = urlsplit(url)
    user, _, place = parts.netloc.rpartition("@")
    host = place if "." in place or ":" in place or place == "localhost" else ""
    text = url.partition("://")[2].replace(host, "", 1) if host else url
    for part in (unquote(user.partition(":")[2]), *re.split(r"[/?&=@:#,;]+", text)):
        if len(part) >= _SECRET_LENGTH and "://" not in part:
            yield part
            yield unquote(part)
