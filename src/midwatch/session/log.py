"""The log of a session: its folder, the append-only outbox of events, and the state computed from them.

`Ledger` computes the state of every message from the outbox. With these rules no crash loses or repeats a message:

1. A line of the inbox is accepted when its event (`prompt`, `command`) is in the outbox; then its id is known.
2. After that the cursor of the inbox moves. After a crash in between, the line is read again and ignored by its id.
3. A prompt is sent to the program after a `turn` event, under a uuid that is computed from its id.
4. It is finished by a `result` that is not a failure. A run sends a prompt without one again under the same uuid,
   and the program accepts a uuid only once. If the uuid is in the transcript, the turn continues from there (or has
   ended, and only its result is added).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from midwatch.errors import MidwatchError
from midwatch.files import (
    UnusableFile,
    append,
    copy_content,
    is_disk_full,
    locked_if_free,
    open_regular,
    read_regular,
    replace_file,
)
from midwatch.model import keepable
from midwatch.redaction import Redactor
from midwatch.session.errors import (
    DiskFull,
    FolderUnusable,
    OutboxLost,
    RunnerCrashed,
    SessionBusy,
)
from midwatch.session.events import (
    Command,
    Event,
    MailboxRejected,
    Phase,
    PhaseChanged,
    Prompt,
    TurnResult,
    TurnStarted,
    failure,
    from_line,
    numbered_json,
    parse_line,
)
from midwatch.session.status import SessionStatus, fold
from midwatch.workspace.environment import state_folder

MAX_LINE = 1_000_000
"""Bytes of one line; in a longer event the texts are cut."""
_CHUNK = 65536
_ATTEMPTS, _PAUSE = 10, 0.01  # seconds between two attempts to lock
_MAX_RECORD = 64 << 20  # bytes of a small file
_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT
_UNREDACTED = ("type", "seq", "at")  # fields without text from outside
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_TEXT_LIMITS = (200_000, 20_000, 2_000, 200, 20)  # characters; tried in turn


class EventLog:
    """The only writer of an outbox. Every append is one write, whatever the length of the file.

    `seq` continues from the last event. An incomplete last line is ended with a newline, and every
    reader skips it. Raises DiskFull and FolderUnusable.

    Before every append the file at the path is compared with the open one. If another process has removed,
    replaced or truncated it, `lost` is the error. What is left of the events is then in a new file, which the
    next events go to, so that readers see how the run ended.
    """

    lost: OutboxLost | None = None

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
            self._file = open_regular(path, _APPEND)
        except OSError as error:
            raise map_disk_error(error, path) from error
        self._size = os.fstat(self._file).st_size
        self.last_seq, self._torn = _last_event(self._file)

    def append(self, event: Event) -> Event:
        """Log an event. Return it as it was logged: redacted, with its `seq` and time.

        Raises OutboxLost if the file is lost and no new one can be made.
        """
        self.check()
        data = numbered_json(event, self.last_seq + 1, self._now())
        plain = {name: data.pop(name) for name in _UNREDACTED}
        line = _line({**plain, **self._redactor.value(data)})
        self._write((b"\n" if self._torn else b"") + line)
        self.last_seq += 1
        return from_line(event, line)

    def check(self) -> None:
        """Set `lost` if another process has changed the file. Raises OutboxLost if no new one can be made."""
        why = self._change()
        if not why:
            return
        self.lost = self.lost or OutboxLost(f"{self.path} {why} while the session ran")
        try:
            self._start_again()
        except OSError as error:
            self.lost = OutboxLost(
                f"{self.path} {why} while the session ran, and no new one can be made: {error.strerror}"
            )
            raise self.lost from error

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _change(self) -> str:
        """Return what another process has done to the file; empty if nothing, or if that is unknown."""
        try:
            found = os.lstat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return "vanished"
        except OSError:
            return ""
        if not os.path.samestat(found, os.fstat(self._file)):
            return "was replaced"
        if found.st_size < self._size:
            return "was truncated"
        self._size = found.st_size
        return ""

    def _start_again(self) -> None:
        """Continue in what is left of a truncated file, or else in a new file with the events so far.

        What another process has put at the path is renamed, not removed.
        """
        with contextlib.suppress(FileNotFoundError):
            if not os.path.samestat(os.lstat(self.path), os.fstat(self._file)):
                stem, suffix = self.path.stem, self.path.suffix
                aside = f"{stem}.replaced-{self.last_seq}{suffix}"
                self.path.rename(self.path.with_name(aside))
        file = open_regular(self.path, _APPEND)
        if not os.path.samestat(os.fstat(file), os.fstat(self._file)):
            try:
                copy_content(self._file, file)
            except OSError:
                os.close(file)
                raise
        os.close(self._file)
        self._file, self._size = file, os.fstat(file).st_size
        self._torn = bool(self._size) and os.pread(file, 1, self._size - 1) != b"\n"

    def _write(self, data: bytes) -> None:
        try:
            while data:
                written = os.write(self._file, data)
                self._size += written
                data = data[written:]
                self._torn = bool(data)
        except OSError as error:
            raise map_disk_error(error, self.path) from error


def _line(data: Any) -> bytes:
    """Return one line of at most MAX_LINE bytes."""
    line = _encoded(data)
    for limit in _TEXT_LIMITS:
        if len(line) <= MAX_LINE:
            break
        line = _encoded(_shortened(data, limit))
    return line


def _encoded(data: Any) -> bytes:
    return keepable(_ENCODER.encode(data)).encode() + b"\n"


def _shortened(value: Any, limit: int) -> Any:
    if isinstance(value, str) and len(value) > limit:
        return f"{value[:limit]}… [{len(value) - limit} characters cut]"
    if isinstance(value, list):
        return [_shortened(item, limit) for item in value[: max(limit, 20)]]
    if isinstance(value, dict):
        kept = list(value.items())[: max(limit, 20)]
        return {key[: max(limit, 40)]: _shortened(item, limit) for key, item in kept}
    return value


def _last_event(file: int) -> tuple[int, bool]:
    """Return the last sequence number in the file, and whether its last line lacks its newline."""
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
    """Return the error of a session for an error of the operating system with one of its files."""
    if is_disk_full(error):
        return DiskFull(f"{path}: {error.strerror}")
    return FolderUnusable(f"{path}: {error.strerror}")


class EventReader:
    """Reads an outbox from the first event after sequence number `after`, while it grows.

    A truncated or replaced file is read from its beginning; events that were read before are left out.
    """

    def __init__(self, path: Path, after: int = 0) -> None:
        self.path = path
        self.last_seq = after
        self._offset = _offset_after(path, after)
        self._inode: int | None = None

    def poll(self, limit: int = 10_000) -> list[Event]:
        """Return the next events, at most `limit`; none while there is nothing new or no file.

        Raises FolderUnusable for something else than a file, and for a file that cannot be read.
        """
        events: list[Event] = []
        try:
            with os.fdopen(open_regular(self.path), "rb") as file:
                file.seek(self._place(file.fileno()))
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
        except OSError as error:
            raise map_disk_error(error, self.path) from error
        return events

    def _place(self, file: int) -> int:
        """Return where to read on: after the last line that was read, or at the beginning of another file."""
        before, self._inode = self._inode, os.fstat(file).st_ino
        same = before is None or before == self._inode
        offset = self._offset
        # An offset behind the end reads as nothing.
        if offset and not (same and os.pread(file, 1, offset - 1) == b"\n"):
            self._offset = 0
        return self._offset


def read_events(path: Path, after: int = 0) -> Iterator[Event]:
    """Yield the events of an outbox that come after sequence number `after`. Raises FolderUnusable."""
    reader = EventReader(path, after)
    while events := reader.poll():
        yield from events


def _offset_after(path: Path, after: int) -> int:
    """Return the byte offset of a line at or before the first event after `after`.

    A binary search: sequence numbers only grow.
    """
    if after <= 0:
        return 0
    try:
        with os.fdopen(open_regular(path), "rb") as file:
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
    except OSError:  # `poll` raises it
        return 0


# ------------------------------------------------------------------ small files


def replace_json(path: Path, data: Any, *, durable: bool = False) -> None:
    """Replace a file by this JSON, atomically. `durable` also survives a power failure.

    Raises DiskFull and FolderUnusable.
    """
    text = json.dumps(data, ensure_ascii=False, indent=1)
    try:
        replace_file(path, text.encode(), durable=durable)
    except OSError as error:
        raise map_disk_error(error, path) from error


def read_json(path: Path) -> Any:
    """Return the JSON in a file; None if there is no regular file or no JSON in it."""
    try:
        return json.loads(read_regular(path, _MAX_RECORD))
    except (FileNotFoundError, UnusableFile, ValueError):
        return None


def append_line(path: Path, line: bytes) -> None:
    """Append one line with one write. Raises DiskFull and FolderUnusable."""
    try:
        append(path, line)
    except OSError as error:
        raise map_disk_error(error, path) from error


# ------------------------------------------------------------------ the ledger

_NAMESPACE = uuid.UUID("6b8a7d1e-3b1f-5d6c-9a55-0d7a51d0b7c4")


def conversation_id(session_id: str) -> str:
    """Return the program's id for the conversation of a session."""
    return str(uuid.uuid5(_NAMESPACE, session_id))


