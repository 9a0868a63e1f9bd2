"""Who asks, and what that person or program may do: the dependencies of routes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum

from fastapi import Request

from midwatch.server.peer import Address, is_of_session
from midwatch.server.problems import Forbidden, Unauthenticated
from midwatch.session_ancestry import NoPerson


class Role(IntEnum):
    """What a person may do. Each role may do what those before it may."""

    VIEWER = 0
    OPERATOR = 1
    ADMIN = 2

    @property
    def label(self) -> str:
        return self.name.lower()


SCOPES = (
    "read",
    "tickets:write",
    "silences:write",
    "sessions:write",
    "investigations:write",
    "actions",
    "alerts:write",
    "changes:write",
    "mcp",
)
"""What a token may be for."""
_OF_VIEWERS = frozenset({"read", "mcp"})


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        name: As the history of tickets has it.
        role: What the person, or the owner of the token, may do.
        scopes: What is permitted beside that. Only a token has less than all.
        via: How that is known: "loopback", "token", "oidc", "proxy" or "stdio".
        ends: The client's and the server's end of the connection, where that is all that says who it is.
    """

    name: str
    role: Role
    scopes: frozenset[str]
    via: str
    ends: tuple[Address, Address] | None = None


def scopes_of(role: Role) -> frozenset[str]:
    """Return the scopes of a person with this role, who has no token that says more or less."""
    return _OF_VIEWERS if role is Role.VIEWER else frozenset(SCOPES)


async def principal_of(request: Request) -> Principal:
    """Return who sends a request. Raises Unauthenticated."""
    found: Principal | None = getattr(request.state, "principal", None)
    if found is None:
        raise Unauthenticated()
    return found


async def refuse_sessions(who: Principal) -> None:
    """Raise Forbidden if nothing says who it is but a connection from this machine, and that is one of a session's program."""
    if who.ends is not None and await asyncio.to_thread(is_of_session, *who.ends):
        raise Forbidden("a session may not decide that", hint=NoPerson.hint)


Dependency = Callable[[Request], Awaitable[Principal]]


def rights(role: Role, scope: str) -> Dependency:
    """Return the dependency of a route: the principal, who has at least this role and this scope."""
    assert scope in SCOPES

    async def require(request: Request) -> Principal:
        principal = await principal_of(request)
        if principal.role < role:
            raise Forbidden(
                f"{principal.name} has the role {principal.role.label}; this needs {role.label}",
                hint="see the setting server.roles, or `midwatch tokens create --role`",
            )
        if scope not in principal.scopes:
            raise Forbidden(
                f"{principal.name} has no scope {scope}",
                hint="see `midwatch tokens create --scope`",
            )
        if scope == "sessions:write":
            await refuse_sessions(principal)
        return principal

    return require


reads = rights(Role.VIEWER, "read")
changes_tickets = rights(Role.OPERATOR, "tickets:write")
changes_silences = rights(Role.OPERATOR, "silences:write")
steers_sessions = rights(Role.OPERATOR, "sessions:write")
approves_actions = rights(Role.OPERATOR, "actions")
investigates = rights(Role.OPERATOR, "investigations:write")
reports_changes = rights(Role.OPERATOR, "changes:write")
sends_alerts = rights(Role.VIEWER, "alerts:write")
"""What the routes of the page, the API and the hooks ask for."""
