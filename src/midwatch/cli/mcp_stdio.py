"""`midwatch mcp`: the tools of Midwatch for a program that starts it, such as Claude Code."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from midwatch.cli.app import Edge, open_app
from midwatch.cli.tickets import user_at_host
from midwatch.session_ancestry import refuse_in_session

app = typer.Typer()


@app.command("mcp")
def serve_mcp(
    context: typer.Context,
    read_only: Annotated[
        bool,
        typer.Option("--read-only", help="Leave out the tools that change something."),
    ] = False,
    approve: Annotated[
        bool,
        typer.Option(
            "--approve-actions",
            help="Add the tools that approve actions: what a client calls then counts as your decision.",
        ),
    ] = False,
) -> None:
    """Serve MCP on standard input and output, with the permissions of the person who starts it.

    `claude mcp add midwatch -- midwatch mcp` makes Claude Code start it.
    """
    if approve:
        refuse_in_session(context.obj.environ, "approve actions")
    asyncio.run(_serve(context.obj, read_only, approve))


async def _serve(edge: Edge, read_only: bool, approve: bool) -> None:
    from midwatch.cli.serve import needs_server, sessions_and_actions
    from midwatch.lifecycle import SystemClock

    with needs_server("MCP", "mcp"):
        from midwatch.server.auth import SCOPES, Principal, Role
        from midwatch.server.mcp import serve_stdio
        from midwatch.server.mcp_tools import ToolContext
    scopes = frozenset({"read", "mcp"} if read_only else SCOPES)
    if not approve:  # a model may be behind the client, and it starts nothing
        scopes -= {"actions"}
    role = Role.VIEWER if read_only else Role.ADMIN
    # Standard output belongs to the protocol.
    async with open_app(edge, sys.stderr) as opened:
        _, actions = sessions_and_actions(opened)
        tools = ToolContext(
            opened.store, actions, opened.subjects, SystemClock(), opened.changes
        )
        await serve_stdio(tools, Principal(user_at_host(), role, scopes, "stdio"))
