"""Webhooks of GitLab: deployments, pushes, tags and pipelines.

https://docs.gitlab.com/user/project/integrations/webhook_events/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

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
    list_of,
    object_of,
    read_json,
    required_text,
    text_of,
)

_STATES = {"running": "began", "success": "succeeded", "failed": "failed"}
"""The states of a deployment in which something was changed."""
_ENDED = ("success", "failed")
_IDS = ("webhook-id", "idempotency-key", "x-gitlab-event-uuid")
"""Headers that name a delivery. The first two stay the same when it is sent again; the first is signed, so it comes first."""


def read_gitlab(body: bytes, headers: Mapping[str, str]) -> ReportedDelivery:
    """Return what a webhook of GitLab reports. Other events report nothing. Raises Unreadable."""
    document = object_of(read_json(body), "the body")
    read = _READERS.get(text_of(document.get("object_kind"), "object_kind"))
    if read is None:
        return ReportedDelivery()
    given = next((headers[name] for name in _IDS if headers.get(name)), "")
    project = part_of(document, "project")
    urls = (project.get(name) for name in ("git_http_url", "git_ssh_url", "web_url"))
    found = read(document)
    named = text_of(project.get("path_with_namespace"), "project.path_with_namespace")
    changes = tuple(
        replace(
            one,
            key=(
                one.key
                if one.key.startswith(_OF_COMMITS)
                else f"gitlab {given or f'{named} {one.key}'}"
            ),
            labels=labels(repository=named, environment=found.environment),
        )
        for one in found.changes
    )
    return replace(
        found,
        changes=changes,
        repositories=tuple(one for one in urls if isinstance(one, str)),
        default_branch=text_of(project.get("default_branch"), "project.default_branch"),
    )


_OF_COMMITS = ("commit ", "tag ")
"""What begins the keys of what a reading of the repository finds too."""


def _deployment(document: Mapping[str, Any]) -> ReportedDelivery:
    status = required_text(document.get("status"), "status")
    environment = text_of(document.get("environment"), "environment")
    if status not in _STATES:
        return ReportedDelivery(environment=environment)
    title = f"deployment to {environment or 'an environment'} {_STATES[status]}"
    about = first_line(document.get("commit_title"), "commit_title")
    ref = text_of(document.get("ref"), "ref")
    commit = text_of(document.get("short_sha"), "short_sha")
    change = ReportedChange(
        f"deployment {document.get('deployment_id')} {status}",
        f"{title}: {about}" if about else title,
        "gitlab",
        at=when(document.get("status_changed_at"), "status_changed_at"),
        version_to=f"{ref} {commit}".strip(),
        link=text_of(document.get("deployable_url"), "deployable_url"),
        author=_user(part_of(document, "user")),
    )
    return ReportedDelivery((change,), environment=environment)


def _push(document: Mapping[str, Any]) -> ReportedDelivery:
    ref = required_text(document.get("ref"), "ref")
    after = required_text(document.get("after"), "after")
    if NO_COMMIT.fullmatch(after):  # deleted
        return ReportedDelivery()
    commits = list_of(document.get("commits") or [], "commits")
    last: Any = next(
        (one for one in commits if part_of({"c": one}, "c").get("id") == after), {}
    )
    title = (
        first_line(part_of({"c": last}, "c").get("message"), "commits.message")
        or "push"
    )
    count = document.get("total_commits_count")
    count = count if isinstance(count, int) else len(commits)
    if count > 1:
        title = f"{count} commits, the last: {title}"
    branch = ref.removeprefix("refs/heads/")
    change = ReportedChange(
        f"commit {after}",
        title,
        "gitlab",
        ChangeKind.COMMIT,
        version_from=short(text_of(document.get("before"), "before")),
        version_to=short(after),
        link=text_of(part_of({"c": last}, "c").get("url"), "commits.url"),
        author=text_of(document.get("user_name"), "user_name"),
        files=files_of(commits),
        details={"commit": after, "branch": branch} if OID.fullmatch(after) else {},
    )
    return ReportedDelivery((change,), branch=branch)


def _tag_push(document: Mapping[str, Any]) -> ReportedDelivery:
    name = required_text(document.get("ref"), "ref").removeprefix("refs/tags/")
    after = required_text(document.get("after"), "after")
    if NO_COMMIT.fullmatch(after):
        return ReportedDelivery()
    message = first_line(document.get("message"), "message")
    change = ReportedChange(
        f"tag {name} {after}",
        f"tag {name}: {message}" if message else f"tag {name}",
        "gitlab",
        ChangeKind.TAG,
        version_to=name,
        author=text_of(document.get("user_name"), "user_name"),
    )
    return ReportedDelivery((change,))


def _pipeline(document: Mapping[str, Any]) -> ReportedDelivery:
    made = object_of(document.get("object_attributes"), "object_attributes")
    status = text_of(made.get("status"), "object_attributes.status")
    if status not in _ENDED:
        return ReportedDelivery()
    name = text_of(made.get("name"), "object_attributes.name")
    change = ReportedChange(
        f"pipeline {made.get('id')} {status}",
        f"pipeline {name}: {status}" if name else f"pipeline: {status}",
        "gitlab",
        ChangeKind.OTHER,
        when(made.get("finished_at"), "object_attributes.finished_at"),
        version_to=short(text_of(made.get("sha"), "object_attributes.sha")),
        link=text_of(made.get("url"), "object_attributes.url"),
        author=_user(part_of(document, "user")),
    )
    tag = made.get("tag") is True
    branch = "" if tag else text_of(made.get("ref"), "object_attributes.ref")
    return ReportedDelivery((change,), branch=branch)


def _user(user: Mapping[str, Any]) -> str:
    return text_of(user.get("username") or user.get("name"), "user.username")


_READERS: Mapping[str, Callable[[Mapping[str, Any]], ReportedDelivery]] = {
    "deployment": _deployment,
    "push": _push,
    "tag_push": _tag_push,
    "pipeline": _pipeline,
}
