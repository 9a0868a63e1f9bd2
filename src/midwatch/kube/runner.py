"""A session in its pod, from the first word in the resource to the last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from midwatch.errors import MidwatchError
from midwatch.kube.environment import UNTOLD
from midwatch.kube.errors import ResourceGone, WriterOutdated
from midwatch.kube.runner_outcome import (
    COMPLETED_OR_STOPPED,
    HINTS,
    SIGNALS,
    STOPPED,
    End,
    ShutdownBudget,
    ended_as,
    ended_by,
    in_another_pod,
    said,
)
from midwatch.kube.runner_task import PodTask
from midwatch.kube.runner_workspace import (
    FETCH_FOR,
    Delivery,
    PodPlaces,
    Sync,
    SyncSupervisor,
    adopt,
    left_to_say,
    prepare_workspace,
    unpushed,
)
from midwatch.kube.status import Condition, merged, timestamp
from midwatch.kube.status_writer import ResourceRecords, StatusCluster
from midwatch.lifecycle import Clock, StopEvent, SystemClock, stop_on_signals
from midwatch.model import Json
from midwatch.redaction import Redactor
from midwatch.session.agentic_session import (
    AsyncAgenticSession,
    end_unprepared,
    stop_when_told,
    unless_stopped,
)
from midwatch.session.errors import SessionTimedOut
from midwatch.session.events import Event, PermissionRequest, Phase, TurnResult, failure
from midwatch.session.log import read_events
from midwatch.session.options import SessionOptions
from midwatch.session.records import FolderRecords
from midwatch.workspace.environment import GitEnvironment
from midwatch.workspace.record import Workspace
from midwatch.workspace.setup import WorkspaceOptions

T = TypeVar("T")
_AWAITED = (TurnResult, PermissionRequest)
"""What somebody who talks with a session waits for."""
FIRST_WORD = 10.0
"""Seconds that the first write is waited for: it tells whether this attempt is still wanted."""
LOOK_WITHIN, SAVE_WITHIN, LAST_WORD = 10.0, 40.0, 60.0
"""Seconds for what comes after the session, each. With what ends the session itself and PUSH_AT_LEAST they fit into
`operator.deadline_margin`: the Job's deadline must not cut off the last word. Once the pod is ending, `Graces` are
what they have."""
OUTAGE = 900.0
"""Seconds that the content proxy and the API server may be away at the end, if the session has that much time left."""


class EventSink(Protocol):
    """Whoever reads the pod's log."""

    def event(self, event: Event) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What a pod's runner works with. `options` are the settings', before the task's own wishes."""

    cluster: StatusCluster
    sync: Sync | None
    options: SessionOptions
    environment: GitEnvironment
    voice: EventSink
    clock: Clock = SystemClock()


