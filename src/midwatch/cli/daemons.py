"""`midwatch monitor`, `midwatch agent`, `midwatch up`."""

from __future__ import annotations

import asyncio
import http.client
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.app import App, Edge, open_app
from midwatch.errors import PermanentError, TemporaryError
from midwatch.lifecycle import StopEvent, stop_on_signals
from midwatch.text import one_line

if TYPE_CHECKING:
    from midwatch.agent.runner import AgentRunner
    from midwatch.lifecycle import Liveness
    from midwatch.monitor.loop import MonitorLoop
    from midwatch.settings import Settings

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
        stop = StopEvent()
        with stop_on_signals(stop, end_in):
            if once:
                await loop.once()
                return
            async with _served(opened, loop.progress, monitor=loop):
                opened.log.info("monitor started", subjects=len(opened.subjects))
                await loop.run(stop)
            opened.log.info("monitor stopped", reason=stop.reason)


def _served(
    opened: App,
    progress: Liveness,
    *,
    monitor: MonitorLoop | None = None,
    agent: AgentRunner | None = None,
) -> AbstractAsyncContextManager[object]:
    from midwatch.cli.metrics import figures_served

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
        stop = StopEvent()
        with stop_on_signals(stop, end_in):
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
        stop = StopEvent()
        with stop_on_signals(stop, end_in):
            opened.log.info("started", subjects=len(opened.subjects))
            await run_both(opened, stop)
            opened.log.info("stopped", reason=stop.reason)


async def run_both(opened: App, stop: StopEvent) -> None:
    """Monitor and agent until the stop."""
    monitor = opened.monitor()
    agent = opened.agent(monitor.progress)
    async with _served(opened, monitor.progress, monitor=monitor, agent=agent):
        async with asyncio.TaskGroup() as group:
            group.create_task(monitor.run(stop), name="monitor")
            group.create_task(agent.run(stop), name="agent")


# ------------------------------------------------------------ health
# `midwatch health`: what a container engine asks, in the container of a daemon.

SECONDS = 5.0
"""The time limit of the question: a loop that hangs may hold up the answer as well."""
_FIRST_PROCESS = Path("/proc/1/cmdline")
_DAEMONS = {
    ("monitor",): "metrics",
    ("agent",): "metrics",
    ("up",): "metrics",
    ("kube", "operator"): "operator",
    ("content", "serve"): "content",
}
"""Commands that answer `/healthz`, and where their settings have the address."""
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class Unwell(TemporaryError):
    """A daemon is not well, or does not answer."""

    hint = "see its log; it answers while all its loops come round"


class NoDaemon(PermanentError):
    """It is not known what to ask."""

    hint = "name the command of one, such as `midwatch health monitor`"


@app.command()
def health(
    context: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(help="Of which daemon; else the container's own, process 1."),
    ] = None,
) -> None:
    """Ask a daemon whether it is well: `monitor`, `agent`, `up`, `kube operator`, `content serve`."""
    edge: Edge = context.obj
    words = command or of_midwatch(_first_process())
    daemon = daemon_in(words)
    if daemon is None and command:
        raise NoDaemon(f"{' '.join(command)!r} is no daemon")
    if daemon is None:
        typer.echo("process 1 is no daemon: it is well as long as it runs")
        return
    if not command and (config := config_in(words)) is not None:
        edge = replace(edge, config=config)
    name, group = " ".join(daemon), _DAEMONS[daemon]
    address = _address(edge.settings(), group)
    if address is None:
        typer.echo(f"{name}: nothing is known, as {group}.port is null")
        return
    _ask(name, *address)
    typer.echo(f"{name} is well")


def of_midwatch(words: Sequence[str]) -> Sequence[str]:
    """What a command line has behind `midwatch`; there may be an init or a shell before it."""
    names = [Path(word).name for word in words]
    return words[names.index("midwatch") + 1 :] if "midwatch" in names else ()


def daemon_in(words: Sequence[str]) -> tuple[str, ...] | None:
    """The first command of a daemon among the words of a command line."""
    for at in range(len(words)):
        for daemon in _DAEMONS:
            if tuple(words[at : at + len(daemon)]) == daemon:
                return daemon
    return None


def config_in(words: Sequence[str]) -> Path | None:
    """The settings file that a command line names."""
    for word, following in pairwise((*words, "")):
        if word in ("--config", "-c"):
            return Path(following)
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
    return None


def _first_process() -> list[str]:
    try:
        data = _FIRST_PROCESS.read_bytes()
    except OSError as error:
        raise NoDaemon(f"cannot read {_FIRST_PROCESS}: {error.strerror}") from None
    # It may be a shell, which has the whole command as one word.
    return data.decode("utf-8", "replace").replace("\0", " ").split()


def _address(settings: Settings, group: str) -> tuple[str, int] | None:
    """Host and port to ask."""
    chosen = getattr(settings, group)
    if chosen.port is None:
        return None
    return _ANY.get(chosen.host, chosen.host), chosen.port


def _ask(name: str, host: str, port: int) -> None:
    """Raises Unwell."""
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        said = one_line(answer.read(2000).decode("utf-8", "replace")) or answer.reason
    except (OSError, http.client.HTTPException) as error:
        told = getattr(error, "strerror", None) or str(error)
        why = (told or type(error).__name__).lower()
        raise Unwell(f"{name} does not answer on {host}:{port}: {why}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise Unwell(f"{name} is not well ({answer.status}): {said}")
