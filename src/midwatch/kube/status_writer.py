"""Write a session's status to its resource, from the pod, without blocking the session; map its end to an exit code.

Changes accumulate in one document that holds the newest value of each field; one task writes it. So a slow API
server delays no event, and the next write has everything that changed meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol, Self

from midwatch.cluster.errors import ResourceGone
from midwatch.errors import MidwatchError
from midwatch.kube.environment import POD_ENDED
from midwatch.kube.errors import WriterOutdated
from midwatch.kube.status import (
    Condition,
    Writer,
    denied_conditions,
    failure_reason,
    merged,
    phase_changes,
    phase_conditions,
    phase_of,
    phase_reason,
    repository_changes,
    session_changes,
)
from midwatch.lifecycle import Clock, StopEvent, cancel, first
from midwatch.model import Json
from midwatch.session.events import Phase, failure
from midwatch.session.records import FolderRecords, SessionSpec
from midwatch.session.runner import SIGNALS, RunEnd, SessionStopped
from midwatch.session.status import SessionStatus
from midwatch.workspace.inspect import RepoState

GIVE_UP_AFTER = 30.0
"""Seconds after which a write that keeps failing starts again with the newest document."""
REREAD_AFTER = 60.0
"""Seconds without a write after which the resource is read again: another attempt may have taken over."""
_END_FIELDS = ("phase", "reason", "message", "completionTime")


class StatusCluster(Protocol):
    """The part of `kube.client.Cluster` that a runner needs."""

    async def get_session(self, namespace: str, name: str) -> Json: ...

    async def write_status(
        self,
        namespace: str,
        name: str,
        propose: Callable[[Json], Json | None],
        *,
        seen: Json | None = None,
        give_up_after: float = 60.0,
    ) -> Json: ...


class NoCluster:
    """A stand-in without a resource: the document stays in memory, and `spec.stop` is set."""

    def __init__(self) -> None:
        self.body: Json = {"spec": {"stop": True}}

    async def get_session(self, namespace: str, name: str) -> Json:
        return self.body

    async def write_status(
        self,
        namespace: str,
        name: str,
        propose: Callable[[Json], Json | None],
        **_: object,
    ) -> Json:
        patch = propose(self.body) or {}
        status = {**self.body.get("status", {}), **patch}
        present = {name: value for name, value in status.items() if value is not None}
        self.body = {**self.body, "status": present}
        return self.body


@dataclass(frozen=True, slots=True)
class Target:
    """The resource to write to, and the identity to write with."""

    namespace: str
    name: str
    writer: Writer


class ResourceRecords:
    """Satisfies `SessionRecords`: writes the status to the resource, and all records to the session's folder.

    ::

        async with ResourceRecords(cluster, target, files, interval=5, clock=clock) as records:
            records.report_phase(Phase.CREATING, "Cloning")
            …
            written = await records.settled(60)

    A change of phase is written at once, other changes every `interval` seconds. A terminal phase that the session
    reports is held back: the runner writes the end itself, after the final save and push.

    Args:
        interval: Seconds between two writes of an unchanged phase.
        hints: As for `session_changes`.
        on_lost: Is called once with the reason if this runner may no longer write: the resource is gone, another
            attempt has taken over (`superseded`), or another writer ended the session (`overruled`).

    Attributes:
        superseded: The error that ended all writes; None while this runner may write.
        overruled: The terminal phase that another writer set; None without one.
        problem: The error of the last write; None after a write that succeeded.
    """

    def __init__(
        self,
        cluster: StatusCluster,
        target: Target,
        files: FolderRecords,
        *,
        interval: float,
        clock: Clock,
        hints: Mapping[str, str] | None = None,
        on_lost: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.superseded: MidwatchError | None = None
        self.overruled: Phase | None = None
        self.problem: MidwatchError | None = None
        self._cluster = cluster
        self._target = target
        self._files = files
        self._interval = interval
        self._clock = clock
        self._hints = hints or {}
        self._on_lost = on_lost
        self._changes: Json = {}
        self._conditions: dict[str, Condition] = {}
        self._requested = self._written = 0
        self._pending = asyncio.Event()
        self._urgent = StopEvent(clock)
        self._attempted = asyncio.Event()
        self._known: Json | None = None
        self._read_at = clock.monotonic()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._write_loop(), name="status")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        await cancel(self._task)
        if not self._task.cancelled():
            self._task.result()  # raises what ended it

    def report(
        self,
        changes: Json | None = None,
        conditions: Sequence[Condition] = (),
        *,
        urgent: bool = False,
    ) -> None:
        """Queue changes and conditions for the next write; `urgent` writes at once. Never blocks or raises."""
        before = self._changes.get("phase")
        self._changes |= changes or {}
        self._conditions |= {condition.type: condition for condition in conditions}
        self._requested += 1
        self._pending.set()
        if urgent or self._changes.get("phase") != before:
            self._urgent.set()

    def report_phase(
        self, phase: Phase, reason: str, message: str = "", changes: Json | None = None
    ) -> None:
        """Write a phase and the conditions that follow from it, at once."""
        self.report(
            {**(changes or {}), **phase_changes(phase, reason, message)},
            phase_conditions(phase, reason, message),
            urgent=True,
        )

    async def settled(self, within: float) -> bool:
        """Wait until everything is written or nothing more can be, at most `within` seconds.

        Returns:
            Whether everything is written.
        """
        await first(self._until_written(), self._clock.sleep(within))
        return self._written == self._requested

    @property
    def phase(self) -> Phase:
        """The phase of the resource when it was last read or written."""
        return phase_of(self._known or {})

    # -------------------------------------------------------------- SessionRecords

    async def save_spec(self, spec: SessionSpec) -> None:
        await self._files.save_spec(spec)

    async def save_status(self, session_id: str, status: SessionStatus) -> None:
        changes = session_changes(status, hints=self._hints)
        conditions: tuple[Condition, ...] = ()
        if status.phase.terminal:
            changes = {k: v for k, v in changes.items() if k not in _END_FIELDS}
        else:
            reason_and_message = changes["reason"], changes["message"]
            conditions = phase_conditions(status.phase, *reason_and_message)
        self.report(changes, (*conditions, *denied_conditions(status)))
        await self._files.save_status(session_id, status)

    async def heartbeat(self, session_id: str, runner: str, at: datetime) -> None:
        if self._clock.monotonic() - self._read_at >= REREAD_AFTER:
            self._read_at = self._clock.monotonic()
            self._known = None  # read it with the next write
            self._pending.set()
        await self._files.heartbeat(session_id, runner, at)

    async def save_repositories(
        self, session_id: str, repositories: Sequence[RepoState]
    ) -> None:
        self.report({"repos": repository_changes(repositories)})
        await self._files.save_repositories(session_id, repositories)

    # -------------------------------------------------------------- the one writer

    async def _write_loop(self) -> None:
        while self.superseded is None:
            await self._pending.wait()
            self._pending.clear()
            self._urgent = StopEvent(self._clock)
            pause = self._interval
            try:
                await self._write()
            except (WriterOutdated, ResourceGone) as error:
                self.superseded = error
                self._on_lost(error.message)
            except MidwatchError as error:  # try again, with the newest document
                self.problem = error
                self._pending.set()
                pause = max(pause, getattr(error, "retry_after", None) or 0.0)
            self._attempted.set()
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        """Wait until the next write; an urgent change ends the wait, unless the last write failed."""
        if self.problem is not None:
            await self._clock.sleep(seconds)
        else:
            await self._urgent.pause(seconds)

    async def _write(self) -> None:
        requested = self._requested

        def propose(body: Json) -> Json | None:
            nonlocal requested
            requested = self._requested
            conditions = tuple(self._conditions.values())
            now = self._clock.now()
            return merged(body, self._target.writer, self._changes, conditions, now)

        self._known = await self._cluster.write_status(
            self._target.namespace,
            self._target.name,
            propose,
            seen=self._known,
            give_up_after=GIVE_UP_AFTER,
        )
        self.problem = None
        self._written = requested
        self._read_at = self._clock.monotonic()
        self._check_overruled()

    def _check_overruled(self) -> None:
        phase = self._changes.get("phase")
        own_end = phase is not None and Phase(phase).terminal
        if self.phase.terminal and not own_end and self.overruled is None:
            self.overruled = self.phase
            self._on_lost(f"the resource is {self.phase.value} already")

    async def _until_written(self) -> None:
        while self.superseded is None and self._written != self._requested:
            self._attempted.clear()
            await self._attempted.wait()


# ------------------------------------------------------------------ the end of a pod

_RESUME = "create a session with spec.resumeFrom that continues this one"
_SECRET = "check the secret of spec.apiKeySecret, or the operator's own"
_SPACE = "free the volume, or give the workspace more in the operator's settings"

HINTS: dict[str, str] = {
    "ApiFailed": f"{_RESUME}, later",
    "ApiUnreachable": "check the cluster's network policies and the connection to the Claude API",
    "BudgetSpent": f"raise spec.llmSettings.maxBudgetUsd; {_RESUME}",
    "ContentUnavailable": "check that the content proxy runs and that the pod may reach it",
    "DiskFull": _SPACE,
    "GitTimedOut": "try again, or raise spec.timeout",
    "KeyRefused": _SECRET,
    "LineTooLong": _RESUME,
    "ModelNotFound": "choose another spec.llmSettings.model",
    "NotFound": (
        "check spec.resumeFrom: that session must have kept its conversation, with a main "
        "repository of the same name"
    ),
    "NotAuthorised": "put a GIT_TOKEN for this host into a secret of spec.environment.secrets",
    "Overloaded": f"{_RESUME}, later",
    "ProgramCrashed": _RESUME,
    "ProgramMissing": "check the image; it needs midwatch with its extra `sessions`",
    "PushFailed": "see status.repos; the work is kept in the workspace",
    "RateLimited": f"{_RESUME}, later, or raise the limit of the key",
    "RepositoryNotFound": (
        "check the URL in spec.repos; a private repository needs a GIT_TOKEN in a secret "
        "of spec.environment.secrets"
    ),
    "RepositoryUnreachable": "check the URL in spec.repos, network policies and the proxy",
    "RequestTooLarge": "create a new session with a shorter prompt",
    "RunnerCrashed": "see `kubectl logs` of the pod",
    "SandboxUnavailable": "pods have no sandbox of their own: set sessions.sandbox to auto or off",
    "SessionIdle": f"a call or a tool hung; {_RESUME}, or raise spec.idleTimeout",
    "SessionTimedOut": f"raise spec.timeout; {_RESUME}",
    "TokenRefused": "the operator and the content proxy must share their key",
    "TurnFailed": f"read the message; {_RESUME}",
    "TurnLimit": f"raise spec.llmSettings.maxTurns; {_RESUME}",
    "WorkspaceDiskFull": _SPACE,
    "WorkspaceExists": "name the same repositories as the session that this one resumes",
    "WorkspaceNotWritable": "check the volume and the pod's fsGroup",
}
"""What to do about a failure, for readers of the resource, by kind of error. An error that is not
listed keeps its own hint."""


COMPLETED_OR_STOPPED = 0
FAILED = 1
STOPPED = "Stopped"
"""The reason of an end that was requested; one for idleness has another."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of a session in this pod. Without a `phase` the session continues in another pod."""

    phase: Phase | None
    reason: str
    message: str = ""

    @property
    def exit_code(self) -> int:
        if self.phase is None:
            return POD_ENDED
        return FAILED if self.phase is Phase.FAILED else COMPLETED_OR_STOPPED

    def __str__(self) -> str:
        """Return the end as the last line of the pod's log."""
        phase = self.phase.value if self.phase is not None else "not finished"
        words = [phase, "" if self.reason == phase else self.reason, self.message]
        return ": ".join(word for word in words if word)


