"""The records of sessions: the request, the status, and the files and tables that hold them.

A running session writes `SessionRecords`: files in its folder (`FolderRecords`) and tables in
`midwatch.store.sessions`. `SessionStore` adds the methods that `SessionManager` needs. `Transcripts` stores the
transcript of the claude program, so that another machine can resume the conversation; its implementations pass
`claude_agent_sdk.testing.run_session_store_conformance`.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NotRequired, Protocol, TypedDict

from pydantic import TypeAdapter, ValidationError

from midwatch.errors import NotFound
from midwatch.files import is_locked, remove_tree
from midwatch.model import Json, Usage
from midwatch.redaction import Redactor
from midwatch.session.errors import RunnerCrashed
from midwatch.session.events import Failure, ModelUsage, Phase
from midwatch.session.log import (
    SessionFolder,
    lock_held,
    map_disk_error,
    read_json,
    replace_json,
)
from midwatch.session.options import OptionOverrides, PullRequestsAsked
from midwatch.session.status import SessionStatus
from midwatch.settings import SessionSettings
from midwatch.workspace.environment import state_folder
from midwatch.workspace.inspect import RepoState
from midwatch.workspace.other_work import OtherWork
from midwatch.workspace.plan import RepoSpec
from midwatch.workspace.setup import default_cache

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def this_host() -> str:
    """Return the name of this machine, as the records of sessions have it."""
    return platform.node()


def this_runner() -> str:
    """Return the name of this runner: the host and the process id."""
    return f"{this_host()}:{os.getpid()}"


def new_session_id() -> str:
    """Return a new id, such as `s-0f3c9a5be1d2`."""
    return f"s-{uuid.uuid4().hex[:12]}"


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
        """The record of the workspace. The agent cannot write to the session's folder."""
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
        """Lock the session against other processes that start or remove it, while the block runs.

        `SessionFolder.locked` is not held between the clones and the start of the program; this lock is. The
        kernel releases both when the process ends.

        Raises:
            SessionBusy: Another runner has the session.
            DiskFull, FolderUnusable: The lock file cannot be created.
        """
        with lock_held(self._runner_lock, f"another runner works on session {self.id}"):
            yield

    @contextlib.contextmanager
    def publishing(self) -> Iterator[None]:
        """Lock what becomes of the session's changes: from before its run until its pull requests are open.

        A process that dies releases the lock, so a session that is Completed and not locked is one that no process publishes.

        Raises:
            SessionBusy: Another process holds it.
            DiskFull, FolderUnusable: The lock file cannot be created.
        """
        busy = f"another process opens the pull requests of session {self.id}"
        with lock_held(self._publish_lock, busy):
            yield

    @property
    def published_elsewhere(self) -> bool:
        """Whether a process holds the lock of `publishing`."""
        return is_locked(self._publish_lock)

    @property
    def _publish_lock(self) -> Path:
        return self.folder.path / "publish.lock"

    @property
    def _runner_lock(self) -> Path:
        return self.folder.path / "runner.lock"

    def size(self) -> int:
        """Return the bytes of the session's files; a file that is removed meanwhile is skipped."""
        total = 0
        for root in (self.folder.path, self.workspace):
            for folder, _, files in os.walk(root):
                for name in files:
                    with contextlib.suppress(OSError):
                        total += os.lstat(os.path.join(folder, name)).st_size
        return total

    def remove(self) -> None:
        """Remove the files, also read-only ones. Raises DiskFull and FolderUnusable."""
        for path in (self.workspace, self.folder.path):
            try:
                if path.exists():
                    remove_tree(path)
            except OSError as error:
                raise map_disk_error(error, path) from error
        lock = self.state.with_name(f"{self.state.name}.lock")
        lock.unlink(missing_ok=True)


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
        root = settings.folder or state_folder()
        return cls(
            root.absolute(), (settings.cache_folder or default_cache()).absolute()
        )

    def of(self, session_id: str) -> SessionPaths:
        """Return the paths of a session, which need not exist.

        Raises NotFound for a text that is not a valid id: it must not become a path.
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
                hint="see `midwatch session list`; `midwatch session resume` moves a session to this machine",
            )
        return paths


# ------------------------------------------------------------------ the records


HEARTBEAT = 5.0
"""Seconds between two heartbeats."""
CRASHED = RunnerCrashed.__name__
"""The reason of a session whose runner ended without a final status."""


class TranscriptKey(TypedDict):
    """The key of one transcript; `subpath` names that of a subagent."""

    project_key: str
    session_id: str
    subpath: NotRequired[str]


class Transcripts(Protocol):
    """Append-only lists of JSON objects, as the Agent SDK's session store has them.

    An entry whose `uuid` the transcript has is not appended again. `load` returns None for a key
    that was never written. `delete` without a subpath also deletes the transcripts of the subagents.
    """

    async def append(self, key: Any, entries: list[Any]) -> None: ...
    async def load(self, key: Any) -> list[Any] | None: ...
    async def delete(self, key: Any) -> None: ...
    async def list_subkeys(self, key: Any) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """The specification of a session, as it is recorded. No field holds a secret.

    Attributes:
        cwd: Claude's working directory; `directories` are the additional ones.
        options: What a resume needs, as `SessionRequest.to_options` writes it.
    """

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
class StoredSession:
    """A session as a store has it.

    Attributes:
        options: What a resume needs, as `SessionRequest.to_options` wrote it.
        repositories: The repositories as they were last inspected, as `repository_to_json` writes them.
        runner: The host and the process id of the last runner.
        heartbeat_at: The last write of that runner, by the clock of the store.
        silent_for: Seconds since then, by the same clock.
    """

    id: str
    created_at: datetime
    ticket: int | None
    forked_from: str | None
    model: str
    interactive: bool
    prompt: str
    cwd: str
    directories: tuple[str, ...]
    options: Json
    status: SessionStatus
    repositories: tuple[Json, ...]
    runner: str | None
    heartbeat_at: datetime
    silent_for: float

    @property
    def host(self) -> str:
        """The machine of the last run; empty where that is unknown."""
        return str(self.options.get("host") or "")

    def is_local(self, paths: SessionPaths) -> bool:
        """Return whether the last run was on this machine, in this folder."""
        where = (self.options.get("host"), self.options.get("folder"))
        return where == (this_host(), str(paths.folder.path)) and paths.exists

    def crashed(self) -> SessionStatus:
        """Return the status of the session after its runner has crashed: Failed."""
        return replace(
            self.status,
            phase=Phase.FAILED,
            reason=CRASHED,
            error=Failure(
                kind=CRASHED,
                message=f"its runner {self.runner or ''} ended without writing a result",
                hint=f"`midwatch session resume {self.id}`; transcript and workspace are kept",
                temporary=True,
            ),
            ended_at=self.heartbeat_at,
            pending_permissions=(),
        )


class SessionRecords(Protocol):
    """The records that a running session writes. Each call replaces the earlier value; all are idempotent.

    A session is alive while its heartbeat is younger than a few `HEARTBEAT`s. A session that is neither alive nor in
    a terminal phase has crashed. Errors are children of `MidwatchError`; a TemporaryError of `heartbeat` or
    `save_status` does not end the session.
    """

    async def save_spec(self, spec: SessionSpec) -> None:
        """Save the specification. A resume writes it again."""

    async def save_status(self, session_id: str, status: SessionStatus) -> None:
        """Save the status: at every change of phase, and every few seconds."""

    async def heartbeat(self, session_id: str, runner: str, at: datetime) -> None:
        """Record that `runner` (a host and a process id) works on the session."""

    async def save_repositories(
        self, session_id: str, repositories: Sequence[RepoState]
    ) -> None:
        """Save the state of the repositories, as last inspected."""


class SessionStore(SessionRecords, Protocol):
    """The records of all sessions, as `SessionManager` needs them; `SqlSessions` is one."""

    async def get(self, session_id: str) -> StoredSession:
        """Return a session. Raises NotFound."""

    async def listed(
        self,
        *,
        phases: Sequence[Phase] = (),
        ticket: int | None = None,
        limit: int | None = None,
        after: tuple[datetime, str] | None = None,
    ) -> list[StoredSession]:
        """Return the sessions in one of `phases` (any, if there are none), the newest first.

        With `after` only those behind the session that was created at a time and has an id.
        """

    async def fail_crashed(self, session: StoredSession) -> bool:
        """Save `session.crashed()`, unless the session has changed since it was read.

        Return whether it was saved; false if the runner has written since.
        """

    async def save_options(self, session_id: str, options: Json) -> None:
        """Replace the options of the record."""

    async def remove(self, session_id: str) -> None:
        """Remove a record. Raises NotFound."""

    async def note(self, ticket_id: int, session_id: str, actor: str, why: str) -> None:
        """Add a session to the history of a ticket, which stays as it is. Raises NotFound."""


_STATUS: TypeAdapter[SessionStatus] = TypeAdapter(SessionStatus)
_SPEC: TypeAdapter[SessionSpec] = TypeAdapter(SessionSpec)


def status_to_json(status: SessionStatus) -> Json:
    """Return a status as plain data, with its `cost_usd`."""
    data: Json = _STATUS.dump_python(status, mode="json")
    return data | {"cost_usd": status.cost_usd}


def status_from_json(data: Json) -> SessionStatus:
    """Return the status in plain data. Raises ValueError for other data."""
    return _STATUS.validate_python(
        {name: value for name, value in data.items() if name != "cost_usd"}
    )


_MAX_RECORDED = 20
"""Items of a repository's other work that a record has; `other_count` counts all."""


