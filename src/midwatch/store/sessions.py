"""Sessions on SQL, beside the tickets: what was asked for, how it stands, who runs it.

The rows are written by the runner of a session (`midwatch.session.records.SessionRecords`) and
read by everybody else. A heartbeat is stamped by the database's clock, the one that all machines share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Row, delete, select, update

from midwatch.errors import NotFound
from midwatch.events import Failure, Phase
from midwatch.model import Json
from midwatch.status import SessionStatus
from midwatch.store.on_sql import OnSql
from midwatch.store.reading import ticket
from midwatch.store.schema import sessions
from midwatch.store.work import Work, audit_row

TERMINAL = tuple(phase.value for phase in Phase if phase.terminal)
CRASH = "RunnerCrashed"
_STATUS: TypeAdapter[SessionStatus] = TypeAdapter(SessionStatus)


class Spec(Protocol):
    """What `SessionSpec` is to this module, which stands below it."""

    @property
    def id(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def cwd(self) -> str: ...
    @property
    def directories(self) -> tuple[str, ...]: ...
    @property
    def model(self) -> str: ...
    @property
    def interactive(self) -> bool: ...
    @property
    def prompt(self) -> str: ...
    @property
    def options(self) -> Json: ...
    @property
    def forked_from(self) -> str | None: ...
    @property
    def ticket(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session as the store knows it. `repositories` are `RepositoryRecord`s as plain data.

    `silent_for` is the seconds since its runner was last heard of.
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


class SqlSessions(OnSql):
    """Satisfies `SessionRecords`. Writes about a session that was removed do nothing."""

    # -------------------------------------------------- its runner

    async def save_spec(self, spec: Spec) -> None:
        """Keep what was asked for. Again keeps `created_at` and all that has happened since."""
        await self._run(_save_spec, spec)

    async def save_status(self, session_id: str, status: SessionStatus) -> None:
        values = {
            "phase": status.phase.value,
            "status": _STATUS.dump_python(status, mode="json"),
            "cost_usd": status.cost_usd,
        }
        await self._run(_change, session_id, values)

    async def heartbeat(self, session_id: str, runner: str, at: datetime) -> None:
        """Note that `runner` works on it. What counts is the database's clock, not `at`."""
        await self._run(_change, session_id, {"runner": runner})

    async def save_repositories(
        self, session_id: str, repositories: Sequence[Any]
    ) -> None:
        documents = [asdict(repository) for repository in repositories]
        await self._run(_save, session_id, {"repositories": documents})

    # -------------------------------------------------- everybody else

    async def get(self, session_id: str) -> StoredSession:
        """Raises NotFound."""
        return await self._read(_get, session_id)

    async def listed(
        self,
        *,
        phases: Sequence[Phase] = (),
        ticket: int | None = None,
        limit: int | None = None,
    ) -> list[StoredSession]:
        """The newest first; without `phases`, those in any."""
        return await self._read(_listed, phases, ticket, limit)

    async def fail_crashed(self, session: StoredSession) -> bool:
        """Close a session whose runner ended without a word: Failed, by crash.

        False where the runner was heard of since `session` was read, or has closed it itself.
        """
        return await self._run(_fail_crashed, session)

    async def save_options(self, session_id: str, options: Json) -> None:
        """Replace the options that were asked for."""
        await self._run(_save, session_id, {"options": options})

    async def remove(self, session_id: str) -> None:
        """Forget a session. Its transcript is `SqlTranscripts`' to forget. Raises NotFound."""
        await self._run(_remove, session_id)

    async def note(self, ticket_id: int, session_id: str, actor: str, why: str) -> None:
        """Tell a ticket's history of a session. Changes nothing of the ticket. Raises NotFound."""
        await self._run(_note, ticket_id, f"session {session_id}: {why}", actor)


# ------------------------------------------------------------------ statements