def pod_end(end: RunEnd) -> End:
    """Return the end of a run as it is written to the resource."""
    found = _end(end.status, end.error, end.began)
    if end.drained and found.reason == STOPPED:
        return in_another_pod(found)
    if end.unpushed is not None:
        why = (
            f"the session completed, but {end.unpushed.message} ({HINTS['PushFailed']})"
        )
        return replace(found, phase=Phase.FAILED, reason="PushFailed", message=why)
    return found


def in_another_pod(end: End) -> End:
    """Return the end of the pod only, as after a drained node, an eviction or a preemption."""
    why = "its pod was terminated; another attempt may continue it"
    return replace(end, phase=None, reason="PodEnding", message=why)


def _end(status: SessionStatus, error: MidwatchError | None, began: bool) -> End:
    unlogged = status.phase is not Phase.FAILED or not status.error
    if error is not None and (unlogged or not began):
        if isinstance(error, SessionStopped):
            return End(Phase.STOPPED, STOPPED, _stopped(error.message))
        return End(Phase.FAILED, *failure_reason(failure(error), HINTS))
    if status.phase is Phase.STOPPED and status.reason in SIGNALS:
        return End(Phase.STOPPED, STOPPED, _stopped(status.reason))
    return End(status.phase, *phase_reason(status, HINTS))


def _stopped(reason: str) -> str:
    if reason in SIGNALS:
        return "it was stopped on request; continue it with resumeFrom"
    return f"it was stopped: {reason}"
