"""`SessionRunner`: one run of a session, on a laptop and in a pod, with the same steps, permissions and end.

What differs between the two is injected, as protocols: where the workspace comes from and is kept
(`WorkspaceProvider`), where the status goes (`StatusSink`), who reads the events (`EventSink`) and what a
signal means (`StopPolicy`). `midwatch.cli.session.run` and `midwatch.kube.runner` have the two sets.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import platform
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from midwatch.errors import MidwatchError, PermanentError, TemporaryError
from midwatch.lifecycle import (
    Clock,
    StopEvent,
    SystemClock,
    background,
    first,
    set_nondumpable,
    stop_on_signals,
)
from midwatch.redaction import Redactor
from midwatch.session.agentic_session import AsyncAgenticSession
from midwatch.session.errors import RunnerCrashed, SessionTimedOut
from midwatch.session.events import (
    Event,
    PermissionRequest,
    Phase,
    PhaseChanged,
    TurnResult,
    failure,
)
from midwatch.session.log import Journal, SessionFolder
from midwatch.session.options import ApiAccess, SessionOptions
from midwatch.session.records import HEARTBEAT, SessionRecords, SessionSpec, Transcripts
from midwatch.session.status import SessionStatus
from midwatch.settings import SessionSettings
from midwatch.workspace.inspect import RepoState, inspect_workspace
from midwatch.workspace.push import PushResult, push_workspace
from midwatch.workspace.record import Workspace
from midwatch.workspace.setup import WorkspaceOptions

T = TypeVar("T")
R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)

GO_ON = "Go on with what you were doing when you were interrupted."
"""The prompt for a session whose turn ended with its runner, and not on request."""
SIGNALS = ("SIGTERM", "SIGINT")
"""Reasons of a stop that came from outside of the session."""
_AWAITED = (TurnResult, PermissionRequest)
"""Events that a person who talks with a session waits for."""


class SessionStopped(PermanentError):
    """The session was stopped before it was done."""


class NotPushed(MidwatchError):
    """A repository could not be pushed."""


# ------------------------------------------------------------------ permissions

_OWN_RULES = {"allowed_tools", "permission_mode"}


def permitted(
    options: SessionOptions, settings: SessionSettings, *, contained: bool
) -> SessionOptions:
    """Return `options` with what Claude may do without a question: the one rule for every runner.

    Bash runs without a question where something confines it: the program's sandbox, which allows what runs
    in it by itself, or the container of a pod (`contained`), for which Bash is put on the list of allowed
    tools. Where nothing confines it, every command asks; in a session without a person the answer is no.
    Settings with `allowed_tools` or `permission_mode` of their own replace the rule for containers.
    """
    if not contained or _OWN_RULES & settings.model_fields_set:
        return options
    allowed = (*(t for t in options.allowed_tools if t != "Bash"), "Bash")
    return replace(options, allowed_tools=allowed)


# ------------------------------------------------------------------ what a run works with


@dataclass(frozen=True, slots=True)
class SessionTask:
    """What a runner is to do.

    Attributes:
        id: The session's id.
        prompt: Returns the prompt once the workspace is there; None goes on with what is unanswered.
        options: How Claude works, before `permitted`.
        settings: The settings that `permitted` reads.
        access: How the API is reached.
        contained: Whether the runner is in a container of its own.
        push: Whether the repositories are pushed after a session that is Completed.
        redactor: Takes secrets out of everything that is logged or recorded.
    """

    id: str
    prompt: Callable[[], str | None]
    options: SessionOptions
    settings: SessionSettings
    access: ApiAccess
    contained: bool = False
    interactive: bool = False
    push: bool = False
    forked_from: str | None = None
    ticket: int | None = None
    transcripts: Transcripts | None = None
    redactor: Redactor = field(default_factory=Redactor)

    def session(
        self,
        workspace: Workspace,
        folder: SessionFolder,
        records: SessionRecords,
        workspace_options: WorkspaceOptions,
        clock: Clock | None = None,
    ) -> AsyncAgenticSession:
        """Return the session of this task in a workspace, with the permissions of `permitted`."""
        return AsyncAgenticSession(
            client=self.access,
            workspace=workspace,
            options=permitted(self.options, self.settings, contained=self.contained),
            interactive=self.interactive,
            session_id=self.id,
            folder=folder.path,
            forked_from=self.forked_from,
            ticket=self.ticket,
            records=records,
            transcripts=self.transcripts,
            workspace_options=workspace_options,
            redactor=self.redactor,
            clock=clock,
        )


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended.

    Attributes:
        status: The session's status, in a terminal phase if its folder could be written.
        error: What ended the run badly.
        began: Whether the session was opened; false if its workspace could not be prepared.
        drained: Whether a signal ended this runner alone, and another one goes on with the session.
        repositories: The state of the repositories; empty if they could not be inspected.
        pushes: The result of each push.
        push_error: Why the push as a whole failed.
    """

    status: SessionStatus
    error: MidwatchError | None = None
    began: bool = True
    drained: bool = False
    repositories: tuple[RepoState, ...] = ()
    pushes: tuple[PushResult, ...] = ()
    push_error: MidwatchError | None = None

    @property
    def completed(self) -> bool:
        return self.error is None and self.status.phase is Phase.COMPLETED

    @property
    def unpushed(self) -> MidwatchError | None:
        """The first reason why something that was to be pushed is not."""
        errors = (push.error for push in self.pushes if push.error is not None)
        return next(errors, self.push_error)


