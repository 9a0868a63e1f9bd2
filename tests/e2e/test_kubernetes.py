"""From a resource to its end: real operator, runner, `claude` program, git and content proxy; the nodes are processes."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
import urllib.request
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from midwatch.content.tokens import issue
from midwatch.kube.resource import read_resource
from midwatch.testing.fakes import run_git
from midwatch.testing.messages_api import (
    Answer,
    Hold,
    Rule,
    ScriptedMessagesAPI,
    unauthorized,
)
from tests.cluster import (
    ContainerRuns,
    ImagePull,
    InvalidImageName,
    Unschedulable,
    of_session,
)
from tests.cluster.local import TEAM, LocalCluster

from ..acceptance.session_cli import bash
from ..waiting import PATIENCE, wait_until
from .kube_support import (
    cluster,
    conditions,
    events,
    over,
    repositories,
    spec,
    told,
)

_until = partial(wait_until, timeout=PATIENCE)


def test_a_resource_lives_to_its_end(tmp_path: Path) -> None:
    shop, lib = repositories(tmp_path)
    steps = [bash("pwd; echo x >> main.py; echo y >> ../lib/lib.py"), Answer("Done.")]
    with (
        ScriptedMessagesAPI(Rule(steps, tools=True)) as api,
        cluster(tmp_path, api.base_url) as running,
    ):
        running.server.requests.clear()
        running.create("fix", spec(shop, lib, mainRepoIndex=0, autoPushOnComplete=True))
        body = running.until("fix", over)
        assert body is not None
        status = body["status"]
        assert (status["phase"], status["result"]) == ("Completed", "Done.")
        assert conditions(status) == {
            "Accepted": "True",
            "Ready": "False",
            "Finished": "True",
            "WorkspaceSaved": "True",
        }
        assert [one["state"] for one in status["repos"]] == ["pushed", "pushed"]
        assert "x" in run_git(shop, "show", "midwatch/fix:main.py")
        assert (status["numTurns"], status["attempt"]) == (2, 1)
        assert status["totalCostUsd"] > 0 and status["observedGeneration"] == 1
        [pod] = running.kubelet.pods(TEAM, "fix")
        output = running.kubelet.output(pod)
        # Bash is allowed although nobody has said so.
        assert "/workspace/shop" in output
        assert output.splitlines()[-1] == "midwatch: Completed: done after 2 turns"
        # What the pod left is with the proxy, after its disk is gone.
        saved = running.saved_file(body, "workspace/lib/lib.py")
        assert saved == b"x = 1\ny\n"
        assert {"JobCreated", "Completed"} <= set(events(running))
        running.delete("fix")
        running.until("fix", lambda body: body is None)
        for kind in ("jobs", "pods", "secrets", "serviceaccounts", "roles"):
            _until(lambda kind=kind: not _left(running, kind))  # collected
        asked = running.server.requests.where(
            lambda one: one.verb not in ("", "watch", "list")
        )
        assert len(asked) < 30, [(one.verb, one.resource) for one in asked]


@pytest.mark.parametrize(
    "outcome", ["evicted", "preempted", "node lost", "killed", "pod deleted"]
)
def test_a_lost_pod_is_started_again_and_goes_on(tmp_path: Path, outcome: str) -> None:
    shop, _ = repositories(tmp_path)
    # A runner on a lost node may get its answer as well.
    hold = Hold(Answer("Done."))
    steps = [bash("echo first >> main.py"), hold, bash("cat main.py"), Answer("Done.")]
    with (
        ScriptedMessagesAPI(Rule(steps, tools=True)) as api,
        cluster(tmp_path, api.base_url) as running,
    ):
        running.create("fix", spec(shop, autoPushOnComplete=True))
        hold.arrived_sync(timeout=PATIENCE)

        def saved(body: object) -> bool:
            text = running.saved_file(
                running.get("fix") or {}, "workspace/shop/main.py"
            )
            return text is not None and b"first" in text

        running.until("fix", saved)
        first = running.kubelet.running(TEAM, "fix")
        if outcome == "evicted":
            running.kubelet.evict(first)
        elif outcome == "preempted":
            running.kubelet.preempt(first)
        elif outcome == "node lost":
            running.kubelet.lose_node(first, zombie=True)
            running.kubelet.collect_lost(first)
        elif outcome == "killed":
            running.kubelet.kill(first)
        else:
            running.server.objects.delete("pods", TEAM, first.key[1])
        running.until("fix", told(attempt=2))
        hold.release()
        body = running.until("fix", over)
        assert body is not None
        status = body["status"]
        assert (status["phase"], status["restarts"]) == ("Completed", 1), status
        assert status["result"] == "Done." and status["numTurns"] >= 2
        assert status["repos"][0]["state"] == "pushed"
        # Its work was not done twice, and not lost.
        text = run_git(shop, "show", "midwatch/fix:main.py")
        assert text.count("first") == 1
        assert "Restarted" in events(running)


def test_everything_is_killed_at_random_and_it_ends_well(tmp_path: Path) -> None:
    """Runner, operator and proxy are killed at moments that requests mark; the session has no end before that."""
    shop, lib = repositories(tmp_path)
    chance = random.Random(20261122)
    last = iter([bash("echo last >> main.py"), Answer("Done.")])
    ended = threading.Event()

    def reply(_: object) -> Answer:
        if ended.is_set():
            return next(last, Answer("Done."))
        return bash("echo more >> main.py; sleep 0.2")

    with (
        ScriptedMessagesAPI(Rule(reply, tools=True)) as api,
        cluster(tmp_path, api.base_url) as running,
    ):
        running.create(
            "fix", spec(shop, lib, maxRestarts=5, autoPushOnComplete=True, timeout=600)
        )

        def asked() -> int:
            """Return how many requests the cluster and Claude have had."""
            return len(running.server.requests) + len(api.calls)

        kills = [*["operator"] * 4, *["content"] * 3, *["runner"] * 2]
        chance.shuffle(kills)
        for what in kills:
            requests = asked() + chance.randint(1, 12)
            _until(lambda requests=requests: asked() >= requests)
            _kill(running, what)
        ended.set()
        body = running.until("fix", over, 3 * PATIENCE)
        assert body is not None
        assert body["status"]["phase"] == "Completed", body["status"]
        lines = run_git(shop, "show", "midwatch/fix:main.py").splitlines()
        assert lines[0] == "print(1)" and lines[-1] == "last"
        assert body["status"]["restarts"] >= 2, body["status"]


def _kill(running: LocalCluster, what: str) -> None:
    if what == "runner":
        running.kubelet.kill(running.kubelet.running(TEAM, "fix", PATIENCE))
    elif what == "operator":
        running.operator.restart(signal.SIGKILL)
    else:
        running.content.restart(signal.SIGKILL)


def test_the_api_server_is_gone_for_a_while(tmp_path: Path) -> None:
    shop, _ = repositories(tmp_path)
    hold = Hold(bash("echo late >> main.py"))
    steps = [bash("echo early >> main.py"), hold, Answer("Done.")]
    with (
        ScriptedMessagesAPI(Rule(steps, tools=True)) as api,
        cluster(tmp_path, api.base_url) as running,
    ):
        running.create("fix", spec(shop))
        hold.arrived_sync(timeout=PATIENCE)
        with running.server.away():
            hold.release()  # the session goes on without a server
            pod = running.kubelet.running(TEAM, "fix")
            _until(lambda: "Completed" in running.kubelet.output(pod))
            time.sleep(1)
        body = running.until("fix", over)
        assert body is not None and body["status"]["phase"] == "Completed"
        assert body["status"]["result"] == "Done."
        # The operator is well again: it runs another.
        running.kubelet.outcomes.add(ContainerRuns(), when=of_session("next"))
        running.create("next", spec(shop))
        running.until("next", told(phase="Creating"))


def test_a_message_through_the_proxy_and_a_stop(tmp_path: Path) -> None:
    shop, _ = repositories(tmp_path)
    steps = [Answer("What now?"), Answer("Understood.")]
    with (
        ScriptedMessagesAPI(Rule(steps, tools=True)) as api,
        cluster(tmp_path, api.base_url) as running,
    ):
        running.create("talk", spec(shop, interactive=True))

        def result(text: str) -> object:
            return lambda body: (body or {}).get("status", {}).get("result") == text

        body = running.until("talk", result("What now?"))  # type: ignore[arg-type]
        assert body is not None
        _post(running, read_resource(body).folder, "Go on.")
        running.until("talk", result("Understood."))  # type: ignore[arg-type]
        running.change("talk", stop=True)
        body = running.until("talk", over)
        assert body is not None
        status = body["status"]
        assert (status["phase"], status["reason"]) == ("Stopped", "Stopped")
        outbox = running.saved_file(body, "session/outbox.jsonl")
        assert outbox is not None and b"Understood." in outbox


def test_a_deletion_in_the_middle_saves_the_workspace(tmp_path: Path) -> None:
    shop, _ = repositories(tmp_path)
    hold = Hold()
    steps = [bash("echo kept >> main.py"), hold]
    with (
        ScriptedMessagesAPI(Rule(steps, tools=True)) as api,
        cluster(tmp_path, api.base_url, sync_interval=60) as running,
    ):
        running.create("fix", spec(shop))
        hold.arrived_sync(timeout=PATIENCE)
        body = running.get("fix")
        assert body is not None
        running.delete("fix")
        running.until("fix", lambda found: found is None)
        saved = running.saved_file(body, "workspace/shop/main.py")
        assert saved is not None and b"kept" in saved
        _until(lambda: not _left(running, "pods"))


def test_what_a_person_got_wrong_is_in_the_resource(tmp_path: Path) -> None:
    shop, _ = repositories(tmp_path)
    wrong = {
        "gone": spec(tmp_path / "remotes" / "nowhere"),
        "branch": spec(shop)
        | {"repos": [{"input": {"url": f"file://{shop}", "branch": "no-such"}}]},
        "key": spec(shop),
        "secret": spec(shop, environment={"secrets": ["not-there"]}),
    }
    with (
        ScriptedMessagesAPI(Rule(unauthorized())) as api,
        cluster(tmp_path, api.base_url) as running,
    ):
        for name, one in wrong.items():
            running.create(name, one)
        stories = {}
        for name in wrong:
            body = running.until(name, over)
            assert body is not None
            stories[name] = body["status"]
    assert {one["phase"] for one in stories.values()} == {"Failed"}
    assert "nowhere" in stories["gone"]["message"]
    assert "no-such" in stories["branch"]["message"]
    assert stories["key"]["reason"] == "KeyRefused"
    assert "not-there" in stories["secret"]["message"]


def test_what_no_other_pod_would_mend_is_the_end(tmp_path: Path) -> None:
    shop, _ = repositories(tmp_path)
    hold = Hold()
    with (
        ScriptedMessagesAPI(Rule(hold, tools=True)) as api,
        cluster(tmp_path, api.base_url, unschedulable_grace=2) as running,
    ):
        for outcome in (ImagePull(), InvalidImageName(), Unschedulable()):
            name = type(outcome).__name__.lower()
            running.kubelet.outcomes.add(outcome, when=of_session(name))
            running.create(name, spec(shop))
        running.create("memory", spec(shop))
        hold.arrived_sync(timeout=PATIENCE)
        running.kubelet.oom_kill(running.kubelet.running(TEAM, "memory"))
        for name, reason, hint in (
            ("imagepull", "ImagePull", "operator.image"),
            ("invalidimagename", "InvalidImageName", "operator.image"),
            ("unschedulable", "Unschedulable", "spec.resources"),
            ("memory", "OutOfMemory", "spec.resources.limits.memory"),
        ):
            body = running.until(name, over)
            assert body is not None
            status = body["status"]
            assert (status["phase"], status["reason"]) == ("Failed", reason), status
            assert hint in status["message"] and status["restarts"] == 0


def test_two_operators_run_each_session_once(tmp_path: Path) -> None:
    shop, _ = repositories(tmp_path)
    names = [f"s{number}" for number in range(20)]
    with (
        ScriptedMessagesAPI(Rule(Answer("Done."), tools=True)) as api,
        cluster(tmp_path, api.base_url) as running,
    ):
        other = running.another_operator("other")
        other.start()
        try:
            other.wait_for("operator started")
            for name in names:
                running.kubelet.outcomes.add(ContainerRuns(), when=of_session(name))
                running.create(name, spec(shop))
            for name in names:
                running.until(name, told(phase="Creating"))
            running.change(names[0], stop=True)
            running.until(names[0], over)
            jobs = running.server.objects.list("jobs", TEAM)
            assert len(jobs) in (len(names) - 1, len(names))
            assert all(o["metadata"]["name"].endswith("-run-1") for o in jobs)
        finally:
            assert other.end() == 0


def _left(running: LocalCluster, kind: str) -> list[str]:
    """What there still is of the session `fix`."""
    names = [o["metadata"]["name"] for o in running.server.objects.list(kind, TEAM)]
    return [name for name in names if name.startswith("fix")]


def _post(running: LocalCluster, folder: str, text: str) -> None:
    key = (running.folder / "content.key").read_text().encode()
    token = issue(key, folder, now=datetime.now(UTC))
    request = urllib.request.Request(
        f"{running.content_url}/v1/folders/{folder}/inbox",
        json.dumps({"type": "user_message", "content": text}).encode(),
        {"authorization": f"Bearer {token}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert answer.status == 200
