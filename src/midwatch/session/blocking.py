"""`AgenticSession` and `run_agentic_session`: a session for code without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Required, Self, TypedDict, TypeVar, Unpack

from midwatch.lifecycle import Clock
from midwatch.redaction import Redactor
from midwatch.session.agentic_session import (
    AsyncAgenticSession,
    SessionResult,
    WorkspaceLike,
)
from midwatch.session.events import Event
from midwatch.session.log import SessionFolder
from midwatch.session.options import ApiAccess, Client, SessionOptions
from midwatch.session.records import SessionRecords, Transcripts
from midwatch.session.status import SessionStatus
from midwatch.workspace.setup import WorkspaceOptions

_T = TypeVar("_T")


class MoreArguments(TypedDict, total=False):
    """The arguments of `AsyncAgenticSession` that may be left out."""

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


class _Background:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # Not a daemon thread: the program is tied to the thread that started it.
        self._thread = threading.Thread(target=self._loop.run_forever, name="session")
        self._thread.start()

    def call(self, awaitable: Awaitable[_T]) -> _T:
        task = _awaited(awaitable)
        return asyncio.run_coroutine_threadsafe(task, self._loop).result()

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def run(self, function: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        self.call(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _awaited(awaitable: Awaitable[_T]) -> _T:
    return await awaitable


class _Events:
    """The events of one `execute`; they can be closed while the next one is waited for.

    Ctrl-C ends the wait in the caller's thread, not what it waits for.
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


class AgenticSession:
    """`AsyncAgenticSession` for code without an event loop; takes the same arguments.

    ::

        with AgenticSession(client=anthropic.Anthropic(), workspace="/srv/work") as session:
            for event in session.execute("Make the tests pass."):
                print(event)
            print(session.get_results().text)

    `stop` and `interrupt` may be called from any thread. Close it, best by `with`: its thread
    lives until then.
    """

    def __init__(self, **arguments: Unpack[Arguments]) -> None:
        self._session = AsyncAgenticSession(**arguments)
        self._loop: _Background | None = None

    @property
    def id(self) -> str:
        return self._session.id

    @property
    def folder(self) -> SessionFolder:
        return self._session.folder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def prepare(self) -> None:
        """Start the program ahead of `execute`."""
        self._background.call(self._session.prepare())

    def execute(self, prompt: str | None = None) -> Iterator[Event]:
        """As `AsyncAgenticSession.execute`."""
        events = _Events(self._session, prompt)
        loop = self._background
        try:
            while True:
                try:
                    yield loop.call(events.next())
                except StopAsyncIteration:
                    return
        finally:
            if not loop.closed:
                loop.call(events.close())

    def stop(self, reason: str = "stopped") -> None:
        """As `AsyncAgenticSession.stop`."""
        self._background.run(lambda: self._session.stop(reason))

    def interrupt(self) -> None:
        """As `AsyncAgenticSession.interrupt`."""
        self._background.run(self._session.interrupt)

    def get_results(self) -> SessionResult:
        """Return the result so far. Raises what `inspect_workspace` raises."""
        return self._background.call(self._session.get_results())

    def status(self) -> SessionStatus:
        """Return the current status."""
        return self._session.status()

    def close(self) -> None:
        """Stop what runs, and end the thread."""
        if self._loop is not None:
            self._loop.call(self._session.aclose())
            self._loop.close()
            self._loop = None

    @property
    def _background(self) -> _Background:
        if self._loop is None:
            self._loop = _Background()
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
    """Run one prompt in a workspace to its end.

    Args:
        prompt: What Claude should do.
        workspace: A folder, a `Workspace`, or what `setup_workspace` returned.
        anthropic_api_key: The key for the Claude API.
        on_event: Is called with every event as it happens.
        base_url: The address of the API, by default Anthropic's own.
        arguments: As for `AsyncAgenticSession`.

    Returns:
        The result, with the state of the repositories.

    Raises:
        MidwatchError: What ended the session badly: the children in `midwatch.session.errors`.
    """
    client = ApiAccess(anthropic_api_key, base_url)
    with AgenticSession(client=client, workspace=workspace, **arguments) as session:
        for event in session.execute(prompt):
            if on_event is not None:
                on_event(event)
        return session.get_results()
