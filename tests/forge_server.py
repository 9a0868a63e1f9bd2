"""A forge on loopback: the part of GitHub's and GitLab's REST APIs that pull requests need, over real bare repositories.

Documents have the names and the nesting of the public documentation. Branches are those of the repositories; what is
not right in a request is refused in the forge's own words.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from midwatch.testing.fakes import run_git

from .waiting import PATIENCE, wait_until

TOKEN = "forge-token-0123456789abcdef"


@dataclass
class Fault:
    """An answer instead of the forge's own, for requests whose method and path fit, so many times.

    With `after` the request is carried out first.
    """

    method: str
    path: str
    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    after: bool = False


@dataclass
class HeldRequest:
    """A request that gets no answer until `go`: before it is carried out, or after. The first `skip` are answered."""

    method: str
    path: str
    after: bool = False
    skip: int = 0
    arrived: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Seen:
    """A request, and the status of its answer."""

    method: str
    path: str
    query: str
    authorization: str
    condition: str
    status: int
    body: Any


@dataclass
class Forge:
    """The state of the forge. `root` has the bare repositories, as OWNER/NAME."""

    root: Path
    url: str = ""
    pulls: list[dict[str, Any]] = field(default_factory=list)
    comments: list[tuple[int, str]] = field(default_factory=list)
    repository: dict[str, Any] = field(default_factory=dict)
    reviews: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    held: list[HeldRequest] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    page_size: int = 100

    def refs(self, project: str) -> dict[str, str]:
        """The commits of the branches of a repository."""
        shown = run_git(
            self.root / project,
            "for-each-ref",
            "--format=%(refname:strip=2) %(objectname)",
            "refs/heads",
        )
        return dict(line.split(" ") for line in shown.splitlines())

    def made(self, method: str, path: str) -> int:
        """How many requests of this kind were carried out."""
        return sum(
            one.method == method and path in one.path and one.status < 300
            for one in self.seen
        )

    # -------------------------------------------------- requests

    async def answer(self, request: Request) -> Response:
        raw = await request.body()
        body = json.loads(raw) if raw else None
        path = request.scope["raw_path"].decode()
        response = await self._answer(request, path, body)
        shown = Seen(
            request.method,
            path,
            request.url.query,
            request.headers.get("authorization", ""),
            request.headers.get("if-none-match", ""),
            response.status_code,
            body,
        )
        self.seen.append(shown)
        return response

    async def _answer(self, request: Request, path: str, body: Any) -> Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"message": "Bad credentials", "status": "401"}, 401)
        fault = next(
            (
                one
                for one in self.faults
                if one.times and one.method == request.method and one.path in path
            ),
            None,
        )
        if fault is not None and not fault.after:
            fault.times -= 1
            return JSONResponse(fault.body, fault.status, fault.headers)
        held = self._held(request.method, path)
        if held is not None and not held.after:
            await _hold(held)
            return JSONResponse({"message": "held"}, 503)
        document, status = self.carry_out(request, path, body)
        if held is not None:
            await _hold(held)
        if fault is not None:
            fault.times -= 1
            return JSONResponse(fault.body, fault.status, fault.headers)
        tag = f'W/"{hashlib.sha256(json.dumps(document).encode()).hexdigest()}"'
        headers = {"etag": tag, "x-ratelimit-remaining": "4999"}
        if request.method == "GET" and request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if isinstance(document, list) and "page" in request.query_params:
            document = self._page(request, document, headers)
        return JSONResponse(document, status, headers)

    def _held(self, method: str, path: str) -> HeldRequest | None:
        for one in self.held:
            if one.method == method and path.endswith(one.path):
                if not one.skip:
                    return one
                one.skip -= 1
        return None

    def _page(
        self, request: Request, document: list[Any], headers: dict[str, str]
    ) -> list[Any]:
        page, size = int(request.query_params["page"]), self.page_size
        if len(document) > page * size:
            following = request.url.include_query_params(page=page + 1)
            headers["link"] = f'<{following}>; rel="next", <{following}>; rel="last"'
        return document[(page - 1) * size : page * size]

    def carry_out(self, request: Request, path: str, body: Any) -> tuple[Any, int]:
        raise NotImplementedError


async def _hold(held: HeldRequest) -> None:
    import asyncio

    held.arrived.set()
    await asyncio.to_thread(held.go.wait, PATIENCE)


class GitHubServer(Forge):
    """GitHub's API at `/api/v3`, as Enterprise Server has it."""

    def carry_out(self, request: Request, path: str, body: Any) -> tuple[Any, int]:
        parts = path.removeprefix("/api/v3/repos/").split("/")
        project, rest = "/".join(parts[:2]), parts[2:]
        if not (self.root / project).is_dir():
            return {"message": "Not Found", "status": "404"}, 404
        match request.method, rest:
            case "GET", []:
                return self._repository(project), 200
            case "GET", ["git", "ref", "heads", *name]:
                commit = self.refs(project).get("/".join(name))
                if commit is None:
                    return {"message": "Not Found", "status": "404"}, 404
                full = f"refs/heads/{'/'.join(name)}"
                return {"ref": full, "object": {"type": "commit", "sha": commit}}, 200
            case "GET", ["pulls"]:
                head = request.query_params["head"]
                found = [
                    one
                    for one in self.pulls
                    if one["head"]["label"] == head
                    and one["base"]["repo"]["full_name"] == project
                ]
                return list(reversed(found)), 200
            case "POST", ["pulls"]:
                return self._open(project, body)
            case "GET", ["pulls", number]:
                return self._pull(project, int(number)), 200
            case "PATCH", ["pulls", number]:
                self._pull(project, int(number)).update(body)
                return self._pull(project, int(number)), 200
            case "GET", ["pulls", _, "reviews"]:
                return self.reviews, 200
            case "GET", ["commits", _, "check-runs"]:
                return {"total_count": len(self.runs), "check_runs": self.runs}, 200
            case "GET", ["commits", sha, "status"]:
                none = {"state": "pending", "statuses": [], "total_count": 0}
                return {**none, "sha": sha}, 200
            case "POST", ["issues", number, "comments"]:
                self.comments.append((int(number), body["body"]))
                return {"id": len(self.comments), "body": body["body"]}, 201
        return {"message": "Not Found", "status": "404"}, 404

    def _repository(self, project: str) -> dict[str, Any]:
        owner, _, name = project.partition("/")
        return {
            "id": 1296269,
            "name": name,
            "full_name": project,
            "owner": {"login": owner, "id": 1, "type": "Organization"},
            "private": True,
            "visibility": "private",
            "html_url": f"{self.url}/{project}",
            "fork": False,
            "archived": False,
            "disabled": False,
            "default_branch": "main",
            "permissions": {"admin": False, "push": True, "pull": True},
            **self.repository,
        }

    def _pull(self, project: str, number: int) -> dict[str, Any]:
        pull = self.pulls[number - 1]
        branch = pull["head"]["ref"]
        if pull["state"] == "open":
            pull["head"]["sha"] = self.refs(project).get(branch, pull["head"]["sha"])
        return pull

    def _open(self, project: str, body: Any) -> tuple[Any, int]:
        refs = self.refs(project)
        head, base = body["head"], body["base"]
        owner = project.partition("/")[0]
        if base not in refs or head not in refs:
            field_ = "base" if base not in refs else "head"
            return _invalid({"field": field_, "code": "invalid"}), 422
        same = [
            one
            for one in self.pulls
            if one["state"] == "open" and one["head"]["label"] == f"{owner}:{head}"
            if one["base"]["repo"]["full_name"] == project
        ]
        if same:
            says = f"A pull request already exists for {owner}:{head}."
            return _invalid({"code": "custom", "message": says}), 422
        ahead = run_git(self.root / project, "rev-list", "--count", f"{base}..{head}")
        if ahead == "0":
            says = f"No commits between {base} and {head}"
            return _invalid({"code": "custom", "message": says}), 422
        if len(body["body"]) > 65_536:
            says = "body is too long (maximum is 65536 characters)"
            return _invalid({"code": "custom", "field": "body", "message": says}), 422
        number = len(self.pulls) + 1
        repo = {"full_name": project}
        self.pulls.append(
            {
                "id": 1000 + number,
                "number": number,
                "html_url": f"{self.url}/{project}/pull/{number}",
                "state": "open",
                "draft": body["draft"],
                "title": body["title"],
                "body": body["body"],
                "user": {"login": "midwatch-bot"},
                "head": {
                    "label": f"{owner}:{head}",
                    "ref": head,
                    "sha": refs[head],
                    "repo": repo,
                },
                "base": {"ref": base, "sha": refs[base], "repo": repo},
                "merged_at": None,
                "merged_by": None,
            }
        )
        return self.pulls[-1], 201


