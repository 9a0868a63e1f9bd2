"""What the operator keeps of Jobs, pods and their events. Pure.

`JobView` and `PodView` hold the few fields that a plan needs, because the operator caches all Jobs and pods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from midwatch.kube.rules import ATTEMPT_LABEL, CONTAINER, SESSION_LABEL, UID_LABEL
from midwatch.redaction import Redactor

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
        unschedulable_at: Since when the scheduler has found no node, or was kept from looking for one.
        gates: Its scheduling gates that are not removed yet.
        started: Whether its container was started, whatever became of it.
        obstacle: What its status says of why the container is not started.
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
    gates: tuple[str, ...] = ()
    started: bool = False
    obstacle: str = ""
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

    @property
    def has_run(self) -> bool:
        """Whether its container was started, as far as its status knows."""
        return self.started or self.phase in ("Running", "Succeeded")


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
    meta, spec, status = _parts(body)
    conditions = _conditions(status)
    scheduled = _any_condition(status, "PodScheduled")
    placed = scheduled.get("status") == "True"
    since = _time(scheduled.get("lastTransitionTime"))
    stuck = scheduled.get("status") == "False"
    container = _container(status)
    state = container.get("state") or {}
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
        unschedulable_at=since if stuck else None,
        gates=tuple(
            _text(one.get("name")) for one in spec.get("schedulingGates") or ()
        ),
        started=_was_started(container),
        obstacle=_obstacle(status, waiting),
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


def _container(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the status of the session's container; empty before the kubelet has written it."""
    for one in status.get("containerStatuses") or ():
        if one.get("name") == CONTAINER:
            return one if isinstance(one, Mapping) else {}
    return {}


NOT_STARTED = frozenset({"StartError", "ContainerCannotRun"})
"""Reasons of a container's end with which the runtime never started its process."""


def _was_started(container: Mapping[str, Any]) -> bool:
    for state in (container.get("state") or {}, container.get("lastState") or {}):
        ended = state.get("terminated")
        if state.get("running") is not None:
            return True
        if ended is not None and ended.get("reason") not in NOT_STARTED:
            return True
    return False


def _obstacle(status: Mapping[str, Any], waiting: Mapping[str, Any]) -> str:
    """Return in the kubelet's words why the container is not started: an init container, a condition, or its own state."""
    parts = [_init_container(one) for one in status.get("initContainerStatuses") or ()]
    why = next(filter(None, parts), "")
    if not why:
        condition = _any_condition(status, "PodReadyToStartContainers")
        said = (waiting.get("reason"), waiting.get("message"), condition.get("message"))
        why = ": ".join(str(one) for one in said if one)
    return _text(why)


def _init_container(one: Mapping[str, Any]) -> str:
    """Return what an init container does or why it does not; empty if it is done, or a sidecar that has started."""
    state, name = one.get("state") or {}, one.get("name")
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    restarts = one.get("restartCount")
    if state.get("running") is not None:
        return "" if one.get("started") else f"the init container {name} is running"
    if ended and ended.get("exitCode") == 0:
        return ""
    said = [waiting.get("reason") or ended.get("reason")]
    last = ended or (one.get("lastState") or {}).get("terminated") or {}
    if last.get("exitCode") is not None:
        said.append(f"exit code {last['exitCode']}")
    if restarts:
        said.append(f"{restarts} restarts")
    said.append(waiting.get("message") or ended.get("message"))
    if said[0] in (None, "PodInitializing") and len([s for s in said if s]) < 2:
        return ""
    return f"the init container {name}: " + ": ".join(str(s) for s in said if s)


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) and text else None


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _text(value: Any) -> str:
    """Return a text short, on one line and redacted: the address of an image may contain a secret."""
    text = " ".join(str(value or "").split())
    return _REDACTOR.text(text[: 4 * MAX_TEXT])[:MAX_TEXT] if text else ""


# ------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class EventWords:
    """What the cluster's events say of one object.

    Attributes:
        kind: Kind of the object; `name` is its name.
        text: Reason and message of the event that explains most; empty without one.
        at: When the events were read.
    """

    kind: str
    name: str
    text: str
    at: datetime


def words_of(events: Sequence[Mapping[str, Any]], since: str = "") -> str:
    """Return reason and message of the newest warning among the events of one object; of the newest event without one.

    Args:
        events: The events of the object, in any order.
        since: Events before this time (RFC 3339 in UTC) are those of an earlier object of its name.
    """
    ordered = sorted((e for e in events if _event_time(e) >= since), key=_event_time)
    warnings = [one for one in ordered if one.get("type") == "Warning"]
    last = next(reversed(warnings or ordered), None)
    if last is None:
        return ""
    return _text(": ".join(str(last[k]) for k in ("reason", "message") if last.get(k)))


def _event_time(event: Mapping[str, Any]) -> str:
    """Return when an event was last seen: RFC 3339 in UTC, so that texts sort as times do."""
    series = event.get("series") or {}
    times = (
        event.get("lastTimestamp"),
        series.get("lastObservedTime"),
        event.get("eventTime"),
        event.get("firstTimestamp"),
        (event.get("metadata") or {}).get("creationTimestamp"),
    )
    return next((str(time) for time in times if time), "")
