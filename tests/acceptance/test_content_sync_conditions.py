"""The conditions that a pod's runner reports for its sync: unsaved files, conflicts, and a superseded attempt."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from midwatch.content.errors import Superseded
from midwatch.content.tree import ATTEMPT
from midwatch.kube.runner_workspace import SyncSupervisor
from midwatch.kube.status import Condition

from ..waiting import PATIENCE
from .cli import comes_true
from .content_proxy import Proxy, proxy
from .content_sync import FastClock, Side, side

_until = partial(comes_true, timeout=PATIENCE)


class Recorder:
    """A supervisor and everything that it reported."""

    def __init__(self, pod: Side) -> None:
        self.conditions: list[Condition] = []
        self.notes: list[str] = []
        self.lost: list[str] = []
        self.supervisor = SyncSupervisor(
            pod.sync,
            FastClock(),
            self.conditions.append,
            note=self.notes.append,
            on_lost=self.lost.append,
        )

    @property
    def last(self) -> tuple[str, str]:
        return self.conditions[-1].status, self.conditions[-1].reason


@pytest_asyncio.fixture
async def running(tmp_path: Path) -> AsyncIterator[Proxy]:
    async with proxy(tmp_path) as opened:
        yield opened


@pytest_asyncio.fixture
async def pod(running: Proxy, tmp_path: Path) -> AsyncIterator[Side]:
    async with side(running, tmp_path / "pod", attempt=1) as one:
        yield one


async def test_unsaved_files_are_reported_as_saved_partly(pod: Side) -> None:
    reports = Recorder(pod)
    await reports.supervisor.fetch()
    pod.write("workspace/fine", "x")
    deep = pod.work
    for _ in range(260):
        deep = deep / "d"
    deep.mkdir(parents=True)
    async with reports.supervisor.beside():
        await _until(
            lambda: reports.conditions and reports.last == ("False", "SavedPartly")
        )
    await reports.supervisor.save(20)
    assert reports.last == ("False", "SavedPartly")
    assert "nested too deep" in reports.conditions[-1].message
    assert len(reports.notes) == 1


async def test_a_conflict_is_reported(pod: Side, running: Proxy) -> None:
    caller, reports = running.caller(), Recorder(pod)
    await caller.write({"workspace/a": b"before"})
    await reports.supervisor.fetch()
    pod.write("workspace/a", "ours")
    await caller.write({"workspace/a": b"theirs"})
    await reports.supervisor.save(20)
    assert reports.last == ("True", "SavedWithConflicts")
    [line] = reports.notes
    answer = await caller.http.get(line.partition("GET ")[2], headers=caller.headers)
    assert answer.text == "theirs"


async def test_a_later_attempt_ends_this_one(pod: Side, running: Proxy) -> None:
    caller, reports = running.caller(), Recorder(pod)
    caller.headers |= {ATTEMPT: "2"}
    await reports.supervisor.fetch()
    async with reports.supervisor.beside():
        await _until(lambda: reports.conditions)
        await caller.post("claim", {})
        pod.write("workspace/late", "x")
        reports.supervisor.nudge()
        await _until(lambda: reports.lost)
    before = len(reports.conditions)
    await reports.supervisor.save(20)
    assert reports.lost == ["attempt 2 owns this folder now"]
    assert len(reports.conditions) == before and reports.last == ("True", "Saved")
    assert "workspace/late" not in (await caller.manifest())[1]
    again = Recorder(pod)
    with pytest.raises(Superseded):
        await again.supervisor.fetch()
    assert again.supervisor.lost is not None
