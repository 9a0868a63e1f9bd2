"""A client of the Kubernetes API: the few calls that the operator and the runner need, each with a timeout."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
)
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from lightkube import AsyncClient
from lightkube.config.client_adapter import ConnectionParams
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.decoders import decode_object, decode_status, decode_watch_event
from lightkube.core.exceptions import ConfigError
from lightkube.core.generic_client import ListAsyncIterable
from lightkube.core.resource import api_info
from lightkube.generic_resource import (
    GenericNamespacedResource,
    create_api_info,
    create_namespaced_resource,
)
from lightkube.operators import exists

from midwatch.documents import BAD_VALUES, MAX_BYTES, DocumentError, read_yaml
from midwatch.errors import SettingsError
from midwatch.kube.error_mapping import (
    CLIENT_ERRORS,
    Conflict,
    map_client_error,
    result_code,
)
from midwatch.kube.errors import (
    ClusterRefused,
    ClusterUnavailable,
    NameTaken,
    ResourceGone,
)
from midwatch.kube.request_sender import RequestSender
from midwatch.kube.rules import (
    FINALIZER,
    GROUP,
    KIND,
    PLURAL,
    SESSION_LABEL,
    UID_LABEL,
    VERSION,
)
from midwatch.lifecycle import Backoff, Clock, SystemClock
from midwatch.model import Json

_PATH = "operator.kubeconfig"
_PROGRAMS = tuple(
    f"client.authentication.k8s.io/{version}" for version in ("v1alpha1", "v1beta1")
)
"""Protocols of credential programs (`exec` in a kubeconfig) that the client can run."""


class Login:
    """The HTTP clients of one login: `client` for lists, `requests` for single objects.

    Args:
        config: Address and credentials.
        timeout: Seconds for each request.

    Raises:
        SettingsError: The configuration cannot be used.
    """

    def __init__(self, config: SingleConfig, timeout: float) -> None:
        self.config = config
        self._timeout = httpx2.Timeout(timeout)
        try:
            self.client = AsyncClient(config, timeout=self._timeout, trust_env=False)
            params = self._params()
            self.requests = RequestSender(
                params["base_url"], params["verify"], params["auth"], timeout
            )
        except (ConfigError, OSError, ValueError, httpx2.InvalidURL) as error:
            raise SettingsError(
                f"cannot connect to {config.cluster.server}: {error}",
                path=_PATH,
                hint="check the server's address, certificates and keys",
            ) from error

    @cached_property
    def streams(self) -> httpx2.AsyncClient:
        """The client for watches. Each watch keeps a connection open, so their number is not limited."""
        limits = httpx2.Limits(max_connections=None)
        return httpx2.AsyncClient(**self._params(), limits=limits)

    def _params(self) -> dict[str, Any]:
        params = ConnectionParams(timeout=self._timeout, trust_env=False)
        return params.httpx_params(self.config)

    async def close(self) -> None:
        await self.client.close()
        await self.requests.close()
        if "streams" in vars(self):
            await self.streams.aclose()


def read_config(kubeconfig: Path | None, context: str | None) -> SingleConfig:
    """Return the login of a kubeconfig, or of the pod's service account without one. Raises SettingsError."""
    try:
        if kubeconfig is None:
            config = KubeConfig.from_service_account().get()
        else:
            file = kubeconfig.expanduser()
            with file.open("rb") as opened:
                document = read_yaml(opened.read(MAX_BYTES + 1))
            config = KubeConfig.from_dict(document, fname=file).get(context)
    except (ConfigError, DocumentError, OSError, *BAD_VALUES) as e:
        where = kubeconfig or "the service account of the pod"
        raise SettingsError(
            f"cannot read {where}: {e}",
            path=_PATH,
            hint="name a kubeconfig, or run in a pod with a service account",
        ) from e
    assert config is not None
    user = config.user or User()
    if user.auth_provider or (user.exec and user.exec.apiVersion not in _PROGRAMS):
        raise SettingsError(
            "its user logs in by an unsupported program",
            path=_PATH,
            hint="name a kubeconfig with a token or a certificate, or run in the cluster",
        )
    return config._replace(user=user)


