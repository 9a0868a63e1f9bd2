"""Sessions on SQL, beside the tickets, and the transcripts of their conversations.

A heartbeat is stamped with the database's clock, the one that all machines share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ColumnElement, Row, and_, delete, func, or_, select, update

from midwatch.errors import NotFound, StoreRejected
from midwatch.model import Json
from midwatch.session.events import Phase
from midwatch.session.options import PullRequestsAsked
from midwatch.session.records import (
    SessionSpec,
    StoredSession,
    repository_to_json,
)
from midwatch.session.status import SessionStatus
from midwatch.store.engine import Transaction, TransactionalStore, audit_row
from midwatch.store.schema import dump_json, sessions, transcript_entries
from midwatch.workspace.inspect import RepoState

_TERMINAL = tuple(phase.value for phase in Phase if phase.terminal)
_STATUS: TypeAdapter[SessionStatus] = TypeAdapter(SessionStatus)
_MAX_KEY_BYTES = 600  # four of them must fit one index entry of PostgreSQL, 2704 bytes
_entries = transcript_entries.c


class SqlSessions(TransactionalStore):
    """The records of sessions, as `midwatch.session.records.SessionStore`.

    A write for a session that was removed does nothing. Errors are those of `midwatch.store.errors`.
    """

    # -------------------------------------------------- written by its runner

    async def save_spec(self, spec: SessionSpec) -> None:
        """Keep what was asked for. A second call keeps `created_at`, the status and the repositories."""
        await self._run(_save_spec, spec)

    async def save_status(self, session_id: str, status: SessionStatus) -> None:
        values = {
            "phase": status.phase.value,
            "status": _STATUS.dump_python(status, mode="json"),
            "cost_usd": status.cost_usd,
        }
        await self._run(_change, session_id, values)

    async def heartbeat(self, session_id: str, runner: str, at: datetime) -> None:
        """Record that `runner` works on it, at the time of the database's clock; `at` is not used."""
        await self._run(_change, session_id, {"runner": runner})

    async def save_repositories(
        self, session_id: str, repositories: Sequence[RepoState]
    ) -> None:
        documents = [repository_to_json(one) for one in repositories]
        await self._run(_save, session_id, {"repositories": documents})

    # -------------------------------------------------- read and changed by all others

    async def get(self, session_id: str) -> StoredSession:
        """Return a session. Raises NotFound."""
        return await self._read(_get, session_id)

    async def unpublished(self, seconds: float) -> list[StoredSession]:
        """Return the sessions whose pull requests were asked for and are still to be opened, the oldest first.

        Without those that failed or were stopped, and those that were created more than `seconds` ago.
        """
        return await self._read(_unpublished, seconds)

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
        return await self._read(_listed, phases, ticket, limit, after)

    async def fail_crashed(self, session: StoredSession) -> bool:
        """Save `session.crashed()`. Return whether it was saved.

        It is not if the runner has written a heartbeat, or the end, since `session` was read.
        """
        return await self._run(_fail_crashed, session)

    async def save_options(self, session_id: str, options: Json) -> None:
        """Replace the options of the record."""
        await self._run(_save, session_id, {"options": options})

    async def remove(self, session_id: str) -> None:
        """Remove a record; `SqlTranscripts.delete` removes the transcript. Raises NotFound."""
        await self._run(_remove, session_id)

    async def note(self, ticket_id: int, session_id: str, actor: str, why: str) -> None:
        """Add a session to the history of a ticket, which stays as it is. Raises NotFound."""
        await self._run(_note, ticket_id, f"session {session_id}: {why}", actor)


# ------------------------------------------------------------------ statements


def _save_spec(work: Transaction, spec: SessionSpec) -> None:
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
    """Only the runner of a session calls this, so each call counts as a heartbeat."""
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
    work: Transaction,
    phases: Sequence[Phase],
    ticket_id: int | None,
    limit: int | None,
    after: tuple[datetime, str] | None,
) -> list[StoredSession]:
    query = select(sessions).order_by(sessions.c.created_at.desc(), sessions.c.id)
    if phases:
        query = query.where(sessions.c.phase.in_([phase.value for phase in phases]))
    if ticket_id is not None:
        query = query.where(sessions.c.ticket_id == ticket_id)
    if after is not None:
        at, id_ = after
        later = and_(sessions.c.created_at == at, sessions.c.id > id_)
        query = query.where(or_(sessions.c.created_at < at, later))
    return [_session_of(row, work.now) for row in work.all(query.limit(limit))]