def repository_to_json(state: RepoState) -> Json:
    """Return the state of a repository for the records: counts of files and lines, no file names.

    `other` is the work that HEAD does not have: branches, worktrees, stashes, detached commits and tags.
    """
    return {
        "name": state.name,
        "url": state.url,
        "status": state.status,
        "branch": state.branch,
        "commits": state.commit_count,
        "files": len(state.files),
        "added": state.added,
        "removed": state.removed,
        "untracked": state.untracked,
        "problem": state.problem,
        "other": [_other_to_json(item) for item in state.other[:_MAX_RECORDED]],
        "other_count": state.other_count,
        "submodules": [
            repository_to_json(one) for one in state.submodules[:_MAX_RECORDED]
        ],
    }


def _other_to_json(item: OtherWork) -> Json:
    return {
        "kind": item.kind,
        "name": item.name,
        "commit": item.commit,
        "commits": item.commits,
        "files": item.files,
        "pushed": item.pushed,
        "problem": item.problem,
    }


class FolderRecords:
    """The records of one session as small files in its folder: `spec.json`, `status.json`, …"""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def save_spec(self, spec: SessionSpec) -> None:
        self._write("spec.json", _SPEC.dump_python(spec, mode="json"))

    async def save_status(self, session_id: str, status: SessionStatus) -> None:
        self._write("status.json", status_to_json(status))

    async def heartbeat(self, session_id: str, runner: str, at: datetime) -> None:
        self._write("heartbeat.json", {"runner": runner, "at": at.isoformat()})

    async def save_repositories(
        self, session_id: str, repositories: Sequence[RepoState]
    ) -> None:
        self._write(
            "repositories.json", [repository_to_json(one) for one in repositories]
        )

    def load_spec(self) -> SessionSpec | None:
        """Return the spec; None if there is none or it cannot be read."""
        try:
            return _SPEC.validate_python(read_json(self.folder / "spec.json"))
        except ValidationError:
            return None

    def load_status(self) -> SessionStatus | None:
        """Return the status; None if there is none or it cannot be read."""
        data = read_json(self.folder / "status.json")
        try:
            return status_from_json(data) if isinstance(data, dict) else None
        except ValidationError:
            return None

    def _write(self, name: str, data: Any) -> None:
        replace_json(self.folder / name, data)


