"""What the commands of sessions share: the store's records, the places, the secrets to hide."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import os.path
import platform
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from midwatch.cli.app import Edge, api_key, secrets_of
from midwatch.errors import Conflict, NotFound, SettingsError
from midwatch.lifecycle import SystemClock
from midwatch.model import Json, Usage
from midwatch.redaction import Redactor
from midwatch.session.errors import KeyRefused, SessionBusy
from midwatch.session.events import ModelUsage, Phase
from midwatch.session.log import SessionFolder, conversation_id, map_disk_error
from midwatch.session.options import (
    ApiAccess,
    Limits,
    SandboxMode,
    SessionOptions,
    SubagentSpec,
)
from midwatch.session.records import (
    HEARTBEAT,
    FolderRecords,
    RepositoryRecord,
    SessionSpec,
    TranscriptKey,
)
from midwatch.session.status import SessionStatus
from midwatch.session.transcripts import PROJECT
from midwatch.settings import GitCredentialSettings, SessionSettings, Settings
from midwatch.store.sessions import SqlSessions, SqlTranscripts, StoredSession
from midwatch.store.sql import SqlStore, open_store
from midwatch.workspace.environment import Credential, GitEnvironment, default_home
from midwatch.workspace.plan import RepoSpec
from midwatch.workspace.setup import WorkspaceOptions, default_cache
from midwatch.workspace.urls import parse_remote

# ------------------------------------------------------------ places
# Where a session is on this machine, and whether its runner is alive.

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
            raise map_disk_error(error, self._runner_lock) from error
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


# ------------------------------------------------------------ choices
# What may be chosen for one session, over the settings that hold for all.


@dataclass(frozen=True, slots=True)
class Choices:
    """None: as the settings have it. `wall` and `idle` are seconds."""

    model: str | None = None
    trust: bool | None = None
    sandbox: SandboxMode | None = None
    max_turns: int | None = None
    max_usd: float | None = None
    wall: float | None = None
    idle: float | None = None
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def over(self, earlier: Choices) -> Choices:
        """These, and where they say nothing, those that were made before."""
        made = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            earlier, **{n: v for n, v in made.items() if v is not None and v != ()}
        )

    def to_json(self) -> Json:
        """Only what was chosen; a no is a choice."""
        made = asdict(self).items()
        return {name: value for name, value in made if value is not None}


_CHOICES = TypeAdapter(Choices)


def choices_of(document: object) -> Choices:
    """The choices that a record holds; none where it holds something else."""
    try:
        return _CHOICES.validate_python(document or {})
    except ValidationError:
        return Choices()


def session_options(
    settings: SessionSettings, chosen: Choices, spent: float = 0.0
) -> SessionOptions:
    """The options of a run; `spent` dollars of the session's limit are gone already."""
    max_usd = chosen.max_usd or settings.max_usd
    trust = settings.trust_repository if chosen.trust is None else chosen.trust
    return SessionOptions(
        model=chosen.model or settings.model,
        fallback_model=settings.fallback_model,
        effort=settings.effort,
        permission_mode=settings.permission_mode,
        allowed_tools=(*settings.allowed_tools, *chosen.allow),
        denied_tools=(*settings.denied_tools, *chosen.deny),
        mcp_servers=settings.mcp_servers,
        subagents={
            name: SubagentSpec(
                one.description,
                one.prompt,
                None if one.tools is None else tuple(one.tools),
                one.model,
            )
            for name, one in settings.subagents.items()
        },
        trust_repository=trust,
        sandbox=chosen.sandbox or settings.sandbox,
        limits=Limits(
            wall=chosen.wall or settings.wall,
            idle=chosen.idle or settings.idle,
            max_turns=chosen.max_turns or settings.max_turns,
            max_usd=None if max_usd is None else max(max_usd - spent, 0.0),
            retries=settings.retries,
            permission_wait=settings.permission_wait,
        ),
        variables=settings.variables,
    )


