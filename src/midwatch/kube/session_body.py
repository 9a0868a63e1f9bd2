"""An AgenticSession from what a session is asked for: of a schedule, or for a ticket (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from midwatch.errors import SettingsError
from midwatch.kube.errors import SpecRefused
from midwatch.kube.resource import read_resource
from midwatch.kube.rules import API_VERSION, GROUP, KIND
from midwatch.model import Json
from midwatch.session.records import SessionRequest
from midwatch.workspace.plan import RepoSpec

TICKET_LABEL = f"{GROUP}/ticket"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTask:
    """What a session is asked for. None: the operator's settings decide.

    Attributes:
        title: Its display name.
        push: Whether its commits are pushed once it is Completed.
        wall, idle: Seconds.
    """

    title: str
    prompt: str
    repositories: Iterable[RepoSpec]
    main: int = 0
    push: bool = False
    model: str | None = None
    max_turns: int | None = None
    max_usd: float | None = None
    wall: float | None = None
    idle: float | None = None
    trust: bool | None = None

    def spec(self) -> Json:
        """Return the `spec` of the resource."""
        llm = {
            "model": self.model,
            "maxTurns": self.max_turns,
            "maxBudgetUsd": self.max_usd,
        }
        return {
            "displayName": self.title,
            "prompt": self.prompt,
            "repos": [
                {
                    "input": _given({"url": one.url, "branch": one.branch}),
                    **_given({"output": _given({"branch": one.push_branch}) or None}),
                }
                for one in self.repositories
            ],
            "mainRepoIndex": self.main,
            "autoPushOnComplete": self.push,
            **_given(
                {
                    "llmSettings": _given(llm) or None,
                    "timeout": self.wall and round(self.wall),
                    "idleTimeout": self.idle and round(self.idle),
                    "trustRepositories": self.trust,
                }
            ),
        }


def _given(values: Json) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def session_body(task: SessionTask, metadata: Json, name: str, path: str) -> Json:
    """Return the resource.

    Args:
        task: What the session is asked for.
        metadata: The metadata of the resource, perhaps without its name.
        name: The name to check it with.
        path: What the error is about.

    Raises:
        SettingsError: The resource would be refused.
    """
    body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": metadata,
        "spec": task.spec(),
    }
    try:
        read_resource({**body, "metadata": {**metadata, "name": name, "uid": "u"}})
    except SpecRefused as error:
        raise SettingsError(error.message, path=path, hint=error.hint) from None
    return body


def ticket_session(request: SessionRequest) -> Json:
    """Return the resource of a session for a ticket, which pushes its commits. Raises SettingsError."""
    chosen, name = request.overrides, resource_name(request)
    task = SessionTask(
        title=f"fix ticket {request.ticket}",
        prompt=request.prompt or "",
        repositories=request.repositories,
        push=True,
        model=chosen.model,
        max_turns=chosen.max_turns,
        max_usd=chosen.max_usd,
        wall=chosen.wall,
        idle=chosen.idle,
        trust=chosen.trust,
    )
    metadata = {"name": name, "labels": {TICKET_LABEL: str(request.ticket)}}
    return session_body(task, metadata, name, "--resource")


def resource_name(request: SessionRequest) -> str:
    """Return the name of the resource of a session for a ticket."""
    return f"ticket-{request.ticket}-{request.id.rpartition('-')[2][:8]}"
