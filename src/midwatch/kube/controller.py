"""Execute plans: create, suspend and delete the objects of sessions, and write status and events."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, get_args

from midwatch.cluster.errors import ClusterRefused, ClusterUnavailable, ResourceGone
from midwatch.content.tokens import issue, read_keys
from midwatch.errors import MidwatchError, PermanentError, SettingsError, TemporaryError
from midwatch.kube.cache import Index, Key, Queue
from midwatch.kube.client import Cluster
from midwatch.kube.errors import (
    OriginNotEnded,
    SpecImpossible,
    SpecRefused,
    WriterOutdated,
)
from midwatch.kube.manifests import job, objects
from midwatch.kube.observed import ObservedState, observe
from midwatch.kube.reconcile import (
    Action,
    AddFinalizer,
    CreateJob,
    DeleteJob,
    Event,
    ExpireJob,
    Plan,
    ReadEvents,
    Refresh,
    RemoveFinalizer,
    SuspendJob,
    WriteStatus,
    impossible,
    plan,
    refusal,
)
from midwatch.kube.resource import SessionResource
from midwatch.kube.rules import API_VERSION, KIND, MANAGED_BY, MAX_RESTARTS, REASONS
from midwatch.kube.status import (
    Writer,
    bounded,
    inconsistent_conditions,
    merged,
    phase_of,
    timestamp,
)
from midwatch.kube.views import EventWords, words_of
from midwatch.lifecycle import Clock
from midwatch.logs import Log
from midwatch.model import Json
from midwatch.settings import OperatorSettings

MAX_AGE = 600.0
"""Seconds after which a session's helper objects are created again, in case one was deleted."""
MAX_SESSIONS = 10_000
"""Sessions in the cache; the oldest are dropped first."""


class HelperCache:
    """Remembers which sessions have the objects beside their Job (account, role, secret, claim).

    So not every attempt creates them again. It is in memory only: after a restart each object is created once more,
    and the conflict shows that it exists.
    """

    def __init__(self, longest: float = MAX_AGE, most: int = MAX_SESSIONS) -> None:
        self._longest, self._most = longest, most
        self._created: OrderedDict[str, float] = OrderedDict()

    def record(self, uid: str, now: float) -> None:
        """Record that all objects of a session exist, at a monotonic time in seconds."""
        self._created.pop(uid, None)
        self._created[uid] = now
        while len(self._created) > self._most:
            self._created.popitem(last=False)

    def forget(self, uid: str) -> None:
        """Forget a session: one of its objects may be missing."""
        self._created.pop(uid, None)

    def are_present(self, state: ObservedState, action: CreateJob, now: float) -> bool:
        """Return whether the objects of this attempt's Job are known to exist.

        An attempt whose pod never ran may have lacked one of them, so the next one creates them again.
        """
        since = self._created.get(state.resource.uid)
        if since is None or now - since > self._longest:
            return False
        before = [pod for pod in state.pods if pod.attempt == action.attempt - 1]
        # A runner that wrote the name of its pod had all of its objects.
        reported = state.status.get("podName") is not None
        ran = reported or any(pod.exit_code is not None for pod in before)
        return action.attempt == 1 or ran


_COMPONENT = "midwatch-operator"
_MAX_MESSAGE = 1024
"""Bytes of an event's message that the API server accepts."""


def event_manifest(resource: SessionResource, event: Event, now: datetime) -> Json:
    """Return the manifest of an event. Its name is a hash of its content, so recording it twice makes one event."""
    content = f"{resource.uid}/{event.attempt}/{event.reason}"
    mark = hashlib.sha256(content.encode()).hexdigest()[:16]
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


_POLICY_REFUSALS = ("exceeded quota", "denied the request")
"""Messages of a quota and of an admission webhook, which refuse this object for good."""
_WRITE_TIMEOUT = 5.0
"""Seconds that a write is retried at once; after that the queue retries it."""

_TOKEN_MARGIN = timedelta(days=14)
"""Extra life of a content token: waits for a quota, a node, an image, or an operator that is down."""


_READS = 5
"""Reads of a session until two of them find the same version of its resource."""


@dataclass(slots=True)
class SessionCounts:
    """Sessions started, restarted and ended since the start of the operator; `ends` by phase and reason."""

    starts: int = 0
    restarts: int = 0
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)

    def started(self, attempt: int) -> None:
        """Count the start of an attempt."""
        self.starts += attempt == 1
        self.restarts += attempt > 1

    def ended(self, phase: str, reason: str) -> None:
        """Count an end."""
        self.ends[phase, reason if reason in REASONS else "other"] += 1


