"""The observed state of a session, and the health of its current attempt. Pure.

`JobView` and `PodView` hold the few fields that a plan needs, because the operator caches all Jobs and
pods. `ObservedState` combines a resource with its Jobs and pods; `attempt_health` says how an attempt is doing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from midwatch.kube.environment import BAD_ENVIRONMENT, POD_ENDED, STATUS_NOT_WRITTEN
from midwatch.kube.errors import SpecRefused
from midwatch.kube.resource import SessionResource, Spec, read_resource, resource_with
from midwatch.kube.rules import (
    ATTEMPT_LABEL,
    CONTAINER,
    FINALIZER,
    MAX_SECONDS,
    SESSION_LABEL,
    UID_LABEL,
)
from midwatch.kube.status import phase_of
from midwatch.model import Json
from midwatch.redaction import Redactor
from midwatch.session.events import Phase
from midwatch.settings import OperatorSettings

MAX_TEXT = 500
"""Characters kept of each message of the cluster."""
_OUTCOMES, _TARGETS = ("Complete", "Failed"), ("SuccessCriteriaMet", "FailureTarget")
"""Condition types: how a Job ended, and how it is about to end."""
_COUNTS = ("active", "ready", "terminating", "succeeded", "failed")
_REDACTOR = Redactor()


@dataclass(frozen=True, slots=True)
class JobView:
    """The fields of a Job that a plan needs.

    Attributes:
        uid: The session's uid, not the Job's.
        begun_at: When the Job controller began to create its pod; None before that.
        had_pod: Whether its status counts a pod.
        expires: Whether Kubernetes deletes it some time after its end (`ttlSecondsAfterFinished`).
        target: SuccessCriteriaMet or FailureTarget once Kubernetes has decided how the Job ends. The outcome
            follows, up to seconds after the last pod is gone.
        outcome: Complete or Failed once it is over; `reason` and `message` explain it.
    """

    namespace: str
    session: str
    name: str
    uid: str
    attempt: int
    version: str = ""
    created_at: datetime | None = None
    begun_at: datetime | None = None
    suspended: bool = False
    suspended_at: datetime | None = None
    deleting: bool = False
    had_pod: bool = False
    expires: bool = False
    target: str = ""
    outcome: str = ""
    reason: str = ""
    message: str = ""

    @property
    def over(self) -> bool:
        """Whether the Job has ended."""
        return bool(self.outcome)

    @property
    def ending(self) -> bool:
        """Whether the Job has ended or is about to: no further pod starts, and running pods are terminated."""
        return bool(self.outcome or self.target)


@dataclass(frozen=True, slots=True)
class PodView:
    """The fields of a pod and of its one container that `attempt_health` needs.

    Attributes:
        delete_at: Set while the pod is being deleted: when it should be gone.
        waiting: The kubelet's reason why the container does not run yet.
        exit_reason: The kubelet's reason why the container ended.
        disrupted: The reason of the condition DisruptionTarget: why the cluster removed the pod.
    """

    namespace: str
    session: str
    name: str
    uid: str
    attempt: int
    version: str = ""
    created_at: datetime | None = None
    delete_at: datetime | None = None
    phase: str = ""
    reason: str = ""
    message: str = ""
    scheduled_at: datetime | None = None
    unschedulable_at: datetime | None = None
    waiting: str = ""
    waiting_message: str = ""
    exit_code: int | None = None
    exit_reason: str = ""
    exit_message: str = ""
    ended_at: datetime | None = None
    disrupted: str = ""

    @property
    def over(self) -> bool:
        """Whether the pod has ended."""
        return self.phase in ("Succeeded", "Failed")


def read_job(body: Mapping[str, Any]) -> JobView:
    """Return the view of a Job, as the API server returned it or as it was sent."""
    meta, spec, status = _parts(body)
    conditions = _conditions(status)
    outcome = next((type_ for type_ in _OUTCOMES if type_ in conditions), "")
    target = next((type_ for type_ in _TARGETS if type_ in conditions), "")
    why = conditions.get(outcome or target, {})
    return JobView(
        **_identity(meta),
        created_at=_time(meta.get("creationTimestamp")),
        begun_at=_time(status.get("startTime")),
        suspended=bool(spec.get("suspend")),
        suspended_at=_time(conditions.get("Suspended", {}).get("lastTransitionTime")),
        deleting=bool(meta.get("deletionTimestamp")),
        expires=spec.get("ttlSecondsAfterFinished") is not None,
        had_pod=any(status.get(count) for count in _COUNTS) or _uncounted(status),
        target=target,
        outcome=outcome,
        reason=_text(why.get("reason")),
        message=_text(why.get("message")),
    )


def read_pod(body: Mapping[str, Any]) -> PodView:
    """Return the view of a pod, as the API server returned it."""
    meta, _, status = _parts(body)
    conditions = _conditions(status)
    scheduled = _any_condition(status, "PodScheduled")
    placed = scheduled.get("status") == "True"
    since = _time(scheduled.get("lastTransitionTime"))
    stuck = scheduled.get("reason") in ("Unschedulable", "SchedulingGated")
    state = _state(status)
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or {}
    return PodView(
        **_identity(meta),
        created_at=_time(meta.get("creationTimestamp")),
        delete_at=_time(meta.get("deletionTimestamp")),
        phase=_text(status.get("phase")),
        reason=_text(status.get("reason")),
        message=_text(status.get("message") or scheduled.get("message")),
        scheduled_at=since if placed else None,
        unschedulable_at=since if stuck and not placed else None,
        waiting=_text(waiting.get("reason")),
        waiting_message=_text(waiting.get("message")),
        exit_code=_number(ended.get("exitCode")),
        exit_reason=_text(ended.get("reason")),
        exit_message=_text(ended.get("message")),
        ended_at=_time(ended.get("finishedAt")),
        disrupted=_text(conditions.get("DisruptionTarget", {}).get("reason")),
    )


def is_not_older(old: str, new: str) -> bool:
    """Return whether the resource version `new` is the same as `old` or newer."""
    if old.isdigit() and new.isdigit():
        return int(new) >= int(old)
    return True


# ------------------------------------------------------------------ reading


def _parts(
    body: Mapping[str, Any],
) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
    return body.get("metadata") or {}, body.get("spec") or {}, body.get("status") or {}


def _identity(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names of an object. They are not redacted: the object is found by them."""
    labels = meta.get("labels") or {}
    return {
        "namespace": meta.get("namespace") or "default",
        "session": str(labels.get(SESSION_LABEL) or ""),
        "name": str(meta.get("name") or ""),
        "uid": str(labels.get(UID_LABEL) or ""),
        "attempt": _attempt(labels.get(ATTEMPT_LABEL)),
        "version": str(meta.get("resourceVersion") or ""),
    }