def prompt_uuid(session_id: str, prompt_id: str) -> str:
    """Return the program's id for a prompt: the same however often it is sent."""
    return str(uuid.uuid5(_NAMESPACE, f"{session_id}/{prompt_id}"))


@dataclass(slots=True)
class PendingPrompt:
    """A prompt without a result. `sent`: the program may have read it. `interrupted`: a user ended its turn."""

    prompt: Prompt
    sent: bool = False
    interrupted: bool = False


@dataclass(slots=True)
class Ledger:
    """The state of every message, computed from the events so far.

    `queue` is in the order of acceptance. None in it stands for `end_session`.
    """

    run: int = 0
    known: set[str] = field(default_factory=set)
    rejected: set[int] = field(default_factory=set)
    queue: list[PendingPrompt | None] = field(default_factory=list)
    phase: Phase = Phase.PENDING

    def add(self, event: Event) -> None:
        match event:
            case PhaseChanged():
                self.run, self.phase = event.run, event.phase
                if event.phase in (Phase.COMPLETED, Phase.STOPPED):
                    self.queue = [item for item in self.queue if item is not None]
            case Prompt():
                self.queue.append(PendingPrompt(event))
                if event.source == "inbox":
                    self.known.add(event.id)
            case TurnStarted():
                for waiting in self._pending(event.prompt_id):
                    waiting.sent = True
            case TurnResult() if event.outcome != "failed":
                done = self._pending(event.prompt_id)
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

    def _pending(self, prompt_id: str) -> list[PendingPrompt]:
        return [w for w in self.queue if w is not None and w.prompt.id == prompt_id]


