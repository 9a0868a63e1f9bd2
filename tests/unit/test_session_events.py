"""Events, the outbox and the status: what is written is what is read, in whatever pieces."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.model import Usage
from midwatch.redaction import Redactor
from midwatch.session.events import (
    Event,
    Failure,
    Message,
    ModelUsage,
    Notice,
    PermissionAnswer,
    PermissionRequest,
    Phase,
    PhaseChanged,
    Prompt,
    Retry,
    Started,
    ToolResult,
    ToolUse,
    TurnResult,
    TurnStarted,
    from_json,
    to_json,
)
from midwatch.session.log import MAX_LINE, EventLog, EventReader, read_events
from midwatch.session.records import status_from_json, status_to_json
from midwatch.session.status import SessionStatus, fold

T0 = datetime(2026, 1, 1, tzinfo=UTC)
texts = st.text(max_size=20)
ids = st.sampled_from(["a", "b", "c"])
counts = st.integers(0, 9)
spends = st.builds(
    ModelUsage, st.builds(Usage, counts, counts, counts, counts), counts.map(float)
)
bodies: st.SearchStrategy[Event] = st.one_of(
    st.builds(PhaseChanged, phase=st.sampled_from(Phase), run=counts, reason=texts),
    st.builds(Started, conversation=texts, model=texts, tools=st.tuples(texts)),
    st.builds(Prompt, id=ids, uuid=texts, text=texts),
    st.builds(TurnStarted, prompt_id=ids),
    st.builds(Message, text=texts, parent_id=st.none() | ids),
    st.builds(ToolUse, id=ids, name=texts, input=st.dictionaries(texts, counts)),
    st.builds(ToolResult, tool_use_id=ids, text=texts, is_error=st.booleans()),
    st.builds(PermissionRequest, request_id=ids, tool=texts),
    st.builds(PermissionAnswer, request_id=ids, allowed=st.booleans()),
    st.builds(Retry, attempt=counts, max_attempts=counts, delay=counts.map(float)),
    st.builds(Failure, kind=texts, message=texts),
    st.builds(
        TurnResult,
        prompt_id=ids,
        outcome=st.sampled_from(["completed", "interrupted", "failed"]),
        text=texts,
        turns=counts,
        models=st.dictionaries(ids, spends, max_size=2),
    ),
)


@given(bodies)
def test_an_event_survives_its_json(event: Event) -> None:
    assert from_json(json.loads(json.dumps(to_json(event)))) == event


@given(st.lists(bodies), st.integers(0, 20))
def test_the_fold_of_all_is_the_fold_of_its_pieces(
    events: list[Event], cut: int
) -> None:
    whole = fold(SessionStatus(), events)
    pieces = fold(fold(SessionStatus(), events[:cut]), events[cut:])
    assert pieces == whole
    assert status_from_json(json.loads(json.dumps(status_to_json(whole)))) == whole


def test_the_status_tells_the_story() -> None:
    asked = PermissionRequest(request_id="r", tool="Bash")
    spend = ModelUsage(Usage(1, 2), 0.5)
    story: list[Event] = [
        PhaseChanged(phase=Phase.CREATING, run=1),
        Prompt(id="a", uuid="u", text="Do it."),
        asked,
    ]
    half = fold(SessionStatus(), story)
    assert (half.unfinished, half.pending_permissions) == (("a",), (asked,))
    done = TurnResult(
        prompt_id="a", outcome="completed", text="Done.", turns=2, models={"m": spend}
    )
    end = fold(half, [done, done, PhaseChanged(phase=Phase.COMPLETED, run=1)])
    assert (end.unfinished, end.pending_permissions, end.result) == ((), (), "Done.")
    assert (end.turns, end.cost_usd, end.usage) == (4, 1.0, Usage(2, 4))
    failed = fold(end, [Failure(kind="X", message="x", at=T0)])
    assert failed.error is not None
    assert fold(failed, [PhaseChanged(phase=Phase.CREATING, run=2)]).error is None


def opened(path: Path, *secrets: str) -> EventLog:
    ticks = iter(range(10**6))
    return EventLog(
        path, Redactor(secrets), lambda: T0 + timedelta(seconds=next(ticks))
    )


def test_numbers_go_on_after_a_restart_and_a_torn_line_is_skipped(
    tmp_path: Path,
) -> None:
    path = tmp_path / "outbox.jsonl"
    log = opened(path)
    for number in range(3):
        log.append(Notice(text=f"{number} " + "x" * 70_000))
    log.close()
    with path.open("ab") as file:
        file.write(b'{"type": "notice", "seq": 4, "text": "to')
    log = opened(path)
    assert log.append(Notice(text="after")).seq == 4
    log.close()
    assert [event.seq for event in read_events(path)] == [1, 2, 3, 4]
    assert [event.seq for event in read_events(path, after=3)] == [4]


def test_a_late_reader_begins_where_it_says_and_follows(tmp_path: Path) -> None:
    path = tmp_path / "outbox.jsonl"
    assert EventReader(path).poll() == []
    log = opened(path)
    for number in range(5000):
        log.append(Notice(text=f"text {number} " * 5))
    for after in (0, 1, 2499, 4999, 5000, 7000):
        reader = EventReader(path, after)
        assert [e.seq for e in reader.poll()] == list(range(after + 1, 5001))
    reader = EventReader(path, 5000)
    assert reader.poll() == []
    log.append(Notice(text="new"))
    assert [event.seq for event in reader.poll()] == [5001]
    log.close()


def test_secrets_and_what_cannot_be_kept_stay_out_and_lines_are_bounded(
    tmp_path: Path,
) -> None:
    log = opened(tmp_path / "outbox.jsonl", "hunter2-hunter2")
    key = "sk-ant-api03-" + "a1" * 20
    logged = log.append(
        ToolUse(
            id="t", name="Bash", input={"command": f"use {key} hunter2-hunter2\ud800\0"}
        )
    )
    assert isinstance(logged, ToolUse)
    assert key not in str(logged) and "hunter2-hunter2" not in str(logged)
    log.append(ToolResult(tool_use_id="t", text="ä" * 3 * MAX_LINE))
    log.append(
        ToolUse(id="t", name="x", input={str(n): "y" * 300 for n in range(9000)})
    )
    log.close()
    lines = log.path.read_bytes().splitlines()
    assert [len(line) <= MAX_LINE for line in lines] == [True] * 3
    assert "characters cut" in list(read_events(log.path))[1].text  # type: ignore[union-attr]


def test_reading_needs_no_knowledge_of_later_types(tmp_path: Path) -> None:
    path = tmp_path / "outbox.jsonl"
    path.write_text('{"type":"of the future","seq":1}\n[]\nnonsense\n')
    log = opened(path)
    log.append(Notice(text="known"))
    log.close()
    assert [event.type for event in read_events(path)] == ["notice"]


@settings(max_examples=30)
@given(st.binary(max_size=200))
def test_any_rubbish_at_the_end_is_survived(rubbish: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outbox.jsonl"
        log = opened(path)
        log.append(Notice(text="one"))
        log.close()
        with path.open("ab") as file:
            file.write(rubbish)
        log = opened(path)
        log.append(Notice(text="two"))
        log.close()
        assert [event.seq for event in read_events(path)] == [1, 2]


def test_a_folder_that_cannot_be_used_is_an_error_of_ours(tmp_path: Path) -> None:
    from midwatch.session.errors import FolderUnusable

    with pytest.raises(FolderUnusable):
        EventLog(tmp_path / "missing" / "outbox.jsonl")