def workspace_options(
    settings: SessionSettings,
    places: Places,
    place: Place,
    environment: GitEnvironment,
) -> WorkspaceOptions:
    """How the workspace of a session is set up, looked at and pushed."""
    return WorkspaceOptions(
        session=place.id,
        cache=places.cache,
        state=place.state,
        mirror_bytes=int(settings.cache_size),
        environment=environment,
    )


def git_environment(
    settings: SessionSettings, environ: Mapping[str, str]
) -> GitEnvironment:
    """What git may know, with the tokens that the settings name. Raises SettingsError."""
    tokens = [
        Credential(
            one.host, _token(one, environ, f"sessions.git[{number}]"), one.username
        )
        for number, one in enumerate(settings.git)
    ]
    return GitEnvironment.from_environ(environ, tokens)


def _token(one: GitCredentialSettings, environ: Mapping[str, str], path: str) -> str:
    if (one.token_variable is None) == (one.token_file is None):
        raise SettingsError(
            "needs either token_variable or token_file",
            path=path,
            hint="the token itself never stands in the settings",
        )
    if one.token_variable is not None:
        token = environ.get(one.token_variable, "").strip()
        where = f"the environment has no {one.token_variable}"
    else:
        assert one.token_file is not None
        try:
            token = one.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"cannot read {one.token_file}: {error}", path=f"{path}.token_file"
            ) from error
        where = f"{one.token_file} is empty"
    if not token:
        raise SettingsError(where, path=path, hint=f"it holds the token for {one.host}")
    return token


SILENT = 4 * HEARTBEAT
"""Seconds without a heartbeat after which a runner of another machine has crashed."""
_UNFINISHED = tuple(phase for phase in Phase if not phase.terminal)


@dataclass(frozen=True, slots=True)
class Desk:
    edge: Edge
    settings: Settings
    store: SqlStore
    sessions: SqlSessions
    transcripts: SqlTranscripts
    places: Places

    def git_environment(self) -> GitEnvironment:
        return git_environment(self.settings.sessions, self.edge.environ)

    def workspace_options(self, place: Place) -> WorkspaceOptions:
        environment = self.git_environment()
        return workspace_options(
            self.settings.sessions, self.places, place, environment
        )

    def redactor(self) -> Redactor:
        """Knows the key, the database's password and the tokens for git."""
        tokens = self.git_environment().credentials
        known = [secret for one in tokens for secret in one.secrets]
        return Redactor([*secrets_of(self.settings, self.edge.environ), *known])

    def access(self) -> ApiAccess:
        """How Claude is reached. Raises KeyRefused where there is no key."""
        key = api_key(self.settings, self.edge.environ)
        if not key:
            raise KeyRefused("there is no API key", hint="set ANTHROPIC_API_KEY")
        return ApiAccess(key, self.edge.environ.get("ANTHROPIC_BASE_URL") or None)

    async def session(self, session_id: str) -> StoredSession:
        """A session as it stands, closed if its runner is gone. Raises NotFound."""
        self.places.place(session_id)
        found = await self.sessions.get(session_id)
        if await self._close_if_crashed(found):
            return await self.sessions.get(session_id)
        return found

    async def close_crashed(self) -> None:
        """Mark as failed what is in no terminal phase and has no runner any more."""
        for session in await self.sessions.listed(phases=_UNFINISHED):
            await self._close_if_crashed(session)

    async def _close_if_crashed(self, session: StoredSession) -> bool:
        if session.status.phase.terminal or self.alive(session):
            return False
        place = self.places.place(session.id)
        if is_here(session, place) and (ended := ending_told_by(place, session)):
            await self.sessions.save_status(session.id, ended)
            return True
        return await self.sessions.fail_crashed(session)

    def alive(self, session: StoredSession) -> bool:
        """Whether its runner lives: exactly known here, by its heartbeat elsewhere."""
        place = self.places.place(session.id)
        if is_here(session, place):
            return place.running
        return session.silent_for < SILENT and not session.status.phase.terminal


