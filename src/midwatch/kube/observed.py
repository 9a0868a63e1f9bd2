"""The observed state of a session, and the health of its current attempt. Pure.

`ObservedState` combines a resource with its Jobs and pods; `attempt_health` says how an attempt is doing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from midwatch._moved import renamed
from midwatch.kube.environment import BAD_ENVIRONMENT, POD_ENDED, STATUS_NOT_WRITTEN
from midwatch.kube.errors import SpecRefused
from midwatch.kube.resource import SessionResource, Spec, read_resource, resource_with
from midwatch.kube.rules import FINALIZER, MAX_SECONDS, claim_name
from midwatch.kube.status import phase_of
from midwatch.kube.views import (
    NOT_STARTED,
    EventWords,
    JobView,
    PodView,
    is_not_older,
    read_job,
    read_pod,
)
from midwatch.model import Json
from midwatch.session.events import Phase
from midwatch.settings import OperatorSettings

__all__ = ["JobView", "PodView", "is_not_older", "read_job", "read_pod"]


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
        words: What the events reported when they were last read.
    """

    resource: SessionResource
    has_finalizer: bool
    deleted_at: datetime | None = None
    refused: SpecRefused | None = None
    jobs: tuple[JobView, ...] = ()
    pods: tuple[PodView, ...] = ()
    fresh: bool = False
    current: bool = False
    words: EventWords | None = None

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

    @property
    def ran(self) -> bool:
        """Whether the runner of the latest attempt has reported: it names its pod, and alone writes Running."""
        started = self.status.get("podName") is not None or self.phase is Phase.RUNNING
        return started and self.status.get("attempt") == self.attempt

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
    words: EventWords | None = None,
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
        words=words,
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
    """How an attempt is doing.

    Attributes:
        recheck_in: Seconds until that may change without an event; None: only an event changes it.
        about: Kind and name of the object whose events explain it.
        since: Since when it is so.
    """

    outcome: Outcome
    reason: str = ""
    message: str = ""
    recheck_in: float | None = None
    about: tuple[str, str] | None = None
    since: datetime | None = None

    def explained(self, words: EventWords | None) -> AttemptHealth:
        """Return the same with the words of the events of the object that it is about, if there are any."""
        if words is None or (words.kind, words.name) != self.about or not words.text:
            return self
        if words.text in self.message:
            return self
        return replace(self, message=f"{self.message}: {words.text}")


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
    {"ImagePull", "Unschedulable", "SchedulingGated", "NotScheduled", "PodNotStarted"}
    | {"JobNotBegun", "NoPod", *_START_REASONS}
)
"""Reasons of `waiting`, which may go away."""
_JOB_START_GRACE = 60.0
"""Seconds that the Job controller gets to start on a new Job before it is reported as late."""
_START_GRACE = 45.0
"""Seconds that each further step gets before it is reported as late: a pod, a node for it, the start of its container."""
_KILL_SIGNALS = {137: "SIGKILL", POD_ENDED: "SIGTERM"}


def attempt_health(
    job: JobView | None,
    pods: Sequence[PodView],
    settings: OperatorSettings,
    now: datetime,
    *,
    ran: bool = False,
    last_known: str = "",
) -> AttemptHealth:
    """Return the health of an attempt, from its Job (None: it is gone) and its pods.

    Only for sessions that have not ended: a terminal phase in the status overrides it.

    Args:
        job: Its Job.
        pods: Its pods.
        settings: The operator's settings.
        now: The time.
        ran: Whether its runner has reported.
        last_known: Why it was waiting, as last reported.
    """
    pod = _newest(pods)
    if job is None:
        gone = AttemptHealth("lost", "JobDeleted", "its Job was deleted")
        return gone if pod is None or not pod.over else _health_of_ended_pod(pod)
    if job.reason == "DeadlineExceeded":  # how its pod ends follows from it
        if ran or (pod is not None and pod.has_run):
            text = "it exceeded spec.timeout and did not end by itself (raise spec.timeout)"
            return AttemptHealth("failed", "DeadlineExceeded", text)
        return _never_started(last_known or (pod.obstacle if pod else ""))
    if pod is not None and (health := _health_of_pod(pod, settings, now)) is not FINE:
        return health
    if job.over:
        return _health_of_ended_job(job, pod)
    return _health_of_job(job, pod, settings, now)


