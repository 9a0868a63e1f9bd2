"""The inbox of a session: a file that anybody appends a line to.

One JSON object a line: ``{"id": "…", "type": "…", "content": …, "timestamp": "…"}``. A line counts when
its newline is there. Types: `user_message` (content: the text), `interrupt`, `end_session`,
`permission_response` (content: ``{"request_id": "…", "allow": true, "message": "…"}``). A message whose
text is just `/end` ends the session as well.

`Inbox.poll` reads from the cursor on; `commit` moves the cursor, once what was read is in the outbox.
So a crash in between makes the lines come again, and their ids, which the outbox has, keep them
from acting twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from midwatch.session.events import MailboxRejected, Prompt
from midwatch.session.log import (
    Journal,
    SessionFolder,
    append_line,
    map_disk_error,
    prompt_uuid,
    replace_json,
)

POLL_INTERVAL = 0.02
"""Seconds between two looks at the inbox. One look is a `stat`: some 2 µs, so 0.01 % of a core."""
MAX_LINE = 500_000
"""Bytes of one line. More is no message for a model, and would not fit the outbox."""
_CHUNK = 4_000_000
_MAX_ID = 200
_BEGINNING = 200
_TAIL = 64  # bytes before the cursor that tell whether the file is still the same

Kind = Literal["user_message", "interrupt", "permission_response", "end_session"]
KINDS: tuple[Kind, ...] = (
    "user_message",
    "interrupt",
    "permission_response",
    "end_session",
)


@dataclass(frozen=True, slots=True)
class Mail:
    """A valid message. `text` is that of a user message."""

    id: str
    kind: Kind
    offset: int
    text: str = ""
    request_id: str = ""
    allow: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line that is no message, and why; `raw` is its beginning."""

    offset: int
    why: str
    raw: bytes


def parse_mail(line: bytes, offset: int) -> Mail | Rejected:
    """What a line says."""
    if len(line) > MAX_LINE:
        return Rejected(offset, f"longer than {MAX_LINE} bytes", line)
    try:
        data = json.loads(line.decode())
    except UnicodeDecodeError:
        return Rejected(offset, "not UTF-8", line)
    except (ValueError, RecursionError):
        return Rejected(offset, "not JSON", line)
    try:
        return _mail(data, offset)
    except ValueError as error:
        return Rejected(offset, str(error), line)


def _mail(data: Any, offset: int) -> Mail:
    if not isinstance(data, dict):
        raise ValueError("not an object")
    id, kind, content = data.get("id"), data.get("type"), data.get("content")
    if not isinstance(id, str) or not 0 < len(id) <= _MAX_ID:
        raise ValueError(f"id must be a text of 1 to {_MAX_ID} characters")
    if id.startswith("call/"):
        raise ValueError("an id that begins with call/ is the session's own")
    if kind not in KINDS:
        raise ValueError(f"type must be one of {', '.join(KINDS)}")
    if kind == "user_message":
        if not isinstance(content, str) or not content.strip():
            raise ValueError("content must be a text")
        if content.strip() == "/end":
            return Mail(id, "end_session", offset)
        return Mail(id, kind, offset, text=content)
    if kind == "permission_response":
        return _permission(id, content, offset)
    return Mail(id, kind, offset)


def _permission(id: str, content: Any, offset: int) -> Mail:
    said = content if isinstance(content, Mapping) else {}
    asked, allow = said.get("request_id"), said.get("allow")
    if not isinstance(asked, str) or not isinstance(allow, bool):
        raise ValueError(
            "content must have request_id (a text) and allow (true or false)"
        )
    text = said.get("message")
    return Mail(
        id,
        "permission_response",
        offset,
        text=text if isinstance(text, str) else "",
        request_id=asked,
        allow=allow,
    )


@dataclass(frozen=True, slots=True)
class _Cursor:
    offset: int = 0
    inode: int = 0
    tail: str = ""


