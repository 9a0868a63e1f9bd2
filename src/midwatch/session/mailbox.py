"""The mailbox of a session: `inbox.jsonl`, which any program appends lines to.

Each line is one JSON object: ``{"id": "…", "type": "…", "content": …, "timestamp": "…"}``. A line counts
once its newline is written. Types: `user_message` (content: the text), `interrupt`, `end_session`,
`permission_response` (content: ``{"request_id": "…", "allow": true, "message": "…"}``). A message whose
text is only `/end` also ends the session.

`Mailbox` writes messages. `Inbox.poll` reads the lines after the cursor, and `commit` moves the cursor once they
are in the outbox. After a crash in between, the lines are read again and ignored, because the outbox has their
ids. `InboxConsumer` does this for a running session.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from midwatch.errors import Conflict
from midwatch.lifecycle import SystemClock
from midwatch.session.events import MailboxRejected, PermissionRequest, Prompt
from midwatch.session.log import (
    Journal,
    SessionFolder,
    append_line,
    map_disk_error,
    prompt_uuid,
    read_events,
    replace_json,
)
from midwatch.session.status import SessionStatus, fold

POLL_INTERVAL = 0.02
"""Seconds between two checks of the inbox. A check is one `stat`, about 2 µs: 0.01 % of a core."""
MAX_LINE = 500_000
"""Bytes of one line. The outbox could not hold a longer one."""
_CHUNK = 4_000_000
_MAX_ID = 200
_BEGINNING = 200
_TAIL = 64  # bytes before the cursor whose hash identifies the file

Kind = Literal["user_message", "interrupt", "permission_response", "end_session"]
KINDS: tuple[Kind, ...] = (
    "user_message",
    "interrupt",
    "permission_response",
    "end_session",
)


@dataclass(frozen=True, slots=True)
class Mail:
    """A valid message. `text` is that of a user message, or the reason of a permission response."""

    id: str
    kind: Kind
    offset: int
    text: str = ""
    request_id: str = ""
    allow: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line that is not a valid message, and why; `raw` is its beginning."""

    offset: int
    why: str
    raw: bytes


def parse_mail(line: bytes, offset: int) -> Mail | Rejected:
    """Return the message in a line, or why it has none."""
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
        raise ValueError("an id that begins with call/ is reserved for the session")
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
    answer = content if isinstance(content, Mapping) else {}
    request_id, allow = answer.get("request_id"), answer.get("allow")
    if not isinstance(request_id, str) or not isinstance(allow, bool):
        raise ValueError(
            "content must have request_id (a text) and allow (true or false)"
        )
    text = answer.get("message")
    return Mail(
        id,
        "permission_response",
        offset,
        text=text if isinstance(text, str) else "",
        request_id=request_id,
        allow=allow,
    )


@dataclass(frozen=True, slots=True)
class _Cursor:
    offset: int = 0
    inode: int = 0
    tail: str = ""


