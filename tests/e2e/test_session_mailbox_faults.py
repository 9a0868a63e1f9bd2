"""What can happen to the two files while a session with the real claude program runs."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from midwatch.session.agentic_session import AsyncAgenticSession
from midwatch.session.errors import FolderUnusable, OutboxLost
from midwatch.session.events import (
    Command,
    Event,
    Failure,
    MailboxRejected,
    Phase,
    PhaseChanged,
    Prompt,
    TurnResult,
)
from midwatch.session.log import EventReader, read_events
from midwatch.session.mailbox import WHOLE_FILE, Inbox
from midwatch.session.records import FolderRecords
from midwatch.testing.fakes import collect, only, options, post, session_in
from midwatch.testing.messages_api import Answer, Rule, ScriptedMessagesAPI, ToolUse

from ..hostile import HOSTILE, no_file, put
from ..waiting import PATIENCE


def message(id: str, content: str) -> bytes:
    line = {"id": id, "type": "user_message", "content": content, "timestamp": ""}
    return json.dumps(line).encode() + b"\n"


def write(session: AsyncAgenticSession, data: bytes) -> None:
    session.folder.inbox.parent.mkdir(parents=True, exist_ok=True)
    with session.folder.inbox.open("ab") as inbox:
        inbox.write(data)


async def until(reader: EventReader, kind: type[Event]) -> None:
    """Read on to where there is an event of this kind, and what came with it."""
    async with asyncio.timeout(PATIENCE):
        while not any(isinstance(event, kind) for event in reader.poll()):
            await asyncio.sleep(0.002)


async def test_an_inbox_full_of_rubbish_does_not_stop_the_conversation(
    tmp_path: Path,
) -> None:
    async with ScriptedMessagesAPI(Rule("Yes.", tools=True)) as api:
        session = session_in(tmp_path, api, interactive=True)
        task = asyncio.create_task(collect(session, None))
        reader = EventReader(session.folder.outbox)
        write(session, message("huge", "x" * 5_000_000))
        write(session, b"\xff\xfe\x00\n{\n[]\n\n" + message("m1", "One."))
        await until(reader, TurnResult)
        # Replaced by another file, which has an old message and a new one.
        other = tmp_path / "other"
        other.write_bytes(message("m1", "One.") + message("m2", "fix /endpoint"))
        os.replace(other, session.folder.inbox)
        await until(reader, TurnResult)
        session.folder.inbox.write_bytes(message("m3", "Three."))  # truncated
        await until(reader, TurnResult)
        write(session, message("m3", "Three.") + message("m4", "/end"))
        events = await asyncio.wait_for(task, PATIENCE)
        assert len(api.calls) == 3
    reasons = [rejected.why for rejected in only(events, MailboxRejected)]
    assert [why.split()[0] for why in reasons] == ["longer", "not", "not", "not"]
    assert [prompt.id for prompt in only(events, Prompt)] == ["m1", "m2", "m3"]
    assert session.folder.rejected.read_bytes().count(b"\n") == 4
    assert (events[-1].phase, events[-1].reason) == (Phase.COMPLETED, "end_session")  # type: ignore[union-attr]


async def test_ten_thousand_messages_are_taken_and_a_late_reader_sees_them(
    tmp_path: Path,
) -> None:
    """They are not all answered here: a stop in the midst of them must still be quick."""
    ids = [f"m{number}" for number in range(10_000)]
    async with ScriptedMessagesAPI(Rule("Yes.", tools=True)) as api:
        session = session_in(tmp_path, api, interactive=True)
        write(session, b"".join(message(id, "Hello.") for id in ids))
        task = asyncio.create_task(collect(session, None))
        reader = EventReader(session.folder.outbox)
        await until(reader, TurnResult)
        session.stop("enough")
        events = await asyncio.wait_for(task, PATIENCE)
    assert [prompt.id for prompt in only(events, Prompt)] == ids
    answered = [result.prompt_id for result in only(events, TurnResult)]
    assert answered == ids[: len(answered)] and len(answered) < 100
    assert len(session.status().unfinished) == len(ids) - len(answered)

    middle = events[5_000].seq
    late = list(read_events(session.folder.outbox, after=middle))
    assert late == [event for event in events if event.seq > middle]
    assert isinstance(late[-1], PhaseChanged) and late[-1].phase is Phase.STOPPED
    inbox = Inbox(session.folder.inbox, session.folder.cursor)
    assert inbox.poll() == []  # all are taken: the next run has them from the outbox


async def test_an_end_that_is_followed_by_more_ends_and_keeps_the_rest(
    tmp_path: Path,
) -> None:
    async with ScriptedMessagesAPI(Rule("Yes.", tools=True)) as api:
        session = session_in(tmp_path, api, interactive=True)
        for number, text in enumerate(("One.", "/end", "After.")):
            write(session, message(f"m{number}", text))
        events = await collect(session, None)
        assert [r.prompt_id for r in only(events, TurnResult)] == ["m0"]
        assert only(events, Command)[0].kind == "end_session"
        post(session, "end_session", None, "e2")
        events = await collect(session, None)
    assert [r.prompt_id for r in only(events, TurnResult)] == ["m2"]


# ------------------------------------------------------------------ something else than a file


async def test_an_inbox_that_is_no_file_is_told_once_and_the_session_goes_on(
    tmp_path: Path,
) -> None:
    kinds = [*HOSTILE, *HOSTILE]  # each after each: again is told what was told before
    async with ScriptedMessagesAPI(Rule("Yes.", tools=True)) as api:
        session = session_in(tmp_path, api, interactive=True)
        inbox = session.folder.inbox
        put(kinds[0], inbox)
        task = asyncio.create_task(collect(session, None))
        reader = EventReader(session.folder.outbox)
        for number, kind in enumerate(kinds):
            await until(reader, MailboxRejected)
            no_file(inbox)
            write(session, message(f"m{number}", "One."))
            await until(reader, TurnResult)
            if number + 1 < len(kinds):
                no_file(inbox)
                put(kinds[number + 1], inbox)
        write(session, message("m0", "One.") + message("end", "/end"))
        events = await asyncio.wait_for(task, PATIENCE)
    told = only(events, MailboxRejected)
    assert {one.offset for one in told} == {WHOLE_FILE}
    assert [one.why for one in told] == [
        f"{inbox}: is {HOSTILE[kind]}, not a regular file" for kind in kinds
    ]
    taken = [f"m{number}" for number in range(len(kinds))]
    assert [prompt.id for prompt in only(events, Prompt)] == taken
    assert (events[-1].phase, events[-1].reason) == (Phase.COMPLETED, "end_session")  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["pipe", "device"])  # a read may wait, or never end
async def test_limits_and_stop_work_with_an_inbox_that_is_no_file(
    tmp_path: Path, kind: str
) -> None:
    async with ScriptedMessagesAPI(Rule("Yes.", tools=True)) as api:
        limited = options(limits={"mail_idle": 0.5})
        session = session_in(tmp_path, api, interactive=True, options=limited)
        put(kind, session.folder.inbox)
        events = await asyncio.wait_for(collect(session, "Hi."), PATIENCE)
        assert (events[-1].phase, events[-1].reason) == (Phase.STOPPED, "idle")  # type: ignore[union-attr]
        assert [result.text for result in only(events, TurnResult)] == ["Yes."]

        session = session_in(tmp_path, api, interactive=True)
        task = asyncio.create_task(collect(session, None))
        reader = EventReader(session.folder.outbox, after=events[-1].seq)
        await until(reader, MailboxRejected)
        session.stop("enough")
        events = await asyncio.wait_for(task, PATIENCE)
    assert (events[-1].phase, events[-1].reason) == (Phase.STOPPED, "enough")  # type: ignore[union-attr]


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every file")
async def test_an_inbox_that_may_not_be_read_is_read_once_it_may(
    tmp_path: Path,
) -> None:
    async with ScriptedMessagesAPI(Rule("Yes.", tools=True)) as api:
        session = session_in(tmp_path, api, interactive=True)
        write(session, message("m1", "/end"))
        session.folder.inbox.chmod(0)
        task = asyncio.create_task(collect(session, None))
        await until(EventReader(session.folder.outbox), MailboxRejected)
        session.folder.inbox.chmod(0o600)
        events = await asyncio.wait_for(task, PATIENCE)
    assert (events[-1].phase, events[-1].reason) == (Phase.COMPLETED, "end_session")  # type: ignore[union-attr]


async def test_an_inbox_without_end_blocks_nothing(tmp_path: Path) -> None:
    """A sparse file of a terabyte: one line that never ends."""
    async with ScriptedMessagesAPI(Rule("Yes.", tools=True)) as api:
        session = session_in(tmp_path, api, interactive=True)
        write(session, message("m1", "One."))
        os.truncate(session.folder.inbox, 1 << 40)
        task = asyncio.create_task(collect(session, None))
        reader = EventReader(session.folder.outbox)
        await until(reader, MailboxRejected)
        no_file(session.folder.inbox)
        write(session, message("m1", "One.") + message("m2", "/end"))
        events = await asyncio.wait_for(task, PATIENCE)
    [told] = only(events, MailboxRejected)
    assert "has a line of more than" in told.why
    assert [result.prompt_id for result in only(events, TurnResult)] == ["m1"]


@pytest.mark.parametrize("first", [0, 2, 4])
async def test_the_files_beside_the_inbox_do_not_end_the_session(
    tmp_path: Path, first: int
) -> None:
    """The cursor is found again by the ids of messages, and rejected lines are in the outbox."""
    kinds = [*HOSTILE, *HOSTILE][first:]  # another one for each of four files
    async with ScriptedMessagesAPI(Rule("Yes.", tools=True)) as api:
        session = session_in(tmp_path, api, interactive=True)
        files = session.folder.cursor, session.folder.rejected
        new = [path.with_name(f".{path.name}.new") for path in files]
        for path, kind in zip((*files, *new), kinds):
            put(kind, path)
        write(session, b"rubbish\n" + message("m1", "One.") + message("m2", "/end"))
        events = await asyncio.wait_for(collect(session, None), PATIENCE)
    assert [one.why for one in only(events, MailboxRejected)] == ["not JSON"]
    assert [result.text for result in only(events, TurnResult)] == ["Yes."]
    assert (events[-1].phase, events[-1].reason) == (Phase.COMPLETED, "end_session")  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", HOSTILE)
async def test_an_outbox_that_is_no_file_fails_the_session_at_its_start(
    tmp_path: Path, kind: str
) -> None:
    async with ScriptedMessagesAPI(Rule("Yes.", tools=True)) as api:
        session = session_in(tmp_path, api)
        put(kind, session.folder.outbox)
        with pytest.raises(FolderUnusable, match=HOSTILE[kind]):
            await asyncio.wait_for(collect(session, "Hi."), PATIENCE)
        assert api.calls == []
    for status in (
        session.status(),
        FolderRecords(session.folder.path).load_status(),
    ):
        assert status is not None
        assert (status.phase, status.reason) == (Phase.FAILED, "FolderUnusable")
        assert status.error is not None and HOSTILE[kind] in status.error.message


# ------------------------------------------------------------------ an outbox that is lost


def truncated(path: Path) -> None:
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def moved(path: Path) -> None:
    path.rename(path.with_name("moved"))


def rewritten(path: Path) -> None:
    """As an editor saves it."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "removed": (Path.unlink, "vanished"),
    "moved": (moved, "vanished"),
    "truncated": (truncated, "was truncated"),
    "cut": (cut, "was truncated"),
    "rewritten": (rewritten, "was replaced"),
    **{
        kind: (lambda path, kind=kind: (no_file(path), put(kind, path)), "was replaced")  # type: ignore[misc]
        for kind in HOSTILE
    },
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_lost_outbox_fails_the_run_and_its_readers_see_that(
    tmp_path: Path, change: str
) -> None:
    act, words = CHANGES[change]
    async with ScriptedMessagesAPI(Rule("Yes.", tools=True)) as api:
        session = session_in(tmp_path, api, interactive=True)
        outbox = session.folder.outbox
        task = asyncio.create_task(collect(session, None))
        reader, seen = EventReader(outbox), list[Event]()
        write(session, message("m1", "One."))
        async with asyncio.timeout(PATIENCE):
            while not only(seen, TurnResult):
                seen += reader.poll()
                await asyncio.sleep(0.002)
        act(outbox)
        write(session, message("m2", "Two."))
        with pytest.raises(OutboxLost, match=f"{words} while the session ran"):
            await asyncio.wait_for(task, PATIENCE)
        seen += reader.poll()
        assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
        assert isinstance(seen[-1], PhaseChanged)
        assert (seen[-1].phase, seen[-1].reason) == (Phase.FAILED, "OutboxLost")
        assert words in only(seen, Failure)[-1].message
        left = list(read_events(outbox))
        if change not in ("truncated", "cut"):  # the open file has all events
            assert left == seen
        assert left[-1] == seen[-1]
        status = FolderRecords(session.folder.path).load_status()
        assert status is not None and status == session.status()
        assert (status.phase, status.reason) == (Phase.FAILED, "OutboxLost")

        # All others left what "removed" left.
        if change in ("removed", "truncated", "cut"):
            again = session_in(tmp_path, api)
            events = await asyncio.wait_for(collect(again, "Go on."), PATIENCE)
            assert events[0].seq == seen[-1].seq + 1
            assert isinstance(events[-1], PhaseChanged)
            assert (events[-1].phase, events[-1].run) == (Phase.COMPLETED, 2)


