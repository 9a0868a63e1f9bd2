"""The pull requests of tickets: found again after a crash, watched by one daemon at a time, and in the ticket's history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    Row,
    Table,
    delete,
    insert,
    select,
    update,
)

from midwatch.errors import Conflict
from midwatch.model import Json
from midwatch.store.engine import Transaction, TransactionalStore, audit_row
from midwatch.store.on_call import PullRequest
from midwatch.store.schema import (
    Document,
    Id,
    Instant,
    SanitizedText,
    metadata,
)
from midwatch.store.tickets import ticket

# The pull request of a ticket in a repository. `attempt` counts from 1: another one only where a person asked for it.
pull_requests = Table(
    "pull_requests",
    metadata,
    Column("id", Id, primary_key=True),
    Column("ticket_id", Id, ForeignKey("tickets.id"), nullable=False),
    Column("repository", SanitizedText, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("branch", SanitizedText, nullable=False),
    Column("base", SanitizedText, nullable=False),
    # See `midwatch.store.on_call.PullRequestState`.
    Column("state", SanitizedText, nullable=False),
    Column("number", Integer),
    Column("url", SanitizedText),
    # The commit that was pushed last, and the session that made it.
    Column("head", SanitizedText),
    Column("session_id", SanitizedText, nullable=False),
    Column("requested_by", SanitizedText, nullable=False),
    # The session whose changes wait for a person who approves them.
    Column("waiting", SanitizedText),
    Column("approved_by", SanitizedText),
    Column("checks", SanitizedText, nullable=False),
    Column("review", SanitizedText, nullable=False),
    # What the forge sent last, by the path of the request: its entity tag, and what was read of it.
    Column("seen", Document, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("checked_at", Instant),
    # When a daemon looks at it again; null for never.
    Column("next_check_at", Instant),
    Column("failures", Integer, nullable=False, default=0),
    Column("last_error", SanitizedText),
    Column("told_resolved_at", Instant),
)

_columns = pull_requests.c


def pull_requests_of(tx: Transaction, ticket_id: int) -> list[PullRequest]:
    """Return the pull requests of a ticket, by repository, the newest of each last."""
    rows = tx.all(
        select(pull_requests)
        .where(_columns.ticket_id == ticket_id)
        .order_by(_columns.repository, _columns.attempt)
    )
    return list(map(_of, rows))


class SqlPullRequests(TransactionalStore):
    """What opens and watches pull requests writes. Errors are those of `midwatch.store.errors`."""

    async def save(
        self,
        ticket_id: int,
        repository: str,
        attempt: int,
        values: Json,
        *,
        actor: str = "",
        why: str = "",
        seconds: float | None = None,
    ) -> PullRequest:
        """Add a pull request, or change it, and return it.

        Args:
            ticket_id: The ticket.
            repository: The URL of the repository.
            attempt: Which one of this ticket and repository.
            values: The columns to set.
            actor: Who does it, for the ticket's history.
            why: What the history says if it is new or its state changes; empty for no entry.
            seconds: When a daemon looks at it, from now; None for never.
        """
        return await self._run(
            _save, (ticket_id, repository, attempt), values, actor, why, seconds
        )

    async def change(
        self,
        known: PullRequest,
        values: Json,
        *,
        actor: str = "",
        why: str = "",
        seconds: float | None = None,
    ) -> PullRequest:
        """Do the same for one that was read."""
        return await self._run(_change, known, values, actor, why, seconds)

    async def remove(self, known: PullRequest) -> None:
        """Remove one that was never opened, as there is nothing to merge."""
        await self._run(_remove, known.id)

    async def due(self, seconds: float, limit: int = 20) -> Sequence[PullRequest]:
        """Claim what is to be looked at now, for `seconds`: no other daemon gets it before."""
        return await self._run(_due, seconds, limit)

    async def tell_resolved(self, known: PullRequest) -> bool:
        """Record that a comment says that the ticket is resolved. Return whether it was not recorded before."""
        return await self._run(_tell_resolved, known.id)


Place = tuple[int, str, int]


def _save(
    tx: Transaction,
    place: Place,
    values: Json,
    actor: str,
    why: str,
    seconds: float | None,
) -> PullRequest:
    ticket_id, repository, attempt = place
    new = {
        "ticket_id": ticket_id,
        "repository": repository,
        "attempt": attempt,
        "checks": "none",
        "review": "none",
        "seen": {},
        "failures": 0,
        "created_at": tx.now,
        **values,
    }
    row = tx.one(_at(place))
    if row is not None:
        return _change(tx, _of(row), values, actor, why, seconds)
    tx.execute(insert(pull_requests).values({**new, **_next(tx, seconds)}))
    _note(tx, ticket_id, actor, why)
    [added] = tx.all(_at(place))
    return _of(added)


def _at(place: Place) -> Any:
    names = ("ticket_id", "repository", "attempt")
    same = [_columns[name] == part for name, part in zip(names, place, strict=True)]
    return select(pull_requests).where(*same).with_for_update()


def _change(
    tx: Transaction,
    known: PullRequest,
    values: Json,
    actor: str,
    why: str,
    seconds: float | None,
) -> PullRequest:
    row = tx.one(select(pull_requests).where(_columns.id == known.id).with_for_update())
    if row is None:
        raise Conflict(f"ticket {known.ticket} has no such pull request")
    tx.execute(
        update(pull_requests)
        .where(_columns.id == known.id)
        .values({**values, **_next(tx, seconds)})
    )
    if values.get("state", row.state) != row.state:
        _note(tx, row.ticket_id, actor, why)
    [changed] = tx.all(select(pull_requests).where(_columns.id == known.id))
    return _of(changed)


def _next(tx: Transaction, seconds: float | None) -> Json:
    after = None if seconds is None else tx.now + timedelta(seconds=seconds)
    return {"next_check_at": after}


def _note(tx: Transaction, ticket_id: int, actor: str, why: str) -> None:
    if why:
        status = ticket(tx, ticket_id).status.value
        tx.note([audit_row(ticket_id, actor, "pull_request", status, status, why)])


def _due(tx: Transaction, seconds: float, limit: int) -> list[PullRequest]:
    rows = tx.all(
        select(pull_requests)
        .where(_columns.next_check_at.is_not(None), _columns.next_check_at <= tx.now)
        .order_by(_columns.next_check_at, _columns.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    until = tx.now + timedelta(seconds=seconds)
    ids = [row.id for row in rows]
    if ids:
        tx.execute(
            update(pull_requests)
            .where(_columns.id.in_(ids))
            .values(next_check_at=until)
        )
    return list(map(_of, rows))


def _remove(tx: Transaction, id_: int) -> None:
    unopened = (_columns.id == id_, _columns.number.is_(None))
    tx.execute(delete(pull_requests).where(*unopened))


def _tell_resolved(tx: Transaction, id_: int) -> bool:
    changed = tx.execute(
        update(pull_requests)
        .where(_columns.id == id_, _columns.told_resolved_at.is_(None))
        .values(told_resolved_at=tx.now)
    )
    return bool(changed.rowcount)


_RENAMED = {"ticket": "ticket_id", "session": "session_id"}
_FIELDS = [(one.name, _RENAMED.get(one.name, one.name)) for one in fields(PullRequest)]


def _of(row: Row[Any]) -> PullRequest:
    return PullRequest(**{name: getattr(row, column) for name, column in _FIELDS})
