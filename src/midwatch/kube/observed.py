"""Jobs and pods as values: of each only what a verdict or a plan needs, since an operator keeps them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from midwatch.kube.environment import BAD_ENVIRONMENT, POD_ENDED, UNTOLD
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
"""Characters kept of what the cluster says."""
_OUTCOMES, _TARGETS = ("Complete", "Failed"), ("SuccessCriteriaMet", "FailureTarget")
"""Conditions: what a Job has become, and what it is about to become."""
_COUNTS = ("active", "ready", "terminating", "succeeded", "failed")
_REDACTOR = Redactor()


@dataclass(frozen=True, slots=True)
class JobView:
    """A Job. `outcome` is Complete or Failed once it is over; `reason` and `message` say why.

    `target` is FailureTarget or SuccessCriteriaMet: Kubernetes has decided how it ends, and why, and still
    counts its pods; the outcome follows, up to seconds after the last pod is gone. `begun_at`: since then the
    Job controller tries to make its pod; None before. `had_pod`: its status knows of a pod. `expires`:
    Kubernetes deletes it some time after its end.
    """

    namespace: str
    session: str
    name: str
    uid: str
    """The session's uid, not the Job's."""
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
        return bool(self.outcome)

    @property
    def ending(self) -> bool:
        """Over, or so good as over: no pod will be started any more, and those that run are ended."""
        return bool(self.outcome or self.target)


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod and its one container.

    `waiting` and `exit_reason` are the words of the kubelet; `disrupted` is why the cluster took the pod
    away, if it did; `delete_at`: it is being deleted, and should be gone by then.
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
        return self.phase in ("Succeeded", "Failed")


def read_job(body: Mapping[str, Any]) -> JobView:
    """A Job of a session, as the API server gives it or as it was sent there."""
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
    """A pod of a session, as the API server gives it."""
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


def later(old: str, new: str) -> bool:
    """Whether the resource version `new` does not come before `old`."""
    if old.isdigit() and new.isdigit():
        return int(new) >= int(old)
    return True


# ------------------------------------------------------------------ reading


def _parts(
    body: Mapping[str, Any],
) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
    return body.get("metadata") or {}, body.get("spec") or {}, body.get("status") or {}


def _identity(meta: Mapping[str, Any]) -> dict[str, Any]:
    """By which it is found again: names as they are, which a redactor must not touch."""
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
    """Whether pods have ended that the Job's counts do not have yet."""
    return any((status.get("uncountedTerminatedPods") or {}).values())


def _attempt(label: Any) -> int:
    text = str(label)
    return int(text) if text.isdecimal() and len(text) < 6 else 0


def _any_condition(status: Mapping[str, Any], type_: str) -> Mapping[str, Any]:
    return next((c for c in _listed(status) if c.get("type") == type_), {})


def _conditions(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The conditions that hold, by type."""
    return {str(c.get("type")): c for c in _listed(status) if c.get("status") == "True"}


def _listed(status: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return (c for c in status.get("conditions") or () if isinstance(c, Mapping))


def _state(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state of the session's container."""
    for one in status.get("containerStatuses") or ():
        if one.get("name") == CONTAINER:
            return one.get("state") or {}
    return {}


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) and text else None


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _text(value: Any) -> str:
    """Short, on one line, and without secrets: an image's address may hold one."""
    text = " ".join(str(value or "").split())
    return _REDACTOR.text(text[: 4 * MAX_TEXT])[:MAX_TEXT] if text else ""


# ------------------------------------------------------------ seen
# Everything a plan is made from: a resource, its Jobs and its pods, at one moment.


@dataclass(frozen=True)
class ObservedState:
    """`fresh`: read for this plan, not taken from what the watches told. `refused`: the spec cannot be
    read; `resource` has a harmless one in its place, so that a Job that runs is still followed.
    """

    resource: SessionResource
    held: bool
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
        """The latest; 0 before the first. A Job is made before the status tells of it."""
        told = self.status.get("attempt")
        attempts = [job.attempt for job in self.jobs]
        return max([told if isinstance(told, int) else 0, *attempts])

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
        """A time in the status."""
        text = self.status.get(name)
        return datetime.fromisoformat(text) if isinstance(text, str) and text else None

    def since(self, type_: str, reason: str) -> datetime | None:
        """Since when the resource has a condition with this reason; None if it has not."""
        for one in self.status.get("conditions") or ():
            if (one.get("type"), one.get("reason")) == (type_, reason):
                return datetime.fromisoformat(one["lastTransitionTime"])
        return None

    def told(self, type_: str, status: str, reason: str, message: str) -> bool:
        """Whether the resource has this very condition."""
        return any(
            (one.get("type"), one.get("status"), one.get("reason"), one.get("message"))
            == (type_, status, reason, message)
            for one in self.status.get("conditions") or ()
        )