class WorkspaceProvider(Protocol):
    """Where a session's folders come from, and where they are kept."""

    @property
    def root(self) -> Path:
        """The folder with the clones."""
        ...

    @property
    def folder(self) -> SessionFolder:
        """The session's own folder."""
        ...

    @property
    def options(self) -> WorkspaceOptions:
        """How the workspace is cloned, inspected and pushed."""
        ...

    def owned(self) -> AbstractContextManager[None]:
        """Keep other runners from the session while the block runs. Raises SessionBusy and FolderUnusable."""
        ...

    def locked(self) -> AbstractContextManager[None]:
        """Keep every other program from the session's folder while the workspace is prepared. Raises SessionBusy."""
        ...

    async def prepare(self) -> Workspace:
        """Clone or restore the workspace. May be cancelled. Raises MidwatchError."""
        ...

    def beside(self) -> AbstractAsyncContextManager[None]:
        """Run what runs beside the session, such as a chat or a sync, while the block runs."""
        ...

    def nudge(self) -> None:
        """Note that something worth keeping has happened."""
        ...

    async def save(self) -> None:
        """Keep the workspace after the session. Raises nothing but CancelledError."""
        ...


class StatusSink(Protocol[T_co]):
    """Where the status of the session goes; what `finish` returns is the result of the run."""

    @property
    def records(self) -> SessionRecords: ...

    async def __aenter__(self) -> object: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    async def begin(self, spec: SessionSpec) -> None:
        """Record that the run begins. What this raises ends the run, and nothing else is written."""
        ...

    async def owned(self) -> bool:
        """Return whether this runner still may push, save and report: no other has taken over."""
        ...

    async def save_repositories(
        self, states: Sequence[RepoState], pushes: Sequence[PushResult]
    ) -> None:
        """Record the repositories after the session. Raises MidwatchError."""
        ...

    async def finish(self, end: RunEnd) -> T_co:
        """Report the end: the last step of every run. May raise what ended it."""
        ...


class EventSink(Protocol):
    """Who reads a run while it happens: a terminal, or the log of a pod."""

    def event(self, event: Event) -> None: ...

    def note(self, text: str) -> None:
        """Report something that is no event of the session."""
        ...


class StopPolicy(Protocol):
    """What a signal means."""

    def ends_session(self) -> bool:
        """Return whether a signal ends the session, and not only its runner. Called after `StatusSink.owned`."""
        ...


class SignalStops:
    """A signal ends the session: a person pressed Ctrl-C, or ended the command."""

    def ends_session(self) -> bool:
        return True


class Deadline:
    """The time that preparation and session have together: `timeout` seconds from now, None for no limit."""

    def __init__(self, clock: Clock, timeout: float | None = None) -> None:
        self._clock = clock
        self._began = clock.monotonic()
        self.timeout = math.inf if timeout is None else timeout

    def left(self) -> float:
        """Return the seconds that are left, at least 1; infinity without a limit."""
        return max(1.0, self.timeout - (self._clock.monotonic() - self._began))


@dataclass(frozen=True, slots=True)
class StepTimeouts:
    """Seconds for the steps after the session. The push gets what is left of the deadline, within its bounds."""

    push_least: float = math.inf
    push_most: float = math.inf
    inspect: float = math.inf


@dataclass(frozen=True, slots=True)
class ShutdownBudget:
    """Seconds that each of the last steps may still take once the runner is asked to end; by default those of a
    pod with 60.

    `session` is for the turn under way, `wind_up` for a push to the content proxy under way, `push` for the
    push of the repositories, `ask` for one question to the API server, `report` for the final status. All but
    `push` come one after the other and leave some time for the exit; a push comes where the session is over.
    """

    session: float = 10.0
    wind_up: float = 5.0
    push: float = 15.0
    inspect: float = 5.0
    save: float = 18.0
    ask: float = 4.0
    report: float = 15.0

    @classmethod
    def within(cls, seconds: float) -> ShutdownBudget:
        """Return the shares of a grace period of `seconds`; more than 60 changes nothing."""
        share = min(1.0, seconds / 60.0)
        whole = cls()
        return cls(**{f.name: getattr(whole, f.name) * share for f in fields(cls)})


