"""Which violations of a cycle are silent: no ticket opens for them, and no message is sent (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from midwatch.model import Key, OpenTicket, Violation
from midwatch.monitor.rules import CheckResult, Reconciled
from midwatch.silences import (
    Hold,
    InForce,
    SilencedViolation,
    Silencing,
    hold,
    labels_of,
    labels_of_violation,
    why_silent,
)
from midwatch.store.protocol import Opening


@dataclass(frozen=True, slots=True)
class Silenced:
    """What a cycle changes about silence.

    Attributes:
        openings: The violations that become tickets: no silence matches them.
        silent: Violations that are silent from now on, or by another silence.
        audible: Keys of violations that were silent and are not any more.
        quiet: Keys of the violations without a ticket that are silent.
    """

    openings: tuple[Opening, ...]
    silent: tuple[Silencing, ...] = ()
    audible: tuple[Key, ...] = ()
    quiet: frozenset[Key] = frozenset()


def silence(
    reconciled: Reconciled,
    checked: CheckResult,
    tickets: Mapping[Key, OpenTicket],
    present: Mapping[Key, SilencedViolation],
    silences: InForce,
    kind: str,
) -> Silenced:
    """Decide which violations and open tickets of a subject are silent.

    What is silent and out of sight stays recorded: when it is seen again it opens a ticket, or has cleared.

    Args:
        reconciled: The changes without silences.
        checked: The check of the cycle.
        tickets: The open tickets.
        present: The violations that are silent so far.
        silences: The silences that hold now.
        kind: The kind of the subject.
    """
    senders = any(one.violation.silenced_by for one in checked.firing)
    if not (silences or present or senders):
        return Silenced(reconciled.openings)
    firing = {one.violation.key: one for one in checked.firing}
    openings: list[Opening] = []
    silent: list[Silencing] = []
    audible: list[Key] = []
    for one in reconciled.openings:
        key, violation = one.violation.key, one.violation
        labels = labels_of_violation(violation, kind)
        held = hold(silences, labels, violation.silenced_by)
        if held is None:
            openings.append(one)
        elif _differs(present.get(key), held):
            silent.append(_of_violation(violation, held, one.seen_for, silences))
    resolved = {ticket.key for ticket in reconciled.resolved}
    for key, ticket in tickets.items():
        if key in resolved:
            continue
        held = hold(
            silences,
            labels_of(key, ticket.severity, ticket.facts, kind),
            _sender(firing.get(key), present.get(key)),
        )
        if held is None and key in present:
            audible.append(key)
        elif held is not None and _differs(present.get(key), held):
            silent.append(_of_ticket(ticket, firing.get(key), held, silences))
    opened = {one.violation.key for one in openings}
    audible += _over(present, checked, tickets, opened)
    quiet = {*present, *(one.key for one in silent)} - {*audible, *tickets}
    return Silenced(tuple(openings), tuple(silent), tuple(audible), frozenset(quiet))


def _over(
    present: Iterable[Key],
    checked: CheckResult,
    tickets: Mapping[Key, OpenTicket],
    opened: set[Key],
) -> list[Key]:
    """Return the keys of silent violations without a ticket that cleared, or that open one now."""
    return [
        key
        for key in present
        if key not in tickets
        and (key in opened or (key not in checked.broken and checked.known(key)))
    ]


def _sender(firing: Opening | None, present: SilencedViolation | None) -> str:
    """Return what the sender of a ticket's alert says silences it; what it reported last if the alert is out of sight."""
    if firing is not None:
        return firing.violation.silenced_by
    if present is not None and present.silence_id is None:
        return present.by
    return ""


def _differs(present: SilencedViolation | None, held: Hold) -> bool:
    if present is None:
        return True
    was = (present.by, present.until, present.silence_id)
    return was != (held.by, held.until, held.silence_id)


def _of_violation(
    violation: Violation, held: Hold, seen_for: float, silences: InForce
) -> Silencing:
    return Silencing(
        violation.key,
        violation.severity,
        violation.message,
        held,
        why_silent(held, silences),
        seen_for,
    )


def _of_ticket(
    ticket: OpenTicket, firing: Opening | None, held: Hold, silences: InForce
) -> Silencing:
    # Without silences the tickets are known without their texts: then its sender silences it in what fires.
    message = ticket.message or (firing.violation.message if firing else "")
    return Silencing(
        ticket.key,
        ticket.severity,
        message,
        held,
        why_silent(held, silences),
        ticket_id=ticket.id,
    )
