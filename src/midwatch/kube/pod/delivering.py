"""What a session did to its repositories: pushed, and looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from midwatch.errors import MidwatchError
from midwatch.kube.pod.ending import End
from midwatch.kube.pod.hints import HINTS
from midwatch.kube.statuses import repository_changes
from midwatch.model import Json
from midwatch.session.agentic_session import repository_record
from midwatch.session.events import Phase
from midwatch.workspace.git import Git
from midwatch.workspace.inspect import inspect_workspace
from midwatch.workspace.push import PushResult, push_workspace
from midwatch.workspace.record import Workspace

PUSH_AT_LEAST, PUSH_AT_MOST = 50.0, 300.0
"""Seconds for the push of all repositories: in between, what is left of the session's time-out."""
T = TypeVar("T")


class Delivery:
    """First `push`, then `look`."""

    def __init__(
        self, workspace: Workspace, git: Git, note: Callable[[str], None]
    ) -> None:
        self._workspace = workspace
        self._git = git
        self._note = note
        self._pushes: list[PushResult] = []

    async def push(self, end: End, time_left: float) -> End:
        """Push every repository that has something. What was to be delivered and is not, is no success."""
        within = max(PUSH_AT_LEAST, min(time_left, PUSH_AT_MOST))
        pushing = push_workspace(self._workspace, self._git)
        pushes = await self._within(within, pushing, "the push")
        if pushes is None:
            return unpushed(end)
        self._pushes = pushes
        errors = [one.error for one in pushes if one.error is not None]
        for error in errors:
            self._note(error.line())
        return _failed(end, errors[0].message) if errors else end

    async def look(self, within: float) -> list[Json]:
        """The repositories as `status.repos`; none where they cannot be looked at, which ends nothing."""
        looking = inspect_workspace(self._workspace, self._git)
        states = await self._within(within, looking, "the look at the repositories")
        records = [repository_record(state) for state in states or ()]
        return repository_changes(records, self._pushes)

    async def _within(
        self, seconds: float, work: Coroutine[Any, Any, T], what: str
    ) -> T | None:
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            self._note(f"{what} took longer than {seconds:g} s")
        except MidwatchError as error:
            self._note(f"{what} failed: {error.line()}")
        return None


def unpushed(end: End) -> End:
    """The end where the time for the push was over."""
    return _failed(end, "the repositories could not be pushed in time")


def _failed(end: End, why: str) -> End:
    message = f"it is done, but {why} ({HINTS['PushFailed']})"
    return replace(end, phase=Phase.FAILED, reason="PushFailed", message=message)
