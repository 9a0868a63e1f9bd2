"""The folder of a session: all of it, in one place that the agent has no business in."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from midwatch.session.errors import SessionBusy
from midwatch.session.outbox import disk_error
from midwatch.workspace.environment import default_home


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
            raise disk_error(error, self.path) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One runner at a time. Raises SessionBusy while another has it."""
        try:
            file = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except OSError as error:
            raise disk_error(error, self.path) from error
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SessionBusy(f"{self.path}: another runner works on it") from None
            yield
        finally:
            os.close(file)
