"""Find out who sends a request: by a token, a cookie, the header of a trusted proxy, or as it comes from this machine."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from midwatch.errors import MidwatchError
from midwatch.lifecycle import Clock, cancel
from midwatch.logs import Log
from midwatch.server.auth import SCOPES, Principal, Role, scopes_of
from midwatch.server.peer import user_of
from midwatch.server.problems import Forbidden, RequestRefused, Unauthenticated
from midwatch.server_settings import ProxySettings, RoleSettings, ServerSettings
from midwatch.store.on_call import ApiToken, NewToken
from midwatch.store.protocol import Store
from midwatch.text import one_line

_PREFIX = "mwt_"
_SECRET_LENGTH = len(_PREFIX) + 43
_ALL = frozenset(SCOPES)
_GROUP = "group:"
_REMEMBERED = 5.0
"""Seconds for which a token is known without a look at the database: a revoked one works no longer than that."""
_MOST_REMEMBERED = 10_000
_USE_NOTED = 60.0
"""Seconds between two notes of the last use of a token."""
_LONGEST_NAME = 200
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
"""What a reverse proxy adds: such a request does not come from this machine, whatever its address."""


def new_secret() -> str:
    """Return the secret of a new token. Redaction knows its shape."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    """Return what is stored of a secret. It is random and long, so a fast hash is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_loopback(host: str) -> bool:
    """Return whether a host name or an address is this machine and nothing else."""
    address = address_of(host)
    return host == "localhost" if address is None else address.is_loopback


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """Return an address that is written as text; None for a name."""
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def role_of(name: str, groups: Iterable[str], roles: RoleSettings) -> Role:
    """Return the role of a person by the settings. Raises Forbidden for one without a role."""
    groups = tuple(groups)
    for role, entries in (
        (Role.ADMIN, roles.admins),
        (Role.OPERATOR, roles.operators),
        (Role.VIEWER, roles.viewers),
    ):
        if any(_names(entry, name, groups) for entry in entries):
            return role
    raise Forbidden(
        f"{name} has no role here", hint="the setting server.roles says who has one"
    )


def _names(entry: str, name: str, groups: Iterable[str]) -> bool:
    """Return whether an entry of a role means a person. One of a group means no name, however that is chosen."""
    if entry.startswith(_GROUP):
        pattern = entry.removeprefix(_GROUP)
        return any(fnmatchcase(group, pattern) for group in groups)
    return fnmatchcase(name, entry)


@dataclass(frozen=True, slots=True)
class _Remembered:
    token: ApiToken
    at: float


