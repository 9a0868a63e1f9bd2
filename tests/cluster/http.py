"""The HTTP side: what a URL asks for, and its answer.

Each request is recorded, struck by faults, authenticated, authorised, answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web

from midwatch.model import Json

from . import kinds as discovery
from .api import Api, DeleteOptions
from .builtin import VERSION
from .errors import Refused
from .kinds import Kind, Kinds
from .rbac import Access, Ask, User
from .requests import Fault, Faults, Journal, LiveWatch, Request
from .selectors import named_by
from .storage import key_of
from .watches import Watch, listed, metadata_of, serve

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


@dataclass(frozen=True, slots=True)
class Target:
    """A kind, and where in it. No name: the collection."""

    kind: Kind
    namespace: str
    name: str
    sub: str
    verb: str

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    @property
    def resource(self) -> str:
        return f"{self.kind.plural}/{self.sub}" if self.sub else self.kind.plural

    def ask(self, selected: str = "") -> Ask:
        """The question to access control; `selected` is the one name that a list is of."""
        name = self.name or selected
        return Ask(self.verb, self.kind.group, self.resource, self.namespace, name)


def parse(
    kinds: Kinds, method: str, path: str, query: Mapping[str, str]
) -> Target | None:
    """None if the path is not below a version of a group. Raises Refused (404, 405)."""
    parts = [part for part in path.split("/") if part]
    if parts[:1] == ["api"] and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[:1] == ["apis"] and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if (
        rest[0] == "namespaces"
        and len(rest) > 2
        and rest[2] not in ("status", "finalize")
    ):
        namespace, rest = rest[1], rest[2:]
    kind = kinds.find(group, version, rest[0])
    if kind is None or len(rest) > 3 or (namespace and not kind.namespaced):
        raise Refused(404, "the server could not find the requested resource")
    name, sub = (*rest[1:], "", "")[:2]
    _check_sub(kind, sub)
    verb = _verb(method, name, query)
    if kind.namespaced and not namespace and (name or verb not in ("list", "watch")):
        raise Refused(
            405, "the server does not allow this method on the requested resource"
        )
    return Target(kind, namespace, name, sub, verb)


def _check_sub(kind: Kind, sub: str) -> None:
    known = {""} | ({"status"} if kind.status else set())
    if kind.resource == ("", "pods"):
        known.add("log")
    if sub not in known:
        raise Refused(404, "the server could not find the requested resource")


def _verb(method: str, name: str, query: Mapping[str, str]) -> str:
    if method == "GET":
        watching = query.get("watch", "").lower() in ("true", "1")
        return "get" if name else "watch" if watching else "list"
    if method == "DELETE":
        return "delete" if name else "deletecollection"
    if method not in _VERBS or (method == "POST") == bool(name):
        raise Refused(
            405, "the server does not allow this method on the requested resource"
        )
    return _VERBS[method]


LogSource = Callable[[str, str, Mapping[str, str]], bytes]
"""Namespace, pod and query to the log; raises Refused."""
MAX_BODY = 3 * 1024 * 1024
"""Bytes; what a real server takes."""
_METADATA = "as=PartialObjectMetadata"
"""In what a client accepts; as a real server, of objects and of lists alike."""
_OPEN = ("/healthz", "/livez", "/readyz", "/version")
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_ORPHANING = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning"


class Cut(Exception):
    """A fault has ended the connection."""


class Service:
    """Lives in the server's loop. `bookmarks` is seconds between two of a quiet watch."""

    def __init__(
        self,
        api: Api,
        access: Access,
        journal: Journal,
        faults: Faults,
        bookmarks: float,
    ) -> None:
        self._api, self._access = api, access
        self._journal, self._faults = journal, faults
        self._bookmarks = bookmarks
        self.logs: LogSource | None = None

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _handle(self, raw: web.Request) -> web.StreamResponse:
        request = Request(
            number=self._journal.next_number(),
            method=raw.method,
            path=raw.path,
            query=dict(raw.query),
            agent=raw.headers.get("User-Agent", ""),
            at=self._api.now(),
        )
        self._journal.note(request)
        status = 0
        try:
            response = await self._answered(raw, request)
            status = response.status
            return response
        except Cut:
            return web.Response()  # nobody is there to get it
        finally:
            self._journal.finished(request.number, status)

    async def _answered(self, raw: web.Request, request: Request) -> web.StreamResponse:
        """The answer, or the refusal; or Cut."""
        try:
            user = self._access.user(raw.headers.get("Authorization", ""))
            request = replace(request, user=user.name)
            target = None
            if raw.path != _REVIEWS:
                target = parse(self._api.kinds, raw.method, raw.path, raw.query)
            if target:
                request = _named(request, target)
            body = await _read(raw)
            request = replace(request, body=body, content_type=raw.content_type)
            self._journal.note(request)
            fault = self._faults.striking(request)
            if fault:
                await _suffer(fault, raw)
            response = await self._answer(raw, request, user, target)
            if fault and fault.drop:
                await _cut_late(fault, raw, response)
            return response
        except Refused as refused:
            self._journal.note(request)
            return _refusal(refused)

    async def _answer(
        self, raw: web.Request, request: Request, user: User, target: Target | None
    ) -> web.StreamResponse:
        if request.path == _REVIEWS and request.method == "POST":
            return _document(self._reviewed(request, user), 201)
        if target is None:
            return _document(self._discovered(request.path, user))
        chosen = named_by(request.query.get("fieldSelector", ""))
        self._access.check(user, target.ask(chosen))
        only_metadata = _METADATA in raw.headers.get("Accept", "")
        if target.verb == "watch":
            return await self._watch(raw, request, target, only_metadata)
        if target.sub == "log":
            return self._log(target, request)
        if only_metadata and target.verb == "get":
            return _document(metadata_of(self._api.get(target.kind, target.key)))
        if only_metadata and target.verb == "list":
            found = listed(self._api, target.kind, target.namespace, request.query)
            items = list(map(metadata_of, found["items"]))
            return _document({**found, "items": items})
        return self._carry_out(target, request, user)

    def _reviewed(self, request: Request, user: User) -> Json:
        """A SelfSubjectAccessReview, which everybody who is somebody may ask for."""
        body = _parsed(request)
        about = body["spec"]["resourceAttributes"]
        fields = ("verb", "group", "resource", "namespace", "name")
        ask = Ask(*(about.get(one, "") for one in fields))
        return {**body, "status": {"allowed": self._access.allowed(user, ask)}}

    def _carry_out(self, target: Target, request: Request, user: User) -> web.Response:
        """The verbs that answer with one document."""
        kind, key, sub = target.kind, target.key, target.sub
        admit, dry = self._access.admission(user), request.query.get("dryRun") == "All"
        if target.verb == "get":
            return _document(self._api.get(kind, key))
        if target.verb == "list":
            return _document(listed(self._api, kind, target.namespace, request.query))
        if target.verb == "create":
            body = _parsed(request)
            made = self._api.create(kind, target.namespace, body, admit, dry=dry)
            return _document(made, 201)
        if target.verb == "update":
            body = _parsed(request)
            return _document(self._api.replace(kind, key, sub, body, admit, dry=dry))
        if target.verb == "patch":
            body = _parsed(request)
            how = request.content_type
            return _document(self._api.patch(kind, key, sub, how, body, admit, dry=dry))
        return self._delete(target, request)

    def _delete(self, target: Target, request: Request) -> web.Response:
        kind = target.kind
        body = _parsed(request) if request.body else None
        options = DeleteOptions.read(body, request.query)
        if target.verb == "deletecollection":
            whole = listed(
                self._api, kind, target.namespace, _only_selectors(request.query)
            )
            for document in whole["items"]:
                self._api.delete(kind, key_of(document), options)
            return _document(whole)
        before = self._api.get(kind, target.key)
        left = self._api.delete(kind, target.key, options)
        if left is None and kind.resource == ("", "pods"):
            left = before
        response = _document(_success(target, before) if left is None else left)
        if kind.resource == ("batch", "jobs") and options.policy is None:
            response.headers["Warning"] = f'299 - "{_ORPHANING}"'
        return response

    def _discovered(self, path: str, user: User) -> Json:
        """Discovery, for everybody who is somebody. Raises Refused (403, 404)."""
        if path not in _OPEN and "system:authenticated" not in user.groups:
            raise Refused(
                403, f'forbidden: User "{user.name}" cannot get path "{path}"'
            )
        kinds, parts = self._api.kinds, [part for part in path.split("/") if part]
        groups = kinds.groups()
        if path == "/version":
            return _version()
        if path in _OPEN:
            return {"status": "ok"}
        if parts == ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        if parts == ["apis"]:
            entries = [discovery.group_document(g, vs) for g, vs in groups.items()]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": entries}
        if parts == ["api", "v1"]:
            return discovery.resource_list("", "v1", kinds.in_version("", "v1"))
        if parts[:1] == ["apis"] and len(parts) == 2 and parts[1] in groups:
            about = discovery.group_document(parts[1], groups[parts[1]])
            return {"kind": "APIGroup", "apiVersion": "v1", **about}
        if (
            parts[:1] == ["apis"]
            and len(parts) == 3
            and parts[2] in groups.get(parts[1], ())
        ):
            found = kinds.in_version(parts[1], parts[2])
            return discovery.resource_list(parts[1], parts[2], found)
        raise Refused(404, "the server could not find the requested resource")

    async def _watch(
        self,
        raw: web.Request,
        request: Request,
        target: Target,
        only_metadata: bool,
    ) -> web.StreamResponse:
        watch = Watch.read(
            target.kind, target.namespace, request.query, self._bookmarks
        )
        watch = replace(watch, only_metadata=only_metadata)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        live = LiveWatch(request, lambda: reset(raw.transport))
        self._faults.watches.add(live)
        try:
            await response.prepare(raw)
            await serve(self._api, watch, live, response)
            await response.write_eof()
        except ConnectionError:
            raise Cut from None  # the client left: nothing is owed to anybody
        except asyncio.CancelledError:
            reset(raw.transport)  # or the server is going
            raise
        finally:
            self._faults.watches.discard(live)
        return response

    def _log(self, target: Target, request: Request) -> web.Response:
        self._api.get(target.kind, target.key)
        if self.logs is None:
            raise Refused(500, "no kubelet serves logs here")
        text = self.logs(target.namespace, target.name, request.query)
        return web.Response(body=text, content_type="text/plain")


