"""A relay on loopback that makes the program's requests with the secrets that the program must not have.

Bash in a session sees the environment of the claude program. So headers, tokens, the credentials of a cloud and
passwords of proxies stay in this process: the program asks the relay, and the relay asks the API, or the proxy.
Only who knows the token of this start may ask it. A session that needs no more than a key has no relay.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import ipaddress
import json
import secrets
import ssl
from collections.abc import AsyncIterator, Mapping
from inspect import iscoroutinefunction
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import h11
import httpx2

from midwatch.cookies import no_cookies
from midwatch.lifecycle import cancel
from midwatch.provider import (
    PROXIES,
    ApiAccess,
    check_proxies,
    cloud_client,
    credential_errors,
    trust,
    with_scheme,
)

_HOST = "127.0.0.1"
_MAX_HEAD, _MAX_BODY = 256 * 1024, 64 * 1024 * 1024  # bytes of a request
_CHUNK = 65536
_CONNECT_WITHIN = 30.0  # seconds
_ONE_HOP = frozenset(
    "connection keep-alive proxy-authorization proxy-connection te trailer transfer-encoding upgrade host"
    " content-length x-api-key authorization".split()
)
"""Headers of a request that are between two hops, or that the relay sets itself."""


class _CloudAuth(httpx2.Auth):
    """Signs requests as the SDK's client of a cloud does."""

    requires_request_body = True

    def __init__(self, client: Any) -> None:
        self._client = client

    async def async_auth_flow(self, request: httpx2.Request) -> Any:
        prepare = self._client._prepare_request
        if iscoroutinefunction(prepare):
            await prepare(request)
        else:  # a client without an event loop may wait for its credentials
            await asyncio.to_thread(prepare, request)
        yield request


