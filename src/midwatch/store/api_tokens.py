"""Tokens of programs and sign-ins of people: stored as digests, with a role, scopes and an end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Row, delete, insert, or_, select, update

from midwatch.errors import NotFound
from midwatch.store.engine import Transaction
from midwatch.store.on_call import ApiToken, NewToken
from midwatch.store.schema import LARGEST_ID, tokens

_KEPT = timedelta(days=90)
"""How long a token that has ended is listed."""


def add_token(tx: Transaction, new: NewToken) -> ApiToken:
    """Store a token, and forget those that ended long ago."""
    expires_at = tx.now + timedelta(seconds=new.seconds)
    if new.parent_id is not None:
        parent = tx.one(select(tokens.c.expires_at).where(tokens.c.id == new.parent_id))
        if parent is not None:
            expires_at = min(expires_at, parent.expires_at)
    tx.execute(delete(tokens).where(tokens.c.expires_at < tx.now - _KEPT))
    values = {
        "kind": new.kind,
        "name": new.name,
        "digest": new.digest,
        "role": new.role,
        "scopes": list(new.scopes),
        "created_at": tx.now,
        "created_by": new.created_by,
        "expires_at": expires_at,
        "parent_id": new.parent_id,
    }
    [row] = tx.all(insert(tokens).values(values).returning(*tokens.c))
    return _token_of(row)


def find_token(tx: Transaction, digest: str) -> ApiToken | None:
    """Return the token with this digest; None if there is none."""
    row = tx.one(select(tokens).where(tokens.c.digest == digest))
    return None if row is None else _token_of(row)


def use_token(tx: Transaction, token_id: int) -> None:
    """Record that a token was used now."""
    tx.execute(
        update(tokens).where(tokens.c.id == token_id).values(last_used_at=tx.now)
    )


def list_tokens(tx: Transaction, include_ended: bool = False) -> list[ApiToken]:
    """Return the tokens and sign-ins, oldest first."""
    statement = select(tokens).order_by(tokens.c.id)
    if not include_ended:
        statement = statement.where(
            tokens.c.revoked_at.is_(None), tokens.c.expires_at > tx.now
        )
    return list(map(_token_of, tx.all(statement)))


def revoke_token(tx: Transaction, token_id: int) -> ApiToken:
    """End a token and the sign-ins that were made with it. Raises NotFound."""
    known = 0 < token_id <= LARGEST_ID
    found = select(tokens).where(tokens.c.id == token_id)
    if not known or tx.one(found) is None:
        raise NotFound(
            f"there is no token {token_id}", hint="see `midwatch tokens list`"
        )
    tx.execute(
        update(tokens)
        .where(
            or_(tokens.c.id == token_id, tokens.c.parent_id == token_id),
            tokens.c.revoked_at.is_(None),
        )
        .values(revoked_at=tx.now)
    )
    row = tx.one(found)
    assert row is not None
    return _token_of(row)


def _token_of(row: Row[Any]) -> ApiToken:
    return ApiToken(
        id=row.id,
        kind=row.kind,
        name=row.name,
        role=row.role,
        scopes=tuple(row.scopes),
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        parent_id=row.parent_id,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )
