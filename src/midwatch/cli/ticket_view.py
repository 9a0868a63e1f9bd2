"""What the commands of tickets print: tables for people, JSON for programs.

docs/json.md lists the fields of the JSON, which are stable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from midwatch.json_shapes import (
    pull_request_state,
    runbook_url,
    settled_because,
    ticket_runbooks,
)
from midwatch.model import (
    UNDIAGNOSED,
    AuditRow,
    Diagnosis,
    Ticket,
    TicketStatus,
)
from midwatch.text import one_line

if TYPE_CHECKING:
    from midwatch.store.on_call import PullRequest
    from midwatch.store.protocol import Brief, TicketSession

_STATUS_STYLES = {
    TicketStatus.OPEN: BOLD,
    TicketStatus.GIVEN_UP: RED,
    TicketStatus.RESOLVED: GREEN,
}
_OUTCOME_STYLES = {
    "answered": GREEN,
    "error": RED,
    "refused": RED,
    "cut": YELLOW,
}
_SETTLED = (TicketStatus.DIAGNOSED, TicketStatus.GIVEN_UP)


def ticket_table(
    output: Output, tickets: Sequence[Ticket], briefs: Mapping[int, Brief]
) -> None:
    """Print one line per ticket.

    Args:
        output: Where to print.
        tickets: The tickets, in the order of the lines.
        briefs: The outcome of each diagnosis, by the ticket's id.
    """
    if not tickets:
        if output.terminal:
            output.line("no tickets", DIM)
        return
    headings = (
        "id",
        "severity",
        "status",
        "subject",
        "invariant",
        "component",
        "message",
        "since",
        "diagnosis",
    )
    rows = [_ticket_row(output, one, briefs.get(one.id)) for one in tickets]
    shrink = ("component", "message", "invariant", "subject", "status", "diagnosis")
    output.table(headings, rows, shrink, drop=("diagnosis", "component"))


def _ticket_row(output: Output, ticket: Ticket, brief: Brief | None) -> list[Cell]:
    severity = ticket.severity.label
    return [
        Cell(str(ticket.id)),
        Cell(severity, SEVERITY_STYLES[severity]),
        Cell(status_text(ticket), _STATUS_STYLES.get(ticket.status, "")),
        Cell(ticket.key.subject),
        Cell(ticket.key.invariant),
        Cell(ticket.key.component),
        Cell(ticket.message),
        Cell(output.age(ticket.first_seen_at)),
        Cell(_diagnosis(output, ticket, brief)),
    ]


def status_text(ticket: Ticket) -> str:
    """Return the status of a ticket with what else is true of it: `diagnosed, acked, held`."""
    marks = [ticket.status.value]
    if ticket.acknowledged_at is not None and ticket.status in _SETTLED:
        marks.append("acked")
    if ticket.held:
        marks.append("held")
    if ticket.flapping:
        marks.append("flapping")
    if ticket.silenced_by is not None and not ticket.resolved:
        marks.append("silenced")
    return ", ".join(marks)


def _diagnosis(output: Output, ticket: Ticket, brief: Brief | None) -> str:
    """Return the verdict of the diagnosis; without one, the attempts so far."""
    if brief is not None:
        verdict = "/".join(part for part in (brief.verdict, brief.confidence) if part)
        return (
            verdict
            if brief.outcome == "answered"
            else f"{brief.outcome} {verdict}".rstrip()
        )
    if not ticket.attempts:
        return ""
    progress = f"{ticket.attempts} tried"
    if ticket.next_attempt_at is not None and not ticket.resolved:
        progress += f", next {output.when(ticket.next_attempt_at)}"
    return progress


def show_ticket(
    output: Output,
    ticket: Ticket,
    diagnosis: Diagnosis | None,
    attempts: Sequence[Diagnosis],
    sessions: Sequence[TicketSession],
    unfold: bool = False,
    pull_requests: Sequence[PullRequest] = (),
) -> None:
    """Print a ticket with its diagnosis, its first aid, every attempt at a diagnosis, its sessions and pull requests.

    A terminal shows what is below the fold only with `unfold`.
    """
    severity = ticket.severity.label
    title = f"Ticket {ticket.id}: {severity}, {status_text(ticket)}"
    output.line(title, SEVERITY_STYLES[severity] or BOLD)
    output.line(one_line(ticket.message, 2000))
    output.line()
    output.pairs([*_details(output, ticket), *_settled(ticket, diagnosis)], indent=16)
    _runbooks(output, ticket, diagnosis)
    from midwatch.cli.ticket_page import ticket_pages

    for page in ticket_pages(ticket, diagnosis, attempts):
        output.line()
        output.markdown(page, unfold)
    if attempts:
        output.line()
        output.line("Attempts", BOLD)
        _attempts_table(output, attempts)
    if sessions:
        output.line()
        output.line("Sessions", BOLD)
        _sessions_table(output, sessions)
    if pull_requests:
        output.line()
        output.line("Pull requests", BOLD)
        _pull_requests_table(output, pull_requests)
    if output.terminal and not unfold and (ticket.first_aid or attempts):
        output.line(f"\n▸ is folded: midwatch tickets show {ticket.id} --all", DIM)


def _details(output: Output, ticket: Ticket) -> list[tuple[str, str]]:
    key = ticket.key
    details = [
        ("subject", one_line(key.subject)),
        ("invariant", one_line(key.invariant)),
        ("component", one_line(key.component, 500)),
        ("first seen", output.when(ticket.first_seen_at)),
        ("last seen", _last_seen(output, ticket)),
        ("incident", f"batch {ticket.batch}"),
    ]
    if ticket.previous_id is not None:
        details.append(("earlier", f"ticket {ticket.previous_id}, with the same key"))
    if ticket.acknowledged_at is not None:
        by = one_line(ticket.acknowledged_by or "")
        details.append(
            ("acknowledged", f"{output.when(ticket.acknowledged_at)} by {by}")
        )
    if ticket.resolved_at is not None:
        why = one_line(ticket.resolution or "", 500)
        details.append(("resolved", f"{output.when(ticket.resolved_at)}: {why}"))
    elif ticket.next_attempt_at is not None:
        details.append(("next attempt", output.when(ticket.next_attempt_at)))
    if ticket.silenced_by is not None and not ticket.resolved:
        until = ticket.silenced_until
        ends = f", until {output.when(until)}" if until is not None else ""
        details.append(("silenced", f"{one_line(ticket.silenced_by)}{ends}"))
    if (url := runbook_url(ticket)) is not None:
        details.append(("runbook", one_line(url, 1000)))
    if ticket.last_error:
        details.append(("last error", one_line(ticket.last_error, 500)))
    return details


def _runbooks(output: Output, ticket: Ticket, diagnosis: Diagnosis | None) -> None:
    """Print the runbooks of a ticket: where each is, its first steps, and what the evidence says against it."""
    from midwatch.runbooks.excerpt import first_steps

    found = ticket_runbooks(ticket, diagnosis)
    if found:
        output.line()
        output.line("Runbooks", BOLD)
    for one in found:
        output.line(f"{one['id']} {one_line(one['title'])}: {one_line(one['source'])}")
        if not one["available"]:
            reason = one["text"].rpartition("\n")[2]
            output.line(f"   {one_line(reason, 400)}", YELLOW)
        for point in one["contradicted"]:
            output.line(f"   does not fit: {one_line(point, 1000)}", RED)
        for number, step in enumerate(first_steps(one["text"]), 1):
            output.line(f"   {number}. {one_line(step, 300)}")


def _settled(ticket: Ticket, diagnosis: Diagnosis | None) -> Iterator[tuple[str, str]]:
    """Yield which diagnosis settled the ticket, and which one left it out."""
    if why := settled_because(ticket, diagnosis):
        yield "settled by", f"diagnosis {ticket.diagnosis_id}: {why}"
    if ticket.left_out_by is not None:
        queued = f"; queued again in batch {ticket.batch}"
        waits = ticket.status in UNDIAGNOSED
        yield "left out by", (
            f"diagnosis {ticket.left_out_by}, which does not name this ticket"
            f"{queued if waits else ''}"
        )


def _last_seen(output: Output, ticket: Ticket) -> str:
    times = (
        "once" if ticket.occurrence_count == 1 else f"{ticket.occurrence_count} times"
    )
    unseen = "" if ticket.seen or ticket.resolved else "; not in the last check"
    return f"{output.when(ticket.last_seen_at)}, {times}{unseen}"


def _attempts_table(output: Output, attempts: Sequence[Diagnosis]) -> None:
    headings = ("started", "outcome", "model", "claims", "tokens", "cost", "error")
    rows = [
        [
            Cell(output.when(one.started_at)),
            Cell(one.outcome, _OUTCOME_STYLES.get(one.outcome, "")),
            Cell(one.model),
            Cell(
                f"{one.grounded.verified}/{one.grounded.total}" if one.grounded else ""
            ),
            Cell(f"{_tokens(one):,}"),
            Cell(f"${one.cost_usd:.4f}"),
            Cell(one.error or ""),
        ]
        for one in attempts
    ]
    output.table(headings, rows, ("error", "model"), drop=("claims", "model", "tokens"))


def _sessions_table(output: Output, sessions: Sequence[TicketSession]) -> None:
    output.table(
        ("session", "phase", "since"),
        [
            [Cell(one.id), Cell(one.phase), Cell(output.when(one.created_at))]
            for one in sessions
        ],
        shrink=("phase",),
    )


def _pull_requests_table(output: Output, pulls: Sequence[PullRequest]) -> None:
    output.table(
        ("pull request", "state", "checks", "review", "since", "problem"),
        [
            [
                Cell(one.url or one.branch),
                Cell(pull_request_state(one)),
                Cell(one.checks),
                Cell(one.review.replace("_", " ")),
                Cell(output.when(one.created_at)),
                Cell(one.last_error or ""),
            ]
            for one in pulls
        ],
        shrink=("problem",),
        drop=("since", "review"),
    )


def _tokens(diagnosis: Diagnosis) -> int:
    usage = diagnosis.usage
    return (
        usage.input_tokens
        + usage.output_tokens
        + usage.cache_read_tokens
        + usage.cache_write_tokens
    )


def history_table(output: Output, rows: Sequence[AuditRow]) -> None:
    """Print one line per change of a ticket."""
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
        shrink=("why", "who"),
    )
