"""The lines of the log about one cycle of a subject."""

from __future__ import annotations

from collections.abc import Iterable

from midwatch.logs import Log
from midwatch.model import Ticket
from midwatch.monitor.result import Poll
from midwatch.silences import Silencing


def log_cycle(
    log: Log,
    subject: str,
    poll: Poll,
    opened: Iterable[Ticket],
    silenced: Iterable[Silencing],
    resolved: Iterable[int],
) -> None:
    """Log what a cycle did: a failed poll, tickets that opened and resolved, and what became silent."""
    if poll.error:
        log.warning("not observed", subject=subject, error=poll.error)
    for ticket in opened:
        log.warning(
            "ticket opened",
            ticket=ticket.id,
            subject=subject,
            invariant=ticket.key.invariant,
            component=ticket.key.component,
            severity=ticket.severity.label,
            message=ticket.message,
        )
    for one in silenced:
        log.info(
            "violation silenced",
            subject=subject,
            invariant=one.key.invariant,
            component=one.key.component,
            by=one.held.by,
            until=one.held.until and one.held.until.isoformat(),
        )
    for id_ in resolved:
        log.info("ticket resolved", ticket=id_, subject=subject)