def _uncounted(status: Mapping[str, Any]) -> bool:
    """Return whether pods have ended that the Job's counts do not include yet."""
    return any((status.get("uncountedTerminatedPods") or {}).values())


def _attempt(label: Any) -> int:
    text = str(label)
    return int(text) if text.isdecimal() and len(text) < 6 else 0


def _any_condition(status: Mapping[str, Any], type_: str) -> Mapping[str, Any]:
    return next((c for c in _list_conditions(status) if c.get("type") == type_), {})


def _conditions(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the true conditions by type."""
    return {
        str(c.get("type")): c
        for c in _list_conditions(status)
        if c.get("status") == "True"
    }


def _list_conditions(status: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return (c for c in status.get("conditions") or () if isinstance(c, Mapping))


def _state(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of the session's container."""
    for one in status.get("containerStatuses") or ():
        if one.get("name") == CONTAINER:
            return one.get("state") or {}
    return {}


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) and text else None


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _text(value: Any) -> str:
    """Return a text short, on one line and redacted: the address of an image may contain a secret."""
    text = " ".join(str(value or "").split())
    return _REDACTOR.text(text[: 4 * MAX_TEXT])[:MAX_TEXT] if text else ""


# ------------------------------------------------------------------ the state


@dataclass(frozen=True)
class ObservedState:
    """Everything that a plan is made from: a resource, its Jobs and its pods at one moment.

    Attributes:
        has_finalizer: Whether the resource has the operator's finalizer.
        refused: Why the spec cannot be read. `resource` then has a harmless spec, so that a running Job is
            still managed.
        fresh: Whether everything was read for this plan, not taken from the cache.
        current: Whether the resource itself is up to date.
    """

    resource: SessionResource
    has_finalizer: bool
    deleted_at: datetime | None = None
    refused: SpecRefused | None = None
    jobs: tuple[JobView, ...] = ()
    pods: tuple[PodView, ...] = ()
    fresh: bool = False
    current: bool = False

    @property
    def status(self) -> Json:
        return self.resource.status

    @property
    def phase(self) -> Phase:
        return phase_of({"status": self.status})

    @cached_property
    def attempt(self) -> int:
        """The latest attempt; 0 before the first. The Job is created before the status is written."""
        recorded = self.status.get("attempt")
        attempts = [job.attempt for job in self.jobs]
        return max([recorded if isinstance(recorded, int) else 0, *attempts])

    @property
    def job(self) -> JobView | None:
        """The Job of the latest attempt."""
        return next((job for job in self.jobs if job.attempt == self.attempt), None)

    @property
    def current_pods(self) -> tuple[PodView, ...]:
        return tuple(pod for pod in self.pods if pod.attempt == self.attempt)

    @property
    def live_pods(self) -> tuple[PodView, ...]:
        return tuple(pod for pod in self.pods if not pod.over)

    def time(self, name: str) -> datetime | None:
        """Return a time in the status; None without one."""
        text = self.status.get(name)
        return datetime.fromisoformat(text) if isinstance(text, str) and text else None

    def since(self, type_: str, reason: str) -> datetime | None:
        """Return since when the resource has a condition with this reason; None without one."""
        for one in self.status.get("conditions") or ():
            if (one.get("type"), one.get("reason")) == (type_, reason):
                return datetime.fromisoformat(one["lastTransitionTime"])
        return None

    def has_condition(self, type_: str, status: str, reason: str, message: str) -> bool:
        """Return whether the resource has exactly this condition."""
        return any(
            (one.get("type"), one.get("status"), one.get("reason"), one.get("message"))
            == (type_, status, reason, message)
            for one in self.status.get("conditions") or ()
        )


def observe(
    body: Mapping[str, Any],
    jobs: Iterable[JobView] = (),
    pods: Iterable[PodView] = (),
    *,
    fresh: bool = False,
    current: bool = False,
) -> ObservedState:
    """Return the observed state of a resource, without Jobs and pods of an earlier resource of the same name."""
    meta = body.get("metadata") or {}
    refused: SpecRefused | None = None
    try:
        resource = read_resource(body)
    except SpecRefused as error:
        refused, resource = error, _without_spec(body)
    deleted = meta.get("deletionTimestamp")
    return ObservedState(
        resource=resource,
        has_finalizer=FINALIZER in (meta.get("finalizers") or ()),
        deleted_at=datetime.fromisoformat(deleted) if deleted else None,
        refused=refused,
        jobs=tuple(job for job in jobs if job.uid == resource.uid),
        pods=tuple(pod for pod in pods if pod.uid == resource.uid),
        fresh=fresh,
        current=fresh or current,
    )


def _without_spec(body: Mapping[str, Any]) -> SessionResource:
    """Return a resource whose spec was refused, with what is needed to manage and to stop it."""
    stop = (body.get("spec") or {}).get("stop") is True
    # The largest limits, because its own cannot be read.
    spec = Spec.model_construct(
        repos=(), timeout=MAX_SECONDS, idle_timeout=MAX_SECONDS, stop=stop
    )
    return resource_with(spec, body)


# ------------------------------------------------------------------ the health of an attempt

Outcome = Literal["fine", "waiting", "lost", "failed"]
"""`waiting`: delayed, and worth a warning; `lost`: another attempt may succeed; `failed`: no attempt would."""


