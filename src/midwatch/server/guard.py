"""Around every request: who sends it, limits, headers of security, one line in the log, and a count."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from midwatch.errors import MidwatchError, TemporaryError
from midwatch.lifecycle import cancel
from midwatch.server.auth import Principal
from midwatch.server.context import ServerContext
from midwatch.server.limits import BoundedBody, Limits, is_stream
from midwatch.server.page.page_routes import error_page, wants_page
from midwatch.server.problems import Unauthenticated, problem, problem_of
from midwatch.server.sign_in import sign_in_path

_CLIENT_GONE = 499
"""In the log only: the client disconnected before its response (as nginx has it)."""
_OTHER = "other"
"""The route of unknown addresses: their paths may be anything."""
_PROBES = ("/healthz", "/readyz")
_PUBLIC = ("/sign-in", "/sign-in/", "/static/", "/hooks/", "/favicon.ico")
"""Addresses that need no principal; one that ends with a slash covers all below it.

What is below `/hooks/` checks a token or a signature itself.
"""
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "private, no-cache",
}
_YEAR = 31_536_000
_CHECKED_AGAIN = 30.0
"""Seconds between two looks at who reads an answer that goes on, such as a stream of events."""


@dataclass(slots=True)
class _Exchange:
    """A request so far. `status` is 0 until its response begins."""

    status: int = 0
    sent: int = 0


class _NotRead(Exception):
    """The client does not read its response."""


class _NoLongerAdmitted(Exception):
    """The sign-in or the token of an open stream has ended."""


class Guard:
    """The outermost ASGI application.

    Args:
        app: The application.
        context: What the server shares.
    """

    def __init__(self, app: ASGIApp, context: ServerContext) -> None:
        self._app = app
        self._context = context
        self._seconds = context.settings.server.request_time
        self._limits = Limits(
            context.settings.server, context.authenticator, context.stats
        )
        headers = dict(_HEADERS)
        if context.authenticator.is_secure:
            headers["strict-transport-security"] = f"max-age={_YEAR}"
        self._headers = [
            (name.encode(), value.encode()) for name, value in headers.items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        context, exchange = self._context, _Exchange()
        began = context.clock.monotonic()
        state = scope.setdefault("state", {})
        state["principal"] = None
        body = self._limits.bounded(receive)
        try:
            await self._run(Request(scope), body, send, exchange)
        finally:
            body.close()
            seconds = context.clock.monotonic() - began
            self._log(scope, exchange, body.size, seconds)
            self._count(scope, exchange, body.size, seconds)

    async def _run(
        self, request: Request, body: BoundedBody, send: Send, exchange: _Exchange
    ) -> None:
        checked = self._context.clock.monotonic()

        async def in_time(message: Message) -> None:
            nonlocal checked
            if message["type"] == "http.response.start":
                self._add_headers(message)
            now = self._context.clock.monotonic()
            if exchange.status and now - checked >= _CHECKED_AGAIN:
                checked = now
                await self._check_again(request)
            try:
                async with asyncio.timeout(self._seconds):
                    await send(message)
            except TimeoutError:
                raise _NotRead from None
            exchange.status = message.get("status", exchange.status)
            exchange.sent += len(message.get("body", b""))

        scope = request.scope
        try:
            if request.url.path in _PROBES:
                # However busy the server is, and by whatever name a probe asks for it.
                await self._app(scope, body, in_time)
                return
            with self._limits.slot(request):
                self._limits.check(request)
                await self._admit(request)
                receive: Receive = body
                if is_stream(request):
                    receive = _EndingWith(self._context, body)
                await self._app(scope, receive, in_time)
        except MidwatchError as error:
            request.state.error = error.one_line()
            if not exchange.status:
                await self._answer_to(error, request)(scope, body, in_time)
        except (ClientDisconnect, _NotRead):
            # Nothing more is sent: the server closes a connection whose response has no end.
            exchange.status = _CLIENT_GONE
        except _NoLongerAdmitted:
            request.state.error = "the sign-in or the token has ended"
        except Exception as error:  # the outermost guard: one request, not the server
            if isinstance(error.__cause__, MidwatchError):
                # The router has no answer for it: the response had begun, such as a stream of events.
                request.state.error = error.__cause__.one_line()
                return
            self._context.log.error("request failed", path=_path(scope), exc_info=error)
            if not exchange.status:
                failed = problem(500, "the server failed", "see its log")
                await failed(scope, body, in_time)

    async def _admit(self, request: Request) -> None:
        """Find out who sends a request. Raises Unauthenticated where somebody has to."""
        principal = await self._context.authenticator.authenticate(request)
        request.state.principal = principal
        if principal is None and not _is_public(request.url.path):
            raise Unauthenticated(hint="sign in, or send Authorization: Bearer TOKEN")

    def _answer_to(self, error: MidwatchError, request: Request) -> Response:
        """Return the answer: for a browser a page, or where to sign in; a problem for a program."""
        pages = self._context.pages
        if pages is None or not wants_page(request):
            return problem_of(error)
        if isinstance(error, Unauthenticated) and request.method == "GET":
            return RedirectResponse(sign_in_path(request), 303)
        return error_page(pages, request, error)

    async def _check_again(self, request: Request) -> None:
        """Raise _NoLongerAdmitted if the reader of a long answer may no longer read it."""
        if request.state.principal is None:
            return
        try:
            again = await self._context.authenticator.authenticate(request)
        except TemporaryError:
            return  # nothing is known of it
        except MidwatchError:
            again = None
        if again is None:
            raise _NoLongerAdmitted

    def _add_headers(self, message: Message) -> None:
        given = message.setdefault("headers", [])
        present = {name for name, _ in given}
        message["headers"] = [
            *given,
            *(one for one in self._headers if one[0] not in present),
        ]

    # -------------------------------------------------- the log and the counts

    def _log(
        self, scope: Scope, exchange: _Exchange, received: int, seconds: float
    ) -> None:
        path = scope["path"]
        # Alerts come by the hundred a second, and are rows in the database.
        often = scope["method"] in ("GET", "HEAD") or path.startswith("/hooks/")
        state: dict[str, Any] = scope["state"]
        failed = exchange.status >= 400 or "error" in state
        quiet = path in _PROBES or (often and not failed)
        log = self._context.log.debug if quiet else self._context.log.info
        principal: Principal | None = state["principal"]
        # The query and headers are left out: a token may be in either.
        log(
            "request",
            method=scope["method"],
            path=_path(scope),
            status=exchange.status,
            ms=round(seconds * 1000, 1),
            received=received,
            sent=exchange.sent,
            **({"by": principal.name, "via": principal.via} if principal else {}),
            **({"error": state["error"]} if "error" in state else {}),
        )

    def _count(
        self, scope: Scope, exchange: _Exchange, received: int, seconds: float
    ) -> None:
        stats = self._context.stats
        route = getattr(scope.get("route"), "path", _OTHER)
        stats.requests[route, exchange.status or _CLIENT_GONE] += 1
        stats.seconds[route] += seconds
        stats.received += received
        stats.sent += exchange.sent


class _EndingWith:
    """Receives for a stream, which hears at the stop of the process that its client has gone."""

    def __init__(self, context: ServerContext, receive: Receive) -> None:
        self._stop = context.stop
        self._receive = receive

    async def __call__(self) -> Message:
        stopped = asyncio.ensure_future(self._stop.wait())
        message = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait({stopped, message}, return_when=asyncio.FIRST_COMPLETED)
            if message.done():
                return message.result()
            return {"type": "http.disconnect"}
        finally:
            await cancel(stopped, message)


def _is_public(path: str) -> bool:
    return any(
        path == one or (one.endswith("/") and path.startswith(one)) for one in _PUBLIC
    )


def _path(scope: Scope) -> str:
    return ascii(scope["path"][:300])[1:-1]