def reset(transport: Any) -> None:
    """End a connection as a crash does: with a reset, without what is still to be sent."""
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            at_once = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    transport.abort()


async def _read(raw: web.Request) -> bytes:
    try:
        return await raw.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refused(413, f"limit is {MAX_BODY}") from None


def _named(request: Request, target: Target) -> Request:
    return replace(
        request,
        verb=target.verb,
        group=target.kind.group,
        resource=target.resource,
        namespace=target.namespace,
        name=target.name,
    )


def _parsed(request: Request) -> Any:
    try:
        return json.loads(request.body)
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}") from None


def _only_selectors(query: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in query.items() if k.endswith("Selector")}


async def _suffer(fault: Fault, raw: web.Request) -> None:
    """What happens before the request is looked at."""
    if fault.refusal is not None:
        raise fault.refusal
    if fault.held is not None:
        await fault.held.wait()
    if fault.drop == "before":
        reset(raw.transport)
        raise Cut


async def _cut_late(
    fault: Fault, raw: web.Request, response: web.StreamResponse
) -> None:
    """What happens after it is done."""
    if fault.drop == "middle" and isinstance(response, web.Response):
        body = response.body
        assert isinstance(body, bytes)
        half = web.StreamResponse(status=response.status)
        half.content_type, half.content_length = "application/json", len(body)
        await half.prepare(raw)
        await half.write(body[: len(body) // 2])
        await asyncio.sleep(0)
        if raw.transport is not None:
            raw.transport.close()
    else:
        reset(raw.transport)
    raise Cut


def _refusal(refused: Refused) -> web.Response:
    response = _document(refused.status(), refused.code)
    if refused.retry_after is not None:
        response.headers["Retry-After"] = str(refused.retry_after)
    return response


def _document(document: Json, status: int = 200) -> web.Response:
    body = json.dumps(document, separators=(",", ":")).encode()
    return web.Response(body=body, status=status, content_type="application/json")


def _success(target: Target, gone: Json) -> Json:
    details = {
        "name": target.name,
        "kind": target.kind.plural,
        "uid": gone["metadata"]["uid"],
    }
    if target.kind.group:
        details["group"] = target.kind.group
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    }


def _version() -> Json:
    major, minor = VERSION.split(".")
    return {
        "major": major,
        "minor": minor,
        "gitVersion": f"v{VERSION}.0",
        "gitCommit": "0" * 40,
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "none",
        "platform": "linux/amd64",
    }
