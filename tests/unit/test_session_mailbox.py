"""The inbox: every line that can be in it, and every way in which the file can change."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from claude_agent_sdk.testing import run_session_store_conformance
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.session.events import (
    Command,
    Event,
    Phase,
    PhaseChanged,
    Prompt,
    TurnResult,
    TurnStarted,
)
from midwatch.session.log import read_ledger
from midwatch.session.mailbox import MAX_LINE, Inbox, Mail, Rejected, parse_mail
from midwatch.session.transcripts import (
    FileTranscripts,
    read_entries,
    restore,
    turn_outcome,
)


def line(id: str = "m", kind: str = "user_message", content: object = "Hi.") -> bytes:
    return json.dumps({"id": id, "type": kind, "content": content}).encode() + b"\n"


def inbox(tmp_path: Path) -> Inbox:
    return Inbox(tmp_path / "inbox.jsonl", tmp_path / "inbox.cursor")


def poll_all(box: Inbox) -> list[Mail | Rejected]:
    found = box.poll()
    while box.more:
        found += box.poll()
    return found


def read(box: Inbox) -> list[str]:
    found = poll_all(box)
    box.commit()
    return [item.id if isinstance(item, Mail) else f"! {item.why}" for item in found]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'"text"', "not an object"),
        (b"[" * 100_000, "not JSON"),
        (line(id=""), "id must be"),
        (line(id="x" * 300), "id must be"),
        (line(id="call/1"), "an id that begins"),
        (line(kind="shutdown"), "type must be one of"),
        (line(content=""), "content must be a text"),
        (line(content={"text": "Hi."}), "content must be a text"),
        (line(kind="permission_response", content={"request_id": "r"}), "content must"),
        (line(content="x" * MAX_LINE), "longer than"),
    ],
)
def test_what_is_no_message_says_why(raw: bytes, why: str) -> None:
    parsed = parse_mail(raw, 7)
    assert isinstance(parsed, Rejected)
    assert parsed.why.startswith(why) and parsed.offset == 7


@given(st.binary(max_size=300))
def test_no_line_raises(raw: bytes) -> None:
    parse_mail(raw, 0)


def test_only_a_message_that_is_end_ends() -> None:
    kinds = {
        text: parse_mail(line(content=text), 0).kind  # type: ignore[union-attr]
        for text in ("/end", " /end\n", "fix /endpoint", "/end now", "do not /end")
    }
    assert [text for text, kind in kinds.items() if kind == "end_session"] == [
        "/end",
        " /end\n",
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=30), st.data())
def test_lines_in_any_pieces_come_once_and_in_order(
    cuts: list[int], data: st.DataObject
) -> None:
    import tempfile

    wanted = [f"m{number}" for number in range(6)]
    raw = b"".join(line(id) for id in wanted)
    with tempfile.TemporaryDirectory() as folder:
        path, seen = Path(folder), list[str]()
        box = inbox(path)
        for cut in [*cuts, len(raw)]:
            piece, raw = raw[:cut], raw[cut:]
            with box.path.open("ab") as file:
                file.write(piece)
            seen += read(box)
            if data.draw(st.booleans()):  # a restart
                box = inbox(path)
        assert seen == wanted


def test_what_was_not_committed_comes_again(tmp_path: Path) -> None:
    box = inbox(tmp_path)
    box.path.write_bytes(line("a") + line("b"))
    assert len(box.poll()) == 2
    assert read(inbox(tmp_path)) == ["a", "b"]
    assert read(inbox(tmp_path)) == []


def test_a_truncated_or_replaced_file_is_read_from_its_beginning(
    tmp_path: Path,
) -> None:
    box = inbox(tmp_path)
    box.path.write_bytes(line("a") + line("b"))
    assert read(box) == ["a", "b"]
    box.path.write_bytes(line("c"))
    assert read(box) == ["c"] and box.restarted
    box.path.write_bytes(line("x") + line("y") + line("z"))  # longer than before
    assert read(box) == ["x", "y", "z"]
    other = tmp_path / "other"
    other.write_bytes(box.path.read_bytes() + line("new"))
    os.replace(other, box.path)
    assert read(box) == ["x", "y", "z", "new"]
    box.path.unlink()
    assert read(box) == []
    (tmp_path / "inbox.cursor").write_text("nonsense")
    box.path.write_bytes(line("x"))
    assert read(inbox(tmp_path)) == ["x"]


def test_a_huge_line_is_rejected_and_the_next_one_counts(tmp_path: Path) -> None:
    box = inbox(tmp_path)
    huge = line("huge", content="x" * 9_000_000)
    with box.path.open("ab") as file:
        file.write(huge[:5_000_000])
    assert read(box) == []
    with box.path.open("ab") as file:
        file.write(huge[5_000_000:] + line("next"))
    first, second = poll_all(box)
    assert isinstance(first, Rejected) and isinstance(second, Mail)
    assert second.offset == len(huge)


def test_ten_thousand_messages(tmp_path: Path) -> None:
    box = inbox(tmp_path)
    wanted = [f"m{number}" for number in range(10_000)]
    box.path.write_bytes(b"".join(line(id) for id in wanted))
    assert read(box) == wanted


# ------------------------------------------------------------------ the ledger


def prompt(id: str) -> Prompt:
    return Prompt(id=id, uuid=f"uuid-{id}", text=id, source="inbox")


def waiting(events: list[Event]) -> list[tuple[str, bool, bool] | None]:
    return [
        None if item is None else (item.prompt.id, item.sent, item.interrupted)
        for item in read_ledger(events).queue
    ]


def test_the_ledger_knows_what_is_still_to_do() -> None:
    done = TurnResult(prompt_id="a", outcome="completed")
    log: list[Event] = [prompt("a"), prompt("b"), TurnStarted(prompt_id="a")]
    assert waiting(log) == [("a", True, False), ("b", False, False)]
    assert waiting([*log, done]) == [("b", False, False)]
    stop = Command(id="i", kind="interrupt")
    assert waiting([*log, stop])[0] == ("a", True, True)
    assert waiting([*log, done, stop]) == [("b", False, False)]
    end = Command(id="e", kind="end_session")
    ended = [*log, end, prompt("c")]
    assert waiting(ended)[2:] == [None, ("c", False, False)]
    crashed = PhaseChanged(phase=Phase.FAILED, run=1)
    completed = PhaseChanged(phase=Phase.COMPLETED, run=1)
    assert None in waiting([*ended, crashed])
    assert None not in waiting([*ended, completed])
    assert read_ledger(ended).known == {"a", "b", "c", "e"}


# ------------------------------------------------------------------ transcripts


async def test_the_sdk_s_own_suite_passes_on_files(tmp_path: Path) -> None:
    numbers = iter(range(1000))

    def fresh() -> FileTranscripts:
        return FileTranscripts(tmp_path / str(next(numbers)))

    await run_session_store_conformance(
        fresh,  # type: ignore[arg-type]
        skip_optional=frozenset({"list_session_summaries"}),
    )


async def test_a_transcript_is_put_in_place_with_its_subagents(tmp_path: Path) -> None:
    store = FileTranscripts(tmp_path / "store")
    key = {"project_key": "midwatch", "session_id": "s"}
    entry = {"type": "user", "uuid": "u", "text": "ä\u2028"}
    await store.append(key, [entry, {"type": "mode"}])
    await FileTranscripts(tmp_path / "store").append(key, [entry, {"type": "mode"}])
    for sub in ("subagents/agent-1", "../../../evil"):
        await store.append({**key, "subpath": sub}, [{"type": "x", "uuid": sub}])
    main = tmp_path / "claude" / "projects" / "p" / "s.jsonl"
    assert not await restore(store, "other", main)
    assert await restore(store, "s", main)
    assert [e["type"] for e in read_entries(main)] == ["user", "mode", "mode"]
    assert (main.parent / "s" / "subagents" / "agent-1.jsonl").is_file()
    assert not list(tmp_path.rglob("evil*"))
    main.write_text("{}\n")
    assert await restore(store, "s", main) and main.read_text() == "{}\n"


def test_a_transcript_tells_what_became_of_a_prompt() -> None:
    def said(stop: str | None, text: str = "") -> dict[str, object]:
        content = [{"type": "text", "text": text}] if text else [{"type": "tool_use"}]
        return {
            "type": "assistant",
            "message": {"content": content, "stop_reason": stop},
        }

    user = {"type": "user", "uuid": "u", "message": {"content": "Hi."}}
    result = {"type": "user", "uuid": "r", "message": {"content": []}}
    assert turn_outcome([said("end_turn", "old")], "u").state == "unknown"
    assert turn_outcome([user], "u").state == "cut"
    assert turn_outcome([user, said("tool_use"), result], "u").state == "cut"
    ended = turn_outcome(
        [user, said("tool_use"), result, said("end_turn", "Done.")], "u"
    )
    assert (ended.state, ended.text) == ("ended", "Done.")
    aside = {**said("end_turn", "No."), "isSidechain": True}
    assert turn_outcome([user, aside], "u").state == "cut"
