"""Show, or send as a test, what a target would get about a ticket."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from midwatch.errors import NotFound
from midwatch.model import Ticket
from midwatch.notify.incident import IncidentViews
from midwatch.notify.message import Message, Writer
from midwatch.notify.routes import Route, Routes
from midwatch.notify.sender import Sender
from midwatch.redaction import Redactor
from midwatch.store.on_call import Delivery
from midwatch.store.protocol import Store, TicketFilter


@dataclass(frozen=True, slots=True)
class Preview:
    """The message of one route to one target, in the markup of its service."""

    route: str
    target: str
    markup: str
    message: Message


class Previewer:
    """Words messages as the notifier does, of tickets as they are now, and records nothing.

    Args:
        store: Where tickets are.
        routes: The routes.
        senders: What sends to each target.
        redactor: Removes secrets.
        base_url: Where people reach the server.
    """

    def __init__(
        self,
        store: Store,
        routes: Routes,
        senders: dict[str, Sender],
        redactor: Redactor,
        base_url: str | None,
    ) -> None:
        self._store = store
        self._routes = routes
        self._senders = senders
        self._views = IncidentViews(redactor, base_url)
        self._writer = Writer(routes.settings.templates)

    async def previews(
        self, ticket_id: int, event: str, now: datetime, only: str | None = None
    ) -> list[Preview]:
        """Return what the targets would get if this event happened to a ticket now.

        Args:
            ticket_id: The ticket.
            event: The event.
            now: The time, which routes look at.
            only: Name of a target, which is asked for whatever the routes say.

        Raises:
            NotFound: There is no such ticket or target.
            TemplateFailed: A template of the settings failed.
            SettingsError: A target cannot be used.
        """
        ticket = await self._store.ticket(ticket_id)
        if only is not None and only not in self._senders:
            known = ", ".join(self._senders) or "none"
            raise NotFound(f"there is no target {only!r}", hint=f"known: {known}")
        chosen = list(self._chosen(ticket, event, now, only))
        return [await self._preview(ticket, event, now, *one) for one in chosen]

    def _chosen(
        self, ticket: Ticket, event: str, now: datetime, only: str | None
    ) -> Iterator[tuple[str, str]]:
        if only is not None:
            yield "", only
            return
        for route in self._routes.matching(ticket, now):
            if event in route.settings.events:
                yield from ((route.name, target) for target in route.settings.to)

    async def _preview(
        self, ticket: Ticket, event: str, now: datetime, route: str, target: str
    ) -> Preview:
        batch = await self._store.tickets(TicketFilter(batch=ticket.batch))
        tickets = sorted(
            {one.id: one for one in (ticket, *batch)}.values(),
            key=lambda one: (one.severity, one.id),
        )
        content = {"at": now.isoformat(), "by": "you", "why": "a test"}
        name = f"test-{uuid.uuid4().hex[:12]}"
        told = Delivery(
            0, name, route, target, event, name, ticket.id, content, "due", now, now, 1
        )
        ids = {one.diagnosis_id for one in tickets if one.diagnosis_id}
        diagnoses = {id_: await self._store.diagnosis(id_) for id_ in sorted(ids)}
        view = self._views.view(name, tickets, [told], diagnoses, now)
        limits = await self._senders[target].limits()
        found: Route | None = self._routes.named(route)
        digest = found is not None and found.settings.digest is not None
        message = self._writer.write(
            f"midwatch-{name}", view, limits, digest=digest, strict=True
        )
        return Preview(route, target, limits.format, message)

    async def send(self, preview: Preview) -> None:
        """Send a preview for real, in a thread of its own. Raises SendFailed, SendRefused."""
        await self._senders[preview.target].send(preview.message, {})

    async def close(self) -> None:
        """Close the senders."""
        for sender in self._senders.values():
            await sender.close()
