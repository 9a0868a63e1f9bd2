"""`midwatch session fix`: a session that carries out what a ticket calls for."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from midwatch.cli.session.app import (
    AllowTool,
    AsJson,
    DenyTool,
    IdleTimeout,
    Interactive,
    MaxTurns,
    MaxUsd,
    Model,
    Push,
    PushBranch,
    Timeout,
)
from midwatch.cli.session.commands import Sandbox, chosen
from midwatch.cli.wiring import Edge
from midwatch.errors import Conflict
from midwatch.lifecycle import shield_process

app = typer.Typer()


@app.command("fix")
def fix(
    context: typer.Context,
    ticket_id: Annotated[int, typer.Argument(metavar="TICKET", help="Its number.")],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before it starts.")
    ] = False,
    show_prompt: Annotated[
        bool, typer.Option("--show-prompt", help="Print the prompt; start nothing.")
    ] = False,
    interactive: Interactive = False,
    push: Push = False,
    push_branch: PushBranch = None,
    model: Model = None,
    sandbox: Sandbox = None,
    max_turns: MaxTurns = None,
    max_usd: MaxUsd = None,
    timeout: Timeout = None,
    idle_timeout: IdleTimeout = None,
    allow_tool: AllowTool = None,
    deny_tool: DenyTool = None,
    as_json: AsJson = False,
) -> None:
    """Let Claude Code work on a ticket, in the repositories that its subject names.

    What it does resolves nothing: the ticket resolves when its invariant is seen to hold again.
    """
    import asyncio

    from midwatch.cli.session.fixing import Fix

    shield_process()
    edge: Edge = context.obj
    chosen_ = chosen(
        model,
        None,
        sandbox,
        max_turns,
        max_usd,
        timeout,
        idle_timeout,
        allow_tool,
        deny_tool,
    )
    plan = Fix(ticket_id, interactive, push, push_branch, chosen_, as_json)
    prompt = asyncio.run(plan.prepare(edge))
    if show_prompt:
        typer.echo(prompt)
        return
    if not yes:
        _ask(plan, prompt)
    asyncio.run(plan.carry_out(edge))


def _ask(plan: object, prompt: str) -> None:
    """Raises Conflict where nobody is there to approve, or somebody does not."""
    print(prompt, file=sys.stderr)
    print(f"\n{plan}", file=sys.stderr)
    if not sys.stdin.isatty():
        raise Conflict("nobody is there to approve it", hint="--yes starts it unasked")
    if not typer.confirm("Start this session?", err=True):
        raise Conflict("not started")
