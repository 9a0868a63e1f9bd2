"""The store: what the daemons and the command line ask of a database.

Every method is atomic: it happened whole or not at all. All of them raise StoreUnavailable,
StoreBusy, StoreFull (temporary) or StoreRejected, SchemaMismatch (permanent). Leases and
waits are measured by the database's clock. `midwatch.testing.store_conformance` checks an
implementation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from midwatch.model import (
    AuditRow,
    Diagnosis,
    DiagnosisOutcome,
    Evidence,
    Grounded,
    Json,
    Key,
    Severity,
    Ticket,
    TicketStatus,
    Usage,
    Violation,
)


@dataclass(frozen=True, slots=True)
class Watch:
    """What the store knows of a subject: its unresolved tickets and how its looks went.

    `revision` goes up whenever the set of tickets changes by any hand; a cycle is saved only
    on the revision it was computed from. `state` is the last good observation's.
    """

    revision: int
    tickets: tuple[Ticket, ...] = ()
    state: Json = field(default_factory=dict)
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Opening:
    """A violation that becomes a ticket; it was first seen `seen_for` seconds ago."""

    violation: Violation
    seen_for: float = 0.0
    previous_id: int | None = None
    flapping: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    """What one cycle changes. An empty one costs one row, however many tickets are open.

    `again`: tickets seen by a failed look, such as that of a subject that cannot be
    observed. `missing`: tickets whose violation was not seen, without their being resolved (held, or
    the invariant was not covered). `returned`: tickets that are seen again after that.
    """

    openings: tuple[Opening, ...] = ()
    again: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    returned: tuple[int, ...] = ()
    resolved: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(
            self.openings
            or self.again
            or self.missing
            or self.returned
            or self.resolved
        )


@dataclass(frozen=True, slots=True)
class Earlier:
    """A key's latest ticket, and how often it opened within the window asked for."""

    previous_id: int
    openings: int


