"""`midwatch diagnose`: one ticket's incident, now; or what would be sent for it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.output import Output
from midwatch.cli.tickets import AsJson, Id, Known, print_known, read_ticket, settled
from midwatch.cli.wiring import App, Edge, open_app
from midwatch.errors import Conflict, MidwatchError
from midwatch.model import Ticket, TicketStatus

if TYPE_CHECKING:
    from midwatch.agent.diagnosis import Prompt

app = typer.Typer()

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
    from midwatch.lifecycle import Stop, signals_set

    async with open_app(edge, sys.stderr) as opened:
        ticket = await opened.store.ticket(ticket_id)
        _refuse_settled(ticket)
        stop = Stop()
        with signals_set(stop):
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
