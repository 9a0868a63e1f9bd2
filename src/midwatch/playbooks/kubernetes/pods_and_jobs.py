"""First aid for workloads: their pods find no node, are refused, do not start or become ready, and Jobs fail."""

from __future__ import annotations

import re

from midwatch.model import Context
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    evidence_lines,
    finding,
    matching_line,
    playbook,
    text_fact,
    write_note,
)
from midwatch.playbooks.kubernetes.naming import (
    changed,
    kubectl,
    last_words,
    pod_line,
    said,
    target,
    what,
)

_REASONS = (
    (
        r"(?i)insufficient ([\w./-]+)",
        "no node has enough {0} that is not requested by other pods",
        "Lower the pod's request for {0}, remove what is not needed, or add nodes.",
    ),
    (
        r"(?i)untolerated taint",
        "the nodes have a taint that the pod does not tolerate",
        "Compare the taints of the nodes with the tolerations of the pod.",
    ),
    (
        r"(?i)node affinity|node selector",
        "no node has the labels that the pod asks for",
        "Compare nodeSelector and affinity of the pod with the labels of the nodes.",
    ),
    (
        r"(?i)persistentvolumeclaim|unbound immediate|volume node affinity",
        "a volume claim of it is not bound, or its volume is where no suitable node is",
        "Look at the claim and its storage class.",
    ),
    (
        r"(?i)unschedulable|cordon",
        "nodes are cordoned",
        "See which nodes are in maintenance, and let them take pods again when that is over.",
    ),
    (
        r"(?i)too many pods",
        "the nodes have as many pods as they may",
        "Add nodes, or raise the number of pods of a node.",
    ),
    (
        r"(?i)anti-affinity|topology spread",
        "the pod must not run beside others of its kind, and no other node is free",
        "Add nodes, or relax the rules of affinity and spread.",
    ),
    (
        r"(?i)didn't have free ports",
        "the host port is in use on every node",
        "Remove the hostPort, or run fewer pods than nodes.",
    ),
)


@playbook("kubernetes", "unschedulable")
def unschedulable(tickets: Tickets, context: Context) -> Note:
    """No node takes a pod, by the scheduler's own reasons."""
    ticket = tickets[0]
    line = said(context, ticket)
    causes, steps = [], []
    for pattern, cause, step in _REASONS:
        if found := re.search(pattern, line.quote if line else ""):
            about = found[1] if found.groups() else ""
            causes.append(cause.format(about))
            steps.append(step.format(about))
    why = "; ".join(causes) or "the scheduler's message has the reason"
    return write_note(
        tickets,
        summary=f"No node takes the pods of {what(ticket)}.",
        cause=f"The scheduler finds no node: {why}.",
        cited=[line],
        confidence="high" if len(causes) == 1 else "medium",
        reason="these are the reasons of the scheduler itself",
        findings=[finding("The pod.", pod_line(context, text_fact(ticket, "pod")))],
        actions=[
            action(
                "See what the nodes have, and what is requested of it.",
                "kubectl describe nodes",
                kubectl(ticket, "describe", "pod", text_fact(ticket, "pod")),
            ),
            *(action(step) for step in steps),
        ],
    )


@playbook("kubernetes", "pod_quota", "pod_admission")
def refused_pods(tickets: Tickets, context: Context) -> Note:
    """A controller may not create pods: a quota, a webhook or a policy refuses them."""
    ticket = tickets[0]
    quota = ticket.key.invariant == "pod_quota"
    limits = matching_line(context, "Quotas of", _is_full) if quota else None
    line = said(context, ticket)
    called = line is not None and "failed calling webhook" in line.quote
    if quota:
        cause = "The quota of the namespace is used up, so its pods are refused."
        step = "Remove what is not needed in the namespace, lower requests, or raise the quota."
    elif called:
        cause = "An admission webhook does not answer, and so the API server refuses the pods."
        step = "Look at the webhook's own workload and service first: its pods may not start for the same reason."
    else:
        cause = "A check at admission refuses the pods."
        step = "Change what the message names, or the policy that asks for it."
    return write_note(
        tickets,
        summary=f"The pods of {what(ticket)} are refused.",
        cause=cause,
        cited=[line, limits],
        confidence="high" if limits else "medium",
        reason="the API server gave this reason to the controller",
        actions=[
            action(
                "See the refusals.",
                kubectl(
                    ticket, "get events", "--field-selector", "reason=FailedCreate"
                ),
                *((kubectl(ticket, "describe", "resourcequota"),) if quota else ()),
            ),
            action(step),
        ],
    )