def is_here(session: StoredSession, place: Place) -> bool:
    """Whether a session was last run on this machine, in this place."""
    where = (session.options.get("host"), session.options.get("folder"))
    return where == (this_host(), str(place.folder.path)) and place.exists


def ending_told_by(place: Place, session: StoredSession) -> SessionStatus | None:
    """The end that is in the session's folder, where the database was away when it came."""
    status = FolderRecords(place.folder.path).load_status()
    if status is None or not status.phase.terminal:
        return None
    known = session.status
    later = (status.run, status.last_seq) > (known.run, known.last_seq)
    return status if later else None


@asynccontextmanager
async def open_desk(edge: Edge) -> AsyncIterator[Desk]:
    settings = edge.settings()
    store = await open_store(settings.database)
    try:
        yield Desk(
            edge,
            settings,
            store,
            SqlSessions(store.transactions),
            SqlTranscripts(store.transactions),
            Places.of(settings.sessions),
        )
    finally:
        await store.close()


# ------------------------------------------------------------ request
# What somebody asks of a session, and the forms in which it is written on the command line.

MAX_PROMPT = 400_000
"""Characters; a line of the outbox has room for them."""
_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*|(?:[^@/:]+@)?[^/:@]+:")


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository as it was asked for; `branch` is where the session starts."""

    url: str
    branch: str | None = None
    push_branch: str | None = None

    def spec(self) -> RepoSpec:
        return RepoSpec(self.url, branch=self.branch, push_branch=self.push_branch)


@dataclass(frozen=True, slots=True)
class Request:
    """One run of a session. `prompt` is None where it goes on with what is unanswered.

    `carried` is what the session had done on other machines, whose outbox is not here; `moved`
    where its last run was on one.
    """

    id: str
    prompt: str | None
    repositories: tuple[Repository, ...]
    main: int = 0
    interactive: bool = False
    push: bool = False
    choices: Choices = field(default_factory=Choices)
    forked_from: str | None = None
    ticket: int | None = None
    carried: SessionStatus | None = None
    moved: bool = False
    asked: str = ""
    """The first prompt of the session, for lists."""


_REPOSITORIES = TypeAdapter(tuple[Repository, ...])
_STATUS = TypeAdapter(SessionStatus)


def new_id() -> str:
    return f"s-{uuid.uuid4().hex[:12]}"


def options_document(request: Request, host: str, folder: Path) -> Json:
    """What the record keeps of a request, so that it can be resumed anywhere."""
    carried = request.carried
    return {
        "host": host,
        "folder": str(folder),
        "repositories": _REPOSITORIES.dump_python(request.repositories, mode="json"),
        "main": request.main,
        "push": request.push,
        "choices": request.choices.to_json(),
        "carried": (
            None if carried is None else _STATUS.dump_python(carried, mode="json")
        ),
    }


def repositories_of(session: StoredSession) -> tuple[Repository, ...]:
    """The repositories in a record. Raises NotFound for a record that has none."""
    try:
        found = _REPOSITORIES.validate_python(session.options.get("repositories") or ())
    except ValidationError:
        found = ()
    if not found:
        raise NotFound(
            f"the record of session {session.id} names no repositories",
            hint="it was not started by `midwatch session`; resume it where it was",
        )
    return found


def carried_of(session: StoredSession) -> SessionStatus | None:
    document = session.options.get("carried")
    try:
        return None if document is None else _STATUS.validate_python(document)
    except ValidationError:
        return None


def earlier_choices(session: StoredSession) -> Choices:
    return choices_of(session.options.get("choices"))


# ------------------------------------------------------------------ the command line


def parse_repository(text: str, push_branch: str | None = None) -> Repository:
    """`URL[@BRANCH]`. An @ of the host or of a path that exists begins no branch.

    Raises WorkspaceRefused at once for what no workspace takes, before anything is recorded: a
    URL may hold a password.
    """
    url, branch = _split(text)
    return Repository(parse_remote(url).url, branch, push_branch)


def _split(text: str) -> tuple[str, str | None]:
    if os.path.exists(text):
        return text, None
    host = _AUTHORITY.match(text)
    start = host.end() if host else 0
    path, at, branch = text[start:].rpartition("@")
    if not at or not path:
        return text, None
    return text[:start] + path, branch or None


def read_prompt(text: str) -> str:
    """TEXT, `@file`, or `-` for standard input. Raises SettingsError."""
    if text == "-":
        prompt = sys.stdin.read(MAX_PROMPT + 1)
    elif text.startswith("@"):
        prompt = _read(Path(text[1:]))
    else:
        prompt = text
    if not prompt.strip():
        raise SettingsError("is empty", path="--prompt", hint="say what to do")
    if len(prompt) > MAX_PROMPT:
        raise SettingsError(
            f"is longer than {MAX_PROMPT} characters",
            path="--prompt",
            hint="put the text into a file of the repository",
        )
    return prompt


def _read(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as opened:
            return opened.read(MAX_PROMPT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {file}: {error}", path="--prompt") from None


def parse_repositories(
    written: Sequence[str], push_branch: str | None
) -> tuple[Repository, ...]:
    return tuple(parse_repository(one, push_branch) for one in written)


# ------------------------------------------------------------ kept
# The records of a session: rows in the store and, beside them, files in its own folder.
#
# The files let `midwatch session send` and any other program see how a session stands without a
# database. What the session code does not know (the prompt, the repositories, what was done on another
# machine) is added here.


class Kept:
    """Satisfies `SessionRecords`."""

    def __init__(
        self, desk: Desk, request: Request, place: Place, redactor: Redactor
    ) -> None:
        self._sessions = desk.sessions
        self._files = FolderRecords(place.folder.path)
        self._request = request
        self._place = place
        self._redactor = redactor

    async def save_spec(self, spec: SessionSpec) -> None:
        request = self._request
        whole = replace(
            spec,
            prompt=self._redactor.text(request.asked or request.prompt or ""),
            options=options_document(request, this_host(), self._place.folder.path),
        )
        self._files.folder.mkdir(parents=True, exist_ok=True)
        await self._files.save_spec(whole)
        await self._sessions.save_spec(whole)

    async def save_status(self, session_id: str, status: SessionStatus) -> None:
        if self._request.carried is not None:
            status = continued(self._request.carried, status)
        await self._files.save_status(session_id, status)
        await self._sessions.save_status(session_id, status)

    async def heartbeat(self, session_id: str, runner: str, at: datetime) -> None:
        await self._files.heartbeat(session_id, runner, at)
        await self._sessions.heartbeat(session_id, runner, at)

    async def save_repositories(
        self, session_id: str, repositories: Sequence[RepositoryRecord]
    ) -> None:
        await self._files.save_repositories(session_id, repositories)
        await self._sessions.save_repositories(session_id, repositories)


def continued(earlier: SessionStatus, now: SessionStatus) -> SessionStatus:
    """The status of a session that was on other machines before: what is a sum, summed."""
    return replace(
        _summed(now, earlier, 1),
        started_at=earlier.started_at or now.started_at,
        result=now.result or earlier.result,
    )


def elsewhere(whole: SessionStatus, here: SessionStatus) -> SessionStatus:
    """What a session has done on other machines: all of it without what it did here."""
    return _summed(whole, here, -1)


def _summed(one: SessionStatus, other: SessionStatus, sign: int) -> SessionStatus:
    return replace(
        one,
        run=one.run + sign * other.run,
        turns=one.turns + sign * other.turns,
        prompts=one.prompts + sign * other.prompts,
        retries=one.retries + sign * other.retries,
        active_seconds=one.active_seconds + sign * other.active_seconds,
        spend={
            model: _spend(one, model, 1) + _spend(other, model, sign)
            for model in {**one.spend, **other.spend}
        },
    )


def _spend(status: SessionStatus, model: str, sign: int) -> ModelUsage:
    spend = status.spend.get(model, ModelUsage())
    tokens = (sign * count for count in astuple(spend.usage))
    return ModelUsage(Usage(*tokens), sign * spend.cost_usd)


# ------------------------------------------------------------ removing
# Removing sessions, one by one or by age and size.


async def remove(desk: Desk, session_id: str) -> None:
    """Remove all of a session. Raises NotFound, and Conflict while it runs.

    The record goes last: what is interrupted half way is still listed, and can be removed again.
    """
    place = desk.places.place(session_id)
    session = await _recorded(desk, session_id)
    if session is None and not place.exists:
        raise NotFound(
            f"there is no session {session_id}", hint="see `midwatch session list`"
        )
    if place.running or (session is not None and desk.alive(session)):
        raise Conflict(
            f"session {session_id} is running",
            hint=f"`midwatch session end {session_id}`, or stop its runner",
        )
    with place.owned() if place.exists else contextlib.nullcontext():
        await asyncio.to_thread(_remove_files, place)
    key = TranscriptKey(project_key=PROJECT, session_id=conversation_id(session_id))
    await desk.transcripts.delete(key)
    if session is not None:
        await desk.sessions.remove(session_id)


async def prune_sessions(
    desk: Desk, keep_for: float | None, keep_bytes: float | None, dry_run: bool
) -> list[tuple[str, int]]:
    """Remove ended sessions of this machine: those that ended longer than `keep_for` seconds ago,
    then the oldest until `keep_bytes` are left. Returns their ids and sizes, the oldest first.
    """
    await desk.close_crashed()
    ended = [
        session
        for session in reversed(await desk.sessions.listed())
        if session.status.phase.terminal and not desk.alive(session)
        if is_here(session, desk.places.place(session.id))
    ]
    sizes = {one.id: await asyncio.to_thread(_size, desk, one.id) for one in ended}
    total, removed = sum(sizes.values()), []
    for session in ended:
        too_old = keep_for is not None and _age(session) > keep_for
        if too_old or (keep_bytes is not None and total > keep_bytes):
            total -= sizes[session.id]
            removed.append((session.id, sizes[session.id]))
            if not dry_run:
                await remove(desk, session.id)
    return removed


async def _recorded(desk: Desk, session_id: str) -> StoredSession | None:
    try:
        return await desk.sessions.get(session_id)
    except NotFound:
        return None


def _age(session: StoredSession) -> float:
    status = session.status
    since = status.ended_at or status.last_activity_at or session.created_at
    return max(SystemClock().now() - since, timedelta()).total_seconds()


def _size(desk: Desk, session_id: str) -> int:
    """Bytes of a session's folders on the disk; what vanishes meanwhile is not counted."""
    place, total = desk.places.place(session_id), 0
    for root in (place.folder.path, place.workspace):
        for folder, _, files in os.walk(root):
            for name in files:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _remove_files(place: Place) -> None:
    """The workspace first: an agent may have made it hard to remove."""
    for path in (place.workspace, place.folder.path):
        try:
            if path.exists():
                shutil.rmtree(path, onerror=_once_more)
        except OSError as error:
            raise map_disk_error(error, path) from error
    lock = place.state.with_name(f"{place.state.name}.lock")
    lock.unlink(missing_ok=True)


def _once_more(function: Callable[..., Any], path: str, _: Any) -> None:
    """Folders without permissions are opened, then it is tried again."""
    parent = Path(path).parent
    for folder in (parent, Path(path)):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(stat.S_IRWXU)
    if function in (os.open, os.scandir, os.lstat, os.listdir):
        shutil.rmtree(path)
    else:
        function(path)
