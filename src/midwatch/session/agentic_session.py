"""Sessions for library users: `AsyncAgenticSession`, `AgenticSession` without an event loop, and their result."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import weakref
from collections.abc import (
    AsyncGenerator,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Required, Self, TypedDict, Unpack

from midwatch.errors import MidwatchError
from midwatch.lifecycle import Clock, SystemClock, first
from midwatch.model import Usage
from midwatch.provider import ApiAccess
from midwatch.redaction import Redactor
from midwatch.session.claude_code import ProgramPaths
from midwatch.session.errors import DiskFull, FolderUnusable, SessionBusy
from midwatch.session.event_loop_thread import EventLoopThread, LoopEnded
from midwatch.session.events import DeniedCall, Event, Failure, ModelUsage, Phase
from midwatch.session.log import SessionFolder, default_sessions, read_events
from midwatch.session.options import (
    Client,
    SessionOptions,
    check_access,
    check_id,
    check_main,
    check_options,
    check_prompt,
)
from midwatch.session.records import (
    FolderRecords,
    SessionRecords,
    SessionSpec,
    Transcripts,
    new_session_id,
)
from midwatch.session.run import Run, RunConfig
from midwatch.session.status import SessionStatus, failed, fold
from midwatch.session.translate import InterruptRequested
from midwatch.workspace.environment import process_environ
from midwatch.workspace.inspect import RepoState, inspect_workspace
from midwatch.workspace.record import Workspace, load_record
from midwatch.workspace.setup import WorkspaceOptions


@dataclass(frozen=True, slots=True)
class SessionResult:
    """The result of a session after its last run.

    Attributes:
        text: Claude's last answer.
        turns: Calls of the API, over the whole session.
        requests: Requests to the API, also those that were refused and repeated, over the whole session.
        duration: Seconds spent in turns, over the whole session.
        models: Usage and cost by model, over the whole session.
        error: The error that ended the last run, with a hint.
        denied: The tool calls that were denied in the last run.
        repositories: The state of the clones, for a workspace that `setup_workspace` made.
    """

    session_id: str
    phase: Phase
    reason: str
    text: str
    turns: int
    duration: float
    usage: Usage
    cost_usd: float
    models: Mapping[str, ModelUsage]
    conversation: str
    folder: Path
    error: Failure | None = None
    repositories: tuple[RepoState, ...] = field(default=())
    denied: tuple[DeniedCall, ...] = ()
    requests: int = 0

    @property
    def ok(self) -> bool:
        return self.phase is Phase.COMPLETED


def session_result(
    session_id: str,
    status: SessionStatus,
    folder: Path,
    conversation: str,
    repositories: tuple[RepoState, ...],
) -> SessionResult:
    return SessionResult(
        session_id=session_id,
        phase=status.phase,
        reason=status.reason,
        text=status.result,
        turns=status.turns,
        requests=status.requests,
        duration=status.active_seconds,
        usage=status.usage,
        cost_usd=status.cost_usd,
        models=dict(status.spend),
        conversation=conversation,
        folder=folder,
        error=status.error,
        repositories=repositories,
        denied=status.denied,
    )


def recorded_workspace(path: Path, options: WorkspaceOptions) -> Workspace | None:
    """Return the workspace that `setup_workspace` made at this path, or None."""
    return load_record(options.state_of(path))


async def repository_states(
    workspace: Workspace | None, options: WorkspaceOptions
) -> tuple[RepoState, ...]:
    """Return the state of the workspace's repositories. Raises the MidwatchErrors of `inspect_workspace`."""
    if workspace is None:
        return ()
    git = options.git()
    return tuple(await inspect_workspace(workspace, git))


WorkspaceLike = Path | str | Workspace | Sequence[Path]