# ------------------------------------------------------------------ one run


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """The request for one run of a session.

    Attributes:
        id: The session; `new_session_id` makes one.
        prompt: The prompt; None continues with unanswered prompts.
        repositories: The repositories to clone; the session starts from each `branch`.
        main: Index of the main repository (0 is the first).
        interactive: Whether the session stays open and reads its mailbox.
        push: Whether the changes are pushed once the session is Completed.
        overrides: Options that override the settings.
        forked_from: The session whose conversation it starts with.
        ticket: The ticket that it works on.
        pull_requests: Who asked for pull requests once it is Completed; None if they were not asked for.
        first_prompt: The first prompt of the session, shown in lists; empty if it is `prompt`.
        elsewhere: The totals of runs on other machines, whose outbox is not here.
        moved: Whether the last run was on another machine.
        notice: A notice for the user before the run, or empty.
    """

    id: str
    prompt: str | None
    repositories: tuple[RepoSpec, ...]
    main: int = 0
    interactive: bool = False
    push: bool = False
    overrides: OptionOverrides = field(default_factory=OptionOverrides)
    forked_from: str | None = None
    ticket: int | None = None
    pull_requests: PullRequestsAsked | None = None
    first_prompt: str = ""
    elsewhere: SessionStatus | None = None
    moved: bool = False
    notice: str = ""

    def to_options(self, folder: Path) -> Json:
        """Return the fields of the request that a resume on any machine needs."""
        elsewhere, asked = self.elsewhere, self.pull_requests
        return {
            "host": this_host(),
            "folder": str(folder),
            "repositories": [_spec_to_json(one) for one in self.repositories],
            "main": self.main,
            "push": self.push,
            "choices": self.overrides.to_json(),
            PullRequestsAsked.KEY: None if asked is None else asked.to_json(),
            "carried": (
                None
                if elsewhere is None
                else _STATUS.dump_python(elsewhere, mode="json")
            ),
        }


