"""Carrying out a plan's actions: the operator's hands."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta

from midwatch.content.tokens import issue, read_keys
from midwatch.errors import MidwatchError, SettingsError
from midwatch.kube.actions import (
    Action,
    CreateJob,
    DeleteJob,
    Event,
    ExpireJob,
    Hold,
    Look,
    Release,
    SuspendJob,
    WriteStatus,
)
from midwatch.kube.api import Cluster
from midwatch.kube.errors import (
    ClusterRefused,
    ClusterUnavailable,
    OriginNotEnded,
    ResourceGone,
    SpecImpossible,
    SpecRefused,
)
from midwatch.kube.manifests import job, objects
from midwatch.kube.operator.helpers import Helpers
from midwatch.kube.operator.index import Index, Key
from midwatch.kube.operator.telling import event_manifest
from midwatch.kube.resource import SessionResource
from midwatch.kube.rules import MAX_RESTARTS
from midwatch.kube.seen import Seen, seen_of
from midwatch.kube.statuses import Writer, merged, out_of_step, phase_of
from midwatch.lifecycle import Clock
from midwatch.logs import Log
from midwatch.model import Json
from midwatch.settings import OperatorSettings

_MEANT = ("exceeded quota", "denied the request")
"""A quota and an admission webhook: they refuse this very object."""
_PATIENCE = 5.0
"""Seconds that a write is tried on the spot; longer waits are left to the queue."""


_TOKEN_MARGIN = timedelta(days=14)
"""For a quota, a node, an image, an operator that is away."""


@dataclass(slots=True)
class Tally:
    """What came of the actions since the start; `ends` by phase and reason, as the status has them."""

    starts: int = 0
    restarts: int = 0
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)

    def started(self, attempt: int) -> None:
        self.starts += attempt == 1
        self.restarts += attempt > 1


@dataclass(frozen=True)
class Hands:
    """What the actions need. The index is told of what they did, ahead of the watches."""

    cluster: Cluster
    index: Index
    settings: OperatorSettings
    clock: Clock
    log: Log
    tally: Tally = field(default_factory=Tally)
    helpers: Helpers = field(default_factory=Helpers)

    async def carry(self, seen: Seen, action: Action) -> None:
        """Raises the errors of the cluster, of the settings, and SpecRefused."""
        resource, key = seen.resource, seen.resource.key
        match action:
            case Look():
                await self._look(key)
            case Hold() | Release():
                await self._finalizer(resource, present=isinstance(action, Hold))
                if isinstance(action, Release) and seen.phase.terminal:
                    reason = str(seen.status.get("reason") or "")
                    self.tally.ends[seen.phase.value, reason] += 1
            case CreateJob():
                await self._create(seen, action)
            case SuspendJob():
                job = await self.cluster.suspend_job(key[0], action.name)
                self._is_now(key, action.name, job)
            case DeleteJob():
                await self.cluster.delete_job(resource.namespace, action.name)
                self.index.drop(key, "job", action.name)
            case ExpireJob():
                seconds = math.ceil(self.settings.job_ttl)
                job = await self.cluster.expire_job(key[0], action.name, seconds)
                self._is_now(key, action.name, job)
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

    def _is_now(self, key: Key, name: str, body: Json | None) -> None:
        """A Job as it is by now; None: there is none."""
        if body is None:
            self.index.drop(key, "job", name)
        else:
            self.index.put_job(body)

    async def _write(self, resource: SessionResource, write: WriteStatus) -> None:
        writer = Writer(resource.uid, resource.generation, write.attempt)
        now = self.clock.now()

        def propose(body: Json) -> Json | None:
            if phase_of(body).terminal:
                # The runner may have ended it meanwhile: to that nothing is added but what belongs to it.
                crooked = out_of_step(body.get("status") or {})
                return merged(body, writer, {}, (), now) if crooked else None
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
        manifest = job(
            resource,
            self.settings,
            attempt=action.attempt,
            timeout=action.timeout,
            resume_from=other,
        )
        await self._help(seen, action, other)
        if await self._create_job(resource, manifest):
            self.index.put_job(manifest)
            self.tally.started(action.attempt)
        else:  # made before, perhaps by another operator: as it is now
            name = manifest["metadata"]["name"]
            found = await self.cluster.get_job(resource.namespace, name)
            if found is not None:
                self.index.put_job(found)

    async def _help(
        self, seen: Seen, action: CreateJob, other: SessionResource | None
    ) -> None:
        """Create what stands beside the Job, unless it is known to be there."""
        resource, now = seen.resource, self.clock.monotonic()
        if self.helpers.are_there(seen, action, now):
            return
        self.helpers.forget(resource.uid)
        token = self._token(resource, other)
        for one in objects(resource, self.settings, token):
            await self.cluster.create(one)
        self.helpers.made(resource.uid, now)

    async def _create_job(self, resource: SessionResource, manifest: Json) -> bool:
        try:
            return await self.cluster.create(manifest)
        except ResourceGone:  # the namespace, and all in it
            self.helpers.forget(resource.uid)
            raise
        except ClusterRefused as error:
            field = _field_of_spec(resource, error)
            if field is None:
                raise
            raise SpecImpossible(error.message, path=field) from error

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
        if needed and not phase_of(body).terminal:
            # Two sessions would work in one conversation, and push to one branch.
            raise OriginNotEnded(
                f"session {name} is not over yet",
                path="spec.resumeFrom",
                hint=f"this one begins when that has ended; spec.stop of {name} ends it",
            )
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
        now = self.clock.now()
        expires = now + token_life(resource)
        return issue(key, resource.folder, read, now=now, expires=expires)


def token_life(resource: SessionResource) -> timedelta:
    """How long a session's token is good for. Its secret is made once, before the first attempt; so it is for the
    longest time-out of as many attempts as there can ever be, and for all that they may wait between them.
    """
    attempts = MAX_RESTARTS + 1
    return timedelta(seconds=resource.spec.timeout * attempts) + _TOKEN_MARGIN


def _field_of_spec(resource: SessionResource, error: ClusterRefused) -> str | None:
    """The field of the session's spec that a refusal of its Job follows from; None if none does."""
    if error.status != 422:
        return None
    spec = resource.spec
    if spec.resources.manifest and any(".resources" in name for name in error.fields):
        return "spec.resources"
    if spec.environment.secrets and any(".envFrom[" in name for name in error.fields):
        return "spec.environment.secrets"
    return None


def may_pass(error: MidwatchError) -> bool:
    """Whether it is a refusal that comes and goes: an API server that has just started knows no roles yet."""
    if not isinstance(error, ClusterRefused) or error.status not in (401, 403):
        return False
    return not any(words in error.message for words in _MEANT)


def reason_of_refusal(error: MidwatchError) -> str:
    """Why a session cannot be started, as a condition's reason."""
    if isinstance(error, OriginNotEnded):
        return "ResumeFromNotEnded"
    if isinstance(error, SpecRefused):
        missing = error.path == "spec.resumeFrom"
        return "ResumeFromNotFound" if missing else "InvalidSpec"
    if isinstance(error, SettingsError):
        return "OperatorSettings"
    if isinstance(error, ClusterRefused):
        quota = "exceeded quota" in error.message
        return "QuotaExceeded" if quota else "ClusterRefused"
    return type(error).__name__
