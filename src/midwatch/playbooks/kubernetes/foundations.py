"""First aid for what workloads stand on: claims, nodes, services, webhooks and autoscalers."""

from __future__ import annotations

import shlex

from midwatch.model import Context
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    finding,
    matching_line,
    playbook,
    text_fact,
    write_note,
)
from midwatch.playbooks.kubernetes.naming import kubectl, said, target, what


@playbook("kubernetes", "claim_unbound")
def claim(tickets: Tickets, context: Context) -> Note:
    """A volume claim has no volume."""
    ticket = tickets[0]
    event = matching_line(
        context,
        "Events about",
        lambda text: " ProvisioningFailed " in text or " FailedBinding " in text,
    )
    return write_note(
        tickets,
        summary=f"{what(ticket)} has no volume.",
        cause="No volume has been provisioned or bound for the claim.",
        cited=[said(context, ticket), event],
        confidence="medium" if event else "low",
        reason="the phase of the claim is measured; why is what the provisioner says",
        findings=[finding("What the provisioner says.", event)],
        actions=[
            action(
                "See the claim, its storage class and the provisioner.",
                kubectl(ticket, "describe", "pvc", text_fact(ticket, "name")),
                "kubectl get storageclasses",
            )
        ],
    )


@playbook("kubernetes", "node_ready", "node_pressure")
def node(tickets: Tickets, context: Context) -> Note:
    """A node is not ready, or short of something."""
    ticket = tickets[0]
    name = text_fact(ticket, "name")
    line = matching_line(
        context, "Nodes", lambda text: text.startswith(f"node {name}: ")
    )
    pressed = ticket.key.invariant == "node_pressure"
    lost = line is not None and "=Unknown" in line.quote
    cause = f"The kubelet of {name} reports {text_fact(ticket, 'pressure')}."
    if not pressed:
        cause = (
            f"The kubelet of {name} reports nothing any more: the machine, its network or the kubelet is down."
            if lost
            else f"The kubelet of {name} reports that it is not ready."
        )
    return write_note(
        tickets,
        summary=f"Node {name} is {'under pressure' if pressed else 'not ready'}.",
        cause=cause,
        cited=[said(context, ticket), line],
        reason="these are the conditions that the kubelet and the node controller report",
        actions=[
            action(
                "See its conditions, and what runs there.",
                f"kubectl describe node {shlex.quote(name)}",
                f"kubectl get pods --all-namespaces --field-selector spec.nodeName={shlex.quote(name)}",
            ),
            action(
                "If it does not come back, let no new pods in, and look at the machine.",
                f"kubectl cordon {shlex.quote(name)}",
                risk="no new pod is placed on this node; `kubectl uncordon` ends that",
            ),
        ],
    )


@playbook("kubernetes", "service_endpoints", "ingress_backend")
def endpoints(tickets: Tickets, context: Context) -> Note:
    """A service has no endpoints, or does not exist."""
    ticket = tickets[0]
    missing = ticket.key.invariant == "ingress_backend"
    pods = matching_line(context, "Pods of ", lambda text: text.startswith("pod "))
    cause = "The Ingress names a service that does not exist."
    if not missing:
        cause = (
            "Pods that the service selects exist, and none of them is ready."
            if ticket.facts.get("unready") or pods
            else "No pod has the labels that the service selects."
        )
    return write_note(
        tickets,
        summary=f"{what(ticket)} leads nowhere.",
        cause=cause,
        cited=[said(context, ticket), pods],
        reason="this is what the endpoint slices say",
        actions=[
            action(
                "Compare its selector with the labels of the pods.",
                kubectl(ticket, "describe", target(ticket)),
                kubectl(ticket, "get pods", "--show-labels"),
            )
        ],
    )


