"""Transcripts of the claude program on SQL, as the Agent SDK's session store has them.

With these, a session goes on with its whole conversation on any machine that has the database.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select

from midwatch.errors import StoreRejected
from midwatch.model import Json
from midwatch.store.on_sql import OnSql
from midwatch.store.schema import transcript_entries
from midwatch.store.words import dump_json
from midwatch.store.work import Work

_MAX_KEY_BYTES = 600  # four of them must fit one index entry of PostgreSQL, 2704 bytes
_entries = transcript_entries.c


class SqlTranscripts(OnSql):
    """Satisfies `midwatch.session.records.Transcripts`; the SDK's conformance suite passes.

    Raises what `midwatch.store.translation` makes of the drivers' errors, and StoreRejected for a
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
        work = Work(connection, self._clock)
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
