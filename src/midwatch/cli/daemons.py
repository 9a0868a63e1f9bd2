"""`midwatch monitor`, `agent`, `serve` and `up` run daemons; `midwatch health` asks one."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.app import App, Edge, open_app
from midwatch.cli.serve import scheduler, server_running
from midwatch.errors import PermanentError, SettingsError, TemporaryError
from midwatch.lifecycle import Liveness, StopEvent, background, stop_on_signals
from midwatch.text import one_line
from midwatch.units import format_count, format_duration

if TYPE_CHECKING:
    from midwatch.agent.runner import AgentRunner
    from midwatch.cli.metrics import Measured
    from midwatch.monitor.loop import MonitorLoop
    from midwatch.settings import Settings
    from midwatch.store.protocol import Store

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
        loop = await asyncio.to_thread(opened.monitor)
        _begin(opened)
        stop = StopEvent()
        with stop_on_signals(stop, end_in):
            if once:
                await loop.once()
                _say(_pending(loop))
                return
            async with _served(opened, loop.progress, monitor=loop):
                opened.log.info("monitor started", subjects=len(opened.subjects))
                await loop.run(stop)
            opened.log.info("monitor stopped", reason=stop.reason)


def _begin(opened: App) -> None:
    """Read the runbooks before the first ticket needs them."""
    if opened.runbooks is not None:
        opened.runbooks.begin_reading()


def _served(
    opened: App,
    progress: Liveness,
    *,
    monitor: MonitorLoop | None = None,
    agent: AgentRunner | None = None,
    more: Sequence[Measured] = (),
) -> AbstractAsyncContextManager[object]:
    from midwatch.cli.metrics import metrics_served

    return metrics_served(
        opened.settings.metrics,
        opened.log,
        progress,
        store=opened.store,
        monitor=monitor,
        agent=agent,
        more=more,
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
        _begin(opened)
        stop = StopEvent()
        with stop_on_signals(stop, end_in):
            if once:
                blocked = await runner.drain(stop)
                if blocked is None:
                    _say(await _waiting(opened.store, runner))
                return blocked.reason if blocked else None
            async with (
                settling_actions(opened, stop),
                _served(opened, runner.progress, agent=runner),
            ):
                opened.log.info("agent started", model=opened.settings.anthropic.model)
                await runner.run(stop)
            opened.log.info("agent stopped", reason=stop.reason)
    return None


# ------------------------------------------------------------------ what is left after one cycle


def _say(text: str) -> None:
    if text:
        print(f"midwatch: {text}", file=sys.stderr)


def _pending(loop: MonitorLoop) -> str:
    """Return what is broken and not a ticket yet, as it has to last for a while; empty if nothing is."""
    left = {
        f"{key.subject} {key.invariant}": one.invariants[key.invariant].hold_for
        for one in loop.watched
        for key in one.pending
        if key not in one.tickets
        and key not in one.silent
        and key.invariant in one.invariants
        and one.invariants[key.invariant].hold_for
    }
    if not left:
        return ""
    named = ", ".join(one_line(name) for name in sorted(left)[:5])
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    return (
        f"broken, but a ticket opens only if that lasts for up to {format_duration(max(left.values()))}: "
        f"{named}{more} (one cycle cannot see it: run `midwatch monitor`)"
    )


async def _waiting(store: Store, runner: AgentRunner) -> str:
    """Return which tickets wait for a diagnosis, why, and for how long; empty if none does."""
    from midwatch.model import UNDIAGNOSED
    from midwatch.store.protocol import TicketFilter

    now = datetime.now(UTC)
    reasons: dict[str, list[tuple[float, int]]] = {}
    for ticket in await store.tickets(TicketFilter(UNDIAGNOSED, limit=10_000)):
        seconds = 0.0
        if ticket.next_attempt_at is not None:
            seconds = max((ticket.next_attempt_at - now).total_seconds(), 0.0)
        if ticket.silenced_at(now):
            seconds = 0.0
            if ticket.silenced_until is not None:
                seconds = (ticket.silenced_until - now).total_seconds()
            why = "until a silence ends"
        elif seconds and not ticket.attempts:
            why = "until others of the incident can join it (monitor.group_wait)"
        elif seconds:
            why = f"after {format_count(ticket.attempts, 'failed attempt')}"
        elif runner.outcomes["budget"]:
            why = "for the budget of another day (agent.daily_budget_usd)"
        else:
            why = "for another agent, which is diagnosing"
        reasons.setdefault(why, []).append((seconds, ticket.id))
    parts = []
    for why, waits in reasons.items():
        wait = "waits" if len(waits) == 1 else "wait"
        longest, _ = max(waits)
        time = f" {format_duration(max(longest, 1))}" if longest else ""
        parts.append(f"{format_count(len(waits), 'ticket')} {wait}{time} {why}")
    if not parts:
        return ""
    first_id = min(id_ for waits in reasons.values() for _, id_ in waits)
    return (
        f"{'; '.join(parts)} (run `midwatch agent --once` again then, or `midwatch "
        f"diagnose {first_id}` now)"
    )


@app.command()
def up(context: typer.Context) -> None:
    """Run monitor, agent and schedules in one process, and the server if `server.listen` is set."""
    asyncio.run(_up(context.obj))


async def _up(edge: Edge) -> None:
    async with open_app(edge, sys.stdout, create=True) as opened:
        stop = StopEvent()
        with stop_on_signals(stop, end_in):
            opened.log.info("started", subjects=len(opened.subjects))
            await run_both(opened, stop)
            opened.log.info("stopped", reason=stop.reason)


@asynccontextmanager
async def notifying(opened: App, stop: StopEvent) -> AsyncIterator[Sequence[Measured]]:
    """Tell people of tickets while the block runs, if the settings have a route; the stop is set at its end.

    Yields the metrics of that. Raises SettingsError if the settings of notifications are wrong.
    """
    notifier = opened.notifier()
    if notifier is None:
        yield ()
        return
    from midwatch.cli.metrics import NOTIFIER, notifier_samples

    await notifier.check()
    task = asyncio.create_task(notifier.run(stop), name="notifier")
    opened.log.info("notifier started", routes=len(notifier.routes.routes))
    try:
        yield [(NOTIFIER, partial(notifier_samples, notifier))]
    finally:
        stop.set("the process ends")
        await task


@asynccontextmanager
async def watching_pull_requests(opened: App, stop: StopEvent) -> AsyncIterator[None]:
    """Watch the pull requests of tickets while the block runs, if a subject has repositories; the stop is set at its end."""
    if not any(one.get("repositories") for one in opened.settings.subjects):
        yield
        return
    from midwatch.cli.session.publish import open_publisher
    from midwatch.pull_requests.watcher import PullRequestWatcher

    try:
        publisher = open_publisher(
            opened.settings, opened.model.environ, opened.store, opened.redactor
        )
    except SettingsError as error:  # a token of git that this process does not have
        opened.log.warning("pull requests are not watched", reason=error.one_line())
        yield
        return
    watcher = PullRequestWatcher(
        publisher,
        opened.settings.pull_requests.interval,
        opened.log,
        opened.redactor.text,
    )
    task = asyncio.create_task(watcher.run(stop), name="pull requests")
    try:
        yield
    finally:
        stop.set("the process ends")
        await task


def settling_actions(opened: App, stop: StopEvent) -> AbstractAsyncContextManager[None]:
    """End approved actions whose process has died, while the block runs."""
    from midwatch.agent.approved_actions import keep_settling

    return background(keep_settling(opened.store, opened.log, stop))


async def run_both(opened: App, stop: StopEvent) -> None:
    """Run monitor and agent, the server if it has an address, and notifications and schedules if there are some."""
    monitor = await asyncio.to_thread(opened.monitor)
    agent = await asyncio.to_thread(opened.agent, monitor.progress)
    _begin(opened)
    async with AsyncExitStack() as stack:
        more = [*await stack.enter_async_context(notifying(opened, stop))]
        await stack.enter_async_context(watching_pull_requests(opened, stop))
        await stack.enter_async_context(settling_actions(opened, stop))
        if opened.settings.server.listen is not None:
            more.append(await stack.enter_async_context(server_running(opened, stop)))
        both = _served(
            opened, monitor.progress, monitor=monitor, agent=agent, more=more
        )
        await stack.enter_async_context(both)
        schedules = scheduler(opened, monitor.progress)
        async with asyncio.TaskGroup() as group:
            if schedules is not None:
                group.create_task(schedules.run(stop), name="schedules")
            group.create_task(monitor.run(stop), name="monitor")
            group.create_task(agent.run(stop), name="agent")


@app.command()
def serve(context: typer.Context) -> None:
    """Serve the page, the API, MCP and the addresses for alerts at `server.listen`, until SIGTERM."""
    asyncio.run(_serve(context.obj))


async def _serve(edge: Edge) -> None:
    async with open_app(edge, sys.stdout, create=True) as opened:
        stop = StopEvent()
        with stop_on_signals(stop, end_in):
            async with (
                notifying(opened, stop) as told,
                watching_pull_requests(opened, stop),
                settling_actions(opened, stop),
                server_running(opened, stop) as measured,
                _served(opened, Liveness(), more=[*told, measured]),
            ):
                await stop.wait()
            opened.log.info("server stopped", reason=stop.reason)


# ------------------------------------------------------------------ health

SECONDS = 5.0
"""Timeout of the request: a loop that hangs may delay the answer as well."""
_FIRST_PROCESS = Path("/proc/1/cmdline")
_DAEMONS = {
    ("monitor",): "metrics",
    ("agent",): "metrics",
    ("up",): "metrics",
    ("serve",): "server",
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
    """Check the health of a daemon: `monitor`, `agent`, `up`, `serve`, `kube operator` or `content serve`.

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
    settings = edge.settings()
    address = _address(settings, group)
    if address is None:
        setting = "listen" if group == "server" else "port"
        typer.echo(f"{name}: unknown, as {group}.{setting} is null")
        return
    tls = group == "server" and settings.server.certificate_file is not None
    notice = _request(name, *address, tls=tls)
    typer.echo(f"{name} is healthy{notice and f'; {notice}'}")


def of_midwatch(words: Sequence[str]) -> Sequence[str]:
    """Return the arguments after `midwatch`; an init or a shell may stand before it."""
    names = [Path(word).name for word in words]
    return words[names.index("midwatch") + 1 :] if "midwatch" in names else ()


def daemon_in(words: Sequence[str]) -> tuple[str, ...] | None:
    """Return the command of a daemon that a command line begins with, after its options."""
    rest = list(words)
    while rest and rest[0].startswith("-"):
        rest = rest[2 if rest[0] in ("--config", "-c") else 1 :]
    for daemon in _DAEMONS:
        if tuple(rest[: len(daemon)]) == daemon:
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
    if group == "server":
        host, port = settings.server.listen or ("", None)
    else:
        chosen = getattr(settings, group)
        host, port = chosen.host, chosen.port
    return None if port is None else (_ANY.get(host, host), port)


def _request(name: str, host: str, port: int, *, tls: bool = False) -> str:
    """Request `/healthz`, and return what it says beside `ok`. Raises Unhealthy."""
    import http.client  # takes 5 ms, which every command would pay
    import ssl

    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    if tls:
        # The certificate is for another name than that of this machine, and nothing secret is sent.
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(
            host, port, timeout=SECONDS, context=context
        )
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
