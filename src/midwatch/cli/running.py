"""Run the daemons: monitor, agent and server, or all of them in one process."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from midwatch.cli.app import App, Edge, open_app
from midwatch.cli.serve import scheduler, server_running, session_context
from midwatch.errors import SettingsError
from midwatch.lifecycle import Liveness, StopEvent, background, stop_on_signals
from midwatch.text import one_line
from midwatch.units import format_count, format_duration

if TYPE_CHECKING:
    from midwatch.agent.runner import AgentRunner
    from midwatch.cli.metrics import Measured
    from midwatch.monitor.loop import MonitorLoop
    from midwatch.store.protocol import Store

_MAX_STOP = 4.5
"""Seconds from the signal to the end of the process, also if a locked file, a frozen server or a
plug-in still blocks. Nothing is lost: what is not committed is computed again, and a claim ends
with its lease."""


def end_in(seconds: float = _MAX_STOP, code: int = 0) -> None:
    """End the process with this exit code after `seconds`, unless it has ended before."""
    timer = threading.Timer(seconds, os._exit, [code])
    timer.daemon = True
    timer.start()


async def run_monitor(edge: Edge, once: bool = False) -> None:
    """Run the monitor until SIGTERM, or for one cycle. Raises MidwatchError."""
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
    if opened.settings.metrics.port is None:
        return nullcontext()
    from midwatch.cli.metrics import RUNBOOKS, metrics_served, runbook_samples

    if opened.runbooks is not None:
        more = [*more, (RUNBOOKS, partial(runbook_samples, opened.runbooks))]
    return metrics_served(
        opened.settings.metrics,
        opened.log,
        progress,
        store=opened.store,
        monitor=monitor,
        agent=agent,
        more=more,
    )


async def run_agent(edge: Edge, once: bool = False) -> str | None:
    """Run the agent until SIGTERM, or until nothing is due. Return why it makes no call then. Raises MidwatchError."""
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


async def run_up(edge: Edge) -> None:
    """Run all daemons in this process until SIGTERM. Raises MidwatchError."""
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
async def watching_pull_requests(
    opened: App, stop: StopEvent
) -> AsyncIterator[Sequence[Measured]]:
    """Watch the pull requests of tickets while the block runs, if a subject has repositories; the stop is set at its end.

    Those that a killed process of this machine did not open are opened. Yields the metrics of that.
    """
    if not any(one.get("repositories") for one in opened.settings.subjects):
        yield ()
        return
    from midwatch.cli.metrics import PULL_REQUESTS, pull_request_samples
    from midwatch.cli.session.interrupted import InterruptedSessions
    from midwatch.cli.session.publish import open_publisher
    from midwatch.pull_requests.watcher import PullRequestWatcher

    try:
        publisher = open_publisher(
            opened.settings, opened.model.environ, opened.store, opened.redactor
        )
    except SettingsError as error:  # a token of git that this process does not have
        opened.log.warning("pull requests are not watched", reason=error.one_line())
        yield ()
        return
    watcher = PullRequestWatcher(
        publisher,
        opened.settings.pull_requests.interval,
        opened.log,
        opened.redactor.text,
    )
    interrupted = InterruptedSessions(
        session_context(opened), opened.settings.pull_requests.interval, opened.log
    )
    task = asyncio.create_task(watcher.run(stop), name="pull requests")
    try:
        async with background(interrupted.run(stop)):
            yield [(PULL_REQUESTS, partial(pull_request_samples, watcher))]
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
        more += await stack.enter_async_context(watching_pull_requests(opened, stop))
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


async def run_serve(edge: Edge) -> None:
    """Run the server until SIGTERM. Raises MidwatchError."""
    async with open_app(edge, sys.stdout, create=True) as opened:
        stop = StopEvent()
        with stop_on_signals(stop, end_in):
            async with (
                notifying(opened, stop) as told,
                watching_pull_requests(opened, stop) as pulls,
                settling_actions(opened, stop),
                server_running(opened, stop) as measured,
                _served(opened, Liveness(), more=[*told, *pulls, measured]),
            ):
                await stop.wait()
            opened.log.info("server stopped", reason=stop.reason)


DAEMONS: Mapping[str, Callable[[Edge], Coroutine[None, None, object]]] = {
    "monitor": run_monitor,
    "agent": run_agent,
    "up": run_up,
    "serve": run_serve,
}
