"""A node that was given up and comes back: its pod worked on meanwhile, and none of that may reach the next attempt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from midwatch.testing.fakes import run_git
from midwatch.testing.messages_api import Answer, Hold, Rule, ScriptedMessagesAPI
from midwatch.testing.messages_wire import Request
from tests.cluster.containers import namespace_prefix
from tests.cluster.local import TEAM

from ..acceptance.session_cli import bash
from ..waiting import PATIENCE, wait_until
from .kube_support import cluster, conditions, over, repositories, spec, told

_until = partial(wait_until, timeout=PATIENCE)

COMMIT = "git -c user.name=a -c user.email=a@b commit -qam"


def of_the_zombie(request: Request) -> bool:
    return "ghost" in json.dumps(request.body["messages"])


def test_what_a_zombie_does_stays_with_it(tmp_path: Path) -> None:
    if not namespace_prefix():
        pytest.skip("two pods of a session would share their folders here")
    shop, _ = repositories(tmp_path)
    later = f"echo ghost >> main.py; {COMMIT} ghost"
    zombie, second = Hold(bash(later)), Hold(bash(f"echo third >> main.py; {COMMIT} 3"))
    rules = [
        Rule([bash("sleep 1; echo ghost"), Hold()], tools=True, when=of_the_zombie),
        Rule(
            [
                bash(f"echo first >> main.py; {COMMIT} 1"),
                zombie,
                bash(f"echo second >> main.py; {COMMIT} 2"),
                second,
                Answer("Done."),
            ],
            tools=True,
        ),
    ]
    with (
        ScriptedMessagesAPI(*rules) as api,
        cluster(tmp_path, api.base_url) as running,
    ):
        running.create("fix", spec(shop, autoPushOnComplete=True))
        zombie.arrived_sync(timeout=PATIENCE)

        def saved(path: str) -> bytes:
            return running.saved_file(running.get("fix") or {}, path) or b""

        _until(lambda: b"first" in saved("workspace/shop/main.py"))
        first = running.kubelet.running(TEAM, "fix")
        running.kubelet.lose_node(first, zombie=True)
        running.kubelet.collect_lost(first)
        assert first.process is not None
        os.kill(first.process.pid, signal.SIGSTOP)
        running.until("fix", told(attempt=2))
        second.arrived_sync(timeout=PATIENCE)
        _until(lambda: b"second" in saved("workspace/shop/main.py"))
        # What its agent did while nobody heard of it; then its node is back. The API server does not know the pod
        # any more, the content proxy its token still.
        late = running.kubelet.folder(first, "/workspace") / "shop"
        subprocess.run(["sh", "-c", later], cwd=late, check=True)
        assert "ghost" in (late / "main.py").read_text()
        zombie.release()
        os.kill(first.process.pid, signal.SIGCONT)
        _until(lambda: "this attempt is over" in running.kubelet.output(first))
        assert "attempt 2 owns this folder" in running.kubelet.output(first)
        second.release()
        body = running.until("fix", over)
        assert body is not None
        status = body["status"]
        assert (status["phase"], status["attempt"]) == ("Completed", 2), status
        assert conditions(status)["WorkspaceSaved"] == "True"
        whole = "print(1)\nfirst\nsecond\nthird\n"
        assert saved("workspace/shop/main.py").decode() == whole
        assert run_git(shop, "show", "midwatch/fix:main.py") in (whole, whole.strip())
        pod = running.kubelet.pods(TEAM, "fix")[-1]
        clone = running.kubelet.folder(pod, "/workspace") / "shop"
        run_git(clone, "fsck", "--full", "--strict")
        assert "ghost" not in run_git(clone, "log", "--all", "--format=%s")
        lines = saved("session/outbox.jsonl")
        assert b"ghost" not in lines
        seqs = [json.loads(line)["seq"] for line in lines.splitlines()]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        local = running.kubelet.folder(pod, "/session") / "outbox.jsonl"
        assert local.read_bytes() == lines
        [manifest] = (running.folder / "volume").glob("folders/*/*/manifest.jsonl")
        assert b".midwatch-conflicts" not in manifest.read_bytes()
