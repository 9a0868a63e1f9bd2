"""Single requests to the API server, straight over `httpcore2`.

The layers of an HTTP client above it (URLs, redirects, cookies, streams) cost as much processor time as the request itself, and an
API server needs none of them. A thousand sessions at once are 8,000 requests.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

import httpcore2
import httpx2

from midwatch.cluster.credentials import Credentials
from midwatch.model import Json

_KEEP = 5.0
"""Seconds that an idle connection is kept."""
_BROKEN = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.UnsupportedProtocol,
    httpcore2.ConnectionNotAvailable,
)
"""What `httpcore2` raises besides its timeouts."""


class RequestSender:
    """Sends requests to one API server.

    Args:
        server: Its address.
        tls: The certificates to trust, and the client's own.
        credentials: Who asks.
        timeout: Seconds for connecting, for writing and for each read.
        proxy: What the server is reached through.
        extensions: Of each request, such as the server's name in its certificate (`sni_hostname`).
    """

    def __init__(
        self,
        server: str,
        tls: ssl.SSLContext,
        credentials: Credentials,
        timeout: float,
        *,
        proxy: httpx2.Proxy | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        self._base = server.rstrip("/")
        self._tls = tls
        self._credentials = credentials
        # One stack, the last used on top: the pool of the library looks at every connection for each request.
        self._idle: list[httpcore2.AsyncHTTPConnection] = []
        phases = ("connect", "read", "write", "pool")
        self._extensions = {
            "timeout": dict.fromkeys(phases, timeout),
            **(extensions or {}),
        }
        self._proxied = None if proxy is None else _through(proxy, tls)

    async def send(
        self,
        method: str,
        path: str,
        body: Json | Sequence[Json] | None = None,
        content_type: str = "",
        accept: str = "",
    ) -> Json:
        """Send a request and return the JSON object in the answer. New credentials are read once if the known ones are refused.

        Raises:
            httpx2.HTTPError: There was no answer, or it has no status of success (`HTTPStatusError`).
            ValueError: The answer is no JSON object.
            LoginFailed: The credentials cannot be had.
        """
        response = await self._sent(method, path, body, content_type, accept)
        if response.status == 401 and self._credentials.forget():
            await self._drop_idle()  # they presented the certificate that is refused
            response = await self._sent(method, path, body, content_type, accept)
        if not 200 <= response.status < 300:
            raise _status_error(response, httpx2.Request(method, self._base))
        answer = json.loads(response.content)
        if not isinstance(answer, dict):
            raise ValueError("the answer is no JSON object")
        return answer

    async def close(self) -> None:
        """Close all connections."""
        await self._drop_idle()
        if self._proxied is not None:
            await self._proxied.aclose()

    async def _drop_idle(self) -> None:
        while self._idle:
            await self._idle.pop().aclose()

    async def _sent(
        self,
        method: str,
        path: str,
        body: Json | Sequence[Json] | None,
        content_type: str,
        accept: str,
    ) -> httpcore2.Response:
        headers = [
            ("Accept", accept or "application/json"),
            *await self._credentials.headers(),
        ]
        content = None
        if body is not None:
            headers.append(("Content-Type", content_type or "application/json"))
            content = json.dumps(body, separators=(",", ":")).encode()
        url = httpcore2.URL(f"{self._base}/{path}")
        connection = self._proxied or await self._connection(url.origin)
        try:
            response = await connection.request(
                method,
                url,
                headers=headers,
                content=content,
                extensions=self._extensions,
            )
        except httpcore2.TimeoutException as error:
            raise httpx2.ReadTimeout(str(error)) from error
        except _BROKEN as error:
            raise httpx2.NetworkError(str(error) or type(error).__name__) from error
        finally:
            if isinstance(connection, httpcore2.AsyncHTTPConnection):
                if connection.is_available():
                    self._idle.append(connection)
                else:
                    await connection.aclose()
        return response

    async def _connection(
        self, origin: httpcore2.Origin
    ) -> httpcore2.AsyncHTTPConnection:
        """Return an open connection that the server has not closed, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.has_expired():
                return connection
            await connection.aclose()
        return httpcore2.AsyncHTTPConnection(
            origin, ssl_context=self._tls, keepalive_expiry=_KEEP
        )


def _through(proxy: httpx2.Proxy, tls: ssl.SSLContext) -> httpcore2.AsyncConnectionPool:
    """Return connections through a proxy."""
    kind = (
        httpcore2.AsyncSOCKSProxy
        if proxy.url.scheme.startswith("socks")
        else httpcore2.AsyncHTTPProxy
    )
    return kind(
        proxy_url=str(proxy.url),
        proxy_auth=proxy.raw_auth,
        ssl_context=tls,
        keepalive_expiry=_KEEP,
    )


def _status_error(
    response: httpcore2.Response, request: httpx2.Request
) -> httpx2.HTTPStatusError:
    headers: list[Any] = list(response.headers)
    answer = httpx2.Response(
        response.status, headers=headers, content=response.content, request=request
    )
    return httpx2.HTTPStatusError(
        f"status {response.status}", request=request, response=answer
    )
