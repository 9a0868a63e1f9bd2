"""Who asks, and what that person or program may do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from fastapi import Request

from midwatch.server.problems import Forbidden

if TYPE_CHECKING:
    from midwatch.server.context import ServerContext


class Role(IntEnum):
    """What a person may do. Each role may do what those before it may."""

    VIEWER = 0
    OPERATOR = 1
    ADMIN = 2


SCOPES = (
    "read",
    "tickets:write",
    "silences:write",
    "sessions:write",
    "investigations:write",
    "alerts:write",
    "mcp",
)
"""What a token may be for."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        name: As the history of tickets has it.
        role: What the person, or the one who made the token, may do.
        scopes: What is permitted beside that; a person who signed in has all.
        via: How that is known: "loopback", "token", "oidc", "proxy" or "stdio".
    """

    name: str
    role: Role
    scopes: frozenset[str]
    via: str


LOOPBACK = Principal("loopback", Role.ADMIN, frozenset(SCOPES), "loopback")


async def principal_of(request: Request) -> Principal:
    """Return who asks."""
    context: ServerContext = request.app.state.context
    return context.authenticate(request)


def _at_least(role: Role) -> Callable[[Request], object]:
    async def require(request: Request) -> Principal:
        principal = await principal_of(request)
        if principal.role < role:
            raise Forbidden(
                f"{principal.name} is {principal.role.name.lower()}; this needs {role.name.lower()}"
            )
        return principal

    return require


viewer = _at_least(Role.VIEWER)
operator = _at_least(Role.OPERATOR)
admin = _at_least(Role.ADMIN)
"""Dependencies of a route: the principal, who has this role at least."""


def scope(name: str) -> Callable[[Request], object]:
    """Return the dependency of a route: the principal, who has this scope."""
    assert name in SCOPES

    async def require(request: Request) -> Principal:
        principal = await principal_of(request)
        if name not in principal.scopes:
            raise Forbidden(f"the token has no scope {name}")
        return principal

    return require
