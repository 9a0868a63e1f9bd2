"""Options that several commands of `midwatch session` share."""

from __future__ import annotations

from typing import Annotated

import typer

Id = Annotated[str, typer.Argument(metavar="ID", help="A session's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
PromptText = Annotated[
    str | None,
    typer.Option("--prompt", "-p", help="What to do: TEXT, @FILE, or - for stdin."),
]
Interactive = Annotated[
    bool,
    typer.Option("--interactive", "-i", help="Stay open and read the mailbox."),
]
Push = Annotated[
    bool, typer.Option("--push", help="Push what it did, once it is Completed.")
]
PushBranch = Annotated[
    str | None,
    typer.Option("--push-branch", help="Where to; default: the session's own branch."),
]
Model = Annotated[str | None, typer.Option(help="The model that works.")]
Trust = Annotated[
    bool | None,
    typer.Option(
        "--trust-repo/--no-trust-repo",
        help="Load the repositories' own .claude settings, hooks and .mcp.json.",
        show_default=False,
    ),
]
MaxTurns = Annotated[
    int | None, typer.Option(min=1, help="Calls of the API in one turn.")
]
MaxUsd = Annotated[
    float | None, typer.Option(min=0.0001, help="Dollars of the whole session.")
]
Timeout = Annotated[
    str | None, typer.Option("--timeout", help="Longest run, such as 30m.")
]
IdleTimeout = Annotated[
    str | None,
    typer.Option("--idle-timeout", help="Longest time in which nothing happens."),
]
AllowTool = Annotated[
    list[str] | None,
    typer.Option("--allow-tool", help="A tool that needs no permission; repeatable."),
]
DenyTool = Annotated[
    list[str] | None,
    typer.Option("--deny-tool", help="A tool that Claude does not get; repeatable."),
]
