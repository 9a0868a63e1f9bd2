"""`midwatch monitor --once && midwatch agent --once`: what waits, and for how long, is told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from midwatch.testing.fakes import answer
from midwatch.testing.messages_api import Answer, Rule, ScriptedMessagesAPI

from .cli import KEY, midwatch, said

BROKEN = json.dumps(
    {
        "violations": [
            {"invariant": "alive", "component": "queue", "message": "no consumer"}
        ]
    }
)


@pytest.fixture(scope="module")
def api() -> Iterator[ScriptedMessagesAPI]:
    good = Answer(structured=answer("", verdict="insufficient_data", confidence="low"))
    with ScriptedMessagesAPI(Rule(good, structured=True)) as started:
        yield started


def write(folder: Path, group_wait: str, subject: str) -> None:
    (folder / "midwatch.yaml").write_text(
        f"monitor: {{group_wait: {group_wait}}}\nsubjects:\n"
        f"- {subject.replace('FOLDER', str(folder))}\n"
    )
    (folder / "report.json").write_text(BROKEN)


COMMAND = "{name: orders, kind: command, command: [cat, FOLDER/report.json]}"


def test_the_agent_says_what_waits_and_how_long(
    tmp_path: Path, api: ScriptedMessagesAPI
) -> None:
    env = {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": api.base_url}
    write(tmp_path, "10m", COMMAND)
    said(tmp_path, "monitor", "--once")
    done = midwatch(tmp_path, "agent", "--once", env=env)
    [line] = done.stderr.splitlines()
    assert done.returncode == 0 and not api.calls
    assert re.match(
        r"midwatch: 1 ticket waits (10m|9m \d+s) until others of the incident can "
        r"join it \(monitor.group_wait\) \(run `midwatch agent --once` again then, "
        r"or `midwatch diagnose 1` now\)$",
        line,
    ), line
    assert ", diagnosed" in said(tmp_path, "diagnose", "1", env=env)
    done = midwatch(tmp_path, "agent", "--once", env=env)
    assert (done.returncode, done.stderr) == (0, ""), "nothing waits"


def test_without_a_wait_one_cycle_of_both_is_enough(
    tmp_path: Path, api: ScriptedMessagesAPI
) -> None:
    env = {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": api.base_url}
    write(tmp_path, "0s", COMMAND)
    said(tmp_path, "monitor", "--once")
    done = midwatch(tmp_path, "agent", "--once", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(said(tmp_path, "tickets", "list", "--json"))[0]["diagnosis"]


def test_the_monitor_says_what_one_cycle_cannot_see(tmp_path: Path) -> None:
    write(
        tmp_path,
        "0s",
        "{name: box, kind: host, invariants: {memory: {limit: 100%, for: 2m}, "
        "disk: {enabled: false}, inodes: {enabled: false}, swap: {enabled: false}, "
        "load: {enabled: false}, process: {enabled: false}}}",
    )
    done = midwatch(tmp_path, "monitor", "--once")
    assert done.returncode == 0
    assert "broken, but a ticket opens only if that lasts for up to 2m" in done.stderr
    assert "box memory" in done.stderr
