"""What of a session must be kept, as protocols: files here, tables in a store.

`SessionRecords` holds what people list and look at; `Transcripts` holds the program's own transcript,
so that another machine can go on with the conversation. A store that passes
`claude_agent_sdk.testing.run_session_store_conformance` is a `Transcripts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NotRequired, Protocol, TypedDict

from pydantic import TypeAdapter, ValidationError

from midwatch.model import Json
from midwatch.session.log import read_json, replace_json
from midwatch.session.status import SessionStatus


class TranscriptKey(TypedDict):
    """One transcript; `subpath` is that of a subagent."""

    project_key: str
    session_id: str
    subpath: NotRequired[str]


class Transcripts(Protocol):
    """Append-only lists of JSON objects, as the Agent SDK's session store has them.

    An entry with a `uuid` that is there already is not added again. `load` gives None for a key
    that was never written. `delete` without a subpath takes the subagents' with it.
    """

    async def append(self, key: Any, entries: list[Any]) -> None: ...
    async def load(self, key: Any) -> list[Any] | None: ...
    async def delete(self, key: Any) -> None: ...
    async def list_subkeys(self, key: Any) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What was asked for. `options` are plain data; nothing in here is secret."""

    id: str
    created_at: datetime
    cwd: str
    directories: tuple[str, ...] = ()
    model: str = ""
    interactive: bool = False
    prompt: str = ""
    options: Json = field(default_factory=dict)
    forked_from: str | None = None
    ticket: int | None = None


@dataclass(frozen=True, slots=True)
class RepositoryRecord:
    """What a session did to one repository."""

    name: str
    url: str
    status: str
    branch: str | None = None
    commits: int = 0
    files: int = 0
    added: int = 0
    removed: int = 0
    untracked: int = 0
    problem: str | None = None


class SessionRecords(Protocol):
    """Where the records of sessions go. Each call replaces what was there; all are idempotent.

    A running session is alive while its heartbeat is younger than a few `HEARTBEAT`s; one that
    is not alive and in no terminal phase has crashed. Errors are children of `MidwatchError`; a
    TemporaryError of `heartbeat` and `save_status` ends no session.
    """

    async def save_spec(self, spec: SessionSpec) -> None:
        """Keep what was asked for; a resume writes it again."""

    async def save_status(self, session_id: str, status: SessionStatus) -> None:
        """Keep the status: at every change of phase, and every few seconds in between."""

    async def heartbeat(self, session_id: str, runner: str, at: datetime) -> None:
        """Note that `runner` (a host and a pid) works on the session."""

    async def save_repositories(
        self, session_id: str, repositories: Sequence[RepositoryRecord]
    ) -> None:
        """Keep the state of the repositories, as it was last looked at."""


HEARTBEAT = 5.0
"""Seconds between two heartbeats."""

_STATUS: TypeAdapter[SessionStatus] = TypeAdapter(SessionStatus)
_SPEC: TypeAdapter[SessionSpec] = TypeAdapter(SessionSpec)


def status_to_json(status: SessionStatus) -> Json:
    data: Json = _STATUS.dump_python(status, mode="json")
    return data | {"cost_usd": status.cost_usd}


def status_from_json(data: Json) -> SessionStatus:
    """Raises ValueError for what is no status."""
    return _STATUS.validate_python(
        {name: value for name, value in data.items() if name != "cost_usd"}
    )


class FolderRecords:
    """Records as small files in the session's own folder: `spec.json`, `status.json`, …"""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def save_spec(self, spec: SessionSpec) -> None:
        self._write("spec.json", _SPEC.dump_python(spec, mode="json"))

    async def save_status(self, session_id: str, status: SessionStatus) -> None:
        self._write("status.json", status_to_json(status))

    async def heartbeat(self, session_id: str, runner: str, at: datetime) -> None:
        self._write("heartbeat.json", {"runner": runner, "at": at.isoformat()})

    async def save_repositories(
        self, session_id: str, repositories: Sequence[RepositoryRecord]
    ) -> None:
        self._write("repositories.json", [asdict(repo) for repo in repositories])

    def load_spec(self) -> SessionSpec | None:
        """The spec; None where there is none or it cannot be read."""
        try:
            return _SPEC.validate_python(read_json(self.folder / "spec.json"))
        except ValidationError:
            return None

    def load_status(self) -> SessionStatus | None:
        """As `load_spec`, for the status."""
        data = read_json(self.folder / "status.json")
        try:
            return status_from_json(data) if isinstance(data, dict) else None
        except ValidationError:
            return None

    def _write(self, name: str, data: Any) -> None:
        replace_json(self.folder / name, data)
