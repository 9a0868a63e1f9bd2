"""The lines of the log about one cycle of a subject."""

from __future__ import annotations

from collections.abc import Iterable

from midwatch.logs import Log
from midwatch.monitor.result import Poll
from midwatch.store.protocol import Changes


def log_cycle(
    log: Log,
    subject: str,
    poll: Poll,
    changes: Changes,
    opened: Iterable[int],
) -> None:
    """Log what a cycle did: a failed poll, tickets that opened and resolved, and what became silent.

    `opened` are the ids of the tickets of `changes.openings`.
    """
    if poll.error:
        log.warning("not observed", subject=subject, error=poll.error)
    for id_, opening in zip(opened, changes.openings, strict=True):
        found = opening.violation
        log.warning(
            "ticket opened",
            ticket=id_,
            subject=subject,
            invariant=found.key.invariant,
            component=found.key.component,
            severity=found.severity.label,
            message=found.message,
        )
    for one in changes.silenced:
        log.info(
            "violation silenced",
            subject=subject,
            invariant=one.key.invariant,
            component=one.key.component,
            by=one.held.by,
            until=one.held.until and one.held.until.isoformat(),
        )
    for id_ in changes.resolved:
        log.info("ticket resolved", ticket=id_, subject=subject)
