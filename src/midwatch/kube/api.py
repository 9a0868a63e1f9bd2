"""The API server, as the operator and the runner need it: a few calls, each with a time limit."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx2
from lightkube import AsyncClient
from lightkube.core.exceptions import ConfigError
from lightkube.generic_resource import (
    GenericNamespacedResource,
    create_api_info,
    create_namespaced_resource,
)
from lightkube.operators import exists
from lightkube.types import CascadeType, PatchType

from midwatch.errors import SettingsError
from midwatch.kube.access import read_config
from midwatch.kube.errors import (
    ClusterRefused,
    ClusterUnavailable,
    NameTaken,
    ResourceGone,
)
from midwatch.kube.faults import FOREIGN_ERRORS, Conflicted, code_of, translated
from midwatch.kube.names import (
    FINALIZER,
    GROUP,
    KIND,
    PLURAL,
    SESSION_LABEL,
    UID_LABEL,
    VERSION,
)
from midwatch.lifecycle import Clock, SystemClock
from midwatch.model import Json

T = TypeVar("T")
Propose = Callable[[Json], Json | None]
"""The merge patch for a resource's `status`, from the whole resource; None: nothing to write."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0
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


class Cluster:
    """A connection to the API server. Close it, or use it as an async context manager.

    Every call raises ClusterUnavailable (perhaps with `retry_after`) when trying again can help and
    ClusterRefused when it cannot; each takes `timeout` seconds at most. `timeout` is also the longest
    that a write is waited for before it is tried again.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        timeout: float = 30.0,
        clock: Clock | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self._client = client
        self._timeout = timeout
        self._clock = clock or SystemClock()
        self.requests: Counter[tuple[str, str]] = Counter()
        """Calls so far, by verb and code; a list in pages is one."""
        self._chance = chance or random.Random()

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
        access = read_config(kubeconfig, context)
        try:
            client = AsyncClient(
                access, timeout=httpx2.Timeout(timeout), trust_env=False
            )
        except (ConfigError, OSError, ValueError, httpx2.InvalidURL) as error:
            raise SettingsError(
                f"cannot connect to {access.cluster.server}: {error}",
                path="operator.kubeconfig",
                hint="check the server's address, the certificates and the keys",
            ) from error
        return cls(client, timeout=timeout, clock=clock)

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
        await self._client.close()

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

        return await self._settle(namespace, name, attempt, seen, give_up_after)

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

        return await self._settle(namespace, name, attempt, seen, give_up_after)

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
        except Conflicted as error:
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
                    _checked(name),
                    namespace=_checked(namespace),
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
        return await self._list(_JOB, namespace, _of(session))

    async def list_pods(
        self, namespace: str | None = None, session: str | None = None
    ) -> list[Json]:
        """The pods of one session, or of all."""
        return await self._list(_POD, namespace, _of(session))

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
        except Conflicted:
            pass

    # -------------------------------------------------------------- calls

    async def _settle(
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
            except (Conflicted, ClusterUnavailable) as error:
                pause = self._pause(error, wait, known=seen is not None)
                if self._clock.monotonic() + pause > deadline:
                    raise ClusterUnavailable(
                        error.message, retry_after=error.retry_after
                    ) from error
                # Whether the write arrived is not known: look before the next.
                seen, wait = None, min(wait * 2, LONGEST_WAIT)
                await self._clock.sleep(pause)

    def _pause(
        self, error: Conflicted | ClusterUnavailable, wait: float, *, known: bool
    ) -> float:
        wait *= self._chance.uniform(0.5, 1.0)
        if isinstance(error, Conflicted):  # others write as well, but nobody is in need
            return 0.0 if known else wait / 10
        return max(error.retry_after or 0.0, wait)

    async def _get(self, resource: type[Any], namespace: str, name: str) -> Json | None:
        doing = f"read {resource.__name__} {namespace}/{name}"
        try:
            got = self._client.get(
                resource, _checked(name), namespace=_checked(namespace)
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
            _checked(name),
            patch,
            namespace=_checked(namespace),
            patch_type=PatchType.MERGE,
        )
        return dict(await self._call("patch", patching, doing))

    async def _list(
        self, resource: type[Any], namespace: str | None, labels: Json | None = None
    ) -> list[Json]:
        listed = self._client.list(
            resource,
            namespace="*" if namespace is None else _checked(namespace),
            chunk_size=_PAGE,
            labels=labels,
        )
        return await self._call("list", _all_of(listed), f"list {resource.__name__}s")

    async def _call(self, verb: str, call: Awaitable[T], doing: str) -> T:
        """The one place where errors of others become ours. 404 is ResourceGone."""
        code = "error"
        try:
            async with asyncio.timeout(self._timeout):
                answer = await call
                code = "2xx"
                return answer
        except ConfigError as error:  # the token's file is gone
            raise ClusterUnavailable(f"cannot {doing}: {error}") from error
        except FOREIGN_ERRORS as error:
            code = code_of(error)
            ours = translated(error, doing)
            if isinstance(ours, ClusterRefused) and ours.status == 404:
                raise ResourceGone(ours.message) from error
            raise ours from error
        finally:
            self.requests[verb, code] += 1


async def _all_of(listed: AsyncIterable[Mapping[str, Any]]) -> list[Json]:
    return [dict(one) async for one in listed]


def _of(session: str | None) -> Json:
    """The label of one session's objects; of all sessions' without one."""
    return {SESSION_LABEL: session or exists()}


def _checked(name: str) -> str:
    """A name goes into the address of a request: nothing but a name may."""
    if not _NAME.fullmatch(name):
        raise ClusterRefused(f"{name[:60]!r} is no name in Kubernetes")
    return name


def _precondition(body: Json) -> Json:
    return {"resourceVersion": (body.get("metadata") or {}).get("resourceVersion")}


def _uid_label(body: Mapping[str, Any]) -> str:
    meta = body.get("metadata") or {}
    return str((meta.get("labels") or {}).get(UID_LABEL) or "")
