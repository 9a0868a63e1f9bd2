"""The addresses that alerts are sent to: `/hooks/SENDER`, or `/hooks/SENDER/NAME` for the subject with that name.

A request is answered 2xx once all of it is committed, and not before: the sender repeats what was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

from midwatch.errors import NotFound
from midwatch.received import Delivery, Push, PushRules, TakesAlerts
from midwatch.redaction import Sanitizer
from midwatch.server.alert_intake import AlertIntake
from midwatch.server.alert_writer import AlertWriter
from midwatch.server.auth import sends_alerts
from midwatch.server.context import ServerContext
from midwatch.server.senders import read_delivery
from midwatch.server.signatures import HEADERS, OTHER_HEADER, check_signature
from midwatch.subjects.pushed import Sender


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    hooks = _Hooks(context)
    routes = APIRouter(prefix="/hooks", tags=["alerts"])

    @routes.post("/{sender}", summary="Take alerts for the only subject of a sender")
    async def take(request: Request, sender: Sender) -> dict[str, Any]:
        return await hooks.take(request, sender, None)

    @routes.post("/{sender}/{name}", summary="Take alerts for a subject")
    async def take_for(request: Request, sender: Sender, name: str) -> dict[str, Any]:
        return await hooks.take(request, sender, name)

    return routes


class _Hooks:
    def __init__(self, context: ServerContext) -> None:
        monitor = context.settings.monitor
        rules = PushRules(
            monitor.group_wait, monitor.flapping_window, monitor.flapping_openings
        )
        self._subjects = [
            one for one in context.subjects if isinstance(one, TakesAlerts)
        ]
        self._clock = context.clock
        links = context.links if len(context.subjects) > 1 else None
        self._intake = AlertIntake(Sanitizer(context.redactor), links)
        self._writer = AlertWriter(context.store, rules, context.log, context.clock)

    async def take(
        self, request: Request, sender: str, name: str | None
    ) -> dict[str, Any]:
        subject = await self._subject(request, sender, name)
        body = await request.body()
        if _secrets(subject):
            self._check_signature(request, subject, body)
        fields = getattr(subject.settings, "fields", None)
        delivery = read_delivery(sender, body, request.headers, fields)
        push = await self._intake.push(subject, delivery)
        if _says_something(push, delivery):
            await self._writer.write(push)
        return {"received": len(delivery.alerts)}

    async def _subject(
        self, request: Request, sender: str, name: str | None
    ) -> TakesAlerts:
        """Return the subject that a request is for, once its sender may send it alerts, or can prove it with the body.

        Which subjects there are is no business of others.
        """
        possible = [one for one in self._subjects if one.sender == sender]
        chosen = [one for one in possible if name is None or one.name == name]
        if len(chosen) != 1 or not _secrets(chosen[0]):
            await sends_alerts(request)
        if len(chosen) == 1:
            return chosen[0]
        raise _no_subject(sender, name, possible)

    def _check_signature(
        self, request: Request, subject: TakesAlerts, body: bytes
    ) -> None:
        settings = subject.settings
        check_signature(
            request.headers,
            settings.signature_header or HEADERS.get(subject.sender, OTHER_HEADER),
            body,
            _secrets(subject),
            timestamp_header=settings.timestamp_header,
            now=self._clock.now().timestamp(),
        )


def _secrets(subject: TakesAlerts) -> list[str]:
    given = getattr(subject.settings, "signing_secrets", ())
    return [one.get_secret_value() for one in given]


def _says_something(push: Push, delivery: Delivery) -> bool:
    """Return whether there is anything to save: an event that is no alert, or a test, says nothing."""
    return bool(push.alerts or push.heartbeat or delivery.alerts or delivery.truncated)


def _no_subject(
    sender: str, name: str | None, possible: Sequence[TakesAlerts]
) -> NotFound:
    if name is not None:
        return NotFound(
            f"no subject {name!r:.80} takes alerts of {sender}",
            hint="check the settings: kind `alerts` with this name and sender",
        )
    if not possible:
        return NotFound(
            f"no subject takes alerts of {sender}",
            hint=f"add one to the settings: {{name: …, kind: alerts, sender: {sender}}}",
        )
    names = ", ".join(sorted(one.name for one in possible)[:10])
    return NotFound(
        f"several subjects take alerts of {sender}",
        hint=f"name one: /hooks/{sender}/NAME, of {names}",
    )
