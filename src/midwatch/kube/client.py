"""A client of the Kubernetes API: the few calls that the operator and the runner need, each with a timeout."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
)
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class _Resource:
    """A kind of namespaced object: where its API is, and its names."""

    group: str
    version: str
    kind: str
    plural: str


_SESSION = _Resource(GROUP, VERSION, KIND, PLURAL)
_JOB = _Resource("batch", "v1", "Job", "jobs")
_POD = _Resource("", "v1", "Pod", "pods")
_EVENT = _Resource("", "v1", "Event", "events")
_RBAC = "rbac.authorization.k8s.io"
_KINDS = {
    one.kind: one
    for one in (
        _Resource("", "v1", "ServiceAccount", "serviceaccounts"),
        _Resource("", "v1", "Secret", "secrets"),
        _Resource("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
        _Resource(_RBAC, "v1", "Role", "roles"),
        _Resource(_RBAC, "v1", "RoleBinding", "rolebindings"),
        *(_EVENT, _JOB, _POD, _SESSION),
    )
}
_WATCHED = {
    PLURAL: (_SESSION, ""),
    "jobs": (_JOB, SESSION_LABEL),
    "pods": (_POD, SESSION_LABEL),
}
"""Kind and label selector, by plural."""


class Cluster(Connection):
    """The calls of the operator and the runner.

    Attributes:
        requests: Calls so far, by verb and code. Each page of a list counts, and so does the opening of a watch.
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
            return await self._patch(_SESSION, namespace, name, patch, "/status")

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

    async def create(
        self, manifest: Json, *, may_read: bool = True, dry: bool = False
    ) -> bool:
        """Create an object; return False if it exists already for the same session, or for any if not `may_read`.

        With `dry` the API server checks all that it checks, and nothing is created.

        Raises:
            NameTaken: An object of this name exists that is not this session's.
        """
        kind, meta = manifest["kind"], manifest["metadata"]
        namespace, name = meta["namespace"], meta["name"]
        doing = f"create the {kind} {namespace}/{name}"
        resource = _KINDS[kind]
        try:
            await self._create(resource, manifest, doing, dry)
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
        return await self._list(_JOB, namespace, labelSelector=_selector(session))

    async def list_pods(
        self, namespace: str | None = None, session: str | None = None
    ) -> list[Json]:
        """Return the pods of one session, or of all."""
        return await self._list(_POD, namespace, labelSelector=_selector(session))

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
        fields = f"involvedObject.name={_checked_name(name)},involvedObject.kind={kind}"
        return await self._list(_EVENT, namespace, fieldSelector=fields)

    # -------------------------------------------------------------- watches

    async def list_for_watch(
        self, plural: str, namespace: str | None
    ) -> tuple[list[Json], str]:
        """Return all sessions, Jobs or pods, and the resource version to watch from."""
        kind, label = _WATCHED[plural]
        asked = {"labelSelector": label} if label else {}
        found: list[Json] = []
        version = ""
        async for page in self._pages(kind, namespace, asked):
            found += page.get("items") or ()
            version = version or str(page["metadata"]["resourceVersion"])
        return found, version

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

    async def _get(self, resource: _Resource, namespace: str, name: str) -> Json | None:
        doing = f"read {resource.kind} {namespace}/{name}"
        try:
            path = _address(resource, namespace, name)
            return await self._call("get", self._requests.send("GET", path), doing)
        except ResourceGone:
            return None

    async def _patch(
        self,
        resource: _Resource,
        namespace: str,
        name: str,
        patch: Json,
        part: str = "",
    ) -> Json:
        doing = f"write {resource.kind} {namespace}/{name}"
        path = _address(resource, namespace, name) + part
        kind = "application/merge-patch+json"
        patching = self._requests.send("PATCH", path, patch, kind)
        return await self._call("patch", patching, doing)

    async def _create(
        self, resource: _Resource, manifest: Json, doing: str, dry: bool = False
    ) -> Json:
        path = _address(resource, manifest["metadata"]["namespace"])
        path += "?dryRun=All" if dry else ""
        creating = self._requests.send("POST", path, manifest)
        return await self._call("create", creating, doing)

    async def _list(
        self, resource: _Resource, namespace: str | None, **asked: str
    ) -> list[Json]:
        pages = self._pages(resource, namespace, asked)
        return [one async for page in pages for one in page.get("items") or ()]

    def _pages(
        self, resource: _Resource, namespace: str | None, asked: Mapping[str, str]
    ) -> AsyncGenerator[Json, None]:
        path = _address(resource, namespace)
        return self.pages(path, f"list {resource.plural}", asked, _PAGE)


def _address(
    resource: _Resource, namespace: str | None, name: str | None = None
) -> str:
    root = f"apis/{resource.group}" if resource.group else "api"
    within = "" if namespace is None else f"namespaces/{_checked_name(namespace)}/"
    collection = f"{root}/{resource.version}/{within}{resource.plural}"
    return collection if name is None else f"{collection}/{_checked_name(name)}"


def _selector(session: str | None) -> str:
    """Return the label selector of one session's objects, or of all sessions' objects."""
    return f"{SESSION_LABEL}={session}" if session else SESSION_LABEL


def _checked_name(name: str) -> str:
    """Return a name that may become part of a request's URL. Raises ClusterRefused for anything else."""
    if not _NAME.fullmatch(name):
        raise ClusterRefused(f"{name[:60]!r} is not a Kubernetes name")
    return name


def _precondition(body: Json) -> Json:
    return {"resourceVersion": (body.get("metadata") or {}).get("resourceVersion")}


def _uid_label(body: Json) -> str:
    meta = body.get("metadata") or {}
    return str((meta.get("labels") or {}).get(UID_LABEL) or "")
