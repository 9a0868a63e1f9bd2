"""A workspace that outlives its pods: the runner, the real content proxy, and what becomes of them apart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midwatch.cluster.errors import ClusterUnavailable
from midwatch.content.sync.client import ContentClient, TimeLimits
from midwatch.content.sync.session import WorkspaceSync
from midwatch.content.tree import Entry
from midwatch.kube.environment import sorted_variables
from midwatch.kube.runner import (
    REPORT_WITHIN,
    SAVE_WITHIN,
    Dependencies,
    pod_runner,
)
from midwatch.kube.runner_task import read_task
from midwatch.kube.runner_workspace import LOCAL_OWNED, PodPlaces, stays_here
from midwatch.kube.status_writer import NoCluster, StatusCluster
from midwatch.lifecycle import SystemClock
from midwatch.model import Json
from midwatch.session.events import Event, Phase, Prompt, ToolResult, TurnResult
from midwatch.session.runner import SessionRunner
from midwatch.testing.fakes import options, run_git
from midwatch.testing.messages_api import Answer, Hold, Rule, ScriptedMessagesAPI
from midwatch.workspace.environment import GitEnvironment

from ..waiting import PATIENCE
from .cli import comes_true
from .content_proxy import FOLDER, OTHER, file, process, token
from .serve_pod import Pod
from .session_cli import bash, make_repositories, until


@pytest.fixture
def repos(tmp_path: Path) -> tuple[str, str]:
    return make_repositories(tmp_path)


def content(url: str, folder: str = FOLDER, *read: str) -> dict[str, str]:
    return {
        "CONTENT_URL": url,
        "CONTENT_TOKEN": token(folder, read),
        "CONTENT_FOLDER": folder,
        "SYNC_INTERVAL": "0.2",
    }


def lose(pod: Pod) -> None:
    """The pod's volumes are gone."""
    for path in (pod.workspace, pod.state, pod.root / "cache"):
        shutil.rmtree(path, ignore_errors=True)


def has_transcript(url: str, pod: Pod) -> bool:
    """Whether the proxy has what the program wrote down about the tool it used."""

    async def tree() -> dict[str, Entry]:
        async with ContentClient(url, token(), FOLDER) as client:
            remote = await client.manifest()
        return remote.tree

    found = asyncio.run(tree())
    for path in pod.state.glob("claude/projects/*/*.jsonl"):
        data = path.read_bytes()
        there = found.get(f"session/{path.relative_to(pod.state)}")
        if b"tool_result" in data and there == replace(file(data), mode=0o600):
            return "workspace/app/one" in found
    return False


def told(request: Json) -> str:
    return json.dumps(request["messages"])


