"""The command line: `midwatch`."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from midwatch import __version__
from midwatch.cli import check, daemons, demo, mcp_stdio, stats, tickets
from midwatch.cli.app import Edge
from midwatch.errors import MidwatchError

app = typer.Typer(
    name="midwatch",
    help="An on-call engineer that your team runs itself.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


# ------------------------------------------------------------------ groups of commands


def add_lazily(
    app: typer.Typer, name: str, help: str, *modules: str, default: str = ""
) -> None:
    """Add the group `name` with the commands of each module's Typer `app`, imported when used.

    Without the name of a command, its arguments are those of the command `default`.
    """

    class Lazy(TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if default and not {*args[:1]} & {*self.list_commands(ctx), "-h", "--help"}:
                args = [default, *args]
            return list(super().parse_args(ctx, args))

        def list_commands(self, context: Any) -> list[str]:
            return list(_load_group(modules).list_commands(context))

        def get_command(self, context: Any, name: str) -> Any:
            return _load_group(modules).get_command(context, name)

    group = typer.Typer(name=name, help=help, cls=Lazy, no_args_is_help=True)
    group.callback()(_no_options)
    app.add_typer(group, name=name)


def _no_options() -> None:
    pass


def _load_group(modules: tuple[str, ...]) -> Any:
    group = typer.Typer(no_args_is_help=True)
    group.callback()(_no_options)
    for module in dict.fromkeys(modules):
        group.add_typer(import_module(module).app)
    return get_command(group)


for module in (check, daemons, mcp_stdio, stats, tickets, demo):
    app.add_typer(module.app)
add_lazily(
    app,
    "session",
    "Run, steer and inspect sessions of Claude Code.",
    "midwatch.cli.session.commands",
    "midwatch.cli.session.mailbox",
    "midwatch.cli.session.demo",
)
add_lazily(
    app,
    "silences",
    "Keep violations silent for a time: no ticket, no diagnosis, no message.",
    "midwatch.cli.silences",
)
add_lazily(
    app,
    "content",
    "Serve the content proxy, which keeps the workspaces of pods.",
    "midwatch.cli.content",
)
add_lazily(
    app, "cache", "List and prune the mirrors of repositories.", "midwatch.cli.cache"
)
add_lazily(
    app,
    "tokens",
    "Create, list and revoke tokens for the server.",
    "midwatch.cli.api_tokens",
)
add_lazily(
    app,
    "notify",
    "Preview notifications, and list what was sent.",
    "midwatch.cli.notify",
)
add_lazily(
    app,
    "eval",
    "Score the diagnosis on scenarios with real faults; without a command it runs them.",
    "midwatch.cli.evaluate",
    default="run",
)
add_lazily(
    app,
    "kube",
    "Run sessions in a Kubernetes cluster.",
    "midwatch.cli.kube",
)


# ------------------------------------------------------------------ the process


def _version(given: bool) -> None:
    if given:
        typer.echo(f"midwatch {__version__}")
        raise typer.Exit()


@app.callback()
def edge(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Settings file (default: midwatch.yaml)."),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Read the environment and the options of the process, once."""
    context.obj = Edge(dict(os.environ), config)


def main() -> None:
    """Run a command. An error is one line on stderr and a non-zero exit."""
    # Imports and short commands leave few reference cycles. Collecting them costs a fifth of the
    # start, freeing every module one by one a third of it. Daemons turn the collector on.
    gc.disable()
    try:
        try:
            app()
        finally:
            gc.freeze()
            sys.stdout.flush()
    except MidwatchError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _end_without_reader()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Typer ends with 1
            _end_without_reader()
        raise
    except BaseExceptionGroup as group:
        known = group.subgroup(MidwatchError)
        if known is None:
            raise
        _fail(_first(known))


def _end_without_reader() -> NoReturn:
    """End as the signal SIGPIPE would: the reader of the output has gone."""
    # Python would complain at its exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)


def _first(group: BaseExceptionGroup[MidwatchError]) -> MidwatchError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _fail(error: MidwatchError) -> NoReturn:
    print(f"midwatch: {error.one_line()}", file=sys.stderr)
    sys.exit(error.command_exit_code)
