"""The status document of a resource: what holds, whoever writes it in whatever order."""

from __future__ import annotations

import copy
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.cluster.errors import ResourceGone
from midwatch.kube.errors import WriterOutdated
from midwatch.kube.status import (
    CUT,
    MAX_RESULT,
    Condition,
    RepoStatus,
    Status,
    Writer,
    bounded,
    merged,
    phase_changes,
    phase_conditions,
    phase_of,
    reason_of,
    repository_changes,
    session_changes,
)
from midwatch.model import Json, Usage
from midwatch.session.events import Failure, ModelUsage, Phase
from midwatch.session.status import SessionStatus
from midwatch.workspace.errors import PushRejected
from midwatch.workspace.inspect import RepoState
from midwatch.workspace.push import PushResult

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
# metav1.Condition in k8s.io/apimachinery
REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
UPWARD = ("observedGeneration", "attempt", "numTurns", "totalCostUsd", "restarts")


def patched(document: Json, patch: Json) -> Json:
    """A JSON merge patch (RFC 7396), as the API server applies it."""
    result = dict(document)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = patched(result[name], value)
        else:
            result[name] = value
    return result


def body(status: Json | None = None, uid: str = "u") -> Json:
    return {"metadata": {"uid": uid}, "status": status or {}}


def written(
    document: Json, writer: Writer, changes: Json, *conditions: Condition, at: int = 0
) -> Json:
    """The resource after a write; the same where nothing changes."""
    now = START + timedelta(seconds=at)
    before = copy.deepcopy(document)
    patch = merged(document, writer, changes, conditions, now)
    assert document == before
    return patched(document, {"status": patch} if patch else {})


class Long(str):
    """A text that hypothesis can tell of in a few letters: whole, a hundred of them are megabytes."""

    def __repr__(self) -> str:
        return f"Long({self[0]!r} * {len(self)})"


texts = st.text(max_size=60) | st.just(Long("x" * 40_000)) | st.just(Long("é" * 9_000))
conditions = st.builds(
    Condition,
    st.sampled_from(["Accepted", "Ready", "WorkspaceSaved", "Finished"]),
    st.sampled_from(["True", "False", "Unknown"]),
    texts,
    texts,
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "phase": st.sampled_from([phase.value for phase in Phase]),
        "reason": texts,
        "message": texts,
        "result": texts,
        "numTurns": st.integers(0, 9),
        "totalCostUsd": st.floats(0, 9),
        "restarts": st.integers(0, 3),
        "usage": st.fixed_dictionaries({"inputTokens": st.integers(0, 99)}),
        "podName": st.sampled_from(["a", "b"]) | st.none(),
    },
)
writes = st.tuples(
    st.integers(1, 3),  # generation
    st.integers(0, 3),  # attempt
    changes,
    st.lists(conditions, max_size=3),
)


@given(st.lists(writes, max_size=12))
def test_in_every_order_of_writes_the_rules_hold(many: list[Any]) -> None:
    now = body()
    for second, (generation, attempt, wanted, told) in enumerate(many):
        try:
            after = written(
                now, Writer("u", generation, attempt), wanted, *told, at=second
            )
        except WriterOutdated:
            earlier = now["status"].get("attempt", 0)
            over = phase_of(now).terminal
            assert attempt < earlier or (over and attempt > earlier)
            continue
        check_step(now["status"], after["status"])
        check_bounds(after["status"])
        check_whole(after["status"])
        # Nothing is written twice.
        assert merged(after, Writer("u", generation, attempt), {}, (), START) is None
        status = after["status"]
        assert status.get("restarts", 0) >= status.get("attempt", 0) - 1
        now = after


def check_whole(status: Json) -> None:
    """Also where only the phase was written: nobody must wait for an end that was."""
    if phase_of({"status": status}).terminal:
        has = {one["type"]: one["status"] for one in status["conditions"]}
        assert (has["Ready"], has["Finished"]) == ("False", "True")
        assert status["completionTime"]


