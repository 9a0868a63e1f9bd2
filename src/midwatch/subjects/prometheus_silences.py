"""What the Alertmanagers of a Prometheus server keep silent of the alerts that fire there.

Prometheus knows of no silence, so its Alertmanagers are asked: those that the settings name, or those that it names itself. One
that does not answer, answers something else, or does not have an alert keeps nothing silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from midwatch.errors import ObservationFailed
from midwatch.lifecycle import Clock
from midwatch.subjects.alertmanager_api import AlertmanagerApi
from midwatch.subjects.alertmanager_silences import ManagedAlerts, silence_reasons
from midwatch.subjects.http import Target
from midwatch.subjects.http_client import WebClient
from midwatch.subjects.prometheus_api import Alert, NotPrometheus, PrometheusApi
from midwatch.subjects.prometheus_settings import MOST_ALERTMANAGERS, PrometheusSettings
from midwatch.subjects.web_login import WebLogin
from midwatch.text import ticket_line
from midwatch.units import check_url

_NAME_THEM = "name them with `alertmanagers: [URL]`, or set `alertmanagers: []`"
_MOST_PROBLEMS = 3
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Silences:
    """What Alertmanagers keep silent at one moment. It is true if that is anything at all.

    Attributes:
        managers: Those that answered.
        external: The external labels of the Prometheus server.
        problem: Why some of it could not be seen; empty if all was.
    """

    managers: Sequence[ManagedAlerts] = ()
    external: Labels = field(default_factory=dict)
    problem: str = ""

    def __bool__(self) -> bool:
        return any(one.suppresses for one in self.managers)

    def by(self, alert: Alert) -> str:
        """Return what keeps an alert silent; empty if nothing does.

        One Alertmanager suffices: another member of its cluster may not have the silence yet.
        """
        return next(filter(None, self._looks(alert)), "") if self else ""

    def lacks(self, alert: Alert) -> bool:
        """Return whether there are Alertmanagers, and none of them has the alert."""
        return bool(self.managers) and all(one is None for one in self._looks(alert))

    def _looks(self, alert: Alert) -> Iterator[str | None]:
        labels = {name: value for name, value in alert.labels.items() if value}
        labels["alertname"] = alert.name
        return (one.look(labels, self.external) for one in self.managers)


class SilenceReader:
    """Asks the Alertmanagers of a Prometheus server.

    The login of the server, its client certificate and its headers are for its own origin: an Alertmanager with another scheme,
    host or port gets none of them. No redirect is followed.

    Args:
        settings: The settings of the subject.
        api: The API of the server.
        web: The client for the origin of the server.
        login: The login to the server.
        path: The path of the subject in the settings.
        clock: The clock of the subject.
    """

    def __init__(
        self,
        settings: PrometheusSettings,
        api: PrometheusApi,
        web: WebClient,
        login: WebLogin,
        path: str,
        clock: Clock,
    ) -> None:
        self._api, self._web, self._login = api, web, login
        self._clock = clock
        self._home = Target.of(settings.url).origin
        given = settings.alertmanagers
        self._named = None if given is None else [Target.of(url) for url in given]
        self._elsewhere = settings.web_client(path, clock, own=False)

    @property
    def enabled(self) -> bool:
        return self._named is None or bool(self._named)

    @property
    def secrets(self) -> Sequence[str]:
        """Every secret value in the URLs of the settings."""
        logins = [one for one in self._named or () if one.login]
        return [
            text
            for one in logins
            for text in (
                (one.login or ("", ""))[1],
                *(value.partition(" ")[2] for value in one.login_header().values()),
            )
            if text
        ]

    async def read(self, names: Collection[str], deadline: float) -> Silences:
        """Return what is silent among the alerts with these names.

        Args:
            names: The names of the alerts that fire.
            deadline: In the monotonic seconds of the clock.
        """
        try:
            targets = await self._targets(self._left(deadline))
        except ObservationFailed as failure:
            return Silences(problem=failure.one_line())
        asked = await asyncio.gather(
            *(
                self._ask(target, names, deadline)
                for target in targets[:MOST_ALERTMANAGERS]
            )
        )
        problems = [one for one in asked if isinstance(one, str)]
        if len(targets) > MOST_ALERTMANAGERS:
            problems.append(
                f"{len(targets)} Alertmanagers are too many; {MOST_ALERTMANAGERS} are asked"
            )
        managers = [one for one in asked if isinstance(one, ManagedAlerts)]
        suppresses = any(one.suppresses for one in managers)
        external = await self._external(deadline) if suppresses else {}
        problem = "; ".join(problems[:_MOST_PROBLEMS])
        return Silences(managers, external, ticket_line(problem))

    async def close(self) -> None:
        await self._elsewhere.close()

    async def _targets(self, timeout: float) -> list[Target]:
        if self._named is not None:
            return self._named
        try:
            urls = await self._api.alertmanagers(timeout)
        except NotPrometheus as failure:
            if failure.status in (401, 403):
                raise
            raise NotPrometheus(
                f"the server does not name its Alertmanagers: {failure.message}",
                hint=_NAME_THEM,
            ) from None
        return [base for url in urls if (base := _base(url)) is not None]

    async def _ask(
        self, target: Target, names: Collection[str], deadline: float
    ) -> ManagedAlerts | str:
        """Return the alerts of an Alertmanager, or why they are not known."""
        at_home = target.origin == self._home

        def headers() -> Mapping[str, str]:
            own = self._login.headers() if at_home else {}
            return {**own, **target.login_header()}

        web = self._web if at_home else self._elsewhere
        api = AlertmanagerApi(web, target.url, headers)
        found = ManagedAlerts(names)
        try:
            await api.alerts(self._left(deadline), found.take)
        except ObservationFailed as failure:
            return f"{target.shown}: {failure.one_line()}"
        if found.cut:
            return f"{target.shown} has more alerts than are read"
        found.reasons = await silence_reasons(
            api, found.alerts, self._left(deadline) / 2
        )
        return found

    async def _external(self, deadline: float) -> Labels:
        try:
            return await self._api.external_labels(self._left(deadline))
        except ObservationFailed:
            return {}  # its labels alone tell which alert is meant

    def _left(self, deadline: float) -> float:
        return max(0.01, deadline - self._clock.monotonic())


def _base(url: str) -> Target | None:
    """Return where an Alertmanager is, given where Prometheus sends alerts; None for what cannot be one.

    The path ends with /api/v2/alerts, in older versions perhaps with /api/v1/alerts.
    """
    try:
        parts = urlsplit(check_url(url))
    except ValueError:
        return None
    for end in ("/api/v2/alerts", "/api/v1/alerts"):
        if parts.path.endswith(end):
            host = parts.netloc.rpartition("@")[2]
            path = parts.path.removesuffix(end)
            return Target.of(f"{parts.scheme}://{host}{path}")
    return None