class Relay:
    """Serves one start of the program, from `async with` on.

    Raises SettingsError for a cloud without what it needs, and for a proxy that cannot be used.
    """

    def __init__(self, access: ApiAccess) -> None:
        check_proxies(access)
        self._access = access
        self._cloud = None if access.provider == "anthropic" else cloud_client(access)
        base = self._cloud.base_url if self._cloud else access.base_url
        self._base = str(base or _ANTHROPIC)
        self.token = f"relay-{secrets.token_urlsafe(32)}"
        self._server: asyncio.Server | None = None
        self._busy: set[asyncio.Task[None]] = set()
        self._client: httpx2.AsyncClient

    async def __aenter__(self) -> Self:
        trusted = trust(self._access.environ)
        self._client = httpx2.AsyncClient(
            auth=_CloudAuth(self._cloud) if self._cloud else None,
            transport=httpx2.AsyncHTTPTransport(verify=trusted),
            mounts=_proxies(self._access.network, trusted),
            trust_env=False,  # it would read the environment of the process, and .netrc
            timeout=httpx2.Timeout(None, connect=_CONNECT_WITHIN),
            follow_redirects=False,
            cookies=no_cookies(),
        )
        self._server = await asyncio.start_server(
            self._accept, _HOST, 0, limit=_MAX_HEAD
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        await cancel(*self._busy)
        await self._client.aclose()
        if self._cloud is not None and self._cloud is not self._access.client:
            await self._cloud.close()

    # -------------------------------------------------------------- what the program gets

    @property
    def _address(self) -> str:
        assert self._server is not None
        return f"{_HOST}:{self._server.sockets[0].getsockname()[1]}"

    def variables(self) -> dict[str, str]:
        """Return the variables with which the program uses the relay; none of them has a secret."""
        access = self._access
        found = {**access.network, **access.cloud}
        for name in access.secret_proxies:
            found[name] = f"http://midwatch:{self.token}@{self._address}"
        if not access.has_secrets:
            return found
        if set(found) & {one for name in PROXIES for one in (name, name.lower())}:
            past = found.get("NO_PROXY") or found.get("no_proxy")
            found["NO_PROXY"] = ",".join(filter(None, (past, _HOST)))
            found["no_proxy"] = found["NO_PROXY"]
        address = f"http://{self._address}"
        return (
            found
            | {
                "anthropic": {"ANTHROPIC_BASE_URL": address},
                "bedrock": {
                    "CLAUDE_CODE_USE_BEDROCK": "1",
                    "CLAUDE_CODE_SKIP_BEDROCK_AUTH": "1",
                    "ANTHROPIC_BEDROCK_BASE_URL": f"{address}/{self.token}",
                },
                "vertex": {
                    "CLAUDE_CODE_USE_VERTEX": "1",
                    "CLAUDE_CODE_SKIP_VERTEX_AUTH": "1",
                    "ANTHROPIC_VERTEX_BASE_URL": f"{address}/{self.token}",
                },
            }[access.provider]
        )

    # -------------------------------------------------------------- connections

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, ValueError, IndexError, h11.ProtocolError):
            pass  # who asked has gone, or does not speak HTTP
        except asyncio.LimitOverrunError:
            pass
        finally:
            self._busy.discard(task)
            writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.split(b" ", 2)[1].startswith(b"/"):
            await self._tunnel(head, reader, writer)
            return
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
        early: bytes | None = head
        while early is not None:
            if early:
                connection.receive_data(early)
            request = await _event(connection, reader)
            if not isinstance(request, h11.Request):
                return
            body = await _body(connection, reader)
            early = await self._answer(request, body, connection, reader, writer)
            if early is not None:
                connection.start_next_cycle()

    # -------------------------------------------------------------- the API

    async def _answer(
        self,
        request: h11.Request,
        body: bytes,
        connection: h11.Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bytes | None:
        """Answer one request. Return what was read of the next one; None if there is none on this connection."""
        path = self._path(request)
        if path is None:
            refused = _error(401, "authentication_error", "the relay refuses the key")
            await _send(connection, writer, refused)
            return None
        asked = asyncio.ensure_future(
            self._ask(request, path, body, connection, writer)
        )
        # Who asks sends nothing during an answer, but the end of the connection if it goes away.
        next_byte = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({asked, next_byte}, return_when=asyncio.FIRST_COMPLETED)
            if next_byte.done() and not next_byte.result():
                return None
            again = await asked
            return (next_byte.result() if next_byte.done() else b"") if again else None
        finally:
            await cancel(asked, next_byte)

    def _path(self, request: h11.Request) -> str | None:
        """Return the path to ask for, with its query; None for a request without the token."""
        path = request.target.decode("ascii")
        if self._cloud is not None:
            given, _, rest = path[1:].partition("/")
            return f"/{rest}" if self._knows(given) else None
        headers = {name: value.decode("latin-1") for name, value in request.headers}
        key = headers.get(b"x-api-key") or headers.get(b"authorization", "")
        return path if self._knows(key.removeprefix("Bearer ")) else None

    def _knows(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.token.encode())

    async def _ask(
        self,
        request: h11.Request,
        path: str,
        body: bytes,
        connection: h11.Connection,
        writer: asyncio.StreamWriter,
    ) -> bool:
        asked = self._client.build_request(
            request.method.decode("ascii"),
            httpx2.URL(self._base.rstrip("/") + path),
            headers=self._headers(request),
            content=body,
        )
        try:
            response = await self._client.send(asked, stream=True)
        except (httpx2.HTTPError, OSError) as error:
            host = asked.url.host
            text = f"{host} cannot be reached: {error or type(error).__name__}"
            await _send(connection, writer, _error(502, "api_error", text))
            return False
        except credential_errors() as error:
            text = f"no credentials for {self._access.provider}: {error}"
            await _send(connection, writer, _error(401, "authentication_error", text))
            return False
        try:
            await _send(connection, writer, _streamed(response))
        except httpx2.HTTPError:
            return False  # the answer stays cut, as it would be without the relay
        finally:
            await response.aclose()
        return connection.our_state is h11.DONE

    def _headers(self, request: h11.Request) -> list[tuple[str, str]]:
        kept = [
            (name.decode("ascii"), value.decode("latin-1"))
            for name, value in request.headers
            if name.decode("ascii") not in _ONE_HOP
        ]
        added = dict(self._access.headers)
        if self._cloud is None:
            added = {**_credentials(self._access), **added}
        replaced = {name.lower() for name in added}
        return [*(one for one in kept if one[0] not in replaced), *added.items()]

    # -------------------------------------------------------------- a proxy with a password

    async def _tunnel(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass a request for a proxy on to the proxy, with its password."""
        first, *lines = head[:-4].split(b"\r\n")
        given = {line.split(b":", 1)[0].strip().lower(): line for line in lines}
        login = given.pop(b"proxy-authorization", b"").rpartition(b" ")[2]
        if not self._knows(_decoded(login).partition(":")[2]):
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            return
        url = self._proxy_for(first)
        if url is None:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            return
        if not first.startswith(b"CONNECT "):
            given[b"connection"] = b"Connection: close"  # the next one needs the login
            given.pop(b"proxy-connection", None)
        given[b"proxy-authorization"] = b"Proxy-Authorization: Basic " + _basic(url)
        try:
            async with asyncio.timeout(_CONNECT_WITHIN):
                theirs = await _connect(url, self._access.environ)
        except (OSError, TimeoutError):
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            return
        theirs[1].write(b"\r\n".join([first, *given.values()]) + b"\r\n\r\n")
        try:
            await _join((reader, writer), theirs)
        finally:
            theirs[1].close()

    def _proxy_for(self, first: bytes) -> str | None:
        secure = first.startswith(b"CONNECT ")
        wanted = ("HTTPS_PROXY", "HTTP_PROXY") if secure else ("HTTP_PROXY",)
        proxies = self._access.secret_proxies
        for name in (*wanted, "ALL_PROXY"):
            for spelt in (name.lower(), name):
                if url := proxies.get(spelt):
                    return with_scheme(url)
        return None


_ANTHROPIC = "https://api.anthropic.com"


def _proxies(
    network: Mapping[str, str], trusted: ssl.SSLContext
) -> dict[str, httpx2.AsyncHTTPTransport | None]:
    """Return a transport for each pattern of URLs, as the SDK makes them of the variables."""
    found: dict[str, httpx2.AsyncHTTPTransport | None] = {}
    for name in PROXIES:
        if url := network.get(name.lower()) or network.get(name):
            pattern = f"{name.partition('_')[0].lower()}://"
            proxy = with_scheme(url)
            found[pattern] = httpx2.AsyncHTTPTransport(verify=trusted, proxy=proxy)
    past = network.get("no_proxy") or network.get("NO_PROXY") or ""
    for host in filter(None, map(str.strip, past.split(","))):
        if host == "*":
            return {}
        found[_pattern(host)] = None
    return found


def _pattern(host: str) -> str:
    """Return the pattern of URLs for an entry of NO_PROXY: a host with its subdomains, or an address."""
    if "://" in host:
        return host
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.split("/")[0].strip("[]"))
        return f"all://[{address}]" if address.version == 6 else f"all://{address}"
    return f"all://{host}" if host.lower() == "localhost" else f"all://*{host}"


def _credentials(access: ApiAccess) -> dict[str, str]:
    """Return the headers that the program itself sends with a key, or with a gateway's token."""
    if access.api_key:
        return {"x-api-key": access.api_key}
    if access.auth_token:
        return {"authorization": f"Bearer {access.auth_token}"}
    return {}


async def _event(connection: h11.Connection, reader: asyncio.StreamReader) -> object:
    """Return the next event of who asks. At the end of the connection it is one of that."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(_CHUNK))
    return event


async def _body(connection: h11.Connection, reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while isinstance(event := await _event(connection, reader), h11.Data):
        body += event.data
        if len(body) > _MAX_BODY:
            raise ValueError("the request is too long")
    return bytes(body)


async def _streamed(
    response: httpx2.Response,
) -> AsyncIterator[h11.Response | h11.Data | h11.EndOfMessage]:
    headers = [
        (name, value)
        for name, value in response.headers.raw
        if name.lower() not in (b"connection", b"keep-alive", b"transfer-encoding")
    ]
    yield h11.Response(status_code=response.status_code, headers=headers)
    async for chunk in response.aiter_raw():
        yield h11.Data(data=chunk)
    yield h11.EndOfMessage()


async def _error(
    status: int, kind: str, message: str
) -> AsyncIterator[h11.Response | h11.Data | h11.EndOfMessage]:
    """Yield an error as the Messages API writes it."""
    error = {"type": "error", "error": {"type": kind, "message": message}}
    body = json.dumps(error).encode()
    headers = [
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("connection", "close"),
    ]
    yield h11.Response(status_code=status, headers=headers)
    yield h11.Data(data=body)
    yield h11.EndOfMessage()


async def _send(
    connection: h11.Connection,
    writer: asyncio.StreamWriter,
    events: AsyncIterator[h11.Response | h11.Data | h11.EndOfMessage],
) -> None:
    async for event in events:
        if data := connection.send(event):
            writer.write(data)
            await writer.drain()


# ------------------------------------------------------------------ the way to a proxy


async def _connect(
    url: str, environ: Mapping[str, str]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    return await asyncio.open_connection(
        parts.hostname,
        parts.port or (443 if secure else 80),
        ssl=trust(environ) if secure else None,
    )


def _basic(url: str) -> bytes:
    parts = urlsplit(url)
    login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return base64.b64encode(login.encode())


def _decoded(login: bytes) -> str:
    try:
        return base64.b64decode(login).decode()
    except ValueError:
        return ""


_Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _join(one: _Ends, other: _Ends) -> None:
    """Pass on what each side sends, until both have ended."""

    async def pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await source.read(_CHUNK):
            to.write(data)
            await to.drain()
        if to.can_write_eof():
            to.write_eof()

    pumps = {
        asyncio.ensure_future(pump(one[0], other[1])),
        asyncio.ensure_future(pump(other[0], one[1])),
    }
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        await cancel(*pumps)
