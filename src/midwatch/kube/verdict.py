"""What became of an attempt, from its Job and its pods. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from midwatch.kube.environment import BAD_ENVIRONMENT, POD_ENDED, UNTOLD
from midwatch.kube.observed import SeenJob, SeenPod
from midwatch.settings import OperatorSettings

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
    job: SeenJob | None,
    pods: Sequence[SeenPod],
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


def _newest(pods: Sequence[SeenPod]) -> SeenPod | None:
    return max(
        pods, key=lambda pod: (str(pod.created_at or ""), pod.name), default=None
    )


# ------------------------------------------------------------------ the Job


def _of_ended_job(job: SeenJob, pod: SeenPod | None) -> Verdict:
    if job.outcome == "Complete":
        return _untold(f"its Job {job.name} is complete, but")
    if pod is None or job.reason in ("BackoffLimitExceeded", ""):
        return Verdict("lost", "PodGone", "its pod was deleted, or went with its node")
    return Verdict("failed", job.reason, f"its Job failed: {job.message}")


def _of_job(
    job: SeenJob, pod: SeenPod | None, settings: OperatorSettings, now: datetime
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


def _of_pod(pod: SeenPod, settings: OperatorSettings, now: datetime) -> Verdict:
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


def _of_waiting(pod: SeenPod, settings: OperatorSettings, now: datetime) -> Verdict:
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


def _of_ended_pod(pod: SeenPod) -> Verdict:
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


def _of_exit(pod: SeenPod) -> Verdict:
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


def _pod(pod: SeenPod, verdict: Verdict) -> Verdict:
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
