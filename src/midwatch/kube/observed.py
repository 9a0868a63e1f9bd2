"""Jobs and pods as values: of each only what a verdict or a plan needs, since an operator keeps them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from midwatch.kube.names import ATTEMPT_LABEL, CONTAINER, SESSION_LABEL, UID_LABEL
from midwatch.redaction import Redactor

MAX_TEXT = 500
"""Characters kept of what the cluster says."""
_OUTCOMES, _TARGETS = ("Complete", "Failed"), ("SuccessCriteriaMet", "FailureTarget")
"""Conditions: what a Job has become, and what it is about to become."""
_COUNTS = ("active", "ready", "terminating", "succeeded", "failed")
_REDACTOR = Redactor()


@dataclass(frozen=True, slots=True)
class SeenJob:
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
class SeenPod:
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


def read_job(body: Mapping[str, Any]) -> SeenJob:
    """A Job of a session, as the API server gives it or as it was sent there."""
    meta, spec, status = _parts(body)
    conditions = _conditions(status)
    outcome = next((type_ for type_ in _OUTCOMES if type_ in conditions), "")
    target = next((type_ for type_ in _TARGETS if type_ in conditions), "")
    why = conditions.get(outcome or target, {})
    return SeenJob(
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


def read_pod(body: Mapping[str, Any]) -> SeenPod:
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
    return SeenPod(
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