class Authenticator:
    """Finds out who sends a request.

    Args:
        settings: How people sign in, and what their roles are.
        store: Where tokens are.
        clock: Decides whether a token has ended.
        log: Gets a line where the last use of a token could not be noted.
    """

    def __init__(
        self, settings: ServerSettings, store: Store, clock: Clock, log: Log
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._log = log
        self._known: dict[str, _Remembered] = {}
        self._used: dict[int, float] = {}
        self._peers: dict[tuple[str, int], tuple[str, float]] = {}
        self._notes: set[asyncio.Task[None]] = set()
        url = urlsplit(settings.url or "http://localhost")
        host, _ = settings.listen or ("", 0)
        self.is_open = (
            settings.oidc is None
            and settings.proxy is None
            and is_loopback(url.hostname or "")
            and is_loopback(host)
        )
        """Whether programs and browsers of this machine need no sign-in."""
        self.is_secure = url.scheme == "https" or settings.certificate_file is not None
        """Whether browsers reach the server over TLS."""
        self.cookie = "__Host-midwatch" if self.is_secure else "midwatch"
        """The name of the cookie of a sign-in."""

    async def authenticate(self, request: HTTPConnection) -> Principal | None:
        """Return who sends a request; None if it does not say so.

        Raises:
            Unauthenticated: It says so, and the token or the sign-in is not valid.
            Forbidden: The person has no role.
            StoreBusy, StoreUnavailable: The token cannot be looked up.
        """
        given = request.headers.getlist("authorization")
        if given:
            return await self._by_token(given)
        if person := self._by_proxy(request):
            return person
        cookie = request.cookies.get(self.cookie)
        if cookie and (person := await self._by_cookie(cookie)):
            return person
        return self._by_address(request)

    # -------------------------------------------------- tokens

    async def _by_token(self, given: list[str]) -> Principal:
        secret = _secret_in(given[0]) if len(given) == 1 else ""
        if not secret:
            raise Unauthenticated(
                "the Authorization header has no token",
                hint="send Authorization: Bearer TOKEN, or the token as password of Basic",
            )
        token = await self.valid(secret, "api")
        return Principal(token.name, Role[token.role.upper()], _scopes(token), "token")

    async def _by_cookie(self, secret: str) -> Principal | None:
        try:
            token = await self.valid(secret, "sign_in")
        except Unauthenticated:
            return None  # a browser sends it until it signs in again
        role = Role[token.role.upper()]
        return Principal(token.name, role, _scopes(token), token.created_by)

    async def valid(self, secret: str, kind: str) -> ApiToken:
        """Return the token with this secret. Raises Unauthenticated, and the errors of the store."""
        hint = "make one with `midwatch tokens create`"
        if len(secret) != _SECRET_LENGTH or not secret.startswith(_PREFIX):
            raise Unauthenticated("that is no token of Midwatch", hint=hint)
        token = await self._find(digest_of(secret))
        if token is None or token.kind != kind:
            raise Unauthenticated("the token is not known", hint=hint)
        if token.revoked_at is not None:
            raise Unauthenticated("the token was revoked", hint=hint)
        if token.expires_at <= self._clock.now():
            raise Unauthenticated("the token has expired", hint=hint)
        self._note_use(token)
        return token

    async def _find(self, digest: str) -> ApiToken | None:
        now = self._clock.monotonic()
        known = self._known.get(digest)
        if known is not None and now - known.at < _REMEMBERED:
            return known.token
        token = await self._store.find_token(digest)
        if token is not None:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[digest] = _Remembered(token, now)
        return token

    def _note_use(self, token: ApiToken) -> None:
        now = self._clock.monotonic()
        if now - self._used.get(token.id, -_USE_NOTED) < _USE_NOTED:
            return
        if len(self._used) >= _MOST_REMEMBERED:
            self._used.clear()
        self._used[token.id] = now
        # Not in the request: it would wait for a write that it does not need.
        task = asyncio.create_task(self._save_use(token.id), name="use of a token")
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _save_use(self, token_id: int) -> None:
        try:
            await self._store.use_token(token_id)
        except MidwatchError as error:
            self._log.warning("use of a token not noted", error=error.one_line())

    async def close(self) -> None:
        """End what runs in the background."""
        await cancel(*self._notes)

    # -------------------------------------------------- sign-ins

    async def sign_in(
        self,
        name: str,
        role: Role,
        via: str,
        *,
        parent: ApiToken | None = None,
    ) -> tuple[str, float]:
        """Store a sign-in. Return the secret for the cookie, and the seconds for which it is valid.

        Args:
            name: Who signs in.
            role: What that person may do.
            via: How: "oidc" or "token".
            parent: The token that was given; the sign-in has its scopes, and ends with it.
        """
        secret, seconds = new_secret(), self._settings.sign_in_time
        if parent is not None:
            left = parent.expires_at - self._clock.now()
            seconds = min(seconds, left / timedelta(seconds=1))
        new = NewToken(
            kind="sign_in",
            name=name,
            digest=digest_of(secret),
            role=role.label,
            scopes=parent.scopes if parent else tuple(sorted(scopes_of(role))),
            created_by=via,
            seconds=seconds,
            parent_id=parent.id if parent else None,
        )
        await self._store.add_token(new)
        return secret, seconds

    async def sign_out(self, secret: str) -> None:
        """End the sign-in of a cookie, if it is one."""
        try:
            token = await self.valid(secret, "sign_in")
        except Unauthenticated:
            return
        await self._store.revoke_token(token.id)
        self._known.pop(digest_of(secret), None)

    # -------------------------------------------------- proxies and this machine

    def _by_proxy(self, request: HTTPConnection) -> Principal | None:
        proxy = self._settings.proxy
        if proxy is None or not _comes_from(request, proxy):
            return None
        given = request.headers.getlist(proxy.user_header)
        if len(given) > 1:
            raise RequestRefused(f"the header {proxy.user_header} stands twice")
        name = clean_name(_as_text(given[0])) if given else ""
        if not name:
            return None
        groups: list[str] = []
        if proxy.groups_header:
            for value in request.headers.getlist(proxy.groups_header):
                groups += [one.strip() for one in _as_text(value).split(",")]
        role = role_of(name, filter(None, groups), self._settings.roles)
        return Principal(name, role, scopes_of(role), "proxy")

    def _by_address(self, request: HTTPConnection) -> Principal | None:
        if not self.is_open or request.client is None:
            return None
        if any(name in request.headers for name in _FORWARDED):
            return None
        if not is_loopback(request.client.host):
            return None
        name, server = self._local_name(request), request.scope.get("server")
        client = request.client.host, request.client.port
        ends = (client, (server[0], server[1])) if server and server[1] else None
        return Principal(name, Role.ADMIN, _ALL, "loopback", ends)

    def _local_name(self, request: HTTPConnection) -> str:
        """Return USER@HOST of the program that sends a request from this machine, else "loopback"."""
        client, server = request.client, request.scope.get("server")
        if client is None or server is None or server[1] is None:
            return "loopback"
        now = self._clock.monotonic()
        name, at = self._peers.get(client, ("", -_REMEMBERED))
        if now - at < _REMEMBERED:
            return name
        name = user_of((client.host, client.port), (server[0], server[1])) or "loopback"
        if len(self._peers) >= _MOST_REMEMBERED:
            self._peers.clear()
        self._peers[client] = name, now
        return name


def clean_name(name: str) -> str:
    """Return a person's name as the history has it: one line, not too long."""
    return one_line(name)[:_LONGEST_NAME].strip()


def _secret_in(authorization: str) -> str:
    """Return the token of `Bearer TOKEN` or of `Basic`, as whose password senders of alerts can send it."""
    scheme, _, value = authorization.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _scopes(token: ApiToken) -> frozenset[str]:
    return frozenset(token.scopes) & _ALL


def _comes_from(request: HTTPConnection, proxy: ProxySettings) -> bool:
    address = address_of(request.client.host) if request.client else None
    return address is not None and any(
        address in ip_network(one) for one in proxy.addresses
    )


def _as_text(value: str) -> str:
    """Return a header's value, which Starlette read as Latin-1, as the UTF-8 that it mostly is."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value
