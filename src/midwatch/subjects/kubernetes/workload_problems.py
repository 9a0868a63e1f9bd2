"""What is wrong with pods, and how that becomes one signal for each workload (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from midwatch.model import Fact, Invariant, Severity, Signal
from midwatch.subjects.kubernetes.object_fields import Container, Object, Pod, Ref
from midwatch.subjects.kubernetes.settings import (
    CONTAINER_CONFIG,
    CRASH_LOOP,
    IMAGE_PULL,
    OOM_KILLED,
    POD_PENDING,
    PODS_UNREADY,
    UNSCHEDULABLE,
)
from midwatch.subjects.kubernetes.workloads import component
from midwatch.text import ticket_line
from midwatch.units import format_count, format_duration

_IMAGE = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
}
_CONFIG = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "PreCreateHookError",
    "PostStartHookError",
}
BACK_OFF = "CrashLoopBackOff"
_OOM = "OOMKilled"


@dataclass(slots=True)
class Problem:
    """A problem of one object, of which its workload has a ticket.

    `value` is compared with the invariant's limit; without one the problem is a violation itself. `known` is false where
    its state is unknown.
    """

    invariant: Invariant
    about: Object | Ref
    kind: str
    says: str
    value: float | None = None
    known: bool = True
    severity: Severity | None = None
    facts: dict[str, Fact] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.about.name

    @property
    def holds(self) -> bool | None:
        if not self.known:
            return None
        limit = self.invariant.limit
        if self.value is None or limit is None:
            return False
        above = self.invariant.above
        return self.value <= limit if above else self.value >= limit

    @property
    def excess(self) -> float:
        """A number that is higher, the worse the value is."""
        value = self.value or 0.0
        return value if self.invariant.above else -value


def pod_problems(
    pod: Pod, now: float, settle: float, oom_window: float
) -> Iterator[Problem]:
    """Yield what is wrong with a pod; `now` is in seconds since 1970, by the cluster's clock as near as that is known."""
    if pod.phase in ("Succeeded", "Failed"):
        yield from _oom_kills(pod, now, oom_window)
        return
    if pod.deleting:
        return
    found = [*_oom_kills(pod, now, oom_window)]
    blocked = False
    for container in pod.containers:
        one = _container_problem(pod, container, now, settle)
        if one is not None:
            blocked = True
            found.append(one)
    yield from found
    if blocked:
        return
    if pod.phase == "Pending":
        yield from _waiting(pod, now)
    elif pod.phase == "Running" and not pod.ready and not _of_job(pod):
        since = max(pod.ready_since, pod.created)
        says = f"{pod.name} runs and is not ready for {format_duration(max(0.0, now - since))}"
        yield Problem(PODS_UNREADY, pod, "Pod", says, now - since, facts=_facts(pod))


def _container_problem(
    pod: Pod, one: Container, now: float, settle: float
) -> Problem | None:
    facts = _facts(pod) | {"container": one.name, "restarts": one.restarts}
    where = f"container {one.name} of {pod.name}"
    if one.waiting in _IMAGE:
        says = f"{where}: {one.waiting}: {one.message}"
        return Problem(
            IMAGE_PULL, pod, "Pod", says, facts=facts | {"reason": one.waiting}
        )
    if one.waiting in _CONFIG:
        says = f"{where}: {one.waiting}: {one.message}"
        return Problem(
            CONTAINER_CONFIG, pod, "Pod", says, facts=facts | {"reason": one.waiting}
        )
    if not is_looping(pod, one, now, settle):
        return None
    last = one.ended
    how = ""
    if last is not None:
        facts |= {"exit_code": last.exit_code, "reason": last.reason}
        ran = max(0.0, last.finished - last.started)
        how = f"; the last run ended after {format_duration(ran)} with exit code {last.exit_code} ({last.reason or 'no reason'})"
    says = (
        f"{where} crashes again and again: {format_count(one.restarts, 'restart')}{how}"
    )
    return Problem(CRASH_LOOP, pod, "Pod", says, float(one.restarts), facts=facts)


def is_looping(pod: Pod, one: Container, now: float, settle: float) -> bool:
    """Return whether a container crashes again and again: running between two crashes is not well yet."""
    if one.waiting == BACK_OFF:
        return True
    last = one.ended
    if last is None or one.restarts == 0 or pod.restarts_never:
        return False
    was_short = last.finished - last.started < settle
    is_short = one.since == 0 or now - one.since < settle
    return was_short and is_short