def check_step(before: Json, after: Json) -> None:
    if phase_of({"status": before}).terminal:
        for name in ("phase", "reason", "message", "completionTime"):
            assert before.get(name) == after.get(name)
    for name in UPWARD:
        assert after.get(name, 0) >= before.get(name, 0)
    tokens = after.get("usage", {}).get("inputTokens", 0)
    assert tokens >= before.get("usage", {}).get("inputTokens", 0)
    if "startTime" in before:
        assert after["startTime"] == before["startTime"]
    old = {one["type"]: one for one in before.get("conditions", ())}
    new = {one["type"]: one for one in after.get("conditions", ())}
    assert len(new) == len(after.get("conditions", ())) and old.keys() <= new.keys()
    for type_, condition in old.items():
        same_time = condition["lastTransitionTime"] == new[type_]["lastTransitionTime"]
        assert same_time == (condition["status"] == new[type_]["status"])


def check_bounds(status: Json) -> None:
    assert len(status.get("result", "").encode()) <= MAX_RESULT
    assert len(status.get("message", "")) <= 32_768
    for one in status.get("conditions", ()):
        assert REASON.fullmatch(one["reason"]) and len(one["reason"]) <= 1024
        assert len(one["message"]) <= 32_768
    json.dumps(status).encode("utf-8")
    Status.model_validate(status)
    assert set(status) <= {field.alias for field in Status.model_fields.values()}


def test_a_phase_goes_forward_within_an_attempt_and_back_with_the_next() -> None:
    first, second = Writer("u", 1, 1), Writer("u", 1, 2)
    running = written(body(), first, phase_changes(Phase.RUNNING, "Working"))
    late = phase_changes(Phase.PENDING, "Scheduling", "waits for a node")
    told = phase_conditions(Phase.PENDING, "Scheduling")
    assert written(running, first, late, *told)["status"]["reason"] == "Working"
    again = written(running, second, phase_changes(Phase.CREATING, "Restarted"))
    assert again["status"] | {"x": 0} == {
        **again["status"],
        **{"phase": "Creating", "reason": "Restarted", "attempt": 2, "x": 0},
    }
    with pytest.raises(WriterOutdated, match="attempt 2"):
        merged(again, first, {"numTurns": 1}, (), START)


def test_a_late_report_of_the_start_does_not_clear_the_name_of_the_pod() -> None:
    """Another operator, which was slower, reports the attempt after its runner has."""
    start = {"jobName": "s-run-2", "podName": None}
    start |= phase_changes(Phase.CREATING, "Restarted", "")
    of_run = Writer("u", 1, 2)
    document = written(body({"podName": "old", "attempt": 1}), of_run, start)
    assert "podName" not in document["status"]
    document = written(document, of_run, {"podName": "s-run-2-x"})
    document = written(document, of_run, start)
    assert document["status"]["podName"] == "s-run-2-x"


def test_after_the_end_data_of_the_same_attempt_is_still_taken() -> None:
    runner = Writer("u", 1, 1)
    ended = written(
        body(),
        runner,
        phase_changes(Phase.FAILED, "OutOfMemory"),
        *phase_conditions(Phase.FAILED, "OutOfMemory"),
    )
    assert ended["status"]["completionTime"] == "2026-03-01T12:00:00Z"
    late = phase_changes(Phase.COMPLETED, "Completed") | {"repos": [{"name": "a"}]}
    saved = Condition("WorkspaceSaved", "True", "Saved")
    told = (*phase_conditions(Phase.COMPLETED, "Completed"), saved)
    after = written(ended, runner, late, *told, at=60)["status"]
    assert (after["phase"], after["reason"]) == ("Failed", "OutOfMemory")
    assert after["repos"] == [{"name": "a"}]
    reasons = {one["type"]: one["reason"] for one in after["conditions"]}
    assert reasons["Finished"] == "OutOfMemory" and reasons["WorkspaceSaved"] == "Saved"
    with pytest.raises(WriterOutdated, match="Failed already"):
        merged(ended, Writer("u", 1, 2), late, (), START)


