"""The part of the store protocol that the on-call stack needs.

What is said of `midwatch.store.protocol` holds here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from midwatch.model import Ticket
from midwatch.received import KeptAlert, PushedAlerts


@dataclass(frozen=True, slots=True)
class Push:
    """What one request brought for a subject.

    Attributes:
        subject: Name of the subject.
        sender: What pushed it, such as "alertmanager"; the history of a ticket names it.
        alerts: The alerts, in the order in which the sender has them.
        group: The sender's name for the group of alerts.
        truncated: How many alerts of the group were left out.
        heartbeat: Whether the sender's heartbeat alert is among what it reports as firing.
        heartbeat_within: Seconds after which a heartbeat is overdue; None without one. While it is overdue,
            what is reported as resolved resolves no ticket.
        most_tickets: Unresolved tickets of the subject from which on a push opens no more.
        linked: Names of the subjects whose tickets may be of one incident with those of this one.
    """

    subject: str
    sender: str
    alerts: tuple[KeptAlert, ...]
    group: str = ""
    truncated: int = 0
    heartbeat: bool = False
    heartbeat_within: float | None = None
    most_tickets: int = 500
    linked: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PushRules:
    """How tickets of pushed alerts open; all in seconds but `flapping_openings`, as in `MonitorSettings`."""

    group_wait: float = 0.0
    flapping_window: float = 3600.0
    flapping_openings: int = 3


@dataclass(frozen=True, slots=True)
class Accepted:
    """What pushes changed: the tickets that opened, and the ids of those that were resolved."""

    opened: tuple[Ticket, ...] = ()
    resolved: tuple[int, ...] = ()


class OnCallStore(Protocol):
    """The feed of changes, silences, pushed alerts, deliveries, tokens and investigations."""

    # -------------------------------------------------- the feed of changes

    # -------------------------------------------------- silences

    # -------------------------------------------------- pushed alerts
    async def receive(self, pushes: Sequence[Push], rules: PushRules) -> Accepted:
        """Save pushed alerts, and open and resolve their tickets, all in one transaction.

        Args:
            pushes: The requests, in the order in which they came. They may be for several subjects.
            rules: How tickets open.
        """
        ...

    async def pushed_alerts(self, subject: str) -> PushedAlerts:
        """Return what was pushed to a subject and fires; what has a ticket comes first, then the most urgent."""
        ...

    async def forget_alerts(self, older_than: float) -> int:
        """Remove alerts that were resolved more than `older_than` seconds ago. Return how many."""
        ...


    # -------------------------------------------------- deliveries

    # -------------------------------------------------- tokens

    # -------------------------------------------------- investigations and idempotent requests
