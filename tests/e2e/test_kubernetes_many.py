"""A hundred and twenty resources at once: each has one Job and a true phase, whatever happens to the operators meanwhile."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from midwatch.kube.observed import TRANSIENT_REASONS
from midwatch.kube.rules import PLURAL, SESSION_LABEL
from midwatch.kube.status import phase_of
from midwatch.model import Json
from tests.cluster import ContainerExits, ContainerRuns
from tests.cluster.local import TEAM, Daemon, LocalCluster

from ..waiting import PATIENCE
from .kube_support import cluster

SESSIONS = 120
KILL_AT = 40
"""Jobs that are there when an operator is killed."""
REQUESTS = 30
"""A session, of both operators: one alone makes 8 for those that stay and 14 for those that end."""
LATE = 20
"""More for each session whose start was reported as late: an event, the status there and back, by both operators, with
their conflicts; and the events of its pod. How many those are depends on the machine, not on the operators."""
MEGABYTES = 120
"""Of an operator; idle it has some 80."""
SPEC = {"prompt": "x", "repos": [{"input": {"url": "https://git.example.com/a.git"}}]}
NO_API = "http://127.0.0.1:9"


@pytest.mark.longest
@pytest.mark.timeout(1800)
def test_hundreds_at_once_with_two_operators_of_which_one_is_killed(
    tmp_path: Path,
) -> None:
    # The one machine that all of it is on is slow: that is no fault of the cluster's.
    # Its operators are real programs, whose memory is measured.
    with cluster(tmp_path, NO_API, forked=False, unschedulable_grace=600) as running:
        other = running.another_operator("other")
        other.start()
        try:
            other.wait_for("operator started")
            running.kubelet.outcomes.add(ContainerExits(0), when=_ends)
            running.kubelet.outcomes.add(ContainerRuns())
            for number in range(SESSIONS):
                running.create(_name(number), SPEC)
            _until(lambda: len(_jobs(running)) > KILL_AT)
            running.operator.restart(signal.SIGKILL)
            _until(lambda: all(map(_told, _sessions(running))))
            _until(lambda: _quiet(running))
            _check(running)
            for operator in (running.operator, other):
                assert _megabytes(operator) < MEGABYTES
        finally:
            assert other.end() == 0


def _check(running: LocalCluster) -> None:
    jobs = Counter(job["metadata"]["labels"][SESSION_LABEL] for job in _jobs(running))
    assert jobs == {_name(number): 1 for number in range(SESSIONS)}
    for body in _sessions(running):
        status = body["status"]
        # A runner that said nothing may have done anything: it is not called a success.
        # `PodStarting` is what follows a late start, where the Job controller or the kubelet was slow.
        phase, reasons = (
            ("Failed", ["OutcomeUnknown"])
            if _ends(body)
            else ("Creating", ["JobCreated", "PodStarting"])
        )
        assert status["phase"] == phase, body["metadata"]["name"]
        assert status["reason"] in reasons, body["metadata"]["name"]
        assert (status["attempt"], status["restarts"]) == (1, 0)
        assert status["jobName"] == f"{body['metadata']['name']}-run-1"
    asked = running.server.requests.where(lambda one: one.verb not in ("", "watch"))
    events = running.server.objects.list("events", TEAM)
    late = [one for one in events if one["reason"] in TRANSIENT_REASONS]
    most = REQUESTS * SESSIONS + LATE * len(late)
    assert len(asked) < most, Counter(
        (one.verb, one.resource, one.status) for one in asked
    )


def _name(number: int) -> str:
    return f"{'ends' if number % 2 else 'stays'}-{number}"


def _ends(body: Json) -> bool:
    """Of a session as well as of its pod."""
    return str(body["metadata"]["name"]).startswith("ends-")


def _told(body: Json) -> bool:
    return phase_of(body).value == ("Failed" if _ends(body) else "Creating")


def _sessions(running: LocalCluster) -> list[Json]:
    return running.server.objects.list(PLURAL, TEAM)


def _jobs(running: LocalCluster) -> list[Json]:
    return running.server.objects.list("jobs", TEAM)


def _quiet(running: LocalCluster) -> bool:
    """Whether nobody asks for anything any more."""
    before = len(running.server.requests)
    time.sleep(0.5)
    return len(running.server.requests) == before


def _megabytes(daemon: Daemon) -> float:
    assert daemon.process is not None
    return psutil.Process(daemon.process.pid).memory_info().rss / 1e6


def _until(true: Callable[[], bool], timeout: float = 15 * PATIENCE) -> None:
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, "it does not come to pass"
        time.sleep(1)  # to look at hundreds of objects is work, too
