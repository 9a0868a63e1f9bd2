"""A connection to a Kubernetes API server: logins, single requests, paged lists and watches, each bounded in time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from functools import cached_property, partial
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import urlencode

import httpx2

from midwatch.cluster.credentials import Credentials, LoginFailed
from midwatch.cluster.error_mapping import (
    CLIENT_ERRORS,
    map_client_error,
    result_code,
)
from midwatch.cluster.errors import ClusterRefused, ClusterUnavailable, ResourceGone
from midwatch.cluster.kubeconfig import (
    DEFAULT_SETTING,
    ClusterLogin,
    read_login,
    tls_context,
)
from midwatch.cluster.request_sender import RequestSender
from midwatch.cookies import no_cookies
from midwatch.errors import SettingsError
from midwatch.lifecycle import Clock, SystemClock
from midwatch.model import Json

_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", 30),
            ("TCP_KEEPINTVL", 10),
            ("TCP_KEEPCNT", 3),
        )
        if hasattr(socket, name)
    ),
]
"""Seconds without data, seconds between probes, and probes, after which a silent connection is closed."""
T = TypeVar("T")

_MOST_LOGINS = 3
"""A watch on one that is older ends, and begins again."""


class Login:
    """The HTTP clients of one login.

    Args:
        login: Address and credentials.
        timeout: Seconds for each request.
        setting: The setting that errors name.

    Raises:
        SettingsError: The login cannot be used.
    """

    def __init__(
        self, login: ClusterLogin, timeout: float, setting: str = DEFAULT_SETTING
    ) -> None:
        self.login = login
        cluster = login.cluster
        self.extensions = (
            {"sni_hostname": cluster.tls_server_name} if cluster.tls_server_name else {}
        )
        try:
            self._tls = tls_context(login)
            self.credentials = Credentials(login, self._tls, timeout)
            self._proxy = httpx2.Proxy(cluster.proxy_url) if cluster.proxy_url else None
            self.requests = RequestSender(
                cluster.server,
                self._tls,
                self.credentials,
                timeout,
                proxy=self._proxy,
                extensions=self.extensions,
            )
            self._address = httpx2.URL(cluster.server)
        except (OSError, ValueError, httpx2.InvalidURL) as error:
            raise SettingsError(
                f"cannot connect to {cluster.server}: {error}",
                path=setting,
                hint="check the server's address, certificates and keys",
            ) from error
        self._timeout = timeout

    @cached_property
    def streams(self) -> httpx2.AsyncClient:
        """The client for watches. Each watch keeps a connection open, so their number is not limited."""
        # A peer that is gone without a word is noticed by the kernel: not every watch gets bookmarks.
        transport = httpx2.AsyncHTTPTransport(
            verify=self._tls,
            trust_env=False,
            limits=httpx2.Limits(max_connections=None),
            proxy=self._proxy,
            socket_options=_KEEP_ALIVE,
        )
        return httpx2.AsyncClient(
            base_url=self._address,
            auth=self.credentials,
            cookies=no_cookies(),
            timeout=self._timeout,
            trust_env=False,
            transport=transport,
        )

    async def close(self) -> None:
        await self.requests.close()
        if "streams" in vars(self):
            await self.streams.aclose()


class Connection:
    """A connection to the API server. Close it, or use it as an async context manager.

    Args:
        read: Returns address and credentials; is called again when the credentials are refused.
        timeout: Seconds for each request.
        setting: The setting that errors of the login name.

    Attributes:
        requests: Calls so far, by verb and code. Each page of a list counts, and so does the opening of a watch.

    Raises:
        ClusterUnavailable: By every call, if a later attempt may succeed; `retry_after` has the delay that the server asks for.
        ClusterRefused: By every call, if a later attempt would not succeed either.
        ResourceGone: By every call, for 404.
    """

    def __init__(
        self,
        read: Callable[[], ClusterLogin],
        *,
        timeout: float = 30.0,
        clock: Clock | None = None,
        setting: str = DEFAULT_SETTING,
    ) -> None:
        self._read = read
        self._setting = setting
        self._logins = [Login(read(), timeout, setting)]
        self._timeout = timeout
        self._clock = clock or SystemClock()
        self.requests: Counter[tuple[str, str]] = Counter()

    @classmethod
    def connect(
        cls,
        kubeconfig: Path | None = None,
        context: str | None = None,
        timeout: float = 30.0,
        *,
        clock: Clock | None = None,
        setting: str = DEFAULT_SETTING,
    ) -> Self:
        """Connect by a kubeconfig, or as the pod's service account without one. Raises SettingsError."""
        return cls(
            partial(read_login, kubeconfig, context, setting),
            timeout=timeout,
            clock=clock,
            setting=setting,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        for login in self._logins:
            await login.close()

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secret values of the last logins: tokens, passwords and keys."""
        found = [login.credentials.secrets for login in self._logins]
        return tuple(sorted(frozenset[str]().union(*found)))

    @property
    def server(self) -> str:
        """The address of the API server."""
        return str(self._logins[-1].login.cluster.server)

    async def get(self, path: str, doing: str, *, accept: str = "") -> Json:
        """Return the JSON object at a path, such as `api/v1/pods`; `accept` requests another form of it."""
        sending = self._requests.send("GET", path, accept=accept)
        return await self._call("get", sending, doing)

    async def patch(
        self, path: str, patch: Json | Sequence[Json], doing: str, *, dry: bool = False
    ) -> Json:
        """Patch the object at a path, once, and return it as it is then.

        Args:
            path: Such as `apis/apps/v1/namespaces/shop/deployments/checkout`.
            patch: A merge patch (RFC 7386), or the operations of a JSON patch (RFC 6902).
            doing: What this does, for errors.
            dry: Only ask whether the server would do it (`dryRun=All`).

        Raises:
            Conflict: The object has another resource version than the patch names; nothing was changed.
        """
        form = "merge-patch" if isinstance(patch, Mapping) else "json-patch"
        query = {"fieldManager": "midwatch", **({"dryRun": "All"} if dry else {})}
        sending = self._requests.send(
            "PATCH", f"{path}?{urlencode(query)}", patch, f"application/{form}+json"
        )
        return await self._call("patch", sending, doing)

    async def may(self, verb: str, group: str, plural: str, **place: str) -> bool:
        """Return whether the API server permits a request to this login (SelfSubjectAccessReview).

        Args:
            verb: A verb of RBAC, such as `patch`.
            group: The API group; empty for the core.
            plural: The kind's name in the API.
            place: `namespace` and `name`, each empty for any.
        """
        about = {"verb": verb, "group": group, "resource": plural, **place}
        body: Json = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": about},
        }
        path = "apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        asking = self._requests.send("POST", path, body)
        answer = await self._call("create", asking, "ask for permissions")
        return (answer.get("status") or {}).get("allowed") is True

    async def text(self, path: str, doing: str, params: Mapping[str, str]) -> bytes:
        """Return what a path answers, such as a log; `params` have its bound (`limitBytes`)."""

        async def read() -> bytes:
            login = self._logins[-1]
            answer = await login.streams.get(
                path, params=dict(params), extensions=login.extensions
            )
            answer.raise_for_status()
            return bytes(answer.content)

        return await self._call("get", read(), doing)

    async def pages(
        self,
        path: str,
        doing: str,
        params: Mapping[str, str],
        size: int,
        *,
        accept: str = "",
    ) -> AsyncGenerator[Json, None]:
        """Yield the pages of a list. The first one has the version to watch from; `accept` requests another form of them.

        Raises:
            ClusterUnavailable: With `status` 410 where the list has expired meanwhile.
        """
        asked = {**params, "limit": str(size)}
        while True:
            page = await self._call("list", self._fetched(path, asked, accept), doing)
            yield page
            following = (page.get("metadata") or {}).get("continue")
            if not following:
                return
            asked["continue"] = following

    @contextlib.asynccontextmanager
    async def open_watch(
        self,
        path: str,
        doing: str,
        params: Mapping[str, str],
        version: str,
        *,
        seconds: int,
        silence: float,
        accept: str = "",
    ) -> AsyncIterator[AsyncIterator[tuple[str, Json]]]:
        """Open a watch; inside, iterate over pairs of event type and object, bookmarks included; `accept` is as for lists.

        The iteration ends when the server ends the watch (after `seconds`), when the connection breaks, and when
        nothing arrives for `silence` seconds.

        Raises:
            ClusterUnavailable: With `status` 410 if the server has dropped the history since `version`, also
                while iterating.
        """
        asked = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
            **params,
        }
        login = self._logins[-1]
        streams = login.streams
        request = streams.build_request(
            "GET",
            path,
            params=asked,
            extensions=login.extensions,
            headers={"Accept": accept or "application/json"},
            timeout=httpx2.Timeout(self._timeout, read=silence),
        )
        response = await self._call("watch", _open_stream(streams, request), doing)
        try:
            async with contextlib.aclosing(_events(response, doing)) as events:
                yield events
        finally:
            await response.aclose()

    @property
    def _requests(self) -> RequestSender:
        return self._logins[-1].requests

    async def _fetched(self, path: str, params: Mapping[str, str], accept: str) -> Json:
        query = f"?{urlencode(params)}" if params else ""
        return await self._requests.send("GET", f"{path}{query}", accept=accept)

    async def _call(self, verb: str, call: Awaitable[T], doing: str) -> T:
        """Await a call within the timeout, count it, and map its errors. 404 becomes ResourceGone."""
        code = "error"
        try:
            async with asyncio.timeout(self._timeout):
                answer = await call
                code = "2xx"
                return answer
        except LoginFailed as error:
            raise ClusterUnavailable(f"cannot {doing}: {error}") from error
        except CLIENT_ERRORS as error:
            code = result_code(error)
            mapped = map_client_error(error, doing)
            if isinstance(mapped, ClusterRefused) and mapped.status == 404:
                raise ResourceGone(mapped.message) from error
            if code == "401":
                await self._log_in_again()
            raise mapped from error
        finally:
            self.requests[verb, code] += 1

    async def _log_in_again(self) -> None:
        """Read the configuration again: its token may have been replaced. Running requests keep the old login, for a while."""
        with contextlib.suppress(SettingsError):
            login = self._read()
            if login != self._logins[-1].login:
                self._logins.append(Login(login, self._timeout, self._setting))
        while len(self._logins) > _MOST_LOGINS:
            await self._logins.pop(0).close()


async def _open_stream(
    streams: httpx2.AsyncClient, request: httpx2.Request
) -> httpx2.Response:
    response = await streams.send(request, stream=True)
    if not response.is_success:
        await response.aread()
        response.raise_for_status()
    return response


async def _events(
    response: httpx2.Response, doing: str
) -> AsyncGenerator[tuple[str, Json], None]:
    async with contextlib.aclosing(_lines(response)) as lines:
        async for line in lines:
            type_, body = _event(line, doing)
            if type_ == "ERROR":
                code = body.get("code")
                message = f"cannot {doing}: {code} {body.get('message')}"
                status = code if isinstance(code, int) else 0
                raise ClusterUnavailable(message, status=status)
            yield type_, body


def _event(line: bytes, doing: str) -> tuple[str, Json]:
    try:
        event = json.loads(line)
        type_, body = event["type"], event["object"]
        if not isinstance(body, dict):
            raise ValueError("an event without an object")
    except (ValueError, KeyError, TypeError) as error:
        raise map_client_error(ValueError(str(error)), doing) from error
    return str(type_), body


async def _lines(response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    """Yield lines until the stream or the connection ends."""
    rest = b""
    with contextlib.suppress(httpx2.HTTPError, httpx2.StreamError, OSError):
        async for chunk in response.aiter_bytes():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in filter(None, lines):
                yield line