def test_a_pod_goes_on_where_a_lost_one_was(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    gate = Hold(Answer("Too late."))
    first = [bash("echo one > one; rm main.py; chmod +x one"), gate]
    with process(tmp_path) as (url, _):
        with ScriptedMessagesAPI(Rule(first, tools=True)) as api:
            pod = Pod(tmp_path / "pod", api, repos, content(url))
            with pod.serving() as runner:
                runner.until(ToolResult)
                gate.arrived_sync()
                until(lambda: has_transcript(url, pod), runner.log.read_text)
                runner.end(signal.SIGKILL)
                lose(pod)
            gate.release()
        with ScriptedMessagesAPI(Rule("Two.", tools=True)) as api:
            pod.api = api
            ended = pod.serve(SESSION_ATTEMPT="2")
            assert ended.returncode == 0, ended.stderr
            assert "echo one > one" in told([c for c in api.calls if c.tools][0].body)
    app = pod.workspace / "app"
    assert (app / "one").stat().st_mode & 0o100 and not (app / "main.py").exists()
    prompts = [event for event in pod.events() if isinstance(event, Prompt)]
    assert len(prompts) == 1 and pod.status().result == "Two."


def test_a_session_goes_on_with_another_one(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    """Its conversation and its workspace are there; its outbox and its costs are its own."""
    with process(tmp_path) as (url, _):
        steps = [bash("echo one > one"), Answer("The word is teapot.")]
        with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
            first = Pod(tmp_path / "pod", api, repos, content(url, OTHER))
            ended = first.serve(SESSION_NAME="other", PROMPT="Remember a word.")
            assert ended.returncode == 0, ended.stderr
        lose(first)
        with ScriptedMessagesAPI(Rule("Teapot.", tools=True)) as api:
            more = content(url, FOLDER, OTHER)
            more |= {"RESUME_FROM": "other", "RESUME_FROM_FOLDER": OTHER}
            second = Pod(tmp_path / "pod", api, repos, more)
            ended = second.serve(PROMPT="Which word?")
            assert ended.returncode == 0, ended.stderr
            [call] = [one for one in api.calls if one.tools]
            assert "The word is teapot." in told(call.body)
            assert "Which word?" in told(call.body)
        assert (second.workspace / "app" / "one").exists()
        prompts = [one for one in second.events() if isinstance(one, Prompt)]
        assert [one.text for one in prompts] == ["Which word?"]
        assert second.status().turns == 1
        # Without anything to go on with, that is said.
        lose(second)
        nothing = {"RESUME_FROM": "never", "RESUME_FROM_FOLDER": "team/never.00000000"}
        more = content(url, "team/third.33333333", nothing["RESUME_FROM_FOLDER"])
        second.more = more | nothing
        ended = second.serve()
        assert ended.returncode == 1 and "NotFound" in ended.stderr
        assert "spec.resumeFrom" in ended.stderr


# ------------------------------------------------------------------ in this process, with short sleeps


class FastClock(SystemClock):
    """Sleeps fifty times as fast; `monotonic` stands still until `start`, then follows the sleeps.

    A sleep is cut into steps of the event loop. So on a busy machine all sleeps get longer alike, no
    deadline passes while a process starts, and one that does not matter to a test never passes.
    """

    def __init__(self) -> None:
        self._now, self._started = 0.0, False

    def start(self) -> None:
        self._started = True

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        left = seconds
        while left > 0:
            step = min(left, 1.0)
            before = self._now
            await asyncio.sleep(step / 50)
            left -= step
            if self._started:
                self._now = max(self._now, before + step)


class Voice:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Unreachable(NoCluster):
    """An API server that never answers."""

    async def get_session(self, namespace: str, name: str) -> Json:
        raise ClusterUnavailable("connection refused")

    async def write_status(self, *_: Any, **__: Any) -> Json:
        raise ClusterUnavailable("connection refused")


@contextlib.asynccontextmanager
async def runner(
    pod: Pod,
    cluster: StatusCluster,
    voice: Voice,
    timeout: float = 6000,
    clock: FastClock | None = None,
) -> AsyncIterator[SessionRunner[int]]:
    environ = pod.environ(TIMEOUT=f"{timeout:g}", IDLE_TIMEOUT="6000")
    task, clock = read_task(sorted_variables(environ)), clock or FastClock()
    given = task.environment
    places = PodPlaces(given.workspace_path, given.state_path, given.cache_path)
    async with contextlib.AsyncExitStack() as stack:
        sync = None
        if task.content is not None:
            access = task.content
            client = ContentClient(
                access.url,
                access.token,
                access.folder,
                attempt=task.identity.attempt,
                limits=TimeLimits(connect=1, silence=2, request=5),
                clock=clock,
            )
            await stack.enter_async_context(client)
            sync = WorkspaceSync(
                client,
                places.roots,
                places.sync_state,
                clock=clock,
                interval=given.sync_interval,
                local_owned=LOCAL_OWNED,
                ignored=stays_here,
            )
        environment = GitEnvironment()
        dependencies = Dependencies(cluster, sync, options(), environment, voice, clock)
        yield pod_runner(task, dependencies)


def saved(cluster: NoCluster) -> tuple[str, str]:
    conditions = cluster.body["status"]["conditions"]
    found = next(one for one in conditions if one["type"] == "WorkspaceSaved")
    return found["status"], found["reason"]


def story(cluster: NoCluster) -> tuple[str, str]:
    status = cluster.body["status"]
    return status["phase"], status["reason"]


async def test_a_proxy_that_is_not_there_at_first_fails_the_session(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    """Nothing is cloned and nothing is saved: an empty workspace must not go over a full one."""
    pod = Pod(tmp_path / "pod", "http://127.0.0.1:1", repos)
    pod.more = content("http://127.0.0.1:1")
    cluster, clock = NoCluster(), FastClock()

    async with runner(pod, cluster, Voice(), timeout=100, clock=clock) as running:
        working = asyncio.create_task(running.run())
        await _until(lambda: story(cluster) == ("Creating", "WaitingForContent"))
        assert "content proxy" in cluster.body["status"]["message"]
        clock.start()
        assert await working == 1
    assert story(cluster) == ("Failed", "ContentUnavailable")
    # As long as the session has time, and no longer.
    assert "tried for 90 s" in cluster.body["status"]["message"]
    assert saved(cluster) == ("False", "ContentUnavailable")
    assert not list(pod.workspace.iterdir())


async def test_a_proxy_that_comes_late_is_waited_for(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    cluster, voice = NoCluster(), Voice()
    async with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        with process(tmp_path) as (url, _):
            pass
        pod.more = content(url)
        async with runner(pod, cluster, voice) as running:
            working = asyncio.create_task(running.run())
            await _until(lambda: story(cluster) == ("Creating", "WaitingForContent"))
            with process(tmp_path, PORT=url.rpartition(":")[2]):
                assert await working == 0
    assert story(cluster)[0] == "Completed"
    assert saved(cluster) == ("True", "Saved")


async def test_a_signal_ends_the_wait_for_the_proxy(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    pod = Pod(tmp_path / "pod", "http://127.0.0.1:1", repos)
    pod.more = content("http://127.0.0.1:1")
    cluster = NoCluster()
    async with runner(pod, cluster, Voice()) as running:
        working = asyncio.create_task(running.run())
        await _until(lambda: story(cluster) == ("Creating", "WaitingForContent"))
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.wait_for(working, PATIENCE) == 0
    assert story(cluster) == ("Stopped", "Stopped")


async def test_a_proxy_that_goes_in_the_middle_does_not_stop_the_session(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    gate = Hold(Answer("Done."))
    steps = [bash("echo one > one"), gate]
    cluster, voice, clock = NoCluster(), Voice(), FastClock()
    async with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        with process(tmp_path) as (url, pid):
            pod.more = content(url)
            async with runner(pod, cluster, voice, 300, clock) as running:
                working = asyncio.create_task(running.run())
                await gate.arrived()
                await _until(lambda: saved(cluster) == ("True", "Saved"))
                os.kill(pid, signal.SIGKILL)
                await _until(lambda: saved(cluster) == ("False", "ContentUnavailable"))
                gate.release()
                await _until(lambda: _has_answered(voice))
                clock.start()
                assert await working == 0
    status = cluster.body["status"]
    assert (status["phase"], status["result"]) == ("Completed", "Done.")
    assert saved(cluster)[0] == "False"


class AwayAtTheEnd(NoCluster):
    """An API server that goes when the end is to be told, until `back`."""

    def __init__(self) -> None:
        super().__init__()
        self.tries, self.back = 0, False

    async def write_status(
        self,
        namespace: str,
        name: str,
        propose: Callable[[Json], Json | None],
        *,
        seen: Json | None = None,
        give_up_after: float = 60.0,
    ) -> Json:
        if not self.back and (propose(self.body) or {}).get("phase") == "Completed":
            self.tries += 1
            raise ClusterUnavailable("connection refused")
        return await super().write_status(namespace, name, propose)


async def test_what_is_saved_and_told_last_outlives_an_outage_of_minutes(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    gate = Hold(Answer("Done."))
    steps = [bash("echo one > one"), gate]
    cluster, clock = AwayAtTheEnd(), FastClock()
    async with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        with process(tmp_path) as (url, pid):
            pod.more = content(url)
            async with runner(pod, cluster, Voice(), clock=clock) as running:
                working = asyncio.create_task(running.run())
                await gate.arrived()
                await _until(lambda: saved(cluster) == ("True", "Saved"))
                os.kill(pid, signal.SIGKILL)
                clock.start()
                (pod.workspace / "app" / "late").touch()
                gate.release()
                await _until(lambda: saved(cluster) == ("False", "ContentUnavailable"))
                later = clock.monotonic() + 2 * SAVE_WITHIN
                await _until(lambda: clock.monotonic() > later)
                with process(tmp_path, PORT=url.rpartition(":")[2]):
                    await _until(lambda: cluster.tries > REPORT_WITHIN + 5)
                    assert story(cluster)[0] == "Running"
                    cluster.back = True
                    assert await working == 0
                    async with ContentClient(url, token(), FOLDER) as client:
                        assert "workspace/app/late" in (await client.manifest()).tree
    assert story(cluster) == ("Completed", "Completed")
    assert saved(cluster) == ("True", "Saved")


class TakenOver(NoCluster):
    """Whoever reads the resource finds that another attempt has taken over."""

    def __init__(self, noticed: Callable[[], object]) -> None:
        super().__init__()
        self.noticed = noticed

    async def get_session(self, namespace: str, name: str) -> Json:
        self.noticed()
        status = self.body.get("status", {})
        self.body = {**self.body, "status": {**status, "attempt": 2}}
        return self.body


async def test_an_attempt_that_was_superseded_saves_and_pushes_nothing(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    """It hears of it at its end only: the resource is read again before anything final is done."""
    steps = [bash("echo one > one; git add one"), Answer("Done.")]
    voice = Voice()
    async with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        with process(tmp_path) as (url, _):
            pod.more = content(url) | {"AUTO_PUSH_ON_COMPLETE": "true"}
            late = pod.workspace / "app" / "late"
            cluster = TakenOver(late.touch)
            async with runner(pod, cluster, voice) as running:
                assert await running.run() == 0
            assert late.exists()
            async with ContentClient(url, token(), FOLDER) as client:
                tree = (await client.manifest()).tree
            assert "workspace/app/main.py" in tree
            assert "workspace/app/late" not in tree
    assert "attempt 2 has taken over" in voice.notes[-1]
    assert cluster.body["status"]["phase"] != "Completed"
    assert "midwatch/" not in run_git(Path(repos[0]), "branch", "--list")


async def test_an_end_that_cannot_be_told_has_its_own_exit_code(
    tmp_path: Path, repos: tuple[str, str]
) -> None:
    voice = Voice()
    async with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:
        pod = Pod(tmp_path / "pod", api, repos)
        async with runner(pod, Unreachable(), voice, timeout=200) as running:
            assert await running.run() == 3
    assert pod.status().phase is Phase.COMPLETED
    assert "could not be written: connection refused" in voice.notes[-1]


def _has_answered(voice: Voice) -> bool:
    return any(isinstance(event, TurnResult) for event in voice.events)


async def _until(true: Callable[[], bool]) -> None:
    await comes_true(lambda: _quietly(true), PATIENCE)


def _quietly(true: Callable[[], bool]) -> bool:
    try:
        return true()
    except (KeyError, StopIteration):
        return False
