"""The checks of everything but single pods: each yields the problems that it finds in what is watched (pure)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from midwatch.model import Invariant, Severity
from midwatch.subjects.kubernetes import settings as the
from midwatch.subjects.kubernetes.check_view import Problems, View, problem_of
from midwatch.subjects.kubernetes.cluster_watch import (
    AUTOSCALERS,
    BUDGETS,
    CLAIMS,
    CRON_JOBS,
    DAEMON_SETS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    GATEWAY_CLASSES,
    GATEWAYS,
    INGRESSES,
    JOBS,
    MUTATING,
    NODES,
    PODS,
    POLICIES,
    REFUSALS,
    ROUTES,
    SERVICES,
    STATEFUL_SETS,
    VALIDATING,
    WatchedKind,
)
from midwatch.subjects.kubernetes.ingress_certificates import (
    Examined,
    ends_at,
)
from midwatch.subjects.kubernetes.object_fields import (
    CronJob,
    Job,
    Labels,
    Object,
    Pod,
    Refusal,
    Workload,
)
from midwatch.subjects.kubernetes.policy_checks import (
    MAKE_PODS,
    disruption_budgets,
    gateway_classes,
    gateways,
    routes,
    unused_budgets,
    unused_policies,
)
from midwatch.subjects.kubernetes.workload_problems import Problem
from midwatch.units import format_count, format_duration

REFUSAL_WINDOW = 1200.0
"""Seconds for which a refusal counts: a controller tries again after 1,000 s at the latest."""
_ROLLOUT = 600.0
_NEW_NODE = 300.0


def rollouts(view: View) -> Problems:
    for one in view.watch.all(DEPLOYMENTS):
        at = one.progressing
        if at is None or at.status != "False" or not one.observed or one.deleting:
            continue
        says = f"the rollout does not go on: {at.reason}: {at.message}; {_counts(one)}"
        yield problem_of(the.ROLLOUT_STUCK, one, one.kind, says, reason=at.reason)
    partial = {
        (kind, *one.key): one
        for kind, found in (("StatefulSet", STATEFUL_SETS), ("DaemonSet", DAEMON_SETS))
        for one in view.watch.all(found)
        if one.updated < one.desired and not one.deleting
    }
    if not partial:
        return
    for pod in view.watch.all(PODS):
        if pod.owner is None or pod.ready or pod.deleting:
            continue
        owner = partial.get((pod.owner.kind, pod.namespace, pod.owner.name))
        unready = view.now - max(pod.ready_since, pod.created)
        if owner is not None and unready > _ROLLOUT:
            yield problem_of(
                the.ROLLOUT_STUCK,
                owner,
                owner.kind,
                f"the rollout does not go on: {pod.name} has not been ready for {format_duration(unready)}; {_counts(owner)}",
                pod=pod.name,
            )


def _counts(one: Workload) -> str:
    return f"{one.updated} of {format_count(one.desired, 'pod')} updated, {one.ready} ready"


def refusals(view: View) -> Problems:
    """Yield what controllers were not allowed to create."""
    seen = set()
    for one in view.watch.all(DEPLOYMENTS):
        failure = one.failure
        if failure is not None and failure.reason == "FailedCreate":
            seen.add(one.key)
            yield _refusal(one, one.kind, failure.message)
    latest: dict[tuple[str, str, str], Refusal] = {}
    for event in view.watch.all(REFUSALS):
        key = event.about.kind, event.about.namespace, event.about.name
        if view.now - event.last <= REFUSAL_WINDOW and (
            key not in latest or latest[key].last < event.last
        ):
            latest[key] = event
    for event in latest.values():
        if _still_lacks(view, event):
            invariant = _refused_by(event.message)
            says = f"its pods are refused: {event.message}"
            yield Problem(invariant, event.about, event.about.kind, says)


def _refusal(one: Object, kind: str, message: str) -> Problem:
    return problem_of(
        _refused_by(message), one, kind, f"its pods are refused: {message}"
    )


def _refused_by(message: str) -> Invariant:
    return the.POD_QUOTA if "exceeded quota" in message else the.POD_ADMISSION


def _still_lacks(view: View, event: Refusal) -> bool:
    """Return whether the controller of an event still has too few pods, as far as it is watched."""
    kinds: dict[str, WatchedKind[Workload]] = {
        "StatefulSet": STATEFUL_SETS,
        "DaemonSet": DAEMON_SETS,
    }
    about = event.about
    if about.kind == "Job":
        job = view.watch.get(JOBS, about.namespace, about.name)
        if job is None or job.active or job.suspended:
            return False
        return job.failed is None and not job.completed
    if about.kind == "ReplicaSet":
        return _lacks_replicas(view, event)
    if about.kind not in kinds:
        return False
    found = view.watch.get(kinds[about.kind], about.namespace, about.name)
    return found is not None and found.existing < found.desired


def _lacks_replicas(view: View, event: Refusal) -> bool:
    """Return whether a ReplicaSet may lack pods: that of a Deployment is judged by its condition."""
    name = event.about.name.rpartition("-")[0]
    return view.watch.get(DEPLOYMENTS, event.about.namespace, name) is None


def jobs(view: View) -> Problems:
    latest: dict[tuple[str, str, str], Job] = {}
    for job in view.watch.all(JOBS):
        if job.deleting:
            continue
        running = job.failed is None and not job.completed
        if running and job.started and not job.suspended:
            took = view.now - job.started
            says = f"{job.name} has been running for {format_duration(max(0.0, took))}"
            yield problem_of(the.JOB_OVERDUE, job, "Job", says, took, job=job.name)
        if running:
            continue
        owner = job.owner
        key = (owner.kind, job.namespace, owner.name) if owner else ("", *job.key)
        if key not in latest or _ended(latest[key]) < _ended(job):
            latest[key] = job
    for job in latest.values():
        if job.failed is not None:
            ago = format_duration(max(0.0, view.now - _ended(job)))
            says = f"{job.name} failed {ago} ago: {job.failed.reason}: {job.failed.message}"
            yield problem_of(
                the.JOB_FAILED, job, "Job", says, job=job.name, reason=job.failed.reason
            )


def _ended(job: Job) -> float:
    return job.failed.since if job.failed else job.completed


def cron_jobs(view: View) -> Problems:
    for one in view.watch.all(CRON_JOBS):
        if one.suspended or one.deleting or (one.forbids and one.active):
            continue
        due = next_start(one)
        if due is None:
            says = f"its schedule {one.schedule!r} cannot be read here"
            problem = problem_of(the.CRON_JOB_OVERDUE, one, "CronJob", says)
            problem.known = False
            yield problem
        elif due < view.now:
            at = datetime.fromtimestamp(due, UTC)
            late = format_duration(view.now - due)
            says = f"no Job was started at {at:%Y-%m-%d %H:%M} UTC, {late} ago, as {one.schedule!r} says"
            yield problem_of(
                the.CRON_JOB_OVERDUE,
                one,
                "CronJob",
                says,
                view.now - due,
                schedule=one.schedule,
            )


def next_start(one: CronJob) -> float | None:
    """Return when a CronJob has to start its next Job; None for a schedule that is not understood."""
    from croniter import croniter

    zone: tzinfo = UTC
    try:
        if one.zone:
            zone = ZoneInfo(one.zone)
        begun = datetime.fromtimestamp(one.last or one.created, zone)
        following: datetime = croniter(one.schedule, begun).get_next(datetime)
        return following.timestamp()
    except (ValueError, KeyError, AttributeError, OSError, OverflowError):
        return None


def claims(view: View) -> Problems:
    waiting = [
        one
        for one in view.watch.all(CLAIMS)
        if one.phase in ("Pending", "Lost") and not one.deleting
    ]
    if not waiting:
        return
    users: dict[tuple[str, str], Pod] = {}
    for pod in view.watch.all(PODS):
        for name in pod.claims if pod.phase == "Pending" else ():
            users.setdefault((pod.namespace, name), pod)
    for one in waiting:
        kind = "PersistentVolumeClaim"
        about = f"{one.size} of storage class {one.storage_class or '(none)'}"
        if one.phase == "Lost":
            says = f"it has lost its volume ({about})"
            yield problem_of(the.CLAIM_UNBOUND, one, kind, says)
            continue
        late = True
        if one.key not in users:
            late_class = view.waits_for_consumer(one.storage_class)
            if late_class:
                continue
            late = late_class is False
        since = view.now - one.created
        user = users.get(one.key)
        needs = f"; {user.name} waits for it" if user else ""
        says = f"it has had no volume for {format_duration(max(0.0, since))} ({about}){needs}"
        problem = problem_of(
            the.CLAIM_UNBOUND,
            one,
            kind,
            says,
            since,
            storage_class=one.storage_class,
            pod=user.name if user else "",
        )
        problem.known = late
        yield problem


def autoscalers(view: View) -> Problems:
    kind = "HorizontalPodAutoscaler"
    for one in view.watch.all(AUTOSCALERS):
        limited = one.limited
        if (
            limited is not None
            and limited.status == "True"
            and limited.reason == "TooManyReplicas"
        ):
            says = f"{one.target} is at its maximum of {format_count(one.most, 'pod')}, and wants more"
            yield problem_of(the.HPA_AT_MAXIMUM, one, kind, says, maximum=one.most)
        for condition in (one.able, one.active):
            if (
                condition is not None
                and condition.status == "False"
                and condition.reason != "ScalingDisabled"
            ):
                says = f"{one.target} is not scaled: {condition.reason}: {condition.message}"
                yield problem_of(
                    the.HPA_METRICS, one, kind, says, reason=condition.reason
                )
                break


def nodes(view: View) -> Problems:
    for one in view.watch.all(NODES):
        if one.cordoned or one.leaving or one.deleting:
            continue
        for name, condition in one.pressure.items():
            says = f"{name}: {condition.message}"
            yield problem_of(the.NODE_PRESSURE, one, "Node", says, pressure=name)
        ready = one.ready
        if ready is not None and ready.status == "True":
            continue
        if view.now - one.created < _NEW_NODE:
            continue
        since = view.now - ((ready.since if ready else 0.0) or one.created)
        why = f"{ready.reason}: {ready.message}" if ready else "it reports nothing"
        says = f"not ready for {format_duration(max(0.0, since))}: {why}"
        yield problem_of(the.NODE_READY, one, "Node", says, since)


def services(view: View) -> Problems:
    ready, unready = endpoints(view)
    for one in view.watch.all(SERVICES):
        if not one.selector or one.deleting or ready[one.key]:
            continue
        if not unready[one.key] and _is_scaled_to_zero(
            view, one.namespace, one.selector
        ):
            continue
        waits = unready[one.key]
        says = "no endpoint is ready: " + (
            f"{format_count(waits, 'pod')} of it {'is' if waits == 1 else 'are'} not"
            if waits
            else f"no running pod has the labels {_shown(one.selector)}"
        )
        yield problem_of(the.SERVICE_ENDPOINTS, one, "Service", says, unready=waits)


def endpoints(
    view: View,
) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], int]]:
    """Return the numbers of endpoints that are ready and that are not, by service."""
    ready: dict[tuple[str, str], int] = defaultdict(int)
    unready: dict[tuple[str, str], int] = defaultdict(int)
    for piece in view.watch.all(ENDPOINT_SLICES):
        ready[piece.namespace, piece.service] += piece.ready
        unready[piece.namespace, piece.service] += piece.unready
    return ready, unready


def _is_scaled_to_zero(view: View, namespace: str, selector: Labels) -> bool:
    """Return whether the workload that a selector means has no pods on purpose."""
    return any(
        not one.desired and selector.items() <= one.labels.items()
        for kind in (DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS)
        for one in view.watch.all(kind)
        if one.namespace == namespace
    )


def _shown(labels: Labels) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))


def ingresses(view: View) -> Problems:
    known = {one.key for one in view.watch.all(SERVICES)}
    for one in view.watch.all(INGRESSES):
        missing = [name for name in one.services if (one.namespace, name) not in known]
        if missing and not one.deleting:
            says = f"it sends requests to {', '.join(missing)}, which does not exist"
            yield problem_of(
                the.INGRESS_BACKEND, one, "Ingress", says, service=missing[0]
            )


def certificates(view: View) -> Problems:
    """Yield hosts of ingresses whose certificate is refused, ends soon or is unknown."""
    if view.certificates is None:
        return
    for one in view.watch.all(INGRESSES):
        for host, secret in () if one.deleting else one.tls_hosts.items():
            found = view.certificates.of(one, host)
            left = found.end - view.now
            if (
                not found.unknown
                and not found.refused
                and left >= view.certificates.soon
            ):
                continue
            problem = problem_of(
                the.INGRESS_CERTIFICATE,
                one,
                "Ingress",
                _shown_certificate(host, found, left),
                None if found.refused else left,
                Severity.CRITICAL if found.refused or left <= 0 else None,
                host=host,
                address=found.address,
                secret=secret,
                certificate=found.shown,
                not_after=ends_at(found) if found.end else "",
            )
            problem.known = not found.unknown
            yield problem


def _shown_certificate(host: str, found: Examined, left: float) -> str:
    where = f" ({found.address})" if found.address else ""
    if found.unknown:
        return f"the certificate of {host}{where} is unknown: {found.unknown}"
    if found.refused:
        return f"{found.refused}{where}"
    end = "ended" if left <= 0 else "ends in"
    ago = " ago" if left <= 0 else ""
    return f"the certificate of {host}{where} {end} {format_duration(abs(left))}{ago}"


def webhooks(view: View) -> Problems:
    """Yield webhooks that refuse everything, as their service has no endpoint."""
    ready, _ = endpoints(view)
    known = {one.key for one in view.watch.all(SERVICES)}
    for kind in (VALIDATING, MUTATING):
        for one in view.watch.all(kind):
            for hook in one.hooks:
                if not hook.fails or ready[hook.service]:
                    continue
                where = "/".join(hook.service)
                what = (
                    "has no ready endpoint"
                    if hook.service in known
                    else "does not exist"
                )
                says = f"the webhook {hook.name} refuses every request: its service {where} {what}"
                label = (
                    "ValidatingWebhookConfiguration"
                    if kind is VALIDATING
                    else "MutatingWebhookConfiguration"
                )
                yield problem_of(
                    the.WEBHOOK_ENDPOINTS,
                    one,
                    label,
                    says,
                    severity=Severity.CRITICAL,
                    webhook=hook.name,
                    service=where,
                )


@dataclass(frozen=True)
class Check:
    """A check, the invariants that it decides, and the kinds that it needs for them."""

    run: Callable[[View], Problems]
    invariants: tuple[Invariant, ...]
    needs: tuple[WatchedKind[Any], ...]


CHECKS: tuple[Check, ...] = (
    Check(
        rollouts,
        (the.ROLLOUT_STUCK,),
        (DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS, PODS),
    ),
    Check(
        refusals,
        (the.POD_QUOTA, the.POD_ADMISSION),
        (DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS, JOBS, REFUSALS),
    ),
    Check(jobs, (the.JOB_FAILED, the.JOB_OVERDUE), (JOBS,)),
    Check(cron_jobs, (the.CRON_JOB_OVERDUE,), (CRON_JOBS,)),
    Check(claims, (the.CLAIM_UNBOUND,), (CLAIMS, PODS)),
    Check(autoscalers, (the.HPA_AT_MAXIMUM, the.HPA_METRICS), (AUTOSCALERS,)),
    Check(nodes, (the.NODE_READY, the.NODE_PRESSURE), (NODES,)),
    Check(
        services,
        (the.SERVICE_ENDPOINTS,),
        (SERVICES, ENDPOINT_SLICES, DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS),
    ),
    Check(ingresses, (the.INGRESS_BACKEND,), (INGRESSES, SERVICES)),
    Check(certificates, (the.INGRESS_CERTIFICATE,), (INGRESSES,)),
    Check(
        webhooks,
        (the.WEBHOOK_ENDPOINTS,),
        (VALIDATING, MUTATING, SERVICES, ENDPOINT_SLICES),
    ),
    Check(disruption_budgets, (the.DISRUPTION_BUDGET_BLOCKS,), (BUDGETS,)),
    Check(unused_budgets, (the.DISRUPTION_BUDGET_UNUSED,), (BUDGETS, *MAKE_PODS)),
    Check(unused_policies, (the.NETWORK_POLICY_UNUSED,), (POLICIES, *MAKE_PODS)),
    Check(gateway_classes, (the.GATEWAY_CLASS_ACCEPTED,), (GATEWAY_CLASSES,)),
    Check(gateways, (the.GATEWAY_PROGRAMMED,), (GATEWAYS,)),
    Check(routes, (the.HTTP_ROUTE_ACCEPTED,), (ROUTES, SERVICES)),
)
