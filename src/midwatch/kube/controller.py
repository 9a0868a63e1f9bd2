"""Carrying out a plan's actions: the operator's hands."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, get_args

from midwatch.content.tokens import issue, read_keys
from midwatch.errors import MidwatchError, PermanentError, SettingsError, TemporaryError
from midwatch.kube.cache import Index, Key, Queue
from midwatch.kube.client import Cluster
from midwatch.kube.errors import (
    ClusterRefused,
    ClusterUnavailable,
    OriginNotEnded,
    ResourceGone,
    SpecImpossible,
    SpecRefused,
    WriterOutdated,
)
from midwatch.kube.manifests import job, objects
from midwatch.kube.observed import ObservedState, seen_of
from midwatch.kube.reconcile import (
    Action,
    AddFinalizer,
    CreateJob,
    DeleteJob,
    Event,
    ExpireJob,
    Plan,
    Refresh,
    RemoveFinalizer,
    SuspendJob,
    WriteStatus,
    impossible,
    plan,
    refusal,
)
from midwatch.kube.resource import SessionResource
from midwatch.kube.rules import API_VERSION, KIND, MANAGED_BY, MAX_RESTARTS
from midwatch.kube.status import (
    Writer,
    bounded,
    merged,
    out_of_step,
    phase_of,
    timestamp,
)
from midwatch.lifecycle import Clock
from midwatch.logs import Log
from midwatch.model import Json
from midwatch.settings import OperatorSettings

# ------------------------------------------------------------ helpers
# Which sessions have what stands beside their Job: found out by creating it, and not again at every try.

LONGEST = 600.0
"""Seconds: what somebody deleted meanwhile is made again by a later try."""
MOST = 10_000
"""Sessions that are kept in mind; the oldest are forgotten."""


class Helpers:
    """In memory only: after a restart every object is created anew, which finds it."""

    def __init__(self, longest: float = LONGEST, most: int = MOST) -> None:
        self._longest, self._most = longest, most
        self._made: OrderedDict[str, float] = OrderedDict()

    def made(self, uid: str, now: float) -> None:
        """All of a session's are there, at this time of a clock that only goes forward."""
        self._made.pop(uid, None)
        self._made[uid] = now
        while len(self._made) > self._most:
            self._made.popitem(last=False)

    def forget(self, uid: str) -> None:
        """One may be missing."""
        self._made.pop(uid, None)

    def are_there(self, seen: ObservedState, action: CreateJob, now: float) -> bool:
        """Whether the Job of this attempt can do with what was made before.

        An attempt whose pod never ran may have lacked one of them.
        """
        since = self._made.get(seen.resource.uid)
        if since is None or now - since > self._longest:
            return False
        before = [pod for pod in seen.pods if pod.attempt == action.attempt - 1]
        # The runner tells the name of its pod, which takes all that it has.
        told = seen.status.get("podName") is not None
        ran = told or any(pod.exit_code is not None for pod in before)
        return action.attempt == 1 or ran


# ------------------------------------------------------------ telling
# Kubernetes events, for `kubectl describe`.

_COMPONENT = "midwatch-operator"
_MAX_MESSAGE = 1024
"""Bytes; what the API server takes."""


def event_manifest(resource: SessionResource, event: Event, now: datetime) -> Json:
    """The event as an object. Its name follows from what it tells, so that telling it twice is one event."""
    told = f"{resource.uid}/{event.attempt}/{event.reason}"
    mark = hashlib.sha256(told.encode()).hexdigest()[:16]
    at = timestamp(now)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{resource.name}.{mark}",
            "namespace": resource.namespace,
            "labels": dict(MANAGED_BY),
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": resource.name,
            "namespace": resource.namespace,
            "uid": resource.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": bounded(event.message, _MAX_MESSAGE),
        "source": {"component": _COMPONENT},
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }


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
class ActionExecutor:
    """What the actions need. The index is told of what they did, ahead of the watches."""

    cluster: Cluster
    index: Index
    settings: OperatorSettings
    clock: Clock
    log: Log
    tally: Tally = field(default_factory=Tally)
    helpers: Helpers = field(default_factory=Helpers)

    async def carry(self, seen: ObservedState, action: Action) -> None:
        """Raises the errors of the cluster, of the settings, and SpecRefused."""
        resource, key = seen.resource, seen.resource.key
        match action:
            case Refresh():
                await self._look(key)
            case AddFinalizer() | RemoveFinalizer():
                await self._finalizer(
                    resource, present=isinstance(action, AddFinalizer)
                )
                if isinstance(action, RemoveFinalizer) and seen.phase.terminal:
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
            self.log.warning("an event was not recorded", error=error.one_line())

    # -------------------------------------------------------------- creation

    async def _create(self, seen: ObservedState, action: CreateJob) -> None:
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
        self, seen: ObservedState, action: CreateJob, other: SessionResource | None
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