class AsyncAgenticSession:
    """A session of Claude Code in a workspace.

    ::

        async with AsyncAgenticSession(client=client, workspace="/srv/work") as session:
            async for event in session.execute("Make the tests pass."):
                print(event)
            print((await session.get_results()).text)

    `workspace` is a folder, what `setup_workspace` returned (the main repository is the working
    directory, the others are additional ones), or a `Workspace`. `main_repo_index` overrides the main
    repository that `setup_workspace` recorded. The files of the session are in `folder`, by default a folder
    of its own in the user's state folder; the same `session_id` and folder continue a session. `forked_from`
    needs the `transcripts` that both sessions share. `model` overrides that of `options`.

    Raises KeyRefused, SessionRefused and FolderUnusable for invalid arguments.
    """

    def __init__(
        self,
        *,
        client: Client,
        workspace: WorkspaceLike,
        model: str | None = None,
        options: SessionOptions | None = None,
        main_repo_index: int | None = None,
        interactive: bool = False,
        session_id: str | None = None,
        folder: Path | str | None = None,
        forked_from: str | None = None,
        ticket: int | None = None,
        records: SessionRecords | None = None,
        transcripts: Transcripts | None = None,
        workspace_options: WorkspaceOptions | None = None,
        redactor: Redactor | None = None,
        clock: Clock | None = None,
    ) -> None:
        options = options or SessionOptions()
        self.options = replace(options, model=model) if model else options
        check_options(self.options)
        self.id = check_id(session_id or new_session_id())
        self.folder = SessionFolder(Path(folder or default_sessions() / self.id))
        self._workspace_options = workspace_options or WorkspaceOptions()
        self._workspace, cwd, others = _resolve_workspace(
            workspace, main_repo_index, self._workspace_options
        )
        _check_outside_workspace(self.folder.path, (cwd, *others))
        access = check_access(client).in_environ(process_environ())
        clock = clock or SystemClock()
        self._config = RunConfig(
            spec=SessionSpec(
                id=self.id,
                created_at=clock.now(),
                cwd=str(cwd),
                directories=tuple(str(other) for other in others),
                model=self.options.model,
                interactive=interactive,
                forked_from=forked_from,
                ticket=ticket,
            ),
            folder=self.folder,
            paths=ProgramPaths(cwd, others, self.folder.path.absolute()),
            access=access,
            options=self.options,
            records=records or FolderRecords(self.folder.path),
            transcripts=transcripts,
            redactor=(redactor or Redactor()).with_known(*access.secrets),
            clock=clock,
        )
        self._run: Run | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop_reason = ""
        self._last_status = SessionStatus()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def prepare(self) -> None:
        """Start the program before `execute`, so that the first event comes at once."""
        run = await self._open_run()
        try:
            await run.start()
        except MidwatchError as error:
            self._run = None
            await run.finish(error)
        except asyncio.CancelledError:
            self._run = None
            await run.discard()
            raise

    async def execute(self, prompt: str | None = None) -> AsyncGenerator[Event, None]:
        """Run `prompt` and yield the events while they happen. Without a prompt, continue with unanswered prompts.

        An interactive session then reads its inbox until `end_session`. A caller that leaves the loop early
        should `aclose` the session; its phase is then Stopped.

        Raises:
            MidwatchError: After the last event, the error that ended the session: a class of `session.errors`.
                A session that was stopped or interrupted raises none.
            SessionRefused: The prompt is empty or longer than 500 kB; the session is not changed.
            SessionBusy: Another `execute` runs; the session is not changed.
        """
        if prompt is not None:
            check_prompt(prompt)
        if self._task is not None:
            raise SessionBusy(
                f"session {self.id} is running already",
                hint="read all its events first",
            )
        run = await self._open_run()
        failed: MidwatchError | None = None
        try:
            if prompt is not None:
                run.accept(prompt)
        except MidwatchError as error:
            failed = error
        name = f"session {self.id}"
        task = self._task = asyncio.create_task(run.finish(failed), name=name)
        try:
            while (event := await run.journal.stream.get()) is not None:
                yield event
            await task
        finally:
            await self._end_run(run, "its caller left")

    def stop(self, reason: str = "stopped") -> None:
        """End the session: its turn is interrupted, within the grace period; the phase is Stopped.

        A session that does not run yet ends when it starts.
        """
        if self._run is not None:
            self._run.stop(reason)
        else:
            self._stop_reason = reason

    def interrupt(self) -> None:
        """End the current turn, not the session."""
        if self._run is not None:
            self._run.signals.put_nowait(InterruptRequested())

    async def aclose(self) -> None:
        """Stop the run, if there is one, and wait for its end."""
        run = self._run
        if run is None:
            return
        if self._task is None:
            self._run = None
            await run.discard()
        else:
            await self._end_run(run, "closed")

    async def get_results(self, *, repositories: bool = True) -> SessionResult:
        """Return the result so far.

        Args:
            repositories: Whether to inspect the repositories. No code of theirs is executed.

        Raises:
            MidwatchError: What `inspect_workspace` raises.
        """
        status = await asyncio.to_thread(self.status)
        workspace = self._workspace if repositories else None
        states = await repository_states(workspace, self._workspace_options)
        if states and status.run:  # else there is no folder yet
            await self._config.records.save_repositories(self.id, states)
        return session_result(
            self.id, status, self.folder.path, self._config.conversation, states
        )

    def status(self) -> SessionStatus:
        """Return the current status."""
        if self._run is not None:
            return self._run.journal.status
        try:
            logged = fold(SessionStatus(), read_events(self.folder.outbox))
        except FolderUnusable:
            if not self._last_status.run:
                raise
            logged = SessionStatus()
        # On a full disk, the end of a run is not in the log.
        return max(self._last_status, logged, key=lambda status: status.last_seq)

    async def _open_run(self) -> Run:
        """Return the run that `prepare` has started, or a new one."""
        if self._run is None:
            run = Run(self._config)
            try:
                await run.open()
            except (DiskFull, FolderUnusable) as error:
                if not run.opened:
                    await self._record_failure(error)
                raise
            self._run = run
            if self._stop_reason:
                run.stop(self._stop_reason)
        return self._run

    async def _record_failure(self, error: MidwatchError) -> None:
        """Record a run that could not be logged as Failed."""
        config = self._config
        before = FolderRecords(self.folder.path).load_status() or self._last_status
        self._last_status = failed(before, error, config.clock.now())
        with contextlib.suppress(MidwatchError):
            await config.records.save_status(self.id, self._last_status)

    async def _end_run(self, run: Run, reason: str) -> None:
        """Stop a run that has not ended, and wait for its end; a second call waits for the same end."""
        task = self._task
        if task is None or self._run is not run:
            return
        if not task.done():
            run.stop(reason)
        try:
            with contextlib.suppress(MidwatchError):  # `execute` raises it
                await first(task)
        finally:
            if self._task is task:
                self._task = self._run = None
                self._stop_reason = ""
                self._last_status = run.journal.status


