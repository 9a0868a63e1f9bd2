"""The outbox: an append-only file of events, one JSON object a line."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from midwatch.errors import MidwatchError
from midwatch.model import keepable
from midwatch.redaction import Redactor
from midwatch.session.errors import DiskFull, FolderUnusable, SessionBusy
from midwatch.session.events import (
    Command,
    Event,
    MailboxRejected,
    Phase,
    PhaseChanged,
    Prompt,
    TurnResult,
    TurnStarted,
    from_json,
    parse_line,
    to_json,
)
from midwatch.session.status import SessionStatus, fold
from midwatch.workspace.environment import default_home

MAX_LINE = 1_000_000
"""Bytes of one line; a longer event has its longest texts cut."""
_CHUNK = 65536
_OURS = ("type", "seq", "at")  # nobody else's text is in them
_CAPS = (200_000, 20_000, 2_000, 200, 20)  # characters of one text, tried in turn


class EventLog:
    """The one writer of an outbox. Every append is one write, whatever the length of the file.

    `seq` goes on where the file ends. A last line torn by a crash is closed with a newline, and every
    reader skips it. Raises DiskFull and FolderUnusable.
    """

    def __init__(
        self,
        path: Path,
        redactor: Redactor | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.path = path
        self._redactor = redactor or Redactor()
        self._now = now
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(path, flags, 0o600)
        except OSError as error:
            raise map_disk_error(error, path) from error
        self.last_seq, self._torn = _end_of(self._file)

    def append(self, event: Event) -> Event:
        """Log an event; returns it as it was logged, with its `seq` and time, redacted."""
        numbered = replace(event, seq=self.last_seq + 1, at=self._now())
        data = to_json(numbered)
        ours = {name: data.pop(name) for name in _OURS}
        data = {**ours, **self._redactor.value(data)}
        line = _line(data)
        self._write((b"\n" if self._torn else b"") + line)
        self.last_seq += 1
        return from_json(json.loads(line))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, data: bytes) -> None:
        try:
            while data:
                written = os.write(self._file, data)
                data = data[written:]
                self._torn = bool(data)
        except OSError as error:
            raise map_disk_error(error, self.path) from error


def _line(data: Any) -> bytes:
    """One line of at most MAX_LINE bytes."""
    line = _encoded(data)
    for cap in _CAPS:
        if len(line) <= MAX_LINE:
            break
        line = _encoded(_shortened(data, cap))
    return line


def _encoded(data: Any) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return keepable(text).encode() + b"\n"


def _shortened(value: Any, cap: int) -> Any:
    if isinstance(value, str) and len(value) > cap:
        return f"{value[:cap]}… [{len(value) - cap} characters cut]"
    if isinstance(value, list):
        return [_shortened(item, cap) for item in value[: max(cap, 20)]]
    if isinstance(value, dict):
        kept = list(value.items())[: max(cap, 20)]
        return {key[: max(cap, 40)]: _shortened(item, cap) for key, item in kept}
    return value


def _end_of(file: int) -> tuple[int, bool]:
    """The last sequence number in the file, and whether its last line lacks its newline."""
    end = os.fstat(file).st_size
    if end == 0:
        return 0, False
    torn = os.pread(file, 1, end - 1) != b"\n"
    tail = b""
    while end > 0:
        start = max(0, end - _CHUNK)
        tail = os.pread(file, end - start, start) + tail
        end = start
        lines = tail.split(b"\n")
        for line in reversed(lines if start == 0 else lines[1:]):
            event = parse_line(line)
            if event is not None:
                return event.seq, torn
        tail = lines[0]
    return 0, torn


def map_disk_error(error: OSError, path: Path) -> MidwatchError:
    """What the operating system says of a file of a session, as an error of ours."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(f"{path}: {error.strerror}")
    return FolderUnusable(f"{path}: {error.strerror}")