class Inbox:
    """Reads new lines. A file that was truncated or replaced is read again from its beginning."""

    def __init__(self, path: Path, cursor: Path) -> None:
        self.path = path
        self._cursor_path = cursor
        self._cursor = _load_cursor(cursor)
        self._next = self._cursor
        self._read_to = self._cursor.offset
        self.restarted = False
        """Whether the last `poll` found another file and began anew."""

    def look(self) -> tuple[int, int, int] | None:
        """What tells one state of the file from the next; one `stat`. None without a file."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def poll(self) -> list[Mail | Rejected]:
        """The lines behind the cursor that are complete. `commit` when they are taken care of."""
        self.restarted = False
        try:
            with self.path.open("rb") as file:
                self._check_same(file.fileno())
                file.seek(self._read_to)
                found = list(self._lines(file))
                self._next = _Cursor(
                    self._read_to,
                    os.fstat(file.fileno()).st_ino,
                    _tail(file.fileno(), self._read_to),
                )
                return found
        except FileNotFoundError:
            return []
        except OSError as error:
            raise map_disk_error(error, self.path) from error

    def all(self) -> list[Mail | Rejected]:
        """Every complete line of the file, whatever the cursor says."""
        return Inbox(self.path, self.path.with_name("no cursor")).poll()

    def commit(self) -> None:
        """Move the cursor behind all that was read; atomic."""
        if self._next != self._cursor:
            self._cursor = self._next
            replace_json(self._cursor_path, asdict(self._cursor))

    def _check_same(self, file: int) -> None:
        now, before = os.fstat(file), self._cursor
        known = before.offset == 0 or (
            now.st_ino == before.inode
            and now.st_size >= before.offset
            and _tail(file, before.offset) == before.tail
        )
        if not known:
            self._cursor, self._read_to, self.restarted = _Cursor(), 0, True

    def _lines(self, file: Any) -> Iterator[Mail | Rejected]:
        """Complete lines from here on; a long one is never held in memory whole."""
        while line := file.readline(_CHUNK):
            offset, length = self._read_to, len(line)
            while not line.endswith(b"\n"):
                rest = file.readline(_CHUNK)
                if not rest:
                    return
                length += len(rest)
                line = line[:_CHUNK] + rest[-1:] if rest.endswith(b"\n") else line
            self._read_to = offset + length
            if line.strip():
                yield parse_mail(line.rstrip(b"\r\n"), offset)


def _tail(file: int, offset: int) -> str:
    start = max(0, offset - _TAIL)
    return hashlib.sha256(os.pread(file, offset - start, start)).hexdigest()


def _load_cursor(path: Path) -> _Cursor:
    """The stored cursor; the beginning where there is none that makes sense."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return _Cursor(int(data["offset"]), int(data["inode"]), str(data["tail"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _Cursor()


def rejected_line(rejected: Rejected) -> bytes:
    """What `inbox.rejected.jsonl` keeps of a line: why, where, and how it begins."""
    beginning = rejected.raw[:MAX_LINE].decode("utf-8", "replace")
    data = {"offset": rejected.offset, "why": rejected.why, "line": beginning}
    return json.dumps(data, ensure_ascii=False).encode() + b"\n"


def beginning(rejected: Rejected) -> str:
    return rejected.raw[:_BEGINNING].decode("utf-8", "replace")


def write_mail(
    inbox: Path, *, id: str, kind: Kind, content: Any, timestamp: str
) -> None:
    """Append one message: what every writer of an inbox does."""
    message = {"id": id, "type": kind, "content": content, "timestamp": timestamp}
    line = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    append_line(inbox, line)


# ------------------------------------------------------------ post
# The mailbox at work: watches the inbox, accepts what is in it, and keeps aside what is no message.

_AT_ONCE = 100  # lines between two chances for everything else


class InboxConsumer:
    """The inbox of one running session."""

    def __init__(self, session_id: str, folder: SessionFolder) -> None:
        self._session_id = session_id
        self._folder = folder
        self._inbox = Inbox(folder.inbox, folder.cursor)
        self._texts: dict[str, str] = {}

    async def watch(self, arrived: Callable[[], None]) -> None:
        """Call `arrived` whenever the inbox has changed; runs until it is cancelled."""
        last = None
        while True:
            now = self._inbox.look()
            if now != last:
                last = now
                arrived()
            await asyncio.sleep(POLL_INTERVAL)

    async def read(self, journal: Journal, act: Callable[[Mail], None]) -> None:
        """Accept what is new: log it, act on commands, then move the cursor."""
        found = self._inbox.poll()
        if self._inbox.restarted:
            journal.ledger.rejected.clear()
        for number, item in enumerate(found):
            if isinstance(item, Rejected):
                self._reject(item, journal)
            elif item.id not in journal.ledger.known:
                self._accept(item, journal, act)
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
        self._inbox.commit()

    def text_of(self, prompt: Prompt) -> str:
        """What was written, as it was written: the outbox has it redacted."""
        return self._texts.pop(prompt.id, prompt.text)

    def remember(self, ids: set[str]) -> None:
        """Look up the texts of messages that an earlier run accepted."""
        for item in self._inbox.all():
            if isinstance(item, Mail) and item.id in ids:
                self._texts.setdefault(item.id, item.text)

    def _accept(
        self, mail: Mail, journal: Journal, act: Callable[[Mail], None]
    ) -> None:
        if mail.kind != "user_message":
            act(mail)
            return
        self._texts[mail.id] = mail.text
        journal.emit(
            Prompt(
                id=mail.id,
                uuid=prompt_uuid(self._session_id, mail.id),
                text=mail.text,
                source="inbox",
            )
        )

    def _reject(self, item: Rejected, journal: Journal) -> None:
        if item.offset in journal.ledger.rejected:
            return
        append_line(self._folder.rejected, rejected_line(item))
        journal.emit(
            MailboxRejected(offset=item.offset, why=item.why, beginning=beginning(item))
        )
