"""`midwatch tickets …`: list, show, acknowledge, hold, resolve, retry, history."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.documents import history_document, ticket_document, ticket_row
from midwatch.cli.output import Output
from midwatch.cli.pages import history_table, show_ticket, ticket_table
from midwatch.cli.wiring import Edge, use_store
from midwatch.errors import Conflict
from midwatch.model import AuditRow, Diagnosis, Severity, Ticket, TicketStatus

if TYPE_CHECKING:
    from midwatch.store.protocol import Brief, Store, TicketFilter, TicketSession

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
