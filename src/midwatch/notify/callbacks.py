"""Call back who asked for an investigation: a signed POST with its report."""

from __future__ import annotations

from midwatch.lifecycle import Clock
from midwatch.model import Json, Ticket
from midwatch.notification_settings import NotificationSettings
from midwatch.notify.http_senders import WebhookSender
from midwatch.notify.sender import SendRefused
from midwatch.redaction import Redactor
from midwatch.store.on_call import Delivery
from midwatch.store.protocol import Store
from midwatch.units import url_is_at


class Callbacks:
    """Sends callbacks, to the hosts that the settings allow alone.

    Args:
        store: Where the diagnosis of an investigation is.
        settings: The group `notifications`.
        redactor: Removes secrets from the report.
        clock: The source of time for signatures.
    """

    def __init__(
        self,
        store: Store,
        settings: NotificationSettings,
        redactor: Redactor,
        clock: Clock,
    ) -> None:
        self._store = store
        self._settings = settings
        self._redactor = redactor
        self._clock = clock

    async def send(self, delivery: Delivery, ticket: Ticket) -> None:
        """Post the report of an investigation to the address that was given with it.

        Args:
            delivery: Its target is the address; its content has the id of the investigation.
            ticket: The ticket of the investigation.

        Raises:
            SendFailed: It was not sent, or that is not known.
            SendRefused: The host is not allowed any more, or it refused.
        """
        if not url_is_at(delivery.target, self._settings.callback_hosts):
            raise SendRefused(
                "callbacks to this host are not allowed",
                hint="see notifications.callback_hosts",
            )
        sender = WebhookSender(
            delivery.target,
            self._settings.callback_secret,
            self._settings.timeout,
            what="the callback",
            clock=self._clock,
        )
        try:
            key = f"midwatch-{delivery.dedup_key}".replace(" ", "-")
            await sender.post(key, await self._document(key, delivery, ticket))
        finally:
            await sender.close()

    async def _document(self, key: str, delivery: Delivery, ticket: Ticket) -> Json:
        document: Json = {
            "version": 1,
            "id": key,
            "event": "investigation",
            "investigation": delivery.content.get("investigation"),
            "ticket": ticket.id,
            "status": ticket.status.value,
            "resolution": ticket.resolution,
            "outcome": None,
            "answer": None,
            "report": None,
        }
        if ticket.diagnosis_id is not None:
            found = await self._store.diagnosis(ticket.diagnosis_id)
            report = {"answer": found.answer, "report": found.markdown}
            document |= {"outcome": found.outcome, **report}
        redacted: Json = self._redactor.value(document)
        return redacted
