"""Violations and open tickets to changes: pure.

A key that is broken has a ticket; one that is known to hold has none, unless a person holds
it; one that is unknown keeps what it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from midwatch.checks import Checked, Ripe
from midwatch.model import Key, Ticket


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What is to change; the openings still lack what the store knows of their past."""

    openings: tuple[Ripe, ...] = ()
    missing: tuple[Ticket, ...] = ()
    returned: tuple[Ticket, ...] = ()
    resolved: tuple[Ticket, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.openings or self.missing or self.returned or self.resolved)


def reconcile(tickets: Mapping[Key, Ticket], checked: Checked) -> Reconciled:
    """Compare the unresolved tickets of a subject with one look at it."""
    missing: list[Ticket] = []
    returned: list[Ticket] = []
    resolved: list[Ticket] = []
    for key, ticket in tickets.items():
        if key in checked.broken:
            if not ticket.seen:
                returned.append(ticket)
        elif checked.known(key) and not ticket.held:
            resolved.append(ticket)
        elif ticket.seen:
            missing.append(ticket)
    openings = tuple(ripe for ripe in checked.ripe if ripe.violation.key not in tickets)
    return Reconciled(openings, tuple(missing), tuple(returned), tuple(resolved))


def by_key(tickets: Iterable[Ticket]) -> dict[Key, Ticket]:
    return {ticket.key: ticket for ticket in tickets}
