"""Webhooks of GitHub: deployments and their statuses, pushes, releases and runs of workflows.

https://docs.github.com/en/webhooks/webhook-events-and-payloads
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

from midwatch.agent.reported_changes import ReportedChange
from midwatch.model import ChangeKind
from midwatch.server.senders.change_reading import (
    NO_COMMIT,
    OID,
    ReportedDelivery,
    files_of,
    first_line,
    labels,
    part_of,
    short,
    when,
)
from midwatch.server.senders.reading import (
    Unreadable,
    list_of,
    object_of,
    read_json,
    required_text,
    text_of,
)

_STATES = {
    "in_progress": "began",
    "success": "succeeded",
    "failure": "failed",
    "error": "failed",
}
"""The states of a deployment in which something was changed; in others it waits."""
_FORM = "application/x-www-form-urlencoded"


def read_github(body: bytes, headers: Mapping[str, str]) -> ReportedDelivery:
    """Return what a webhook of GitHub reports. Other events report nothing. Raises Unreadable."""
    if headers.get("content-type", "").partition(";")[0].strip() == _FORM:
        fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=10)
        body = fields.get("payload", [""])[0].encode()
    event = headers.get("x-github-event", "")
    read = _READERS.get(event)
    document = object_of(read_json(body), "the body")
    if read is None:
        return ReportedDelivery()
    delivery = headers.get("x-github-delivery", "")
    if not delivery:
        raise Unreadable("the request has no header X-GitHub-Delivery")
    repository = part_of(document, "repository")
    urls = (repository.get(name) for name in ("clone_url", "ssh_url", "html_url"))
    found = read(document)
    named = text_of(repository.get("full_name"), "repository.full_name")
    changes = tuple(
        replace(
            one,
            key=one.key or f"github {delivery}",
            author=one.author
            or text_of(part_of(document, "sender").get("login"), "sender.login"),
            labels=labels(repository=named, environment=found.environment),
        )
        for one in found.changes
    )
    return replace(
        found,
        changes=changes,
        repositories=tuple(one for one in urls if isinstance(one, str)),
        default_branch=text_of(
            repository.get("default_branch"), "repository.default_branch"
        ),
    )


def _deployment(document: Mapping[str, Any]) -> ReportedDelivery:
    made = object_of(document.get("deployment"), "deployment")
    environment = text_of(made.get("environment"), "deployment.environment")
    about = first_line(made.get("description"), "deployment.description")
    return _deployed(made, environment, "requested", about, made.get("created_at"))


def _deployment_status(document: Mapping[str, Any]) -> ReportedDelivery:
    made = object_of(document.get("deployment"), "deployment")
    status = object_of(document.get("deployment_status"), "deployment_status")
    state = required_text(status.get("state"), "deployment_status.state")
    environment = text_of(
        status.get("environment") or made.get("environment"), "deployment.environment"
    )
    if state not in _STATES:
        return ReportedDelivery(environment=environment)
    about = first_line(status.get("description"), "deployment_status.description")
    found = _deployed(
        made, environment, _STATES[state], about, status.get("created_at")
    )
    link = text_of(
        status.get("log_url") or status.get("target_url"), "deployment_status.log_url"
    )
    changes = tuple(replace(one, link=link) for one in found.changes)
    return replace(found, changes=changes)


def _deployed(
    made: Mapping[str, Any], environment: str, state: str, about: str, at: Any
) -> ReportedDelivery:
    title = f"deployment to {environment or 'an environment'} {state}"
    ref = text_of(made.get("ref"), "deployment.ref")
    commit = text_of(made.get("sha"), "deployment.sha")
    change = ReportedChange(
        key="",
        title=f"{title}: {about}" if about else title,
        source="github",
        at=when(at, "created_at"),
        version_to=f"{ref} {short(commit)}".strip() if ref != commit else short(commit),
        author=text_of(part_of(made, "creator").get("login"), "deployment.creator"),
    )
    return ReportedDelivery((change,), environment=environment)


def _push(document: Mapping[str, Any]) -> ReportedDelivery:
    ref = required_text(document.get("ref"), "ref")
    after = required_text(document.get("after"), "after")
    if NO_COMMIT.fullmatch(after):  # deleted
        return ReportedDelivery()
    at = when(part_of(document, "repository").get("pushed_at"), "repository.pushed_at")
    author = text_of(part_of(document, "pusher").get("name"), "pusher.name")
    link = text_of(document.get("compare"), "compare")
    if ref.startswith("refs/tags/"):
        name = ref.removeprefix("refs/tags/")
        tag = ReportedChange(
            f"tag {name} {after}",
            f"tag {name}",
            "github",
            ChangeKind.TAG,
            at,
            version_to=name,
            link=link,
            author=author,
        )
        return ReportedDelivery((tag,))
    commits = list_of(document.get("commits") or [], "commits")
    head = part_of(document, "head_commit")
    title = first_line(head.get("message"), "head_commit.message") or "push"
    if len(commits) > 1:
        title = f"{len(commits)} commits, the last: {title}"
    branch = ref.removeprefix("refs/heads/")
    change = ReportedChange(
        f"commit {after}",
        title,
        "github",
        ChangeKind.COMMIT,
        at,
        version_from=short(text_of(document.get("before"), "before")),
        version_to=short(after),
        link=link,
        author=author,
        files=files_of(commits),
        details={"commit": after, "branch": branch} if OID.fullmatch(after) else {},
    )
    return ReportedDelivery((change,), branch=branch)


def _release(document: Mapping[str, Any]) -> ReportedDelivery:
    if document.get("action") not in ("published", "released"):
        return ReportedDelivery()
    made = object_of(document.get("release"), "release")
    tag = required_text(made.get("tag_name"), "release.tag_name")
    name = text_of(made.get("name"), "release.name")
    change = ReportedChange(
        f"release {tag} {made.get('id')}",
        f"release {tag}" + (f": {name}" if name and name != tag else ""),
        "github",
        ChangeKind.TAG,
        when(made.get("published_at"), "release.published_at"),
        version_to=tag,
        link=text_of(made.get("html_url"), "release.html_url"),
        author=text_of(part_of(made, "author").get("login"), "release.author"),
    )
    return ReportedDelivery((change,))


def _workflow_run(document: Mapping[str, Any]) -> ReportedDelivery:
    if document.get("action") != "completed":
        return ReportedDelivery()
    made = object_of(document.get("workflow_run"), "workflow_run")
    name = text_of(made.get("name"), "workflow_run.name") or "workflow"
    conclusion = text_of(made.get("conclusion"), "workflow_run.conclusion")
    change = ReportedChange(
        "",
        f"workflow {name}: {conclusion or 'ended'}",
        "github",
        ChangeKind.OTHER,
        when(made.get("updated_at"), "workflow_run.updated_at"),
        version_to=short(text_of(made.get("head_sha"), "workflow_run.head_sha")),
        link=text_of(made.get("html_url"), "workflow_run.html_url"),
        author=text_of(part_of(made, "actor").get("login"), "workflow_run.actor"),
    )
    branch = text_of(made.get("head_branch"), "workflow_run.head_branch")
    return ReportedDelivery((change,), branch=branch)


_READERS: Mapping[str, Callable[[Mapping[str, Any]], ReportedDelivery]] = {
    "deployment": _deployment,
    "deployment_status": _deployment_status,
    "push": _push,
    "release": _release,
    "workflow_run": _workflow_run,
}