def _resolve_workspace(
    workspace: WorkspaceLike, main: int | None, options: WorkspaceOptions
) -> tuple[Workspace | None, Path, tuple[Path, ...]]:
    """Return the recorded workspace, if there is one, the working directory, and the other directories."""
    if isinstance(workspace, Workspace):
        found: Workspace | None = workspace
        paths = workspace.paths
    elif isinstance(workspace, (str, Path)):
        path = Path(workspace).absolute()
        found = recorded_workspace(path, options)
        paths = found.paths if found is not None else [path]
    else:
        paths = [Path(path).absolute() for path in workspace]
        found = recorded_workspace(paths[0].parent, options) if paths else None
    if main is None:
        main = found.main if found is not None and found.paths == paths else 0
    check_main(paths, main)
    others = tuple(path for number, path in enumerate(paths) if number != main)
    return found, paths[main], others


def _check_outside_workspace(folder: Path, folders: Sequence[Path]) -> None:
    """Raise FolderUnusable if the session's folder is inside of a folder that the agent may write to."""
    for one in folders:
        if folder.absolute().is_relative_to(one):
            raise FolderUnusable(
                f"the session's folder {folder} is inside the workspace {one}",
                hint="choose a folder outside of the workspace",
            )


# ------------------------------------------------------------------ without an event loop


class MoreArguments(TypedDict, total=False):
    """The optional arguments of `AsyncAgenticSession`."""

    model: str | None
    options: SessionOptions | None
    main_repo_index: int | None
    interactive: bool
    session_id: str | None
    folder: Path | str | None
    forked_from: str | None
    ticket: int | None
    records: SessionRecords | None
    transcripts: Transcripts | None
    workspace_options: WorkspaceOptions | None
    redactor: Redactor | None
    clock: Clock | None


class Arguments(MoreArguments):
    """The arguments of `AsyncAgenticSession`."""

    client: Required[Client]
    workspace: Required[WorkspaceLike]


class _Events:
    """The events of one `execute`. `close` also works while `next` waits.

    Ctrl-C ends the wait of the caller's thread, and `next` still runs in the loop.
    """

    def __init__(self, session: AsyncAgenticSession, prompt: str | None) -> None:
        self._session = session
        self._events = session.execute(prompt)
        self._waiting = asyncio.Lock()

    async def next(self) -> Event:
        async with self._waiting:
            return await anext(self._events)

    async def close(self) -> None:
        if self._waiting.locked():
            self._session.stop("its caller left")
        async with self._waiting:
            await self._events.aclose()


