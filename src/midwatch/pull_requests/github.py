"""GitHub, and GitHub Enterprise Server, by the REST API: https://docs.github.com/en/rest/pulls/pulls."""

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
    NothingToMerge,
)
from midwatch.pull_requests.forge_client import Answer, ForgeClient

_PAGE = 100
_FAILED = ("failure", "timed_out", "action_required", "startup_failure", "error")
_GOOD = ("success", "neutral", "skipped")


class GitHub:
    """A GitHub host. Satisfies `Forge`.

    Args:
        api: The URL of its API.
        token: A token, fine-grained or classic, of a person or an app.
        timeout: Seconds of one request.
    """

    longest_body = 65_536
    noun = "pull request"

    def __init__(self, api: str, token: str, timeout: float) -> None:
        headers = {
            "Authorization": f"Bearer {token}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        self.client = ForgeClient(api, headers, _scope, timeout)

    async def repository(self, project: str) -> ForgeRepository:
        found = _mapping(await self.client.get(_repo(project)))
        problem, parent = "", _mapping(found.get("parent") or {})
        if found.get("archived") or found.get("disabled"):
            problem = "it is archived" if found.get("archived") else "it is disabled"
        elif found.get("fork"):
            of = parent.get("full_name")
            problem = f"it is a fork{f' of {of}' if of else ''}, and pull requests of forks are not supported"
        elif (found.get("permissions") or {}).get("push") is False:
            problem = f"the token may not write to it ({_WRITE})"
        return ForgeRepository(
            url=str(found.get("html_url") or ""),
            default_branch=found.get("default_branch") or None,
            public=not found.get("private", True)
            and found.get("visibility", "public") == "public",
            problem=problem,
        )

    async def branch(self, project: str, name: str) -> str | None:
        found = await self.client.find(f"{_repo(project)}/git/ref/heads/{quote(name)}")
        commit = _mapping(found or {}).get("object") or {}
        return commit.get("sha") or None

    async def find(self, project: str, branch: str) -> Sequence[ForgePullRequest]:
        owner = project.partition("/")[0]
        found: list[ForgePullRequest] = []
        async for page in self.client.pages(
            f"{_repo(project)}/pulls",
            head=f"{owner}:{branch}",
            state="all",
            sort="created",
            direction="desc",
            per_page=_PAGE,
        ):
            # An old server ignores a `head` that it does not understand.
            found += [_of(one) for one in _list(page) if _branch_of(one) == branch]
        return found

    async def open(self, project: str, new: NewPullRequest) -> ForgePullRequest:
        document = {
            "head": new.branch,
            "base": new.base,
            "title": new.title,
            "body": new.body,
            "draft": new.draft,
            "maintainer_can_modify": False,
        }
        path = f"{_repo(project)}/pulls"
        answer = await self.client.send("POST", path, document)
        if answer.status == 422 and new.draft and "draft" in answer.says.lower():
            document["draft"] = False  # not every plan has drafts
            answer = await self.client.send("POST", path, document)
        if answer.status >= 400:
            says = answer.says.lower()
            if "already exists" in says:
                raise AlreadyOpen(answer.says)
            if "no commits between" in says:
                raise NothingToMerge(answer.says)
            if "base invalid" in says:
                raise ForgeRefused(
                    f"{project} has no branch {new.base} to open a pull request for",
                    hint="write `branch` of the repository into the subject's settings",
                )
            self.client.refuse(answer)
        return _of(answer.body)

    async def describe(self, project: str, number: int, body: str) -> None:
        path = f"{_repo(project)}/pulls/{number}"
        await self.client.change("PATCH", path, {"body": body})

    async def comment(self, project: str, number: int, text: str) -> None:
        path = f"{_repo(project)}/issues/{number}/comments"
        await self.client.change("POST", path, {"body": text})

    async def look(self, project: str, number: int, seen: Json) -> Look:
        seen = dict(seen)
        pull = f"{_repo(project)}/pulls/{number}"
        found = await self.client.look(seen, _plain, pull)
        one = ForgePullRequest(**found, body="")
        if one.ended:
            return Look(one, "none", "none", {pull: seen[pull]})
        commit = f"{_repo(project)}/commits/{quote(one.head)}"
        wanted = {pull, f"{commit}/check-runs", f"{commit}/status", f"{pull}/reviews"}
        checks, review = "unknown", "unknown"
        with suppress(ForgeRefused):  # the token may not read them
            runs = await self.client.look(
                seen, _runs, f"{commit}/check-runs", per_page=_PAGE
            )
            combined = await self.client.look(
                seen, _statuses, f"{commit}/status", per_page=_PAGE
            )
            checks = _worst([*runs, *combined])
        with suppress(ForgeRefused):
            reviews = await self.client.look(
                seen, _reviews, f"{pull}/reviews", per_page=_PAGE
            )
            review = _decision(reviews)
        kept = {path: value for path, value in seen.items() if path in wanted}
        return Look(one, checks, review, kept)

    async def close(self) -> None:
        await self.client.close()


_WRITE = "contents: write and pull requests: write, or repo of a classic token"


def _scope(answer: Answer) -> str:
    """Return what the token needs, as the answer says it where it does."""
    wanted = answer.headers.get("x-accepted-github-permissions", "")
    given = answer.headers.get("x-oauth-scopes")
    if wanted and given is None:
        return f"the token needs {wanted.replace('_', ' ').replace('=', ': ')}"
    has = "" if given is None else f"; it has {given or 'no scope'}"
    return f"check the name of the repository; the token needs {_WRITE}{has}"


def _repo(project: str) -> str:
    return f"/repos/{quote(project)}"


def _mapping(value: Any) -> Json:
    if not isinstance(value, dict):
        raise ForgeUnreachable("the answer is not one of the GitHub API")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ForgeUnreachable("the answer is not one of the GitHub API")
    return value


def _branch_of(pull: Any) -> Any:
    return (_mapping(pull).get("head") or {}).get("ref")


def _plain(pull: Any) -> Json:
    """Return what is kept of a pull request: the fields of ForgePullRequest but for `body`."""
    pull = _mapping(pull)
    state: ForgeState = "closed"
    if pull.get("merged_at") or pull.get("merged"):
        state = "merged"
    elif pull.get("state") == "open":
        state = "draft" if pull.get("draft") else "open"
    by = (pull.get("merged_by") or pull.get("closed_by") or {}).get("login", "")
    try:
        return {
            "number": int(pull["number"]),
            "url": str(pull["html_url"]),
            "state": state,
            "title": str(pull["title"]),
            "head": str(pull["head"]["sha"]),
            "by": str(by),
        }
    except (KeyError, TypeError, ValueError):
        raise ForgeUnreachable("the answer is not one of the GitHub API") from None


def _of(pull: Any) -> ForgePullRequest:
    return ForgePullRequest(**_plain(pull), body=str(pull.get("body") or ""))


def _runs(found: Any) -> list[str]:
    runs = _mapping(found).get("check_runs") or []
    return [
        str(one.get("conclusion") if one.get("status") == "completed" else "pending")
        for one in runs
    ]


def _statuses(found: Any) -> list[str]:
    found = _mapping(found)
    if not found.get("total_count"):
        return []  # its state is "pending" without any
    return [str(found.get("state"))]


def _worst(results: Sequence[str]) -> str:
    if not results:
        return "none"
    if any(one in _FAILED for one in results):
        return "failed"
    return "passed" if all(one in _GOOD for one in results) else "pending"


def _reviews(found: Any) -> list[list[str]]:
    """Return who reviewed, and how, the oldest first."""
    return [
        [str((one.get("user") or {}).get("login")), str(one.get("state"))]
        for one in _list(found)
    ]


def _decision(reviews: Sequence[Sequence[str]]) -> str:
    last = {who: how for who, how in reviews if how not in ("COMMENTED", "PENDING")}
    if "CHANGES_REQUESTED" in last.values():
        return "changes_requested"
    return "approved" if "APPROVED" in last.values() else "none"
