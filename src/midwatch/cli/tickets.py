"""`midwatch tickets …`: list, show, acknowledge, hold, resolve, retry, history."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.app import App, Edge, open_app, use_store
from midwatch.cli.output import (
    BOLD,
    DIM,
    GREEN,
    RED,
    SEVERITY_STYLES,
    YELLOW,
    Cell,
    Output,
    iso,
)
from midwatch.errors import Conflict, MidwatchError
from midwatch.model import AuditRow, Diagnosis, Json, Severity, Ticket, TicketStatus
from midwatch.store.protocol import Brief, TicketSession
from midwatch.text import one_line

if TYPE_CHECKING:
    from midwatch.agent.diagnosis import Prompt
    from midwatch.store.protocol import Store, TicketFilter


# ------------------------------------------------------------ pages
# Tickets as people read them.

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


# ------------------------------------------------------------ documents
# Tickets, diagnoses and history as JSON; docs/json.md is the table of these fields.


def ticket_row(ticket: Ticket, brief: Brief | None) -> Json:
    """A ticket in a list: without its long texts."""
    return {
        **_fact_documents(ticket),
        "diagnosis": None if brief is None else asdict(brief),
    }


def ticket_document(
    ticket: Ticket, diagnosis: Diagnosis | None, sessions: Sequence[TicketSession]
) -> Json:
    """A ticket with everything that is known of it."""
    return {
        **_fact_documents(ticket),
        "facts": dict(ticket.facts),
        "first_aid": ticket.first_aid,
        "diagnosis": None if diagnosis is None else diagnosis_document(diagnosis),
        "sessions": [
            {**asdict(session), "created_at": iso(session.created_at)}
            for session in sessions
        ],
    }


def _fact_documents(ticket: Ticket) -> Json:
    return {
        "id": ticket.id,
        "subject": ticket.key.subject,
        "invariant": ticket.key.invariant,
        "component": ticket.key.component,
        "severity": ticket.severity.label,
        "status": ticket.status.value,
        "held": ticket.held,
        "flapping": ticket.flapping,
        "seen": ticket.seen,
        "message": ticket.message,
        "first_seen_at": iso(ticket.first_seen_at),
        "opened_at": iso(ticket.opened_at),
        "last_seen_at": iso(ticket.last_seen_at),
        "occurrence_count": ticket.occurrence_count,
        "batch": ticket.batch,
        "previous_id": ticket.previous_id,
        "acknowledged_at": _iso(ticket.acknowledged_at),
        "acknowledged_by": ticket.acknowledged_by,
        "attempts": ticket.attempts,
        "next_attempt_at": _iso(ticket.next_attempt_at),
        "last_error": ticket.last_error,
        "resolved_at": _iso(ticket.resolved_at),
        "resolution": ticket.resolution,
    }


def diagnosis_document(diagnosis: Diagnosis) -> Json:
    answer = diagnosis.answer or {}
    return {
        "id": diagnosis.id,
        "outcome": diagnosis.outcome,
        "verdict": answer.get("verdict"),
        "summary": answer.get("summary"),
        "root_cause": answer.get("root_cause"),
        "confidence": diagnosis.confidence,
        "grounded": None if diagnosis.grounded is None else asdict(diagnosis.grounded),
        "explains": list(diagnosis.explains),
        "model": diagnosis.model,
        "prompt_version": diagnosis.prompt_version,
        "started_at": iso(diagnosis.started_at),
        "finished_at": _iso(diagnosis.finished_at),
        "usage": asdict(diagnosis.usage),
        "cost_usd": diagnosis.cost_usd,
        "error": diagnosis.error,
        "request_id": diagnosis.request_id,
        "answer": diagnosis.answer,
        "evidence": [
            {**asdict(piece), "at": iso(piece.at)} for piece in diagnosis.evidence
        ],
        "markdown": diagnosis.markdown,
    }


def history_document(row: AuditRow) -> Json:
    return {
        "ticket": row.ticket_id,
        "at": iso(row.at),
        "actor": row.actor,
        "action": row.action,
        "from": row.before,
        "to": row.after,
        "why": row.why,
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else iso(at)


app = typer.Typer()

tickets = typer.Typer(help="List, show and change tickets.", no_args_is_help=True)
app.add_typer(tickets, name="tickets")

UNRESOLVED = tuple(
    status for status in TicketStatus if status is not TicketStatus.RESOLVED
)


class SeverityName(StrEnum):
    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


Id = Annotated[int, typer.Argument(metavar="ID", help="A ticket's number.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
Why = Annotated[str, typer.Option("--why", help="The reason, for the history.")]


@tickets.command("list")
def list_(
    context: typer.Context,
    all_: Annotated[
        bool, typer.Option("--all", help="Resolved ones too, the newest first.")
    ] = False,
    status: Annotated[
        list[TicketStatus] | None, typer.Option(help="Only these; may be repeated.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Only this subject.")] = None,
    severity: Annotated[
        SeverityName | None, typer.Option(help="Only this severity.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Only the tickets of this incident.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Unresolved tickets, the critical ones first."""
    from midwatch.store.protocol import TicketFilter

    statuses = tuple(status or ()) or (() if all_ else UNRESOLVED)
    level = None if severity is None else Severity.parse(severity)
    query = TicketFilter(statuses, subject, level, batch, limit + 1)
    edge: Edge = context.obj
    found, briefs = use_store(edge, lambda store: _listed(store, query))
    output = Output.standard(edge.environ)
    shown = found[:limit]
    if as_json:
        output.json([ticket_row(one, briefs.get(one.id)) for one in shown])
    elif shown:
        ticket_table(output, shown, briefs)
    else:
        typer.echo("no such tickets" if status else "no tickets", err=True)
    if len(found) > limit:
        typer.echo(f"the first {limit} are shown; --limit shows more", err=True)


