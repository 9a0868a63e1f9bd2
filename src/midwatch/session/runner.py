"""`SessionRunner`: one run of a session, on a laptop and in a pod, with the same steps and permissions.

The differences are protocols: `WorkspaceProvider` prepares and saves the workspace, `StatusSink` records the
status, `EventSink` prints the events, and `StopPolicy` decides what a signal means. They are implemented in
`midwatch.cli.session.run` and `midwatch.kube.runner`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
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
from midwatch.session.errors import SessionTimedOut
from midwatch.session.events import (
    Event,
    PermissionRequest,
    Phase,
    TurnResult,
    failure,
)
from midwatch.session.log import Journal, SessionFolder
from midwatch.session.options import ApiAccess, SessionOptions
from midwatch.session.permissions import describe_permissions, find_sandbox
from midwatch.session.records import (
    HEARTBEAT,
    FolderRecords,
    SessionRecords,
    SessionSpec,
    Transcripts,
    this_runner,
)
from midwatch.session.status import SessionStatus, failed
from midwatch.settings import SessionSettings
from midwatch.workspace.inspect import RepoState, inspect_workspace
from midwatch.workspace.push import PushResult, push_workspace
from midwatch.workspace.record import Workspace
from midwatch.workspace.setup import WorkspaceOptions

T = TypeVar("T")
R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)

CONTINUE_PROMPT = "Go on with what you were doing when you were interrupted."
"""The prompt for a session whose turn was cut off with its runner."""
SIGNALS = ("SIGTERM", "SIGINT")
"""Reasons of a stop by a signal."""
_SAVED_AT_ONCE = (TurnResult, PermissionRequest)
"""Events after which an interactive session saves its status at once, because a person waits for it."""


class SessionStopped(PermanentError):
    """The session was stopped before its end."""


class NotPushed(MidwatchError):
    """A repository could not be pushed."""


# ------------------------------------------------------------------ permissions

_OWN_RULES = {"allowed_tools", "permission_mode"}


def permitted(
    options: SessionOptions, settings: SessionSettings, *, contained: bool
) -> SessionOptions:
    """Return `options` with the permissions of a session; every runner has this rule.

    Bash needs no permission in a sandbox that works (`permissions.program_rules`), nor in the container of a pod
    (`contained`), where this function adds it to the allowed tools. Otherwise every command needs permission, which is denied in a session
    that is not interactive. Settings that set `allowed_tools` or `permission_mode` turn the rule for
    containers off.
    """
    if not contained or _OWN_RULES & settings.model_fields_set:
        return options
    allowed = (*(t for t in options.allowed_tools if t != "Bash"), "Bash")
    return replace(options, allowed_tools=allowed)


# ------------------------------------------------------------------ task and dependencies


@dataclass(frozen=True, slots=True)
class SessionTask:
    """The task of a runner.

    Attributes:
        id: The session's id.
        prompt: Returns the prompt once the workspace is prepared; None continues with unanswered prompts.
        options: The options, before `permitted`.
        settings: The settings that `permitted` reads.
        access: The key and the address of the API.
        contained: Whether the runner has a container of its own.
        push: Whether the repositories are pushed once the session is Completed.
        redactor: Removes secrets from everything that is logged or recorded.
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
        error: The error that ended the run.
        began: Whether the session was opened; false if its workspace could not be prepared.
        drained: Whether a signal ended only this runner, and another runner continues the session.
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
        """The first error of the push, or None."""
        errors = (push.error for push in self.pushes if push.error is not None)
        return next(errors, self.push_error)


class WorkspaceProvider(Protocol):
    """Prepares and saves the folders of a session."""

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
        """Lock the session against other runners while the block runs. Raises SessionBusy and FolderUnusable."""
        ...

    def locked(self) -> AbstractContextManager[None]:
        """Lock the session's folder while the workspace is prepared. Raises SessionBusy."""
        ...

    async def prepare(self) -> Workspace:
        """Clone or restore the workspace. May be cancelled. Raises MidwatchError."""
        ...

    def beside(self) -> AbstractAsyncContextManager[None]:
        """Run background work of the session, such as a chat or a sync, while the block runs."""
        ...

    def nudge(self) -> None:
        """Ask for a sync soon: a turn has ended or a signal has arrived."""
        ...

    async def save(self) -> None:
        """Save the workspace after the session. Raises only CancelledError."""
        ...


class StatusSink(Protocol[T_co]):
    """Records the status of the session; `finish` returns the result of the run."""

    @property
    def records(self) -> SessionRecords: ...

    async def __aenter__(self) -> object: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def begin(self, spec: SessionSpec) -> None:
        """Record the start of the run. An error ends the run, and nothing else is written."""
        ...

    async def owned(self) -> bool:
        """Return whether this runner still owns the session: only then may it push, save and report."""
        ...

    async def save_repositories(
        self, states: Sequence[RepoState], pushes: Sequence[PushResult]
    ) -> None:
        """Record the repositories after the session. Raises MidwatchError."""
        ...

    async def finish(self, end: RunEnd) -> T_co:
        """Report the end: the last step of every run. May raise the error that ended the run."""
        ...


