"""The part of the store protocol that the on-call stack needs.

What is said of `midwatch.store.protocol` holds here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

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


class OnCallStore(Protocol):
    """The feed of changes, silences, pushed alerts, deliveries, tokens and investigations."""

    # -------------------------------------------------- the feed of changes

    # -------------------------------------------------- silences

    # -------------------------------------------------- pushed alerts

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