@dataclass(frozen=True)
class ActionExecutor:
    """Executes actions, and updates the index with the answers, ahead of the watches."""

    cluster: Cluster
    index: Index
    settings: OperatorSettings
    clock: Clock
    log: Log
    counts: SessionCounts = field(default_factory=SessionCounts)
    helpers: HelperCache = field(default_factory=HelperCache)

    async def execute(self, state: ObservedState, action: Action) -> None:
        """Execute one action.

        Raises:
            ClusterUnavailable, ClusterRefused, NameTaken, ResourceGone: As `Cluster` does.
            WriterOutdated: Another writer has taken over the status.
            SettingsError: The content key cannot be read.
            SpecRefused: The spec cannot be run.
        """
        resource, key = state.resource, state.resource.key
        match action:
            case Refresh():
                await self._refresh(key)
            case ReadEvents():
                await self._read_events(key, action)
            case AddFinalizer() | RemoveFinalizer():
                await self._finalizer(
                    resource, present=isinstance(action, AddFinalizer)
                )
                if isinstance(action, RemoveFinalizer) and state.phase.terminal:
                    reason = str(state.status.get("reason") or "")
                    self.counts.ended(state.phase.value, reason)
            case CreateJob():
                await self._create(state, action)
            case SuspendJob():
                job = await self.cluster.suspend_job(key[0], action.name)
                self._update_job(key, action.name, job)
            case DeleteJob():
                await self.cluster.delete_job(resource.namespace, action.name)
                self.index.drop(key, "job", action.name)
            case ExpireJob():
                seconds = math.ceil(self.settings.job_ttl)
                job = await self.cluster.expire_job(key[0], action.name, seconds)
                self._update_job(key, action.name, job)
            case WriteStatus():
                await self._write(resource, action)
            case Event():
                await self._record_event(resource, action)
        self.log.debug("done", session="/".join(key), action=type(action).__name__)

    async def _refresh(self, key: Key) -> None:
        """Read all objects of a session as they were at one time.

        No write to the resource may fall between the reads. Else a status can name a Job that another operator
        created after the Jobs were read, and the attempt seems to be lost; or a pod has ended, and the
        status that its runner wrote before is not seen.

        Raises ClusterUnavailable if the resource changes with every read.
        """
        before = self.index.snapshot(key)
        version = before.get(key, {}).get(("session", ""))
        for _ in range(_READS):
            pods = await self.cluster.list_pods(*key)
            jobs = await self.cluster.list_jobs(*key)
            body = await self.cluster.get_session(*key)
            now = str(body["metadata"].get("resourceVersion"))
            if now == version:
                break
            version = now
        else:
            raise ClusterUnavailable("the session changes while it is read")
        self.index.apply_list(before, {"session": [body], "job": jobs, "pod": pods})

    async def _read_events(self, key: Key, action: ReadEvents) -> None:
        """Read the events of an object. A failure is logged and stops nothing: events only help people."""
        try:
            found = await self.cluster.list_events(key[0], action.kind, action.name)
        except (ClusterRefused, ClusterUnavailable, ResourceGone) as error:
            self.log.warning("events cannot be read", error=error.one_line())
            found = []
        meta = (self._body(key) or {}).get("metadata") or {}
        text = words_of(found, str(meta.get("creationTimestamp") or ""))
        words = EventWords(action.kind, action.name, text, self.clock.now())
        self.index.put_words(key, words)

    async def _finalizer(self, resource: SessionResource, *, present: bool) -> None:
        namespace, name = resource.key
        body = await self.cluster.set_finalizer(
            namespace,
            name,
            resource.uid,
            present=present,
            seen=self._body(resource.key),
            give_up_after=_WRITE_TIMEOUT,
        )
        self.index.put_session(body)

    def _update_job(self, key: Key, name: str, body: Json | None) -> None:
        """Store the current version of a Job, or drop it if it is gone (None)."""
        if body is None:
            self.index.drop(key, "job", name)
        else:
            self.index.put_job(body)

    async def _write(self, resource: SessionResource, write: WriteStatus) -> None:
        writer = Writer(resource.uid, resource.generation, write.attempt)
        now = self.clock.now()

        def propose(body: Json) -> Json | None:
            if phase_of(body).terminal:
                # The runner may have ended the session meanwhile: only its conditions may be completed.
                inconsistent = inconsistent_conditions(body.get("status") or {})
                return merged(body, writer, {}, (), now) if inconsistent else None
            return merged(body, writer, write.changes, write.conditions, now)

        body = await self.cluster.write_status(
            *resource.key,
            propose,
            seen=self._body(resource.key),
            give_up_after=_WRITE_TIMEOUT,
        )
        self.index.put_session(body)

    def _body(self, key: Key) -> Json | None:
        known = self.index.get(key)
        return known.body if known is not None else None

    async def _record_event(self, resource: SessionResource, event: Event) -> None:
        """Record an event. A failure is logged and stops nothing: events only help people."""
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

    async def _create(self, state: ObservedState, action: CreateJob) -> None:
        resource = state.resource
        other = await self._resumed(resource, needed=action.attempt == 1)
        manifest = job(
            resource,
            self.settings,
            attempt=action.attempt,
            timeout=action.timeout,
            resume_from=other,
        )
        await self._create_helpers(state, action, other)
        if await self._create_job(resource, manifest):
            self.index.put_job(manifest)
            self.counts.started(action.attempt)
        else:  # it exists, perhaps from another operator: read its current version
            name = manifest["metadata"]["name"]
            found = await self.cluster.get_job(resource.namespace, name)
            if found is not None:
                self.index.put_job(found)

    async def _create_helpers(
        self, state: ObservedState, action: CreateJob, other: SessionResource | None
    ) -> None:
        """Create the objects beside the Job, unless they are known to exist."""
        resource, now = state.resource, self.clock.monotonic()
        if self.helpers.are_present(state, action, now):
            return
        self.helpers.forget(resource.uid)
        token = self._token(resource, other)
        for one in objects(resource, self.settings, token):
            await self.cluster.create(one)
        self.helpers.record(resource.uid, now)

    async def _create_job(self, resource: SessionResource, manifest: Json) -> bool:
        try:
            return await self.cluster.create(manifest)
        except ResourceGone:  # the namespace is gone
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
        """Return the session that `spec.resumeFrom` names. Only the first attempt needs it: later ones have its content."""
        name = resource.spec.resume_from
        if name is None:
            return None
        try:
            body = await self.cluster.get_session(resource.namespace, name)
        except ResourceGone:
            if not needed:
                return None
            raise SpecRefused(
                f"session {name} does not exist",
                path="spec.resumeFrom",
                hint="name a session of this namespace that still exists",
            ) from None
        if needed and not phase_of(body).terminal:
            # Otherwise two sessions would share one conversation and push to one branch.
            raise OriginNotEnded(
                f"session {name} is still running",
                path="spec.resumeFrom",
                hint=f"this session starts when it has ended; set spec.stop of {name} to end it",
            )
        return observe(body).resource

    def _token(
        self, resource: SessionResource, other: SessionResource | None
    ) -> str | None:
        """Return a token for the session's folder. The key file is read each time, because keys rotate."""
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
    """Return how long a session's token is valid.

    Its secret is created once, before the first attempt. So the token covers the timeout of the largest number of
    attempts that there can be, and the waits between them.
    """
    attempts = MAX_RESTARTS + 1
    return timedelta(seconds=resource.spec.timeout * attempts) + _TOKEN_MARGIN


