"""The records of a session: rows in the store and, beside them, files in its own folder.

The files let `midwatch session send` and any other program see how a session stands without a
database. What the session code does not know (the prompt, the repositories, what was done on another
machine) is added here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace
from datetime import datetime

from midwatch.cli.session.desk import Desk
from midwatch.cli.session.places import Place, this_host
from midwatch.cli.session.request import Request, options_document
from midwatch.model import Usage
from midwatch.redaction import Redactor
from midwatch.session.events import Spend
from midwatch.session.records import FolderRecords, RepositoryRecord, SessionSpec
from midwatch.session.status import SessionStatus


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


def _spend(status: SessionStatus, model: str, sign: int) -> Spend:
    spend = status.spend.get(model, Spend())
    tokens = (sign * count for count in astuple(spend.usage))
    return Spend(Usage(*tokens), sign * spend.cost_usd)
