"""Sessions on SQL, beside the tickets: what was asked for, how it stands, who runs it.

The rows are written by the runner of a session (`midwatch.session.records.SessionRecords`) and
read by everybody else. A heartbeat is stamped by the database's clock, the one that all machines share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ColumnElement, Row, delete, func, select, update

from midwatch.errors import NotFound, StoreRejected
from midwatch.model import Json
from midwatch.session.events import Failure, Phase
from midwatch.session.status import SessionStatus
from midwatch.store.engine import Transaction, TransactionalStore, audit_row
from midwatch.store.schema import dump_json, sessions, transcript_entries
from midwatch.store.tickets import ticket

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


class SqlSessions(TransactionalStore):
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


def _save_spec(work: Transaction, spec: Spec) -> None:
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


def _change(work: Transaction, session_id: str, values: Json) -> None:
    """Only its runner calls this: so each call is a sign of life."""
    work.execute(
        update(sessions)
        .where(sessions.c.id == session_id)
        .values(heartbeat_at=work.now, **values)
    )


def _save(work: Transaction, session_id: str, values: Json) -> None:
    work.execute(update(sessions).where(sessions.c.id == session_id).values(values))


def _get(work: Transaction, session_id: str) -> StoredSession:
    row = work.one(select(sessions).where(sessions.c.id == session_id))
    if row is None:
        raise _missing(session_id)
    return _session_of(row, work.now)


def _listed(
    work: Transaction, phases: Sequence[Phase], ticket_id: int | None, limit: int | None
) -> list[StoredSession]:
    query = select(sessions).order_by(sessions.c.created_at.desc(), sessions.c.id)
    if phases:
        query = query.where(sessions.c.phase.in_([phase.value for phase in phases]))
    if ticket_id is not None:
        query = query.where(sessions.c.ticket_id == ticket_id)
    return [_session_of(row, work.now) for row in work.all(query.limit(limit))]


def _fail_crashed(work: Transaction, session: StoredSession) -> bool:
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


def _remove(work: Transaction, session_id: str) -> None:
    if not work.execute(delete(sessions).where(sessions.c.id == session_id)).rowcount:
        raise _missing(session_id)


def _note(work: Transaction, ticket_id: int, why: str, actor: str) -> None:
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


# ------------------------------------------------------------ transcripts
# Transcripts of the claude program on SQL, as the Agent SDK's session store has them.
#
# With these, a session goes on with its whole conversation on any machine that has the database.

_MAX_KEY_BYTES = 600  # four of them must fit one index entry of PostgreSQL, 2704 bytes
_entries = transcript_entries.c


class SqlTranscripts(TransactionalStore):
    """Satisfies `midwatch.session.records.Transcripts`; the SDK's conformance suite passes.

    Raises what `midwatch.store.errors` makes of the drivers' errors, and StoreRejected for a
    part of a key that is longer than 600 bytes.
    """

    async def append(self, key: Any, entries: list[Any]) -> None:
        """Append entries; one whose uuid the transcript has already is left out."""
        if not entries:
            return
        rows = [
            {**_parts(key), "uuid": _uuid(entry), "entry": dump_json(entry)}
            for entry in entries
        ]
        await self.transactions.run(self._append, rows)

    async def load(self, key: Any) -> list[Any] | None:
        """The entries in order; None for a transcript that was never written."""
        query = select(_entries.entry).where(*_is(_parts(key))).order_by(_entries.id)
        found = await self.transactions.read(lambda c: c.scalars(query).all())
        return [json.loads(entry) for entry in found] or None

    async def list_sessions(self, project_key: str) -> list[Any]:
        """The sessions of a project, with the time of their last change in ms since 1970."""
        query = (
            select(_entries.session_id, func.max(_entries.at).label("at"))
            .where(_entries.project_key == project_key, _entries.subpath == "")
            .group_by(_entries.session_id)
        )
        rows = await self.transactions.read(lambda c: c.execute(query).all())
        return [
            {"session_id": row.session_id, "mtime": int(row.at.timestamp() * 1000)}
            for row in rows
        ]

    async def delete(self, key: Any) -> None:
        """Forget a transcript; without a subpath, its subagents' as well."""
        parts = _parts(key)
        if not parts["subpath"]:
            del parts["subpath"]
        statement = delete(transcript_entries).where(*_is(parts))
        await self.transactions.run(lambda c: c.execute(statement).rowcount)

    async def list_subkeys(self, key: Any) -> list[str]:
        parts = _parts({**key, "subpath": ""})
        del parts["subpath"]
        query = select(_entries.subpath).where(*_is(parts), _entries.subpath != "")
        query = query.distinct().order_by(_entries.subpath)
        return list(await self.transactions.read(lambda c: c.scalars(query).all()))

    def _append(self, connection: Any, rows: Sequence[Json]) -> None:
        work = Transaction(connection, self._clock)
        work.insert_new(transcript_entries, [{**row, "at": work.now} for row in rows])


def _parts(key: Mapping[str, str]) -> dict[str, str]:
    parts = {
        "project_key": key["project_key"],
        "session_id": key["session_id"],
        "subpath": key.get("subpath") or "",
    }
    for name, part in parts.items():
        if len(part.encode("utf-8", "replace")) > _MAX_KEY_BYTES:
            raise StoreRejected(
                f"the {name} of a transcript is too long: {part[:80]!r}…",
                hint=f"it may have {_MAX_KEY_BYTES} bytes",
            )
    return parts


def _is(parts: Mapping[str, str]) -> list[ColumnElement[bool]]:
    return [_entries[name] == part for name, part in parts.items()]


def _uuid(entry: Any) -> str | None:
    """What an entry is known by; one without may come twice, and then is there twice."""
    uuid = entry.get("uuid") if isinstance(entry, Mapping) else None
    if not isinstance(uuid, str):
        return None
    return uuid if len(uuid.encode("utf-8", "replace")) <= _MAX_KEY_BYTES else None
