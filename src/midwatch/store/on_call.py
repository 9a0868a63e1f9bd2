"""The part of the store protocol that the on-call stack needs.

What `midwatch.store.protocol` says of errors, times and durations holds here too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from midwatch.model import Facts, Json, Key, Severity, Ticket
from midwatch.received import Accepted, Push, PushedAlerts, PushRules
from midwatch.silences import (
    Matcher,
    Recurrence,
    Silence,
    SilencedViolation,
)


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place in the feed of changes: behind the audit row with this id. `Cursor(0)` is before all."""

    audit_id: int

    def __str__(self) -> str:
        return str(self.audit_id)

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Return the cursor that `str` wrote. Raises ValueError."""
        if not (text.isascii() and text.isdecimal()) or len(text) > 18:
            raise ValueError(f"not a cursor: {text[:40]!r}")
        return cls(int(text))


PullRequestState = Literal["waiting", "pushed", "open", "draft", "merged", "closed"]
"""`waiting` for a person who approves it, or for the branch of a session in a cluster; `pushed`, and still to be opened; the others are those of the forge."""
ENDED_PULL_REQUEST = ("merged", "closed")


@dataclass(frozen=True, slots=True)
class PullRequest:
    """The pull request (at GitLab: merge request) of a ticket in one repository.

    Attributes:
        ticket: The ticket.
        repository: The URL of the repository, as the settings have it.
        attempt: 1, or more where a person asked for another one after it was closed.
        branch: The branch with the commits.
        base: The branch that it is for.
        state: See `PullRequestState`.
        number: Its number at the forge; None before it is opened.
        url: Its page; None before it is opened.
        head: The commit that was pushed last.
        session: The session that made it.
        requested_by: Who asked for it.
        waiting: The session whose changes wait for a person who approves them; None if none do.
        approved_by: Who approved it; None if none had to.
        checks: "none", "pending", "passed", "failed" or "unknown".
        review: "none", "approved" or "changes_requested".
        seen: The forge's last answers by path, each with its entity tag.
        checked_at: When the state was last read from the forge.
        failures: Failed looks in a row.
        last_error: Why the last one failed; None if it did not.
        told_resolved_at: When a comment was made that the ticket is resolved.
    """

    id: int
    ticket: int
    repository: str
    attempt: int
    branch: str
    base: str
    state: PullRequestState
    number: int | None
    url: str | None
    head: str | None
    session: str
    requested_by: str
    waiting: str | None
    approved_by: str | None
    checks: str
    review: str
    seen: Json
    created_at: datetime
    checked_at: datetime | None
    next_check_at: datetime | None
    failures: int
    last_error: str | None
    told_resolved_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether it was merged or closed."""
        return self.state in ENDED_PULL_REQUEST

    @property
    def awaits_branch(self) -> bool:
        """Whether a session on another machine has not pushed its branch yet."""
        return self.state == "waiting" and self.waiting is None


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a ticket, as the feed has it.

    Attributes:
        cursor: Its place in the feed. No two changes have the same.
        ticket_id: The ticket.
        at: When, by the database's clock.
        actor: Who or what changed it.
        action: "open", "first_aid", "acknowledge", "hold", "unhold", "diagnose", "give up", "requeue", "join",
            "session", "retry", "resolve", …
        before: Its status before; None for a ticket that opened.
        after: Its status after.
        why: The reason in a few words.
        key: What the ticket is about.
        severity: The severity of the ticket.
        batch: The batch that the ticket is in now.
        message: The message of the ticket.
    """

    cursor: Cursor
    ticket_id: int
    at: datetime
    actor: str
    action: str
    before: str | None
    after: str | None
    why: str
    key: Key
    severity: Severity
    batch: int
    message: str

    @property
    def subject(self) -> str:
        return self.key.subject

    @property
    def invariant(self) -> str:
        return self.key.invariant

    @property
    def component(self) -> str:
        return self.key.component


TokenKind = Literal["api", "sign_in"]
"""What a program sends with each request, or what a browser keeps as a cookie after a sign-in."""


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token to store.

    Attributes:
        kind: Where it is accepted.
        name: Who has it, as the history of tickets names them.
        digest: Of the secret, which is stored nowhere.
        role: What its owner may do: "viewer", "operator" or "admin".
        scopes: What it is for.
        created_by: Who made it; of a sign-in, how: "oidc" or "token".
        seconds: How long it is valid.
        parent_id: The token that a sign-in was made with, and ends with.
    """

    kind: TokenKind
    name: str
    digest: str
    role: str
    scopes: tuple[str, ...]
    created_by: str
    seconds: float
    parent_id: int | None = None


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A stored token, as `NewToken` describes it."""

    id: int
    kind: TokenKind
    name: str
    role: str
    scopes: tuple[str, ...]
    created_at: datetime
    created_by: str
    expires_at: datetime
    parent_id: int | None
    last_used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Investigation:
    """An investigation that somebody asked for. Its ticket has the answer.

    Attributes:
        ticket_id: The ticket that was opened for it.
        callback_url: Where its end is reported.
        ended_at: When it was answered, failed or was cancelled; None while it waits or runs.
        diagnosis_id: The diagnosis that ended it.
    """

    id: str
    ticket_id: int
    subject: str
    question: str
    requested_by: str
    callback_url: str | None
    created_at: datetime
    cancelled_at: datetime | None
    ended_at: datetime | None
    diagnosis_id: int | None


@dataclass(frozen=True, slots=True)
class Answered:
    """The stored answer to a request: `digest` is that of the request, `status` the HTTP status."""

    digest: str
    status: int
    answer: Json


@dataclass(frozen=True, slots=True)
class Told:
    """That a target was notified of a ticket, or is about to be: by which route and in which thread."""

    ticket_id: int
    route: str
    target: str
    thread: str


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """A delivery to write.

    Attributes:
        dedup_key: What makes it one: a second one with the same key is not written.
        route: Name of the route that asks for it.
        target: Where it goes.
        event: What it tells.
        thread: The incident that it is part of, for its target.
        ticket_id: The ticket that it tells of.
        content: What is known now and could not be read later.
        due_in: Seconds until it is due.
    """

    dedup_key: str
    route: str
    target: str
    event: str
    thread: str
    ticket_id: int | None = None
    content: Mapping[str, object] = field(default_factory=dict)
    due_in: float = 0.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery as it is stored. `state` is due, sent, dropped (there was no need any more) or given_up."""

    id: int
    dedup_key: str
    route: str
    target: str
    event: str
    thread: str
    ticket_id: int | None
    content: Json
    state: str
    created_at: datetime
    due_at: datetime
    attempts: int
    last_error: str | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeliveryClaim:
    """What one process has to send to a target: all that is due in one thread, in order.

    Attributes:
        token: Guards the write that ends the claim.
        target: The target.
        thread: The thread.
        deliveries: What is due.
        reference: How the service names the thread; empty if it was not notified of it.
        tickets: The tickets that the thread is about, the most urgent first.
        at: When it was claimed, by the database's clock.
    """

    token: str
    target: str
    thread: str
    deliveries: tuple[Delivery, ...]
    reference: Json
    tickets: tuple[Ticket, ...]
    at: datetime


