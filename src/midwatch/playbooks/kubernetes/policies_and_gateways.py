"""First aid for what is declared and does not work: disruption budgets, network policies and the Gateway API."""

from __future__ import annotations

import shlex

from midwatch.model import Context
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    integer_fact,
    matching_line,
    playbook,
    text_fact,
    write_note,
)
from midwatch.playbooks.kubernetes.naming import kubectl, said, target, what


@playbook("kubernetes", "disruption_budget_blocks")
def disruption_budget(tickets: Tickets, context: Context) -> Note:
    """A disruption budget lets no pod be evicted: its pods are not healthy, or it wants all of them."""
    ticket = tickets[0]
    pods, wanted = integer_fact(ticket, "pods"), integer_fact(ticket, "wanted")
    line = said(context, ticket)
    whole = pods is not None and wanted is not None and wanted >= pods
    if line is not None and "SyncFailed" in line.quote:
        cause = "The controller cannot tell how many pods there should be, so it allows no disruption."
        step = "See the owner of its pods: it must be a workload with a scale."
    elif whole:
        cause = "The budget wants as many healthy pods as the workload has, so that none may ever be evicted."
        step = "Run one more pod, or let the budget allow one to be missing (maxUnavailable: 1)."
    else:
        cause = "Not enough pods are healthy, so none of the others may be evicted."
        step = "Make its pods healthy first: their own tickets and events say why they are not."
    return write_note(
        tickets,
        summary=f"Nodes with pods of {what(ticket)} cannot be drained.",
        cause=cause,
        cited=[line],
        confidence="high" if whole else "medium",
        reason="these are the counts of the disruption controller",
        actions=[
            action(
                "See the budget and its pods.",
                kubectl(ticket, "describe", target(ticket)),
                kubectl(ticket, "get pods", "--show-labels"),
            ),
            action(step),
        ],
    )


@playbook("kubernetes", "disruption_budget_unused", "network_policy_unused")
def unused_policy(tickets: Tickets, context: Context) -> Note:
    """A budget or policy selects nothing: the labels have changed, or what it was for is gone."""
    ticket = tickets[0]
    budget = ticket.key.invariant == "disruption_budget_unused"
    effect = "protects" if budget else "restricts"
    return write_note(
        tickets,
        summary=f"{what(ticket)} selects no pod.",
        cause=f"No pod or workload of the namespace has the labels that it selects, so it {effect} nothing: they were renamed, or what "
        "it was made for is gone.",
        cited=[said(context, ticket)],
        reason="the labels of all pods and workloads of the namespace were compared",
        actions=[
            action(
                "Compare its selector with the labels of the pods.",
                kubectl(ticket, "describe", target(ticket)),
                kubectl(ticket, "get pods", "--show-labels"),
            ),
            action(
                "Correct the selector, or delete it if nothing needs it any more.",
                risk="a corrected network policy restricts pods that nothing restricted before",
            ),
        ],
    )


@playbook(
    "kubernetes", "gateway_class_accepted", "gateway_programmed", "http_route_accepted"
)
def gateway(tickets: Tickets, context: Context) -> Note:
    """A part of the Gateway API is not taken over by its controller, or a route leads nowhere."""
    ticket = tickets[0]
    line = said(context, ticket)
    quote = line.quote if line else ""
    missing = text_fact(ticket, "service")
    condition = matching_line(
        context,
        "Status of",
        lambda text: "].message: " in text and text.partition(": ")[2] in quote,
    )
    cause, step = _gateway_cause(quote, missing)
    commands = [
        kubectl(
            ticket,
            "describe",
            _full_name(text_fact(ticket, "kind"), text_fact(ticket, "name")),
        )
    ]
    if name := text_fact(ticket, "gateway_class"):
        commands.append(
            shlex.join(["kubectl", "describe", _full_name("GatewayClass", name)])
        )
    return write_note(
        tickets,
        summary=f"{what(ticket)} does not serve.",
        cause=cause,
        cited=[line, condition],
        reason="these are the conditions that the gateway's controller reports",
        actions=[action("See all its conditions.", *commands), action(step)],
    )


def _full_name(kind: str, name: str) -> str:
    """Return an object as an argument of kubectl, with its group: other APIs have gateways too."""
    plural = {"GatewayClass": "gatewayclasses"}.get(kind, f"{kind.lower()}s")
    return f"{plural}.gateway.networking.k8s.io/{name}"


def _gateway_cause(said: str, missing: str) -> tuple[str, str]:
    """Return the cause and the next step for what a controller reports."""
    if missing:
        return (
            f"The route sends requests to the service {missing}, which does not exist.",
            "Correct the backendRefs, or create the service.",
        )
    if "ResolvedRefs" in said:
        return (
            "What the route or the gateway names does not exist, or must not be used from its namespace.",
            "Correct the reference; across namespaces a ReferenceGrant is needed.",
        )
    if "Waiting for controller" in said or "no Gateway has looked" in said:
        return (
            "No controller has taken it over: none with its name runs, or it does not watch this namespace.",
            "See whether the gateway controller runs, and which controllerName the GatewayClass has.",
        )
    if "NotAllowedByListeners" in said or "NoMatching" in said:
        return (
            "No listener of the Gateway takes this route: by its namespace, its host name or its kind.",
            "Compare allowedRoutes and hostname of the listeners with the route.",
        )
    return (
        "The controller has not taken it over, for the reason that it reports.",
        "Read the message of the condition, and the log of the gateway controller.",
    )
