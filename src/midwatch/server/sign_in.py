"""Signing in and out with a browser: by a token, or through an OpenID Connect provider."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from midwatch.errors import MidwatchError, SettingsError
from midwatch.provider import trust
from midwatch.server.auth import Role
from midwatch.server.authentication import role_of
from midwatch.server.context import ServerContext
from midwatch.server.problems import RequestRefused, status_of
from midwatch.server_settings import OidcSettings
from midwatch.text import one_line

if TYPE_CHECKING:
    from midwatch.server.oidc import OidcClient

_SECONDS = 600
"""Time that a person has to sign in at the provider."""
_LONGEST_TARGET = 500


def router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    pages = _SignIn(context)
    routes = APIRouter(include_in_schema=False)
    routes.add_api_route("/sign-in", pages.form, methods=["GET"])
    routes.add_api_route("/sign-in", pages.by_token, methods=["POST"])
    routes.add_api_route("/sign-in/provider", pages.to_provider, methods=["GET"])
    routes.add_api_route("/sign-in/done", pages.from_provider, methods=["GET"])
    routes.add_api_route("/sign-out", pages.out, methods=["POST"])
    return routes


def sign_in_path(request: Request) -> str:
    """Return where a browser signs in that asked for a page, to which it comes back."""
    path = request.url.path
    if request.url.query:
        path += f"?{request.url.query}"
    return f"/sign-in?next={quote(path[:_LONGEST_TARGET], safe='')}"


def _target(given: str) -> str:
    """Return where a browser goes after the sign-in: a path of this server, or `/`."""
    safe = given.startswith("/") and given.isascii() and given.isprintable()
    if not safe or given[1:2] in ("/", "\\") or "\\" in given:
        return "/"
    return given[:_LONGEST_TARGET]


class _SignIn:
    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._auth = context.authenticator
        self._oidc: OidcClient | None = None
        settings = context.settings.server
        assert context.pages is not None
        self._pages = context.pages
        self._redirect = f"{settings.url}/sign-in/done"
        self._cookie = f"{self._auth.cookie}-sign-in"
        if settings.oidc is not None:
            if settings.url is None:
                raise SettingsError(
                    "sign-in through OpenID Connect needs the URL that people use",
                    path="server.url",
                    hint="the provider sends them back to it, such as https://midwatch.example.org",
                )
            self._open(settings.oidc)

    def _open(self, settings: OidcSettings) -> None:
        import httpx2

        from midwatch.server.oidc import OidcClient

        context = self._context
        # The environment is read at the edge.
        http = httpx2.AsyncClient(verify=trust(context.environ), trust_env=False)
        self._oidc = OidcClient(settings, context.clock, http)

        @asynccontextmanager
        async def closing() -> AsyncIterator[None]:
            async with http:
                yield

        context.lifespans.append(closing)

    # -------------------------------------------------- the form

    async def form(self, request: Request, next: str = "/") -> Response:
        """Return the page on which people sign in."""
        return self._page(request, _target(next))

    def _page(
        self, request: Request, target: str, error: MidwatchError | None = None
    ) -> Response:
        if error is not None:
            request.state.error = error.one_line()
        return self._pages.page(
            request,
            None,
            "sign_in.html",
            "",
            status=200 if error is None else status_of(error),
            target=target,
            query=quote(target, safe=""),
            error=error.one_line() if error else "",
            provider=self._oidc is not None,
        )

    async def by_token(
        self,
        request: Request,
        token: Annotated[str, Form(max_length=200)],
        next: Annotated[str, Form(max_length=_LONGEST_TARGET)] = "/",
    ) -> Response:
        """Sign in with a token."""
        target = _target(next)
        try:
            parent = await self._auth.valid(token.strip(), "api")
        except RequestRefused as error:
            return self._page(request, target, error)
        role = Role[parent.role.upper()]
        secret, seconds = await self._auth.sign_in(
            parent.name, role, "token", parent=parent
        )
        self._context.log.info("signed in", name=parent.name, role=role.label)
        return await self._signed_in(request, target, secret, seconds)

    async def _signed_in(
        self, request: Request, target: str, secret: str, seconds: float
    ) -> Response:
        if former := request.cookies.get(self._auth.cookie):
            await self._auth.sign_out(former)
        answer = RedirectResponse(target, 303, {"cache-control": "no-store"})
        self._set(answer, self._auth.cookie, secret, seconds)
        return answer

    def _set(self, answer: Response, name: str, value: str, seconds: float) -> None:
        answer.set_cookie(
            name,
            value,
            max_age=int(seconds),
            path="/",
            secure=self._auth.is_secure,
            httponly=True,
            samesite="lax",
        )

    # -------------------------------------------------- the provider

    async def to_provider(self, request: Request, next: str = "/") -> Response:
        """Send the browser to the provider."""
        if self._oidc is None:
            raise RequestRefused("no OpenID Connect provider is set", hint="")
        try:
            started = await self._oidc.start(self._redirect)
        except MidwatchError as error:
            return self._page(request, _target(next), error)
        answer = RedirectResponse(started.url, 303, {"cache-control": "no-store"})
        # The state ties the answer to this browser: no other can set or read the cookie.
        kept = (started.state, started.nonce, started.verifier)
        self._set(
            answer,
            self._cookie,
            ".".join((*kept, quote(_target(next), safe=""))),
            _SECONDS,
        )
        return answer

    async def from_provider(self, request: Request) -> Response:
        """Complete a sign-in that the provider sends the browser back from."""
        kept = request.cookies.get(self._cookie, "").split(".", 3)
        target = "/"
        try:
            if self._oidc is None or len(kept) < 4:
                raise RequestRefused("no sign-in was begun here", hint="sign in again")
            [target] = parse_qs(f"next={kept[3]}").get("next", ["/"])
            secret, seconds = await self._complete(request, *kept[:3])
        except MidwatchError as error:
            answer = self._page(request, _target(target), error)
        else:
            answer = await self._signed_in(request, _target(target), secret, seconds)
        self._forget(answer, self._cookie)
        return answer

    async def _complete(
        self, request: Request, state: str, nonce: str, verifier: str
    ) -> tuple[str, float]:
        assert self._oidc is not None
        query = request.query_params
        if not secrets.compare_digest(query.get("state", "").encode(), state.encode()):
            raise RequestRefused(
                "the answer belongs to another sign-in", hint="sign in again"
            )
        code = query.get("code", "")
        if not code:
            told = one_line(query.get("error", "no code"))[:200]
            raise RequestRefused(
                f"the provider refuses the sign-in: {told}", hint="sign in again"
            )
        person = await self._oidc.finish(code, nonce, verifier, self._redirect)
        roles = self._context.settings.server.roles
        role = role_of(person.name, person.groups, roles)
        self._context.log.info("signed in", name=person.name, role=role.label)
        return await self._auth.sign_in(person.name, role, "oidc")

    async def out(self, request: Request) -> Response:
        """End the sign-in of this browser."""
        if secret := request.cookies.get(self._auth.cookie):
            await self._auth.sign_out(secret)
        answer = RedirectResponse("/sign-in", 303)
        self._forget(answer, self._auth.cookie)
        return answer

    def _forget(self, answer: Response, name: str) -> None:
        answer.delete_cookie(
            name,
            path="/",
            secure=self._auth.is_secure,
            httponly=True,
            samesite="lax",
        )
