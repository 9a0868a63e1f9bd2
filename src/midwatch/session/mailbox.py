"""The mailbox of a session: `inbox.jsonl`, which any program appends lines to.

It is read as a regular file only: another process may have put a named pipe, a link or a folder in its place. A session
says so with one event and goes on without it.

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
import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from midwatch.errors import Conflict
from midwatch.files import UnusableFile, open_regular
from midwatch.lifecycle import SystemClock
from midwatch.model import keepable
from midwatch.redaction import Redactor
from midwatch.session.errors import FolderUnusable
from midwatch.session.events import (
    MailboxRejected,
    Notice,
    PermissionRequest,
    Prompt,
)
from midwatch.session.log import (
    Journal,
    SessionFolder,
    append_line,
    map_disk_error,
    prompt_uuid,
    read_events,
    read_json,
    replace_json,
)
from midwatch.session.status import SessionStatus, fold

POLL_INTERVAL = 0.02
"""Seconds between two checks of the inbox. A check is one `stat`, about 2 µs: 0.01 % of a core."""
MAX_LINE = 500_000
"""Bytes of one line. The outbox could not hold a longer one."""
WHOLE_FILE = -1
"""The offset of a `MailboxRejected` that is about the whole inbox, not about a line."""
MAX_REJECTED = 10_000_000
"""Bytes of `inbox.rejected.jsonl`; rejected lines after that are in the outbox only."""
_KEPT = 50_000  # characters of a rejected line
_MARGIN = 4_000  # characters; no secret is longer
_AT_ONCE = 1_000_000  # bytes that one poll reads, in some 50 ms
_LONGEST = 100_000_000  # bytes of a line that may still get its newline
_AGAIN = 256_000_000  # bytes that are read again for texts of an earlier run
_RETRY = 1.0  # seconds until an inbox that could not be read is tried again
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
        self._long = b""
        self._long_size = 0
        self.restarted = False
        """Whether the last `poll` found another file and read it from its beginning."""
        self.more = False
        """Whether the last `poll` stopped before the end of the file."""

    def state(self) -> tuple[int, int, int, int] | None:
        """Return mode, inode, size and time of change (ns) of what is at the path; None without anything."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return None
        return found.st_mode, found.st_ino, found.st_size, found.st_ctime_ns

    def poll(self) -> list[Mail | Rejected]:
        """Return the next complete lines, those in a megabyte. Call `commit` once they are processed.

        Raises FolderUnusable for something else than a file, and for a file that cannot be read.
        """
        self.restarted = self.more = False
        try:
            with os.fdopen(open_regular(self.path), "rb") as file:
                self._check_same(file.fileno())
                file.seek(self._read_to + self._long_size)
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

    def from_beginning(self) -> Inbox:
        """Return a reader of the whole file, also of the lines before the cursor."""
        return Inbox(self.path, self.path.with_name("no cursor"))

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
        same = known and now.st_ino == self._next.inode
        if not same or now.st_size < self._read_to + self._long_size:
            self._long, self._long_size = b"", 0
        if self._long_size > _LONGEST:
            why = f"has a line of more than {_LONGEST} bytes: truncate it"
            raise UnusableFile(errno.EINVAL, why)

    def _lines(self, file: Any) -> Iterator[Mail | Rejected]:
        """Yield the complete lines from here on. Of a line that is too long, only the beginning is kept."""
        left = _AT_ONCE
        while left > 0:
            piece = file.readline(_AT_ONCE)
            whole = piece.endswith(b"\n")
            left -= len(piece)
            if self._long_size or (not whole and len(piece) > MAX_LINE):
                self._long = self._long or piece
                self._long_size += len(piece)
            if not whole:
                self.more = len(piece) == _AT_ONCE
                return
            offset, line = self._read_to, self._long or piece
            self._read_to += self._long_size or len(piece)
            self._long, self._long_size = b"", 0
            if line.strip():
                yield parse_mail(line.rstrip(b"\r\n"), offset)
        self.more = True


