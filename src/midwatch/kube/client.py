"""The API server, as the operator and the runner need it: a few calls, each with a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import json
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
from types import TracebackType
from typing import Any, TypeVar

import httpx2
import yaml
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
from lightkube.types import CascadeType, PatchType

from midwatch.errors import MidwatchError, SettingsError, TemporaryError
from midwatch.kube.errors import (
    ClusterRefused,
    ClusterUnavailable,
    NameTaken,
    ResourceGone,
)
from midwatch.kube.rules import (
    FINALIZER,
    GROUP,
    KIND,
    PLURAL,
    SESSION_LABEL,
    UID_LABEL,
    VERSION,
)
from midwatch.lifecycle import Clock, SystemClock
from midwatch.metrics import code_label
from midwatch.model import Json

# ------------------------------------------------------------ access
# How the API server is reached: its address and who we are there.

_PATH = "operator.kubeconfig"
_PROGRAMS = tuple(
    f"client.authentication.k8s.io/{version}" for version in ("v1alpha1", "v1beta1")
)
"""Protocols of the programs that the client runs to log in."""


class Login:
    """The clients of one login, with a time limit in seconds for each request.

    Raises SettingsError where the client takes nothing of the configuration.
    """

    def __init__(self, config: SingleConfig, timeout: float) -> None:
        self.config = config
        self._timeout = httpx2.Timeout(timeout)
        try:
            self.client = AsyncClient(config, timeout=self._timeout, trust_env=False)
        except (ConfigError, OSError, ValueError, httpx2.InvalidURL) as error:
            raise SettingsError(
                f"cannot connect to {config.cluster.server}: {error}",
                path=_PATH,
                hint="check the server's address, the certificates and the keys",
            ) from error

    @cached_property
    def streams(self) -> httpx2.AsyncClient:
        """For watches: each keeps a connection, so there is no limit on how many there are."""
        params = ConnectionParams(timeout=self._timeout, trust_env=False)
        limits = httpx2.Limits(max_connections=None)
        return httpx2.AsyncClient(**params.httpx_params(self.config), limits=limits)

    async def close(self) -> None:
        await self.client.close()
        if "streams" in vars(self):
            await self.streams.aclose()


def read_config(kubeconfig: Path | None, context: str | None) -> SingleConfig:
    """By this file, or as the pod that this is. Raises SettingsError."""
    try:
        if kubeconfig is None:
            config = KubeConfig.from_service_account().get()
        else:
            config = KubeConfig.from_file(kubeconfig).get(context)
    except (ConfigError, OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as e:
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
            "its user logs in by a program",
            path=_PATH,
            hint="name a kubeconfig with a token or a certificate, or run in the cluster",
        )
    return config._replace(user=user)


# ------------------------------------------------------------ faults
# Errors of the HTTP client and answers of the API server → mapped.

MAX_MESSAGE = 1000
"""Characters of an API server's message that are passed on."""
_MAX_CAUSES = 20
_HINTS = {
    401: "check the token, the certificate or the service account",
    403: "check the roles of the service account, and the quotas of the namespace",
    404: "check that the resource definition and the namespace are there",
    422: "correct what the API server names; a field that is unknown means another version of the cluster or of the CRD",
}
CLIENT_ERRORS = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    httpx2.StreamError,
    # The client closes over answers that are no JSON, or have no content type.
    KeyError,
    ValueError,
    TimeoutError,
    OSError,
)
"""All that a call of the client raises."""


class Conflict(TemporaryError):
    """409: the object changed since it was read, or is there already."""


def result_code(error: Exception) -> str:
    """What one of FOREIGN_ERRORS counts as: the status of an answer, `timeout` or `error`."""
    if isinstance(error, httpx2.HTTPStatusError):
        return code_label(error.response.status_code)
    timed_out = isinstance(error, (TimeoutError, httpx2.TimeoutException))
    return "timeout" if timed_out else "error"