@dataclass(frozen=True, slots=True)
class Saved:
    """The revision after a cycle was saved, and the tickets it opened."""

    revision: int
    opened: tuple[Ticket, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A batch held for diagnosis. Every write that ends it carries the token.

    `attempt` counts this claim: 1 for the first.
    """

    batch: int
    token: str
    holder: str
    attempt: int
    tickets: tuple[Ticket, ...]

    @property
    def severity(self) -> Severity:
        return min(ticket.severity for ticket in self.tickets)


@dataclass(frozen=True, slots=True)
class Finish:
    """How one call ended, and what becomes of the batch.

    `keep` is true when the same claim goes on with another call. `explains` are the tickets that the answer
    explains; the claim's others go back to the queue as a batch of their own; an answer that
    explains none of them is taken to be for all. For the outcome
    "retry", the batch is free again after `retry_in` seconds, and the attempt is not
    counted where `counted` is false.
    """

    outcome: DiagnosisOutcome
    usage: Usage = Usage()
    cost_usd: float = 0.0
    answer: Json | None = None
    markdown: str | None = None
    confidence: str | None = None
    grounded: Grounded | None = None
    error: str | None = None
    request_id: str | None = None
    evidence: tuple[Evidence, ...] = ()
    explains: tuple[int, ...] | None = None
    keep: bool = False
    retry_in: float = 0.0
    counted: bool = True


PauseKind = Literal["rate_limit", "spend_limit", "auth", "outage"]


@dataclass(frozen=True, slots=True)
class Pause:
    """No worker on this store calls Claude until `until`."""

    kind: PauseKind
    until: datetime
    seconds: float  # from now, by the database's clock
    reason: str
    actor: str


@dataclass(frozen=True, slots=True)
class Budget:
    """A day's money. `critical_reserve` is the share that only critical tickets may spend."""

    daily_usd: float | None
    critical_reserve: float = 0.0


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon as its heartbeat tells it."""

    name: str
    kind: str
    beat_at: datetime
    info: Json


@dataclass(frozen=True, slots=True)
class TicketFilter:
    """Which tickets to list. None or an empty sequence means any."""

    statuses: Sequence[TicketStatus] = ()
    subject: str | None = None
    severity: Severity | None = None
    batch: int | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Brief:
    """A diagnosis in a few words, for lists."""

    outcome: DiagnosisOutcome
    verdict: str | None = None
    confidence: str | None = None


@dataclass(frozen=True, slots=True)
class TicketSession:
    """A session that was started for a ticket; `phase` is as `midwatch.session.events.Phase` has it."""

    id: str
    phase: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Past:
    """A resolved ticket that teaches something: what was found and what resolved it."""

    ticket: Ticket
    summary: str | None
    root_cause: str | None
    same_key: bool


@dataclass(frozen=True, slots=True)
class Stats:
    """Seconds, medians over the period; None where there was nothing to measure."""

    since: datetime
    opened: int
    unresolved: int
    resolved: int
    outcomes: Mapping[str, int]
    to_diagnose: float | None
    to_resolve: float | None
    to_detect: float | None
    usage: Usage
    cost_usd: float


class Store(Protocol):
    """Tickets, diagnoses, audit rows and the shared pauses."""

    async def close(self) -> None: ...

    # -------------------------------------------------- the monitor
    async def watch(self, subject: str) -> Watch: ...

    async def revision(self, subject: str) -> int: ...

    async def save_cycle(
        self,
        subject: str,
        revision: int,
        changes: Changes,
        *,
        state: Json | None = None,
        error: str | None = None,
        group_wait: float = 0.0,
    ) -> Saved:
        """Save one look. `state` None means unchanged.

        With an `error` the look failed: it is counted, and what tickets derive from good
        looks (count, last seen) stands still. Openings join the subject's latest batch if
        that is younger than `group_wait` and not yet claimed, else they make one new batch,
        which can be claimed `group_wait` seconds from now. Raises StaleWatch when `revision`
        is not the present one.
        """
        ...

    async def earlier(
        self, subject: str, keys: Sequence[Key], within: float
    ) -> Mapping[Key, Earlier]:
        """What is known of keys about to open; a key without a past is not in the answer."""
        ...

    async def openings(self, key: Key, within: float) -> list[Ticket]:
        """The tickets of a key opened within so many seconds, oldest first."""
        ...

    async def save_first_aid(
        self, ticket_ids: Sequence[int], first_aid: Json
    ) -> None: ...

    # -------------------------------------------------- the agent
    async def claim(
        self,
        holder: str,
        *,
        lease: float,
        limit: int = 1,
        least: Severity = Severity.INFO,
        batch: int | None = None,
    ) -> list[Claim]:
        """Take up to `limit` due batches that are at least so severe: critical first, then
        oldest first. With `batch` it is that one or none, though it may be waiting for its
        next attempt: a person who asks for it does not wait for a back-off."""
        ...

    async def renew(self, claim: Claim, *, lease: float) -> bool:
        """Prolong the lease; false when the claim is no longer ours."""
        ...

    async def begin(
        self,
        claim: Claim,
        *,
        model: str,
        prompt_version: str,
        reserve_usd: float,
        budget: Budget,
    ) -> int | None:
        """Note a call that is about to be made and set its worst cost aside.

        Returns the diagnosis id, or None when the day's budget does not allow it. Raises
        ClaimLost.
        """
        ...

    async def finish(self, claim: Claim, diagnosis_id: int, finish: Finish) -> bool:
        """Store how the call ended. False when the claim was lost: then the cost is kept,
        the outcome is "late" and no ticket is touched. Doing it twice changes nothing.
        """
        ...

    async def release(
        self,
        claim: Claim,
        *,
        retry_in: float = 0.0,
        error: str | None = None,
        counted: bool = False,
    ) -> bool:
        """Give a batch back without a diagnosis. False when the claim was lost."""
        ...

    async def pause(
        self, kind: PauseKind, seconds: float, reason: str, actor: str
    ) -> None: ...

    async def unpause(self, kind: PauseKind) -> None: ...

    async def pauses(self) -> list[Pause]: ...

    async def spent_today(self) -> float: ...

    async def past(self, tickets: Sequence[Ticket], limit: int = 5) -> list[Past]:
        """Resolved tickets of the same key or invariant, best first; errors are never among them."""
        ...

    # -------------------------------------------------- people
    async def ticket(self, ticket_id: int) -> Ticket:
        """Raises NotFound."""
        ...

    async def tickets(self, query: TicketFilter) -> list[Ticket]: ...

    async def history(self, ticket_id: int) -> list[AuditRow]: ...

    async def diagnosis(self, diagnosis_id: int) -> Diagnosis: ...

    async def briefs(self, diagnosis_ids: Sequence[int]) -> Mapping[int, Brief]:
        """Diagnoses by id, without their long texts; an unknown id is not in the answer."""
        ...

    async def diagnoses(self, ticket_id: int) -> list[Diagnosis]:
        """Every attempt at a ticket, oldest first."""
        ...

    async def sessions_of(self, ticket_id: int) -> list[TicketSession]:
        """The sessions that were started for a ticket, oldest first."""
        ...

    async def acknowledge(
        self, ticket_id: int, actor: str, why: str = ""
    ) -> Ticket: ...

    async def hold(
        self, ticket_id: int, held: bool, actor: str, why: str = ""
    ) -> Ticket: ...

    async def resolve(self, ticket_id: int, actor: str, why: str) -> Ticket:
        """Raises Conflict when it is resolved already."""
        ...

    async def retry(self, ticket_id: int, actor: str, why: str = "") -> Ticket:
        """Put a ticket back into the queue, in a batch of its own. Raises Conflict when
        it is resolved or being diagnosed."""
        ...

    async def stats(self, within: float) -> Stats: ...

    # -------------------------------------------------- daemons
    async def beat(self, name: str, kind: str, info: Json) -> None: ...

    async def daemons(self, within: float) -> list[Daemon]: ...
