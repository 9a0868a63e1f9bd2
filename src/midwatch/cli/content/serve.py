"""`midwatch content serve`."""

from __future__ import annotations

import asyncio
import gc
import sys

import typer

from midwatch.cli.content.extra import key_file, keys_of, needs_content
from midwatch.cli.daemons import end_in
from midwatch.cli.wiring import Edge

app = typer.Typer()

_MARGIN = 5.0
"""Seconds beyond the grace until the process ends, whatever a disk that hangs would wait for."""


@app.command()
def serve(context: typer.Context) -> None:
    """Serve the volume that `content.root` names, until SIGTERM."""
    with needs_content():
        asyncio.run(_serve(context.obj))


async def _serve(edge: Edge) -> None:
    from midwatch.content.server.app import serve
    from midwatch.content.tokens import KeyFile
    from midwatch.lifecycle import Stop, signals_set
    from midwatch.logs import open_log
    from midwatch.redaction import Redactor

    settings = edge.settings()
    keys = keys_of(settings)
    redactor = Redactor([key.decode("latin-1") for key in keys])
    gc.enable()  # `main` turned it off for the start
    stop = Stop()
    longest = settings.content.grace + _MARGIN
    with signals_set(stop, lambda: end_in(longest, 1)):
        log = open_log(settings.log, sys.stdout, redactor)
        live = KeyFile(key_file(settings), keys, log)
        await serve(settings.content, live, stop, log)