def map_client_error(error: Exception, doing: str) -> MidwatchError:
    """Our error for one of FOREIGN_ERRORS, raised while `doing` something."""
    if isinstance(error, httpx2.HTTPStatusError):
        return _map_response_error(error.response, doing)
    if isinstance(error, (TimeoutError, httpx2.TimeoutException)):
        return ClusterUnavailable(f"cannot {doing}: no answer in time")
    if isinstance(error, (httpx2.TransportError, OSError)):
        return ClusterUnavailable(f"cannot {doing}: {_text(error)}")
    if isinstance(error, (httpx2.InvalidURL, httpx2.TooManyRedirects)):
        return ClusterRefused(f"cannot {doing}: {_text(error)}")
    return ClusterUnavailable(
        f"cannot {doing}: the answer is none of an API server: {_text(error)}"
    )


def _map_response_error(response: httpx2.Response, doing: str) -> MidwatchError:
    code = response.status_code
    status = _status_of(response)
    text = str(status.get("message") or response.reason_phrase or "no message")
    message = f"cannot {doing}: {code} {text[:MAX_MESSAGE]}"
    if code == 409:
        return Conflict(message)
    # 410: the list that is read in parts has expired; the next one begins anew.
    if code in (408, 410, 429) or code >= 500:
        retry_after = _retry_after(response, status)
        return ClusterUnavailable(message, retry_after=retry_after, status=code)
    return ClusterRefused(
        message,
        hint=_HINTS.get(code),
        status=code,
        reason=str(status.get("reason") or "")[:100],
        fields=_wrong_fields(status),
    )


def _wrong_fields(status: dict[str, Any]) -> tuple[str, ...]:
    """What is wrong with the object, where the server says so."""
    details = status.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    if not isinstance(causes, list):
        return ()
    named = (one.get("field") for one in causes[:_MAX_CAUSES] if isinstance(one, dict))
    return tuple(str(field)[:200] for field in named if field)


def _status_of(response: httpx2.Response) -> dict[str, Any]:
    """The `Status` in an answer; empty if there is none."""
    try:
        status = json.loads(response.content)
    except (ValueError, httpx2.ResponseNotRead):
        return {}
    return status if isinstance(status, dict) else {}


def _retry_after(response: httpx2.Response, status: dict[str, Any]) -> float | None:
    details = status.get("details")
    written = response.headers.get("retry-after")
    if written is None and isinstance(details, dict):
        written = details.get("retryAfterSeconds")
    try:
        return max(0.0, float(written)) if written is not None else None
    except (TypeError, ValueError):
        return None


def _text(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:MAX_MESSAGE]