@dataclass(frozen=True, slots=True)
class DeliveryEnd:
    """How an attempt to send ended.

    Attributes:
        sent: Ids of what was sent.
        dropped: Ids of what need not be sent any more, by the reason.
        postponed: Ids of what may not be sent yet; the attempt does not count.
        postpone_for: Seconds until it is due again.
        error: Why the others were not sent; None if there are no others.
        retry_in: Seconds until they are due again.
        given_up: Whether they are given up instead, with an audit row on each ticket.
        reference: How the service names the thread now; None for no change.
        actor: Who gives up.
    """

    sent: tuple[int, ...] = ()
    dropped: Mapping[str, Collection[int]] = field(default_factory=dict)
    postponed: tuple[int, ...] = ()
    postpone_for: float = 60.0
    error: str | None = None
    retry_in: float = 0.0
    given_up: bool = False
    reference: Mapping[str, object] | None = None
    actor: str = "notifier"


class OnCallStore(Protocol):
    """The feed of changes, silences, pushed alerts, deliveries, tokens and investigations."""

    # -------------------------------------------------- the feed of changes
    def on_change(self, listener: Callable[[], object]) -> None:
        """Call `listener` after each change of a ticket by this process, on the event loop of the change."""
        ...

    async def changes(
        self, after: Cursor | None = None, limit: int = 500
    ) -> list[Change]:
        """Return the changes that follow a place in the feed.

        The order is that in which they were written, except that changes of concurrent transactions may be interleaved.
        No change appears later in front of one that was returned: a reader that goes on from the last one misses none.

        Args:
            after: The cursor of the last change that the reader had; None is the beginning. One beyond the end is
                of another database, and counts as None.
            limit: The largest number of changes.
        """
        ...

    async def last_cursor(self) -> Cursor:
        """Return the present end of the feed: every change that is committed later follows it."""
        ...

    async def save_cursor(self, name: str, cursor: Cursor) -> None:
        """Store how far the reader `name` has come."""
        ...

    async def cursor(self, name: str) -> Cursor | None:
        """Return how far the reader `name` has come, or None for a new one."""
        ...

    # -------------------------------------------------- silences
    async def add_silence(
        self,
        matchers: Sequence[Matcher],
        *,
        author: str,
        reason: str,
        starts_at: datetime | None = None,
        ends_at: datetime | None = None,
        seconds: float | None = None,
        recurrence: Recurrence | None = None,
    ) -> Silence:
        """Add a silence. Open tickets that it matches are silent at once.

        Args:
            matchers: Conditions on the labels of a violation; all must hold.
            author: Who makes it.
            reason: Why.
            starts_at: When it starts; by default now.
            ends_at: When it ends; this or `seconds` is given.
            seconds: Seconds from its start to its end.
            recurrence: Windows in which it holds; by default it holds all the time.

        Raises:
            InvalidSilence: It makes no sense, or matches everything.
            InvalidMatcher: A matcher is wrong.
            NoRecurrences: A library that it needs is not installed.
        """
        ...

    async def silences(self, include_ended: bool = False) -> list[Silence]:
        """Return the silences that hold or will hold, the next to end first; with the ended ones, the newest first."""
        ...

    async def silence(self, silence_id: int) -> Silence:
        """Return a silence. Raises NotFound."""
        ...

    async def expire_silence(self, silence_id: int, actor: str) -> Silence:
        """End a silence now. Open tickets that no other one matches are audible at once.

        Raises:
            NotFound: There is no such silence.
            Conflict: It has ended already.
        """
        ...

    async def silenced(
        self, subject: str | None = None, within: float | None = None
    ) -> list[SilencedViolation]:
        """Return the violations that are silent now, the most urgent first.

        Args:
            subject: Only those of this subject.
            within: Instead those that were first seen in the last `within` seconds, the newest first.
        """
        ...

    # -------------------------------------------------- pushed alerts
    async def receive(self, pushes: Sequence[Push], rules: PushRules) -> Accepted:
        """Save pushed alerts, and open and resolve their tickets, all in one transaction.

        Args:
            pushes: The requests, in the order in which they came. They may be for several subjects.
            rules: How tickets open.
        """
        ...

    async def pushed_alerts(self, subject: str) -> PushedAlerts:
        """Return what was pushed to a subject and fires, the most urgent first."""
        ...

    async def forget_alerts(self, older_than: float) -> int:
        """Remove alerts that were resolved more than `older_than` seconds ago. Return how many."""
        ...

    # -------------------------------------------------- deliveries
    async def tickets_by_id(self, ids: Collection[int]) -> dict[int, Ticket]:
        """Return tickets by id; an unknown one is left out."""
        ...

    async def told(self, ids: Collection[int]) -> list[Told]:
        """Return which targets were notified of tickets, or are about to be, oldest first."""
        ...

    async def save_deliveries(
        self,
        name: str,
        before: Cursor | None,
        after: Cursor,
        new: Sequence[NewDelivery],
    ) -> bool:
        """Write deliveries and move a cursor of the feed, in one transaction.

        Args:
            name: The reader whose cursor it is.
            before: Where the cursor has to be; None if there has to be none.
            after: Where it is moved.
            new: The deliveries that tell of the changes between the two.

        Returns:
            Whether the cursor was at `before`; if not, nothing was written.
        """
        ...

    async def targets_due(self) -> list[str]:
        """Return the targets that something is due for."""
        ...

    async def claim_delivery(
        self, target: str, *, lease: float
    ) -> DeliveryClaim | None:
        """Claim what is due in the thread of a target that waits longest, for `lease` seconds; None if nothing is.

        A thread in which something is being sent, or waits for its next attempt, waits as a whole.
        """
        ...

    async def finish_delivery(self, claim: DeliveryClaim, end: DeliveryEnd) -> bool:
        """Store how an attempt ended. Return false, and change nothing, if the claim was lost."""
        ...

    async def give_up_deliveries(
        self, target: str, older: float, error: str, actor: str
    ) -> int:
        """Give up what should have been sent to a target more than `older` seconds ago, with audit rows. Return how many."""
        ...

    async def deliveries(
        self,
        ticket_id: int | None = None,
        states: Collection[str] = (),
        limit: int = 50,
    ) -> list[Delivery]:
        """Return deliveries of a ticket, or of all, in these states, or in any; the newest first."""
        ...

    async def delivery_counts(self, within: float) -> dict[str, int]:
        """Return the number of deliveries of the last `within` seconds by state; "planned" are those for later."""
        ...

    async def prune_deliveries(self, older: float) -> int:
        """Remove what ended more than `older` seconds ago, of resolved tickets alone. Return how many."""
        ...

    # -------------------------------------------------- tokens
    async def add_token(self, new: NewToken) -> ApiToken:
        """Store a token, and forget those that ended 90 days ago."""
        ...

    async def find_token(self, digest: str) -> ApiToken | None:
        """Return the token with this digest, also one that has ended; None if there is none."""
        ...

    async def use_token(self, token_id: int) -> None:
        """Record that a token was used now."""
        ...

    async def tokens(self, include_ended: bool = False) -> list[ApiToken]:
        """Return the tokens and sign-ins that are valid, or all of them, oldest first."""
        ...

    async def revoke_token(self, token_id: int) -> ApiToken:
        """End a token and the sign-ins that were made with it. Raises NotFound."""
        ...

    # -------------------------------------------------- investigations and idempotent requests
    async def investigate(
        self,
        id_: str,
        subject: str,
        question: str,
        *,
        by: str,
        severity: Severity = Severity.WARNING,
        facts: Facts | None = None,
        callback_url: str | None = None,
    ) -> Investigation:
        """Open an investigation with a ticket of its own, which is diagnosed like others.

        The diagnosis resolves the ticket, and its end is written as a delivery, in one transaction.

        Args:
            id_: Its id. If there is one with this id, that is returned, and nothing changes.
            subject: Name of the subject, which is created if it is new.
            question: What is asked, in one line.
            by: Who asks.
            severity: How urgent it is, among the tickets that wait for a diagnosis.
            facts: What else is known, such as the labels of an alert.
            callback_url: Where its end is reported.
        """
        ...

    async def investigation(self, id_: str) -> Investigation:
        """Return an investigation. Raises NotFound."""
        ...

    async def investigations(
        self, limit: int = 50, after: tuple[datetime, str] | None = None
    ) -> list[Investigation]:
        """Return investigations, the newest first, behind the one that was created at a time and has an id."""
        ...

    async def cancel_investigation(self, id_: str, actor: str) -> Investigation:
        """Cancel an investigation: its ticket is resolved. One that was cancelled stays as it is.

        A call to Claude that is under way goes on, and is paid.

        Raises:
            NotFound: There is no such investigation.
            Conflict: It has ended.
        """
        ...

    async def begin_request(
        self, principal: str, key: str, digest: str
    ) -> Answered | None:
        """Return the stored answer to a request with an idempotency key, or None if it has to be carried out.

        An answer is kept for a day. Two requests of one key at the same time are never both carried out, unless the
        first takes longer than two minutes.

        Args:
            principal: Who sends it.
            key: The key.
            digest: Of the request. The answer may be to another one: see `Answered.digest`.

        Raises:
            Conflict: The same request is being carried out.
        """
        ...

    async def end_request(
        self, principal: str, key: str, status: int, answer: Json | None
    ) -> None:
        """Store the answer to a request; with None it may be carried out again."""
        ...
