"""What the keeper of a pod tells of its sync: files that were not saved, conflicts, and the end of the attempt."""

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


class Told:
    """A keeper and all that it told."""

    def __init__(self, pod: Side) -> None:
        self.conditions: list[Condition] = []
        self.lines: list[str] = []
        self.lost: list[str] = []
        self.keeper = SyncSupervisor(
            pod.sync,
            FastClock(),
            self.conditions.append,
            note=self.lines.append,
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


async def test_what_cannot_be_saved_is_no_success(pod: Side) -> None:
    told = Told(pod)
    await told.keeper.fetch()
    pod.write("workspace/fine", "x")
    deep = pod.work
    for _ in range(260):
        deep = deep / "d"
    deep.mkdir(parents=True)
    async with told.keeper.beside():
        await _until(lambda: told.conditions and told.last == ("False", "SavedPartly"))
    await told.keeper.save(20)
    assert told.last == ("False", "SavedPartly")
    assert "nested too deep" in told.conditions[-1].message
    assert len(told.lines) == 1


async def test_a_conflict_is_reported(pod: Side, running: Proxy) -> None:
    caller, told = running.caller(), Told(pod)
    await caller.write({"workspace/a": b"before"})
    await told.keeper.fetch()
    pod.write("workspace/a", "ours")
    await caller.write({"workspace/a": b"theirs"})
    await told.keeper.save(20)
    assert told.last == ("True", "SavedWithConflicts")
    [line] = told.lines
    answer = await caller.http.get(line.partition("GET ")[2], headers=caller.headers)
    assert answer.text == "theirs"


async def test_a_later_attempt_ends_this_one(pod: Side, running: Proxy) -> None:
    caller, told = running.caller(), Told(pod)
    caller.headers |= {ATTEMPT: "2"}
    await told.keeper.fetch()
    async with told.keeper.beside():
        await _until(lambda: told.conditions)
        await caller.post("claim", {})
        pod.write("workspace/late", "x")
        told.keeper.nudge()
        await _until(lambda: told.lost)
    before = len(told.conditions)
    await told.keeper.save(20)
    assert told.lost == ["attempt 2 owns this folder now"]
    assert len(told.conditions) == before and told.last == ("True", "Saved")
    assert "workspace/late" not in (await caller.manifest())[1]
    again = Told(pod)
    with pytest.raises(Superseded):
        await again.keeper.fetch()
    assert again.keeper.lost is not None
