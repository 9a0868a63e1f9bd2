"""`midwatch tickets …` and `midwatch diagnose`: read tickets, change them, diagnose one now."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.app import App, Edge, open_app, use_store
from midwatch.cli.completion import subject_names, ticket_numbers
from midwatch.cli.output import Output
from midwatch.cli.ticket_list import Shown, list_tickets
from midwatch.cli.ticket_view import (
    history_table,
    show_ticket,
    status_text,
)
from midwatch.errors import Conflict, MidwatchError, NotFound, raise_together
from midwatch.json_shapes import (
    history_document,
    settled,
    ticket_document,
    ticket_summary,
)
from midwatch.model import (
    UNDIAGNOSED,
    UNRESOLVED,
    AuditRow,
    Diagnosis,
    Severity,
    Ticket,
    TicketStatus,
)
from midwatch.store.on_call import Cursor, PullRequest
from midwatch.store.protocol import TicketFilter, TicketSession

if TYPE_CHECKING:
    from midwatch.agent.diagnosis import Prompt
    from midwatch.store.protocol import Store

app = typer.Typer()
tickets = typer.Typer()

_MAX_BATCH = 10_000  # tickets of one incident that are read


class SeverityName(StrEnum):
    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


Id = Annotated[
    int,
    typer.Argument(
        metavar="ID", help="Number of the ticket.", autocompletion=ticket_numbers
    ),
]
Ids = Annotated[
    list[int],
    typer.Argument(
        metavar="ID…", help="Numbers of the tickets.", autocompletion=ticket_numbers
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Why = Annotated[
    str, typer.Option("--why", help="The reason, for the ticket's history.")
]


@tickets.command("list")
def list_(
    context: typer.Context,
    all_: Annotated[
        bool,
        typer.Option("--all", help="Include resolved tickets; the newest comes first."),
    ] = False,
    status: Annotated[
        list[TicketStatus] | None,
        typer.Option(help="Only tickets with this status; repeatable."),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(
            help="Only tickets of this subject.", autocompletion=subject_names
        ),
    ] = None,
    severity: Annotated[
        SeverityName | None, typer.Option(help="Only tickets of this severity.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Only tickets of this incident.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of tickets.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List unresolved tickets, the critical ones first."""
    statuses = tuple(status or ()) or (() if all_ else UNRESOLVED)
    level = None if severity is None else Severity.parse(severity)
    query = TicketFilter(statuses, subject, level, batch, limit + 1)
    shown = Shown(query, limit, as_json, named=bool(status))
    list_tickets(context.obj, shown)