T = TypeVar("T")
Propose = Callable[[Json], Json | None]
"""The merge patch for a resource's `status`, from the whole resource; None: nothing to write."""
FIRST_WAIT, MAX_WAIT = 0.5, 15.0
"""Seconds between the tries of a write."""
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
_RBAC = "rbac.authorization.k8s.io"
_KINDS: dict[str, type[Any]] = {
    "ServiceAccount": _kind("", "v1", "ServiceAccount", "serviceaccounts"),
    "Secret": _kind("", "v1", "Secret", "secrets"),
    "PersistentVolumeClaim": _kind(
        "", "v1", "PersistentVolumeClaim", "persistentvolumeclaims"
    ),
    "Event": _kind("", "v1", "Event", "events"),
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

    Every call raises ClusterUnavailable (perhaps with `retry_after`) when trying again can help and
    ClusterRefused when it cannot; each takes `timeout` seconds at most. `timeout` is also the longest
    that a write is waited for before it is tried again.
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
        """Calls so far, by verb and code; a list in pages is one, as is a watch that was opened or tried."""
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
        """Without a `kubeconfig` as the pod that this runs in. Raises SettingsError."""
        return cls(
            partial(read_config, kubeconfig, context), timeout=timeout, clock=clock
        )

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        for login in self._logins:
            await login.close()

    # -------------------------------------------------------------- sessions

    async def get_session(self, namespace: str, name: str) -> Json:
        """The resource. Raises ResourceGone where there is none."""
        found = await self._get(_SESSION, namespace, name)
        if found is None:
            raise ResourceGone(f"there is no session {namespace}/{name}")
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
        """Bring a resource's status to what `propose` wants, and return the resource as it is then.

        `seen` is the resource as it was known last: if it is current, it is not read anew. A conflict is
        read again and proposed again; a fault is waited out for `give_up_after` seconds in all. Raises
        ResourceGone, and what `propose` raises.
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
        """Hold the resource back from being deleted, or let it go. Raises ResourceGone."""

        async def attempt(body: Json) -> Json:
            meta = body.get("metadata") or {}
            if meta.get("uid") != uid:
                raise ResourceGone("the resource was replaced by another of its name")
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
        """All resources, of one namespace or of all."""
        return await self._list(_SESSION, namespace)

    # -------------------------------------------------------------- their objects

    async def create(self, manifest: Json) -> bool:
        """Create an object; false if it was there already and is the same session's.

        Raises NameTaken if it is somebody else's.
        """
        kind, meta = manifest["kind"], manifest["metadata"]
        namespace, name = meta["namespace"], meta["name"]
        doing = f"create the {kind} {namespace}/{name}"
        resource = _KINDS[kind]
        try:
            await self._call("create", self._client.create(resource(manifest)), doing)
        except Conflict as error:
            found = await self._get(resource, namespace, name)
            if found is None:  # deleted in between
                raise ClusterUnavailable(error.message) from error
            if _uid_label(found) != _uid_label(manifest):
                raise NameTaken(
                    f"the {kind} {name} exists and is not this session's"
                ) from None
            return False
        return True

    async def get_job(self, namespace: str, name: str) -> Json | None:
        return await self._get(_JOB, namespace, name)

    async def suspend_job(self, namespace: str, name: str) -> Json | None:
        """End a Job's pods with SIGTERM and their grace; the Job as it is then, None if there is none."""
        return await self._patch_job(namespace, name, {"suspend": True})

    async def expire_job(self, namespace: str, name: str, seconds: int) -> Json | None:
        """Have a Job deleted so long after its end; the Job as it is then, None if there is none."""
        change = {"ttlSecondsAfterFinished": seconds}
        return await self._patch_job(namespace, name, change)

    async def _patch_job(self, namespace: str, name: str, spec: Json) -> Json | None:
        try:
            return await self._patch(_JOB, namespace, name, {"spec": spec})
        except ResourceGone:
            return None

    async def delete_job(self, namespace: str, name: str) -> bool:
        """Delete a Job and its pods; false if there is no such Job."""
        doing = f"delete the Job {namespace}/{name}"
        try:
            await self._call(
                "delete",
                self._client.delete(
                    _JOB,
                    _checked_name(name),
                    namespace=_checked_name(namespace),
                    cascade=CascadeType.BACKGROUND,
                ),
                doing,
            )
        except ResourceGone:
            return False
        return True

    async def list_jobs(
        self, namespace: str | None = None, session: str | None = None
    ) -> list[Json]:
        """The Jobs of one session, or of all."""
        return await self._list(_JOB, namespace, _session_labels(session))

    async def list_pods(
        self, namespace: str | None = None, session: str | None = None
    ) -> list[Json]:
        """The pods of one session, or of all."""
        return await self._list(_POD, namespace, _session_labels(session))

    async def record_event(self, manifest: Json) -> None:
        """Create an Event; one of its name is this very event."""
        meta = manifest["metadata"]
        doing = f"record an event in {meta['namespace']}"
        try:
            await self._call(
                "create",
                self._client.create(_KINDS["Event"](manifest)),
                doing,
            )
        except Conflict:
            pass

    # -------------------------------------------------------------- watches

    async def list_for_watch(
        self, plural: str, namespace: str | None
    ) -> tuple[list[Json], str]:
        """All sessions, or their Jobs or pods, and the resource version to watch from."""
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
        """Open a watch; inside, iterate over types and objects, bookmarks among them.

        The iteration ends when the server ends it (after `seconds`), when the connection breaks and when
        nothing comes for `silence` seconds. Opening and iterating raise ClusterUnavailable with `status` 410
        where the server does not know any more what happened since `version`.
        """
        # Not by lightkube's own watch: it asks for no bookmarks, opens a watch that ended anew without
        # a word, and takes each line separator of Unicode for the end of an event.
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

    async def _write_until_accepted(
        self,
        namespace: str,
        name: str,
        attempt: Callable[[Json], Awaitable[Json]],
        seen: Json | None,
        give_up_after: float,
    ) -> Json:
        """Read, compute and write until it holds."""
        deadline = self._clock.monotonic() + give_up_after
        wait = FIRST_WAIT
        while True:
            try:
                body = seen or await self.get_session(namespace, name)
                return await attempt(body)
            except (Conflict, ClusterUnavailable) as error:
                pause = self._seconds_to_wait(error, wait, known=seen is not None)
                if self._clock.monotonic() + pause > deadline:
                    raise ClusterUnavailable(
                        error.message, retry_after=error.retry_after
                    ) from error
                # Whether the write arrived is not known: look before the next.
                seen, wait = None, min(wait * 2, MAX_WAIT)
                await self._clock.sleep(pause)

    def _seconds_to_wait(
        self, error: Conflict | ClusterUnavailable, wait: float, *, known: bool
    ) -> float:
        wait *= self._random.uniform(0.5, 1.0)
        if isinstance(error, Conflict):  # others write as well, but nobody is in need
            return 0.0 if known else wait / 10
        return max(error.retry_after or 0.0, wait)

    async def _get(self, resource: type[Any], namespace: str, name: str) -> Json | None:
        doing = f"read {resource.__name__} {namespace}/{name}"
        try:
            got = self._client.get(
                resource, _checked_name(name), namespace=_checked_name(namespace)
            )
            return dict(await self._call("get", got, doing))
        except ResourceGone:
            return None

    async def _patch(
        self, resource: type[Any], namespace: str, name: str, patch: Json
    ) -> Json:
        doing = f"write {resource.__name__} {namespace}/{name}"
        patching = self._client.patch(
            resource,
            _checked_name(name),
            patch,
            namespace=_checked_name(namespace),
            patch_type=PatchType.MERGE,
        )
        return dict(await self._call("patch", patching, doing))

    async def _list(
        self, resource: type[Any], namespace: str | None, labels: Json | None = None
    ) -> list[Json]:
        listed = self._listed(resource, namespace, labels)
        return await self._call("list", _collect(listed), f"list {resource.__name__}s")

    def _listed(
        self, resource: type[Any], namespace: str | None, labels: Json | None
    ) -> ListAsyncIterable[Any]:
        return self._client.list(
            resource,
            namespace="*" if namespace is None else _checked_name(namespace),
            chunk_size=_PAGE,
            labels=labels,
        )

    async def _call(self, verb: str, call: Awaitable[T], doing: str) -> T:
        """The one place where errors of others become mapped. 404 is ResourceGone."""
        code = "error"
        try:
            async with asyncio.timeout(self._timeout):
                answer = await call
                code = "2xx"
                return answer
        except ConfigError as error:  # the token's file is gone
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
        """Use what the kubeconfig says now: its token may have been replaced. Requests under way keep theirs."""
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
    """Lines as JSON has them; ends also where the connection does."""
    rest = b""
    with contextlib.suppress(httpx2.HTTPError, httpx2.StreamError, OSError):
        async for chunk in response.aiter_bytes():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in filter(None, lines):
                yield line


def _address(kind: type[Any], namespace: str | None) -> str:
    info = api_info(kind)
    group, version = info.resource.group, info.resource.version
    root = f"apis/{group}" if group else "api"
    within = "" if namespace is None else f"namespaces/{_checked_name(namespace)}/"
    return f"{root}/{version}/{within}{info.plural}"


def _session_labels(session: str | None) -> Json:
    """The label of one session's objects; of all sessions' without one."""
    return {SESSION_LABEL: session or exists()}


def _checked_name(name: str) -> str:
    """A name goes into the address of a request: nothing but a name may."""
    if not _NAME.fullmatch(name):
        raise ClusterRefused(f"{name[:60]!r} is no name in Kubernetes")
    return name


def _precondition(body: Json) -> Json:
    return {"resourceVersion": (body.get("metadata") or {}).get("resourceVersion")}


def _uid_label(body: Mapping[str, Any]) -> str:
    meta = body.get("metadata") or {}
    return str((meta.get("labels") or {}).get(UID_LABEL) or "")
