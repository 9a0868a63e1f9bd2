"""GitLab, and self-managed GitLab, by the REST API: https://docs.gitlab.com/api/merge_requests/."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from midwatch.model import Json
from midwatch.pull_requests.forge import (
    AlreadyOpen,
    ForgePullRequest,
    ForgeRefused,
    ForgeRepository,
    ForgeState,
    ForgeUnreachable,
    Look,
    NewPullRequest,
)
from midwatch.pull_requests.forge_client import Answer, ForgeClient

_PAGE = 100
_CHECKS = {"success": "passed", "failed": "failed", None: "none", "skipped": "none"}
_CHECKS |= {"canceled": "failed", "manual": "pending"}


class GitLab:
    """A GitLab host. Satisfies `Forge`.

    Args:
        api: The URL of its API.
        token: A personal, project or group access token.
        timeout: Seconds of one request.
    """

    longest_body = 1_048_576
    noun = "merge request"

    def __init__(self, api: str, token: str, timeout: float) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self.client = ForgeClient(api, headers, _scope, timeout)

    async def repository(self, project: str) -> ForgeRepository:
        found = _mapping(await self.client.get(_project(project)))
        problem, parent = "", found.get("forked_from_project")
        if found.get("archived"):
            problem = "it is archived"
        elif parent:
            of = parent.get("path_with_namespace")
            problem = f"it is a fork{f' of {of}' if of else ''}, and merge requests of forks are not supported"
        elif found.get("merge_requests_access_level") == "disabled":
            problem = "merge requests are disabled in it"
        return ForgeRepository(
            url=str(found.get("web_url") or ""),
            default_branch=found.get("default_branch") or None,
            public=found.get("visibility") == "public",
            problem=problem,
        )

    async def branch(self, project: str, name: str) -> str | None:
        path = f"{_project(project)}/repository/branches/{quote(name, safe='')}"
        found = _mapping(await self.client.find(path) or {})
        return (found.get("commit") or {}).get("id") or None

    async def find(self, project: str, branch: str) -> Sequence[ForgePullRequest]:
        found: list[ForgePullRequest] = []
        async for page in self.client.pages(
            f"{_project(project)}/merge_requests",
            source_branch=branch,
            state="all",
            order_by="created_at",
            sort="desc",
            per_page=_PAGE,
        ):
            own = [
                one
                for one in _list(page)
                if one.get("source_project_id") == one.get("target_project_id")
            ]
            found += map(_of, own)
        return found

    async def open(self, project: str, new: NewPullRequest) -> ForgePullRequest:
        document = {
            "source_branch": new.branch,
            "target_branch": new.base,
            "title": f"Draft: {new.title}" if new.draft else new.title,
            "description": new.body,
        }
        path = f"{_project(project)}/merge_requests"
        answer = await self.client.send("POST", path, document)
        if answer.status >= 400:
            if "already exists" in answer.says.lower():
                raise AlreadyOpen(answer.says)
            self.client.refuse(answer)
        return _of(answer.body)

    async def describe(self, project: str, number: int, body: str) -> None:
        path = f"{_project(project)}/merge_requests/{number}"
        await self.client.change("PUT", path, {"description": body})

    async def comment(self, project: str, number: int, text: str) -> None:
        path = f"{_project(project)}/merge_requests/{number}/notes"
        await self.client.change("POST", path, {"body": text})

    async def look(self, project: str, number: int, seen: Json) -> Look:
        seen = dict(seen)
        path = f"{_project(project)}/merge_requests/{number}"
        found = await self.client.look(seen, _looked, path)
        one = ForgePullRequest(**found["pull"], body="")
        if one.ended:
            return Look(one, "none", "none", {path: seen[path]})
        review = "changes_requested" if found["changes_requested"] else "unknown"
        if not found["changes_requested"]:
            with suppress(ForgeRefused):  # the token may not read them
                approved = await self.client.look(seen, _approved, f"{path}/approvals")
                review = "approved" if approved else "none"
        wanted = {path, f"{path}/approvals"}
        kept = {place: value for place, value in seen.items() if place in wanted}
        return Look(one, found["checks"], review, kept)

    async def close(self) -> None:
        await self.client.close()


def _scope(answer: Answer) -> str:
    body = answer.body if isinstance(answer.body, dict) else {}
    if body.get("error") == "insufficient_scope":
        return f"the token needs the scope {body.get('scope') or 'api'}"
    return "check the name of the project; the token needs the scope api and the role Developer"


def _project(project: str) -> str:
    return f"/projects/{quote(project, safe='')}"


def _mapping(value: Any) -> Json:
    if not isinstance(value, dict):
        raise ForgeUnreachable("the answer is not one of the GitLab API")
    return value


def _list(value: Any) -> list[Json]:
    if not isinstance(value, list):
        raise ForgeUnreachable("the answer is not one of the GitLab API")
    return [_mapping(one) for one in value]


def _plain(merge: Any) -> Json:
    """Return what is kept of a merge request: the fields of ForgePullRequest but for `body`."""
    merge = _mapping(merge)
    state: ForgeState = "draft" if merge.get("draft") else "open"
    if merge.get("state") in ("merged", "closed"):
        state = merge["state"]
    by = merge.get("merge_user") or merge.get("merged_by") or merge.get("closed_by")
    try:
        return {
            "number": int(merge["iid"]),
            "url": str(merge["web_url"]),
            "state": state,
            "title": str(merge["title"]),
            "head": str(merge.get("sha") or ""),
            "by": str((by or {}).get("username", "")),
        }
    except (KeyError, TypeError, ValueError):
        raise ForgeUnreachable("the answer is not one of the GitLab API") from None


def _of(merge: Any) -> ForgePullRequest:
    return ForgePullRequest(**_plain(merge), body=str(merge.get("description") or ""))


def _looked(merge: Any) -> Json:
    plain = _plain(merge)
    status = (merge.get("head_pipeline") or {}).get("status")
    asks = merge.get("detailed_merge_status") == "requested_changes"
    checks = _CHECKS.get(status, "pending")
    return {"pull": plain, "checks": checks, "changes_requested": asks}


def _approved(found: Any) -> bool:
    return bool(_mapping(found).get("approved_by"))
