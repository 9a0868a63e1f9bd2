"""A Kubernetes API server on loopback, for tests: real semantics, in memory, in a thread of its own.

::

    with ApiServer() as server:
        server.objects.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}})
        server.kubeconfig(folder / "kubeconfig")   # for lightkube, kubectl and subprocesses
        ...
        assert not server.requests.where(asking("delete", "jobs"))

Written for Midwatch because `kmock`, which was looked at first, keeps no resource versions, so it has no conflicts, no
watch from a version, no status subresource, no validation, and a patch always merges: what an operator has to
survive would not happen.

Not as a real one: no server-side apply, no strategic merge patch (415), no managed fields, no conversion between
versions of a definition, no admission webhooks; quantities, ports and the like are only checked as far as
Kubernetes' JSON schemas go; see `schemas` for CEL, and `jobs` for the Job controller.

Compared with Kubernetes 1.36, request by request, these differ still: a refusal names one cause where others follow
from it, and says some of them in other words; a resource version that is no number is refused with 400, not 500;
a finalizer without a domain is refused, not warned of; unknown fields are pruned without a warning; two of the
events of a write that changes nothing are none; a watch ends with a bookmark.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import marshal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from midwatch.model import Json

from .api import Api, Collector, DeleteOptions
from .errors import Refused
from .http import LogSource, Service, reset
from .kinds import Kind, Kinds
from .patches import MERGE
from .rbac import ADMIN, Access
from .requests import Faults, Journal
from .storage import Change, State
from .watches import selected

T = TypeVar("T")

Documents = list[Json]


class Objects:
    """Kinds are named by their plural (`pods`). Documents that come out are copies. All raise Refused."""

    def __init__(self, api: Api, call: Callable[[Callable[[], Any]], Any]) -> None:
        self._api, self._call = api, call

    def create(self, document: Json, namespace: str = "default") -> Json:
        """Its own namespace goes before the given one."""

        def run() -> Json:
            kind = self._api.kinds.of(document)
            own = document.get("metadata", {}).get("namespace") or namespace
            return self._api.create(kind, own if kind.namespaced else "", document)

        return self._copied(run)

    def apply(self, document: Json, namespace: str = "default") -> Json:
        """Create it, or merge it into what is there."""
        try:
            return self.create(document, namespace)
        except Refused as refused:
            if refused.reason != "AlreadyExists":
                raise
        kind = self._api.kinds.of(document)
        meta = document["metadata"]
        own = meta.get("namespace") or namespace
        return self.merge(kind.plural, own, meta["name"], document)

    def get(self, plural: str, namespace: str, name: str) -> Json:
        """`namespace` is empty for what has none."""
        # Read where we are: a stored document never changes, and the server's thread is not waited for.
        found: Json = _copy(self._api.get(self._kind(plural), (namespace, name)))
        return found

    def find(self, plural: str, namespace: str, name: str) -> Json | None:
        """As `get`; None if it is not there."""
        try:
            return self.get(plural, namespace, name)
        except Refused as refused:
            if refused.code != 404:
                raise
            return None

    def list(self, plural: str, namespace: str = "", selector: str = "") -> Documents:
        """In all namespaces, unless one is given; `selector` is of labels."""

        kind = self._kind(plural)
        fits = selected({"labelSelector": selector}, plural)
        return list(map(_copy, self._api.state.all(kind.resource, namespace, fits)))

    def owned(self, plural: str, uid: str) -> Documents:
        """What names the object with this uid as an owner."""

        wanted = self._kind(plural).resource
        found = self._api.state.dependents(uid)
        return [_copy(document) for resource, document in found if resource == wanted]

    def merge(
        self, plural: str, namespace: str, name: str, patch: Json, *, sub: str = ""
    ) -> Json:
        """A merge patch; `sub` may be `status`."""
        kind, key = self._kind(plural), (
            namespace if self._kind(plural).namespaced else "",
            name,
        )
        return self._copied(lambda: self._api.patch(kind, key, sub, MERGE, patch))

    def delete(
        self,
        plural: str,
        namespace: str,
        name: str,
        *,
        policy: str = "Background",
        grace: int | None = None,
    ) -> None:
        options = DeleteOptions(policy, grace)
        self._call(
            lambda: self._api.delete(self._kind(plural), (namespace, name), options)
        )

    def wait(
        self,
        plural: str,
        namespace: str,
        name: str,
        until: Callable[[Json | None], object],
        timeout: float = 60.0,
    ) -> Json | None:
        """Look until the condition holds of the object (None: it is gone). Raises TimeoutError."""
        end = time.monotonic() + timeout
        while True:
            found = self.find(plural, namespace, name)
            if until(found):
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"{plural} {namespace}/{name} is still {found}")
            time.sleep(0.02)

    def _kind(self, plural: str) -> Kind:
        return self._api.kinds.named(plural)

    def _copied(self, function: Callable[[], T]) -> T:
        copied: T = _copy(self._call(function))
        return copied


def _copy(value: Any) -> Any:
    """Ten times as fast as `copy.deepcopy`, and documents are nothing but JSON."""
    return marshal.loads(marshal.dumps(value))


NAMESPACES = ("default", "kube-system")
_PATIENCE = 90.0
"""Seconds that a call from another thread waits for the loop."""


class ApiServer:
    """`rbac` enforces roles; without it every valid token may do everything.

    `bookmarks` is the seconds between two bookmarks of a quiet watch, `history` how many changes of a
    resource can be watched from, `now` the clock of its time stamps.
    """

    def __init__(
        self,
        *,
        rbac: bool = False,
        bookmarks: float = 60.0,
        history: int = 20_000,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._state = State(history)
        self._kinds = Kinds()
        self._api = Api(self._state, self._kinds, now)
        self._access = Access(self._state, self._kinds, enforced=rbac)
        self.requests = Journal()
        self.faults = Faults(self.call)
        self._service = Service(
            self._api, self._access, self.requests, self.faults, bookmarks
        )
        self.objects = Objects(self._api, self.call)
        self.admin_token = self._access.token(ADMIN)
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._runner: web.AppRunner | None = None
        self._site: web.SockSite | None = None
        self._collecting: asyncio.Task[None] | None = None
        self.port = 0

    def __enter__(self) -> ApiServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serve on a free port of loopback. A server is started once."""
        self._socket = _bound(0)
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(
            target=self._run, name="kubernetes-api", daemon=True
        )
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(_PATIENCE)

    def stop(self) -> None:
        if self._thread is None:
            self._loop.close()
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(_PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)
        self._thread = None

    def go_away(self) -> None:
        """Close the listening socket and reset all connections; the objects stay."""
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result(_PATIENCE)

    def come_back(self) -> None:
        """Serve again, on the same port."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(_PATIENCE)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Gone while inside."""
        self.go_away()
        try:
            yield
        finally:
            self.come_back()

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the server's loop, from any thread, and return its result."""
        if self._thread is None or threading.current_thread() is self._thread:
            return function()

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(_PATIENCE)

    def token_for(self, namespace: str, account: str, *, pod_uid: str = "") -> str:
        """A token of a service account; it ends with the account, and the pod if one is given."""
        return self.call(lambda: self._access.token_for(namespace, account, pod_uid))

    def kubeconfig(
        self, path: Path, token: str | None = None, namespace: str = "default"
    ) -> Path:
        """Write a kubeconfig (as JSON, which is YAML); without a token it is the administrator's."""
        user = {"token": token or self.admin_token}
        context = {"cluster": "testing", "user": "testing", "namespace": namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "testing",
            "clusters": [{"name": "testing", "cluster": {"server": self.url}}],
            "users": [{"name": "testing", "user": user}],
            "contexts": [{"name": "testing", "context": context}],
        }
        path.write_text(json.dumps(config), "utf-8")
        path.chmod(0o600)
        return path

    def enforce_rbac(self, enforced: bool = True) -> None:
        self._access.enforced = enforced

    def forget_history(self) -> None:
        """Every watch from an earlier version than the present one gets 410 from now on."""
        self.call(self._state.forget)

    def serve_logs(self, source: LogSource) -> None:
        """Where `pods/log` comes from; a kubelet calls this."""
        self._service.logs = source

    def listen(self, listener: Callable[[Change], None]) -> None:
        """Call for every change, in the server's thread."""
        self.call(lambda: self._state.listeners.append(listener))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _open(self) -> None:
        self._state.listeners.append(self._give_account)
        self._collecting = asyncio.create_task(Collector(self._api).run())
        namespaces = self._kinds.named("namespaces")
        for name in NAMESPACES:
            self._api.create(namespaces, "", {"metadata": {"name": name}})
        self._runner = web.AppRunner(
            self._service.app(),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=0.1,
        )
        await self._runner.setup()
        await self._listen()

    async def _close(self) -> None:
        await self._hang_up()
        self.faults.clear()
        assert self._runner and self._collecting and self._socket
        await self._runner.cleanup()
        self._collecting.cancel()
        await asyncio.gather(self._collecting, return_exceptions=True)
        self._socket.close()

    async def _listen(self) -> None:
        if self._site is None:
            assert self._runner and self._socket
            self._site = web.SockSite(self._runner, self._socket)
            await self._site.start()

    async def _hang_up(self) -> None:
        """The new socket is bound at once, so that nobody else takes the port; it refuses."""
        if self._site is None:
            return
        assert self._runner and self._runner.server
        await self._site.stop()
        self._site = None
        for connection in list(self._runner.server.connections):
            reset(connection.transport)
        self._socket = _bound(self.port)

    def _give_account(self, change: Change) -> None:
        """Every namespace gets its default service account, as from the controller manager."""
        if change.resource == ("", "namespaces") and change.type == "ADDED":
            accounts, name = (
                self._kinds.named("serviceaccounts"),
                change.document["metadata"]["name"],
            )
            self._api.create(accounts, name, {"metadata": {"name": "default"}})


def _bound(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made
