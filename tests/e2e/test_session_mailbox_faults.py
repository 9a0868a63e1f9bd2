"""What can happen to the two files while a session with the real claude program runs."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from midwatch.session.agentic_session import AsyncAgenticSession
from midwatch.session.events import (
    Command,
    Event,
    MailboxRejected,
    Phase,
    PhaseChanged,
    Prompt,
    TurnResult,
)
from midwatch.session.log import EventReader, read_events
from midwatch.session.mailbox import Inbox
from midwatch.testing.fakes import collect, only, post, session_in
from midwatch.testing.messages_api import Rule, ScriptedMessagesAPI

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
