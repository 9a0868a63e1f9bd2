"""The metrics of monitor, agent and server, and the port that serves them.

The process has all values in memory: a scrape reads neither the database nor a subject.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, get_args

from midwatch.agent.runner import AgentRunner, PauseReason
from midwatch.errors import SettingsError
from midwatch.lifecycle import Liveness
from midwatch.logs import Log
from midwatch.metrics import Family, Read, Sample
from midwatch.model import Severity
from midwatch.monitor.loop import MonitorLoop
from midwatch.monitor.result import Result
from midwatch.settings import MetricsSettings
from midwatch.store.protocol import Store, notice_of

if TYPE_CHECKING:
    from midwatch.notify.notifier import Notifier
    from midwatch.pull_requests.watcher import PullRequestWatcher
    from midwatch.runbooks.library import RunbookLibrary

_CYCLES = Family(
    "midwatch_monitor_cycles_total",
    "counter",
    "Checks of a subject by result: observed, unobservable, unsaved.",
    ("subject", "result"),
)
_SECONDS = Family(
    "midwatch_monitor_cycle_seconds_total",
    "counter",
    "Seconds spent on checking a subject and saving the result.",
    ("subject",),
)
_UNOBSERVABLE = Family(
    "midwatch_monitor_subject_unobservable",
    "gauge",
    "1 if the last check of the subject failed.",
    ("subject",),
)
_OPEN = Family(
    "midwatch_monitor_open_tickets",
    "gauge",
    "Tickets that are not resolved, after the last check.",
    ("subject", "severity"),
)
_SILENCED = Family(
    "midwatch_monitor_silenced_violations",
    "gauge",
    "Violations that a silence keeps from opening a ticket, after the last check.",
    ("subject",),
)
_OPENED = Family(
    "midwatch_monitor_tickets_opened_total",
    "counter",
    "Tickets opened.",
    ("subject",),
)
_RESOLVED = Family(
    "midwatch_monitor_tickets_resolved_total",
    "counter",
    "Tickets resolved because the invariant holds again.",
    ("subject",),
)
_OBSERVED_AT = Family(
    "midwatch_monitor_last_success_timestamp_seconds",
    "gauge",
    "Time of the last check that was observed and saved.",
    ("subject",),
)
_SUBJECTS = Family(
    "midwatch_monitor_subjects",
    "gauge",
    "Subjects that this monitor watches, out of those that monitors on one database share.",
)
MONITOR = (
    _SUBJECTS,
    _CYCLES,
    _SECONDS,
    _UNOBSERVABLE,
    _OPEN,
    _SILENCED,
    _OPENED,
    _RESOLVED,
    _OBSERVED_AT,
)

_DIAGNOSES = Family(
    "midwatch_agent_diagnoses_total",
    "counter",
    "Attempts to diagnose a batch of tickets, by outcome.",
    ("outcome",),
)
_SPENT = Family(
    "midwatch_agent_spent_usd_total", "counter", "Dollars spent on calls of Claude."
)
_PAUSED = Family(
    "midwatch_agent_paused",
    "gauge",
    "1 while the agent is paused for this reason.",
    ("reason",),
)
_PAUSES = Family(
    "midwatch_agent_pauses_total",
    "counter",
    "Times the agent paused, by reason.",
    ("reason",),
)
_CLAIMED_AT = Family(
    "midwatch_agent_last_success_timestamp_seconds",
    "gauge",
    "Time of the last check of the queue without an error or a pause.",
)
AGENT = (_DIAGNOSES, _SPENT, _PAUSED, _PAUSES, _CLAIMED_AT)

_DELIVERIES = Family(
    "midwatch_notify_deliveries_total",
    "counter",
    "Notifications by target and result: sent, failed (an attempt), given_up, dropped (no need any more).",
    ("target", "result"),
)
_FAILING = Family(
    "midwatch_notify_target_failing",
    "gauge",
    "1 while the last attempt to reach the target failed.",
    ("target",),
)
NOTIFIER = (_DELIVERIES, _FAILING)
_RESULTS = ("sent", "failed", "given_up", "dropped")

_OPENED_PULLS = Family(
    "midwatch_pull_requests_total",
    "counter",
    "Pull requests of tickets that were seen opened, updated (new commits), merged or closed, and tries to open or read one that failed.",
    ("result",),
)
PULL_REQUESTS = (_OPENED_PULLS,)

_BOOKS = Family("midwatch_runbooks", "gauge", "Runbooks that can be used.", ("source",))
_UNUSABLE = Family(
    "midwatch_runbooks_unusable", "gauge", "Files that cannot be used.", ("source",)
)
_AWAY = Family(
    "midwatch_runbooks_away",
    "gauge",
    "1 while the source cannot be read, so that an earlier copy is used, or none.",
    ("source",),
)
_READ_AT = Family(
    "midwatch_runbooks_last_success_timestamp_seconds",
    "gauge",
    "Time when the folder was read, or the repository fetched into its mirror.",
    ("source",),
)
_MATCHED = Family(
    "midwatch_runbooks_matched_total",
    "counter",
    "Runbooks found for tickets, each time that evidence is gathered; `alert` is the source of pages that alerts name.",
    ("source",),
)
RUNBOOKS = (_BOOKS, _UNUSABLE, _AWAY, _READ_AT, _MATCHED)

_OUTCOMES = (
    "answered",
    "refused",
    "cut",
    "error",
    "given_up",
    "retry",
    "lost",
    "stopped",
    "budget",
)
_REASONS = tuple(
    reason
    for part in get_args(PauseReason)
    for reason in get_args(part)
    if reason != "stopped"
)


def monitor_samples(monitor: MonitorLoop) -> Iterator[Sample]:
    """Return the values of a monitor."""
    yield _SUBJECTS(len(monitor.watched))
    for one in monitor.watched:
        name, stats = one.subject.name, one.stats
        for result in get_args(Result):
            yield _CYCLES(stats.cycles[result], name, result)
        yield _SECONDS(stats.seconds, name)
        yield _OPENED(stats.opened, name)
        yield _RESOLVED(stats.resolved, name)
        if stats.last_success is not None:
            yield _OBSERVED_AT(stats.last_success.timestamp(), name)
        if stats.known:  # before that, 0 tickets would be wrong
            yield _UNOBSERVABLE(stats.last == "unobservable", name)
            count = Counter(ticket.severity for ticket in one.tickets.values())
            for severity in Severity:
                yield _OPEN(count[severity], name, severity.label)
            yield _SILENCED(len(one.silent), name)


def agent_samples(agent: AgentRunner) -> Iterator[Sample]:
    """Return the values of an agent."""
    # Outcomes that have not happened are 0: a counter that begins at 1 has no increase.
    for outcome in {**dict.fromkeys(_OUTCOMES), **agent.outcomes}:
        yield _DIAGNOSES(agent.outcomes[outcome], outcome)
    yield _SPENT(agent.spent_usd)
    for reason in _REASONS:
        yield _PAUSED(agent.paused == reason, reason)
        yield _PAUSES(agent.pauses[reason], reason)
    if agent.last_success is not None:
        yield _CLAIMED_AT(agent.last_success.timestamp())


Measured = tuple[Sequence[Family], Read]
"""The metrics of a part of a process, and what returns their values."""


def notifier_samples(notifier: Notifier) -> Iterator[Sample]:
    """Return the values of a notifier."""
    for target in notifier.targets:
        for result in _RESULTS:
            yield _DELIVERIES(notifier.results[target, result], target, result)
        yield _FAILING(target in notifier.failing, target)


def pull_request_samples(watcher: PullRequestWatcher) -> Iterator[Sample]:
    """Return the values of a watcher of pull requests."""
    for result in ("opened", "updated", "merged", "closed", "failed"):
        yield _OPENED_PULLS(watcher.results[result], result)


def runbook_samples(library: RunbookLibrary) -> Iterator[Sample]:
    """Return the values of the runbooks."""
    for source in library.sources:
        name, listing = source.name, source.listing
        yield _MATCHED(library.matched[name], name)
        yield _AWAY(bool(source.away), name)
        if source.read_at or source.away:  # before that, 0 runbooks would be wrong
            yield _BOOKS(len(listing.runbooks), name)
            yield _UNUSABLE(len(listing.problems), name)
        if source.read_at is not None:
            yield _READ_AT(source.read_at.timestamp(), name)
    yield _MATCHED(library.matched["alert"], "alert")


@contextlib.asynccontextmanager
async def metrics_served(
    settings: MetricsSettings,
    log: Log,
    progress: Liveness,
    *,
    store: Store,
    monitor: MonitorLoop | None = None,
    agent: AgentRunner | None = None,
    more: Sequence[Measured] = (),
) -> AsyncIterator[str | None]:
    """Serve `/metrics` and `/healthz` while the block runs, if the settings name a port. Yields the address.

    Args:
        settings: The host and the port.
        log: Where the address is logged.
        progress: Whether the loops of the process run.
        store: Has the notice that a probe shows.
        monitor, agent: What this process runs.
        more: The metrics of what else it runs, such as the server.
    """
    if settings.port is None:
        yield None
        return
    try:
        from midwatch.exposition import Exposition
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "prometheus_client":
            raise
        raise SettingsError(
            "the package prometheus_client is not installed",
            path="metrics.port",
            hint="pip install 'midwatch[metrics]', or set no port",
        ) from None
    from midwatch.metrics import health, serving

    parts = list(more)
    if agent is not None:
        parts.insert(0, (AGENT, partial(agent_samples, agent)))
    if monitor is not None:
        parts.insert(0, (MONITOR, partial(monitor_samples, monitor)))

    def read() -> Iterator[Sample]:
        for _, samples in parts:
            yield from samples()

    families = [family for part, _ in parts for family in part]
    pages = {
        "/healthz": health(progress, lambda: notice_of(store)),
        "/metrics": Exposition(families, read).page,
    }
    async with serving(
        settings.host, settings.port, pages, log, setting="metrics.port"
    ) as address:
        log.info("metrics served", address=address)
        yield address
