"""Checks of tokens and sign-ins: found by their digest, used, ended and forgotten."""

from __future__ import annotations

from midwatch.errors import NotFound
from midwatch.store.on_call import NewToken, TokenKind
from midwatch.testing.store_conformance.fixture import StoreFixture, raises

_DAY = 86400.0


def _new(
    name: str,
    *,
    seconds: float = _DAY,
    kind: TokenKind = "api",
    parent_id: int | None = None,
) -> NewToken:
    return NewToken(
        kind=kind,
        name=name,
        digest=f"digest of {name}",
        role="operator",
        scopes=("read", "tickets:write"),
        created_by="someone@host",
        seconds=seconds,
        parent_id=parent_id,
    )


async def a_token_is_found_by_its_digest(fixture: StoreFixture) -> None:
    made = await fixture.store.add_token(_new("ci"))
    assert made.expires_at == fixture.clock.after(_DAY)
    assert (made.role, made.scopes) == ("operator", ("read", "tickets:write"))
    assert await fixture.store.find_token("digest of ci") == made
    assert await fixture.store.find_token("digest of another") is None


async def the_last_use_of_a_token_is_known(fixture: StoreFixture) -> None:
    made = await fixture.store.add_token(_new("ci"))
    assert made.last_used_at is None
    fixture.clock.move(60)
    await fixture.store.use_token(made.id)
    [listed] = await fixture.store.tokens()
    assert listed.last_used_at == fixture.clock.now


async def an_ended_token_is_listed_only_if_asked_for(fixture: StoreFixture) -> None:
    """It is forgotten with a token that is added 90 days after its end."""
    short = await fixture.store.add_token(_new("short", seconds=60))
    fixture.clock.move(60)
    assert await fixture.store.tokens() == []
    assert await fixture.store.tokens(include_ended=True) == [short]
    fixture.clock.move(91 * _DAY)
    other = await fixture.store.add_token(_new("other"))
    assert await fixture.store.tokens(include_ended=True) == [other]
    assert await fixture.store.find_token("digest of short") is None


async def a_sign_in_is_not_valid_longer_than_its_token(fixture: StoreFixture) -> None:
    made = await fixture.store.add_token(_new("ci", seconds=60))
    fixture.clock.move(1)
    new = _new("browser", seconds=_DAY, kind="sign_in", parent_id=made.id)
    assert (await fixture.store.add_token(new)).expires_at == made.expires_at


async def a_revoked_token_ends_with_its_sign_ins(fixture: StoreFixture) -> None:
    made = await fixture.store.add_token(_new("ci"))
    other = await fixture.store.add_token(_new("other"))
    sign_in = await fixture.store.add_token(
        _new("browser", kind="sign_in", parent_id=made.id)
    )
    fixture.clock.move(5)
    revoked = await fixture.store.revoke_token(made.id)
    assert revoked.revoked_at == fixture.clock.now
    assert await fixture.store.tokens() == [other]
    found = await fixture.store.find_token("digest of browser")
    assert found is not None and found.id == sign_in.id
    assert found.revoked_at == fixture.clock.now
    fixture.clock.move(5)
    assert await fixture.store.revoke_token(made.id) == revoked


async def an_unknown_token_cannot_be_revoked(fixture: StoreFixture) -> None:
    for unknown in (0, 1, 2**70):
        await raises(NotFound, fixture.store.revoke_token(unknown))


CHECKS = (
    a_token_is_found_by_its_digest,
    the_last_use_of_a_token_is_known,
    an_ended_token_is_listed_only_if_asked_for,
    a_sign_in_is_not_valid_longer_than_its_token,
    a_revoked_token_ends_with_its_sign_ins,
    an_unknown_token_cannot_be_revoked,
)