class Inbox:
    """Reads the new lines of an inbox. A truncated or replaced file is read from its beginning."""

    def __init__(self, path: Path, cursor: Path) -> None:
        self.path = path
        self._cursor_path = cursor
        self._cursor = _load_cursor(cursor)
        self._next = self._cursor
        self._read_to = self._cursor.offset
        self.restarted = False
        """Whether the last `poll` found another file and read it from its beginning."""

    def state(self) -> tuple[int, int, int] | None:
        """Return inode, size and mtime (ns) of the file; None without a file."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def poll(self) -> list[Mail | Rejected]:
        """Return the complete lines after the cursor. Call `commit` once they are processed.

        Raises FolderUnusable for a file that cannot be read.
        """
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
        """Return every complete line of the file, also those before the cursor."""
        return Inbox(self.path, self.path.with_name("no cursor")).poll()

    def commit(self) -> None:
        """Move the cursor after all that was read, atomically. Raises DiskFull, FolderUnusable."""
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
        """Yield the complete lines from here on. Only a part of a long line is kept in memory."""
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
    """Return the stored cursor, or one at the beginning if there is no valid one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return _Cursor(int(data["offset"]), int(data["inode"]), str(data["tail"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _Cursor()


def rejected_line(rejected: Rejected) -> bytes:
    """Return the line of `inbox.rejected.jsonl`: why, where, and the beginning of the text."""
    text = rejected.raw[:MAX_LINE].decode("utf-8", "replace")
    data = {"offset": rejected.offset, "why": rejected.why, "line": text}
    return json.dumps(data, ensure_ascii=False).encode() + b"\n"


def write_mail(
    inbox: Path, *, id: str, kind: Kind, content: Any, timestamp: str
) -> None:
    """Append one message to an inbox. Raises DiskFull, FolderUnusable.

    Args:
        inbox: The file; it is created if it is missing.
        id: Any text of 1 to 200 characters; a second message of the same id is ignored.
        kind: The type of the message.
        content: What the type needs, as the module describes it.
        timestamp: ISO 8601, for people.
    """
    message = {"id": id, "type": kind, "content": content, "timestamp": timestamp}
    line = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    append_line(inbox, line)


class Mailbox:
    """Writes messages to a session, also to one that does not run. Every method returns the id of its message.

    All of them raise DiskFull and FolderUnusable.
    """

    def __init__(self, session_id: str, folder: SessionFolder) -> None:
        self._session_id = session_id
        self._folder = folder

    def send(self, text: str) -> str:
        """Send a text to Claude. Raises Conflict for one that is too long."""
        if len(text.encode("utf-8", "replace")) > MAX_LINE // 2:
            raise Conflict(
                f"the message is longer than {MAX_LINE // 2} bytes",
                hint="put it into a file",
            )
        return self._write("user_message", text)

    def interrupt(self) -> str:
        """End the current turn, not the session."""
        return self._write("interrupt", None)

    def end(self) -> str:
        """End the session once the earlier messages are answered."""
        return self._write("end_session", None)

    def answer(self, request_id: str | None, *, allow: bool, why: str = "") -> str:
        """Allow or deny a permission request; None is the one that is pending.

        Raises Conflict if `request_id` is None and not exactly one request is pending.
        """
        content = {
            "request_id": request_id or self._only_request(),
            "allow": allow,
            "message": why,
        }
        return self._write("permission_response", content)

    def pending(self) -> tuple[PermissionRequest, ...]:
        """Return the permission requests that wait for an answer."""
        status = fold(SessionStatus(), read_events(self._folder.outbox))
        return status.pending_permissions

    def _only_request(self) -> str:
        pending = self.pending()
        if not pending:
            raise Conflict(
                f"session {self._session_id} has no pending permission request"
            )
        if len(pending) > 1:
            names = ", ".join(f"{one.request_id} ({one.tool})" for one in pending)
            raise Conflict(
                f"session {self._session_id} has {len(pending)} pending permission requests",
                hint=f"name one of {names}",
            )
        return pending[0].request_id

    def _write(self, kind: Kind, content: Any) -> str:
        id, now = uuid.uuid4().hex, SystemClock().now()
        write_mail(
            self._folder.inbox,
            id=id,
            kind=kind,
            content=content,
            timestamp=now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        )
        return id


_BATCH = 100  # lines until other tasks may run


class InboxConsumer:
    """Reads the inbox of a running session: accepts its messages and records invalid lines."""

    def __init__(self, session_id: str, folder: SessionFolder) -> None:
        self._session_id = session_id
        self._folder = folder
        self._inbox = Inbox(folder.inbox, folder.cursor)
        self._texts: dict[str, str] = {}

    async def watch(self, arrived: Callable[[], None]) -> None:
        """Call `arrived` whenever the inbox has changed; runs until it is cancelled."""
        last = None
        while True:
            now = self._inbox.state()
            if now != last:
                last = now
                arrived()
            await asyncio.sleep(POLL_INTERVAL)

    async def read(self, journal: Journal, act: Callable[[Mail], None]) -> None:
        """Log the new messages, act on commands, then move the cursor."""
        found = self._inbox.poll()
        if self._inbox.restarted:
            journal.ledger.rejected.clear()
        for number, item in enumerate(found):
            if isinstance(item, Rejected):
                self._reject(item, journal)
            elif item.id not in journal.ledger.known:
                self._accept(item, journal, act)
            if number % _BATCH == _BATCH - 1:
                await asyncio.sleep(0)
        self._inbox.commit()

    def text_of(self, prompt: Prompt) -> str:
        """Return the text of a prompt as written; the outbox has it redacted."""
        return self._texts.pop(prompt.id, prompt.text)

    def load_texts(self, ids: set[str]) -> None:
        """Read the texts of messages that an earlier run accepted."""
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
        start = item.raw[:_BEGINNING].decode("utf-8", "replace")
        journal.emit(MailboxRejected(offset=item.offset, why=item.why, beginning=start))