async def _listed(
    store: Store, query: TicketFilter
) -> tuple[list[Ticket], dict[int, Brief]]:
    """The tickets, and by ticket what their diagnoses say in a few words."""
    found = await store.tickets(query)
    wanted = {one.diagnosis_id for one in found if one.diagnosis_id is not None}
    briefs = await store.briefs(sorted(wanted)) if wanted else {}
    return found, {
        one.id: briefs[one.diagnosis_id]
        for one in found
        if one.diagnosis_id is not None and one.diagnosis_id in briefs
    }


# ------------------------------------------------------------------ one ticket


@tickets.command()
def show(context: typer.Context, ticket_id: Id, as_json: AsJson = False) -> None:
    """A ticket with its first aid, its diagnosis and every attempt at one."""
    print_ticket(context.obj, ticket_id, as_json)


def print_ticket(edge: Edge, ticket_id: int, as_json: bool) -> None:
    known = use_store(edge, lambda store: read_ticket(store, ticket_id))
    print_known(
        Output.standard(edge.environ),
        known,
        settled(known.ticket, known.attempts),
        as_json,
    )


@dataclass(frozen=True, slots=True)
class Known:
    """A ticket, every attempt at its diagnosis, and its sessions; the oldest first."""

    ticket: Ticket
    attempts: list[Diagnosis]
    sessions: list[TicketSession]


async def read_ticket(store: Store, ticket_id: int) -> Known:
    """Raises NotFound."""
    return Known(
        await store.ticket(ticket_id),
        await store.diagnoses(ticket_id),
        await store.sessions_of(ticket_id),
    )


def print_known(
    output: Output, known: Known, diagnosis: Diagnosis | None, as_json: bool
) -> None:
    if as_json:
        output.json(ticket_document(known.ticket, diagnosis, known.sessions))
    else:
        show_ticket(output, known.ticket, diagnosis, known.attempts, known.sessions)


def settled(ticket: Ticket, attempts: list[Diagnosis]) -> Diagnosis | None:
    """The attempt whose answer, or error, is the ticket's diagnosis."""
    for attempt in attempts:
        if attempt.id == ticket.diagnosis_id:
            return attempt
    return None


@tickets.command()
def history(context: typer.Context, ticket_id: Id, as_json: AsJson = False) -> None:
    """Every change of a ticket: who or what, from, to, why, when."""

    async def read(store: Store) -> list[AuditRow]:
        return await store.history(ticket_id)

    rows = use_store(context.obj, read)
    output = Output.standard(context.obj.environ)
    if as_json:
        output.json([history_document(row) for row in rows])
    else:
        history_table(output, rows)


# ------------------------------------------------------------------ changes


@tickets.command()
def ack(
    context: typer.Context,
    ticket_ids: Annotated[list[int], typer.Argument(metavar="ID…")],
    why: Why = "",
    as_json: AsJson = False,
) -> None:
    """Say that you are on it."""
    actor = user_at_host()
    for ticket_id in ticket_ids:

        async def acknowledge(store: Store, ticket_id: int = ticket_id) -> Ticket:
            return await store.acknowledge(ticket_id, actor, why)

        _change(context.obj, acknowledge, as_json)


@tickets.command()
def hold(
    context: typer.Context, ticket_id: Id, why: Why = "", as_json: AsJson = False
) -> None:
    """Keep a ticket from resolving by itself."""
    actor = user_at_host()
    _change(context.obj, lambda store: store.hold(ticket_id, True, actor, why), as_json)


@tickets.command()
def unhold(
    context: typer.Context, ticket_id: Id, why: Why = "", as_json: AsJson = False
) -> None:
    """Let it resolve by itself again."""
    actor = user_at_host()
    _change(
        context.obj, lambda store: store.hold(ticket_id, False, actor, why), as_json
    )


@tickets.command()
def resolve(
    context: typer.Context,
    ticket_id: Id,
    why: Annotated[
        str, typer.Option("--why", help="What resolved it; later diagnoses learn it.")
    ],
    as_json: AsJson = False,
) -> None:
    """Resolve a ticket by hand. One that is broken still opens anew at the next look."""
    if not why.strip():
        raise Conflict("a ticket is not resolved without a reason", hint="--why TEXT")
    actor = user_at_host()
    _change(context.obj, lambda store: store.resolve(ticket_id, actor, why), as_json)