def is_settled(pod: Pod, now: float, settle: float) -> bool:
    """Return whether all containers of a pod have run for `settle` seconds, or ended well."""
    if pod.phase == "Succeeded":
        return True
    return bool(pod.containers) and all(
        (one.since and now - one.since >= settle)
        or (one.ended is not None and not one.since and one.ended.exit_code == 0)
        for one in pod.containers
    )


def _oom_kills(pod: Pod, now: float, window: float) -> Iterator[Problem]:
    for one in pod.containers:
        last = one.ended
        if last is None or last.reason != _OOM or now - last.finished > window:
            continue
        ago = format_duration(max(0.0, now - last.finished))
        says = f"container {one.name} of {pod.name} was killed {ago} ago: out of memory (exit code {last.exit_code})"
        facts = _facts(pod) | {
            "container": one.name,
            "restarts": one.restarts,
            "exit_code": last.exit_code,
        }
        yield Problem(OOM_KILLED, pod, "Pod", says, facts=facts)


def _waiting(pod: Pod, now: float) -> Iterator[Problem]:
    scheduled = pod.scheduled
    if scheduled is not None and scheduled.reason == "SchedulingGated":
        return
    if scheduled is None or scheduled.status != "True":
        since = (scheduled.since if scheduled else 0.0) or pod.created
        why = scheduled.message if scheduled else "no scheduler has looked at it"
        says = f"{pod.name} has had no node for {format_duration(max(0.0, now - since))}: {why}"
        yield Problem(UNSCHEDULABLE, pod, "Pod", says, now - since, facts=_facts(pod))
        return
    since = scheduled.since or pod.created
    waits = [one for one in pod.containers if one.waiting]
    on = f"{waits[0].name}: {waits[0].waiting}" if waits else "no container has started"
    says = f"{pod.name} has been on {pod.node} for {format_duration(max(0.0, now - since))} and does not start ({on})"
    yield Problem(POD_PENDING, pod, "Pod", says, now - since, facts=_facts(pod))


def _of_job(pod: Pod) -> bool:
    return pod.owner is not None and pod.owner.kind == "Job"


def _facts(pod: Pod) -> dict[str, Fact]:
    return {"pod": pod.name, "node": pod.node, "uid": pod.uid}


# ------------------------------------------------------------------ one for each workload


def signals(
    problems: Iterable[tuple[Ref, Problem]],
    enabled: Mapping[str, Invariant],
    idle: AbstractSet[str],
) -> tuple[list[Signal], dict[str, tuple[str, ...]]]:
    """Return a signal for each workload and invariant, and what `ignore` left out.

    Args:
        problems: The problems with their workloads.
        enabled: The enabled invariants by id.
        idle: The components of which no pod is ready: their problems are critical.
    """
    grouped: dict[tuple[str, Ref], list[Problem]] = {}
    ignored: dict[str, set[str]] = {}
    for workload, one in problems:
        invariant = enabled.get(one.invariant.id)
        if invariant is None:
            continue
        one.invariant = invariant
        about = {
            "namespace": workload.namespace,
            "kind": workload.kind,
            "name": workload.name,
            **{key: one.facts.get(key) for key in ("container", "pressure", "host")},
        }
        if invariant.ignores(about):
            ignored.setdefault(invariant.id, set()).add(component(workload))
            continue
        grouped.setdefault((invariant.id, _plain(workload)), []).append(one)
    found = [
        _signal(id_, workload, some, component(workload) in idle)
        for (id_, workload), some in grouped.items()
    ]
    return found, {id_: tuple(sorted(names)[:20]) for id_, names in ignored.items()}


def _plain(ref: Ref) -> Ref:
    """Return a reference without its uid: two of the same name are one component."""
    return Ref(ref.kind, ref.namespace, ref.name)


def _signal(id_: str, workload: Ref, some: list[Problem], idle: bool) -> Signal:
    order = {False: 0, None: 1, True: 2}
    worst = min(some, key=lambda one: (order[one.holds], -one.excess, one.name))
    alike = sum(one.holds is worst.holds for one in some)
    noun = "host" if "host" in worst.facts else worst.kind.lower()
    pods = f" ({format_count(alike, noun)} alike)" if alike > 1 else ""
    where = f"{workload.namespace}/{workload.kind} {workload.name}".lstrip("/")
    facts: dict[str, Fact] = {
        "namespace": workload.namespace,
        "kind": workload.kind,
        "name": workload.name,
        "count": alike,
        **worst.facts,
    }
    severity = worst.severity
    if severity is None and idle:
        severity = Severity.CRITICAL
    return Signal(
        id_,
        component(workload),
        ticket_line(f"{where}: {worst.says}{pods}", 600),
        value=worst.value if worst.known else None,
        holds=None if worst.known and worst.value is not None else worst.holds,
        facts=facts,
        severity=severity,
    )
