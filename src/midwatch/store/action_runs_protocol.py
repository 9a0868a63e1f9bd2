"""The part of the store protocol for actions that a person approves and Midwatch runs.

The rules of `midwatch.store.protocol` hold here too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from midwatch.model import Json


class RunState(StrEnum):
    """The state of an approved action: approved, then running, then one of the others, which are final."""

    APPROVED = "approved"
    RUNNING = "running"
    DONE = "done"
    NOT_RUN = (
        "not_run"  # the check at that moment found that it is not to be done any more
    )
    FAILED = "failed"
    UNKNOWN = (
        "unknown"  # the process that ran it ended, or it does not know how it ended
    )
    EXPIRED = "expired"  # it was not started in time


UNENDED = (RunState.APPROVED, RunState.RUNNING)


@dataclass(frozen=True, slots=True)
class Approval:
    """What a person approves: a proposal as it was derived from the evidence.

    Attributes:
        ticket_id: The ticket.
        proposal: The id of the proposal. It can be approved once.
        diagnosis_id: The diagnosis that recommends it.
        kind: The kind of action, such as `terminate_backend`.
        target: What it acts on, as the evidence names it.
        what: One line for a person.
        by: Who approves it.
        channel: Where: cli, page, api or mcp.
        expires_in: Seconds in which it can be started.
    """

    ticket_id: int
    proposal: str
    diagnosis_id: int
    kind: str
    target: Json
    what: str
    by: str
    channel: str
    expires_in: float


@dataclass(frozen=True, slots=True)
class ActionRun:
    """An approved action. `output` is what the run reported; `until` is when a run that has not ended counts as unknown."""

    id: int
    ticket_id: int
    proposal: str
    diagnosis_id: int
    kind: str
    target: Json
    what: str
    state: RunState
    approved_by: str
    channel: str
    approved_at: datetime
    expires_at: datetime
    run_by: str | None = None
    process: str | None = None
    started_at: datetime | None = None
    until: datetime | None = None
    ended_at: datetime | None = None
    output: str | None = None

    @property
    def ended(self) -> bool:
        return self.state not in UNENDED


class ActionStore(Protocol):
    """Approved actions. Each change of one is in the history of its ticket, in the same transaction."""

    async def approve_action(self, approval: Approval) -> ActionRun:
        """Store an approval. One that is there and was not started yet is returned as it is.

        Raises:
            NotFound: There is no such ticket.
            Conflict: The ticket is resolved, or the proposal was approved before and started, ended or expired.
        """
        ...

    async def start_action(
        self, run_id: int, by: str, process: str | None, seconds: float
    ) -> bool:
        """Claim an approved action for this process, which must end within `seconds`.

        Returns:
            Whether it was claimed. It is not if another process has claimed it, the approval has expired or the ticket
            is resolved; it never is twice.
        """
        ...

    async def finish_action(
        self, run_id: int, state: RunState, output: str
    ) -> ActionRun:
        """Store how an action ended that this process has claimed; what was unknown meanwhile is known then."""
        ...

    async def action_runs(self, ticket_id: int) -> list[ActionRun]:
        """Return the approved actions of a ticket, the oldest first. Raises NotFound."""
        ...

    async def unended_actions(self) -> list[ActionRun]:
        """Return the approved actions of all tickets that have not ended, of the latest 5,000; the oldest first."""
        ...

    async def settle_actions(
        self, ticket_id: int, ended: Collection[str] = ()
    ) -> list[ActionRun]:
        """End what no process will end: approvals that have expired, and runs whose process has ended or whose time is over.

        Args:
            ticket_id: The ticket.
            ended: Processes that are known to have ended.

        Returns:
            The approved actions of the ticket, as `action_runs` does.
        """
        ...
