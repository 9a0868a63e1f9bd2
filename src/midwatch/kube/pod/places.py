"""The folders of a pod. They have the same absolute paths in every pod: a transcript knows them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from midwatch.session.log import SessionFolder, disk_error

ADOPTING = ".adopting"
"""There while a session becomes the continuation of another: the names that were its own before."""
_STAY = (
    *("run", "lock", "heartbeat.json", "repositories.lock", "home/.cache"),
    *(".sync", ADOPTING),
)
"""What of the session's folder means something in this pod alone."""
LOCAL_OWNED = frozenset({"session"})
"""Top folders that only the runner writes to: it has files in them open, and works by what it wrote there."""


@dataclass(frozen=True, slots=True)
class PodPlaces:
    """`state` is the session's own folder; with the workspace it is all that is kept."""

    workspace: Path
    state: Path
    cache: Path

    @property
    def folder(self) -> SessionFolder:
        return SessionFolder(self.state)

    @property
    def repositories(self) -> Path:
        """The record of the workspace: in the session's folder, where no agent writes."""
        return self.state / "repositories"

    @property
    def home(self) -> Path:
        """Of git's SSH and of the program; the pod's own is read-only."""
        return self.state / "home"

    @property
    def transcripts(self) -> Path:
        return self.state / "claude" / "projects"

    @property
    def sync_state(self) -> Path:
        """What the sync remembers; it goes with the volume that it speaks of."""
        return self.state / ".sync"

    @property
    def roots(self) -> dict[str, Path]:
        """The top folders behind the content proxy."""
        return {"workspace": self.workspace, "session": self.state}

    def make(self) -> None:
        """Create what is missing. Raises DiskFull and FolderUnusable."""
        self.folder.make()
        for path in (self.workspace, self.cache):
            try:
                path.mkdir(parents=True, exist_ok=True)
                # Looked at now: a volume that nobody may write to shows only here as what it is.
                probe = path / f".midwatch-{os.getpid()}"
                probe.touch()
                probe.unlink()
            except OSError as error:
                raise disk_error(error, path) from error


def stays_here(path: str) -> bool:
    """Whether a path below `roots` means something in this pod alone, and does not travel."""
    top, _, rest = path.partition("/")
    return top == "session" and any(
        rest == one or rest.startswith(f"{one}/") for one in _STAY
    )