def _tail(file: int, offset: int) -> str:
    start = max(0, offset - _TAIL)
    return hashlib.sha256(os.pread(file, offset - start, start)).hexdigest()


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def _load_cursor(path: Path) -> _Cursor:
    """Return the stored cursor, or one at the beginning if there is no valid one."""
    try:
        data = read_json(path)
        return _Cursor(int(data["offset"]), int(data["inode"]), str(data["tail"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _Cursor()


def rejected_line(rejected: Rejected, shown: str) -> bytes:
    """Return the line of `inbox.rejected.jsonl`: why, where, and the beginning of the text."""
    data = {"offset": rejected.offset, "why": rejected.why, "line": shown}
    return keepable(json.dumps(data, ensure_ascii=False)).encode() + b"\n"


def redacted_beginning(raw: bytes, redactor: Redactor) -> str:
    """Return the beginning of a line without secrets, also without one that the cut would hide in part."""
    text = raw[: _KEPT + _MARGIN].decode("utf-8", "replace")
    if len(raw) <= _KEPT + _MARGIN:
        with contextlib.suppress(ValueError, RecursionError):
            # A secret may be written with escapes, which only JSON decodes.
            value = redactor.value(json.loads(text))
            text = json.dumps(value, ensure_ascii=False)
        return redactor.text(text)[:_KEPT]
    return redactor.text(text)[:-_MARGIN][:_KEPT]


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

    def __init__(
        self, session_id: str, folder: SessionFolder, redactor: Redactor
    ) -> None:
        self._session_id = session_id
        self._folder = folder
        self._redactor = redactor
        self._inbox = Inbox(folder.inbox, folder.cursor)
        self._texts: dict[str, str] = {}
        self._refused = ""
        self._notices: set[str] = set()

    async def watch(self, arrived: Callable[[], None]) -> None:
        """Call `arrived` whenever the inbox has changed; runs until it is cancelled.

        Also once in a while as long as it cannot be read: not every cause of that shows in the file.
        """
        last, waited = None, 0.0
        while True:
            now = self._inbox.state()
            if now != last or (self._refused and waited >= _RETRY):
                last, waited = now, 0.0
                arrived()
            await asyncio.sleep(POLL_INTERVAL)
            waited += POLL_INTERVAL

    async def read(self, journal: Journal, act: Callable[[Mail], None]) -> bool:
        """Log the next messages, act on commands, then move the cursor. Return whether there are more.

        Of an inbox that cannot be read, one event tells.
        """
        try:
            found = self._inbox.poll()
        except FolderUnusable as error:
            self._refuse(error.message, journal)
            return False
        self._refused = ""
        if self._inbox.restarted:
            journal.ledger.rejected.clear()
        for number, item in enumerate(found):
            if isinstance(item, Rejected):
                self._reject(item, journal)
                await asyncio.sleep(0)  # to redact 50 kB takes some 10 ms
            elif item.id not in journal.ledger.known:
                self._accept(item, journal, act)
            if number % _BATCH == _BATCH - 1:
                await asyncio.sleep(0)
        try:
            self._inbox.commit()
        except FolderUnusable as error:  # read again later, and ignored by their ids
            self._notice(error.message, journal)
        return self._inbox.more

    def text_of(self, prompt: Prompt) -> str:
        """Return the text of a prompt as written; the outbox has it redacted."""
        return self._texts.pop(prompt.id, prompt.text)

    async def load_texts(self, ids: set[str]) -> None:
        """Read the texts of messages that an earlier run accepted. Those that are gone stay redacted."""
        inbox, read = self._inbox.from_beginning(), 0
        while (ids - self._texts.keys()) and read < _AGAIN:
            try:
                found = inbox.poll()
            except FolderUnusable:
                return
            for item in found:
                if isinstance(item, Mail) and item.id in ids:
                    self._texts.setdefault(item.id, item.text)
            if not inbox.more:
                return
            read += _AT_ONCE
            await asyncio.sleep(0)

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
        shown = redacted_beginning(item.raw, self._redactor)
        self._keep(rejected_line(item, shown), journal)
        start = shown[:_BEGINNING]
        journal.emit(MailboxRejected(offset=item.offset, why=item.why, beginning=start))

    def _keep(self, line: bytes, journal: Journal) -> None:
        """Append to `inbox.rejected.jsonl`, up to its largest size."""
        path = self._folder.rejected
        try:
            if _size(path) + len(line) > MAX_REJECTED:
                full = f"{path} is full: further lines are not kept there"
                return self._notice(full, journal)
            append_line(path, line)
        except FolderUnusable as error:
            self._notice(error.message, journal)

    def _refuse(self, why: str, journal: Journal) -> None:
        """Log that the inbox cannot be read, once per cause."""
        if why != self._refused:
            self._refused = why
            journal.emit(MailboxRejected(offset=WHOLE_FILE, why=why))

    def _notice(self, text: str, journal: Journal) -> None:
        """Log a notice, once per run."""
        if text not in self._notices:
            self._notices.add(text)
            journal.emit(Notice(text=text))