_running: set[weakref.finalize[..., AgenticSession]] = set()


# What is registered last comes first: the Agent SDK, imported above, kills its programs at the end of the process. So does `weakref`
# close what it is to close, but where it stands among them depends on who used it first.
@atexit.register
def _end_sessions() -> None:
    """Close the sessions when the process ends, while threads and programs still run."""
    for one in tuple(_running):
        one()


class AgenticSession:
    """`AsyncAgenticSession` for code without an event loop; takes the same arguments.

    ::

        session = AgenticSession(client=anthropic.Anthropic(), workspace="/srv/work")
        for event in session.execute("Make the tests pass."):
            if event.type == "message":
                print(event.content)
        print(session.get_results().text)

    `stop` and `interrupt` may be called from any thread. `close`, or the end of a `with` block, stops the run and
    ends the session's thread. Without it the same happens when the session is garbage collected, and at the latest
    when the process ends: the process does not wait for the session, and the session's end is recorded.
    """

    def __init__(self, **arguments: Unpack[Arguments]) -> None:
        self._session = AsyncAgenticSession(**arguments)
        self._lock = threading.Lock()
        self._loop: EventLoopThread | None = None
        self._finalizer: weakref.finalize[..., AgenticSession] | None = None

    @property
    def id(self) -> str:
        return self._session.id

    @property
    def folder(self) -> SessionFolder:
        return self._session.folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> None:
        """As `AsyncAgenticSession.prepare`."""
        self._running_loop().call(self._session.prepare)

    def execute(self, prompt: str | None = None) -> Iterator[Event]:
        """As `AsyncAgenticSession.execute`. A caller that leaves the loop early stops the session."""
        events = _Events(self._session, prompt)
        loop = self._running_loop()
        try:
            while True:
                try:
                    yield loop.call(events.next)
                except (StopAsyncIteration, LoopEnded):
                    return
        finally:
            loop.finish(events.close)

    def stop(self, reason: str = "stopped") -> None:
        """As `AsyncAgenticSession.stop`."""
        self._running_loop().run_soon(lambda: self._session.stop(reason))

    def interrupt(self) -> None:
        """As `AsyncAgenticSession.interrupt`."""
        self._running_loop().run_soon(self._session.interrupt)

    def get_results(self) -> SessionResult:
        """As `AsyncAgenticSession.get_results`."""
        return self._running_loop().call(self._session.get_results)

    def status(self) -> SessionStatus:
        """Return the current status."""
        return self._session.status()

    def close(self) -> None:
        """Stop the run, if there is one, and end the thread."""
        if self._loop is not None and self._finalizer is not None:
            self._loop.close(self._session.aclose)
            self._finalizer.detach()
            _running.discard(self._finalizer)

    def _running_loop(self) -> EventLoopThread:
        with self._lock:
            if self._loop is None or self._loop.ended:
                self._loop = EventLoopThread()
                self._finalizer = weakref.finalize(
                    self, self._loop.close, self._session.aclose
                )
                self._finalizer.atexit = False
                _running.difference_update([one for one in _running if not one.alive])
                _running.add(self._finalizer)
            return self._loop


def run_agentic_session(
    prompt: str,
    workspace: WorkspaceLike,
    anthropic_api_key: str,
    *,
    on_event: Callable[[Event], None] | None = None,
    base_url: str | None = None,
    **arguments: Unpack[MoreArguments],
) -> SessionResult:
    """Run one prompt in a workspace and return the result.

    Args:
        prompt: What Claude should do.
        workspace: A folder, a `Workspace`, or what `setup_workspace` returned.
        anthropic_api_key: The key for the Claude API; empty for that of the environment.
        on_event: Called with every event as it happens.
        base_url: The address of the API, by default ANTHROPIC_BASE_URL, else Anthropic's own.
        arguments: As for `AsyncAgenticSession`.

    Returns:
        The result, with the state of the repositories.

    Raises:
        MidwatchError: The error that ended the session: a class of `midwatch.session.errors`.
    """
    client = ApiAccess.from_environ(
        process_environ(), api_key=anthropic_api_key, base_url=base_url
    )
    with AgenticSession(client=client, workspace=workspace, **arguments) as session:
        for event in session.execute(prompt):
            if on_event is not None:
                on_event(event)
        return session.get_results()