_MAY_COMPLETE = [one.value for one in Phase if one not in (Phase.FAILED, Phase.STOPPED)]
_ASKED = sessions.c.options[PullRequestsAsked.KEY].as_string().is_not(None)


def _unpublished(work: Transaction, seconds: float) -> list[StoredSession]:
    """The index of phases bounds what is read; few of these have been asked for it."""
    recent = sessions.c.created_at > work.now - timedelta(seconds=seconds)
    query = (
        select(sessions)
        .where(sessions.c.phase.in_(_MAY_COMPLETE), recent, _ASKED)
        .order_by(sessions.c.created_at, sessions.c.id)
    )
    return [_session_of(row, work.now) for row in work.all(query)]


def _fail_crashed(work: Transaction, session: StoredSession) -> bool:
    crashed = session.crashed()
    statement = (
        update(sessions)
        .where(
            sessions.c.id == session.id,
            sessions.c.heartbeat_at == session.heartbeat_at,
            sessions.c.phase.not_in(_TERMINAL),
        )
        .values(
            phase=crashed.phase.value,
            status=_STATUS.dump_python(crashed, mode="json"),
        )
    )
    return bool(work.execute(statement).rowcount)


def _remove(work: Transaction, session_id: str) -> None:
    if not work.execute(delete(sessions).where(sessions.c.id == session_id)).rowcount:
        raise _missing(session_id)


def _note(work: Transaction, ticket_id: int, why: str, actor: str) -> None:
    from midwatch.store.tickets import ticket  # slow to import

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
    """A later version may have written a status that is not readable; its phase is."""
    try:
        return _STATUS.validate_python(document or {"phase": phase})
    except ValidationError:
        return SessionStatus(phase=phase)


# ------------------------------------------------------------------ transcripts


class SqlTranscripts(TransactionalStore):
    """Transcripts of the claude program, as `midwatch.session.records.Transcripts`.

    With them, any machine that reaches the database can resume a session. They pass the Agent SDK's
    conformance suite. Errors are those of `midwatch.store.errors`, and StoreRejected for a part of a
    key that is longer than 600 bytes.
    """

    async def append(self, key: Any, entries: list[Any]) -> None:
        """Append entries, without those whose uuid the transcript has. A batch that comes twice in a row is kept once.

        Some entries have no uuid, and the Agent SDK repeats a batch whose acknowledgement was lost.
        """
        if not entries:
            return
        rows = [
            {**_parts(key), "uuid": _uuid(entry), "entry": dump_json(entry)}
            for entry in entries
        ]
        await self.transactions.run(self._append, rows)

    async def load(self, key: Any) -> list[Any] | None:
        """Return the entries in order; None for a transcript that was never written."""
        query = select(_entries.entry).where(*_is(_parts(key))).order_by(_entries.id)
        found = await self.transactions.read(lambda c: c.scalars(query).all())
        return [json.loads(entry) for entry in found] or None

    async def list_sessions(self, project_key: str) -> list[Any]:
        """Return the sessions of a project, each with the time of its last change in ms since 1970."""
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
        """Delete a transcript; without a subpath, those of its subagents as well."""
        parts = _parts(key)
        if not parts["subpath"]:
            del parts["subpath"]
        statement = delete(transcript_entries).where(*_is(parts))
        await self.transactions.run(lambda c: c.execute(statement).rowcount)

    async def list_subkeys(self, key: Any) -> list[str]:
        """Return the subpaths of a session: the transcripts of its subagents."""
        parts = _parts({**key, "subpath": ""})
        del parts["subpath"]
        query = select(_entries.subpath).where(*_is(parts), _entries.subpath != "")
        query = query.distinct().order_by(_entries.subpath)
        return list(await self.transactions.read(lambda c: c.scalars(query).all()))

    def _append(self, connection: Any, rows: Sequence[Json]) -> None:
        parts = {name: rows[0][name] for name in _KEY_COLUMNS}
        query = select(_entries.entry).where(*_is(parts)).order_by(_entries.id.desc())
        last = connection.scalars(query.limit(len(rows))).all()
        if list(reversed(last)) == [row["entry"] for row in rows]:
            return
        work = Transaction(connection, self._clock)
        work.insert_new(transcript_entries, [{**row, "at": work.now} for row in rows])


_KEY_COLUMNS = ("project_key", "session_id", "subpath")


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
    """Return the uuid of an entry. One without is stored as often as it is appended."""
    uuid = entry.get("uuid") if isinstance(entry, Mapping) else None
    if not isinstance(uuid, str):
        return None
    return uuid if len(uuid.encode("utf-8", "replace")) <= _MAX_KEY_BYTES else None
