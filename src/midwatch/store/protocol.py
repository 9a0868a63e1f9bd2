"""The store protocol: the operations of daemons and commands on the database.

Every method is atomic. Every method may raise StoreUnavailable,
StoreBusy and StoreFull (temporary) and StoreRejected and SchemaMismatch (permanent). Leases and
waits are measured by the database's clock. Durations are in seconds.

`midwatch.testing.store_conformance` checks an implementation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    OpenTicket,
    Severity,
    Ticket,
    Usage,
    Violation,
)
from midwatch.silences import Silence, SilencedViolation, Silencing
from midwatch.store.action_runs_protocol import ActionStore
from midwatch.store.changes_protocol import ChangesStore
from midwatch.store.figures import Brief as Brief
from midwatch.store.figures import Past as Past
from midwatch.store.figures import Stats as Stats
from midwatch.store.figures import TicketFilter as TicketFilter
from midwatch.store.on_call import OnCallStore, PullRequest
from midwatch.store.overview_protocol import OverviewStore
from midwatch.store.shares_protocol import SharesStore


@dataclass(frozen=True, slots=True)
class Watch:
    """A subject as it is stored: its unresolved tickets and its latest observations.

    Attributes:
        revision: Increased by every change to the set of tickets. A cycle can be saved only on
            the revision that it was computed from.
        tickets: The unresolved tickets.
        state: The state that the last successful observation left.
        failures: Failed observations since the last successful one.
        silences: The silences that have not ended, and the number of the last change of one.
        silenced: The violations that are silent.
        now: The time by the database's clock.
        last_good_at: When it was last observed successfully; None if it never was.
    """

    revision: int
    tickets: tuple[OpenTicket, ...] = ()
    state: Json = field(default_factory=dict)
    failures: int = 0
    silences: tuple[Silence, ...] = ()
    silences_revision: int = 0
    silenced: tuple[SilencedViolation, ...] = ()
    now: datetime | None = None
    last_good_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """A violation that becomes a ticket. It was first observed `seen_for` seconds ago.

    `previous_id` and `flapping` come from the history of its key.
    """

    violation: Violation
    seen_for: float = 0.0
    previous_id: int | None = None
    flapping: bool = False

    def after(self, past: Earlier | None, flapping_openings: int) -> Opening:
        """Return it with what follows from earlier tickets of its key.

        Args:
            past: These tickets, or None.
            flapping_openings: Openings, 2 or more, from which on a ticket is flapping; this one counts.
        """
        if past is None:
            return self
        flapping = past.openings + 1 >= flapping_openings
        return replace(self, previous_id=past.previous_id, flapping=flapping)


@dataclass(frozen=True, slots=True)
class Changes:
    """What one cycle changes. An empty one writes one row, however many tickets are open.

    Attributes:
        openings: Violations that become tickets.
        again: Ids of tickets whose violation a failed observation shows, such as that of a
            subject that cannot be observed.
        missing: Ids of tickets whose violation was not observed and that stay open: they are
            held, or the invariant was not covered.
        returned: Ids of tickets that were `missing` and are observed again.
        resolved: Ids of tickets whose invariant holds again.
        silenced: Violations that are silent from now on, or by another silence.
        audible: Keys of violations that were silent and are not any more: they cleared, or the silence ended.
    """

    openings: tuple[Opening, ...] = ()
    again: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    returned: tuple[int, ...] = ()
    resolved: tuple[int, ...] = ()
    silenced: tuple[Silencing, ...] = ()
    audible: tuple[Key, ...] = ()

    def __bool__(self) -> bool:
        return bool(
            self.openings
            or self.again
            or self.missing
            or self.returned
            or self.resolved
            or self.silenced
            or self.audible
        )


@dataclass(frozen=True, slots=True)
class Earlier:
    """The latest ticket of a key, and how often the key opened within the requested window."""

    previous_id: int
    openings: int


@dataclass(frozen=True, slots=True)
class SavedCycle:
    """The revision after a cycle was saved, the ids of the tickets of its openings, in their order, and the time by the database's clock."""

    revision: int
    opened: Sequence[int] = ()
    now: datetime | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A batch that one agent holds for diagnosis. Every write that ends it carries the token.

    `attempt` is 1 for the first claim of the batch. `begun` is false if no call was made for it before.
    """

    batch: int
    token: str
    holder: str
    attempt: int
    tickets: tuple[Ticket, ...]
    process: str | None = None
    begun: bool = True

    @property
    def severity(self) -> Severity:
        """The severity of the most urgent ticket."""
        return min(ticket.severity for ticket in self.tickets)


@dataclass(frozen=True, slots=True)
class Held:
    """A claim that some agent has: its token, its process, where that has a name, and the seconds left of its lease."""

    token: str
    process: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Finish:
    """How a call ended, and what happens to the batch.

    Attributes:
        explains: Ids of the tickets that the answer names; None for the whole claim. Ids that are not of the claim
            are ignored, and the only ticket of a claim is settled in any case. The other tickets are left out: the
            first time they go back to the queue as one batch, later in a batch each. Tickets that are left out
            again by an answer that names none of the claim are given up.
        keep: Whether the claim continues with another call.
        retry_in: Seconds until the batch can be claimed again, for the outcome "retry".
        counted: Whether the outcome "retry" counts as an attempt.
        given_up: Whether no attempt had an answer: the outcome is "error", and the tickets are given up.
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
    given_up: bool = False

    def settled(self, claimed: Sequence[int]) -> list[int]:
        """Return those of the tickets of a claim, by id, that this settles. The others are left out.

        An answer about one ticket is about that one: another call would cost again and say the same.
        """
        if self.explains is None or len(claimed) == 1:
            return list(claimed)
        return [id_ for id_ in claimed if id_ in self.explains]