def test_a_runner_of_an_older_spec_has_the_last_word_on_its_run_only() -> None:
    """`spec.stop` makes a new generation; the runner that is stopped by it knows the old one."""
    operator, runner = Writer("u", 2, 1), Writer("u", 1, 1)
    accepted = Condition("Accepted", "True", "Accepted")
    now = written(body(), operator, {}, accepted, Condition("Ready", "True", "Up"))
    after = written(
        now,
        runner,
        phase_changes(Phase.STOPPED, "Stopped"),
        Condition("Accepted", "False", "Old"),
        *phase_conditions(Phase.STOPPED, "Stopped"),
    )["status"]
    assert after["phase"] == "Stopped" and after["observedGeneration"] == 2
    by_type = {one["type"]: one for one in after["conditions"]}
    assert by_type["Accepted"]["status"] == "True"
    assert by_type["Ready"]["status"] == "False"
    assert by_type["Ready"]["observedGeneration"] == 2


def test_another_resource_of_the_same_name_is_not_written() -> None:
    with pytest.raises(ResourceGone):
        merged(body(uid="new"), Writer("old", 1, 1), {"numTurns": 1}, (), START)


def test_what_a_session_tells() -> None:
    status = SessionStatus(
        phase=Phase.FAILED,
        conversation="c",
        model="m",
        turns=3,
        spend={"m": ModelUsage(Usage(10, 5, 2, 1), 0.25)},
        result="r" * 9_000,
        last_activity_at=START,
        ended_at=START,
        error=Failure(kind="TurnLimit", message="reached", hint="raise `max_turns`"),
    )
    told = session_changes(status, hints={"TurnLimit": "raise spec.maxTurns"})
    assert told.pop("result").endswith(CUT)
    assert told == {
        "phase": "Failed",
        "reason": "TurnLimit",
        "message": "reached (raise spec.maxTurns)",
        "numTurns": 3,
        "totalCostUsd": 0.25,
        "usage": {
            "inputTokens": 10,
            "outputTokens": 5,
            "cacheReadInputTokens": 2,
            "cacheCreationInputTokens": 1,
        },
        "sessionId": "c",
        "model": "m",
        "lastActivityTime": "2026-03-01T12:00:00Z",
        "completionTime": "2026-03-01T12:00:00Z",
    }
    read = Status.model_validate(told)
    assert read.model_dump(by_alias=True, exclude_none=True, mode="json") == told


def test_repositories_say_whether_their_push_came_through() -> None:
    records = [
        RepoState(name, f"/{name}", "changed", None, None, "b", 0, (), (), 0)
        for name in "abc"
    ]
    refused = PushRejected("/b", "not a fast-forward")
    pushes = [
        PushResult("a", "/a", "midwatch/s", "pushed", "c0ffee"),
        PushResult("b", "/b", "midwatch/s", "failed", error=refused),
        PushResult("c", "/c", "midwatch/s", "nothing"),
    ]
    told = {one["name"]: one for one in repository_changes(records, pushes)}
    assert (told["a"]["state"], told["a"]["pushedTo"]) == ("pushed", "/a midwatch/s")
    assert told["b"]["state"] == "failed" and "fast-forward" in told["b"]["message"]
    assert told["c"]["state"] == "changed" and "pushedTo" not in told["c"]
    for one in told.values():
        read = RepoStatus.model_validate(one)
        assert read.model_dump(by_alias=True, exclude_none=True) == one


@given(st.text(max_size=300), st.integers(0, 100))
def test_a_cut_text_fits_and_is_text(text: str, limit: int) -> None:
    short = bounded(text, limit)
    assert len(short.encode()) <= limit
    if len(text.encode("utf-8", "replace")) * 3 <= limit:
        assert CUT not in short


@given(st.text(max_size=300))
def test_every_text_makes_a_reason(text: str) -> None:
    assert REASON.fullmatch(reason_of(text)) and len(reason_of(text)) <= 1024


def test_a_reason_stays_what_it_is() -> None:
    assert [reason_of(one) for one in ("KeyRefused", "call left", "SIGTERM")] == [
        "KeyRefused",
        "CallLeft",
        "SIGTERM",
    ]


@pytest.mark.parametrize(("turns", "told"), [(1, "1 turn"), (2, "2 turns")])
def test_turns_are_counted_in_plain_words(turns: int, told: str) -> None:
    status = SessionStatus(phase=Phase.COMPLETED, turns=turns)
    assert session_changes(status)["message"] == f"done after {told}"