class EventReader:
    """Follows an outbox from the first event after `after`; `poll` gives what is new."""

    def __init__(self, path: Path, after: int = 0) -> None:
        self.path = path
        self.last_seq = after
        self._offset = _offset_after(path, after)

    def poll(self, limit: int = 10_000) -> list[Event]:
        """The next events, at most so many; none while there is nothing new or no file."""
        events: list[Event] = []
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                while len(events) < limit:
                    line = file.readline()
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    event = parse_line(line)
                    if event is not None and event.seq > self.last_seq:
                        self.last_seq = event.seq
                        events.append(event)
        except FileNotFoundError:
            return []
        return events


def read_events(path: Path, after: int = 0) -> Iterator[Event]:
    """The events of an outbox that come after sequence number `after`."""
    reader = EventReader(path, after)
    while events := reader.poll():
        yield from events


def _offset_after(path: Path, after: int) -> int:
    """A byte offset at the beginning of a line, at or before the first event after `after`.

    Sequence numbers only grow, so the file is searched by halves.
    """
    if after <= 0:
        return 0
    try:
        with path.open("rb") as file:
            low, high = 0, file.seek(0, os.SEEK_END)
            while high - low > _CHUNK:
                middle = (low + high) // 2
                file.seek(middle)
                file.readline()
                line_start, event = file.tell(), parse_line(file.readline())
                if event is None or event.seq > after or line_start >= high:
                    high = middle
                else:
                    low = line_start
            return low
    except FileNotFoundError:
        return 0


# ------------------------------------------------------------ files
# The two ways a session writes: small records are replaced, growing ones are appended to.


def replace_json(path: Path, data: Any, *, durable: bool = False) -> None:
    """Replace a file by this JSON, whole or not at all. `durable` also survives a power cut."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(data, file, ensure_ascii=False, indent=1)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise map_disk_error(error, path) from error


def read_json(path: Path) -> Any:
    """The JSON in a file; None where there is no file or no JSON in it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def append_line(path: Path, line: bytes) -> None:
    """Append one line with one write."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        file = os.open(path, flags, 0o600)
        try:
            os.write(file, line)
        finally:
            os.close(file)
    except OSError as error:
        raise map_disk_error(error, path) from error


# ------------------------------------------------------------ ledger
# What became of every message: a pure fold of the outbox, made when a run begins.
#
# The rule that a crash at any point can neither lose nor double a message:
#
# 1. A line of the inbox is accepted by its event in the outbox (`prompt`, `command`); its id is known from then on.
# 2. Only then does the cursor of the inbox move. A crash in between shows the line again; its id is known.
# 3. A prompt is handed to the program behind a `turn` event, under a uuid that is computed from its id.
# 4. It is finished by its `result`, unless that is a failure. What has none when a run begins is handed over again under the same
#    uuid. The program takes a uuid once: if it is in its transcript already, the turn goes on from
#    there (or had ended, and only its result is made up for); if not, the program never had it.

_NAMESPACE = uuid.UUID("6b8a7d1e-3b1f-5d6c-9a55-0d7a51d0b7c4")


def conversation_id(session_id: str) -> str:
    """The program's id for the conversation of a session."""
    return str(uuid.uuid5(_NAMESPACE, session_id))


def prompt_uuid(session_id: str, prompt_id: str) -> str:
    """The program's id for a prompt: the same whenever it is handed over."""
    return str(uuid.uuid5(_NAMESPACE, f"{session_id}/{prompt_id}"))


@dataclass(slots=True)
class Waiting:
    """A prompt without a result. `sent`: the program may have it. `interrupted`: a person ended its turn."""

    prompt: Prompt
    sent: bool = False
    interrupted: bool = False


@dataclass(slots=True)
class Ledger:
    """`queue` is in order of acceptance; None in it is where the session was asked to end."""

    run: int = 0
    known: set[str] = field(default_factory=set)
    rejected: set[int] = field(default_factory=set)
    queue: list[Waiting | None] = field(default_factory=list)
    phase: Phase = Phase.PENDING

    def add(self, event: Event) -> None:
        match event:
            case PhaseChanged():
                self.run, self.phase = event.run, event.phase
                if event.phase in (Phase.COMPLETED, Phase.STOPPED):
                    self.queue = [item for item in self.queue if item is not None]
            case Prompt():
                self.queue.append(Waiting(event))
                if event.source == "inbox":
                    self.known.add(event.id)
            case TurnStarted():
                for waiting in self._of(event.prompt_id):
                    waiting.sent = True
            case TurnResult() if event.outcome != "failed":
                done = self._of(event.prompt_id)
                self.queue = [item for item in self.queue if item not in done]
            case Command():
                self._command(event)
            case MailboxRejected():
                self.rejected.add(event.offset)

    def _command(self, command: Command) -> None:
        self.known.add(command.id)
        if command.kind == "end_session":
            self.queue.append(None)
        elif command.kind == "interrupt":
            for waiting in self.queue[:1]:
                if waiting is not None and waiting.sent:
                    waiting.interrupted = True

    def _of(self, prompt_id: str) -> list[Waiting]:
        return [w for w in self.queue if w is not None and w.prompt.id == prompt_id]


def read_ledger(events: Iterable[Event]) -> Ledger:
    ledger = Ledger()
    for event in events:
        ledger.add(event)
    return ledger


# ------------------------------------------------------------ folder
# The folder of a session: all of it, in one place that the agent has no business in.


def default_sessions() -> Path:
    """Where sessions are kept unless somebody says otherwise."""
    return default_home() / ".local" / "state" / "midwatch" / "sessions"


@dataclass(frozen=True, slots=True)
class SessionFolder:
    """The names in it. Other programs use `inbox` and `outbox`; the rest is ours."""

    path: Path

    @property
    def inbox(self) -> Path:
        return self.path / "inbox.jsonl"

    @property
    def cursor(self) -> Path:
        return self.path / "inbox.cursor"

    @property
    def rejected(self) -> Path:
        return self.path / "inbox.rejected.jsonl"

    @property
    def outbox(self) -> Path:
        return self.path / "outbox.jsonl"

    def make(self) -> None:
        """Create what is missing. Raises DiskFull and FolderUnusable."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in ("run", "home", "claude"):
                (self.path / name).mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise map_disk_error(error, self.path) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One runner at a time. Raises SessionBusy while another has it."""
        try:
            file = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except OSError as error:
            raise map_disk_error(error, self.path) from error
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SessionBusy(f"{self.path}: another runner works on it") from None
            yield
        finally:
            os.close(file)


# ------------------------------------------------------------ journal
# Everything a run says: into the outbox, the status, the ledger, and to whoever listens.


class Journal:
    """Opened once a run has its folder for itself. `stream` ends with None."""

    def __init__(
        self, folder: SessionFolder, redactor: Redactor, now: Callable[[], datetime]
    ) -> None:
        self.status = SessionStatus()
        self.ledger = Ledger()
        self.stream: asyncio.Queue[Event | None] = asyncio.Queue()
        for event in read_events(folder.outbox):
            self._take(event)
        self._now = now
        self._log = EventLog(folder.outbox, redactor, now)

    def emit(self, event: Event) -> Event:
        """Log an event and pass it on. Raises DiskFull and FolderUnusable; then it did not happen."""
        logged = self._log.append(event)
        self._take(logged)
        self.stream.put_nowait(logged)
        return logged

    def emit_last(self, event: Event) -> Event:
        """As `emit`, but on a full disk the event still reaches the listener and the status."""
        try:
            return self.emit(event)
        except DiskFull:
            unlogged = replace(event, seq=self._log.last_seq + 1, at=self._now())
            self._take(unlogged)
            self.stream.put_nowait(unlogged)
            return unlogged

    def close(self) -> None:
        self._log.close()
        self.stream.put_nowait(None)

    def _take(self, event: Event) -> None:
        self.status = fold(self.status, (event,))
        self.ledger.add(event)