@dataclass(frozen=True, slots=True)
class AttemptHealth:
    """How an attempt is doing. `recheck_in`: seconds until that may change without an event; None: only an event changes it."""

    outcome: Outcome
    reason: str = ""
    message: str = ""
    recheck_in: float | None = None


FINE = AttemptHealth("fine")
_PULL_REASONS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
}
_START_REASONS = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
}
TRANSIENT_REASONS = frozenset(
    {"ImagePull", "Unschedulable", "JobNotBegun", *_START_REASONS}
)
"""Reasons of `waiting`, which may go away."""
_SILENT_DURING_GRACE = {"NoPod", "NodeLost", "JobNotBegun"}
"""Reasons that are not reported during their grace period."""
_JOB_START_GRACE = 60.0
"""Seconds that the Job controller gets to start on a new Job before it is reported as late."""
_KILL_SIGNALS = {137: "SIGKILL", POD_ENDED: "SIGTERM"}


def attempt_health(
    job: JobView | None,
    pods: Sequence[PodView],
    settings: OperatorSettings,
    now: datetime,
) -> AttemptHealth:
    """Return the health of an attempt, from its Job (None: it is gone) and its pods.

    Only for sessions that have not ended: a terminal phase in the status overrides it.
    """
    pod = _newest(pods)
    if job is None:
        gone = AttemptHealth("lost", "JobDeleted", "its Job was deleted")
        return gone if pod is None or not pod.over else _health_of_ended_pod(pod)
    if job.reason == "DeadlineExceeded":  # how its pod ends follows from it
        return AttemptHealth(
            "failed",
            "DeadlineExceeded",
            "it exceeded spec.timeout and did not end by itself (raise spec.timeout)",
        )
    if pod is not None and (health := _health_of_pod(pod, settings, now)) is not FINE:
        return health
    if job.over:
        return _health_of_ended_job(job, pod)
    return _health_of_job(job, pod, settings, now)


def _newest(pods: Sequence[PodView]) -> PodView | None:
    return max(
        pods, key=lambda pod: (str(pod.created_at or ""), pod.name), default=None
    )


# ------------------------------------------------------------------ the Job


def _health_of_ended_job(job: JobView, pod: PodView | None) -> AttemptHealth:
    if job.outcome == "Complete":
        return _outcome_unknown(f"its Job {job.name} completed but its runner")
    if pod is None or job.reason in ("BackoffLimitExceeded", ""):
        return AttemptHealth(
            "lost", "PodGone", "its pod was deleted, or lost with its node"
        )
    return AttemptHealth("failed", job.reason, f"its Job failed: {job.message}")


def _health_of_job(
    job: JobView, pod: PodView | None, settings: OperatorSettings, now: datetime
) -> AttemptHealth:
    # The Job is ending or had a pod: Kubernetes is between two steps.
    if pod is not None or job.ending or job.had_pod:
        return FINE
    # The condition stays until the controller has noticed that the Job is resumed.
    if job.suspended or job.suspended_at is not None:
        return FINE
    if job.begun_at is None:
        text = "the Job controller has not started it (kube-controller-manager may be down or overloaded)"
        late = AttemptHealth("waiting", "JobNotBegun", text)
        return _after_grace(_JOB_START_GRACE, job.created_at, now, late)
    return _after_grace(
        settings.unschedulable_grace,
        job.begun_at,
        now,
        AttemptHealth(
            "failed",
            "NoPod",
            f"no pod was created (a quota or an admission rule may refuse it: see `kubectl describe job {job.name}`)",
        ),
    )


# ------------------------------------------------------------------ the pod