def seen_of(
    body: Mapping[str, Any],
    jobs: Iterable[JobView] = (),
    pods: Iterable[PodView] = (),
    *,
    fresh: bool = False,
    current: bool = False,
) -> ObservedState:
    """What is seen of a resource. Jobs and pods of another resource of its name are left out."""
    meta = body.get("metadata") or {}
    refused: SpecRefused | None = None
    try:
        resource = read_resource(body)
    except SpecRefused as error:
        refused, resource = error, _unread(body)
    deleted = meta.get("deletionTimestamp")
    return ObservedState(
        resource=resource,
        held=FINALIZER in (meta.get("finalizers") or ()),
        deleted_at=datetime.fromisoformat(deleted) if deleted else None,
        refused=refused,
        jobs=tuple(job for job in jobs if job.uid == resource.uid),
        pods=tuple(pod for pod in pods if pod.uid == resource.uid),
        fresh=fresh,
        current=fresh or current,
    )


def _unread(body: Mapping[str, Any]) -> SessionResource:
    """A resource whose spec is refused, with as much of it as is needed to follow and to stop it."""
    stop = (body.get("spec") or {}).get("stop") is True
    # No limit, as its limits cannot be read.
    spec = Spec.model_construct(
        repos=(), timeout=MAX_SECONDS, idle_timeout=MAX_SECONDS, stop=stop
    )
    return resource_with(spec, body)


# ------------------------------------------------------------ verdict
# What became of an attempt, from its Job and its pods. Pure.

Outcome = Literal["fine", "waiting", "lost", "failed"]
"""`waiting`: it may still come about, which is worth telling; `lost`: another attempt may succeed; `failed`: none would."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`again`: seconds until the verdict may be another without anything having happened."""

    outcome: Outcome
    reason: str = ""
    message: str = ""
    again: float | None = None


FINE = Verdict("fine")
_PULL = {
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
}
_START = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
PASSING = frozenset({"ImagePull", "Unschedulable", "JobNotBegun", *_START})
"""Reasons of `waiting`, which may pass."""
_QUIET = {"NoPod", "NodeLost", "JobNotBegun"}
"""Nothing to tell as long as the grace lasts."""
_BEGINS = 60.0
"""Seconds within which the Job controller looks at a new Job, or is said to be late."""
_KILLED = {137: "SIGKILL", POD_ENDED: "SIGTERM"}


def judge(
    job: JobView | None,
    pods: Sequence[PodView],
    settings: OperatorSettings,
    now: datetime,
) -> Verdict:
    """The verdict on an attempt: its Job (None: it is gone) and its pods.

    Where the session's status has a terminal phase already, that is the truth, and this not asked.
    """
    pod = _newest(pods)
    if job is None:
        gone = Verdict("lost", "JobDeleted", "its Job was deleted")
        return gone if pod is None or not pod.over else _of_ended_pod(pod)
    if job.reason == "DeadlineExceeded":  # what its pod does now follows from it
        return Verdict(
            "failed",
            "DeadlineExceeded",
            "it ran past spec.timeout and did not end by itself; give it more time",
        )
    if pod is not None and (verdict := _of_pod(pod, settings, now)) is not FINE:
        return verdict
    if job.over:
        return _of_ended_job(job, pod)
    return _of_job(job, pod, settings, now)


def _newest(pods: Sequence[PodView]) -> PodView | None:
    return max(
        pods, key=lambda pod: (str(pod.created_at or ""), pod.name), default=None
    )


# ------------------------------------------------------------------ the Job


def _of_ended_job(job: JobView, pod: PodView | None) -> Verdict:
    if job.outcome == "Complete":
        return _untold(f"its Job {job.name} is complete, but")
    if pod is None or job.reason in ("BackoffLimitExceeded", ""):
        return Verdict("lost", "PodGone", "its pod was deleted, or went with its node")
    return Verdict("failed", job.reason, f"its Job failed: {job.message}")