def _is_full(line: str) -> bool:
    found = re.search(r": (\S+) of (\S+) used$", line)
    return found is not None and found[1] == found[2]


@playbook("kubernetes", "rollout_stuck")
def rollout(tickets: Tickets, context: Context) -> Note:
    """A rollout does not go on: what it changed, and how its new pods do."""
    ticket = tickets[0]
    diffs = changed(context, ticket.key.component)
    waits = [
        (evidence_id, text)
        for evidence_id, text in evidence_lines(context, "Pods of ")
        if ": waiting " in text
    ]
    state = matching_line(context, "Pods of ", lambda text: ": waiting " in text)
    return write_note(
        tickets,
        summary=f"The rollout of {what(ticket)} does not go on.",
        cause="New pods do not become ready within the deadline of the rollout"
        + (f": {waits[0][1]}." if waits else "."),
        cited=[said(context, ticket), state],
        reason="the controller reports it; why the pods are not ready is in their own state",
        findings=[finding("What this rollout changed.", *diffs[:6])],
        actions=[
            action(
                "See the state of the rollout.",
                kubectl(ticket, "rollout status", target(ticket), "--timeout=5s"),
                kubectl(ticket, "rollout history", target(ticket)),
            ),
            action(
                "Go back to the revision before.",
                kubectl(ticket, "rollout undo", target(ticket)),
                risk="the new pods are replaced by those of the revision before; a tool such as Argo CD may undo that",
            ),
        ],
    )


@playbook("kubernetes", "pods_unready", "pod_pending")
def pod_waits(tickets: Tickets, context: Context) -> Note:
    """A pod does not start on its node, or runs and does not become ready."""
    ticket = tickets[0]
    pod = text_fact(ticket, "pod")
    probe = matching_line(
        context,
        "Events about",
        lambda text: any(
            f" {one} " in text
            for one in (
                "Unhealthy",
                "FailedMount",
                "FailedAttachVolume",
                "FailedCreatePodSandBox",
            )
        ),
    )
    starts = ticket.key.invariant == "pod_pending"
    cause = (
        "What the pod needs on its node does not come: a volume, the network, or the end of an init container."
        if starts
        else "The containers run, and the readiness probe fails or the node is not heard of."
    )
    return write_note(
        tickets,
        summary=f"{pod} of {what(ticket)} {'does not start' if starts else 'is not ready'}.",
        cause=cause,
        cited=[said(context, ticket), probe],
        confidence="medium" if probe else "low",
        reason="the state of the pod is measured; the reason is what its events say",
        findings=[finding("What the kubelet reports.", probe)],
        actions=[
            action(
                "See the pod's events and conditions.",
                kubectl(ticket, "describe", "pod", pod),
            )
        ],
    )


@playbook("kubernetes", "job_failed", "job_overdue", "cronjob_overdue")
def job(tickets: Tickets, context: Context) -> Note:
    """A Job failed, runs for too long, or was not started."""
    ticket = tickets[0]
    name = text_fact(ticket, "job", text_fact(ticket, "name"))
    words = last_words(context, "")
    ended = matching_line(context, "Pods of ", lambda text: ": terminated " in text)
    cause, steps = {
        "job_failed": (
            f"The Job {name} ended without success.",
            [
                action(
                    "Read the log of its pods.",
                    kubectl(ticket, "logs", f"job/{name}", "--all-containers"),
                ),
                action(
                    "When its cause is gone, start it again, and delete the failed one.",
                    risk="the Job does its work again: know that it may be done twice",
                ),
            ],
        ),
        "job_overdue": (
            f"The Job {name} has not ended.",
            [
                action(
                    "See what it does.",
                    kubectl(ticket, "logs", f"job/{name}", "--tail=50"),
                )
            ],
        ),
        "cronjob_overdue": (
            "The CronJob has not started a Job when its schedule says so.",
            [
                action(
                    "See what its controller reports.",
                    kubectl(ticket, "describe", target(ticket)),
                )
            ],
        ),
    }[ticket.key.invariant]
    return write_note(
        tickets,
        summary=f"{what(ticket)}: {cause}",
        cause=cause,
        cited=[said(context, ticket), ended],
        reason="the status of the object says so",
        findings=[finding("What the run before wrote last.", words)],
        actions=steps,
    )