def _invalid(error: dict[str, str]) -> dict[str, Any]:
    return {
        "message": "Validation Failed",
        "errors": [{"resource": "PullRequest", **error}],
        "documentation_url": "https://docs.github.com/rest/pulls/pulls#create-a-pull-request",
        "status": "422",
    }


class GitLabServer(Forge):
    """GitLab's API at `/api/v4`."""

    approved_by: list[dict[str, Any]]

    def carry_out(self, request: Request, path: str, body: Any) -> tuple[Any, int]:
        parts = path.removeprefix("/api/v4/projects/").split("/")
        project, rest = parts[0].replace("%2F", "/"), parts[1:]
        if not (self.root / project).is_dir():
            return {"message": "404 Project Not Found"}, 404
        match request.method, rest:
            case "GET", []:
                return self._project(project), 200
            case "GET", ["repository", "branches", name]:
                commit = self.refs(project).get(name.replace("%2F", "/"))
                if commit is None:
                    return {"message": "404 Branch Not Found"}, 404
                return {"name": name, "commit": {"id": commit}, "protected": False}, 200
            case "GET", ["merge_requests"]:
                branch = request.query_params["source_branch"]
                found = [one for one in self.pulls if one["source_branch"] == branch]
                return list(reversed(found)), 200
            case "POST", ["merge_requests"]:
                return self._open(project, body)
            case "GET", ["merge_requests", number]:
                return self.pulls[int(number) - 1], 200
            case "PUT", ["merge_requests", number]:
                self.pulls[int(number) - 1].update(body)
                return self.pulls[int(number) - 1], 200
            case "GET", ["merge_requests", _, "approvals"]:
                return {
                    "approved": bool(self.reviews),
                    "approved_by": self.reviews,
                }, 200
            case "POST", ["merge_requests", number, "notes"]:
                self.comments.append((int(number), body["body"]))
                return {"id": len(self.comments), "body": body["body"]}, 201
        return {"error": "404 Not Found"}, 404

    def _project(self, project: str) -> dict[str, Any]:
        return {
            "id": 4,
            "path_with_namespace": project,
            "default_branch": "main",
            "visibility": "private",
            "web_url": f"{self.url}/{project}",
            "archived": False,
            "empty_repo": False,
            "merge_requests_access_level": "enabled",
            **self.repository,
        }

    def _open(self, project: str, body: Any) -> tuple[Any, int]:
        refs, branch = self.refs(project), body["source_branch"]
        opened = [one for one in self.pulls if one["state"] == "opened"]
        same = [one for one in opened if one["source_branch"] == branch]
        if same:
            says = f"Another open merge request already exists for this source branch: !{same[0]['iid']}"
            return {"message": [says]}, 409
        number = len(self.pulls) + 1
        self.pulls.append(
            {
                "id": 2000 + number,
                "iid": number,
                "project_id": 4,
                "source_project_id": 4,
                "target_project_id": 4,
                "web_url": f"{self.url}/{project}/-/merge_requests/{number}",
                "state": "opened",
                "draft": body["title"].startswith("Draft:"),
                "title": body["title"],
                "description": body["description"],
                "source_branch": branch,
                "target_branch": body["target_branch"],
                "sha": refs.get(branch),
                "detailed_merge_status": "mergeable",
                "head_pipeline": None,
                "merge_user": None,
                "closed_by": None,
            }
        )
        return self.pulls[-1], 201


@contextmanager
def serving(forge: Forge) -> Iterator[Forge]:
    """Serve the API while the block runs."""
    routes = [
        Route(
            "/{path:path}",
            forge.answer,
            methods=["GET", "POST", "PUT", "PATCH"],
        )
    ]
    config = uvicorn.Config(
        Starlette(routes=routes), host="127.0.0.1", port=0, log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        forge.url = f"http://127.0.0.1:{port}"
        yield forge
    finally:
        for one in forge.held:
            one.go.set()
        server.should_exit = True
        thread.join(PATIENCE)


def merge(forge: Forge, number: int) -> None:
    """Merge a pull request of GitHub, as a person does."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    forge.pulls[number - 1].update(
        state="closed", merged_at=at, merged_by={"login": "ada"}
    )
