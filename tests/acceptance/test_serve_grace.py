"""A pod that is told to end, by however short a grace: the last word comes before the SIGKILL would."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import fields
from datetime import datetime
from pathlib import Path

import pytest

from midwatch.errors import MidwatchError
from midwatch.kube.environment import sorted_variables
from midwatch.kube.runner import Dependencies, pod_runner
from midwatch.kube.runner_task import read_task
from midwatch.kube.status_writer import NoCluster
from midwatch.lifecycle import StopEvent
from midwatch.session.events import Event
from midwatch.session.runner import ShutdownBudget
from midwatch.testing.fakes import options
from midwatch.testing.messages_api import Hold, Rule, ScriptedMessagesAPI
from midwatch.workspace.environment import GitEnvironment

from ..waiting import PATIENCE
from .serve_pod import Pod
from .session_cli import bash, make_repositories


class Hangs:
    """A content proxy that took everything so far, and answers no more."""

    last_error: MidwatchError | None = None
    last_success: datetime | None = None
    notes: tuple[str, ...] = ()

    async def pull(self) -> None: ...

    async def pull_from(self, folder: str, /) -> None: ...

    async def push(self, *, last: bool = False) -> None:
        await asyncio.Event().wait()

    async def run(self, stop: StopEvent, /) -> None:
        await asyncio.Event().wait()

    def nudge(self) -> None: ...


class Silent:
    def event(self, event: Event) -> None: ...

    def note(self, text: str) -> None: ...


@pytest.mark.parametrize("seconds", [2, 30, 60, 600])
def test_the_last_steps_fit_into_the_grace(seconds: float) -> None:
    shares = ShutdownBudget.within(seconds)
    one_by_one = [getattr(shares, f.name) for f in fields(shares) if f.name != "push"]
    assert sum(one_by_one) < min(seconds, 60)
    # A push to the repositories comes where the session is over already.
    assert shares.push <= shares.session + shares.wind_up
    assert all(share > 0 for share in one_by_one)


async def test_the_last_word_comes_within_a_short_grace(tmp_path: Path) -> None:
    hold, cluster = Hold(), NoCluster()
    steps = [bash("trap '' TERM INT; echo on > main.py"), hold]
    async with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, make_repositories(tmp_path))
        environ = pod.environ(TERMINATION_GRACE="20", STATUS_INTERVAL="60")
        task = read_task(sorted_variables(environ))
        dependencies = Dependencies(
            cluster, Hangs(), options(), GitEnvironment(), Silent()
        )
        running = asyncio.create_task(pod_runner(task, dependencies).run())
        await hold.arrived()
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running, PATIENCE)
        took = time.monotonic() - began
        hold.release()
    status = cluster.body["status"]
    assert (status["phase"], status["reason"]) == ("Stopped", "Stopped")
    found = {one["type"]: one["reason"] for one in status["conditions"]}
    assert found["WorkspaceSaved"] == "ContentUnavailable"
    assert took < 20
