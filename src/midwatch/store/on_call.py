"""The part of the store protocol that the on-call stack needs.

What is said of `midwatch.store.protocol` holds here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from midwatch.model import Key, Severity
from midwatch.received import Accepted, Push, PushedAlerts, PushRules
from midwatch.silences import Matcher, Recurrence, Silence


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
        parent_id: The token that a sign-in was made with.
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
class SilencedViolation:
    """A violation that a silence keeps or kept silent.

    Attributes:
        by: What keeps it silent: "silence 3", or what the sender of the alert says.
        silence_id: The silence; None if the sender keeps it silent.
        until: When the silence ends by itself; None if only the sender knows.
        first_seen_at: When it was first seen while it was silent.
        ended_at: When it cleared or became audible; None while it lasts.
        ticket_id: The ticket that was open when it began, or that opened when the silence ended.
    """

    id: int
    key: Key
    severity: Severity
    message: str
    by: str
    silence_id: int | None
    until: datetime | None
    first_seen_at: datetime
    ended_at: datetime | None = None
    ticket_id: int | None = None


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
            NoRegexEngine, NoRecurrences: A library that it needs is not installed.
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