PauseKind = Literal["rate_limit", "spend_limit", "auth", "outage"]


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of all agents on this store: none calls Claude before `until`."""

    kind: PauseKind
    until: datetime
    seconds: float  # left, by the database's clock
    reason: str
    actor: str


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of a day in USD. `critical_reserve` is the share, from 0 to 1, for critical tickets only."""

    daily_usd: float | None
    critical_reserve: float = 0.0


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon, from its last heartbeat."""

    name: str
    kind: str
    beat_at: datetime
    info: Json


@dataclass(frozen=True, slots=True)
class TicketSession:
    """A session that was started for a ticket. `phase` is a `midwatch.session.events.Phase`."""

    id: str
    phase: str
    created_at: datetime
    cost_usd: float = 0.0


def notice_of(store: Store) -> str:
    """Return what a person has to know of the database since it was opened; empty if there is nothing."""
    return str(getattr(store, "notice", ""))


def with_notice(store: Store, info: Json) -> Json:
    """Return what a heartbeat says of a daemon, with the notice of its store."""
    notice = notice_of(store)
    return {**info, "notice": notice} if notice else info


class Store(
    OnCallStore, OverviewStore, SharesStore, ChangesStore, ActionStore, Protocol
):
    """Tickets, diagnoses, audit rows, shared pauses and heartbeats.

    A store may have a property `notice`: what a person has to know of the database since it was opened.
    """

    async def close(self) -> None:
        """Close the connections. A second call does nothing."""
        ...

    # -------------------------------------------------- the monitor
    async def watch(self, subject: str, kind: str | None = None) -> Watch:
        """Return the unresolved tickets and the state of a subject, which is created if it is new.

        Args:
            subject: Name of the subject.
            kind: Its kind, which is stored; None leaves it unchanged.
        """
        ...

    async def revision(self, subject: str) -> int:
        """Return the present revision of a subject, 0 for an unknown one."""
        ...

    async def save_look(
        self, subject: str, error: str | None = None, watcher: str | None = None
    ) -> None:
        """Save that a subject was observed, whatever its revision; with `error`, that the observation failed.

        It is for an observation that is older than what was pushed to the subject: nothing follows from it for tickets.
        Raises SubjectTaken as `save_cycle` does.
        """
        ...

    async def save_cycle(
        self,
        subject: str,
        revision: int,
        changes: Changes,
        *,
        state: Json | None = None,
        error: str | None = None,
        group_wait: float = 0.0,
        linked: Collection[str] = (),
        silences: int | None = None,
        watcher: str | None = None,
    ) -> SavedCycle:
        """Save one observation of a subject and the changes that follow from it.

        Args:
            subject: Name of the subject.
            revision: The revision that `changes` were computed from.
            changes: What changes.
            state: The new state of the subject; None leaves it unchanged.
            error: Why the observation failed. A failure is counted, and what tickets derive from
                successful observations (count, last seen) does not change.
            group_wait: Seconds. Openings join the oldest batch with an undiagnosed ticket of the subject or
                of a linked one that is younger, waits for its group and was never claimed; other such batches
                become one with it. Otherwise they make a batch that can be claimed `group_wait` seconds
                from now.
            linked: Names of the subjects whose tickets may be of one incident with those of this one.
            silences: The number of the last change of a silence that `changes` know of; None if there are no silences
                for them.
            watcher: The id of the monitor that saves, if only the one that watches the subject may.

        Raises:
            StaleWatch: `revision` or `silences` is not the present one; nothing was saved.
            SubjectTaken: `watcher` does not watch the subject; nothing was saved.
        """
        ...

    async def join(
        self, subject: str, linked: Collection[str], group_wait: float
    ) -> None:
        """Make one batch of those that have undiagnosed tickets of a subject and of linked ones, as openings would.

        It is for links that show themselves after the tickets were opened.

        Args:
            subject: Name of the subject; without such a batch of its own nothing changes.
            linked: Names of the subjects whose tickets may be of one incident with those of this one.
            group_wait: Seconds. Older batches stay as they are.
        """
        ...

    async def earlier(
        self, subject: str, keys: Sequence[Key], within: float
    ) -> Mapping[Key, Earlier]:
        """Return the history of keys that are about to open. Keys without one are left out.

        Args:
            subject: Name of the subject of all keys.
            keys: The keys.
            within: Seconds in which openings are counted.
        """
        ...

    async def openings(self, key: Key, within: float) -> list[Ticket]:
        """Return the tickets of a key that opened in the last `within` seconds, oldest first."""
        ...

    async def save_first_aid(self, ticket_ids: Sequence[int], first_aid: Json) -> None:
        """Store the first aid of tickets, in place of an earlier one."""
        ...

    # -------------------------------------------------- the agent
    async def claim(
        self,
        holder: str,
        *,
        lease: float,
        limit: int = 1,
        least: Severity = Severity.INFO,
        batch: int | None = None,
        process: str | None = None,
        ended: Collection[str] = (),
    ) -> list[Claim]:
        """Claim batches that are due: the most severe first, then the oldest. While a pause lasts, none is.

        Args:
            holder: Name of the claiming agent.
            lease: Seconds until the claim ends if it is not renewed.
            limit: The largest number of batches.
            least: Batches below this severity are not claimed.
            batch: Claim this batch or none. It need not be due, as a person asked for it.
            process: The claiming process, as `midwatch.process_identity` names it.
            ended: Processes that are known to have ended: their claims are free before the lease is over.
        """
        ...

    async def claims_held(self) -> list[Held]: ...

    async def finish_and_claim(
        self,
        ended: Claim,
        diagnosis_id: int,
        how: Finish,
        *,
        lease: float,
        least: Severity = Severity.INFO,
        gone: Collection[str] = (),
    ) -> tuple[bool, list[Claim]]:
        """Do what `finish` does, and `claim` for one batch and the same holder, whose `ended` is `gone`, as one."""
        ...

    async def renew(self, claim: Claim, *, lease: float) -> bool:
        """Extend a lease to `lease` seconds from now. Return false if the claim was lost."""
        ...

    async def begin(
        self,
        claim: Claim,
        *,
        model: str,
        prompt_version: str,
        reserve_usd: float,
        budget: Budget,
        evidence: Sequence[Evidence] = (),
    ) -> int | None:
        """Record a call that is about to be made, and reserve its largest possible cost.

        Args:
            claim: The claim that the call is made for.
            model: The model that is called.
            prompt_version: Version of the prompt.
            reserve_usd: The largest cost of the call, in USD.
            budget: The budget of the day.
            evidence: What it is made with, if that must outlive the daemon.

        Returns:
            The id of the diagnosis, or None if the budget of the day does not allow the call.

        Raises:
            ClaimLost: Another agent holds the batch.
        """
        ...

    async def finish(self, claim: Claim, diagnosis_id: int, finish: Finish) -> bool:
        """Store how a call ended. A second call changes nothing.

        Returns:
            False if the claim was lost: the cost is stored, the outcome is "late", and no ticket
            changes.
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
        """Give a batch back without a diagnosis.

        Args:
            claim: The claim to end.
            retry_in: Seconds until the batch can be claimed again.
            error: Why there is no diagnosis; None leaves the last error unchanged.
            counted: Whether the claim counts as an attempt.

        Returns:
            False if the claim was lost.
        """
        ...

    async def pause(
        self, kind: PauseKind, seconds: float, reason: str, actor: str
    ) -> None:
        """Pause all agents on this store for `seconds`. A longer pause of this kind stays."""
        ...

    async def unpause(self, kind: PauseKind) -> None:
        """End the pause of this kind, if there is one."""
        ...

    async def pauses(self) -> list[Pause]:
        """Return the pauses that have not ended, longest first."""
        ...

    async def spent_today(self) -> float:
        """Return the USD spent and reserved since midnight UTC."""
        ...

    async def past(self, tickets: Sequence[Ticket], /, limit: int = 5) -> list[Past]:
        """Return up to `limit` past incidents of any subject like these tickets, best match first.

        A past incident is a resolved ticket with an answered diagnosis, or one that was resolved by hand. It is like
        a ticket of the same key, else of the same subject and invariant, else of the same invariant, or by the
        words of its message, facts, diagnosis and resolution. The time does not grow with their number.
        """
        ...

    async def search_past(self, query: str, limit: int = 5) -> list[Past]:
        """Return up to `limit` past incidents of any subject by words of their text, best match first."""
        ...

    # -------------------------------------------------- people
    async def ticket(self, ticket_id: int) -> Ticket:
        """Return a ticket. Raises NotFound."""
        ...

    async def tickets(self, query: TicketFilter) -> list[Ticket]:
        """Return tickets in the order that `TicketFilter.newest_first` names."""
        ...

    async def history(self, ticket_id: int) -> list[AuditRow]:
        """Return the audit rows of a ticket, oldest first. Raises NotFound."""
        ...

    async def diagnosis(self, diagnosis_id: int) -> Diagnosis:
        """Return a diagnosis. Raises NotFound."""
        ...

    async def briefs(self, diagnosis_ids: Sequence[int]) -> Mapping[int, Brief]:
        """Return summaries of diagnoses by id. Unknown ids are left out."""
        ...

    async def diagnoses(self, ticket_id: int) -> list[Diagnosis]:
        """Return every attempt at a ticket, oldest first."""
        ...

    async def sessions_of(self, ticket_id: int) -> list[TicketSession]:
        """Return the sessions that were started for a ticket, oldest first."""
        ...

    async def pull_requests_of(self, ticket_id: int) -> list[PullRequest]:
        """Return the pull requests of a ticket, by repository, the newest of each last."""
        ...

    async def version(self, ticket_id: int) -> int:
        """Return the version of a ticket, which each change of it increases. Raises NotFound.

        The four methods below raise Outdated if they are given a version that is not the present one.
        """
        ...

    async def acknowledge(
        self, ticket_id: int, actor: str, why: str = "", *, version: int | None = None
    ) -> Ticket:
        """Record that `actor` works on a ticket. Raises NotFound, and Conflict if it is resolved."""
        ...

    async def hold(
        self,
        ticket_id: int,
        held: bool,
        actor: str,
        why: str = "",
        *,
        version: int | None = None,
    ) -> Ticket:
        """Set whether the monitor must not resolve a ticket. Raises NotFound, and Conflict if it is resolved."""
        ...

    async def resolve(
        self, ticket_id: int, actor: str, why: str, *, version: int | None = None
    ) -> Ticket:
        """Resolve a ticket by hand. Raises NotFound, and Conflict if it is already resolved."""
        ...

    async def retry(
        self, ticket_id: int, actor: str, why: str = "", *, version: int | None = None
    ) -> Ticket:
        """Put a ticket back into the queue, as a batch of one.

        Raises:
            NotFound: There is no such ticket.
            Conflict: The ticket is resolved, or an agent is diagnosing it.
        """
        ...

    async def open_ticket(self, opening: Opening, actor: str) -> Ticket:
        """Open a ticket outside of an observation, in a batch of its own; the subject is created if it is new.

        If a ticket of the same key is unresolved, it is returned, and counted as seen again unless the
        observations of its subject count it.
        """
        ...

    async def update_diagnosis(
        self,
        ticket_id: int,
        finish: Finish,
        *,
        actor: str,
        model: str,
        prompt_version: str,
    ) -> Ticket:
        """Store a diagnosis that no agent made as that of a ticket. Earlier ones are kept.

        A ticket that waits for a diagnosis becomes diagnosed and leaves the queue, and one that was given up becomes
        diagnosed; any other keeps its status.

        Raises:
            NotFound: There is no such ticket.
            Conflict: The ticket waits for a diagnosis, and an agent is making it.
        """
        ...

    async def stats(self, within: float) -> Stats:
        """Return the figures of the last `within` seconds."""
        ...

    # -------------------------------------------------- daemons
    async def beat(self, name: str, kind: str, info: Json) -> None:
        """Save the heartbeat of a daemon, with `info` about it."""
        ...

    async def daemons(self, within: float) -> list[Daemon]:
        """Return the daemons with a heartbeat in the last `within` seconds, by name."""
        ...
