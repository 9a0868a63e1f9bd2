"""Sessions: what they add to the bare Agent SDK and program, to a plain append, and to a file that is polled."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from midwatch.session.agentic_session import AsyncAgenticSession
from midwatch.session.claude_code import find_program
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
from midwatch.session.options import SessionOptions
from midwatch.testing.fakes import KEY, make_repository, post, run_git, session_in
from midwatch.testing.messages_api import Rule, ScriptedMessagesAPI

from ._meter import Cost, command_cost
from .report import (
    Round,
    Row,
    Spread,
    against_bound,
    against_floor,
    compared,
    paired,
    sized,
    turns,
)

ROUNDS = 7
EVENTS = sized(100_000, 10_000)
SAMPLE = 2_000
MESSAGES = sized(21, 5)


async def run() -> Sequence[Row]:
    """Return the rows. Takes about a minute."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        return [
            *await _start(root),
            *await _command(root),
            *_log(root),
            await _mailbox(root),
        ]


# ------------------------------------------------------------------ the first event


async def _start(root: Path) -> list[Row]:
    folders = (root / f"first-{number}" for number in itertools.count())
    async with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:

        def side(name: str) -> Round:
            async def once() -> float:
                folder = next(folders)
                folder.mkdir()
                module = (sys.executable, "-m", "bench._first_event")
                return await _printed(
                    Path.cwd(), None, *module, name, str(folder), api.base_url
                )

            return once

        async def prepared() -> float:
            folder = next(folders)
            folder.mkdir()
            session = session_in(folder, api)
            await session.prepare()
            return await _first_event(session, time.perf_counter())

        mine, floor = await paired(side("session"), side("query"), ROUNDS)
        ready = Spread([await prepared() for _ in range(sized(ROUNDS, 2))])
    return [
        against_floor(
            "session: first event / bare query()", mine * 1000, floor * 1000, 1.1
        ),
        against_bound(
            "session: first event, prepared program",
            ready * 1000,
            100,
            "ms",
        ),
    ]


async def _first_event(session: AsyncAgenticSession, began: float) -> float:
    """Return the seconds until the first output of the program; events of Midwatch do not count."""
    seconds = 0.0
    async for event in session.execute("Hello."):
        if isinstance(event, Started):
            seconds = time.perf_counter() - began
    return seconds


async def _printed(cwd: Path, env: Mapping[str, str] | None, *command: str) -> float:
    """Run a command in a process session of its own. Return the number that it prints."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    said, errors = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}: {errors!r}")
    return float(said)


# ------------------------------------------------------------------ the command


async def _command(root: Path) -> list[Row]:
    """`midwatch session run` with a warm mirror against `claude -p` in a clone that is there: processor time of all
    processes, with their start. Without a sandbox, and with the program's sandbox on both sides.
    """
    desk = root / "desk"
    desk.mkdir()
    remote = make_repository(root / "remote", {"main.py": "print('hi')\n"})
    clone = root / "clone"
    run_git(root, "clone", "-q", str(remote), str(clone))
    async with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:
        rows = await _command_rows(desk, clone, remote, api, sandbox=False)
        if all(map(shutil.which, ("bwrap", "socat"))):
            rows += await _command_rows(desk, clone, remote, api, sandbox=True)
    return rows


async def _command_rows(
    desk: Path, clone: Path, remote: Path, api: ScriptedMessagesAPI, *, sandbox: bool
) -> list[Row]:
    (desk / "midwatch.yaml").write_text(
        f"sessions:\n  folder: {desk}/state\n  cache_folder: {desk}/cache\n"
        f"  sandbox: '{'on' if sandbox else 'off'}'\n"
    )
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(desk),
        "LANG": "C.UTF-8",
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": api.base_url,
    }
    quiet = {
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    midwatch = str(Path(sys.executable).with_name("midwatch"))
    asked = ["session", "run", "--prompt", "Hello.", "--repo", str(remote)]
    program = [
        str(find_program(SessionOptions())),
        "-p",
        "Hello.",
        "--model",
        "claude-sonnet-5-5",
    ]
    if sandbox:
        wanted = {"enabled": True, "failIfUnavailable": True}
        program += ["--settings", json.dumps({"sandbox": wanted})]
    configs = (desk / f"config-{sandbox}-{number}" for number in itertools.count())

    async def ours() -> Cost:
        return await command_cost(midwatch, *asked, cwd=desk, env=env)

    async def bare() -> Cost:  # a new session has a new folder of the program too
        config = {"CLAUDE_CONFIG_DIR": str(next(configs))}
        return await command_cost(*program, cwd=clone, env={**env, **quiet, **config})

    samples = await turns({"session run": ours, "claude -p": bare}, ROUNDS)
    name = "session run, with a sandbox" if sandbox else "session run"
    return compared(name, samples, {"claude -p": 1.5})


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
        against_floor(f"outbox: {EVENTS:,}th append / first", last, first, 1.25, "µs"),
        against_bound("outbox: append and read one event", last, 200, "µs"),
    ]


def _appends(log: EventLog, reader: EventReader, text: str) -> Spread:
    """Return the microseconds per event, of ten parts."""
    pieces = []
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(SAMPLE // 10):
            log.append(Message(text=text))
            reader.poll()
        pieces.append((time.perf_counter() - began) / (SAMPLE // 10) * 1e6)
    return Spread(pieces)


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
    return against_bound(
        "mailbox: latency of a message", Spread(waits) * 1000, 50, "ms"
    )


def _running(event: Event) -> bool:
    return isinstance(event, PhaseChanged) and event.phase is Phase.RUNNING
