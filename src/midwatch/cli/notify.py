"""`midwatch notify …`: a preview of messages, and what was sent."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.app import Edge, open_app, use_store
from midwatch.cli.output import BOLD, DIM, GREEN, RED, Cell, Output
from midwatch.cli.tickets import AsJson
from midwatch.errors import SettingsError
from midwatch.notification_settings import EVENTS
from midwatch.text import one_line
from midwatch.units import format_count

if TYPE_CHECKING:
    from midwatch.model import Json
    from midwatch.notify.preview import Preview
    from midwatch.store.on_call import Delivery

app = typer.Typer()

STATES = ("due", "sent", "dropped", "given_up")


@app.command()
def test(
    context: typer.Context,
    ticket: Annotated[int, typer.Option(help="The ticket's number.")],
    event: Annotated[
        str, typer.Option(help=f"What happened: {', '.join(EVENTS)}.")
    ] = "opened",
    target: Annotated[
        str | None,
        typer.Option(help="Only this target, whatever the routes say."),
    ] = None,
    send: Annotated[
        bool, typer.Option("--send", help="Send it, as a message of its own.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what would be sent about a ticket, and to whom; only --send sends it."""
    if event not in EVENTS:
        raise SettingsError(
            f"{event!r} is not an event", path="--event", hint=", ".join(EVENTS)
        )
    shown = asyncio.run(_test(context.obj, ticket, event, target, send))
    output = Output.standard(context.obj.environ)
    if as_json:
        output.json([_document(one) for one in shown])
        return
    if not shown:
        output.line("no route sends this event of this ticket now")
    if send:
        output.line(f"sent: {format_count(len(shown), 'message')}", GREEN)
    for one in shown:
        route = f"by the route {one.route}, " if one.route else ""
        output.line(f"To {one.target}, {route}as {one.markup}", DIM)
        output.line(one.message.title, BOLD)
        for line in one.message.body.split("\n"):
            output.line(line)
        output.line()


async def _test(
    edge: Edge, ticket: int, event: str, target: str | None, send: bool
) -> list[Preview]:
    async with open_app(edge, sys.stderr) as opened:
        from midwatch.notify.notifier_setup import open_previewer

        previewer = open_previewer(
            opened.settings, opened.store, opened.redactor, edge.environ
        )
        try:
            now = datetime.now(UTC)
            found = await previewer.previews(ticket, event, now, target)
            for one in found if send else ():
                await previewer.send(one)
            return found
        finally:
            await previewer.close()


def _document(preview: Preview) -> Json:
    return {
        "route": preview.route or None,
        "target": preview.target,
        "markup": preview.markup,
        "title": preview.message.title,
        "body": preview.message.body,
    }


@app.command("list")
def list_(
    context: typer.Context,
    ticket: Annotated[
        int | None, typer.Option(help="Only those about this ticket.")
    ] = None,
    state: Annotated[
        str | None, typer.Option(help=f"Only these: {', '.join(STATES)}.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List what was sent, is due, was dropped or was given up, the newest first."""
    if state is not None and state not in STATES:
        raise SettingsError(
            f"{state!r} is not a state", path="--state", hint=", ".join(STATES)
        )
    states = [state] if state else []
    found = use_store(
        context.obj, lambda store: store.deliveries(ticket, states, limit)
    )
    output = Output.standard(context.obj.environ)
    if as_json:
        output.json([_delivery(one) for one in found])
        return
    rows = [
        [
            Cell(output.when(one.created_at)),
            Cell("" if one.ticket_id is None else f"#{one.ticket_id}"),
            Cell(one.event),
            Cell(_target(one)),
            Cell(one.state, RED if one.state == "given_up" else ""),
            Cell(one_line(one.last_error or "", 300)),
        ]
        for one in found
    ]
    if not rows:
        output.line("no notifications")
        return
    headings = ("when", "ticket", "event", "target", "state", "why")
    output.table(headings, rows, shrink=("why", "target"))


def _target(delivery: Delivery) -> str:
    from midwatch.notify.notifier import target_name

    return target_name(delivery.target)


def _delivery(delivery: Delivery) -> Json:
    return {
        "id": delivery.id,
        "ticket": delivery.ticket_id,
        "event": delivery.event,
        "route": delivery.route,
        "target": _target(delivery),
        "state": delivery.state,
        "attempts": delivery.attempts,
        "created_at": delivery.created_at,
        "due_at": delivery.due_at,
        "ended_at": delivery.ended_at,
        "error": delivery.last_error,
    }
