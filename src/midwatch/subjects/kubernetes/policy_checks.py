"""The checks of disruption budgets, network policies and the Gateway API (pure)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from midwatch.model import Invariant
from midwatch.subjects.kubernetes import settings as the
from midwatch.subjects.kubernetes.check_view import Problems, View, problem_of
from midwatch.subjects.kubernetes.cluster_watch import (
    BUDGETS,
    CRON_JOBS,
    DAEMON_SETS,
    DEPLOYMENTS,
    GATEWAY_CLASSES,
    GATEWAYS,
    PODS,
    POLICIES,
    ROUTES,
    SERVICES,
    STATEFUL_SETS,
)
from midwatch.subjects.kubernetes.object_fields import Condition, Labels
from midwatch.subjects.kubernetes.policy_fields import (
    DisruptionBudget,
    HttpRoute,
    NetworkPolicy,
)
from midwatch.units import format_count, format_duration

MAKE_PODS = (PODS, DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS, CRON_JOBS)
"""Pods, and what makes pods with known labels."""


def disruption_budgets(view: View) -> Problems:
    """Yield budgets that have pods and allow none of them to be evicted."""
    for one in view.watch.all(BUDGETS):
        if one.deleting or not one.observed or not one.pods or one.allowed > 0:
            continue
        at = one.disruption
        since = view.now - ((at.since if at else 0.0) or one.created)
        why = (
            f"{at.reason}: {at.message}"
            if at is not None and at.reason == "SyncFailed"
            else f"{one.healthy} of {format_count(one.pods, 'pod')} healthy, {one.wanted} must stay"
        )
        says = f"none of its pods has been allowed to be evicted for {format_duration(max(0.0, since))}: {why}"
        yield problem_of(
            the.DISRUPTION_BUDGET_BLOCKS,
            one,
            "PodDisruptionBudget",
            says,
            since,
            pods=one.pods,
            healthy=one.healthy,
            wanted=one.wanted,
        )


def unused_budgets(view: View) -> Problems:
    found = view.watch.all(BUDGETS)
    invariant = the.DISRUPTION_BUDGET_UNUSED
    return _unused(view, found, invariant, "PodDisruptionBudget")


def unused_policies(view: View) -> Problems:
    found = view.watch.all(POLICIES)
    return _unused(view, found, the.NETWORK_POLICY_UNUSED, "NetworkPolicy")


def _unused(
    view: View,
    found: Iterable[DisruptionBudget | NetworkPolicy],
    invariant: Invariant,
    kind: str,
) -> Problems:
    """Yield what selects no pod, and none that a workload will make."""
    chosen = [one for one in found if one.selector.requirements and not one.deleting]
    if not chosen:
        return
    labels = _labels(view)
    for one in chosen:
        if any(map(one.selector.matches, labels[one.namespace])):
            continue
        says = f"no pod and no workload has the labels that it selects: {one.selector}"
        yield problem_of(invariant, one, kind, says, selector=str(one.selector))


def _labels(view: View) -> dict[str, list[Labels]]:
    """Return the labels of pods, and of those that workloads make, by namespace."""
    found: dict[str, list[Labels]] = defaultdict(list)
    for workloads in (DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS):
        for workload in view.watch.all(workloads):
            found[workload.namespace].append(workload.labels)
    for cron_job in view.watch.all(CRON_JOBS):
        found[cron_job.namespace].append(cron_job.labels)
    for pod in view.watch.all(PODS):
        found[pod.namespace].append(pod.labels)
    return found


# ------------------------------------------------------------------ the Gateway API


def gateway_classes(view: View) -> Problems:
    for one in view.watch.all(GATEWAY_CLASSES):
        why = _not("Accepted", one.accepted)
        if why and not one.deleting:
            says = f"no controller has accepted it: {why}"
            yield problem_of(the.GATEWAY_CLASS_ACCEPTED, one, "GatewayClass", says)


def gateways(view: View) -> Problems:
    for one in view.watch.all(GATEWAYS):
        why = _not("Accepted", one.accepted) or _not("Programmed", one.programmed)
        if why and not one.deleting:
            yield problem_of(
                the.GATEWAY_PROGRAMMED,
                one,
                "Gateway",
                f"nothing listens for it: {why}",
                gateway_class=one.class_name,
            )


def routes(view: View) -> Problems:
    known = {one.key for one in view.watch.all(SERVICES)}
    for one in view.watch.all(ROUTES):
        missing = [name for name in one.services if (one.namespace, name) not in known]
        why = _not_accepted(one)
        if missing:
            why = f"it sends requests to {', '.join(missing)}, which does not exist"
        if why and not one.deleting:
            service = missing[0] if missing else ""
            yield problem_of(
                the.HTTP_ROUTE_ACCEPTED, one, "HTTPRoute", why, service=service
            )


def _not_accepted(route: HttpRoute) -> str:
    """Return why a parent does not take a route, or cannot resolve what it names; empty if all is well."""
    if not route.parents:
        return "no Gateway has looked at it"
    for parent, accepted, resolved in route.parents:
        why = _not("Accepted", accepted)
        if not why and resolved is not None:
            why = _not("ResolvedRefs", resolved)
        if why:
            return f"{parent}: {why}"
    return ""


def _not(name: str, condition: Condition | None) -> str:
    """Return what a condition says that is not true; empty for one that is."""
    if condition is None:
        return f"it has no condition {name}"
    if condition.status == "True":
        return ""
    return f"{name} {condition.status}: {condition.reason}: {condition.message}"
