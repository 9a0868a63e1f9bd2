"""`midwatch eval`: scenarios of each kind run on real parts, and recordings are scored without any."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import answer, open_tickets
from midwatch.testing.messages_api import Answer, ScriptedMessagesAPI, Usage

from .. import processes
from ..waiting import PATIENCE
from .cli import KEY, environ, in_store, midwatch, said, said_json

RECORDINGS = Path(__file__).parents[1] / "evaluation"
QUEUE = "queue-without-consumer"
CAUSE = "message 40313: cannot parse amount"


@pytest.fixture(scope="module")
def api() -> Iterator[ScriptedMessagesAPI]:
    with ScriptedMessagesAPI() as started:
        yield started


@pytest.fixture
def env(api: ScriptedMessagesAPI) -> dict[str, str]:
    return {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": api.base_url}


def scored(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> Any:
    done = processes.run(
        ["eval", *arguments, "--json"],
        cwd=folder,
        env=environ(folder, **(env or {})),
        timeout=3 * PATIENCE,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "name",
    [
        "lock-queue",
        "idle-transaction-on-15",
        "certificate-expired",
        "target-down",
        "mariadb-row-lock",
        "redis-replica-cut-off",
        "worker-not-running",
        "watch-itself-is-broken",
        "healthy-redirect",
    ],
)
def test_a_scenario_of_each_kind_runs(name: str, tmp_path: Path) -> None:
    [score] = scored(tmp_path, name)["scenarios"]
    if score["state"] == "skipped":
        pytest.skip(score["why"])
    assert score["state"] == "scored", score
    if score["kind"] == "healthy":
        assert not score["tickets"] and not score["false_alarms"]
        return
    assert score["tickets"] and score["first_aid"] and score["tokens"] > 1000
    assert score["answered_by"] == "hand" and score["answer"] == "right", score
    assert not score["marked_down"] and not score["page"], score


@pytest.mark.parametrize(
    "name", ["commit-breaks-the-checkout", "commit-message-claims-the-cause"]
)
def test_first_aid_names_the_commit_before_a_real_service_broke(
    name: str, tmp_path: Path
) -> None:
    """It comes first, with the time between; what the message of the commit claims is no cause."""
    [score] = scored(tmp_path, name, "--record", "recorded")["scenarios"]
    assert score["first_aid"] == "right" and not score["lacking"], score
    assert score["answer"] == "right" and score["verified"] == score["total"], score
    recorded = json.loads((tmp_path / "recorded" / f"{name}.json").read_text())
    [note] = recorded["first_aid"]
    start = r"Changed shortly before: commit [0-9a-f]{12} of shop \([^)]+ before the onset\)"
    assert re.match(start, note["summary"]), note["summary"]
    assert "commit" not in note["root_cause"] and "README" not in note["root_cause"]
    assert note["supporting_evidence"][0]["citations"]


def test_claude_is_asked_and_what_it_answers_is_recorded_and_replayed(
    api: ScriptedMessagesAPI, env: dict[str, str], tmp_path: Path
) -> None:
    api.script(
        Answer(
            structured=answer(
                "message 40313 of order 9917", quote=CAUSE, evidence_id="E4"
            ),
            usage=Usage(input_tokens=1234, output_tokens=56),
        )
    )
    before = len(api.calls)
    live = scored(tmp_path, QUEUE, "--record", "recorded", env=env)
    assert len(api.calls) == before + 1
    [score] = live["scenarios"]
    assert (score["answer"], score["calls"], score["tokens"]) == ("right", 1, 1234)
    assert score["answered_by"] not in ("", "hand") and score["cost_usd"] > 0
    replayed = scored(tmp_path, QUEUE, "--replay", "recorded", env=env)
    assert len(api.calls) == before + 1
    assert replayed["scenarios"] == [score]


def test_recordings_are_scored_without_a_system_or_a_key(tmp_path: Path) -> None:
    document = scored(tmp_path, "--replay", str(RECORDINGS), "--report", "report.md")
    assert len(document["scenarios"]) == len(list(RECORDINGS.glob("*.json"))) >= 30
    figures = document["totals"]
    assert figures["failed"] == figures["skipped"] == figures["false_alarms"] == 0
    assert figures["answers_right"] == 1 and document["missed"] == []
    for score in document["scenarios"]:
        assert not score["page"], score
        if score["answer"] and not score["lacking"]:
            assert score["verified"] == score["total"] > 0, score
    documented = (RECORDINGS.parents[1] / "docs" / "json.md").read_text()
    assert all(f"`{name}`" in documented for name in document["scenarios"][0])
    report = (tmp_path / "report.md").read_text()
    assert "no Claude was asked" in report and "The systems were recorded" in report
    table = midwatch(tmp_path, "eval", "lock-queue", "--replay", str(RECORDINGS))
    assert table.returncode == 0 and "lock-queue" in table.stdout


def test_a_past_ticket_becomes_a_scenario_that_is_replayed(
    api: ScriptedMessagesAPI, env: dict[str, str], tmp_path: Path
) -> None:
    async def seed(store: SqlStore) -> None:
        await open_tickets(store, "pump-1", subject="plant")

    in_store(tmp_path, seed)
    quote = "pump-1 is broken"
    api.script(Answer(structured=answer("pump-1 leaks", quote=quote, explains=[1])))
    missing = midwatch(tmp_path, "eval", "add", "--from-ticket", "1")
    assert missing.returncode == 1 and "has no diagnosis" in missing.stderr
    said(tmp_path, "diagnose", "1", env=env)
    added = said_json(tmp_path, "eval", "add", "--from-ticket", "1", "--name", "pump")
    truth = (tmp_path / added["folder"] / "scenario.yaml").read_text()
    assert "- pump\\-1\n" in truth and "verdicts:" in truth
    [score] = scored(tmp_path, "pump", "--scenarios", "scenarios")["scenarios"]
    assert (score["answer"], score["verified"], score["lacking"]) == ("right", 1, [])
    again = midwatch(tmp_path, "eval", "add", "--from-ticket", "1", "--name", "pump")
    assert again.returncode == 1 and "exists already" in again.stderr


def test_what_cannot_run_is_skipped_or_failed_with_the_reason(tmp_path: Path) -> None:
    watch = 'subjects: [{name: q, kind: command, command: ["true"]}]\ntruth: {verdicts: [no_fault]}\n'
    for name, part in {
        "absent": "{needs: [no-such-program], command: [no-such-program]}",
        "broken": "{prepare: echo no licence; exit 3, command: [sleep, '9']}",
        "ends": "{command: [sh, -c, echo bad port; exit 1], ready: 'false'}",
    }.items():
        (tmp_path / "own" / name).mkdir(parents=True)
        text = f"title: It cannot run\nparts: {{server: {part}}}\n{watch}"
        (tmp_path / "own" / name / "scenario.yaml").write_text(text)
    truth = "title: A slip\ntruth: {verdicts: [no_fault]"
    for name, text, problem in (
        ("regex", f"{truth}, culprit: ['row [71']}}", "is not a regular expression"),
        ("part", f"{truth}}}\nparts: {{web: {{uses: ngnix}}}}", "no part 'ngnix'"),
        ("server", f"{truth}}}\nfault: [{{sql: SELECT 1}}]", "no part 'pg'"),
    ):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "scenario.yaml").write_text(text)
        wrong = midwatch(tmp_path, "eval", name, "--scenarios", "bad")
        assert wrong.returncode == 2 and problem in wrong.stderr, wrong.stderr
        assert wrong.stderr.count("\n") <= 2 and "Traceback" not in wrong.stderr
    nothing = midwatch(tmp_path, "eval", "--replay", "nowhere")
    assert nothing.returncode == 1 and "no recordings" in nothing.stderr
    found = scored(tmp_path, "absent", "broken", "ends", "--scenarios", "own")
    states = {one["scenario"]: (one["state"], one["why"]) for one in found["scenarios"]}
    assert states["absent"] == ("skipped", "no-such-program is not installed")
    assert states["broken"][0] == states["ends"][0] == "failed"
    assert "no licence" in states["broken"][1] and "bad port" in states["ends"][1]
