"""Build the notifier and its senders from the settings."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from midwatch.errors import SettingsError
from midwatch.logs import Log
from midwatch.notification_settings import NotificationSettings, TargetSettings
from midwatch.notify.blocking_senders import (
    AppriseSender,
    BlockingCall,
    SlackSender,
)
from midwatch.notify.http_senders import (
    OpsgenieSender,
    PagerDutySender,
    WebhookSender,
)
from midwatch.notify.notifier import Notifier
from midwatch.notify.preview import Previewer
from midwatch.notify.routes import Routes
from midwatch.notify.sender import Sender
from midwatch.redaction import Redactor
from midwatch.settings import Settings
from midwatch.store.protocol import Store


def kinds_of(settings: Settings) -> dict[str, str]:
    """Return the kind of each subject, by its name."""
    return {str(one.get("name")): str(one.get("kind")) for one in settings.subjects}


def open_notifier(
    settings: Settings,
    store: Store,
    redactor: Redactor,
    log: Log,
    environ: Mapping[str, str],
    name: str = "notifier",
) -> Notifier | None:
    """Return what tells people of tickets; None without a route.

    Raises SettingsError for wrong matchers or templates, and for a package that is not installed.
    """
    chosen = settings.notifications
    if not chosen.routes and not chosen.callback_hosts:
        return None
    senders = {one.name: sender(one, chosen, environ) for one in chosen.targets}
    return Notifier(
        store,
        Routes.from_settings(chosen, kinds_of(settings)),
        senders,
        redactor=redactor,
        base_url=settings.server.url,
        log=log,
        name=name,
    )


def open_previewer(
    settings: Settings, store: Store, redactor: Redactor, environ: Mapping[str, str]
) -> Previewer:
    """Return what shows messages. Raises SettingsError without a target, and as `open_notifier` does."""
    chosen = settings.notifications
    if not chosen.targets:
        raise SettingsError(
            "there is no target",
            path="notifications.targets",
            hint="name one and a route to it, see docs/notifications.md",
        )
    return Previewer(
        store,
        Routes.from_settings(chosen, kinds_of(settings)),
        {one.name: sender(one, chosen, environ) for one in chosen.targets},
        redactor,
        settings.server.url,
    )


def _need(package: str) -> None:
    if find_spec(package) is None:
        raise SettingsError(
            f"the package {package} is not installed",
            path="notifications.targets",
            hint="pip install 'midwatch[notify]'",
        )


def sender(
    target: TargetSettings, settings: NotificationSettings, environ: Mapping[str, str]
) -> Sender:
    """Return what sends to a target. Raises SettingsError for a package that is not installed."""
    timeout = settings.timeout
    if target.webhook is not None:
        return WebhookSender(target.webhook.url, target.webhook.secret, timeout)
    call = BlockingCall(timeout, environ)
    if target.slack is not None:
        _need("slack_sdk")
        return SlackSender(target.slack, call, timeout)
    if target.apprise is not None:
        _need("apprise")
        return AppriseSender(target.apprise, call, target.name)
    if target.pagerduty is not None:
        return PagerDutySender(target.pagerduty, timeout)
    assert target.opsgenie is not None  # a target has one service
    return OpsgenieSender(target.opsgenie, timeout)