def _spec_to_json(repository: RepoSpec) -> Json:
    """Return three fields always, and the others if they differ from their defaults."""
    first = {
        "url": repository.url,
        "branch": repository.branch,
        "push_branch": repository.push_branch,
    }
    others: Json = _REPOSITORY.dump_python(repository, exclude_defaults=True)
    return others | first


_REPOSITORY: TypeAdapter[RepoSpec] = TypeAdapter(RepoSpec)
_REPOSITORIES: TypeAdapter[tuple[RepoSpec, ...]] = TypeAdapter(tuple[RepoSpec, ...])


def recorded_repositories(session: StoredSession) -> tuple[RepoSpec, ...]:
    """Return the repositories of a session's request. Raises NotFound for a record without them."""
    try:
        found = _REPOSITORIES.validate_python(session.options.get("repositories") or ())
    except ValidationError:
        found = ()
    if not found:
        raise NotFound(
            f"the record of session {session.id} names no repositories",
            hint="it was not started by `midwatch session`; resume it with the program that started it",
        )
    return found


def recorded_elsewhere(session: StoredSession) -> SessionStatus | None:
    """Return the totals of runs on other machines, or None."""
    document = session.options.get("carried")
    try:
        return None if document is None else _STATUS.validate_python(document)
    except ValidationError:
        return None


class RunRecords:
    """The records of one run: rows in a store and files in the session's folder. Satisfies `SessionRecords`.

    With the files, `midwatch session send` and other programs see the status without a database. This class
    adds what the session does not know: the prompt for lists, the repositories, and runs on other machines.
    """

    def __init__(
        self,
        store: SessionRecords,
        request: SessionRequest,
        paths: SessionPaths,
        redactor: Redactor,
    ) -> None:
        self._store = store
        self._files = FolderRecords(paths.folder.path)
        self._request = request
        self._redactor = redactor

    async def save_spec(self, spec: SessionSpec) -> None:
        request, folder = self._request, self._files.folder
        whole = replace(
            spec,
            prompt=self._redactor.text(request.first_prompt or request.prompt or ""),
            options=request.to_options(folder),
        )
        folder.mkdir(parents=True, exist_ok=True)
        await self._files.save_spec(whole)
        await self._store.save_spec(whole)

    async def save_status(self, session_id: str, status: SessionStatus) -> None:
        if self._request.elsewhere is not None:
            status = add_status(self._request.elsewhere, status)
        try:
            await self._files.save_status(session_id, status)
        finally:  # also if the session's folder was removed
            await self._store.save_status(session_id, status)

    async def heartbeat(self, session_id: str, runner: str, at: datetime) -> None:
        try:
            await self._files.heartbeat(session_id, runner, at)
        finally:
            await self._store.heartbeat(session_id, runner, at)

    async def save_repositories(
        self, session_id: str, repositories: Sequence[RepoState]
    ) -> None:
        await self._files.save_repositories(session_id, repositories)
        await self._store.save_repositories(session_id, repositories)


def add_status(earlier: SessionStatus, now: SessionStatus) -> SessionStatus:
    """Return the status `now` plus the totals of runs on other machines."""
    return replace(
        _sum(now, earlier, 1),
        started_at=earlier.started_at or now.started_at,
        result=now.result or earlier.result,
    )


def subtract_status(whole: SessionStatus, here: SessionStatus) -> SessionStatus:
    """Return the totals of runs on other machines: those of all runs minus those here."""
    return _sum(whole, here, -1)


def _sum(one: SessionStatus, other: SessionStatus, sign: int) -> SessionStatus:
    return replace(
        one,
        run=one.run + sign * other.run,
        turns=one.turns + sign * other.turns,
        requests=one.requests + sign * other.requests,
        prompts=one.prompts + sign * other.prompts,
        retries=one.retries + sign * other.retries,
        active_seconds=one.active_seconds + sign * other.active_seconds,
        spend={
            model: _usage(one.spend, model, 1) + _usage(other.spend, model, sign)
            for model in {**one.spend, **other.spend}
        },
    )


def _usage(spend: Mapping[str, ModelUsage], model: str, sign: int) -> ModelUsage:
    used = spend.get(model, ModelUsage())
    tokens = (sign * count for count in astuple(used.usage))
    return ModelUsage(Usage(*tokens), sign * used.cost_usd)
