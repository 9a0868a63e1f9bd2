"""Tickets as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from midwatch.cli.output import (
    BOLD,
    DIM,
    GREEN,
    RED,
    SEVERITY_STYLES,
    YELLOW,
    Cell,
    Output,
)
from midwatch.model import AuditRow, Diagnosis, Ticket, TicketStatus
from midwatch.text import one_line

if TYPE_CHECKING:
    from midwatch.store.protocol import Brief, TicketSession

_MESSAGE = 5  # the column that is shortened
_STATUS_STYLES = {
    TicketStatus.OPEN: BOLD,
    TicketStatus.RESOLVED: GREEN,
}
_OUTCOME_STYLES = {"answered": GREEN, "error": RED, "refused": RED, "cut": YELLOW}


def ticket_table(
    output: Output, tickets: Sequence[Ticket], briefs: Mapping[int, Brief]
) -> None:
    """Tickets one a line; `briefs` by ticket."""
    if not tickets:
        if output.terminal:
            output.line("no tickets", DIM)
        return
    headings = (
        "id",
        "severity",
        "status",
        "subject",
        "component",
        "message",
        "since",
        "diagnosis",
    )
    rows = [_ticket_row(output, one, briefs.get(one.id)) for one in tickets]
    output.table(headings, rows, shrink=_MESSAGE)


def _ticket_row(output: Output, ticket: Ticket, brief: Brief | None) -> list[Cell]:
    severity = ticket.severity.label
    return [
        Cell(str(ticket.id)),
        Cell(severity, SEVERITY_STYLES[severity]),
        Cell(_status(ticket), _STATUS_STYLES.get(ticket.status, "")),
        Cell(ticket.key.subject),
        Cell(ticket.key.component),
        Cell(ticket.message),
        Cell(output.when(ticket.first_seen_at)),
        Cell(_diagnosis(output, ticket, brief)),
    ]


def _status(ticket: Ticket) -> str:
    marks = [ticket.status.value]
    if ticket.held:
        marks.append("held")
    if ticket.flapping:
        marks.append("flapping")
    return ", ".join(marks)


def _diagnosis(output: Output, ticket: Ticket, brief: Brief | None) -> str:
    """What was found; else how far the tries are."""
    if brief is not None:
        found = "/".join(part for part in (brief.verdict, brief.confidence) if part)
        return found if brief.outcome == "answered" else f"{brief.outcome} {found}"
    if not ticket.attempts:
        return ""
    said = f"{ticket.attempts} tried"
    if ticket.next_attempt_at is not None and not ticket.resolved:
        said += f", next {output.when(ticket.next_attempt_at)}"
    return said


# ------------------------------------------------------------------ one ticket


def show_ticket(
    output: Output,
    ticket: Ticket,
    diagnosis: Diagnosis | None,
    attempts: Sequence[Diagnosis],
    sessions: Sequence[TicketSession],
) -> None:
    """A ticket, its first aid, its diagnosis, the attempts, its sessions, and what resolved it."""
    severity = ticket.severity.label
    title = f"Ticket {ticket.id}: {severity}, {_status(ticket)}"
    output.line(title, SEVERITY_STYLES[severity] or BOLD)
    output.line(one_line(ticket.message, 2000))
    output.line()
    for name, value in _facts(output, ticket):
        output.line(f"  {name + ':':<14}{value}")
    _section(output, (ticket.first_aid or {}).get("markdown"))
    if diagnosis is not None:
        _section(output, diagnosis.markdown or _without_answer(diagnosis))
    if attempts:
        output.line()
        output.line("Attempts", BOLD)
        attempts_table(output, attempts)
    if sessions:
        output.line()
        output.line("Sessions", BOLD)
        sessions_table(output, sessions)


def _facts(output: Output, ticket: Ticket) -> list[tuple[str, str]]:
    key = ticket.key
    facts = [
        ("subject", one_line(key.subject)),
        ("invariant", one_line(key.invariant)),
        ("component", one_line(key.component, 500)),
        ("first seen", output.when(ticket.first_seen_at)),
        ("last seen", _last_seen(output, ticket)),
        ("incident", f"batch {ticket.batch}"),
    ]
    if ticket.previous_id is not None:
        facts.append(("earlier", f"ticket {ticket.previous_id}, of the same key"))
    if ticket.acknowledged_at is not None:
        by = one_line(ticket.acknowledged_by or "")
        facts.append(("acknowledged", f"{output.when(ticket.acknowledged_at)} by {by}"))
    if ticket.resolved_at is not None:
        why = one_line(ticket.resolution or "", 500)
        facts.append(("resolved", f"{output.when(ticket.resolved_at)}: {why}"))
    elif ticket.next_attempt_at is not None:
        facts.append(("next attempt", output.when(ticket.next_attempt_at)))
    if ticket.last_error:
        facts.append(("last error", one_line(ticket.last_error, 500)))
    return facts


def _last_seen(output: Output, ticket: Ticket) -> str:
    times = (
        "once" if ticket.occurrence_count == 1 else f"{ticket.occurrence_count} times"
    )
    unseen = "" if ticket.seen or ticket.resolved else "; not by the last look"
    return f"{output.when(ticket.last_seen_at)}, {times}{unseen}"


def _section(output: Output, markdown: str | None) -> None:
    if markdown:
        output.line()
        output.markdown(markdown)


def _without_answer(diagnosis: Diagnosis) -> str:
    """An error is a diagnosis too: it says why there is no answer."""
    from midwatch.text import markdown_escape

    error = markdown_escape(one_line(diagnosis.error or "no reason is known", 2000))
    return f"## Diagnosis\n\n**{diagnosis.outcome}**: {error}\n"


def attempts_table(output: Output, attempts: Sequence[Diagnosis]) -> None:
    headings = ("started", "outcome", "model", "claims", "tokens", "cost", "error")
    rows = [
        [
            Cell(output.when(one.started_at)),
            Cell(one.outcome, _OUTCOME_STYLES.get(one.outcome, "")),
            Cell(one.model),
            Cell(
                f"{one.grounded.verified}/{one.grounded.total}" if one.grounded else ""
            ),
            Cell(f"{tokens(one):,}"),
            Cell(f"${one.cost_usd:.4f}"),
            Cell(one.error or ""),
        ]
        for one in attempts
    ]
    output.table(headings, rows, shrink=len(headings) - 1)


def sessions_table(output: Output, sessions: Sequence[TicketSession]) -> None:
    output.table(
        ("session", "phase", "since"),
        [
            [Cell(one.id), Cell(one.phase), Cell(output.when(one.created_at))]
            for one in sessions
        ],
    )


def tokens(diagnosis: Diagnosis) -> int:
    usage = diagnosis.usage
    return (
        usage.input_tokens
        + usage.output_tokens
        + usage.cache_read_tokens
        + usage.cache_write_tokens
    )


def history_table(output: Output, rows: Sequence[AuditRow]) -> None:
    headings = ("when", "who", "what", "from", "to", "why")
    output.table(
        headings,
        [
            [
                Cell(output.when(row.at)),
                Cell(row.actor),
                Cell(row.action),
                Cell(row.before or ""),
                Cell(row.after or ""),
                Cell(row.why),
            ]
            for row in rows
        ],
        shrink=len(headings) - 1,
    )