@pytest.mark.parametrize("command", ["rm {outbox}", "find {folder} -delete"])
async def test_a_session_that_removes_its_own_log_is_not_completed(
    tmp_path: Path, command: str
) -> None:
    folder = tmp_path / "session"
    removed = command.format(outbox=folder / "outbox.jsonl", folder=folder)
    tool = Answer(tool_uses=[ToolUse("Bash", {"command": removed})])
    async with ScriptedMessagesAPI(Rule([tool, "Done."], tools=True)) as api:
        session = session_in(tmp_path, api)
        events = list[Event]()
        with pytest.raises(OutboxLost, match="vanished while the session ran"):
            async with asyncio.timeout(PATIENCE):
                async for event in session.execute("Clean up."):
                    events.append(event)
    assert isinstance(events[-1], PhaseChanged)
    assert (events[-1].phase, events[-1].reason) == (Phase.FAILED, "OutboxLost")
    assert session.status().phase is Phase.FAILED


async def test_an_outbox_that_is_lost_while_nothing_happens_is_noticed(
    tmp_path: Path,
) -> None:
    async with ScriptedMessagesAPI(Rule("Yes.", tools=True)) as api:
        session = session_in(tmp_path, api, interactive=True)
        task = asyncio.create_task(collect(session, "Hi."))
        await until(EventReader(session.folder.outbox), TurnResult)
        session.folder.outbox.unlink()
        with pytest.raises(OutboxLost):
            await asyncio.wait_for(task, PATIENCE)


async def test_a_folder_that_is_moved_while_nothing_happens_is_noticed(
    tmp_path: Path,
) -> None:
    async with ScriptedMessagesAPI(Rule("Yes.", tools=True)) as api:
        session = session_in(tmp_path, api, interactive=True)
        task = asyncio.create_task(collect(session, "Hi."))
        await until(EventReader(session.folder.outbox), TurnResult)
        session.folder.path.rename(tmp_path / "moved")
        with pytest.raises(OutboxLost, match="vanished while the session ran"):
            await asyncio.wait_for(task, PATIENCE)
    assert session.status().phase is Phase.FAILED