# ------------------------------------------------------------ follow
# One session, one step on: plan, carry out, plan again, until there is nothing to do.

ROUNDS = 10
"""Plans in a row for one session; it takes four. What is not settled then waits for its next turn."""
Failure = Literal["outdated", "temporary", "permanent", "unexpected"]
FAILURES: tuple[Failure, ...] = get_args(Failure)
PASSING = 3
"""Failures in a row after which a refusal that may pass is told in the resource: a quarter of a minute."""


class ReconcileWorker:
    """Follows one session at a time; `run` may run several times at once. `failures` counts them by kind."""

    def __init__(self, hands: ActionExecutor, queue: Queue) -> None:
        self._hands = hands
        self._queue = queue
        self._log = hands.log
        self.failures = Counter[str]()

    async def run(self) -> None:
        """Take what is next and follow it, for ever."""
        while True:
            key = await self._queue.take()
            try:
                await self._guarded(key)
            finally:
                self._queue.done(key)

    async def _guarded(self, key: Key) -> None:
        session = "/".join(key)
        try:
            await self.follow(key)
        except ResourceGone as error:
            self._hands.index.drop(key, "session")
            self._queue.worked(key)
            self._log.info("gone", session=session, why=error.message)
        except WriterOutdated as error:
            self._log.info("outdated", session=session, why=error.message)
            self._failed("outdated", key)
        except OriginNotEnded as error:  # nothing is wrong: it waits for another
            wait = self._queue.failed(key)
            self._log.info("waits", session=session, why=error.message, wait=wait)
        except TemporaryError as error:
            wait = self._failed("temporary", key, error.retry_after or 0.0)
            self._log.warning(
                "failed", session=session, error=error.one_line(), wait=wait
            )
        except PermanentError as error:
            wait = self._failed("permanent", key)
            self._log.error(
                "refused", session=session, error=error.one_line(), wait=wait
            )
        except Exception:  # the outermost guard: a session that trips us stops no other
            wait = self._failed("unexpected", key)
            self._log.exception("failed", session=session, wait=wait)

    def _failed(self, kind: Failure, key: Key, at_least: float = 0.0) -> float:
        self.failures[kind] += 1
        return self._queue.failed(key, at_least)

    async def follow(self, key: Key) -> None:
        """Bring a session as far as it goes now. Raises what could not be told in the resource."""
        done: set[type[Action]] = set()
        for _ in range(ROUNDS):
            seen = self._seen(key, done)
            if seen is None:
                return
            next_ = plan(seen, self._hands.settings, self._hands.clock.now())
            if not next_.actions:
                return self._settled(key, next_)
            await self._carry(seen, next_)
            done |= {type(action) for action in next_.actions}
        raise TemporaryError("it does not settle")

    def _seen(self, key: Key, done: set[type[Action]]) -> ObservedState | None:
        """What is known; of what was done for it follows how new that is."""
        known = self._hands.index.get(key)
        if known is None:
            return None
        # Holding a resource back answers with the resource as it is then.
        return known.seen(fresh=Refresh in done, current=AddFinalizer in done)

    def _settled(self, key: Key, last: Plan) -> None:
        self._queue.worked(key)
        if last.done:
            self._hands.index.drop(key, "session")
        elif last.again is not None:
            self._queue.later(key, max(0.05, last.again))

    async def _carry(self, seen: ObservedState, next_: Plan) -> None:
        for action in next_.actions:
            try:
                await self._hands.carry(seen, action)
            except (ResourceGone, WriterOutdated):
                raise
            except SpecImpossible as error:
                return await self._end(seen, error)
            except PermanentError as error:
                await self._refuse(seen, error)
                raise

    async def _end(self, seen: ObservedState, error: SpecImpossible) -> None:
        """Trying again would be for ever: the session is over before it began."""
        for action in impossible(seen, reason_of_refusal(error), error.one_line()):
            await self._hands.carry(seen, action)

    async def _refuse(self, seen: ObservedState, error: MidwatchError) -> None:
        """Say in the resource why it goes no further, once that is sure."""
        if may_pass(error) and self._queue.failures(seen.resource.key) < PASSING:
            return
        for action in refusal(seen, reason_of_refusal(error), error.one_line()):
            try:
                await self._hands.carry(seen, action)
            except (PermanentError, TemporaryError) as also:
                self._log.warning("not told", error=also.one_line())
                return
