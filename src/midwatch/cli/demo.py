"""`midwatch demo`: inject a fault into a real PostgreSQL, diagnose it, and remove it."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.app import Edge
from midwatch.errors import SettingsError

if TYPE_CHECKING:
    from midwatch.evaluation.scenario import Scenario

app = typer.Typer()
_FORMER_NAMES = {
    "lock-pile-up": "lock-queue",
    "connections": "connections-leak-one-application",
    "inactive-slot": "forgotten-slot",
}
"""Former names, which are accepted for one release more."""


@app.command()
def demo(
    context: typer.Context,
    fault: Annotated[
        str, typer.Option("--fault", help="The fault to inject; --list shows them.")
    ] = "lock-queue",
    keep: Annotated[
        Path | None,
        typer.Option("--keep", help="Keep settings, database and log in this folder."),
    ] = None,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve",
            help="Serve the page too, and repair the fault only once Enter is pressed.",
        ),
    ] = False,
    names: Annotated[
        bool, typer.Option("--list", help="List the faults and exit.")
    ] = False,
) -> None:
    """Watch a real PostgreSQL break and recover, on this machine."""
    # The demo's parts import psycopg and rich, which no other command should wait for.
    from midwatch.evaluation.scenario import LIBRARY, find

    known = {one.name: one for one in find([], [LIBRARY]) if one.repair}
    if names:
        for name, scenario in known.items():
            typer.echo(f"{name:34}{scenario.title}")
        return
    name = _FORMER_NAMES.get(fault, fault)
    if name not in known:
        raise SettingsError(
            f"{fault!r} is not a fault of the demo",
            path="--fault",
            hint=f"one of {', '.join(known)}",
        )
    _run(context.obj, known[name], keep, serve)


def _run(edge: Edge, scenario: Scenario, keep: Path | None, serve: bool) -> None:
    from rich.console import Console

    from midwatch.cli.demo_run import run_demo

    # Until the daemons handle SIGTERM, it ends the demo as Ctrl-C does, with cleanup.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    # The demo has settings of its own.
    environ = {
        key: value
        for key, value in edge.environ.items()
        if not key.upper().startswith("MIDWATCH_")
    }
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        asyncio.run(run_demo(scenario, environ, keep.resolve(), console, serve))
        console.print(
            f"kept: midwatch --config {keep / 'midwatch.yaml'} tickets list --all"
        )
        return
    with tempfile.TemporaryDirectory(prefix="midwatch-demo-") as folder:
        asyncio.run(run_demo(scenario, environ, Path(folder), console, serve))