def _never_started(why: str) -> AttemptHealth:
    text = "it never started, and its Job's deadline is over"
    return AttemptHealth("failed", "NeverStarted", f"{text}: {why}" if why else text)


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
        return _quiet_at_first(_JOB_START_GRACE, job.created_at, now, late)
    about = ("Job", job.name)
    text = "no pod was created (a quota or an admission rule may refuse it)"
    missing = AttemptHealth("failed", "NoPod", text, about=about)
    late = _after_grace(settings.unschedulable_grace, job.begun_at, now, missing)
    return _quiet_at_first(_START_GRACE, job.begun_at, now, late)


# ------------------------------------------------------------------ the pod


def _health_of_pod(
    pod: PodView, settings: OperatorSettings, now: datetime
) -> AttemptHealth:
    if pod.over or pod.exit_code is not None:
        return _health_of_ended_pod(pod)
    if pod.delete_at is not None:
        overdue = AttemptHealth("lost", "NodeLost", "its node does not respond")
        return _after_grace(settings.deadline_margin, pod.delete_at, now, overdue)
    if pod.unschedulable_at is not None:
        refused = _unschedulable(pod)
        since = pod.unschedulable_at
        return _after_grace(settings.unschedulable_grace, since, now, refused)
    if pod.has_run:
        return FINE
    return _health_of_waiting(pod, settings, now)


def _unschedulable(pod: PodView) -> AttemptHealth:
    if pod.gates:
        gates, hint = ", ".join(pod.gates), "their controller has to remove them"
        text = f"{pod.message or 'scheduling is blocked'}: {gates} ({hint})"
        return AttemptHealth("failed", "SchedulingGated", text)
    if "persistentvolumeclaim" in pod.message.lower():
        hint = "check operator.storage_class and its provisioner"
        about = ("PersistentVolumeClaim", claim_name(pod.session))
    else:
        hint, about = "lower spec.resources, or add nodes", None
    text = f"no node can run it: {pod.message} ({hint})"
    return AttemptHealth("failed", "Unschedulable", text, about=about)


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
    reason, text = "PodNotStarted", "its container has not started"
    if pod.scheduled_at is None:
        reason, text = "NotScheduled", "no scheduler has looked for a node"
    if pod.obstacle:
        text = f"{text}: {pod.obstacle}"
    late = AttemptHealth("waiting", reason, text, about=("Pod", pod.name))
    return _quiet_at_first(_START_GRACE, since, now, late)


def _health_of_ended_pod(pod: PodView) -> AttemptHealth:
    if pod.exit_reason == "OOMKilled":
        return AttemptHealth(
            "failed",
            "OutOfMemory",
            "it exceeded its memory limit (raise spec.resources.limits.memory)",
        )
    if pod.exit_reason in NOT_STARTED:
        text = f"its container never started: {pod.exit_message or pod.exit_reason}"
        return AttemptHealth("lost", "StartError", text)
    if pod.disrupted or pod.reason:
        why = pod.reason or pod.disrupted
        when = "" if pod.has_run else " before its container started"
        text = f"its pod was removed{when}: {why}"
        return _with_pod_message(pod, AttemptHealth("lost", why, text))
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
        text = "its pod failed before its container started"
        why = f"{text}: {pod.obstacle}" if pod.obstacle else text
        return AttemptHealth("lost", "PodFailed", why)
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
    """Return `health` after the grace period in seconds; until then `waiting`, with the rest as `recheck_in`."""
    if (left := _left(grace, since, now)) <= 0:
        return replace(health, since=since)
    if health.reason == "NodeLost":  # a pod that ends in time is not late
        return AttemptHealth("fine", health.reason, health.message, recheck_in=left)
    return replace(health, outcome="waiting", recheck_in=left, since=since)


def _quiet_at_first(
    grace: float, since: datetime | None, now: datetime, health: AttemptHealth
) -> AttemptHealth:
    """Return `health` after the grace period in seconds, or if it is a failure; until then `fine`."""
    if health.outcome == "failed" or (left := _left(grace, since, now)) <= 0:
        return replace(health, since=since)
    next_change = min(left, health.recheck_in) if health.recheck_in else left
    return AttemptHealth("fine", health.reason, health.message, recheck_in=next_change)


def _left(grace: float, since: datetime | None, now: datetime) -> float:
    return grace - (now - since).total_seconds() if since is not None else grace


def __getattr__(name: str) -> object:
    return renamed(__name__, name)
