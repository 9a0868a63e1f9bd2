"""The commands of `midwatch`, which are imported when they are used."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command

from midwatch import __version__

# ------------------------------------------------------------------ commands


class Entry(NamedTuple):
    """A command or a group of commands, which is imported when it is used.

    Attributes:
        help: Its line in the list of commands.
        modules: Where it is; of a group, those whose Typer `app`, or MODULE:NAME, have its commands.
        group: Whether `modules` have its commands, and not the command itself.
        default: The command of the group that its arguments are for, where none is named.
    """

    help: str
    modules: tuple[str, ...]
    group: bool = False
    default: str = ""


COMMANDS = {
    "init": Entry(
        "Find what runs on this machine, ask four questions, and write the settings file.",
        ("midwatch.cli.init",),
    ),
    "check": Entry(
        "Check everything that the daemons need: one line each.",
        ("midwatch.cli.check",),
    ),
    "db": Entry("Show or upgrade the database's schema.", ("midwatch.cli.check",)),
    "monitor": Entry(
        "Run the monitor: open a ticket when an invariant breaks, resolve it when it holds again.",
        ("midwatch.cli.daemons",),
    ),
    "agent": Entry(
        "Run the agent: diagnose queued tickets, with evidence that is checked.",
        ("midwatch.cli.daemons",),
    ),
    "up": Entry(
        "Run monitor, agent and schedules in one process, and the server if `server.listen` is set.",
        ("midwatch.cli.daemons",),
    ),
    "serve": Entry(
        "Serve the page, the API, MCP and the addresses for alerts at `server.listen`, until SIGTERM.",
        ("midwatch.cli.daemons",),
    ),
    "health": Entry(
        "Check the health of a daemon: `monitor`, `agent`, `up`, `serve`, `kube operator` or `content serve`.",
        ("midwatch.cli.daemons",),
    ),
    "mcp": Entry(
        "Serve MCP on standard input and output, with the permissions of the person who starts it.",
        ("midwatch.cli.mcp_stdio",),
    ),
    "stats": Entry(
        "Show times to detect, diagnose and resolve; outcomes, tokens, cost; running daemons.",
        ("midwatch.cli.stats",),
    ),
    "invariants": Entry(
        "List the invariants of each kind of subject, with limits and defaults.",
        ("midwatch.cli.stats",),
    ),
    "diagnose": Entry(
        "Diagnose a ticket's incident now, ahead of the queue.",
        ("midwatch.cli.tickets",),
    ),
    "tickets": Entry(
        "List, show and change tickets.",
        ("midwatch.cli.tickets:tickets",),
        group=True,
    ),
    "subjects": Entry(
        "List what is watched, and add to it.", ("midwatch.cli.subjects",), group=True
    ),
    "actions": Entry(
        "List, try and approve what a verified diagnosis recommends and Midwatch may do.",
        ("midwatch.cli.approvals",),
        group=True,
    ),
    "demo": Entry(
        "Watch a real PostgreSQL break and recover, on this machine.",
        ("midwatch.cli.demo",),
    ),
    "session": Entry(
        "Run, steer and inspect sessions of Claude Code.",
        (
            "midwatch.cli.session.commands",
            "midwatch.cli.session.fix",
            "midwatch.cli.session.mailbox",
            "midwatch.cli.session.demo",
        ),
        group=True,
    ),
    "schedules": Entry(
        "List schedules, run one now, and start their sessions at their times.",
        ("midwatch.cli.schedules",),
        group=True,
    ),
    "silences": Entry(
        "Keep violations silent for a time: no ticket, no diagnosis, no message.",
        ("midwatch.cli.silences",),
        group=True,
    ),
    "runbooks": Entry(
        "List the runbooks, and show which of them match a ticket.",
        ("midwatch.cli.runbooks",),
        group=True,
    ),
    "changes": Entry(
        "List what was changed in the systems, and report a change, such as a deployment.",
        ("midwatch.cli.changes",),
        group=True,
    ),
    "content": Entry(
        "Serve the content proxy, which keeps the workspaces of pods.",
        ("midwatch.cli.content",),
        group=True,
    ),
    "cache": Entry(
        "List and prune the mirrors of repositories.",
        ("midwatch.cli.cache",),
        group=True,
    ),
    "tokens": Entry(
        "Create, list and revoke tokens for the server.",
        ("midwatch.cli.api_tokens",),
        group=True,
    ),
    "notify": Entry(
        "Preview notifications, and list what was sent.",
        ("midwatch.cli.notify",),
        group=True,
    ),
    "eval": Entry(
        "Score the diagnosis on scenarios with real faults; without a command it runs them.",
        ("midwatch.cli.evaluate",),
        group=True,
        default="run",
    ),
    "kube": Entry(
        "Run sessions in a Kubernetes cluster.", ("midwatch.cli.kube",), group=True
    ),
}


class Commands(TyperGroup):
    """The commands of the table. Its help imports none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        if not entry.group:
            return _load(entry.modules).get_command(ctx, cmd_name)
        group = _new_group(name=cmd_name, help=entry.help, cls=_group_of(entry))
        return get_command(group)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.help) for name, one in COMMANDS.items()])


def _group_of(entry: Entry) -> type[TyperGroup]:
    class Group(TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            names = {*self.list_commands(ctx), "-h", "--help"} if entry.default else ()
            if entry.default and not {*args[:1]} & {*names}:
                args = [entry.default, *args]
            return list(super().parse_args(ctx, args))

        def list_commands(self, ctx: Any) -> list[str]:
            return list(_load(entry.modules).list_commands(ctx))

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            return _load(entry.modules).get_command(ctx, cmd_name)

    return Group


def _load(modules: Sequence[str]) -> Any:
    group = _new_group()
    for one in modules:
        module, _, name = one.partition(":")
        group.add_typer(getattr(import_module(module), name or "app"))
    return get_command(group)


def _new_group(**options: Any) -> typer.Typer:
    """Return a group without options. Its help is plain text: rich takes longer than most commands."""
    group = typer.Typer(
        no_args_is_help=True, add_completion=False, rich_markup_mode=None, **options
    )
    group.callback()(lambda: None)
    return group


app = typer.Typer(
    name="midwatch",
    cls=Commands,
    help="An on-call engineer that your team runs itself.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
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
    """Take the environment, which `midwatch.cli.main` hands over, and the options of the process."""
    from midwatch.cli.app import Edge

    context.obj = Edge(context.obj, config)
