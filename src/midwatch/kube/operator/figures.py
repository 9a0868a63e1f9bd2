"""What the operator tells probes and Prometheus. A scrape asks the API server for nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from midwatch.kube.operator.carry import Tally
from midwatch.kube.operator.follow import FAILURES
from midwatch.kube.operator.hearing import RESOURCES, Hearing
from midwatch.kube.operator.index import Index
from midwatch.kube.operator.queue import Queue
from midwatch.metrics import Answer, Family, Page, Sample
from midwatch.session.events import Phase

_SESSIONS = Family(
    "midwatch_operator_sessions",
    "gauge",
    "Sessions that are not over and done with, by phase.",
    ("phase",),
)
_STARTS = Family("midwatch_operator_starts_total", "counter", "First Jobs of sessions.")
_RESTARTS = Family(
    "midwatch_operator_restarts_total",
    "counter",
    "Jobs for sessions whose pod was lost.",
)
_ENDS = Family(
    "midwatch_operator_ends_total",
    "counter",
    "Sessions that ended, by phase and the status's reason; `other` is a reason that is not in the table.",
    ("phase", "reason"),
)
_REQUESTS = Family(
    "midwatch_operator_api_requests_total",
    "counter",
    "Calls of the API server; a list in pages is one. Codes: 2xx, a status, timeout, error.",
    ("verb", "code"),
)
_FAILURES = Family(
    "midwatch_operator_reconcile_errors_total",
    "counter",
    "Turns of a session that failed: outdated, temporary, permanent, unexpected.",
    ("kind",),
)
_DEPTH = Family(
    "midwatch_operator_queue_depth", "gauge", "Sessions that wait for their turn."
)
_OLDEST = Family(
    "midwatch_operator_queue_oldest_seconds",
    "gauge",
    "How long the first of them has waited.",
)
_WORKING = Family(
    "midwatch_operator_queue_working", "gauge", "Sessions that are worked on now."
)
_DOWN = Family(
    "midwatch_operator_watch_down_seconds",
    "gauge",
    "How long a watch has not been open; 0 while all of the resource are.",
    ("resource",),
)
OPERATOR = (
    _SESSIONS,
    _STARTS,
    _RESTARTS,
    _ENDS,
    _REQUESTS,
    _FAILURES,
    _DEPTH,
    _OLDEST,
    _WORKING,
    _DOWN,
)

TAKEN = frozenset(
    ("Evicted", "Preempting", "NodeShutdown", "Terminated", "NodeAffinity")
    + ("PreemptionByScheduler", "DeletionByTaintManager", "EvictionByEvictionAPI")
    + ("DeletionByPodGC", "TerminationByKubelet")
)
"""Why Kubernetes takes a pod away: `status.reason` of a pod, and the reasons of its DisruptionTarget."""
REASONS = TAKEN | frozenset(
    ("Completed", "Stopped", "Idle", "Interrupted", "InvalidSpec", "NameTooLong")
    + ("ImagePull", "InvalidImageName", "CreateContainerConfigError")
    + ("Unschedulable", "NoPod", "OutOfMemory", "DeadlineExceeded", "TimedOut")
    + ("SessionTimedOut", "SessionIdle", "TurnLimit", "BudgetSpent", "KeyRefused")
    + ("ModelNotFound", "RateLimited", "Overloaded", "ApiUnreachable", "ApiFailed")
    + ("RepositoryNotFound", "NotAuthorised", "RepositoryUnreachable", "PushFailed")
    + ("ContentUnavailable", "TokenRefused", "BadEnvironment", "ExitCode")
    + ("OutcomeUnknown", "NodeLost", "Killed", "PodDeleted", "PodFailed", "PodGone")
    + ("JobDeleted",)
)
"""What a session can end with, as docs/kubernetes.md has it. A status can be written by others: what is
not among these is no label."""


@dataclass(frozen=True)
class Figures:
    """What is counted, where it is counted."""

    index: Index
    queue: Queue
    tally: Tally
    failures: Mapping[str, int]
    hearing: Hearing
    requests: Counter[tuple[str, str]]

    def samples(self) -> Iterator[Sample]:
        phases = self.index.phases()
        for phase in Phase:
            yield _SESSIONS(phases[phase], phase.value)
        yield _STARTS(self.tally.starts)
        yield _RESTARTS(self.tally.restarts)
        for (ended, reason), count in self._ends().items():
            yield _ENDS(count, ended, reason)
        for (verb, code), count in (self.requests + self.hearing.requests).items():
            yield _REQUESTS(count, verb, code)
        for kind in FAILURES:
            yield _FAILURES(self.failures.get(kind, 0), kind)
        yield _DEPTH(len(self.queue))
        yield _OLDEST(self.queue.oldest())
        yield _WORKING(self.queue.working())
        for resource, seconds in self.hearing.down().items():
            if resource in RESOURCES:
                yield _DOWN(seconds, resource)

    def _ends(self) -> Counter[tuple[str, str]]:
        known = Counter[tuple[str, str]]()
        for (phase, reason), count in self.tally.ends.items():
            known[phase, reason if reason in REASONS else "other"] += count
        return known


def readiness(hearing: Hearing, watches: int, silence: float) -> Page:
    """200 while all of so many watches are open, or were within `silence` seconds; else 503 says which."""

    def page() -> Answer:
        if hearing.watches() < watches:
            return Answer(503, b"the watches are not open yet\n")
        down = {name: s for name, s in hearing.down().items() if s > silence}
        said = [f"watch of {name}: down for {s:.0f} s\n" for name, s in down.items()]
        return Answer(503 if down else 200, "".join(said or ["ok\n"]).encode())

    return page