def _save_spec(work: Work, spec: Spec) -> None:
    asked: Json = {
        "ticket_id": spec.ticket,
        "forked_from": spec.forked_from,
        "model": spec.model,
        "interactive": spec.interactive,
        "prompt": spec.prompt,
        "cwd": spec.cwd,
        "directories": list(spec.directories),
        "options": spec.options,
        "heartbeat_at": work.now,
    }
    new = {
        "id": spec.id,
        "created_at": spec.created_at,
        "phase": Phase.PENDING.value,
        "cost_usd": 0.0,
        "repositories": [],
    }
    work.insert_or_update(sessions, {**new, **asked}, asked)


def _change(work: Work, session_id: str, values: Json) -> None:
    """Only its runner calls this: so each call is a sign of life."""
    work.execute(
        update(sessions)
        .where(sessions.c.id == session_id)
        .values(heartbeat_at=work.now, **values)
    )


def _save(work: Work, session_id: str, values: Json) -> None:
    work.execute(update(sessions).where(sessions.c.id == session_id).values(values))


def _get(work: Work, session_id: str) -> StoredSession:
    row = work.one(select(sessions).where(sessions.c.id == session_id))
    if row is None:
        raise _missing(session_id)
    return _session_of(row, work.now)


def _listed(
    work: Work, phases: Sequence[Phase], ticket_id: int | None, limit: int | None
) -> list[StoredSession]:
    query = select(sessions).order_by(sessions.c.created_at.desc(), sessions.c.id)
    if phases:
        query = query.where(sessions.c.phase.in_([phase.value for phase in phases]))
    if ticket_id is not None:
        query = query.where(sessions.c.ticket_id == ticket_id)
    return [_session_of(row, work.now) for row in work.all(query.limit(limit))]


def _fail_crashed(work: Work, session: StoredSession) -> bool:
    status = session.status
    crash = Failure(
        kind=CRASH,
        message=f"its runner {session.runner or ''} ended without a word",
        hint=f"`midwatch session resume {session.id}`; transcript and workspace are kept",
        temporary=True,
    )
    failed = replace(
        status,
        phase=Phase.FAILED,
        reason=CRASH,
        error=crash,
        ended_at=session.heartbeat_at,
        pending_permissions=(),
    )
    statement = (
        update(sessions)
        .where(
            sessions.c.id == session.id,
            sessions.c.heartbeat_at == session.heartbeat_at,
            sessions.c.phase.not_in(TERMINAL),
        )
        .values(
            phase=Phase.FAILED.value,
            status=_STATUS.dump_python(failed, mode="json"),
        )
    )
    return bool(work.execute(statement).rowcount)


def _remove(work: Work, session_id: str) -> None:
    if not work.execute(delete(sessions).where(sessions.c.id == session_id)).rowcount:
        raise _missing(session_id)


def _note(work: Work, ticket_id: int, why: str, actor: str) -> None:
    status = ticket(work, ticket_id).status.value
    work.note([audit_row(ticket_id, actor, "session", status, status, why)])


def _missing(session_id: str) -> NotFound:
    return NotFound(
        f"there is no session {session_id}", hint="see `midwatch session list`"
    )


def _session_of(row: Row[Any], now: datetime) -> StoredSession:
    return StoredSession(
        id=row.id,
        created_at=row.created_at,
        ticket=row.ticket_id,
        forked_from=row.forked_from,
        model=row.model,
        interactive=row.interactive,
        prompt=row.prompt,
        cwd=row.cwd,
        directories=tuple(row.directories),
        options=row.options,
        status=_status_of(row.status, Phase(row.phase)),
        repositories=tuple(row.repositories),
        runner=row.runner,
        heartbeat_at=row.heartbeat_at,
        silent_for=max(now - row.heartbeat_at, timedelta()).total_seconds(),
    )


def _status_of(document: Mapping[str, Any] | None, phase: Phase) -> SessionStatus:
    """What a later version wrote may not be readable: then the phase is what is known."""
    try:
        return _STATUS.validate_python(document or {"phase": phase})
    except ValidationError:
        return SessionStatus(phase=phase)