def _health_of_pod(
    pod: PodView, settings: OperatorSettings, now: datetime
) -> AttemptHealth:
    if pod.over or pod.exit_code is not None:
        return _health_of_ended_pod(pod)
    if pod.delete_at is not None:
        overdue = AttemptHealth("lost", "NodeLost", "its node does not respond")
        return _after_grace(settings.deadline_margin, pod.delete_at, now, overdue)
    if pod.waiting:
        return _health_of_waiting(pod, settings, now)
    if pod.unschedulable_at is not None:
        return _after_grace(
            settings.unschedulable_grace,
            pod.unschedulable_at,
            now,
            AttemptHealth(
                "failed",
                "Unschedulable",
                f"no node can run it: {pod.message} (lower spec.resources, or add nodes)",
            ),
        )
    return FINE


def _health_of_waiting(
    pod: PodView, settings: OperatorSettings, now: datetime
) -> AttemptHealth:
    text = pod.waiting_message or pod.waiting
    since = pod.scheduled_at or pod.created_at
    if pod.waiting == "InvalidImageName":
        hint = "correct operator.image"
        return AttemptHealth("failed", "InvalidImageName", f"{text} ({hint})")
    if pod.waiting in _PULL_REASONS:
        hint = "check operator.image, the registry and operator.image_pull_secrets"
        failed = AttemptHealth("failed", "ImagePull", f"{text} ({hint})")
        return _after_grace(settings.image_pull_grace, since, now, failed)
    if pod.waiting in _START_REASONS:
        hint = "create the missing object in the session's namespace"
        failed = AttemptHealth("failed", pod.waiting, f"{text} ({hint})")
        return _after_grace(settings.image_pull_grace, since, now, failed)
    return FINE


def _health_of_ended_pod(pod: PodView) -> AttemptHealth:
    if pod.exit_reason == "OOMKilled":
        return AttemptHealth(
            "failed",
            "OutOfMemory",
            "it exceeded its memory limit (raise spec.resources.limits.memory)",
        )
    if pod.disrupted or pod.reason:
        why = pod.reason or pod.disrupted
        return _with_pod_message(
            pod, AttemptHealth("lost", why, f"its pod was removed: {why}")
        )
    if pod.exit_code in _KILL_SIGNALS:
        how = _KILL_SIGNALS[pod.exit_code]
        return AttemptHealth("lost", "Killed", f"its pod was terminated by {how}")
    if pod.delete_at is not None and pod.exit_code != 0:
        return AttemptHealth("lost", "PodDeleted", "its pod was deleted")
    return _health_of_exit(pod)


def _health_of_exit(pod: PodView) -> AttemptHealth:
    if pod.exit_code in (0, STATUS_NOT_WRITTEN):
        return _outcome_unknown("its runner ended and")
    if pod.exit_code is None:
        return AttemptHealth("lost", "PodFailed", "its pod failed before it started")
    text = f": {pod.exit_message}" if pod.exit_message else ""
    hint = f"see `kubectl logs {pod.name}`"
    if pod.exit_code == BAD_ENVIRONMENT:
        what = f"its runner refused its environment{text}"
        return AttemptHealth("failed", "BadEnvironment", f"{what} ({hint})")
    what = f"its runner ended with exit code {pod.exit_code} without reporting an outcome{text}"
    return AttemptHealth("failed", "ExitCode", f"{what} ({hint})")


def _outcome_unknown(what: str) -> AttemptHealth:
    hint = "see the log of its pod and its workspace; continue it with resumeFrom"
    return AttemptHealth(
        "failed", "OutcomeUnknown", f"{what} did not report its outcome ({hint})"
    )


def _with_pod_message(pod: PodView, health: AttemptHealth) -> AttemptHealth:
    """Add the message of the pod, if it has one."""
    if not pod.message:
        return health
    return AttemptHealth(
        health.outcome, health.reason, f"{health.message}: {pod.message}"
    )


def _after_grace(
    grace: float, since: datetime | None, now: datetime, health: AttemptHealth
) -> AttemptHealth:
    """Return `health` after the grace period in seconds; until then `waiting` or `fine`, with the rest as `recheck_in`."""
    left = grace - (now - since).total_seconds() if since is not None else grace
    if left <= 0:
        return health
    outcome: Outcome = "fine" if health.reason in _SILENT_DURING_GRACE else "waiting"
    return AttemptHealth(outcome, health.reason, health.message, recheck_in=left)
