"""First aid for containers: they crash, run out of memory, have no image, or cannot be created."""

from __future__ import annotations

import re
from collections.abc import Sequence

from midwatch.diagnosis_schema import Action, Citation
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    Note,
    Tickets,
    action,
    bounded,
    finding,
    integer_fact,
    matching_line,
    playbook,
    reading,
    text_fact,
    write_note,
)
from midwatch.playbooks.kubernetes.naming import (
    changed,
    kubectl,
    last_words,
    said,
    target,
    what,
)

_MEANINGS = {
    1: "the program ended with an error",
    2: "the program ended with an error, often a wrong argument",
    126: "the command cannot be run: it is not executable",
    127: "the command does not exist in the image",
    128: "the container's command cannot be started",
    134: "the program aborted itself (SIGABRT)",
    137: "it was killed (SIGKILL): at its memory limit, by a liveness probe, or with its pod",
    139: "the program crashed (SIGSEGV)",
    143: "it was asked to end (SIGTERM), as a failed liveness probe does",
}


@playbook("kubernetes", "crash_loop")
def crash_loop(tickets: Tickets, context: Context) -> Note:
    """Containers crash: their exit code, their last words, and what the last rollout changed."""
    ticket = tickets[0]
    code = integer_fact(ticket, "exit_code")
    pod, container = text_fact(ticket, "pod"), text_fact(ticket, "container")
    line = said(context, ticket)
    words = last_words(context, pod)
    diffs = changed(context, ticket.key.component)
    probe = matching_line(
        context,
        "Events about",
        lambda text: " Unhealthy " in text and "Liveness" in text,
    )
    meaning = _MEANINGS.get(code, "") if code is not None else ""
    return write_note(
        tickets,
        summary=f"Container {container} of {what(ticket)} crashes again and again.",
        cause=f"Container {container} exits with code {code}{f': {meaning}' if meaning else ''}.{_said_last(words)}",
        cited=[line, words],
        reason="the exit code is what the kubelet measured; the log is what the program says about itself",
        findings=[
            finding(_changes(diffs), *diffs[:5]),
            finding(
                "A liveness probe fails, and the kubelet restarts the container.", probe
            ),
        ],
        readings=[reading("restarts", str(ticket.facts.get("restarts")), line)],
        actions=[
            action(
                "Read the log of the run before.",
                kubectl(ticket, "logs", pod, "-c", container, "--previous"),
            ),
            *_undo(ticket, bool(diffs)),
        ],
    )


_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\S+ ")


def _said_last(words: Citation | None) -> str:
    """Return what a program wrote before its end, as its own words."""
    if words is None:
        return ""
    return f" Before that it wrote: {bounded(_TIME.sub('', words.quote), 200)}"


def _changes(diffs: Sequence[Citation]) -> str:
    """Return what the last rollout changed, in a line."""
    some = "; ".join(bounded(one.quote, 120) for one in diffs[:3])
    return f"The last rollout changed the pods: {some}"


def _undo(ticket: Ticket, is_changed: bool) -> list[Action]:
    """Return the way back to the revision before, if the last rollout changed something."""
    if not is_changed or text_fact(ticket, "kind") not in (
        "Deployment",
        "StatefulSet",
        "DaemonSet",
    ):
        return []
    return [
        action(
            "If it began with the last rollout, go back to the revision before.",
            kubectl(ticket, "rollout history", target(ticket)),
            kubectl(ticket, "rollout undo", target(ticket)),
            risk="all pods are replaced by those of the revision before; a tool such as Argo CD may undo that",
        )
    ]


