"""Talking to a session from a terminal: typed lines, slash commands, and following its events."""

from __future__ import annotations

import asyncio
import os
import queue
import re
import sys
import threading
import time

from midwatch.cli.session.view import EventPrinter, print_notice
from midwatch.errors import Conflict
from midwatch.session.errors import DiskFull, FolderUnusable
from midwatch.session.events import Event, PhaseChanged
from midwatch.session.log import EventReader
from midwatch.session.mailbox import Kind, Mailbox
from midwatch.session.records import FolderRecords, SessionPaths

COMMANDS = {
    "/interrupt": "ends the current turn, not the session",
    "/approve": "[REQUEST] allows the tool call that Claude asks permission for",
    "/deny": "[REQUEST] denies it",
    "/end": "ends the session once the earlier messages are answered",
    "/help": "shows this",
}
_COMMAND = re.compile(r"(/[^\s/]*)(?:[ \t]+(.*))?")
_WITH_ARGUMENT = ("/approve", "/deny")


def delivery_line(paths: SessionPaths) -> str:
    """Return whether a message that was just written will be read, and if not, the command to read it."""
    spec = FolderRecords(paths.folder.path).load_spec()
    if paths.running and (spec is None or spec.interactive):
        return "written"
    how = f"`midwatch session resume {paths.id} --interactive`"
    if paths.running:
        return f"written, but the session does not read its mailbox; {how} does"
    return f"written, but the session does not run; {how} reads it"


_CHUNK = 65_536
_INTERVAL = 0.05
"""Seconds between two checks of the outbox and of standard input."""


def follow(paths: SessionPaths, printer: EventPrinter, after: int) -> None:
    """Print every event after `after` and send typed lines, until the session has no runner."""
    reader = EventReader(paths.folder.outbox, after)
    typed = _input_lines()
    ended, notices = False, set[str]()
    while True:
        running = paths.running  # before the events: the last ones are still printed
        for event in _read(reader, running, notices):
            printer.event(event)
            if isinstance(event, PhaseChanged):
                ended = event.phase.terminal
        _send_typed(paths, typed)
        if not running:
            break
        time.sleep(_INTERVAL)
    if not ended:
        print_notice(
            f"session {paths.id} has no runner; `midwatch session list` shows why"
        )


def _read(reader: EventReader, running: bool, notices: set[str]) -> list[Event]:
    """Return the next events. The runner of a session replaces an outbox that cannot be read; until then, say so once.

    Raises FolderUnusable if there is no runner.
    """
    try:
        return reader.poll()
    except FolderUnusable as error:
        if not running:
            raise
        if error.message not in notices:
            notices.add(error.message)
            print_notice(error.one_line())
        return []


async def chat(paths: SessionPaths) -> None:
    """Send typed lines to a session until cancelled."""
    typed = _input_lines()
    while True:
        _send_typed(paths, typed)
        await asyncio.sleep(_INTERVAL)


def _input_lines() -> queue.SimpleQueue[str]:
    """Return the queue of lines of standard input. Its thread ends with the process."""
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


def _send_typed(paths: SessionPaths, typed: queue.SimpleQueue[str]) -> None:
    mailbox = Mailbox(paths.id, paths.folder)
    while not typed.empty():
        line = typed.get()
        if line.strip():
            try:
                send_line(mailbox, line)
            except (Conflict, DiskFull, FolderUnusable) as error:
                for part in error.one_line().split("\n"):
                    print_notice(part)


# ------------------------------------------------------------------ slash commands


def send_line(mailbox: Mailbox, text: str) -> tuple[Kind, str]:
    """Carry out a slash command, or send a text to Claude. Return the type and the id of the message.

    A slash command is one line that begins with a slash and a word. A line that begins with a space is a text.

    Raises:
        Conflict: The command is not known, or cannot be carried out; nothing was sent.
    """
    found = _COMMAND.fullmatch(text.rstrip())
    if found is None:
        return "user_message", mailbox.send(text)
    command, argument = found[1], (found[2] or "").strip()
    if command not in COMMANDS or command == "/help":
        raise _help(command)
    if argument and (command not in _WITH_ARGUMENT or len(argument.split()) > 1):
        raise Conflict(
            f"{text.strip()[:200]!r} was not sent: {command} takes "
            + ("one request" if command in _WITH_ARGUMENT else "nothing after it"),
            hint="a line that begins with a space is sent to Claude as it is",
        )
    if command in _WITH_ARGUMENT:
        allow = command == "/approve"
        return "permission_response", mailbox.answer(argument or None, allow=allow)
    if command == "/interrupt":
        return "interrupt", mailbox.interrupt()
    return "end_session", mailbox.end()


def _help(command: str) -> Conflict:
    known = "; ".join(f"{name} {what}" for name, what in COMMANDS.items())
    start = (
        "" if command == "/help" else f"{command} is not a command and was not sent. "
    )
    return Conflict(
        f"{start}Commands: {known}",
        hint="a line that begins with a space is sent to Claude as it is",
    )