T = TypeVar("T")
Propose = Callable[[Json], Json | None]
"""Returns the merge patch of `status` for a resource; None if nothing has to be written."""
FIRST_WAIT, MAX_WAIT = 0.5, 15.0
"""Seconds between two attempts of a write."""
_PAGE = 500
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def _kind(
    group: str, version: str, kind: str, plural: str
) -> type[GenericNamespacedResource]:
    info = create_api_info(group, version, kind, plural)
    return type(kind, (GenericNamespacedResource,), {"_api_info": info})


_SESSION = create_namespaced_resource(GROUP, VERSION, KIND, PLURAL)
_JOB = _kind("batch", "v1", "Job", "jobs")
_POD = _kind("", "v1", "Pod", "pods")
_EVENT = _kind("", "v1", "Event", "events")
_RBAC = "rbac.authorization.k8s.io"
_KINDS: dict[str, type[Any]] = {
    "ServiceAccount": _kind("", "v1", "ServiceAccount", "serviceaccounts"),
    "Secret": _kind("", "v1", "Secret", "secrets"),
    "PersistentVolumeClaim": _kind(
        "", "v1", "PersistentVolumeClaim", "persistentvolumeclaims"
    ),
    "Event": _EVENT,
    "Role": _kind(_RBAC, "v1", "Role", "roles"),
    "RoleBinding": _kind(_RBAC, "v1", "RoleBinding", "rolebindings"),
    "Job": _JOB,
    "Pod": _POD,
    KIND: _SESSION,
}
_WATCHED: dict[str, tuple[type[Any], str | None]] = {
    PLURAL: (_SESSION, None),
    "jobs": (_JOB, SESSION_LABEL),
    "pods": (_POD, SESSION_LABEL),
}
"""Kind and label selector, by plural."""


