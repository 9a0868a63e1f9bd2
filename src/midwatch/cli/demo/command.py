"""`midwatch demo` itself."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from midwatch.cli.wiring import Edge
from midwatch.errors import SettingsError

app = typer.Typer()


@app.command()
def demo(
    context: typer.Context,
    fault: Annotated[
        str, typer.Option("--fault", help="Which fault; --list names them.")
    ] = "lock-pile-up",
    keep: Annotated[
        Path | None,
        typer.Option("--keep", help="Leave settings, database and log in this folder."),
    ] = None,
    names: Annotated[bool, typer.Option("--list", help="Name the faults.")] = False,
) -> None:
    """Watch a real PostgreSQL break and recover, on this machine."""
    from midwatch.cli.demo.faults import FAULTS

    if names:
        for name, known in FAULTS.items():
            typer.echo(f"{name:15} {known.title}")
        return
    if fault not in FAULTS:
        raise SettingsError(
            f"{fault!r} is no fault of the demo",
            path="--fault",
            hint=f"one of {', '.join(FAULTS)}",
        )
    _play(context.obj, fault, keep)


def _play(edge: Edge, name: str, keep: Path | None) -> None:
    from rich.console import Console

    from midwatch.cli.demo.faults import FAULTS
    from midwatch.cli.demo.story import play

    # Until the daemons take it over, SIGTERM ends the demo as Ctrl-C does: cleaned up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    # The user's own Midwatch settings are not the demo's.
    environ = {
        key: value
        for key, value in edge.environ.items()
        if not key.upper().startswith("MIDWATCH_")
    }
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        asyncio.run(play(FAULTS[name](), environ, keep.resolve(), console))
        console.print(
            f"kept: midwatch --config {keep / 'midwatch.yaml'} tickets list --all"
        )
        return
    with tempfile.TemporaryDirectory(prefix="midwatch-demo-") as folder:
        asyncio.run(play(FAULTS[name](), environ, Path(folder), console))
