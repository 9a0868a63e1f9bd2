"""Where a session is on this machine, and whether its runner is alive."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from midwatch.errors import NotFound
from midwatch.session.errors import SessionBusy
from midwatch.session.log import SessionFolder, disk_error
from midwatch.settings import SessionSettings
from midwatch.workspace.environment import default_home
from midwatch.workspace.setup import default_cache

_TRIES, _TRY_AGAIN = 10, 0.01
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Place:
    """A session's own folder, the workspace that Claude sees, and what is known of that."""

    id: str
    folder: SessionFolder
    workspace: Path

    @property
    def state(self) -> Path:
        """The record of the workspace: in the session's folder, where no agent writes."""
        return self.folder.path / "repositories"

    @property
    def programs_own(self) -> Path:
        """Where the claude program keeps its transcripts."""
        return self.folder.path / "claude" / "projects"

    @property
    def exists(self) -> bool:
        return self.folder.path.is_dir()

    @property
    def running(self) -> bool:
        """Whether a runner works on it: one of these commands, or any other program's."""
        return _held(self._runner_lock) or _held(self.folder.path / "lock")

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """While inside, nobody else starts, removes or prunes it. Raises SessionBusy, FolderUnusable.

        The session's own lock is free between the clones and the start of the program; this one
        is held all the time. Both go with the process, however that ends.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            file = os.open(self._runner_lock, flags, 0o600)
        except OSError as error:
            raise disk_error(error, self._runner_lock) from error
        try:
            _lock(file, f"session {self.id} has another runner")
            yield
        finally:
            os.close(file)

    @property
    def _runner_lock(self) -> Path:
        return self.folder.path / "runner.lock"


def _held(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _lock(file: int, busy: str) -> None:
    """Try for a moment: who looks whether it is held, holds it for some microseconds."""
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_TRY_AGAIN)
    raise SessionBusy(busy)


@dataclass(frozen=True, slots=True)
class Places:
    """Where all of them are."""

    root: Path
    cache: Path

    @classmethod
    def of(cls, settings: SessionSettings) -> Places:
        root = settings.folder or default_home() / ".local" / "state" / "midwatch"
        return cls(
            root.absolute(), (settings.cache_folder or default_cache()).absolute()
        )

    def place(self, session_id: str) -> Place:
        """Raises NotFound for what cannot be a session's name, and so must not be a path."""
        if not _ID.fullmatch(session_id):
            raise NotFound(
                f"there is no session {session_id[:80]!r}",
                hint="see `midwatch session list`",
            )
        folder = SessionFolder(self.root / "sessions" / session_id)
        return Place(session_id, folder, self.root / "workspaces" / session_id)

    def present(self, session_id: str) -> Place:
        """The place of a session that is on this machine. Raises NotFound."""
        place = self.place(session_id)
        if not place.exists:
            raise NotFound(
                f"there is no session {session_id} on this machine",
                hint="see `midwatch session list`; resume brings one of another machine here",
            )
        return place


def this_host() -> str:
    """The machine's name, as a session's runner gives it."""
    return platform.node()
