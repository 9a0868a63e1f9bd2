"""Where sessions are on this machine, and whether a runner works on one."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch.errors import NotFound
from midwatch.files import is_locked, locked_if_free
from midwatch.session.errors import SessionBusy
from midwatch.session.log import SessionFolder, map_disk_error
from midwatch.settings import SessionSettings
from midwatch.workspace.environment import default_home
from midwatch.workspace.setup import default_cache

_ATTEMPTS, _PAUSE = 10, 0.01  # seconds between two attempts to lock
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def this_host() -> str:
    """Return the name of this machine, as the records of sessions have it."""
    return platform.node()


@dataclass(frozen=True, slots=True)
class SessionPaths:
    """The paths of one session.

    Attributes:
        id: The session.
        folder: Its own folder, with the mailbox and the records.
        workspace: The folder of clones that Claude works in.
    """

    id: str
    folder: SessionFolder
    workspace: Path

    @property
    def state(self) -> Path:
        """The record of the workspace. It is in the session's folder, where no agent writes."""
        return self.folder.path / "repositories"

    @property
    def program_transcripts(self) -> Path:
        """The folder where the claude program keeps its transcripts."""
        return self.folder.path / "claude" / "projects"

    @property
    def exists(self) -> bool:
        return self.folder.path.is_dir()

    @property
    def running(self) -> bool:
        """Whether a runner of any program works on the session."""
        return is_locked(self._runner_lock) or is_locked(self.folder.path / "lock")

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Keep other processes from starting or removing the session while the block runs.

        The session's own lock is free between the clones and the start of the program; this one
        is held all the time. The kernel releases both when the process ends.

        Raises:
            SessionBusy: Another runner has the session.
            DiskFull, FolderUnusable: The lock file cannot be made.
        """
        with contextlib.ExitStack() as stack:
            self._lock(stack)
            yield

    def _lock(self, stack: contextlib.ExitStack) -> None:
        """Try for a moment: a check with `running` holds the lock for some microseconds."""
        try:
            for _ in range(_ATTEMPTS):
                with contextlib.ExitStack() as attempt:
                    if attempt.enter_context(locked_if_free(self._runner_lock)):
                        stack.enter_context(attempt.pop_all())
                        return
                time.sleep(_PAUSE)
        except OSError as error:
            raise map_disk_error(error, self._runner_lock) from error
        raise SessionBusy(f"session {self.id} has another runner")

    @property
    def _runner_lock(self) -> Path:
        return self.folder.path / "runner.lock"

    def size(self) -> int:
        """Return the bytes of the session's files; a file that vanishes meanwhile is left out."""
        total = 0
        for root in (self.folder.path, self.workspace):
            for folder, _, files in os.walk(root):
                for name in files:
                    with contextlib.suppress(OSError):
                        total += os.lstat(os.path.join(folder, name)).st_size
        return total

    def remove(self) -> None:
        """Remove the files, also those that an agent made hard to remove. Raises DiskFull, FolderUnusable."""
        for path in (self.workspace, self.folder.path):
            try:
                if path.exists():
                    shutil.rmtree(path, onerror=_open_and_retry)
            except OSError as error:
                raise map_disk_error(error, path) from error
        lock = self.state.with_name(f"{self.state.name}.lock")
        lock.unlink(missing_ok=True)


def _open_and_retry(function: Callable[..., Any], path: str, _: Any) -> None:
    """Give the owner access to the folders, then repeat what failed."""
    for folder in (Path(path).parent, Path(path)):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(stat.S_IRWXU)
    if function in (os.open, os.scandir, os.lstat, os.listdir):
        shutil.rmtree(path)
    else:
        function(path)


@dataclass(frozen=True, slots=True)
class SessionFolders:
    """The folders of all sessions of this machine.

    Attributes:
        root: Absolute; holds `sessions/ID` and `workspaces/ID`.
        cache: Absolute; holds the mirrors of repositories.
    """

    root: Path
    cache: Path

    @classmethod
    def from_settings(cls, settings: SessionSettings) -> SessionFolders:
        root = settings.folder or default_home() / ".local" / "state" / "midwatch"
        return cls(
            root.absolute(), (settings.cache_folder or default_cache()).absolute()
        )

    def of(self, session_id: str) -> SessionPaths:
        """Return the paths of a session, which need not exist.

        Raises NotFound for a text that cannot be a session's id, and so must not become a path.
        """
        if not _ID.fullmatch(session_id):
            raise NotFound(
                f"there is no session {session_id[:80]!r}",
                hint="see `midwatch session list`",
            )
        folder = SessionFolder(self.root / "sessions" / session_id)
        return SessionPaths(session_id, folder, self.root / "workspaces" / session_id)

    def existing(self, session_id: str) -> SessionPaths:
        """Return the paths of a session that is on this machine. Raises NotFound."""
        paths = self.of(session_id)
        if not paths.exists:
            raise NotFound(
                f"there is no session {session_id} on this machine",
                hint="see `midwatch session list`; resume brings one of another machine here",
            )
        return paths
