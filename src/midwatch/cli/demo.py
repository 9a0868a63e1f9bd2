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
    from midwatch.cli.demo_faults import Fault

app = typer.Typer()


@app.command()
def demo(
    context: typer.Context,
    fault: Annotated[
        str, typer.Option("--fault", help="The fault to inject; --list shows them.")
    ] = "lock-pile-up",
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
    from midwatch.cli.demo_faults import FAULTS

    if names:
        for name, known in FAULTS.items():
            typer.echo(f"{name:15} {known.title}")
        return
    if fault not in FAULTS:
        raise SettingsError(
            f"{fault!r} is not a fault of the demo",
            path="--fault",
            hint=f"one of {', '.join(FAULTS)}",
        )
    _run(context.obj, FAULTS[fault](), keep, serve)


def _run(edge: Edge, fault: Fault, keep: Path | None, serve: bool) -> None:
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
        asyncio.run(run_demo(fault, environ, keep.resolve(), console, serve))
        console.print(
            f"kept: midwatch --config {keep / 'midwatch.yaml'} tickets list --all"
        )
        return
    with tempfile.TemporaryDirectory(prefix="midwatch-demo-") as folder:
        asyncio.run(run_demo(fault, environ, Path(folder), console, serve))