@tickets.command()
def retry(
    context: typer.Context, ticket_id: Id, why: Why = "", as_json: AsJson = False
) -> None:
    """Put a ticket back into the queue, to be diagnosed anew."""
    actor = user_at_host()
    _change(context.obj, lambda store: store.retry(ticket_id, actor, why), as_json)


def _change(
    edge: Edge, change: Callable[[Store], Awaitable[Ticket]], as_json: bool
) -> None:
    ticket = use_store(edge, change)
    output = Output.standard(edge.environ)
    if as_json:
        output.json(ticket_row(ticket, None))
    else:
        held = ", held" if ticket.held else ""
        output.line(f"ticket {ticket.id}: {ticket.status.value}{held}")


def user_at_host() -> str:
    """Who makes a change: the user that the process runs as, whatever its environment says."""
    import os
    import pwd
    import socket

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


# ------------------------------------------------------------ diagnose
# `midwatch diagnose`: one ticket's incident, now; or what would be sent for it.

_MOST = 10_000  # tickets of one batch
UNDIAGNOSED = (TicketStatus.OPEN, TicketStatus.ACKNOWLEDGED)


@app.command()
def diagnose(
    context: typer.Context,
    ticket_id: Id,
    show_prompt: Annotated[
        bool,
        typer.Option(
            "--show-prompt", help="Print what would be sent; ask nobody, claim nothing."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Diagnose a ticket's incident now, instead of when its turn comes."""
    import asyncio

    edge: Edge = context.obj
    output = Output.standard(edge.environ)
    if show_prompt:
        prompt = asyncio.run(_prompt(edge, ticket_id))
        if as_json:
            output.json({"system": prompt.system, "user": prompt.user})
        else:
            output.line(prompt.show().rstrip("\n"))
        return
    known = asyncio.run(_diagnose(edge, ticket_id))
    ticket, attempts = known.ticket, known.attempts
    # The answer may be for others of the incident: then the last attempt is what to show.
    diagnosis = settled(ticket, attempts) or attempts[-1]
    print_known(output, known, diagnosis, as_json)
    if diagnosis.outcome not in ("answered", "cut"):
        raise MidwatchError(
            f"no diagnosis: {diagnosis.error or diagnosis.outcome}",
            hint=f"`midwatch tickets retry {ticket_id}` when that is put right",
        )
    if ticket.diagnosis_id is None and not ticket.resolved:
        typer.echo(
            f"ticket {ticket_id} is not among what the answer explains: it is queued again",
            err=True,
        )


# ------------------------------------------------------------------ the prompt


async def _prompt(edge: Edge, ticket_id: int) -> Prompt:
    from midwatch.agent.attempt import GATHER_SECONDS
    from midwatch.agent.diagnosis import compose

    async with open_app(edge, sys.stderr) as opened:
        ticket = await opened.store.ticket(ticket_id)
        gathered = await opened.gatherer.gather(
            await _incident(opened, ticket),
            timeout=GATHER_SECONDS,
            tokens=opened.settings.agent.context_tokens,
        )
        return compose(gathered)


async def _incident(opened: App, ticket: Ticket) -> list[Ticket]:
    """The tickets that a claim of this one's batch would hold, in its order; of a ticket that
    is settled, itself: a retry gives it a batch of its own."""
    from midwatch.store.protocol import TicketFilter

    if ticket.status not in UNDIAGNOSED:
        return [ticket]
    query = TicketFilter(UNDIAGNOSED, batch=ticket.batch, limit=_MOST)
    found = await opened.store.tickets(query)
    return sorted(found, key=lambda one: (one.severity, one.id))


# ------------------------------------------------------------------ the call


async def _diagnose(edge: Edge, ticket_id: int) -> Known:
    """Raises Conflict when the ticket cannot be diagnosed now, MidwatchError when there is
    no answer to show."""
    from midwatch.agent.runner import Blocked
    from midwatch.lifecycle import StopEvent, stop_on_signals

    async with open_app(edge, sys.stderr) as opened:
        ticket = await opened.store.ticket(ticket_id)
        _refuse_settled(ticket)
        stop = StopEvent()
        with stop_on_signals(stop):
            ended = await opened.agent().diagnose(ticket.batch, stop)
        if isinstance(ended, Blocked):
            raise MidwatchError(f"not diagnosing: {ended.reason}")
        if ended is None:
            raise Conflict(
                f"ticket {ticket_id} is being diagnosed by somebody else",
                hint=f"see `midwatch tickets show {ticket_id}` in a moment",
            )
        if ended.outcome == "budget":
            raise MidwatchError(
                "the budget of the day is spent",
                hint="raise agent.daily_budget_usd, or wait until midnight UTC",
            )
        found = await read_ticket(opened.store, ticket_id)
        if not found.attempts:
            raise MidwatchError(f"no diagnosis was made: {ended.outcome}")
        return found


def _refuse_settled(ticket: Ticket) -> None:
    if ticket.status is TicketStatus.DIAGNOSED:
        raise Conflict(
            f"ticket {ticket.id} is diagnosed already",
            hint=f"`midwatch tickets retry {ticket.id}` puts it back into the queue",
        )
    if ticket.resolved:
        raise Conflict(f"ticket {ticket.id} is resolved already")
