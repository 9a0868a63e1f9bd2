"""What the playbooks of clusters share: how a ticket's objects are named in commands, and which lines prove what."""

from __future__ import annotations

import re
import shlex

from midwatch.diagnosis_schema import Citation
from midwatch.model import Context, Ticket
from midwatch.playbooks.base import (
    bounded,
    evidence_lines,
    matching_line,
    own_line,
    text_fact,
)


def said(context: Context, ticket: Ticket) -> Citation | None:
    """Return the line of the violation itself."""
    return own_line(context, ticket, "message: ")


def what(ticket: Ticket) -> str:
    """Return the object of a ticket as people name it."""
    return f"{text_fact(ticket, 'kind')} {text_fact(ticket, 'name')}"


def kubectl(ticket: Ticket, verb: str, *words: str) -> str:
    """Return a command in the ticket's namespace."""
    namespace = text_fact(ticket, "namespace")
    where = ["-n", namespace] if namespace else []
    return shlex.join(["kubectl", *where, *verb.split(), *words])


def target(ticket: Ticket) -> str:
    """Return the object of a ticket as an argument of kubectl: `deployment/shop`."""
    return f"{text_fact(ticket, 'kind').lower()}/{text_fact(ticket, 'name')}"


def last_words(context: Context, pod: str) -> Citation | None:
    """Return the last line with an error that the run before has written, else its last line. It is text of the workload."""
    found = None
    error = None
    for evidence_id, text in evidence_lines(context, "the run before"):
        if not text or text.startswith("("):
            continue
        cited = Citation(evidence_id=evidence_id, quote=bounded(text))
        found = cited
        if _ERROR.search(text):
            error = cited
    return error or found


_ERROR = re.compile(
    r"(?i)\b(error|fatal|panic|exception|refused|denied|cannot|failed|not found|no such|missing)\b"
)


def changed(context: Context, name: str) -> list[Citation]:
    """Return what the last rollout of a workload changed."""
    return [
        Citation(evidence_id=evidence_id, quote=bounded(text))
        for evidence_id, text in evidence_lines(context, f"Rollout history of {name}")
        if text.startswith(("changed ", "added ", "removed "))
    ]


def pod_line(context: Context, pod: str) -> Citation | None:
    """Return the line about a pod in the evidence about pods."""
    return matching_line(
        context, "Pods of ", lambda text: text.startswith(f"pod {pod}: ")
    )
