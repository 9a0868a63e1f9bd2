"""What a message can show of an incident: plain values, redacted and cleaned, for templates and for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from midwatch.model import Diagnosis, Json, Ticket
from midwatch.redaction import Redactor
from midwatch.store.on_call import Delivery
from midwatch.text import one_line

_LINE = 500
_MOST_ACTIONS = 5
_MOST_COMMANDS = 5
_VERBS = {
    "opened": "opened",
    "first_aid": "first aid written",
    "diagnosed": "diagnosed",
    "acknowledged": "acknowledged",
    "resolved": "resolved",
    "joined": "goes on in the incident that it belongs to",
    "added": "belongs to this incident",
    "held_too_long": "held for too long",
    "escalated": "not acknowledged in time",
}


@dataclass(frozen=True, slots=True)
class ActionView:
    """One thing to do. `commands` are complete, one or more lines each."""

    what: str
    commands: tuple[str, ...]
    risk: str


@dataclass(frozen=True, slots=True)
class FindingView:
    """First aid, or a diagnosis. `error` says why there is no answer; `confidence` is high, medium or low."""

    summary: str
    cause: str
    confidence: str
    verdict: str
    actions: tuple[ActionView, ...]
    error: str = ""


@dataclass(frozen=True, slots=True)
class TicketView:
    """A ticket of the incident, as it is now."""

    id: int
    subject: str
    invariant: str
    component: str
    severity: str
    status: str
    message: str
    url: str
    opened_at: datetime
    resolved_at: datetime | None
    resolution: str
    acknowledged_by: str
    held: bool
    flapping: bool


@dataclass(frozen=True, slots=True)
class EventView:
    """What happened to a ticket. `text` says it in a few words."""

    name: str
    text: str
    ticket: int
    at: datetime
    by: str
    why: str


@dataclass(frozen=True, slots=True)
class IncidentView:
    """An incident for one target, and the events that a message tells.

    `status` is open, acknowledged or resolved, the latter too where all its tickets belong to another incident by now; `severity` that of its most urgent ticket which is not resolved.
    """

    thread: str
    status: str
    severity: str
    url: str
    tickets: tuple[TicketView, ...]
    events: tuple[EventView, ...]
    first_aid: FindingView | None
    diagnosis: FindingView | None
    at: datetime


class IncidentViews:
    """Makes views of incidents.

    Args:
        redactor: Removes secrets.
        base_url: Where people reach the server; None for no links.
    """

    def __init__(self, redactor: Redactor, base_url: str | None) -> None:
        self._redactor = redactor
        self._base_url = (base_url or "").rstrip("/")

    def view(
        self,
        thread: str,
        tickets: Sequence[Ticket],
        deliveries: Sequence[Delivery],
        diagnoses: Mapping[int, Diagnosis],
        at: datetime,
    ) -> IncidentView:
        """Return the view of an incident.

        Args:
            thread: The incident's name at its target.
            tickets: Its tickets, the most urgent first; one at least.
            deliveries: The events that the message is about.
            diagnoses: The diagnoses of the tickets, by id.
            at: The time.
        """
        moved = {one.ticket_id for one in deliveries if one.event == "joined"}
        unresolved = [
            one for one in tickets if not one.resolved and one.id not in moved
        ]
        lead = (unresolved or list(tickets))[0]
        return IncidentView(
            thread=thread,
            status=_status(unresolved),
            severity=lead.severity.label,
            url=self.link(lead.id),
            tickets=tuple(self._ticket(ticket) for ticket in tickets),
            events=tuple(self._event(one, at) for one in deliveries),
            first_aid=self._first_aid(unresolved or tickets),
            diagnosis=self._diagnosis(unresolved or tickets, diagnoses),
            at=at,
        )

    def link(self, ticket_id: int) -> str:
        """Return the page of a ticket; empty without a server."""
        return f"{self._base_url}/tickets/{ticket_id}" if self._base_url else ""

    def _line(self, text: Any, limit: int = _LINE) -> str:
        return one_line(self._redactor.text(str(text or "")), limit)

    def _ticket(self, ticket: Ticket) -> TicketView:
        return TicketView(
            id=ticket.id,
            subject=self._line(ticket.key.subject),
            invariant=self._line(ticket.key.invariant),
            component=self._line(ticket.key.component),
            severity=ticket.severity.label,
            status=ticket.status.value,
            message=self._line(ticket.message),
            url=self.link(ticket.id),
            opened_at=ticket.opened_at,
            resolved_at=ticket.resolved_at,
            resolution=self._line(ticket.resolution),
            acknowledged_by=self._line(ticket.acknowledged_by),
            held=ticket.held,
            flapping=ticket.flapping,
        )

    def _event(self, delivery: Delivery, at: datetime) -> EventView:
        written = delivery.content.get("at")
        return EventView(
            name=delivery.event,
            text=_VERBS.get(delivery.event, delivery.event),
            ticket=delivery.ticket_id or 0,
            at=datetime.fromisoformat(written) if isinstance(written, str) else at,
            by=self._line(delivery.content.get("by")),
            why=self._line(delivery.content.get("why")),
        )

    def _first_aid(self, tickets: Sequence[Ticket]) -> FindingView | None:
        for ticket in tickets:
            answer = (ticket.first_aid or {}).get("answer")
            if isinstance(answer, dict):
                return self._finding(answer)
        return None

    def _diagnosis(
        self, tickets: Sequence[Ticket], diagnoses: Mapping[int, Diagnosis]
    ) -> FindingView | None:
        for ticket in tickets:
            found = diagnoses.get(ticket.diagnosis_id or 0)
            if found is not None:
                error = "" if found.answer else found.error or found.outcome
                return self._finding(found.answer or {}, error)
        return None

    def _finding(self, answer: Json, error: str = "") -> FindingView:
        actions = answer.get("recommended_actions")
        return FindingView(
            summary=self._line(answer.get("summary"), 1000),
            cause=self._line(answer.get("root_cause"), 1000),
            confidence=self._line(answer.get("confidence")),
            verdict=self._line(answer.get("verdict")).replace("_", " "),
            actions=tuple(
                self._action(one)
                for one in (actions if isinstance(actions, list) else [])
                if isinstance(one, dict)
            )[:_MOST_ACTIONS],
            error=self._line(error),
        )

    def _action(self, action: Json) -> ActionView:
        commands = action.get("commands")
        return ActionView(
            what=self._line(action.get("what")),
            commands=tuple(
                self._line(one, 1000)
                for one in (commands if isinstance(commands, list) else [])
            )[:_MOST_COMMANDS],
            risk=self._line(action.get("risk")),
        )


def _status(unresolved: Sequence[Ticket]) -> str:
    if not unresolved:
        return "resolved"
    acknowledged = all(ticket.acknowledged_at for ticket in unresolved)
    return "acknowledged" if acknowledged else "open"
