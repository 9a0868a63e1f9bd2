"""`midwatch session run | resume | fork`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.output import Output
from midwatch.cli.session.app import (
    AllowTool,
    AsJson,
    DenyTool,
    Id,
    IdleTimeout,
    Interactive,
    MaxTurns,
    MaxUsd,
    Model,
    PromptText,
    Push,
    PushBranch,
    Timeout,
    Trust,
)
from midwatch.cli.wiring import Edge
from midwatch.errors import Conflict, SettingsError
from midwatch.lifecycle import shield_process
from midwatch.units import parse_duration

if TYPE_CHECKING:
    from midwatch.cli.session.choices import Choices
    from midwatch.cli.session.desk import Desk
    from midwatch.cli.session.request import Request

app = typer.Typer()


class SandboxName(StrEnum):
    AUTO = "auto"
    ON = "on"
    OFF = "off"


Sandbox = Annotated[
    SandboxName | None, typer.Option(help="Bash in a sandbox; auto: where it can be.")
]


@app.command()
def run(
    context: typer.Context,
    repo: Annotated[
        list[str],
        typer.Option("--repo", "-r", help="URL@BRANCH, a URL or a path; repeatable."),
    ],
    prompt: PromptText = None,
    main: Annotated[
        int, typer.Option(min=0, help="Which one Claude starts in, from 0.")
    ] = 0,
    interactive: Interactive = False,
    push: Push = False,
    push_branch: PushBranch = None,
    model: Model = None,
    trust: Trust = None,
    sandbox: Sandbox = None,
    max_turns: MaxTurns = None,
    max_usd: MaxUsd = None,
    timeout: Timeout = None,
    idle_timeout: IdleTimeout = None,
    allow_tool: AllowTool = None,
    deny_tool: DenyTool = None,
    as_json: AsJson = False,
) -> None:
    """Clone repositories and let Claude Code work in them. Exit code 0 only if it is Completed."""
    from midwatch.cli.session.request import (
        Request,
        new_id,
        parse_repositories,
        read_prompt,
    )

    if prompt is None and not interactive:
        raise SettingsError("is missing", path="--prompt", hint="say what to do")
    request = Request(
        id=new_id(),
        prompt=None if prompt is None else read_prompt(prompt),
        repositories=parse_repositories(repo, push_branch),
        main=main,
        interactive=interactive,
        push=push,
        choices=chosen(
            model,
            trust,
            sandbox,
            max_turns,
            max_usd,
            timeout,
            idle_timeout,
            allow_tool,
            deny_tool,
        ),
    )

    async def made(desk: Desk) -> Request:
        return request

    carry_out(context.obj, made, as_json)


@app.command()
def resume(
    context: typer.Context,
    session_id: Id,
    prompt: PromptText = None,
    interactive: Interactive = False,
    push: Push = False,
    model: Model = None,
    trust: Trust = None,
    sandbox: Sandbox = None,
    max_turns: MaxTurns = None,
    max_usd: MaxUsd = None,
    timeout: Timeout = None,
    idle_timeout: IdleTimeout = None,
    allow_tool: AllowTool = None,
    deny_tool: DenyTool = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a session, with all that was said; also on another machine with the same database."""
    from midwatch.cli.session.again import resumed
    from midwatch.cli.session.request import read_prompt

    text = None if prompt is None else read_prompt(prompt)
    now = chosen(
        model,
        trust,
        sandbox,
        max_turns,
        max_usd,
        timeout,
        idle_timeout,
        allow_tool,
        deny_tool,
    )

    async def made(desk: Desk) -> Request:
        return await resumed(desk, session_id, text, interactive, push, now)

    carry_out(context.obj, made, as_json)


@app.command()
def fork(
    context: typer.Context,
    session_id: Id,
    prompt: PromptText = None,
    interactive: Interactive = False,
    push: Push = False,
    push_branch: PushBranch = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Begin a new session with all that was said in another one, in fresh clones."""
    from midwatch.cli.session.again import forked
    from midwatch.cli.session.request import read_prompt

    if prompt is None and not interactive:
        raise SettingsError("is missing", path="--prompt", hint="say what to do")
    text = None if prompt is None else read_prompt(prompt)
    now = chosen(model)

    async def made(desk: Desk) -> Request:
        return await forked(desk, session_id, text, interactive, push, push_branch, now)

    carry_out(context.obj, made, as_json)


# ------------------------------------------------------------------ shared


def chosen(
    model: str | None = None,
    trust: bool | None = None,
    sandbox: SandboxName | None = None,
    max_turns: int | None = None,
    max_usd: float | None = None,
    timeout: str | None = None,
    idle_timeout: str | None = None,
    allow_tool: list[str] | None = None,
    deny_tool: list[str] | None = None,
) -> Choices:
    """What the options say. Raises SettingsError for what is no duration."""
    from midwatch.cli.session.choices import Choices

    return Choices(
        model=model,
        trust=trust,
        sandbox=None if sandbox is None else sandbox.value,
        max_turns=max_turns,
        max_usd=max_usd,
        wall=_duration(timeout, "--timeout"),
        idle=_duration(idle_timeout, "--idle-timeout"),
        allow=tuple(allow_tool or ()),
        deny=tuple(deny_tool or ()),
    )


def _duration(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise SettingsError(str(error), path=option) from None
    if seconds <= 0:
        raise SettingsError("must be longer than nothing", path=option)
    return seconds


def carry_out(
    edge: Edge, make: Callable[[Desk], Awaitable[Request]], as_json: bool
) -> None:
    """Make the request and run it to its end, on standard output."""
    shield_process()
    asyncio.run(_carry_out(edge, make, as_json))


async def _carry_out(
    edge: Edge, make: Callable[[Desk], Awaitable[Request]], as_json: bool
) -> None:
    from midwatch.cli.session.desk import open_desk
    from midwatch.cli.session.running import Runner
    from midwatch.cli.session.telling import Teller

    async with open_desk(edge) as desk:
        await desk.close_crashed()
        request = await make(desk)
        place = desk.places.place(request.id)
        if place.running:
            raise Conflict(
                f"session {request.id} is running already",
                hint=f"`midwatch session attach {request.id}`",
            )
        teller = Teller(Output.standard(edge.environ), as_json)
        teller.plain(f"session {request.id} in {place.workspace}")
        await Runner(desk, request, teller).run()