def read_ledger(events: Iterable[Event]) -> Ledger:
    ledger = Ledger()
    for event in events:
        ledger.add(event)
    return ledger


# ------------------------------------------------------------------ the folder


def default_sessions() -> Path:
    """Return the default folder of sessions."""
    return state_folder() / "sessions"


@dataclass(frozen=True, slots=True)
class SessionFolder:
    """The folder of a session, outside of the agent's workspace. Other programs use `inbox` and `outbox` only."""

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
        """Lock the folder against other runners while the block runs.

        Raises:
            SessionBusy: Another runner has locked it.
            FolderUnusable: The folder does not exist or is not writable.
        """
        busy = f"{self.path}: another runner works on it"
        with lock_held(self.path / "lock", busy):
            yield


@contextlib.contextmanager
def lock_held(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock at `path` while the block runs. Retry for a short time: who looks at it holds it for some microseconds.

    Raises:
        SessionBusy: Another process holds it; `busy` says so.
        DiskFull, FolderUnusable: The file cannot be created.
    """
    with contextlib.ExitStack() as stack:
        try:
            for _ in range(_ATTEMPTS):
                with contextlib.ExitStack() as attempt:
                    if attempt.enter_context(locked_if_free(path)):
                        stack.enter_context(attempt.pop_all())
                        break
                time.sleep(_PAUSE)
            else:
                raise SessionBusy(busy)
        except OSError as error:
            raise map_disk_error(error, path) from error
        yield


# ------------------------------------------------------------------ the journal of a run


class Journal:
    """Adds every event of a run to the outbox, the status, the ledger and `stream`, which ends with None.

    Create it after the folder is locked. Raises DiskFull and FolderUnusable.
    """

    def __init__(
        self, folder: SessionFolder, redactor: Redactor, now: Callable[[], datetime]
    ) -> None:
        self.status = SessionStatus()
        self.ledger = Ledger()
        self.stream: asyncio.Queue[Event | None] = asyncio.Queue()
        for event in read_events(folder.outbox):
            self._apply(event)
        self._now = now
        self._log = EventLog(folder.outbox, redactor, now)
        self._told = False

    def emit(self, event: Event) -> Event:
        """Log an event and pass it on.

        Raises:
            DiskFull, FolderUnusable: It was not logged, and is not passed on.
            OutboxLost: Another process has changed the file; raised once, after the event is passed on.
        """
        logged = self._add(event)
        if self._log.lost is not None and not self._told:
            self._told = True
            raise self._log.lost
        return logged

    def emit_last(self, event: Event) -> Event:
        """As `emit`, but an event that cannot be logged still reaches the stream and the status."""
        try:
            return self._add(event)
        except MidwatchError:
            unlogged = replace(event, seq=self._log.last_seq + 1, at=self._now())
            self._apply(unlogged)
            self.stream.put_nowait(unlogged)
            return unlogged

    def lost(self) -> OutboxLost | None:
        """Return the error if another process has changed the file of the log."""
        with contextlib.suppress(OutboxLost):
            self._log.check()
        return self._log.lost

    def _add(self, event: Event) -> Event:
        logged = self._log.append(event)
        self._apply(logged)
        self.stream.put_nowait(logged)
        return logged

    def close_crashed_run(self) -> bool:
        """Log the end of an earlier run that logged none. Return whether there was one."""
        if self.ledger.run == 0 or self.ledger.phase.terminal:
            return False
        run = self.ledger.run
        crash = RunnerCrashed(f"run {run} ended without a final status")
        self.emit(failure(crash))
        reason = type(crash).__name__
        self.emit(PhaseChanged(phase=Phase.FAILED, run=run, reason=reason))
        return True

    def begin_run(self) -> None:
        """Log the start of the next run."""
        self.emit(PhaseChanged(phase=Phase.CREATING, run=self.ledger.run + 1))

    def end_run(
        self, phase: Phase, reason: str, error: MidwatchError | None = None
    ) -> MidwatchError | None:
        """Log the error and the terminal phase of the run, as `emit_last` does.

        Return the error. A run whose outbox was lost is Failed.
        """
        lost = self.lost()
        if error is None and lost is not None:
            phase, reason, error = Phase.FAILED, type(lost).__name__, lost
        if error is not None:
            self.emit_last(failure(error))
        run = self.ledger.run
        self.emit_last(PhaseChanged(phase=phase, run=run, reason=reason))
        return error

    def close(self) -> None:
        self._log.close()
        self.stream.put_nowait(None)

    def _apply(self, event: Event) -> None:
        self.status = fold(self.status, (event,))
        self.ledger.add(event)