@playbook("kubernetes", "oom_killed")
def out_of_memory(tickets: Tickets, context: Context) -> Note:
    """Containers were killed at their memory limit."""
    ticket = tickets[0]
    container = text_fact(ticket, "container")
    use = matching_line(
        context, "Resource use of", lambda text: text.startswith(f"{container} memory:")
    )
    no_limit = use is not None and use.quote.endswith("limit none")
    diffs = changed(context, ticket.key.component)
    where = (
        "its node has run out of memory"
        if no_limit
        else "it needs more memory than its limit"
    )
    return write_note(
        tickets,
        summary=f"The kernel killed container {container} of {what(ticket)}: out of memory.",
        cause=f"Container {container} was killed for its memory: {where}.",
        cited=[said(context, ticket), use],
        reason="the kubelet reports the reason OOMKilled; whether the limit is too low or the program leaks is not measured",
        findings=[finding(_changes(diffs), *diffs[:5])],
        actions=[
            action(
                "Compare the use of memory over time with the limit: does it grow without end (a leak), or with load?",
                kubectl(ticket, "top pod", text_fact(ticket, "pod"), "--containers"),
            ),
            *_undo(ticket, bool(diffs)),
            action(
                "If the program needs it, raise the memory limit and request in the workload's manifest.",
                risk="the pods are replaced; nodes need the room",
            ),
        ],
    )


@playbook("kubernetes", "image_pull")
def image_pull(tickets: Tickets, context: Context) -> Note:
    """An image cannot be pulled: it does not exist, is not allowed, or the registry does not answer."""
    ticket = tickets[0]
    line = said(context, ticket)
    text = (line.quote if line else "").casefold()
    cause, step = _image_cause(text)
    diffs = [
        one for one in changed(context, ticket.key.component) if ".image:" in one.quote
    ]
    return write_note(
        tickets,
        summary=f"The image of {what(ticket)} cannot be pulled.",
        cause=cause,
        cited=[line],
        confidence="high" if diffs else "medium",
        reason="the kubelet quotes the registry's answer",
        findings=[finding("The last rollout changed the image.", *diffs[:3])],
        actions=[action(step), *_undo(ticket, bool(diffs))],
    )


def _image_cause(text: str) -> tuple[str, str]:
    if "invalidimagename" in text or "invalid reference" in text:
        return (
            "The name of the image is not valid.",
            "Correct the image in the manifest.",
        )
    if any(
        one in text for one in ("unauthorized", "denied", "forbidden", "401", "403")
    ):
        return (
            "The registry does not let this cluster have the image, or hides that it does not exist.",
            "Check the image pull secrets of the pod and of its service account, and their expiry.",
        )
    if any(one in text for one in ("not found", "manifest unknown", "notfound", "404")):
        return (
            "The registry does not have this image or tag.",
            "Check name and tag; see whether the build has pushed it.",
        )
    if any(one in text for one in ("timeout", "no such host", "refused", "i/o", "tls")):
        return (
            "The registry cannot be reached from the node.",
            "Check name resolution, network and proxy of the nodes, and the registry itself.",
        )
    if "toomanyrequests" in text or "rate limit" in text or "429" in text:
        return (
            "The registry limits how often this cluster may pull.",
            "Log in to the registry with a pull secret, or use a mirror.",
        )
    return (
        "The image cannot be pulled.",
        "Read the message of the kubelet in the events.",
    )


@playbook("kubernetes", "container_config")
def container_config(tickets: Tickets, context: Context) -> Note:
    """A container cannot be created, mostly as a ConfigMap, a Secret or a key of it is missing."""
    ticket = tickets[0]
    missing = matching_line(
        context, "Objects that", lambda text: text.endswith("does not exist")
    )
    diffs = changed(context, ticket.key.component)
    return write_note(
        tickets,
        summary=f"A container of {what(ticket)} cannot be created.",
        cause="What the container's configuration names is missing, or the runtime refuses it.",
        cited=[said(context, ticket), missing],
        confidence="high" if missing else "medium",
        reason="the kubelet names what it lacks",
        findings=[finding(_changes(diffs), *diffs[:5])],
        actions=[
            action(
                "See what the pod names, and what exists.",
                kubectl(ticket, "describe", "pod", text_fact(ticket, "pod")),
                kubectl(ticket, "get", "configmaps,secrets"),
            ),
            *_undo(ticket, bool(diffs)),
        ],
    )
