"""`midwatch actions …`: what a verified diagnosis recommends and Midwatch may do, once a person has approved it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from midwatch.cli.app import Edge, open_app
from midwatch.cli.output import Cell, Output
from midwatch.cli.tickets import AsJson, Id, user_at_host
from midwatch.errors import MidwatchError, NotFound
from midwatch.json_shapes import action_run_document
from midwatch.session_ancestry import refuse_in_session
from midwatch.text import one_line

if TYPE_CHECKING:
    from midwatch.agent.approved_actions import ApprovedActions, TicketActions
    from midwatch.store.action_runs_protocol import ActionRun

app = typer.Typer()
T = TypeVar("T")
_LONGEST = 2000

ActionId = Annotated[
    str, typer.Argument(metavar="ACTION", help="Id of the action, as listed.")
]


def _use(edge: Edge, use: Callable[[ApprovedActions], Awaitable[T]]) -> T:
    async def run() -> T:
        from midwatch.agent.approved_actions import ApprovedActions

        async with open_app(edge, sys.stderr) as opened:
            actions = ApprovedActions(opened.store, opened.subjects, opened.redactor)
            return await use(actions)

    return asyncio.run(run())


@app.command("list")
def list_(context: typer.Context, ticket_id: Id, as_json: AsJson = False) -> None:
    """List what can be approved on a ticket, and what was."""
    edge: Edge = context.obj
    found = _use(edge, lambda actions: actions.of_ticket(ticket_id))
    output = Output.standard(edge.environ)
    if as_json:
        from midwatch.agent.approved_actions import actions_document

        output.json(actions_document(found))
        return
    rows = [
        (one.id, "not allowed" if one.problem else "to approve", one.action.what)
        for one in found.proposals
    ]
    listed = {one.id for one in found.proposals}
    rows += [
        (one.proposal, one.state.value.replace("_", " "), one.what)
        for one in found.runs
        if one.proposal not in listed
    ]
    if rows:
        cells = [tuple(map(Cell, row)) for row in rows]
        output.table(("id", "state", "action"), cells, shrink=("action",))
    if found.reason:
        output.line(f"nothing to approve: {found.reason}")


@app.command()
def show(
    context: typer.Context, ticket_id: Id, action_id: ActionId, as_json: AsJson = False
) -> None:
    """Show an action: what it acts on and why, or who approved it and how it ended."""
    from midwatch.agent.approved_actions import actions_document

    edge: Edge = context.obj
    found = _use(edge, lambda actions: actions.of_ticket(ticket_id))
    output = Output.standard(edge.environ)
    run = next((one for one in found.runs if one.proposal == action_id), None)
    if run is not None:
        _show_run(output, run, as_json)
        return
    document = next(
        (one for one in actions_document(found)["proposals"] if one["id"] == action_id),
        None,
    )
    if document is None:
        raise _missing(ticket_id, action_id, found)
    if as_json:
        output.json(document)
        return
    target = ", ".join(f"{key} {value}" for key, value in document["target"].items())
    output.pairs(
        [
            ("action", document["kind"]),
            ("what", document["what"]),
            ("target", one_line(target, _LONGEST)),
            ("evidence", ", ".join(document["evidence"]) or "the diagnosis"),
            ("problem", document["problem"] or "none: it can be approved"),
        ],
        14,
    )


@app.command("dry-run")
def dry_run(
    context: typer.Context, ticket_id: Id, action_id: ActionId, as_json: AsJson = False
) -> None:
    """Show what an action would do, and whether its check holds now. It changes nothing."""
    edge: Edge = context.obj
    check = _use(edge, lambda actions: actions.dry_run(ticket_id, action_id))
    output = Output.standard(edge.environ)
    if as_json:
        output.json(check)
        return
    if check.command:
        output.line(one_line(check.command, _LONGEST))
    verdict = "it would be run" if check.ready else "it would not be run"
    output.line(f"{verdict}: {one_line(check.text, _LONGEST)}")


@app.command()
def approve(
    context: typer.Context, ticket_id: Id, action_id: ActionId, as_json: AsJson = False
) -> None:
    """Approve an action and run it now, once. It is not run if its target is not what the evidence names any more."""
    edge: Edge = context.obj
    refuse_in_session(edge.environ, "approve an action")
    by = user_at_host()
    run = _use(
        edge,
        lambda actions: actions.approve(ticket_id, action_id, by=by, channel="cli"),
    )
    _show_run(Output.standard(edge.environ), run, as_json)
    if run.state != "done":
        state = run.state.value.replace("_", " ")
        raise MidwatchError(f"{run.proposal}: {state}")


def _show_run(output: Output, run: ActionRun, as_json: bool) -> None:
    if as_json:
        output.json(action_run_document(run))
        return
    state = run.state.value.replace("_", " ")
    ended = one_line(run.output or "it has not ended", _LONGEST)
    output.line(f"{run.proposal}: {state}: {ended}")
    output.line(
        f"{run.what}, approved by {one_line(run.approved_by)} ({run.channel}), {output.when(run.approved_at)}"
    )


def _missing(ticket_id: int, action_id: str, found: TicketActions) -> NotFound:
    return NotFound(
        f"ticket {ticket_id} has no action {ascii(action_id[:60])}",
        hint=found.reason or f"see `midwatch actions list {ticket_id}`",
    )
