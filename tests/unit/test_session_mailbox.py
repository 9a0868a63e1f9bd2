"""The inbox: every line that can be in it, and every way in which the file can change."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from claude_agent_sdk.testing import run_session_store_conformance
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.files import UnusableFile, is_locked, locked_if_free
from midwatch.redaction import Redactor
from midwatch.session.errors import FolderUnusable
from midwatch.session.events import (
    Command,
    Event,
    MailboxRejected,
    Notice,
    Phase,
    PhaseChanged,
    Prompt,
    TurnResult,
    TurnStarted,
    to_json,
)
from midwatch.session.log import (
    EventLog,
    EventReader,
    Journal,
    SessionFolder,
    append_line,
    read_events,
    read_json,
    read_ledger,
    replace_json,
)
from midwatch.session.mailbox import (
    MAX_LINE,
    MAX_REJECTED,
    Inbox,
    InboxConsumer,
    Mail,
    Rejected,
    parse_mail,
    write_mail,
)
from midwatch.session.transcripts import (
    FileTranscripts,
    read_entries,
    restore,
    turn_outcome,
)
from midwatch.workspace.errors import WorkspaceExists
from midwatch.workspace.record import load_record

from ..hostile import HOSTILE, put


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


@pytest.mark.parametrize("kind", HOSTILE)
def test_only_a_regular_file_is_opened(tmp_path: Path, kind: str) -> None:
    """Each of these would block, follow the link, or read for ever."""
    path, words = tmp_path / "file", f"is {HOSTILE[kind]}, not a regular file"
    put(kind, path)
    with pytest.raises(FolderUnusable, match=words):
        Inbox(path, tmp_path / "cursor").poll()
    with pytest.raises(FolderUnusable, match=words):
        write_mail(path, id="m", kind="interrupt", content=None, timestamp="")
    with pytest.raises(FolderUnusable, match=words):
        EventLog(path)
    with pytest.raises(FolderUnusable, match=words):
        EventReader(path, after=3).poll()
    with pytest.raises(FolderUnusable, match=words):
        list(read_entries(path))
    assert read_json(path) is None
    assert not is_locked(path)
    with pytest.raises(UnusableFile, match=words), locked_if_free(path):
        pass
    with pytest.raises(WorkspaceExists, match=words):
        put(kind, tmp_path / "state" / "workspace.json")
        load_record(tmp_path / "state")


def test_a_file_is_replaced_past_what_lies_in_the_way(tmp_path: Path) -> None:
    path, precious = tmp_path / "status.json", tmp_path / "precious"
    precious.write_text("mine")
    for kind in ("link", "hard link", "pipe", "socket"):
        temporary = tmp_path / ".status.json.new"
        if kind == "link":
            temporary.symlink_to(precious)
            path.symlink_to(precious)
        elif kind == "hard link":
            temporary.hardlink_to(precious)
        else:
            put(kind, temporary)
        replace_json(path, {"kind": kind})
        assert read_json(path) == {"kind": kind} and not path.is_symlink()
    assert precious.read_text() == "mine"


def test_a_rejected_line_is_kept_without_secrets_and_not_for_ever(
    tmp_path: Path,
) -> None:
    secret = 'a "quoted" secret \n of two lines'
    shape = f"sk-ant-api03-{'x' * 40}"
    redactor = Redactor().with_known(secret)
    folder = SessionFolder(tmp_path)
    box = InboxConsumer("s", folder, redactor)
    wrong = {"id": "", "type": "user_message", "content": secret}
    lines = [
        json.dumps(wrong).encode(),
        f"{'. ' * 90}{shape}".encode(),  # the 200 characters of the event cut it
        f"{'. ' * 24_995}{shape}{' .' * 300_000}".encode(),
        f"{'. ' * 26_995}{shape}{' .' * 300_000}".encode(),
    ]
    folder.inbox.write_bytes(b"\n".join(lines) + b"\n")

    async def read_all() -> list[Event]:
        journal = Journal(folder, redactor, lambda: datetime.now(UTC))
        while await box.read(journal, lambda mail: None):
            pass
        for number in range(300):
            long = f"{number} {'x' * 60_000}\n".encode()
            with folder.inbox.open("ab") as file:
                file.write(long)
        while await box.read(journal, lambda mail: None):
            pass
        journal.close()
        return list(read_events(folder.outbox))

    events = asyncio.run(read_all())
    kept = folder.rejected.read_text()
    for text in (kept, folder.outbox.read_text()):
        assert not any(part in text for part in ("quoted", "sk-ant", "two lines"))
    first = [json.loads(line) for line in kept.splitlines()[:4]]
    assert first[0]["why"].startswith("id must be") and first[0]["offset"] == 0
    assert all(len(one["line"]) <= 50_000 for one in first)
    assert folder.rejected.stat().st_size <= MAX_REJECTED
    rejected = [one for one in events if isinstance(one, MailboxRejected)]
    assert len(rejected) == 304
    assert [one.text for one in events if isinstance(one, Notice)] == [
        f"{folder.rejected} is full: further lines are not kept there"
    ]


def test_a_reader_follows_a_truncated_or_replaced_outbox(tmp_path: Path) -> None:
    path = tmp_path / "outbox.jsonl"
    reader = EventReader(path)

    def log(*numbers: int) -> None:
        for number in numbers:
            data = to_json(Notice(seq=number, text=f"n{number}"))
            append_line(path, json.dumps(data).encode() + b"\n")

    def seen() -> list[int]:
        return [event.seq for event in reader.poll()]

    log(1, 2, 3)
    assert seen() == [1, 2, 3]
    os.truncate(path, 0)
    assert seen() == []
    log(4)
    assert seen() == [4]
    os.truncate(path, 0)
    log(3, 4, 5, 6)  # longer than before
    assert seen() == [5, 6]
    path.rename(tmp_path / "moved")
    assert seen() == []
    log(*range(1, 9))
    assert seen() == [7, 8]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FolderUnusable, match="a named pipe"):
        reader.poll()
    path.unlink()
    log(8, 9)
    assert seen() == [9]


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
    # A batch that comes again is kept once, also what has no uuid.
    assert [e["type"] for e in read_entries(main)] == ["user", "mode"]
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
