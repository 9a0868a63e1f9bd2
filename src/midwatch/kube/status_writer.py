"""Telling a session's status in its resource, from the pod, without ever keeping the session waiting.

What is to be told is kept as one document, the newest of each field; one task writes it. So a slow API
server delays nothing and queues nothing: the next write has all that changed meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

from midwatch.errors import MidwatchError
from midwatch.kube.errors import ResourceGone, WriterOutdated
from midwatch.kube.status import (
    Condition,
    Writer,
    merged,
    phase_changes,
    phase_conditions,
    phase_of,
    repository_changes,
    session_changes,
)
from midwatch.lifecycle import Clock, StopEvent
from midwatch.model import Json
from midwatch.session.events import Phase
from midwatch.session.records import FolderRecords, SessionSpec
from midwatch.session.status import SessionStatus
from midwatch.workspace.inspect import RepoState

GIVE_UP_AFTER = 30.0
"""Seconds of tries after which a write is begun anew, with what is newest then."""
LOOK_AGAIN = 60.0
"""Seconds after which the resource is read again where nothing was written: another may have taken over."""
_STORY = ("phase", "reason", "message", "completionTime")


class StatusCluster(Protocol):
    """What a runner needs of `kube.api.Cluster`."""

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
    """Where no resource is to be written to: the document stays in memory, and a signal is a stop."""

    def __init__(self) -> None:
        self.body: Json = {"spec": {"stop": True}}

    async def get_session(self, namespace: str, name: str) -> Json:
        return self.body

    async def write_status(
        self,
        namespace: str,
        name: str,
        propose: Callable[[Json], Json | None],
        *,
        seen: Json | None = None,
        give_up_after: float = 60.0,
    ) -> Json:
        patch = propose(self.body) or {}
        status = {**self.body.get("status", {}), **patch}
        present = {name: value for name, value in status.items() if value is not None}
        self.body = {**self.body, "status": present}
        return self.body


@dataclass(frozen=True, slots=True)
class Target:
    """The resource that is written to, and as whom."""

    namespace: str
    name: str
    writer: Writer


class ResourceRecords:
    """Satisfies `SessionRecords`: the status goes to the resource, and all to files in the session's folder.

    ::

        async with ResourceRecords(cluster, target, files, interval=5, clock=clock) as records:
            records.tell_phase(Phase.CREATING, "Cloning")
            …
            written = await records.settled(60)

    A change of phase is written at once, the rest every `interval` seconds. A terminal phase of the
    session itself is kept back: whoever runs it tells the end, when all that belongs to it is done.
    `hints` are those of `session_changes`. `on_lost` is called once if the resource is no longer ours to
    write: it is gone, another attempt has taken over (`superseded`), or somebody else ended the session
    (`overruled`).
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
        """Why the last write failed; None after one that did not."""
        self._cluster = cluster
        self._target = target
        self._files = files
        self._interval = interval
        self._clock = clock
        self._hints = hints or {}
        self._on_lost = on_lost
        self._changes: Json = {}
        self._conditions: dict[str, Condition] = {}
        self._asked = self._written = 0
        self._news = asyncio.Event()
        self._hurry = StopEvent(clock)
        self._progress = asyncio.Event()
        self._seen: Json | None = None
        self._looked_at = clock.monotonic()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._write_on(), name="status")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    # -------------------------------------------------------------- what is told

    def tell(
        self,
        changes: Json | None = None,
        conditions: Sequence[Condition] = (),
        *,
        urgent: bool = False,
    ) -> None:
        """Have this written soon, at once if it is urgent. Returns at once; raises nothing."""
        before = self._changes.get("phase")
        self._changes |= changes or {}
        self._conditions |= {condition.type: condition for condition in conditions}
        self._asked += 1
        self._news.set()
        if urgent or self._changes.get("phase") != before:
            self._hurry.set()

    def tell_phase(
        self, phase: Phase, reason: str, message: str = "", changes: Json | None = None
    ) -> None:
        """Tell a phase, with what follows from it, at once."""
        self.tell(
            {**(changes or {}), **phase_changes(phase, reason, message)},
            phase_conditions(phase, reason, message),
            urgent=True,
        )

    async def settled(self, within: float) -> bool:
        """Wait until all is written, or nothing more can be, for so many seconds; whether it is written."""
        waiting = asyncio.create_task(self._until_written(), name="status written")
        limit = asyncio.ensure_future(self._clock.sleep(within))
        await asyncio.wait({waiting, limit}, return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, limit):
            task.cancel()
        await asyncio.gather(waiting, limit, return_exceptions=True)
        return self._written == self._asked

    @property
    def phase(self) -> Phase:
        """The phase in the resource, as it was seen last."""
        return phase_of(self._seen or {})

    # -------------------------------------------------------------- SessionRecords

    async def save_spec(self, spec: SessionSpec) -> None:
        await self._files.save_spec(spec)

    async def save_status(self, session_id: str, status: SessionStatus) -> None:
        changes = session_changes(status, hints=self._hints)
        conditions: tuple[Condition, ...] = ()
        if status.phase.terminal:
            changes = {k: v for k, v in changes.items() if k not in _STORY}
        else:
            story = changes["reason"], changes["message"]
            conditions = phase_conditions(status.phase, *story)
        self.tell(changes, conditions)
        await self._files.save_status(session_id, status)

    async def heartbeat(self, session_id: str, runner: str, at: datetime) -> None:
        if self._clock.monotonic() - self._looked_at >= LOOK_AGAIN:
            self._looked_at = self._clock.monotonic()
            self._seen = None  # so that it is read
            self._news.set()
        await self._files.heartbeat(session_id, runner, at)

    async def save_repositories(
        self, session_id: str, repositories: Sequence[RepoState]
    ) -> None:
        self.tell({"repos": repository_changes(repositories)})
        await self._files.save_repositories(session_id, repositories)

    # -------------------------------------------------------------- the one writer

    async def _write_on(self) -> None:
        while self.superseded is None:
            await self._news.wait()
            self._news.clear()
            self._hurry = StopEvent(self._clock)
            pause = self._interval
            try:
                await self._write()
            except (WriterOutdated, ResourceGone) as error:
                self.superseded = error
                self._on_lost(error.message)
            except MidwatchError as error:  # tried again, with what is newest then
                self.problem = error
                self._news.set()
                pause = max(pause, getattr(error, "retry_after", None) or 0.0)
            self._progress.set()
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        """Nothing hurries past a server that does not answer."""
        if self.problem is not None:
            await self._clock.sleep(seconds)
        else:
            await self._hurry.pause(seconds)

    async def _write(self) -> None:
        asked = self._asked

        def propose(body: Json) -> Json | None:
            nonlocal asked
            asked = self._asked
            conditions = tuple(self._conditions.values())
            now = self._clock.now()
            return merged(body, self._target.writer, self._changes, conditions, now)

        self._seen = await self._cluster.write_status(
            self._target.namespace,
            self._target.name,
            propose,
            seen=self._seen,
            give_up_after=GIVE_UP_AFTER,
        )
        self.problem = None
        self._written = asked
        self._looked_at = self._clock.monotonic()
        self._look_who_ended_it()

    def _look_who_ended_it(self) -> None:
        told = self._changes.get("phase")
        ours = told is not None and Phase(told).terminal
        if self.phase.terminal and not ours and self.overruled is None:
            self.overruled = self.phase
            self._on_lost(f"the resource is {self.phase.value} already")

    async def _until_written(self) -> None:
        while self.superseded is None and self._written != self._asked:
            self._progress.clear()
            await self._progress.wait()
