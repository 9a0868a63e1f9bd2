"""`midwatch monitor`, `midwatch agent`, `midwatch up`."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.wiring import App, Edge, open_app
from midwatch.lifecycle import Stop, signals_set

if TYPE_CHECKING:
    from midwatch.agent.runner import AgentRunner
    from midwatch.lifecycle import Progress
    from midwatch.monitor.loop import MonitorLoop

app = typer.Typer()

Once = Annotated[bool, typer.Option("--once", help="One round, then exit.")]
_LONGEST_STOP = 4.5
"""Seconds from the signal to the end of the process, whatever a locked file, a frozen server or
a plug-in that heeds nothing would still wait for. It costs nothing: what is not committed is
computed anew, and a claim ends with its lease."""


def end_in(seconds: float = _LONGEST_STOP, code: int = 0) -> None:
    """End the process by then, with this exit code, if it has not ended by itself."""
    timer = threading.Timer(seconds, os._exit, [code])
    timer.daemon = True
    timer.start()


@app.command()
def monitor(context: typer.Context, once: Once = False) -> None:
    """Watch: open a ticket for what breaks, resolve it when it holds again."""
    asyncio.run(_monitor(context.obj, once))


async def _monitor(edge: Edge, once: bool) -> None:
    async with open_app(edge, sys.stdout) as opened:
        loop = opened.monitor()
        stop = Stop()
        with signals_set(stop, end_in):
            if once:
                await loop.once()
                return
            async with _served(opened, loop.progress, monitor=loop):
                opened.log.info("monitor started", subjects=len(opened.subjects))
                await loop.run(stop)
            opened.log.info("monitor stopped", reason=stop.reason)


def _served(
    opened: App,
    progress: Progress,
    *,
    monitor: MonitorLoop | None = None,
    agent: AgentRunner | None = None,
) -> AbstractAsyncContextManager[object]:
    from midwatch.cli.figures import figures_served

    return figures_served(
        opened.settings.metrics, opened.log, progress, monitor=monitor, agent=agent
    )


@app.command()
def agent(context: typer.Context, once: Once = False) -> None:
    """Diagnose what is queued, with evidence that is checked."""
    if reason := asyncio.run(_agent(context.obj, once)):
        print(f"midwatch: not diagnosing: {reason}", file=sys.stderr)
        raise typer.Exit(1)


async def _agent(edge: Edge, once: bool) -> str | None:
    async with open_app(edge, sys.stdout) as opened:
        runner = opened.agent()
        stop = Stop()
        with signals_set(stop, end_in):
            if once:
                blocked = await runner.drain(stop)
                return blocked.reason if blocked else None
            async with _served(opened, runner.progress, agent=runner):
                opened.log.info("agent started", model=opened.settings.anthropic.model)
                await runner.run(stop)
            opened.log.info("agent stopped", reason=stop.reason)
    return None


@app.command()
def up(context: typer.Context) -> None:
    """Monitor and agent in one process."""
    asyncio.run(_up(context.obj))


async def _up(edge: Edge) -> None:
    async with open_app(edge, sys.stdout) as opened:
        stop = Stop()
        with signals_set(stop, end_in):
            opened.log.info("started", subjects=len(opened.subjects))
            await run_both(opened, stop)
            opened.log.info("stopped", reason=stop.reason)


async def run_both(opened: App, stop: Stop) -> None:
    """Monitor and agent until the stop."""
    monitor = opened.monitor()
    agent = opened.agent(monitor.progress)
    async with _served(opened, monitor.progress, monitor=monitor, agent=agent):
        async with asyncio.TaskGroup() as group:
            group.create_task(monitor.run(stop), name="monitor")
            group.create_task(agent.run(stop), name="agent")