class Cluster:
    """A connection to the API server. Close it, or use it as an async context manager.

    Args:
        read: Returns address and credentials; is called again when the credentials are refused.
        timeout: Seconds for each request.
        rng: Source of jitter.

    Attributes:
        requests: Calls so far, by verb and code. A paged list counts once, and so does the opening of a watch.

    Raises:
        ClusterUnavailable: By every call, if a later attempt may succeed; `retry_after` has the delay that the server asks for.
        ClusterRefused: By every call, if a later attempt would not succeed either.
    """

    def __init__(
        self,
        read: Callable[[], SingleConfig],
        *,
        timeout: float = 30.0,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._read = read
        self._logins = [Login(read(), timeout)]
        self._timeout = timeout
        self._clock = clock or SystemClock()
        self.requests: Counter[tuple[str, str]] = Counter()
        self._random = rng or random.Random()

    @classmethod
    def connect(
        cls,
        kubeconfig: Path | None = None,
        context: str | None = None,
        timeout: float = 30.0,
        *,
        clock: Clock | None = None,
    ) -> Cluster:
        """Connect by a kubeconfig, or as the pod's service account without one. Raises SettingsError."""
        return cls(
            partial(read_config, kubeconfig, context), timeout=timeout, clock=clock
        )

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        for login in self._logins:
            await login.close()

    # -------------------------------------------------------------- sessions

    async def get_session(self, namespace: str, name: str) -> Json:
        """Return a session's resource. Raises ResourceGone if it does not exist."""
        found = await self._get(_SESSION, namespace, name)
        if found is None:
            raise ResourceGone(f"session {namespace}/{name} does not exist")
        return found

    async def write_status(
        self,
        namespace: str,
        name: str,
        propose: Propose,
        *,
        seen: Json | None = None,
        give_up_after: float = 60.0,
    ) -> Json:
        """Write a session's status, and return the resource after the write.

        After a conflict the resource is read and proposed again.

        Args:
            propose: Returns the patch; its errors are raised here.
            seen: The last known version of the resource; saves a read if it is current.
            give_up_after: Seconds in all that failures are retried.

        Raises:
            ResourceGone: The resource does not exist.
        """

        async def attempt(body: Json) -> Json:
            status = propose(body)
            if status is None:
                return body
            patch = {"metadata": _precondition(body), "status": status}
            return await self._patch(_SESSION.Status, namespace, name, patch)

        return await self._write_until_accepted(
            namespace, name, attempt, seen, give_up_after
        )

    async def set_finalizer(
        self,
        namespace: str,
        name: str,
        uid: str,
        *,
        present: bool,
        seen: Json | None = None,
        give_up_after: float = 60.0,
    ) -> Json:
        """Add or remove the operator's finalizer, and return the resource. Raises ResourceGone."""

        async def attempt(body: Json) -> Json:
            meta = body.get("metadata") or {}
            if meta.get("uid") != uid:
                raise ResourceGone(
                    "the resource was replaced by another of the same name"
                )
            held = list(meta.get("finalizers") or ())
            if (FINALIZER in held) == present:
                return body
            wanted = [one for one in held if one != FINALIZER]
            wanted += [FINALIZER] if present else []
            patch = {"metadata": _precondition(body) | {"finalizers": wanted}}
            return await self._patch(_SESSION, namespace, name, patch)

        return await self._write_until_accepted(
            namespace, name, attempt, seen, give_up_after
        )

    async def list_sessions(self, namespace: str | None = None) -> list[Json]:
        """Return the sessions of one namespace or of all."""
        return await self._list(_SESSION, namespace)

    # -------------------------------------------------------------- their objects

    async def create(self, manifest: Json, *, may_read: bool = True) -> bool:
        """Create an object; return False if it exists already for the same session, or for any if not `may_read`.

        Raises:
            NameTaken: An object of this name exists that is not this session's.
        """
        kind, meta = manifest["kind"], manifest["metadata"]
        namespace, name = meta["namespace"], meta["name"]
        doing = f"create the {kind} {namespace}/{name}"
        resource = _KINDS[kind]
        try:
            await self._create(resource, manifest, doing)
        except Conflict as error:
            if not may_read:
                return False
            found = await self._get(resource, namespace, name)
            if found is None:  # deleted in between
                raise ClusterUnavailable(error.message) from error
            if _uid_label(found) != _uid_label(manifest):
                raise NameTaken(
                    f"the {kind} {name} exists and does not belong to this session"
                ) from None
            return False
        return True

    async def get_job(self, namespace: str, name: str) -> Json | None:
        """Return a Job; None if it does not exist."""
        return await self._get(_JOB, namespace, name)

    async def suspend_job(self, namespace: str, name: str) -> Json | None:
        """Suspend a Job: its pods get SIGTERM and their grace period. Return the Job; None if it does not exist."""
        return await self._patch_job(namespace, name, {"suspend": True})

    async def expire_job(self, namespace: str, name: str, seconds: int) -> Json | None:
        """Have a Job deleted `seconds` after its end. Return the Job; None if it does not exist."""
        change = {"ttlSecondsAfterFinished": seconds}
        return await self._patch_job(namespace, name, change)

    async def _patch_job(self, namespace: str, name: str, spec: Json) -> Json | None:
        try:
            return await self._patch(_JOB, namespace, name, {"spec": spec})
        except ResourceGone:
            return None

    async def delete_job(self, namespace: str, name: str) -> bool:
        """Delete a Job and its pods. Return False if it does not exist."""
        doing = f"delete the Job {namespace}/{name}"
        path = f"{_address(_JOB, namespace, name)}?propagationPolicy=Background"
        try:
            await self._call("delete", self._requests.send("DELETE", path), doing)
        except ResourceGone:
            return False
        return True

    async def list_jobs(
        self, namespace: str | None = None, session: str | None = None
    ) -> list[Json]:
        """Return the Jobs of one session, or of all."""
        return await self._list(_JOB, namespace, _session_labels(session))

    async def list_pods(
        self, namespace: str | None = None, session: str | None = None
    ) -> list[Json]:
        """Return the pods of one session, or of all."""
        return await self._list(_POD, namespace, _session_labels(session))

    async def record_event(self, manifest: Json) -> None:
        """Create an Event, unless it exists."""
        meta = manifest["metadata"]
        doing = f"record an event in {meta['namespace']}"
        try:
            await self._create(_EVENT, manifest, doing)
        except Conflict:
            pass

    async def list_events(self, namespace: str, kind: str, name: str) -> list[Json]:
        """Return the events of one object."""
        fields = {"involvedObject.name": name, "involvedObject.kind": kind}
        return await self._list(_EVENT, namespace, fields=fields)

    # -------------------------------------------------------------- watches

    async def list_for_watch(
        self, plural: str, namespace: str | None
    ) -> tuple[list[Json], str]:
        """Return all sessions, Jobs or pods, and the resource version to watch from."""
        kind, label = _WATCHED[plural]
        labels = {label: exists()} if label else None
        listed = self._listed(kind, namespace, labels)
        found = await self._call("list", _collect(listed), f"list {plural}")
        return found, listed.resourceVersion

    @contextlib.asynccontextmanager
    async def watch(
        self,
        plural: str,
        namespace: str | None,
        version: str,
        *,
        seconds: int,
        silence: float,
    ) -> AsyncIterator[AsyncIterator[tuple[str, Json]]]:
        """Open a watch; inside, iterate over pairs of event type and object, bookmarks included.

        The iteration ends when the server ends the watch (after `seconds`), when the connection breaks, and when
        nothing arrives for `silence` seconds.

        Raises:
            ClusterUnavailable: With `status` 410 if the server has dropped the history since `version`, also
                while iterating.
        """
        # lightkube's own watch requests no bookmarks, silently reopens a watch that ended, and takes each
        # line separator of Unicode for the end of an event.
        kind, label = _WATCHED[plural]
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        } | ({"labelSelector": label} if label else {})
        streams = self._logins[-1].streams
        request = streams.build_request(
            "GET",
            _address(kind, namespace),
            params=params,
            timeout=httpx2.Timeout(self._timeout, read=silence),
        )
        doing = f"watch {plural}"
        response = await self._call("watch", _open_stream(streams, request), doing)
        try:
            async with contextlib.aclosing(_events(response, kind, doing)) as events:
                yield events
        finally:
            await response.aclose()

    # -------------------------------------------------------------- calls

    @property
    def _client(self) -> AsyncClient:
        return self._logins[-1].client

    @property
    def _requests(self) -> RequestSender:
        return self._logins[-1].requests

    async def _write_until_accepted(
        self,
        namespace: str,
        name: str,
        attempt: Callable[[Json], Awaitable[Json]],
        seen: Json | None,
        give_up_after: float,
    ) -> Json:
        """Read and call `attempt` until a write is accepted."""
        deadline = self._clock.monotonic() + give_up_after
        backoff = Backoff(FIRST_WAIT, MAX_WAIT)
        while True:
            try:
                body = seen or await self.get_session(namespace, name)
                return await attempt(body)
            except (Conflict, ClusterUnavailable) as error:
                pause = self._seconds_to_wait(
                    error, backoff.next(), known=seen is not None
                )
                if self._clock.monotonic() + pause > deadline:
                    raise ClusterUnavailable(
                        error.message, retry_after=error.retry_after
                    ) from error
                # The write may have arrived: read before the next one.
                seen = None
                await self._clock.sleep(pause)

    def _seconds_to_wait(
        self, error: Conflict | ClusterUnavailable, wait: float, *, known: bool
    ) -> float:
        wait *= self._random.uniform(0.5, 1.0)
        if isinstance(
            error, Conflict
        ):  # others write as well, but the server is not overloaded
            return 0.0 if known else wait / 10
        return max(error.retry_after or 0.0, wait)

    async def _get(self, resource: type[Any], namespace: str, name: str) -> Json | None:
        doing = f"read {resource.__name__} {namespace}/{name}"
        try:
            path = _address(resource, namespace, name)
            return await self._call("get", self._requests.send("GET", path), doing)
        except ResourceGone:
            return None

    async def _patch(
        self, resource: type[Any], namespace: str, name: str, patch: Json
    ) -> Json:
        doing = f"write {resource.__name__} {namespace}/{name}"
        path = _address(resource, namespace, name)
        kind = "application/merge-patch+json"
        patching = self._requests.send("PATCH", path, patch, kind)
        return await self._call("patch", patching, doing)

    async def _create(self, resource: type[Any], manifest: Json, doing: str) -> Json:
        path = _address(resource, manifest["metadata"]["namespace"])
        creating = self._requests.send("POST", path, manifest)
        return await self._call("create", creating, doing)

    async def _list(
        self,
        resource: type[Any],
        namespace: str | None,
        labels: Json | None = None,
        fields: Json | None = None,
    ) -> list[Json]:
        listed = self._listed(resource, namespace, labels, fields)
        return await self._call("list", _collect(listed), f"list {resource.__name__}s")

    def _listed(
        self,
        resource: type[Any],
        namespace: str | None,
        labels: Json | None,
        fields: Json | None = None,
    ) -> ListAsyncIterable[Any]:
        return self._client.list(
            resource,
            namespace="*" if namespace is None else _checked_name(namespace),
            chunk_size=_PAGE,
            labels=labels,
            fields=fields,
        )

    async def _call(self, verb: str, call: Awaitable[T], doing: str) -> T:
        """Await a call within the timeout, count it, and map its errors. 404 becomes ResourceGone."""
        code = "error"
        try:
            async with asyncio.timeout(self._timeout):
                answer = await call
                code = "2xx"
                return answer
        except ConfigError as error:  # the file of the token is missing
            raise ClusterUnavailable(f"cannot {doing}: {error}") from error
        except CLIENT_ERRORS as error:
            code = result_code(error)
            mapped = map_client_error(error, doing)
            if isinstance(mapped, ClusterRefused) and mapped.status == 404:
                raise ResourceGone(mapped.message) from error
            if code == "401":
                self._log_in_again()
            raise mapped from error
        finally:
            self.requests[verb, code] += 1

    def _log_in_again(self) -> None:
        """Read the configuration again: its token may have been replaced. Running requests keep the old login."""
        with contextlib.suppress(SettingsError):
            config = self._read()
            if config != self._logins[-1].config:
                self._logins.append(Login(config, self._timeout))


