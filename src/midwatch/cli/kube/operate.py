"""`midwatch kube operator`: the daemon that runs AgenticSession resources."""

from __future__ import annotations

import asyncio
import gc
import sys
from importlib.util import find_spec

import typer

from midwatch.cli.daemons import end_in
from midwatch.cli.wiring import Edge
from midwatch.errors import SettingsError
from midwatch.lifecycle import Stop, signals_set

app = typer.Typer()


@app.command()
def operator(context: typer.Context) -> None:
    """Run AgenticSession resources as Jobs, until SIGTERM."""
    missing = [name for name in ("kopf", "lightkube") if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"{missing[0]} is not installed",
            hint="install midwatch[kubernetes]",
        )
    asyncio.run(_operate(context.obj))


async def _operate(edge: Edge) -> None:
    from midwatch.kube.client import Cluster
    from midwatch.kube.operator import Operator
    from midwatch.logs import open_log
    from midwatch.redaction import Redactor

    settings = edge.settings()
    ours = settings.operator
    log = open_log(settings.log, sys.stdout, Redactor())
    gc.enable()  # `main` turned it off for the start
    stop = Stop()
    with signals_set(stop, end_in):
        async with Cluster.connect(
            ours.kubeconfig, ours.context, ours.request_timeout
        ) as cluster:
            await Operator(cluster, ours, log=log).run(stop)
    log.info("operator stopped", reason=stop.reason)
