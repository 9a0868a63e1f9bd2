"""Actions that a person approved: each is claimed at most once, and each change is in the history of its ticket."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from sqlalchemy import Column, ForeignKey, Index, Row, Table, func, select, update

from midwatch.errors import Conflict, NotFound
from midwatch.model import TicketStatus
from midwatch.store.action_runs_protocol import UNENDED, ActionRun, Approval, RunState
from midwatch.store.engine import Transaction, audit_row
from midwatch.store.schema import (
    Document,
    Id,
    Instant,
    SanitizedText,
    metadata,
    tickets,
)
from midwatch.store.tickets import ticket

action_runs = Table(
    "action_runs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("ticket_id", Id, ForeignKey("tickets.id"), nullable=False),
    # The id of the proposal: it can be approved once.
    Column("proposal", SanitizedText, nullable=False),
    Column("diagnosis_id", Id, nullable=False),
    Column("kind", SanitizedText, nullable=False),
    Column("target", Document, nullable=False),
    Column("what", SanitizedText, nullable=False),
    Column("state", SanitizedText, nullable=False),
    Column("approved_by", SanitizedText, nullable=False),
    Column("channel", SanitizedText, nullable=False),
    Column("approved_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("run_by", SanitizedText),
    # See `midwatch.process_identity`; null if others cannot see whether it still runs.
    Column("process", SanitizedText),
    Column("started_at", Instant),
    # When a run that has not ended counts as unknown.
    Column("until", Instant),
    Column("ended_at", Instant),
    Column("output", SanitizedText),
)
Index(
    "action_runs_once",
    action_runs.c.ticket_id,
    action_runs.c.proposal,
    unique=True,
)

_SYSTEM = "midwatch"
_LOST = "the process that ran it ended, or did not say how it ended: see for yourself; it is not run again by itself"
_LATE = "it was not started in time"
_LATEST = 5000
"""Runs of all tickets that are looked at for those that have not ended."""


def approve_action(tx: Transaction, approval: Approval) -> ActionRun:
    """Store an approval; see `ActionStore`."""
    status = _locked(tx, approval.ticket_id)
    found = tx.one(
        select(action_runs).where(
            action_runs.c.ticket_id == approval.ticket_id,
            action_runs.c.proposal == approval.proposal,
        )
    )
    if found is not None:
        run = _run_of(found)
        if run.state is RunState.APPROVED and tx.now < run.expires_at:
            return run
        state = run.state.value.replace("_", " ")
        raise Conflict(
            f"{run.approved_by} approved {run.proposal} already: {state}",
            hint="list the actions again, then decide",
        )
    if status == TicketStatus.RESOLVED:
        raise Conflict(f"ticket {approval.ticket_id} is resolved already")
    row = {
        "ticket_id": approval.ticket_id,
        "proposal": approval.proposal,
        "diagnosis_id": approval.diagnosis_id,
        "kind": approval.kind,
        "target": approval.target,
        "what": approval.what,
        "state": RunState.APPROVED.value,
        "approved_by": approval.by,
        "channel": approval.channel,
        "approved_at": tx.now,
        "expires_at": tx.now + timedelta(seconds=approval.expires_in),
    }
    tx.execute(action_runs.insert(), row)
    where = f"{approval.what} ({approval.proposal}, by {approval.channel})"
    _note(tx, approval.ticket_id, status, approval.by, "approve_action", where)
    stored = tx.one(
        select(action_runs).where(
            action_runs.c.ticket_id == approval.ticket_id,
            action_runs.c.proposal == approval.proposal,
        )
    )
    assert stored is not None  # it was inserted
    return _run_of(stored)


def start_action(
    tx: Transaction, run_id: int, by: str, process: str | None, seconds: float
) -> bool:
    """Claim an approved action; see `ActionStore`."""
    run = _run(tx, run_id)
    status = _locked(tx, run.ticket_id)
    if status == TicketStatus.RESOLVED:
        return False
    claimed = tx.execute(
        update(action_runs)
        .where(
            action_runs.c.id == run_id,
            action_runs.c.state == RunState.APPROVED.value,
            action_runs.c.expires_at > tx.now,
        )
        .values(
            state=RunState.RUNNING.value,
            run_by=by,
            process=process,
            started_at=tx.now,
            until=tx.now + timedelta(seconds=seconds),
        )
    )
    if not claimed.rowcount:
        return False
    _note(tx, run.ticket_id, status, by, "run_action", f"{run.what} ({run.proposal})")
    return True


def finish_action(
    tx: Transaction, run_id: int, state: RunState, output: str
) -> ActionRun:
    """Store how an action ended; see `ActionStore`."""
    run = _run(tx, run_id)
    status = _locked(tx, run.ticket_id)
    _end(tx, run, status, state, output, run.run_by or _SYSTEM)
    return _run(tx, run_id)


def list_action_runs(tx: Transaction, ticket_id: int) -> list[ActionRun]:
    """Return the approved actions of a ticket, the oldest first. Raises NotFound."""
    ticket(tx, ticket_id)
    rows = tx.all(select(action_runs).where(action_runs.c.ticket_id == ticket_id))
    return sorted(map(_run_of, rows), key=lambda run: run.id)


def unended_actions(tx: Transaction) -> list[ActionRun]:
    """Return what has not ended, of all tickets; see `ActionStore`."""
    # The latest ones by their primary key: an approval expires within a day, and each is a person's decision.
    latest = select(func.max(action_runs.c.id)).scalar_subquery()
    rows = tx.all(
        select(action_runs).where(
            action_runs.c.id > latest - _LATEST,
            action_runs.c.state.in_([one.value for one in UNENDED]),
        )
    )
    return sorted(map(_run_of, rows), key=lambda run: run.id)


def settle_actions(
    tx: Transaction, ticket_id: int, ended: Collection[str] = ()
) -> list[ActionRun]:
    """End what no process will end; see `ActionStore`."""
    status = _locked(tx, ticket_id)
    for run in list_action_runs(tx, ticket_id):
        if run.state is RunState.APPROVED and run.expires_at <= tx.now:
            _end(tx, run, status, RunState.EXPIRED, _LATE, _SYSTEM)
        elif run.state is RunState.RUNNING and (
            run.process in ended or (run.until is not None and run.until <= tx.now)
        ):
            _end(tx, run, status, RunState.UNKNOWN, _LOST, _SYSTEM)
    return list_action_runs(tx, ticket_id)


_ENDS = {
    RunState.DONE: "action_done",
    RunState.NOT_RUN: "action_not_run",
    RunState.FAILED: "action_failed",
    RunState.UNKNOWN: "action_unknown",
    RunState.EXPIRED: "action_expired",
}


def _end(
    tx: Transaction,
    run: ActionRun,
    status: str,
    state: RunState,
    output: str,
    by: str,
) -> None:
    """End a run that has not ended, or whose end was not known."""
    before = [*UNENDED, *([] if state is RunState.UNKNOWN else [RunState.UNKNOWN])]
    ended = tx.execute(
        update(action_runs)
        .where(
            action_runs.c.id == run.id,
            action_runs.c.state.in_([one.value for one in before]),
        )
        .values(state=state.value, ended_at=tx.now, output=output)
    )
    if ended.rowcount:
        why = f"{run.what} ({run.proposal}): {output}"
        _note(tx, run.ticket_id, status, by, _ENDS[state], why)


def _locked(tx: Transaction, ticket_id: int) -> str:
    """Lock a ticket, and return its status: approvals and claims of one ticket come one after the other."""
    row = tx.one(
        select(tickets.c.status).where(tickets.c.id == ticket_id).with_for_update()
    )
    if row is None:
        raise NotFound(f"there is no ticket {ticket_id}")
    return str(row.status)


def _note(
    tx: Transaction, ticket_id: int, status: str, by: str, action: str, why: str
) -> None:
    tx.note([audit_row(ticket_id, by, action, status, status, why)])


def _run(tx: Transaction, run_id: int) -> ActionRun:
    row = tx.one(select(action_runs).where(action_runs.c.id == run_id))
    if row is None:
        raise NotFound(f"there is no approved action {run_id}")
    return _run_of(row)


def _run_of(row: Row[Any]) -> ActionRun:
    values = dict(row._mapping)
    return ActionRun(**{**values, "state": RunState(row.state)})
