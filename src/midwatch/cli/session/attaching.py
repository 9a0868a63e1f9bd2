"""Following a session's outbox while writing into its inbox: a chat over two files."""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
import time
from datetime import UTC, datetime

from midwatch.cli.session.letters import pending_request, write
from midwatch.cli.session.places import Place
from midwatch.cli.session.telling import Teller, aside
from midwatch.errors import Conflict
from midwatch.session.events import PhaseChanged
from midwatch.session.log import EventReader

_CHUNK = 65_536
_INTERVAL = 0.05
"""Seconds between two looks at the outbox."""


def follow(place: Place, teller: Teller, after: int) -> None:
    """Tell every event behind `after` until the run ends or the runner is gone."""
    reader = EventReader(place.folder.outbox, after)
    said = _input_lines()
    ended = False
    while True:
        running = place.running  # before the events: what comes last is still read
        for event in reader.poll():
            teller.event(event)
            if isinstance(event, PhaseChanged):
                ended = event.phase.terminal
        _say(place, said)
        if not running:
            break
        time.sleep(_INTERVAL)
    if not ended:
        aside(
            f"no runner works on session {place.id}: `midwatch session list` says why"
        )


async def chat(place: Place) -> None:
    """Say to a session what is typed, until this is cancelled."""
    said = _input_lines()
    while True:
        _say(place, said)
        await asyncio.sleep(_INTERVAL)


def _input_lines() -> queue.SimpleQueue[str]:
    """Lines of standard input as they come; the thread that waits for them ends with the process."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    file = sys.stdin.fileno()

    def read() -> None:
        # Not through `sys.stdin`: Python cannot end while a thread holds its lock.
        rest = b""
        while chunk := os.read(file, _CHUNK):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                lines.put(line.decode("utf-8", "replace"))

    threading.Thread(target=read, name="stdin", daemon=True).start()
    return lines


def _say(place: Place, said: queue.SimpleQueue[str]) -> None:
    while not said.empty():
        line = said.get()
        if line.strip():
            try:
                _write(place, line)
            except Conflict as error:
                aside(error.line())


def _write(place: Place, line: str) -> None:
    now = datetime.now(UTC)
    command, _, rest = line.strip().partition(" ")
    if command in ("/approve", "/deny"):
        asked = rest.strip() or pending_request(place)
        content = {"request_id": asked, "allow": command == "/approve"}
        write(place, "permission_response", content, now)
    elif line.strip() == "/interrupt":
        write(place, "interrupt", None, now)
    else:  # a message that is /end ends the session, by the rule of the mailbox
        write(place, "user_message", line, now)
