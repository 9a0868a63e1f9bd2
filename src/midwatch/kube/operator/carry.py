"""Carrying out a plan's actions: the operator's hands."""

from __future__ import annotations

from dataclasses import dataclass

from ...content.tokens import issue, read_keys
from ...errors import MidwatchError, SettingsError
from ...lifecycle import Clock
from ...logs import Log
from ...model import Json
from ...settings import OperatorSettings
from ..actions import (
    Action,
    CreateJob,
    DeleteJob,
    Event,
    Hold,
    Look,
    Release,
    SuspendJob,
    WriteStatus,
)
from ..api import Cluster
from ..errors import ClusterRefused, ClusterUnavailable, ResourceGone, SpecRefused
from ..manifests import job, objects
from ..resource import SessionResource
from ..seen import Seen, seen_of
from ..statuses import Writer, merged
from .index import Index, Key
from .telling import event_manifest

_PATIENCE = 5.0
"""Seconds that a write is tried on the spot; longer waits are left to the queue."""


@dataclass(frozen=True)
class Hands:
    """What the actions need. The index is told of what they did, ahead of the watches."""

    cluster: Cluster
    index: Index
    settings: OperatorSettings
    clock: Clock
    log: Log

    async def carry(self, seen: Seen, action: Action) -> None:
        """Raises the errors of the cluster, of the settings, and SpecRefused."""
        resource, key = seen.resource, seen.resource.key
        match action:
            case Look():
                await self._look(key)
            case Hold() | Release():
                await self._finalizer(resource, present=isinstance(action, Hold))
            case CreateJob():
                await self._create(seen, action)
            case SuspendJob():
                await self._suspend(key, action.name)
            case DeleteJob():
                await self.cluster.delete_job(resource.namespace, action.name)
                self.index.drop_job(key, action.name)
            case WriteStatus():
                await self._write(resource, action)
            case Event():
                await self._tell(resource, action)
        self.log.debug("done", session="/".join(key), action=type(action).__name__)

    async def _look(self, key: Key) -> None:
        # The pods first, the resource last: a runner that ended has told before it did.
        before = self.index.before(key)
        pods = await self.cluster.list_pods(*key)
        jobs = await self.cluster.list_jobs(*key)
        body = await self.cluster.get_session(*key)
        self.index.after(before, [body], jobs, pods)

    async def _finalizer(self, resource: SessionResource, *, present: bool) -> None:
        namespace, name = resource.key
        body = await self.cluster.set_finalizer(
            namespace,
            name,
            resource.uid,
            present=present,
            seen=self._body(resource.key),
            give_up_after=_PATIENCE,
        )
        self.index.put_session(body)

    async def _suspend(self, key: Key, name: str) -> None:
        body = await self.cluster.suspend_job(key[0], name)
        if body is None:
            self.index.drop_job(key, name)
        else:
            self.index.put_job(body)

    async def _write(self, resource: SessionResource, write: WriteStatus) -> None:
        writer = Writer(resource.uid, resource.generation, write.attempt)
        now = self.clock.now()

        def propose(body: Json) -> Json | None:
            return merged(body, writer, write.changes, write.conditions, now)

        body = await self.cluster.write_status(
            *resource.key,
            propose,
            seen=self._body(resource.key),
            give_up_after=_PATIENCE,
        )
        self.index.put_session(body)

    def _body(self, key: Key) -> Json | None:
        known = self.index.get(key)
        return known.body if known is not None else None

    async def _tell(self, resource: SessionResource, event: Event) -> None:
        """An event is a help for people: that it could not be told stops nothing."""
        self.log.info(
            event.reason.lower(),
            session="/".join(resource.key),
            attempt=event.attempt,
            message=event.message,
        )
        manifest = event_manifest(resource, event, self.clock.now())
        try:
            await self.cluster.record_event(manifest)
        except (ClusterRefused, ClusterUnavailable, ResourceGone) as error:
            self.log.warning("an event was not recorded", error=error.line())

    # -------------------------------------------------------------- creation

    async def _create(self, seen: Seen, action: CreateJob) -> None:
        resource = seen.resource
        other = await self._resumed(resource, needed=action.attempt == 1)
        token = self._token(resource, other)
        manifest = job(
            resource,
            self.settings,
            attempt=action.attempt,
            timeout=action.timeout,
            resume_from=other,
        )
        for one in objects(resource, self.settings, token):
            await self.cluster.create(one)
        if await self.cluster.create(manifest):
            self.index.put_job(manifest)
        else:  # made before, perhaps by another operator: as it is now
            name = manifest["metadata"]["name"]
            found = await self.cluster.get_job(resource.namespace, name)
            if found is not None:
                self.index.put_job(found)

    async def _resumed(
        self, resource: SessionResource, *, needed: bool
    ) -> SessionResource | None:
        """The session that `spec.resumeFrom` names. A later attempt can do without: it has its own."""
        name = resource.spec.resume_from
        if name is None:
            return None
        try:
            body = await self.cluster.get_session(resource.namespace, name)
        except ResourceGone:
            if not needed:
                return None
            raise SpecRefused(
                f"there is no session {name}",
                path="spec.resumeFrom",
                hint="it names a session of this namespace that still exists",
            ) from None
        return seen_of(body).resource

    def _token(
        self, resource: SessionResource, other: SessionResource | None
    ) -> str | None:
        """The key for the session's own folder; the file is read each time, since it may be rotated."""
        file = self.settings.content_key_file
        if self.settings.content_url is None or file is None:
            return None
        read = (other.folder,) if other is not None else ()
        try:
            key = read_keys(file)[0]
        except SettingsError as error:
            path = "operator.content_key_file"
            raise SettingsError(error.message, path=path, hint=error.hint) from None
        return issue(key, resource.folder, read, now=self.clock.now())


def reason_of_refusal(error: MidwatchError) -> str:
    """Why a session cannot be started, as a condition's reason."""
    if isinstance(error, SpecRefused):
        missing = error.path == "spec.resumeFrom"
        return "ResumeFromNotFound" if missing else "InvalidSpec"
    if isinstance(error, SettingsError):
        return "OperatorSettings"
    if isinstance(error, ClusterRefused):
        quota = "exceeded quota" in error.message
        return "QuotaExceeded" if quota else "ClusterRefused"
    return type(error).__name__