async def _collect(listed: AsyncIterable[Mapping[str, Any]]) -> list[Json]:
    return [dict(one) async for one in listed]


async def _open_stream(
    streams: httpx2.AsyncClient, request: httpx2.Request
) -> httpx2.Response:
    response = await streams.send(request, stream=True)
    if not response.is_success:
        await response.aread()
        response.raise_for_status()
    return response


async def _events(
    response: httpx2.Response, kind: type[Any], doing: str
) -> AsyncGenerator[tuple[str, Json], None]:
    async with contextlib.aclosing(_lines(response)) as lines:
        async for line in lines:
            try:
                event = decode_watch_event(line)
                if event.type == "ERROR":
                    status = decode_status(event.object)
                    message = f"cannot {doing}: {status.code} {status.message}"
                    raise ClusterUnavailable(message, status=status.code or 0)
                body = dict(decode_object(event.object, kind))
            except ValueError as error:
                raise map_client_error(error, doing) from error
            yield event.type, body


async def _lines(response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    """Yield lines until the stream or the connection ends."""
    rest = b""
    with contextlib.suppress(httpx2.HTTPError, httpx2.StreamError, OSError):
        async for chunk in response.aiter_bytes():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in filter(None, lines):
                yield line


def _address(kind: type[Any], namespace: str | None, name: str | None = None) -> str:
    info = api_info(kind)
    resource = info.parent or info.resource
    root = f"apis/{resource.group}" if resource.group else "api"
    within = "" if namespace is None else f"namespaces/{_checked_name(namespace)}/"
    collection = f"{root}/{resource.version}/{within}{info.plural}"
    if name is None:
        return collection
    action = f"/{info.action}" if info.action else ""
    return f"{collection}/{_checked_name(name)}{action}"


def _session_labels(session: str | None) -> Json:
    """Return the label selector of one session's objects, or of all sessions' objects."""
    return {SESSION_LABEL: session or exists()}


def _checked_name(name: str) -> str:
    """Return a name that may become part of a request's URL. Raises ClusterRefused for anything else."""
    if not _NAME.fullmatch(name):
        raise ClusterRefused(f"{name[:60]!r} is not a Kubernetes name")
    return name


def _precondition(body: Json) -> Json:
    return {"resourceVersion": (body.get("metadata") or {}).get("resourceVersion")}


def _uid_label(body: Mapping[str, Any]) -> str:
    meta = body.get("metadata") or {}
    return str((meta.get("labels") or {}).get(UID_LABEL) or "")