class PodRunner:
    """`run` once; it gives the exit code."""

    def __init__(self, task: PodTask, means: Dependencies) -> None:
        given = task.environment
        self._task = task
        self._means = means
        self._clock = means.clock
        self._began = means.clock.monotonic()
        self._redactor = Redactor(task.secrets)
        self._places = PodPlaces(
            given.workspace_path, given.state_path, given.cache_path
        )
        self._graces = ShutdownBudget.within(given.termination_grace)
        self._stop = StopEvent(means.clock)
        self._records = ResourceRecords(
            means.cluster,
            task.identity.target,
            FolderRecords(given.state_path),
            interval=given.status_interval,
            clock=means.clock,
            hints=HINTS,
            on_lost=self._stop.set,
        )
        self._keeper = SyncSupervisor(
            means.sync,
            means.clock,
            self._tell_saved,
            self._graces.wind_up,
            note=self._note,
            on_lost=self._stop.set,
        )
        self._outdated: MidwatchError | None = None
        self._git = WorkspaceOptions(
            session=task.identity.name,
            cache=given.cache_path,
            state=self._places.repositories,
            environment=_git_environment(task, self._places, means.environment),
        )

    async def run(self) -> int:
        with stop_on_signals(self._stop, self._keeper.nudge):
            async with self._records:
                await self._first_word()
                end = await self._worked()
                return await self._last_word(end)

    async def _worked(self) -> End:
        try:
            session, workspace = await self._prepared()
        except MidwatchError as error:
            return await self._never_began(error)
        end = await self._conversed(session)
        return await self._delivered(end, workspace)

    # -------------------------------------------------------------- before

    async def _first_word(self) -> None:
        identity, now = self._task.identity, timestamp(self._clock.now())
        changes = {"startTime": now, "lastActivityTime": now}
        changes |= {
            name: value
            for name, value in {
                "jobName": identity.job,
                "podName": identity.pod,
            }.items()
            if value
        }
        self._records.tell_phase(Phase.CREATING, "Starting", changes=changes)
        await self._records.settled(FIRST_WORD)

    async def _prepared(self) -> tuple[AsyncAgenticSession, Workspace]:
        try:
            async with asyncio.timeout(self._time_left()):
                return await unless_stopped(self._prepare(), self._stop)
        except TimeoutError:
            raise SessionTimedOut(
                f"the workspace was not ready within {self._task.environment.timeout:g} s"
            ) from None

    async def _prepare(self) -> tuple[AsyncAgenticSession, Workspace]:
        task, places = self._task, self._places
        places.make()
        self._records.tell_phase(Phase.CREATING, "FetchingWorkspace")
        await self._keeper.fetch(self._patience(), self._tell_waiting)
        await self._go_on_with_another()
        self._records.tell_phase(Phase.CREATING, "CloningRepositories")
        workspace = await prepare_workspace(task, places, self._git, self._note)
        return self._session(workspace), workspace

    async def _go_on_with_another(self) -> None:
        given = self._task.environment
        origin, folder = given.resume_from, given.resume_from_folder

        async def fetch() -> None:
            if folder and self._keeper.present:
                self._records.tell_phase(Phase.CREATING, "FetchingEarlierSession")
                await self._keeper.fetch_from(
                    folder, self._patience(), self._tell_waiting
                )

        if origin:
            await adopt(self._places, origin, fetch)

    def _patience(self) -> float:
        """Seconds that the content proxy is waited for: the session's own time is no longer than that."""
        return min(FETCH_FOR, self._time_left() * 0.9)

    def _tell_waiting(self, why: str) -> None:
        self._records.tell_phase(Phase.CREATING, "WaitingForContent", why)

    def _tell_saved(self, condition: Condition) -> None:
        message = self._redactor.text(condition.message)
        self._records.tell({}, [replace(condition, message=message)])

    def _session(self, workspace: Workspace) -> AsyncAgenticSession:
        task = self._task
        return AsyncAgenticSession(
            client=task.access,
            workspace=workspace,
            options=_options(
                task, self._means.options, self._time_left(), self._graces.session
            ),
            interactive=task.environment.interactive,
            session_id=task.identity.name,
            folder=self._places.state,
            forked_from=task.environment.resume_from or None,
            records=self._records,
            workspace_options=self._git,
            redactor=self._redactor,
            clock=self._clock,
        )

    def _time_left(self) -> float:
        timeout = self._task.environment.timeout
        return max(1.0, timeout - (self._clock.monotonic() - self._began))

    async def _never_began(self, error: MidwatchError) -> End:
        """Close what the outbox has of it as well: those who read the mailbox wait for an end."""
        self._say(failure(error))
        folder = self._places.folder
        with contextlib.suppress(MidwatchError):  # a disk that is full, or nobody's
            folder.make()
            status = end_unprepared(folder, self._redactor, self._clock, error)
            await self._records.save_status(self._task.identity.name, status)
        return ended_by(error)

    # -------------------------------------------------------------- the session

    async def _conversed(self, session: AsyncAgenticSession) -> End:
        ended_badly: MidwatchError | None = None
        stopping = asyncio.create_task(
            stop_when_told(session, self._stop), name="stop the session"
        )
        try:
            async with session, self._keeper.beside():
                events = read_events(self._places.folder.outbox)
                prompt = left_to_say(events, self._task.prompt)
                async for event in session.execute(prompt):
                    await self._heard(event, session)
        except MidwatchError as error:
            ended_badly = error
        finally:
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)
        return ended_as(session.status(), ended_badly)

    async def _heard(self, event: Event, session: AsyncAgenticSession) -> None:
        self._say(event)
        if isinstance(event, TurnResult):
            self._keeper.nudge()
        if self._task.environment.interactive and isinstance(event, _AWAITED):
            # The session's own beat would tell it seconds later, and somebody sits there.
            await self._records.save_status(self._task.identity.name, session.status())

    # -------------------------------------------------------------- after

    async def _delivered(self, end: End, workspace: Workspace) -> End:
        """Push the repositories, if it is Completed and that is wanted, and tell how they are."""
        delivery = Delivery(workspace, self._git.git(), self._note)
        if (
            self._task.environment.auto_push_on_complete
            and end.phase is Phase.COMPLETED
        ):
            push = self._push(delivery, end)
            end = await self._in_time(push, self._graces.push) or unpushed(end)
        look = delivery.look(LOOK_WITHIN)
        repos = await self._in_time(look, self._graces.look)
        if repos:
            self._records.tell({"repos": self._redactor.value(repos)})
        return end

    async def _push(self, delivery: Delivery, end: End) -> End:
        """Push, unless another attempt is at work: the branch is its own then."""
        await self._ask()
        return end if self._over else await delivery.push(end, self._time_left())

    async def _last_word(self, end: End) -> int:
        """Save the workspace and tell the end. Where another attempt has taken over, neither is ours."""
        records = self._records
        written: bool | None = False
        body = await self._ask()
        if self._over is None:
            await self._in_time(
                self._keeper.save(self._within(SAVE_WITHIN)), self._graces.save
            )
        if self._over is None:
            end = self._if_wanted(end, body)
            self._tell_end(end)
            written = await self._in_time(
                records.settled(self._within(LAST_WORD)), self._graces.last_word
            )
        if self._over is not None:
            self._note(f"this attempt is over: {self._over.one_line()}")
            return COMPLETED_OR_STOPPED
        if written or end.phase is None:
            return replace(end, phase=records.overruled or end.phase).exit_code
        why = records.problem.one_line() if records.problem else "no answer"
        self._note(f"the end of the session could not be told: {why}")
        return UNTOLD

    def _within(self, least: float) -> float:
        """Seconds for what would be lost with the pod: the rest of the session's own time is there for it."""
        return max(least, min(OUTAGE, self._time_left()))

    def _tell_end(self, end: End) -> None:
        message = self._redactor.text(end.message)
        if end.phase is None:
            story = {"reason": end.reason, "message": message}
            gone = Condition("Ready", "False", end.reason, message)
            self._records.tell(story, [gone], urgent=True)
        else:
            self._records.tell_phase(end.phase, end.reason, message)
        self._note(said(replace(end, message=message)))

    @property
    def _over(self) -> MidwatchError | None:
        """Why this attempt has nothing to say any more: as the resource has it, or the content proxy."""
        return self._records.superseded or self._outdated or self._keeper.lost

    async def _ask(self) -> Json | None:
        """The resource as it is now, None where the server does not say. Whether it is ours still shows in `_over`."""
        identity = self._task.identity
        try:
            async with asyncio.timeout(self._graces.ask):
                body = await self._means.cluster.get_session(
                    identity.namespace, identity.name
                )
            merged(body, identity.target.writer, {}, (), self._clock.now())
            return body
        except (ResourceGone, WriterOutdated) as error:
            self._outdated = error
        except (MidwatchError, TimeoutError):
            pass
        return None

    def _if_wanted(self, end: End, body: Json | None) -> End:
        """A signal ends the session only where the resource says so; else just the pod is taken away."""
        if self._stop.reason not in SIGNALS or end.reason != STOPPED:
            return end
        wanted = (body or {}).get("spec", {}).get("stop")
        leaving = (body or {}).get("metadata", {}).get("deletionTimestamp")
        return end if wanted or leaving else in_another_pod(end)

    async def _in_time(self, work: Coroutine[Any, Any, T], grace: float) -> T | None:
        """The outcome of `work`, which has a limit of its own; once the pod is ending, it has `grace`
        seconds more. None where that was not enough."""
        working = asyncio.create_task(work, name="after the session")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait({working, stopping}, return_when="FIRST_COMPLETED")
            await asyncio.wait({working}, timeout=grace)
            return working.result() if working.done() else None
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    # -------------------------------------------------------------- the log

    def _say(self, event: Event) -> None:
        self._means.voice.event(event)

    def _note(self, text: str) -> None:
        self._means.voice.note(self._redactor.text(text))


def _options(
    task: PodTask, options: SessionOptions, wall: float, grace: float
) -> SessionOptions:
    """The settings' options with the wishes of the resource."""
    given = task.environment
    limits = replace(
        options.limits,
        wall=wall,
        grace=min(options.limits.grace, grace),
        idle=given.idle_timeout,
        mail_idle=given.idle_timeout,
        max_turns=given.max_turns or options.limits.max_turns,
        max_usd=given.max_budget_usd or options.limits.max_usd,
    )
    return replace(
        options,
        model=given.model or options.model,
        effort=given.effort or options.effort,
        trust_repository=given.trust_repositories or options.trust_repository,
        variables={**options.variables, **task.variables.of_the_program},
        limits=limits,
    )


def _git_environment(
    task: PodTask, places: PodPlaces, given: GitEnvironment
) -> GitEnvironment:
    """The task's token goes before those of the settings."""
    credentials = (*task.credentials, *given.credentials)
    return replace(given, home=places.home, credentials=credentials)


# ------------------------------------------------------------ init
# The runner in a session's pod: `task` reads the environment, `places` knows the folders, `keeping` keeps them
# in step with the content proxy, `preparing` sets the workspace up, `serving` is the whole story of a pod.
