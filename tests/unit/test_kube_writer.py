"""The writer of a pod's status against a resource in memory, in a time of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midwatch.cluster.errors import ClusterUnavailable, ResourceGone
from midwatch.errors import MidwatchError
from midwatch.kube.status import Condition, Writer
from midwatch.kube.status_writer import NoCluster, ResourceRecords, Target
from midwatch.model import Json
from midwatch.session.events import Phase
from midwatch.session.records import FolderRecords
from midwatch.session.status import SessionStatus
from midwatch.testing.fakes import ManualClock

from ..waiting import PATIENCE

RUNNING = SessionStatus(phase=Phase.RUNNING, unfinished=("p",))


class Resource(NoCluster):
    """A resource in memory: it counts writes, can be slow, and can fail."""

    def __init__(self) -> None:
        self.body: Json = {"metadata": {"uid": "u"}, "status": {}}
        self.patches: list[Json] = []
        self.failures: list[MidwatchError] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def write_status(
        self,
        namespace: str,
        name: str,
        propose: Callable[[Json], Json | None],
        **_: object,
    ) -> Json:
        assert (namespace, name) == ("ns", "fix")
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)

        def recorded(body: Json) -> Json | None:
            patch = propose(body)
            self.patches += [] if patch is None else [patch]
            return patch

        return await super().write_status(namespace, name, recorded)

    @property
    def status(self) -> Json:
        found: Json = self.body["status"]
        return found


@pytest.fixture
def resource() -> Resource:
    return Resource()


@pytest.fixture
def lost() -> list[str]:
    return []


@pytest.fixture
def records(
    resource: Resource, clock: ManualClock, tmp_path: Path, lost: list[str]
) -> ResourceRecords:
    target = Target("ns", "fix", Writer("u", 1, 1))
    return ResourceRecords(
        resource,
        target,
        FolderRecords(tmp_path),
        interval=5,
        clock=clock,
        on_lost=lost.append,
    )


async def rest() -> None:
    """Let every task do what it can without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_phase_is_written_at_once_and_the_rest_every_few_seconds(
    records: ResourceRecords, resource: Resource, clock: ManualClock, tmp_path: Path
) -> None:
    async with records:
        records.report_phase(Phase.CREATING, "Starting")
        await rest()
        await records.save_status("fix", RUNNING)
        await rest()
        assert [patch["phase"] for patch in resource.patches] == ["Creating", "Running"]
        for turns in range(1, 50):
            await records.save_status("fix", replace(RUNNING, turns=turns))
            await rest()
        assert len(resource.patches) == 2
        await clock.advance(5)
        await rest()
        assert len(resource.patches) == 3 and resource.status["numTurns"] == 49
        assert len(clock.sleeping) == 1  # the pause; nothing else is under way
    kept = FolderRecords(tmp_path).load_status()
    assert kept is not None and kept.turns == 49


async def test_a_slow_server_delays_no_event_and_gets_only_what_is_newest(
    records: ResourceRecords, resource: Resource
) -> None:
    resource.gate.clear()
    async with records:
        for turns in range(100):
            async with asyncio.timeout(PATIENCE):
                await records.save_status("fix", replace(RUNNING, turns=turns))
                await records.heartbeat("fix", "here", ManualClock().now())
        resource.gate.set()
        await rest()
    assert [patch["numTurns"] for patch in resource.patches] == [99]


async def test_the_end_of_the_session_is_the_runners_to_tell(
    records: ResourceRecords, resource: Resource
) -> None:
    async with records:
        ended = replace(RUNNING, phase=Phase.COMPLETED, turns=7, unfinished=())
        await records.save_status("fix", RUNNING)
        await records.save_status("fix", ended)
        assert await records.settled(60)
        assert resource.status["phase"] == "Running"
        records.report({"repos": []}, [Condition("WorkspaceSaved", "True", "Saved")])
        records.report_phase(Phase.COMPLETED, "Completed", "done")
        assert await records.settled(60)
    assert (resource.status["phase"], resource.status["numTurns"]) == ("Completed", 7)
    finished = {c["type"]: c["status"] for c in resource.status["conditions"]}
    assert finished == {"Ready": "False", "Finished": "True", "WorkspaceSaved": "True"}


async def test_the_last_word_is_tried_until_it_is_written(
    records: ResourceRecords, resource: Resource, clock: ManualClock
) -> None:
    resource.failures = [
        ClusterUnavailable("away"),
        ClusterUnavailable("busy", retry_after=20),
    ]
    async with records:
        records.report_phase(Phase.FAILED, "KeyRefused")
        told = asyncio.create_task(records.settled(60))
        await rest()
        assert records.problem is not None and records.problem.message == "away"
        await clock.advance(5)
        await clock.advance(19)
        assert not told.done()
        await clock.advance(1)
        assert await told is True
    assert resource.status["phase"] == "Failed" and records.problem is None


async def test_the_last_word_is_given_up_in_time(
    records: ResourceRecords, resource: Resource, clock: ManualClock
) -> None:
    resource.gate.clear()
    async with records:
        records.report_phase(Phase.FAILED, "KeyRefused")
        told = asyncio.create_task(records.settled(60))
        await rest()
        await clock.advance(60)
        assert await told is False


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"status": {"attempt": 2}}, "attempt 2 has taken over"),
        ({"metadata": {"uid": "other"}}, "replaced"),
    ],
)
async def test_a_writer_that_is_outdated_says_so_once_and_writes_no_more(
    records: ResourceRecords,
    resource: Resource,
    lost: list[str],
    change: dict[str, Any],
    why: str,
) -> None:
    resource.body |= change
    async with records:
        records.report_phase(Phase.RUNNING, "Working")
        assert await records.settled(60) is False
        records.report_phase(Phase.FAILED, "Late")
        assert await records.settled(60) is False
    assert len(lost) == 1 and why in lost[0] and not resource.patches
    assert records.superseded is not None


async def test_a_resource_that_is_gone_ends_the_writer(
    records: ResourceRecords, resource: Resource, lost: list[str]
) -> None:
    resource.failures = [ResourceGone("there is no session ns/fix")]
    async with records:
        records.report_phase(Phase.CREATING, "Starting")
        assert await records.settled(60) is False
    assert lost == ["there is no session ns/fix"]


async def test_a_session_that_somebody_else_has_ended_is_told_so(
    records: ResourceRecords, resource: Resource, lost: list[str], clock: ManualClock
) -> None:
    async with records:
        await records.save_status("fix", RUNNING)
        await rest()
        status = {**resource.status, "phase": "Failed", "reason": "DeadlineExceeded"}
        resource.body = {**resource.body, "status": status}
        records.report({"numTurns": 1}, urgent=True)
        await rest()
        assert lost == ["the resource is Failed already"]
        records.report_phase(Phase.STOPPED, "Stopped", changes={"numTurns": 2})
        assert await records.settled(60)
    assert records.overruled is Phase.FAILED
    assert resource.status["reason"] == "DeadlineExceeded"
    assert resource.status["numTurns"] == 2


async def test_a_quiet_session_still_learns_that_another_has_taken_over(
    records: ResourceRecords, resource: Resource, lost: list[str], clock: ManualClock
) -> None:
    async with records:
        await records.save_status("fix", RUNNING)
        await rest()
        resource.body = {**resource.body, "status": {"attempt": 2}}
        for _ in range(13):
            await clock.advance(5)
            await records.heartbeat("fix", "here", clock.now())
            await rest()
    assert lost == ["attempt 2 has taken over this session"]
