"""`midwatch monitor`, `midwatch agent` and `midwatch up` run daemons; `midwatch health` asks one."""

from __future__ import annotations

import asyncio
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

Once = Annotated[bool, typer.Option("--once", help="Run one cycle, then exit.")]
_MAX_STOP = 4.5
"""Seconds from the signal to the end of the process, also if a locked file, a frozen server or a
plug-in still blocks. Nothing is lost: what is not committed is computed again, and a claim ends
with its lease."""


def end_in(seconds: float = _MAX_STOP, code: int = 0) -> None:
    """End the process with this exit code after `seconds`, unless it has ended before."""
    timer = threading.Timer(seconds, os._exit, [code])
    timer.daemon = True
    timer.start()


@app.command()
def monitor(context: typer.Context, once: Once = False) -> None:
    """Run the monitor: open a ticket when an invariant breaks, resolve it when it holds again."""
    asyncio.run(_monitor(context.obj, once))


async def _monitor(edge: Edge, once: bool) -> None:
    async with open_app(edge, sys.stdout, create=True) as opened:
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
    from midwatch.cli.metrics import metrics_served

    return metrics_served(
        opened.settings.metrics, opened.log, progress, monitor=monitor, agent=agent
    )


@app.command()
def agent(context: typer.Context, once: Once = False) -> None:
    """Run the agent: diagnose queued tickets, with evidence that is checked."""
    if reason := asyncio.run(_agent(context.obj, once)):
        print(f"midwatch: not diagnosing: {reason}", file=sys.stderr)
        raise typer.Exit(1)


async def _agent(edge: Edge, once: bool) -> str | None:
    async with open_app(edge, sys.stdout, create=True) as opened:
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
    """Run monitor and agent in one process."""
    asyncio.run(_up(context.obj))


async def _up(edge: Edge) -> None:
    async with open_app(edge, sys.stdout, create=True) as opened:
        stop = StopEvent()
        with stop_on_signals(stop, end_in):
            opened.log.info("started", subjects=len(opened.subjects))
            await run_both(opened, stop)
            opened.log.info("stopped", reason=stop.reason)


async def run_both(opened: App, stop: StopEvent) -> None:
    """Run monitor and agent until the stop."""
    monitor = opened.monitor()
    agent = opened.agent(monitor.progress)
    async with _served(opened, monitor.progress, monitor=monitor, agent=agent):
        async with asyncio.TaskGroup() as group:
            group.create_task(monitor.run(stop), name="monitor")
            group.create_task(agent.run(stop), name="agent")


# ------------------------------------------------------------------ health

SECONDS = 5.0
"""Timeout of the request: a loop that hangs may delay the answer as well."""
_FIRST_PROCESS = Path("/proc/1/cmdline")
_DAEMONS = {
    ("monitor",): "metrics",
    ("agent",): "metrics",
    ("up",): "metrics",
    ("kube", "operator"): "operator",
    ("content", "serve"): "content",
}
"""Commands that serve `/healthz`, and the group of settings that has the address."""
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class Unhealthy(TemporaryError):
    """A daemon is not healthy, or does not answer."""

    hint = "see its log; it answers 200 while all its loops run"


class NoDaemon(PermanentError):
    """The command is not one of a daemon."""

    hint = "name the command of a daemon, such as `midwatch health monitor`"


@app.command()
def health(
    context: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(help="The daemon's command; without it, that of process 1."),
    ] = None,
) -> None:
    """Check the health of a daemon: `monitor`, `agent`, `up`, `kube operator` or `content serve`.

    A container engine runs this inside the daemon's container.
    """
    edge: Edge = context.obj
    arguments = command or of_midwatch(_first_process())
    daemon = daemon_in(arguments)
    if daemon is None and command:
        raise NoDaemon(f"{' '.join(command)!r} is not a daemon")
    if daemon is None:
        typer.echo("process 1 is not a daemon: it is healthy while it runs")
        return
    if not command and (config := config_in(arguments)) is not None:
        edge = replace(edge, config=config)
    name, group = " ".join(daemon), _DAEMONS[daemon]
    address = _address(edge.settings(), group)
    if address is None:
        typer.echo(f"{name}: unknown, as {group}.port is null")
        return
    notice = _request(name, *address)
    typer.echo(f"{name} is healthy{notice and f'; {notice}'}")


def of_midwatch(words: Sequence[str]) -> Sequence[str]:
    """Return the arguments after `midwatch`; an init or a shell may stand before it."""
    names = [Path(word).name for word in words]
    return words[names.index("midwatch") + 1 :] if "midwatch" in names else ()


def daemon_in(words: Sequence[str]) -> tuple[str, ...] | None:
    """Return the first command of a daemon on a command line."""
    for at in range(len(words)):
        for daemon in _DAEMONS:
            if tuple(words[at : at + len(daemon)]) == daemon:
                return daemon
    return None


def config_in(words: Sequence[str]) -> Path | None:
    """Return the settings file that a command line names."""
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
    # It may be a shell, which has the whole command as one argument.
    return data.decode("utf-8", "replace").replace("\0", " ").split()


def _address(settings: Settings, group: str) -> tuple[str, int] | None:
    """Return host and port of a daemon; None without a port."""
    chosen = getattr(settings, group)
    if chosen.port is None:
        return None
    return _ANY.get(chosen.host, chosen.host), chosen.port


def _request(name: str, host: str, port: int) -> str:
    """Request `/healthz`, and return what it says beside `ok`. Raises Unhealthy."""
    import http.client  # takes 5 ms, which every command would pay

    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        body = one_line(answer.read(2000).decode("utf-8", "replace")) or answer.reason
    except (OSError, http.client.HTTPException) as error:
        text = getattr(error, "strerror", None) or str(error)
        why = (text or type(error).__name__).lower()
        raise Unhealthy(f"{name} does not answer on {host}:{port}: {why}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise Unhealthy(f"{name} is not healthy ({answer.status}): {body}")
    return body.removeprefix("ok").strip() if body.startswith("ok ") else ""