@tickets.command()
def show(
    context: typer.Context,
    ticket_id: Id,
    all_: Annotated[
        bool,
        typer.Option(
            "--all", help="Open what is folded: timeline, evidence and first aid."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a ticket with its diagnosis, its first aid and every attempt at a diagnosis."""
    edge: Edge = context.obj
    details = use_store(edge, lambda store: read_ticket(store, ticket_id))
    diagnosis = settled(details.ticket, details.attempts)
    output = Output.standard(edge.environ)
    print_details(output, details, diagnosis, as_json, unfold=all_)


@dataclass(frozen=True, slots=True)
class TicketDetails:
    """A ticket, every attempt at its diagnosis, its sessions and its pull requests; the oldest first."""

    ticket: Ticket
    attempts: list[Diagnosis]
    sessions: list[TicketSession]
    pull_requests: list[PullRequest]


async def read_ticket(store: Store, ticket_id: int) -> TicketDetails:
    """Read a ticket with all that belongs to it. Raises NotFound."""
    return TicketDetails(
        await store.ticket(ticket_id),
        await store.diagnoses(ticket_id),
        await store.sessions_of(ticket_id),
        await store.pull_requests_of(ticket_id),
    )


def print_details(
    output: Output,
    details: TicketDetails,
    diagnosis: Diagnosis | None,
    as_json: bool,
    unfold: bool = False,
) -> None:
    if as_json:
        output.json(
            ticket_document(
                details.ticket, diagnosis, details.sessions, details.pull_requests
            )
        )
    else:
        show_ticket(
            output,
            details.ticket,
            diagnosis,
            details.attempts,
            details.sessions,
            unfold,
            details.pull_requests,
        )


@tickets.command()
def history(context: typer.Context, ticket_id: Id, as_json: AsJson = False) -> None:
    """Show every change of a ticket: when, by whom, from, to, why."""

    async def read(store: Store) -> list[AuditRow]:
        return await store.history(ticket_id)

    rows = use_store(context.obj, read)
    output = Output.standard(context.obj.environ)
    if as_json:
        output.json([history_document(row) for row in rows])
    else:
        history_table(output, rows)


@tickets.command()
def report(context: typer.Context, ticket_id: Id, as_json: AsJson = False) -> None:
    """Write the post-incident report of a ticket as Markdown: timeline, cause, what was done, cost."""
    from midwatch.agent.incident_report import incident_report, read_incident
    from midwatch.cli.app import recent_changes, secrets_of
    from midwatch.redaction import Redactor

    edge: Edge = context.obj
    settings = edge.settings()
    incident = use_store(
        edge,
        lambda store: read_incident(store, ticket_id, recent_changes(settings, store)),
    )
    redactor = Redactor(secrets_of(settings, edge.environ))
    page = redactor.text(incident_report(incident))
    output = Output.standard(edge.environ)
    if as_json:
        output.json({"ticket": ticket_id, "markdown": page})
    else:
        output.markdown(page)


@tickets.command()
def watch(
    context: typer.Context,
    subject: Annotated[
        str | None,
        typer.Option(
            help="Only changes of this subject's tickets.", autocompletion=subject_names
        ),
    ] = None,
    severity: Annotated[
        SeverityName | None, typer.Option(help="Only tickets of this severity.")
    ] = None,
    ticket: Annotated[int | None, typer.Option(help="Only this ticket.")] = None,
    after: Annotated[
        str | None,
        typer.Option(
            metavar="CURSOR",
            help="Begin after this change; --json prints the cursor of each. 0 is the beginning.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line.")
    ] = False,
) -> None:
    """Follow the changes of tickets, live."""
    from midwatch.cli.ticket_watch import Watched, watch

    try:
        cursor = None if after is None else Cursor.parse(after)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--after") from error
    level = None if severity is None else Severity.parse(severity)
    asyncio.run(watch(context.obj, Watched(subject, level, ticket, cursor), as_json))


@tickets.command()
def ack(
    context: typer.Context,
    ticket_ids: Ids,
    why: Why = "",
    as_json: AsJson = False,
) -> None:
    """Acknowledge tickets: tell others that you are working on them."""

    def acknowledge(store: Store, ticket_id: int, actor: str) -> Awaitable[Ticket]:
        return store.acknowledge(ticket_id, actor, why)

    _change(context.obj, ticket_ids, acknowledge, as_json)


@tickets.command()
def hold(
    context: typer.Context, ticket_ids: Ids, why: Why = "", as_json: AsJson = False
) -> None:
    """Hold tickets: they do not resolve by themselves."""

    def hold(store: Store, ticket_id: int, actor: str) -> Awaitable[Ticket]:
        return store.hold(ticket_id, True, actor, why)

    _change(context.obj, ticket_ids, hold, as_json)


@tickets.command()
def unhold(
    context: typer.Context, ticket_ids: Ids, why: Why = "", as_json: AsJson = False
) -> None:
    """Release held tickets: they resolve by themselves again."""

    def release(store: Store, ticket_id: int, actor: str) -> Awaitable[Ticket]:
        return store.hold(ticket_id, False, actor, why)

    _change(context.obj, ticket_ids, release, as_json)


@tickets.command()
def resolve(
    context: typer.Context,
    ticket_ids: Ids,
    why: Annotated[
        str, typer.Option("--why", help="What resolved it; later diagnoses use it.")
    ],
    as_json: AsJson = False,
) -> None:
    """Resolve tickets. If an invariant is still broken, the next check opens a new one."""
    if not why.strip():
        raise Conflict("no reason was given", hint="use --why TEXT: what resolved it")

    def resolve(store: Store, ticket_id: int, actor: str) -> Awaitable[Ticket]:
        return store.resolve(ticket_id, actor, why)

    _change(context.obj, ticket_ids, resolve, as_json)


@tickets.command()
def retry(
    context: typer.Context, ticket_ids: Ids, why: Why = "", as_json: AsJson = False
) -> None:
    """Put tickets back into the queue, to be diagnosed again."""

    def retry(store: Store, ticket_id: int, actor: str) -> Awaitable[Ticket]:
        return store.retry(ticket_id, actor, why)

    _change(context.obj, ticket_ids, retry, as_json)


def _change(
    edge: Edge,
    ids: Sequence[int],
    change: Callable[[Store, int, str], Awaitable[Ticket]],
    as_json: bool,
) -> None:
    """Change tickets and print them. One that cannot be changed does not keep the others from it.

    With --json it prints one document: a ticket for one id, a list for several.
    """
    actor = user_at_host()

    async def apply(store: Store) -> tuple[list[Ticket], list[MidwatchError]]:
        done: list[Ticket] = []
        errors: list[MidwatchError] = []
        for ticket_id in dict.fromkeys(ids):
            try:
                changed = await change(store, ticket_id, actor)
            except (NotFound, Conflict) as error:
                errors.append(error)
                continue
            done.append(changed)
        return done, errors

    done, errors = use_store(edge, apply)
    output = Output.standard(edge.environ)
    if as_json:
        output.json_of([ticket_summary(one, None) for one in done], len(ids))
    else:
        for ticket in done:
            output.line(f"ticket {ticket.id}: {status_text(ticket)}")
    raise_together(errors)


def user_at_host() -> str:
    """Return USER@HOST of the process, for the history; the environment is not read."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


# ------------------------------------------------------------------ diagnose


@app.command()
def diagnose(
    context: typer.Context,
    ticket_id: Id,
    show_prompt: Annotated[
        bool,
        typer.Option(
            "--show-prompt", help="Print the prompt; call no API, claim no ticket."
        ),
    ] = False,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace", help="Print every request and answer to standard error."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Diagnose a ticket's incident now, ahead of the queue."""
    edge: Edge = context.obj
    output = Output.standard(edge.environ)
    if show_prompt:
        prompt = asyncio.run(_prompt(edge, ticket_id))
        if as_json:
            tools = {"tools": list(prompt.tools)} if prompt.tools else {}
            output.json({"system": prompt.system, "user": prompt.user, **tools})
        else:
            output.line(prompt.show().rstrip("\n"))
        return
    details = asyncio.run(_diagnose(edge, ticket_id, trace))
    ticket, attempts = details.ticket, details.attempts
    # The answer may explain other tickets of the incident only: then show the last attempt.
    diagnosis = settled(ticket, attempts) or attempts[-1]
    print_details(output, details, diagnosis, as_json)
    if diagnosis.outcome not in ("answered", "cut"):
        raise MidwatchError(
            f"no diagnosis: {diagnosis.error or diagnosis.outcome}",
            hint=f"fix that, then run `midwatch tickets retry {ticket_id}`",
        )
    if ticket.diagnosis_id is None and not ticket.resolved:
        given_up = ticket.status is TicketStatus.GIVEN_UP
        after = "given up" if given_up else "queued again"
        typer.echo(
            f"the answer does not name ticket {ticket_id}: it is {after}", err=True
        )


async def _prompt(edge: Edge, ticket_id: int) -> Prompt:
    from midwatch.agent.attempt import GATHER_SECONDS
    from midwatch.agent.diagnosis import Step

    async with open_app(edge, sys.stderr) as opened:
        ticket = await opened.store.ticket(ticket_id)
        tickets = await _incident(opened, ticket)
        gathered = await opened.gatherer.gather(
            tickets,
            timeout=GATHER_SECONDS,
            tokens=opened.settings.agent.context_tokens,
        )
        anthropic = opened.settings.anthropic
        step = Step(gathered, anthropic.max_tokens)
        return opened.investigator().begin(tickets).step(step, anthropic.model).prompt


async def _incident(opened: App, ticket: Ticket) -> list[Ticket]:
    """Return the tickets that a claim of this one's batch would hold, in the claim's order.

    A diagnosed or resolved ticket stands alone: a retry gives it a batch of its own.
    """
    if ticket.status not in UNDIAGNOSED:
        return [ticket]
    query = TicketFilter(UNDIAGNOSED, batch=ticket.batch, limit=_MAX_BATCH)
    tickets = await opened.store.tickets(query)
    return sorted(tickets, key=lambda one: (one.severity, one.id))


async def _diagnose(edge: Edge, ticket_id: int, trace: bool) -> TicketDetails:
    """Diagnose the ticket's incident, and read the ticket again. `trace` prints the exchange with Claude.

    Raises:
        Conflict: The ticket is settled, or another worker diagnoses it.
        MidwatchError: There is no answer to show.
    """
    from midwatch.agent.runner import Blocked
    from midwatch.lifecycle import StopEvent, stop_on_signals

    async with open_app(edge, sys.stderr) as opened:
        ticket = await opened.store.ticket(ticket_id)
        _refuse_settled(ticket)
        stop = StopEvent()
        with stop_on_signals(stop):
            agent = opened.agent(trace=_print_trace if trace else None)
            outcome = await agent.diagnose(ticket.batch, stop)
        if isinstance(outcome, Blocked):
            raise MidwatchError(f"not diagnosing: {outcome.reason}")
        if outcome is None:
            raise Conflict(
                f"ticket {ticket_id} is being diagnosed by another worker",
                hint=f"see `midwatch tickets show {ticket_id}` in a moment",
            )
        if outcome.outcome == "budget":
            raise MidwatchError(
                "the day's budget is spent",
                hint="raise agent.daily_budget_usd, or wait until midnight UTC",
            )
        details = await read_ticket(opened.store, ticket_id)
        if not details.attempts:
            raise MidwatchError(f"no diagnosis was made: {outcome.outcome}")
        return details


def _print_trace(text: str) -> None:
    typer.echo(text, err=True)


def _refuse_settled(ticket: Ticket) -> None:
    if ticket.status in (TicketStatus.DIAGNOSED, TicketStatus.GIVEN_UP):
        was = (
            "diagnosed already"
            if ticket.status is TicketStatus.DIAGNOSED
            else "given up"
        )
        raise Conflict(
            f"ticket {ticket.id} is {was}",
            hint=f"`midwatch tickets retry {ticket.id}` puts it back into the queue",
        )
    if ticket.resolved:
        raise Conflict(f"ticket {ticket.id} is resolved already")
