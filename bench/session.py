"""Sessions: what they add to the bare Agent SDK, to a plain append, and to a file that is polled."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient

from midwatch.session.agentic_session import AsyncAgenticSession
from midwatch.session.events import (
    Event,
    Message,
    Phase,
    PhaseChanged,
    Started,
    TurnResult,
    TurnStarted,
)
from midwatch.session.log import EventLog, EventReader
from midwatch.testing.fakes import KEY, post, session_in
from midwatch.testing.messages_api import Rule, ScriptedMessagesAPI

from .report import Row, against_bound, against_floor, paired, show

ROUNDS = 7
EVENTS = 100_000
SAMPLE = 2_000
MESSAGES = 21


async def run() -> Sequence[Row]:
    """Return the rows. Takes about a minute."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        return [*await _start(root), *_log(root), await _mailbox(root)]


# ------------------------------------------------------------------ the first event


async def _start(root: Path) -> list[Row]:
    numbers = iter(range(1000))
    async with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:

        async def ours() -> float:
            session = _session(root, api, next(numbers))
            began = time.perf_counter()
            return await _first_event(session, began)

        async def bare() -> float:
            return await _bare(root / f"b{next(numbers)}", api.base_url)

        async def warm() -> float:
            session = _session(root, api, next(numbers))
            await session.prepare()
            return await _first_event(session, time.perf_counter())

        mine, floor = await paired(ours, bare, ROUNDS)
        ready = [await warm() for _ in range(ROUNDS)]
    return [
        against_floor(
            "session: first event / bare SDK", mine * 1000, floor * 1000, 1.1
        ),
        against_bound(
            "session: first event, prepared program",
            statistics.median(ready) * 1000,
            100,
            "ms",
        ),
    ]


def _session(root: Path, api: ScriptedMessagesAPI, number: int) -> AsyncAgenticSession:
    folder = root / f"s{number}"
    folder.mkdir()
    return session_in(folder, api)


async def _first_event(session: AsyncAgenticSession, began: float) -> float:
    """Return the seconds until the first output of the program; events of Midwatch do not count."""
    seconds = 0.0
    async for event in session.execute("Hello."):
        if isinstance(event, Started):
            seconds = time.perf_counter() - began
    return seconds


async def _bare(root: Path, base_url: str) -> float:
    """Return options that match those of Midwatch where they cost time, with a new folder for the program."""
    config = root / "config"
    config.mkdir(parents=True)
    env = {
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": base_url,
        "CLAUDE_CONFIG_DIR": str(config),
        "HOME": str(root),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    options = ClaudeAgentOptions(
        cwd=root,
        env=env,
        system_prompt={"type": "preset", "preset": "claude_code"},
        permission_mode="acceptEdits",
        setting_sources=[],
        strict_mcp_config=True,
        model="claude-sonnet-5-5",
    )
    began = time.perf_counter()
    seconds = 0.0
    async with ClaudeSDKClient(options) as client:
        await client.query("Hello.")
        async for _ in client.receive_response():
            seconds = seconds or time.perf_counter() - began
    return seconds


# ------------------------------------------------------------------ the event log


def _log(root: Path) -> list[Row]:
    """Measure appends while a reader reads every event."""
    path = root / "outbox.jsonl"
    text = "All tests pass now; the lock was never released on the error path. " * 10
    log = EventLog(path)
    first = _appends(log, EventReader(path), text)
    log.close()
    with path.open("a") as file:  # what happens in between does not count
        for seq in range(log.last_seq + 1, EVENTS - SAMPLE + 1):
            line = {"type": "message", "seq": seq, "at": "2026-01-01T00:00:00Z"}
            file.write(json.dumps({**line, "text": text}) + "\n")
    log = EventLog(path)
    last = _appends(log, EventReader(path, log.last_seq), text)
    log.close()
    return [
        against_floor("outbox: 100,000th append / first", last, first, 1.25, "µs"),
        against_bound("outbox: append and read one event", last, 200, "µs"),
    ]


def _appends(log: EventLog, reader: EventReader, text: str) -> float:
    """Return the microseconds per event, the median of ten parts."""
    pieces = []
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(SAMPLE // 10):
            log.append(Message(text=text))
            reader.poll()
        pieces.append((time.perf_counter() - began) / (SAMPLE // 10) * 1e6)
    return statistics.median(pieces)


# ------------------------------------------------------------------ the mailbox


async def _mailbox(root: Path) -> Row:
    """Measure the time from the end of the write to the event that the program has received the message."""
    folder = root / "mail"
    folder.mkdir()
    waits = []
    async with ScriptedMessagesAPI(Rule("Yes.", tools=True)) as api:
        session = session_in(folder, api, interactive=True)
        posted = 0.0
        async for event in session.execute():
            if isinstance(event, TurnStarted):
                waits.append(time.perf_counter() - posted)
            if len(waits) == MESSAGES:
                session.stop()
            elif isinstance(event, TurnResult) or _running(event):
                # A pause in step with the polls would make them look faster than they are.
                await asyncio.sleep(0.02 + random.uniform(0, 0.03))
                posted = time.perf_counter()
                post(session, "user_message", "Hello.", f"m{len(waits)}")
    median = statistics.median(waits) * 1000
    return against_bound("mailbox: median latency of a message", median, 50, "ms")


def _running(event: Event) -> bool:
    return isinstance(event, PhaseChanged) and event.phase is Phase.RUNNING


if __name__ == "__main__":
    show(asyncio.run(run()), as_json=False)