def _of_job(
    job: JobView, pod: PodView | None, settings: OperatorSettings, now: datetime
) -> Verdict:
    # In a Job that ends, or has counted a pod, Kubernetes is between two of its steps.
    if pod is not None or job.ending or job.had_pod:
        return FINE
    # The condition outlives the field until the controller has seen that it may go on.
    if job.suspended or job.suspended_at is not None:
        return FINE
    if job.begun_at is None:
        said = "the Job controller has not begun with it (kube-controller-manager may be down, or behind)"
        late = Verdict("waiting", "JobNotBegun", said)
        return _after(_BEGINS, job.created_at, now, late)
    return _after(
        settings.unschedulable_grace,
        job.begun_at,
        now,
        Verdict(
            "failed",
            "NoPod",
            f"no pod was made for it: see `kubectl describe job {job.name}`; a quota or an admission rule may refuse it",
        ),
    )


# ------------------------------------------------------------------ the pod


def _of_pod(pod: PodView, settings: OperatorSettings, now: datetime) -> Verdict:
    if pod.over or pod.exit_code is not None:
        return _of_ended_pod(pod)
    if pod.delete_at is not None:
        overdue = Verdict("lost", "NodeLost", "its node does not answer any more")
        return _after(settings.deadline_margin, pod.delete_at, now, overdue)
    if pod.waiting:
        return _of_waiting(pod, settings, now)
    if pod.unschedulable_at is not None:
        return _after(
            settings.unschedulable_grace,
            pod.unschedulable_at,
            now,
            Verdict(
                "failed",
                "Unschedulable",
                f"no node takes it: {pod.message} (lower spec.resources, or add nodes)",
            ),
        )
    return FINE


def _of_waiting(pod: PodView, settings: OperatorSettings, now: datetime) -> Verdict:
    said = pod.waiting_message or pod.waiting
    since = pod.scheduled_at or pod.created_at
    if pod.waiting == "InvalidImageName":
        hint = "correct operator.image"
        return Verdict("failed", "InvalidImageName", f"{said} ({hint})")
    if pod.waiting in _PULL:
        hint = "check operator.image, the registry and operator.image_pull_secrets"
        failed = Verdict("failed", "ImagePull", f"{said} ({hint})")
        return _after(settings.image_pull_grace, since, now, failed)
    if pod.waiting in _START:
        hint = "create what is missing in the session's namespace"
        failed = Verdict("failed", pod.waiting, f"{said} ({hint})")
        return _after(settings.image_pull_grace, since, now, failed)
    return FINE


def _of_ended_pod(pod: PodView) -> Verdict:
    if pod.exit_reason == "OOMKilled":
        return Verdict(
            "failed",
            "OutOfMemory",
            "it needed more memory than it may have (raise spec.resources.limits.memory)",
        )
    if pod.disrupted or pod.reason:
        why = pod.reason or pod.disrupted
        return _pod(pod, Verdict("lost", why, f"its pod was taken away: {why}"))
    if pod.exit_code in _KILLED:
        how = _KILLED[pod.exit_code]
        return Verdict("lost", "Killed", f"its pod was ended by {how}")
    if pod.delete_at is not None and pod.exit_code != 0:
        return Verdict("lost", "PodDeleted", "its pod was deleted")
    return _of_exit(pod)


def _of_exit(pod: PodView) -> Verdict:
    if pod.exit_code in (0, UNTOLD):
        return _untold("its runner ended, but")
    if pod.exit_code is None:
        return Verdict("lost", "PodFailed", "its pod failed before it could start")
    said = f": {pod.exit_message}" if pod.exit_message else ""
    hint = f"see `kubectl logs {pod.name}`"
    if pod.exit_code == BAD_ENVIRONMENT:
        what = f"its runner refused its environment{said}"
        return Verdict("failed", "BadEnvironment", f"{what} ({hint})")
    what = f"its runner ended with exit code {pod.exit_code} and no last word{said}"
    return Verdict("failed", "ExitCode", f"{what} ({hint})")


def _untold(what: str) -> Verdict:
    hint = "the log of its pod and its workspace tell; start it again with resumeFrom"
    return Verdict(
        "failed", "OutcomeUnknown", f"{what} how it went was not told ({hint})"
    )


def _pod(pod: PodView, verdict: Verdict) -> Verdict:
    """With what the cluster said."""
    if not pod.message:
        return verdict
    return Verdict(verdict.outcome, verdict.reason, f"{verdict.message}: {pod.message}")


def _after(
    grace: float, since: datetime | None, now: datetime, verdict: Verdict
) -> Verdict:
    """`verdict` once it has been so for the grace; until then it is waited for."""
    left = grace - (now - since).total_seconds() if since is not None else grace
    if left <= 0:
        return verdict
    outcome: Outcome = "fine" if verdict.reason in _QUIET else "waiting"
    return Verdict(outcome, verdict.reason, verdict.message, again=left)