@playbook("kubernetes", "ingress_certificate")
def ingress_certificate(tickets: Tickets, context: Context) -> Note:
    """The certificate of an Ingress is refused, or ends soon: who renews it, and what is served."""
    ticket = tickets[0]
    line = said(context, ticket)
    host, secret = text_fact(ticket, "host"), text_fact(ticket, "secret")
    issuer = matching_line(
        context, f"that {host} shows", lambda text: text.startswith("issuer: ")
    )
    end = matching_line(
        context, f"that {host} shows", lambda text: text.startswith("not after: ")
    )
    cause, step = _certificate_cause(line.quote if line else "", secret)
    where = ["-connect", text_fact(ticket, "address"), "-servername", host]
    return write_note(
        tickets,
        summary=f"Clients of {host}, of {what(ticket)}, refuse its certificate or will soon.",
        cause=cause,
        cited=[line, end],
        confidence="high" if end else "medium",
        reason="Midwatch itself did the TLS handshake with this host",
        findings=[finding("What the host shows.", issuer, end)],
        actions=[
            action(
                "See which certificate is served.",
                shlex.join(["openssl", "s_client", *where, "-showcerts"]),
            ),
            action(
                step,
                kubectl(ticket, "describe", target(ticket)),
                kubectl(ticket, "get", "certificates,certificaterequests,orders"),
            ),
        ],
        missing=[
            "Secrets are not read: whether the new certificate is in one is not known."
        ],
    )


def _certificate_cause(said: str, secret: str) -> tuple[str, str]:
    """Return the cause and the next step for a message about a certificate."""
    of = f" of the Secret {secret}" if secret else ""
    if "is for another name" in said:
        return (
            "The certificate that is served does not have this host's name: often it is the ingress controller's own, which it "
            f"shows where the Secret{f' {secret}' if secret else ''} is missing or cannot be used.",
            "Check that the Secret exists and that its certificate is for this host.",
        )
    if "is not trusted" in said:
        return (
            "The certificate does not lead to an authority that clients trust: it is self-signed, or one between them is not sent.",
            f"Check the chain{of}; give `ca_file` if clients trust an authority of your own.",
        )
    return (
        f"The certificate{of} was not renewed.",
        "See why it was not renewed: cert-manager's Certificate, its requests and their events.",
    )


@playbook("kubernetes", "webhook_endpoints")
def webhook(tickets: Tickets, context: Context) -> Note:
    """A webhook refuses everything, as nothing answers for it."""
    ticket = tickets[0]
    namespace, _, service = text_fact(ticket, "service").partition("/")
    where = ["-n", namespace, "get", "pods,endpointslices"]
    return write_note(
        tickets,
        summary=f"The webhook {text_fact(ticket, 'webhook')} refuses every request.",
        cause=f"Nothing answers for the service {service} of the webhook, whose failure policy is Fail.",
        cited=[said(context, ticket)],
        reason="configuration and endpoints are what the API server itself uses",
        actions=[
            action("See why its pods are not ready.", shlex.join(["kubectl", *where])),
            action(
                "If nothing can start any more, even the webhook's own pods, remove its configuration until they run.",
                shlex.join(["kubectl", "delete", target(ticket)]),
                risk="what the webhook checks or adds is not checked or added until its configuration is back",
                undo=False,
            ),
        ],
    )


@playbook("kubernetes", "hpa_at_maximum", "hpa_metrics")
def autoscaler(tickets: Tickets, context: Context) -> Note:
    """An autoscaler is at its maximum, or has no metrics."""
    ticket = tickets[0]
    full = ticket.key.invariant == "hpa_at_maximum"
    cause = (
        "The load asks for more pods than the autoscaler may start."
        if full
        else "The autoscaler cannot read its metrics or its target, so nothing is scaled."
    )
    step = (
        "See whether the load is real; then raise the maximum, or make each pod do more."
        if full
        else "Check that metrics-server runs and that the pods have resource requests."
    )
    return write_note(
        tickets,
        summary=f"{what(ticket)} {'is at its maximum' if full else 'does not scale'}.",
        cause=cause,
        cited=[said(context, ticket)],
        reason="the conditions of the autoscaler say so",
        actions=[
            action(step, kubectl(ticket, "describe", "hpa", text_fact(ticket, "name"))),
        ],
    )