def _field_of_spec(resource: SessionResource, error: ClusterRefused) -> str | None:
    """Return the field of the spec that made the API server refuse the Job; None if it is another reason."""
    if error.status != 422:
        return None
    spec = resource.spec
    if spec.resources.manifest and any(".resources" in name for name in error.fields):
        return "spec.resources"
    if spec.environment.secrets and any(".envFrom[" in name for name in error.fields):
        return "spec.environment.secrets"
    return None


def may_be_transient(error: MidwatchError) -> bool:
    """Return whether a refusal may go away: an API server that has just started knows no roles yet."""
    if not isinstance(error, ClusterRefused) or error.status not in (401, 403):
        return False
    return not any(words in error.message for words in _POLICY_REFUSALS)


def reason_of_refusal(error: MidwatchError) -> str:
    """Return the condition's reason for an error that keeps a session from starting."""
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


ROUNDS = 10
"""Plans in a row for one session. Four are usual; after the limit the session goes back into the queue."""
Failure = Literal["outdated", "temporary", "permanent", "unexpected"]
FAILURES: tuple[Failure, ...] = get_args(Failure)
TRANSIENT_LIMIT = 3
"""Failures in a row (about 15 seconds) after which a refusal that may go away is written to the status."""


class ReconcileWorker:
    """Reconciles sessions from the queue, one at a time: plan, execute, and plan again until no action is left.

    Several `run` tasks may share one worker. `failures` counts failed reconciliations by kind.
    """

    def __init__(self, executor: ActionExecutor, queue: Queue) -> None:
        self._executor = executor
        self._queue = queue
        self._log = executor.log
        self.failures = Counter[str]()

    async def run(self) -> None:
        """Take sessions from the queue and reconcile them until cancelled."""
        while True:
            key = await self._queue.take()
            try:
                await self._reconcile_safely(key)
            finally:
                self._queue.done(key)

    async def _reconcile_safely(self, key: Key) -> None:
        session = "/".join(key)
        try:
            await self.reconcile(key)
        except ResourceGone as error:
            self._executor.index.drop(key, "session")
            self._queue.forget(key)
            self._log.info("gone", session=session, reason=error.message)
        except WriterOutdated as error:
            self._log.info("outdated", session=session, reason=error.message)
            self._failed("outdated", key)
        except OriginNotEnded as error:  # not a failure: it waits for another session
            wait = self._queue.retry(key)
            self._log.info("waiting", session=session, reason=error.message, wait=wait)
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
        except Exception:  # the outermost guard: one session stops no other
            wait = self._failed("unexpected", key)
            self._log.exception("failed", session=session, wait=wait)

    def _failed(self, kind: Failure, key: Key, at_least: float = 0.0) -> float:
        self.failures[kind] += 1
        return self._queue.retry(key, at_least)

    async def reconcile(self, key: Key) -> None:
        """Plan and execute until no action is left. Raises every error that stopped an action."""
        done: set[type[Action]] = set()
        fresh = False
        for _ in range(ROUNDS):
            state = self._observe(key, done, fresh)
            if state is None:
                self._queue.forget(key)
                return
            next_plan = plan(state, self._executor.settings, self._executor.clock.now())
            if not next_plan.actions:
                return self._settled(key, next_plan)
            await self._execute(state, next_plan)
            done |= {type(action) for action in next_plan.actions}
            # Other actions take time, in which another operator or a watch changes a part of the state.
            fresh = isinstance(next_plan.actions[-1], Refresh)
        raise TemporaryError(f"the session does not settle within {ROUNDS} plans")

    def _observe(
        self, key: Key, done: set[type[Action]], fresh: bool
    ) -> ObservedState | None:
        """Return the session's cached state; `fresh` if it was just read. The actions done show how current it is."""
        known = self._executor.index.get(key)
        if known is None:
            return None
        # Both return the current resource. The first attempt's Job cannot be created twice: its name is taken.
        current = Refresh in done or AddFinalizer in done
        return known.observe(fresh=fresh, current=current)

    def _settled(self, key: Key, last: Plan) -> None:
        self._queue.forget(key)
        if last.done:
            self._executor.index.drop(key, "session")
        elif last.recheck_in is not None:
            self._queue.add_around(key, max(0.05, last.recheck_in))

    async def _execute(self, state: ObservedState, next_plan: Plan) -> None:
        for action in next_plan.actions:
            try:
                await self._executor.execute(state, action)
            except (ResourceGone, WriterOutdated):
                raise
            except SpecImpossible as error:
                return await self._end(state, error)
            except PermanentError as error:
                await self._refuse(state, error)
                raise

    async def _end(self, state: ObservedState, error: SpecImpossible) -> None:
        """End a session that can never start: retrying would not help."""
        for action in impossible(state, reason_of_refusal(error), error.one_line()):
            await self._executor.execute(state, action)

    async def _refuse(self, state: ObservedState, error: MidwatchError) -> None:
        """Write to the status why the session does not start, unless the refusal may still go away."""
        if (
            may_be_transient(error)
            and self._queue.failures(state.resource.key) < TRANSIENT_LIMIT
        ):
            return
        for action in refusal(state, reason_of_refusal(error), error.one_line()):
            try:
                await self._executor.execute(state, action)
            except (PermanentError, TemporaryError) as also:
                self._log.warning(
                    "the refusal was not written to the status", error=also.one_line()
                )
                return
