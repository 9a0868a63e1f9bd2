"""`midwatch session fix | pr`: sessions that work on a ticket, and their pull requests."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.app import Edge
from midwatch.cli.output import Output
from midwatch.cli.session.commands import use_sessions
from midwatch.cli.session.options import (
    AsJson,
    Id,
    RunOptions,
    read_prompt,
    with_run_options,
)
from midwatch.errors import Conflict, SettingsError
from midwatch.lifecycle import set_nondumpable
from midwatch.session.agent_sdk import import_without_tool_servers
from midwatch.session_ancestry import refuse_in_session

if TYPE_CHECKING:
    from midwatch.cli.session.service import SessionContext
    from midwatch.model import Json
    from midwatch.session.options import OptionOverrides
    from midwatch.session.records import SessionRequest

app = typer.Typer()
Pr = Annotated[
    bool,
    typer.Option(
        "--pr",
        help="Open a pull request for each repository that changes, or add to the one that is open.",
    ),
]
NewPr = Annotated[
    bool,
    typer.Option(
        "--new-pr",
        help="Open another pull request where the ticket's last one was merged or closed.",
    ),
]

Resource = Annotated[
    bool,
    typer.Option(
        "--resource",
        help="Print an AgenticSession for `kubectl apply -f -` instead; a daemon opens the pull requests once it has pushed.",
    ),
]
More = Annotated[
    str | None,
    typer.Option(
        "--prompt", "-p", help="Add to the task: TEXT, @FILE, or - for stdin."
    ),
]


@app.command("fix")
@with_run_options("trust")
def fix(
    context: typer.Context,
    ticket_id: Annotated[
        int, typer.Argument(metavar="TICKET", help="The number of the ticket.")
    ],
    options: RunOptions,
    prompt: More = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Start without confirmation.")
    ] = False,
    show_prompt: Annotated[
        bool, typer.Option("--show-prompt", help="Print the prompt and exit.")
    ] = False,
    pr: Pr = False,
    new_pr: NewPr = False,
    resource: Resource = False,
    id_: Annotated[str | None, typer.Option("--id", hidden=True)] = None,
    by: Annotated[str | None, typer.Option("--by", hidden=True)] = None,
) -> None:
    """Let Claude Code work on a ticket, in the repositories of its subject.

    The session does not resolve the ticket: it resolves when its invariant is observed to hold again.
    """
    import_without_tool_servers()
    from midwatch.cli.session.publish import afterwards, plan_fix, publishing
    from midwatch.cli.session.run import fix_request, fix_summary, run_fix
    from midwatch.cli.tickets import user_at_host
    from midwatch.session.options import PullRequestsAsked

    set_nondumpable()
    edge: Edge = context.obj
    overrides = options.overrides()
    more = "" if prompt is None else read_prompt(prompt)
    check_pull_request(pr, new_pr, options.push)
    if resource:
        _print_resource(edge, ticket_id, options, overrides, more, pr, new_pr)
        return

    async def prepare(sessions: SessionContext) -> tuple[SessionRequest, str]:
        request = await fix_request(sessions, ticket_id, options, overrides, more, pr)
        if id_ is not None:
            request = replace(request, id=id_)
        if pr and not show_prompt:
            asked = PullRequestsAsked(by or user_at_host(), new_pr)
            request = await plan_fix(sessions, request, asked)
        what = afterwards(sessions.settings, request.push, pr)
        return request, fix_summary(sessions.settings.sessions, request, what)

    request, summary = use_sessions(edge, prepare)
    if show_prompt:
        typer.echo(request.prompt)
        return
    if not yes:
        _confirm(f"{request.prompt}\n\n{summary}")

    async def run(sessions: SessionContext) -> None:
        then = publishing(sessions, request, new_pr) if pr else None
        await run_fix(sessions, request, options.as_json, by, then)

    use_sessions(edge, run)


@app.command("pr")
def pull_request(
    context: typer.Context,
    session_id: Id,
    approve: Annotated[
        bool,
        typer.Option(
            "--approve", help="Approve the changes, where the settings want that."
        ),
    ] = False,
    new_pr: NewPr = False,
    by: Annotated[str | None, typer.Option("--by", hidden=True)] = None,
    as_json: AsJson = False,
) -> None:
    """Push what a session changed for its ticket, and open a pull request for each repository, or add to the one that is open."""
    from midwatch.cli.session.publish import print_published, publish_session
    from midwatch.cli.session.view import EventPrinter
    from midwatch.cli.tickets import user_at_host

    edge: Edge = context.obj
    if approve:
        refuse_in_session(edge.environ, "approve changes")
    who = by or user_at_host()

    async def publish(sessions: SessionContext) -> None:
        output = Output.standard(edge.environ)
        printer = EventPrinter(output, as_json, session_id)
        approved_by = who if approve else None
        with sessions.manager.folders.existing(session_id).publishing():
            results = await publish_session(
                sessions, session_id, who, approved_by=approved_by, new=new_pr
            )
        print_published(printer, results, session_id)

    use_sessions(edge, publish)


def _print_resource(
    edge: Edge,
    ticket_id: int,
    options: RunOptions,
    overrides: OptionOverrides,
    more: str,
    pr: bool,
    new_pr: bool,
) -> None:
    """Print the resource of a session for a ticket. Raises SettingsError for options that it cannot have."""
    from midwatch.cli.session.publish import expect_pull_requests
    from midwatch.cli.session.run import fix_request
    from midwatch.cli.tickets import user_at_host

    if not pr:
        raise SettingsError("has no effect without --pr", path="--resource")
    if options.interactive or overrides.allow or overrides.deny or overrides.sandbox:
        raise SettingsError(
            "prints no --interactive, --sandbox, --allow-tool or --deny-tool",
            path="--resource",
            hint="the settings of the operator decide what its sessions may do",
        )

    async def make(sessions: SessionContext) -> Json:
        request = await fix_request(sessions, ticket_id, options, overrides, more, True)
        by = user_at_host()
        return await expect_pull_requests(sessions, request, by, new=new_pr)

    Output.standard(edge.environ).json(use_sessions(edge, make))


def check_pull_request(pr: bool, new_pr: bool, push: bool) -> None:
    """Raise SettingsError for options that contradict each other."""
    if new_pr and not pr:
        raise SettingsError("has no effect without --pr", path="--new-pr")
    if pr and push:
        raise SettingsError(
            "pushes to the branch of the ticket by itself",
            path="--pr",
            hint="leave out --push",
        )


def _confirm(text: str) -> None:
    """Raise Conflict if there is no terminal to ask on, or the answer is no."""
    print(text, file=sys.stderr)
    if not sys.stdin.isatty():
        raise Conflict(
            "standard input is not a terminal, so the session cannot be confirmed",
            hint="--yes starts the session without confirmation",
        )
    if not typer.confirm("Start this session?", err=True):
        raise Conflict("not started")