class EventSink(Protocol):
    """Prints a run while it happens: on a terminal, or in the log of a pod."""

    def event(self, event: Event) -> None: ...

    def note(self, text: str) -> None:
        """Print a message that is not an event of the session."""
        ...


class StopPolicy(Protocol):
    """Decides what a signal means."""

    def ends_session(self) -> bool:
        """Return whether a signal ends the session, not only its runner. Called after `StatusSink.owned`."""
        ...


class SignalStops:
    """Every signal ends the session: a person pressed Ctrl-C or ended the command."""

    def ends_session(self) -> bool:
        return True


class Deadline:
    """The deadline of preparation and session together: `timeout` seconds from now, or None."""

    def __init__(self, clock: Clock, timeout: float | None = None) -> None:
        self._clock = clock
        self._began = clock.monotonic()
        self.timeout = math.inf if timeout is None else timeout

    def left(self) -> float:
        """Return the seconds that are left, at least 1; infinity without a limit."""
        return max(1.0, self.timeout - (self._clock.monotonic() - self._began))


@dataclass(frozen=True, slots=True)
class StepTimeouts:
    """Seconds for the steps after the session. The push gets the rest of the deadline, within its bounds."""

    push_least: float = math.inf
    push_most: float = math.inf
    inspect: float = math.inf


@dataclass(frozen=True, slots=True)
class ShutdownBudget:
    """Seconds for each step of a shutdown after a signal. The defaults fit a grace period of 60 seconds.

    `session` is for the current turn, `wind_up` for a running push to the content proxy, `push` for the push of the
    repositories, `ask` for one request to the API server, `report` for the final status. All but `push` run one
    after the other and leave some time for the exit; a push runs only after the session is over.
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
    """The dependencies of a `SessionRunner`. `stop` ends the run early; signals set it."""

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
        task: The task.
        dependencies: Workspace, status, events, stop and clock.
    """

    def __init__(self, task: SessionTask, dependencies: RunnerDependencies[T]) -> None:
        self._task = task
        self._deps = dependencies
        self._workspace = dependencies.workspace
        self._status = dependencies.status
        self._stop = dependencies.stop

    async def run(self) -> T:
        """Run the session and return the result of `StatusSink.finish`.

        The session is then in one terminal phase, in its folder and in every record.

        Raises:
            SessionBusy: Another runner works on the session; nothing was written.
            MidwatchError: An error of `StatusSink.begin` or `finish`.
        """
        gc.freeze()  # what the imports made stays; `main` turned the collector off
        gc.enable()
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

    def permissions(self) -> str:
        """Return one line that says what the session may do without asking. Blocks for the trial of the sandbox.

        Raises SandboxUnavailable if a sandbox is required and none works.
        """
        task = self._task
        options = permitted(task.options, task.settings, contained=task.contained)
        sandbox = find_sandbox(options)
        return describe_permissions(options, sandbox, interactive=task.interactive)

    async def _run_session(self) -> RunEnd:
        with self._workspace.locked():
            await self._status.begin(self._spec())
            try:
                allowed = await asyncio.to_thread(self.permissions)
                if self._task.contained:
                    self._note(allowed)
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
        """Write heartbeats until the session does. A failed write is ignored."""
        runner, clock = this_runner(), self._deps.clock
        while True:
            with contextlib.suppress(MidwatchError):
                now = clock.now()
                await self._status.records.heartbeat(self._task.id, runner, now)
            await clock.sleep(HEARTBEAT)

    async def _close_unprepared(self, error: MidwatchError) -> RunEnd:
        """Log the end in the outbox: readers that follow the session wait for it."""
        folder, clock = self._workspace.folder, self._deps.clock
        self._deps.events.event(replace(failure(error), at=clock.now()))
        try:
            folder.make()
            status = close_unprepared(folder, self._task.redactor, clock, error)
        except MidwatchError:  # the disk is full, or the folder is not usable
            before = FolderRecords(folder.path).load_status() or SessionStatus()
            status = failed(before, error, clock.now())
        with contextlib.suppress(MidwatchError):
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
        """Run the session to its end: one prompt, or until `end_session`."""
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
        if self._task.interactive and isinstance(event, _SAVED_AT_ONCE):
            # The session itself writes its status some seconds later.
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
        """Record the state of the repositories. An error of this step is only printed."""

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
        """Return the result of `work`; print an error or a timeout and return None."""

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
    """Log the end of a run that did not start the program. Return its status.

    SessionStopped makes the phase Stopped, any other error Failed. Raises DiskFull and FolderUnusable.
    """
    journal = Journal(folder, redactor, clock.now)
    try:
        journal.close_crashed_run()
        journal.begin_run()
        if isinstance(error, SessionStopped):
            journal.end_run(Phase.STOPPED, error.message)
        else:
            journal.end_run(Phase.FAILED, type(error).__name__, error)
        return journal.status
    finally:
        journal.close()
