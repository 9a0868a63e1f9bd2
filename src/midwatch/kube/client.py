"""A client of the Kubernetes API: the few calls that the operator and the runner need, each with a timeout."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from lightkube.core.generic_client import ListAsyncIterable
from lightkube.core.resource import api_info
from lightkube.generic_resource import (
    GenericNamespacedResource,
    create_api_info,
    create_namespaced_resource,
)
from lightkube.operators import exists

from midwatch.cluster.connection import Connection
from midwatch.cluster.error_mapping import Conflict
from midwatch.cluster.errors import ClusterRefused, ClusterUnavailable, ResourceGone
from midwatch.kube.errors import NameTaken
from midwatch.kube.rules import (
    FINALIZER,
    GROUP,
    KIND,
    PLURAL,
    SESSION_LABEL,
    UID_LABEL,
    VERSION,
)
from midwatch.lifecycle import Backoff
from midwatch.model import Json

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


class Cluster(Connection):
    """The calls of the operator and the runner.

    Attributes:
        requests: Calls so far, by verb and code. A paged list counts once, and so does the opening of a watch.
    """

    _random = random.Random()
    """Source of jitter."""

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
        kind, label = _WATCHED[plural]
        async with self.open_watch(
            _address(kind, namespace),
            f"watch {plural}",
            {"labelSelector": label} if label else {},
            version,
            seconds=seconds,
            silence=silence,
        ) as events:
            yield events

    # -------------------------------------------------------------- calls

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


async def _collect(listed: AsyncIterable[Mapping[str, Any]]) -> list[Json]:
    return [dict(one) async for one in listed]


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
