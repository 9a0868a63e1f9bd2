"""What sends messages to a target, and how it fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from midwatch.errors import PermanentError, TemporaryError
from midwatch.model import Json
from midwatch.notify.message import Limits, Message

Reference = Mapping[str, object]
"""What a sender keeps of a thread: how its service names it, and what it was sent."""


class SendFailed(TemporaryError):
    """A message could not be sent now."""


class SendRefused(PermanentError):
    """The service refused this message, and would refuse it again."""


class Sender(Protocol):
    """Sends messages to one target."""

    async def limits(self) -> Limits:
        """Return the markup and the limits of its service. Raises SettingsError for a target that cannot be used."""
        ...

    async def send(self, message: Message, reference: Reference) -> Json | None:
        """Send a message, or edit what was sent before.

        Args:
            message: The message.
            reference: What the last `send` in this thread returned; empty for the first.

        Returns:
            What to keep of the thread, or None where there was no need to tell this.

        Raises:
            SendFailed: It was not sent, or that is not known; a later attempt can help.
            SendRefused: It was not sent, and never will be.
        """
        ...

    async def close(self) -> None:
        """Close what is open."""
        ...


def news_of(message: Message, reference: Reference) -> bool:
    """Return whether a message tells more than a count that changed, in a thread that cannot be edited.

    Another ticket on an invariant that was sent before is such a count, unless it is more urgent or the incident was reported as resolved.
    """
    if not reference or message.events - {"opened", "first_aid"}:
        return True
    if "first_aid" in message.events and not reference.get("first_aid"):
        return True
    known = reference.get("about")
    now = about(message)["about"]
    return (
        not isinstance(known, list)
        or not isinstance(now, list)
        or any(one not in known for one in now)
        or reference.get("status") == "resolved"
        or _urgency(message.incident.severity)
        < _urgency(str(reference.get("severity")))
    )


def about(message: Message) -> Json:
    """Return what a thread has been sent with a message, for `news_of`."""
    incident = message.incident
    pairs = sorted({f"{one.subject} {one.invariant}" for one in incident.tickets})
    return {
        "about": pairs,
        "severity": incident.severity,
        "status": incident.status,
        "first_aid": incident.first_aid is not None,
    }


def _urgency(label: str) -> int:
    order = ("critical", "warning", "info")
    return order.index(label) if label in order else len(order)