@dataclass(frozen=True, slots=True)
class RunnerDependencies(Generic[T]):
    """What a `SessionRunner` works with. `stop` ends the run early; signals set it."""

    workspace: WorkspaceProvider
    status: StatusSink[T]
    events: EventSink
    stops: StopPolicy
    stop: StopEvent
    deadline: Deadline
    timeouts: StepTimeouts = StepTimeouts()
    budget: ShutdownBudget = ShutdownBudget()
    clock: Clock = SystemClock()


# ------------------------------------------------------------------ the runner


class SessionRunner(Generic[T]):
    """Runs a session once, from its workspace to its final status.

    Args:
        task: What to do.
        dependencies: Where the workspace, the status and the events go.
    """

    def __init__(self, task: SessionTask, dependencies: RunnerDependencies[T]) -> None:
        self._task = task
        self._deps = dependencies
        self._workspace = dependencies.workspace
        self._status = dependencies.status
        self._stop = dependencies.stop

    async def run(self) -> T:
        """Run the session and return what `StatusSink.finish` makes of its end.

        The session is then in exactly one terminal phase, in its folder and in every record.

        Raises:
            SessionBusy: Another runner has the session; nothing was written.
            MidwatchError: What `StatusSink.begin` or `finish` raises.
        """
        gc.enable()  # `main` turned it off for the start
        set_nondumpable()
        signals = stop_on_signals(self._stop, self._workspace.nudge)
        with self._workspace.owned(), signals:
            async with self._status:
                end = await self._run_session()
                if await self._status.owned():
                    await self._in_budget(
                        self._workspace.save(), self._deps.budget.save
                    )
                return await self._status.finish(self._with_stop(end))

    async def _run_session(self) -> RunEnd:
        with self._workspace.locked():
            await self._status.begin(self._spec())
            try:
                workspace = await self._prepare()
            except MidwatchError as error:
                return await self._close_unprepared(error)
        end = await self._converse(self._session(workspace))
        if self._task.push and end.completed and await self._status.owned():
            end = await self._push(workspace, end)
        return await self._inspect(workspace, end)

    def _with_stop(self, end: RunEnd) -> RunEnd:
        signalled = self._stop.reason in SIGNALS
        drained = signalled and not self._deps.stops.ends_session()
        return replace(end, drained=drained)

    # -------------------------------------------------------------- the workspace

    async def _prepare(self) -> Workspace:
        try:
            async with _timeout(self._deps.deadline.left()):
                async with background(self._heartbeat()):
                    work = self._workspace.prepare()
                    workspace = await first(work, self._stop.wait())
        except TimeoutError:
            limit = self._deps.deadline.timeout
            raise SessionTimedOut(
                f"the workspace was not ready within {limit:g} s"
            ) from None
        if workspace is None:
            raise SessionStopped(self._stop.reason or "stopped")
        return workspace

    async def _heartbeat(self) -> None:
        """Show that the runner lives, until the session does it. A failed write ends nothing."""
        runner, clock = f"{platform.node()}:{os.getpid()}", self._deps.clock
        while True:
            with contextlib.suppress(MidwatchError):
                now = clock.now()
                await self._status.records.heartbeat(self._task.id, runner, now)
            await clock.sleep(HEARTBEAT)

    async def _close_unprepared(self, error: MidwatchError) -> RunEnd:
        """Write the end into the outbox as well: those who follow the session wait for it."""
        self._deps.events.event(failure(error))
        status = SessionStatus()
        with contextlib.suppress(MidwatchError):  # the disk is full, or not writable
            folder = self._workspace.folder
            folder.make()
            status = close_unprepared(
                folder, self._task.redactor, self._deps.clock, error
            )
            await self._status.records.save_status(self._task.id, status)
        return RunEnd(status, error, began=False)

    # -------------------------------------------------------------- the session

    def _spec(self) -> SessionSpec:
        task = self._task
        return SessionSpec(
            id=task.id,
            created_at=self._deps.clock.now(),
            cwd=str(self._workspace.root),
            model=task.options.model,
            interactive=task.interactive,
            forked_from=task.forked_from,
            ticket=task.ticket,
        )

    def _session(self, workspace: Workspace) -> AsyncAgenticSession:
        """Return the session, with limits that end it in the time that is left."""
        left, limits = self._deps.deadline.left(), self._task.options.limits
        limits = replace(
            limits,
            wall=limits.wall if math.isinf(left) else left,
            grace=min(limits.grace, self._deps.budget.session),
        )
        task = replace(self._task, options=replace(self._task.options, limits=limits))
        return task.session(
            workspace,
            self._workspace.folder,
            self._status.records,
            self._workspace.options,
            self._deps.clock,
        )

    async def _converse(self, session: AsyncAgenticSession) -> RunEnd:
        """Run the session to its end: one prompt, or until its inbox ends it."""
        error: MidwatchError | None = None
        stopping = background(self._pass_on_stop(session))
        try:
            async with session, self._workspace.beside(), stopping:
                async for event in session.execute(self._task.prompt()):
                    await self._observe(event, session)
        except MidwatchError as raised:
            error = raised
        return RunEnd(await asyncio.to_thread(session.status), error)

    async def _pass_on_stop(self, session: AsyncAgenticSession) -> None:
        await self._stop.wait()
        session.stop(self._stop.reason)

    async def _observe(self, event: Event, session: AsyncAgenticSession) -> None:
        self._deps.events.event(event)
        if isinstance(event, TurnResult):
            self._workspace.nudge()
        if self._task.interactive and isinstance(event, _AWAITED):
            # The session itself writes its status seconds later, and a person waits.
            with contextlib.suppress(TemporaryError):
                status = session.status()
                await self._status.records.save_status(self._task.id, status)

    # -------------------------------------------------------------- after the session

    async def _push(self, workspace: Workspace, end: RunEnd) -> RunEnd:
        deps = self._deps
        git = self._workspace.options.git()
        at_most = min(deps.deadline.left(), deps.timeouts.push_most)
        pushes = await self._step(
            push_workspace(workspace, git),
            max(deps.timeouts.push_least, at_most),
            deps.budget.push,
            "the push",
        )
        if pushes is None:
            late = "the repositories could not be pushed in time"
            return replace(end, push_error=NotPushed(late))
        for push in pushes:
            if push.error is not None:
                self._note(push.error.one_line())
        return replace(end, pushes=tuple(pushes))

    async def _inspect(self, workspace: Workspace, end: RunEnd) -> RunEnd:
        """Record the state of the repositories. A failure of this step ends nothing."""

        async def inspect() -> list[RepoState]:
            states = await inspect_workspace(workspace, self._workspace.options.git())
            await self._status.save_repositories(states, end.pushes)
            return states

        states = await self._step(
            inspect(),
            self._deps.timeouts.inspect,
            self._deps.budget.inspect,
            "the inspection of the repositories",
        )
        return replace(end, repositories=tuple(states or ()))

    async def _step(
        self, work: Coroutine[Any, Any, R], seconds: float, grace: float, name: str
    ) -> R | None:
        """Return the result of `work`, or None with a note if it fails, or takes longer than its time."""

        async def limited() -> R:
            async with _timeout(seconds):
                return await work

        try:
            return await self._in_budget(limited(), grace)
        except TimeoutError:
            self._note(f"{name} took longer than {seconds:g} s")
        except MidwatchError as error:
            self._note(f"{name} failed: {error.one_line()}")
        return None

    async def _in_budget(self, work: Coroutine[Any, Any, R], grace: float) -> R | None:
        """Return the result of `work`; None if it is not done `grace` seconds after the stop."""
        return await first(work, self._stop.wait(), grace=grace)

    def _note(self, text: str) -> None:
        self._deps.events.note(self._task.redactor.text(text))


def _timeout(seconds: float) -> asyncio.Timeout:
    return asyncio.timeout(None if math.isinf(seconds) else seconds)


def close_unprepared(
    folder: SessionFolder, redactor: Redactor, clock: Clock, error: MidwatchError
) -> SessionStatus:
    """Write into the outbox how a run ended that never started the program. Return the status it has then.

    SessionStopped makes the phase Stopped, any other error Failed. Raises DiskFull and FolderUnusable.
    """
    journal = Journal(folder, redactor, clock.now)
    try:
        run = journal.ledger.run
        if run and not journal.ledger.phase.terminal:
            reason = RunnerCrashed.__name__
            journal.emit(PhaseChanged(phase=Phase.FAILED, run=run, reason=reason))
        run += 1
        journal.emit(PhaseChanged(phase=Phase.CREATING, run=run))
        stopped = isinstance(error, SessionStopped)
        if not stopped:
            journal.emit(failure(error))
        phase = Phase.STOPPED if stopped else Phase.FAILED
        reason = error.message if stopped else type(error).__name__
        journal.emit(PhaseChanged(phase=phase, run=run, reason=reason))
        return journal.status
    finally:
        journal.close()
