"""The manager of sessions: list, resume, fork, answer, end and remove them.

`midwatch session` is a thin layer over `SessionManager`. Use it in your own programs: a web page, a bot, a
service. It prints nothing and does not read the environment. Only `open` and `task` import the Agent SDK, which is slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from midwatch.errors import Conflict, NotFound
from midwatch.lifecycle import Clock, SystemClock
from midwatch.redaction import Redactor
from midwatch.session.events import Phase
from midwatch.session.log import conversation_id, read_events
from midwatch.session.mailbox import Mailbox
from midwatch.session.options import (
    Client,
    OptionOverrides,
    PullRequestsAsked,
    check_access,
    session_options,
)
from midwatch.session.records import (
    HEARTBEAT,
    FolderRecords,
    RunRecords,
    SessionFolders,
    SessionPaths,
    SessionRequest,
    SessionStore,
    StoredSession,
    TranscriptKey,
    Transcripts,
)
from midwatch.session.records import new_session_id as new_session_id
from midwatch.session.records import (
    recorded_elsewhere,
    recorded_repositories,
    subtract_status,
)
from midwatch.session.status import SessionStatus, fold
from midwatch.session.transcripts import PROJECT
from midwatch.settings import SessionSettings
from midwatch.workspace.environment import GitEnvironment
from midwatch.workspace.errors import WorkspaceExists
from midwatch.workspace.git import OnProgress
from midwatch.workspace.inspect import unpushed_work
from midwatch.workspace.mount_points import remove_mount_points
from midwatch.workspace.plan import RepoSpec
from midwatch.workspace.record import Workspace, load_record, open_workspace
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace_async

if TYPE_CHECKING:
    from midwatch.session.agentic_session import AsyncAgenticSession
    from midwatch.session.runner import SessionTask

HEARTBEAT_TIMEOUT = 4 * HEARTBEAT
"""Seconds without a heartbeat after which a runner on another machine counts as crashed."""
_UNFINISHED = tuple(phase for phase in Phase if not phase.terminal)


@dataclass(frozen=True, slots=True)
class RemovedSession:
    """A session that `prune` removed, and the bytes that its files took."""

    id: str
    size: int


@dataclass(frozen=True, slots=True)
class KeptSession:
    """A session that `prune` kept: the bytes that its files take, and its work that is not pushed anywhere."""

    id: str
    size: int
    work: str


class SessionManager:
    """All sessions of a store, and the files of those that ran on this machine.

    ::

        store = await open_store("sqlite:///midwatch.db")
        manager = SessionManager(
            SqlSessions(store.transactions), SqlTranscripts(store.transactions)
        )
        for session in await manager.list(phases=[Phase.RUNNING]):
            print(session.id, session.status.cost_usd)

    Many managers may use one store, on many machines. `list`, `get`, `resume`, `fork` and `remove` also work
    on a session of another machine; methods that write to a mailbox need the session's folder and raise NotFound.

    Errors are children of `midwatch.errors.MidwatchError`. Besides those that a method lists, any method may
    raise the errors of the store (TemporaryError while a database is away), DiskFull and FolderUnusable.
    """

    def __init__(
        self,
        store: SessionStore,
        transcripts: Transcripts,
        settings: SessionSettings | None = None,
        *,
        redactor: Redactor | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Create a manager; nothing is opened or read.

        Args:
            store: The records, such as `midwatch.store.sessions.SqlSessions`.
            transcripts: The conversations, such as `midwatch.store.sessions.SqlTranscripts`.
            settings: The group `sessions` of the settings: the folders, and the options of every run.
            redactor: Removes secrets from the records; it should know every secret that a prompt may contain.
            clock: The clock for the age of a session.
        """
        self.store = store
        self.transcripts = transcripts
        self.settings = settings or SessionSettings()
        self.folders = SessionFolders.from_settings(self.settings)
        self.redactor = redactor or Redactor()
        self._clock = clock or SystemClock()

    # -------------------------------------------------- read

    async def get(self, session_id: str) -> StoredSession:
        """Return a session, closed if its runner has crashed. Raises NotFound."""
        self.folders.of(session_id)
        found = await self.store.get(session_id)
        if await self._close_if_crashed(found):
            return await self.store.get(session_id)
        return found

    def paths(self, session_id: str) -> SessionPaths:
        """Return the paths of a session on this machine, also of one that does not exist. Raises NotFound for a bad id."""
        return self.folders.of(session_id)

    def alive(self, session: StoredSession) -> bool:
        """Return whether a runner works on the session.

        On this machine, its lock is held; on another one, its heartbeat is younger than 20 seconds.
        """
        paths = self.folders.of(session.id)
        if session.is_local(paths):
            return paths.running
        return (
            session.silent_for < HEARTBEAT_TIMEOUT and not session.status.phase.terminal
        )

    async def close_crashed(self) -> Sequence[str]:
        """Close each session without a runner that is not in a terminal phase. Return their ids.

        They become Failed with the reason `RunnerCrashed`; transcript and workspace are kept. If the database
        was away when a session ended, the end is read from its folder and recorded.
        """
        unfinished = await self.store.listed(phases=_UNFINISHED)
        return [one.id for one in unfinished if await self._close_if_crashed(one)]

    async def _close_if_crashed(self, session: StoredSession) -> bool:
        if session.status.phase.terminal or self.alive(session):
            return False
        paths = self.folders.of(session.id)
        if session.is_local(paths) and (ended := _recorded_end(paths, session)):
            await self.store.save_status(session.id, ended)
            return True
        with contextlib.suppress(WorkspaceExists):  # its record cannot be read
            await self.remove_mount_points(session.id)
        return await self.store.fail_crashed(session)

    # -------------------------------------------------- runs

    async def resume(
        self,
        session_id: str,
        prompt: str | None = None,
        *,
        interactive: bool = False,
        push: bool = False,
        overrides: OptionOverrides | None = None,
    ) -> SessionRequest:
        """Return the request that continues a session, with its whole conversation.

        Args:
            session_id: The session; its last run may have been on another machine.
            prompt: The next prompt. None continues a turn that was cut off.
            interactive: Whether the session stays open and reads its mailbox.
            push: Whether to push the changes once it is Completed; also true if an earlier run asked for it.
            overrides: Fields that are set replace those of the earlier runs.

        Raises:
            NotFound: There is no such session, or its record names no repositories.
            Conflict: It is running, or there is no prompt and nothing is unanswered.
        """
        session = await self.get(session_id)
        paths = self.folders.of(session_id)
        if self.alive(session):
            raise Conflict(
                f"session {session_id} is running on {session.host}",
                hint=f"`midwatch session attach {session_id}` or `end {session_id}`",
            )
        repositories = _repositories_to_clone(session, paths)
        here = fold(SessionStatus(), read_events(paths.folder.outbox))
        moved = not session.is_local(paths)
        elsewhere = recorded_elsewhere(session)
        if moved:
            elsewhere = subtract_status(session.status, here)
        if prompt is None and not interactive:
            prompt = _prompt_to_continue(session, here)
        return SessionRequest(
            id=session_id,
            prompt=prompt,
            repositories=repositories,
            main=int(session.options.get("main") or 0),
            interactive=interactive,
            push=push or bool(session.options.get("push")),
            overrides=(overrides or OptionOverrides()).over(_overrides(session)),
            forked_from=session.forked_from,
            ticket=session.ticket,
            pull_requests=PullRequestsAsked.of(session.options),
            first_prompt=session.prompt,
            elsewhere=elsewhere,
            moved=moved,
            notice=_notice_of_move(session, paths) if moved else "",
        )

    async def fork(
        self,
        session_id: str,
        prompt: str | None = None,
        *,
        interactive: bool = False,
        push: bool = False,
        push_branch: str | None = None,
        overrides: OptionOverrides | None = None,
    ) -> SessionRequest:
        """Return the request for a new session that starts with the conversation of another one.

        It gets new clones, of the branch that the other session pushed or else of the branch it started from.
        `push_branch` is the branch to push to, by default one of its own; the other arguments are those of
        `resume`.

        Raises:
            NotFound: There is no such session, or its record names no repositories.
            Conflict: It has no conversation yet.
        """
        session = await self.get(session_id)
        if await self.transcripts.load(_transcript_key(session_id)) is None:
            raise Conflict(f"session {session_id} has no conversation yet")
        return SessionRequest(
            id=new_session_id(),
            prompt=prompt,
            repositories=tuple(
                replace(one, push_branch=push_branch)
                for one in _as_pushed(session, recorded_repositories(session))
            ),
            main=int(session.options.get("main") or 0),
            interactive=interactive,
            push=push,
            overrides=(overrides or OptionOverrides()).over(_overrides(session)),
            forked_from=session_id,
            ticket=session.ticket,
        )

    @contextlib.asynccontextmanager
    async def open(
        self,
        request: SessionRequest,
        client: Client,
        environment: GitEnvironment | None = None,
    ) -> AsyncIterator[AsyncAgenticSession]:
        """Clone the repositories of a request and yield its session, for `execute(request.prompt)`.

        Clones of an earlier run are kept. At the end of the block a running session is stopped; its record,
        transcript and workspace are kept.

        Args:
            request: A new one, or one that `resume` or `fork` returned.
            client: The key and the address of the API.
            environment: Tokens, proxies and keys for git.

        Raises:
            SessionBusy: Another runner works on the session.
            KeyRefused, SessionRefused: The client or the options cannot be used.
            MidwatchError: A repository cannot be cloned; see `midwatch.workspace.errors`.
        """
        paths, task = self.folders.of(request.id), self.task(request, client)
        options = self.workspace_options(request.id, environment)
        paths.folder.make()
        with paths.owned():
            workspace = await self.prepare_workspace(request, options)
            async with task.session(
                workspace, paths.folder, self.records(request), options
            ) as session:
                yield session

    def task(self, request: SessionRequest, client: Client) -> SessionTask:
        """Return a request as the task of a `SessionRunner`. Raises KeyRefused for a key that cannot be used."""
        from midwatch.session.runner import SessionTask

        spent = request.elsewhere.cost_usd if request.elsewhere else 0.0
        return SessionTask(
            id=request.id,
            prompt=lambda: request.prompt,
            options=session_options(self.settings, request.overrides, spent),
            settings=self.settings,
            access=check_access(client),
            interactive=request.interactive,
            push=request.push,
            forked_from=request.forked_from,
            ticket=request.ticket,
            transcripts=self.transcripts,
            redactor=self.redactor,
        )

    async def prepare_workspace(
        self,
        request: SessionRequest,
        options: WorkspaceOptions,
        on_progress: OnProgress | None = None,
    ) -> Workspace:
        """Clone the repositories of a request; clones of an earlier run are kept. Raises MidwatchError."""
        paths = self.folders.of(request.id)
        if request.moved:
            # The program's transcript on this disk is older than the one in the store.
            await asyncio.to_thread(
                shutil.rmtree, paths.program_transcripts, ignore_errors=True
            )
        await setup_workspace_async(
            request.repositories,
            paths.workspace,
            request.main,
            options=options,
            on_progress=on_progress,
        )
        return open_workspace(paths.state)

    def records(self, request: SessionRequest) -> RunRecords:
        """Return the records that a run of this request writes: in the store and in the session's folder."""
        paths = self.folders.of(request.id)
        return RunRecords(self.store, request, paths, self.redactor)

    def workspace_options(
        self, session_id: str, environment: GitEnvironment | None = None
    ) -> WorkspaceOptions:
        """Return how the workspace of a session is set up, inspected and pushed."""
        return WorkspaceOptions(
            session=session_id,
            cache=self.folders.cache,
            state=self.folders.of(session_id).state,
            mirror_bytes=int(self.settings.cache_size),
            environment=environment or GitEnvironment(),
        )

    async def save_asked(
        self, session_id: str, asked: PullRequestsAsked | None
    ) -> None:
        """Record whether pull requests of a session are still to be opened. Raises NotFound."""
        session = await self.store.get(session_id)
        document = None if asked is None else asked.to_json()
        options = {**session.options, PullRequestsAsked.KEY: document}
        if options != session.options:
            await self.store.save_options(session_id, options)

    # -------------------------------------------------- mailbox

    def mailbox(self, session_id: str) -> Mailbox:
        """Return the mailbox of a session that is on this machine. Raises NotFound."""
        return Mailbox(session_id, self.folders.existing(session_id).folder)

    def send(self, session_id: str, text: str) -> str:
        """Send a message to an interactive session. Return the id of the message.

        A session that does not run reads its mailbox when it is resumed interactively. A text that is only
        `/end` ends the session.

        Raises:
            NotFound: The session is not on this machine.
            Conflict: The text is too long.
        """
        return self.mailbox(session_id).send(text)

    def interrupt(self, session_id: str) -> str:
        """End the current turn, not the session. Return the id of the message. Raises NotFound."""
        return self.mailbox(session_id).interrupt()

    def approve(self, session_id: str, request_id: str | None = None) -> str:
        """Allow the tool call that a session asks permission for. Return the id of the message.

        Args:
            session_id: The session.
            request_id: The request; needed if several are pending. `status.pending_permissions` lists them.

        Raises:
            NotFound: The session is not on this machine.
            Conflict: `request_id` is not pending, or there is none and not exactly one request is pending.
        """
        return self.mailbox(session_id).answer(request_id, allow=True)

    def deny(
        self, session_id: str, request_id: str | None = None, why: str = ""
    ) -> str:
        """Deny a tool call; as `approve`. `why` is the reason that Claude reads."""
        return self.mailbox(session_id).answer(request_id, allow=False, why=why)

    def end(self, session_id: str) -> str:
        """End an interactive session once its earlier messages are answered.

        Return the id of the message. Raises NotFound.
        """
        return self.mailbox(session_id).end()

    # -------------------------------------------------- removal

    async def remove(self, session_id: str, *, force: bool = False) -> None:
        """Remove a session: its files, workspace, transcript and record.

        The record is removed last, so that an interrupted removal can be repeated.

        Args:
            session_id: The session.
            force: Also remove work that is not pushed anywhere.

        Raises:
            NotFound: There is no such session.
            Conflict: It is running, or without `force`, its workspace has work that is not pushed anywhere.
        """
        paths = self.folders.of(session_id)
        session = await self._recorded(session_id)
        if session is None and not paths.exists:
            raise NotFound(
                f"there is no session {session_id}", hint="see `midwatch session list`"
            )
        if paths.running or (session is not None and self.alive(session)):
            raise Conflict(
                f"session {session_id} is running",
                hint=f"`midwatch session end {session_id}`, or stop its runner",
            )
        with paths.owned() if paths.exists else contextlib.nullcontext():
            work = "" if force else await self.unpushed_work(session_id)
            if work:
                raise Conflict(
                    f"session {session_id} has work that is not pushed: {work}",
                    hint=f"`midwatch session push {session_id}`, or remove it with --force",
                )
            await asyncio.to_thread(paths.remove)
        await self.transcripts.delete(_transcript_key(session_id))
        if session is not None:
            await self.store.remove(session_id)

    async def unpushed_work(self, session_id: str) -> str:
        """Return the work in a session's workspace on this machine that is not pushed anywhere; empty if none.

        What cannot be inspected counts as work. Nothing in the workspace runs. Raises NotFound for a bad id.
        """
        paths = self.folders.of(session_id)
        return await unpushed_work(
            paths.workspace, paths.state, self.workspace_options(session_id).git()
        )

    async def remove_mount_points(self, session_id: str) -> None:
        """Remove what a sandbox left in the workspace when its program was killed; nothing while a runner works.

        The program ends within a second of its runner. Raises NotFound for a bad id.
        """
        paths = self.folders.of(session_id)
        workspace = None if paths.running else load_record(paths.state)
        if workspace is not None:
            await asyncio.to_thread(remove_mount_points, workspace.paths)

    async def prune(
        self,
        keep_for: float | None,
        keep_bytes: float | None,
        *,
        dry_run: bool = False,
        force: bool = False,
        on_kept: Callable[[KeptSession], None] | None = None,
    ) -> Sequence[RemovedSession]:
        """Remove ended sessions of this machine, the oldest first. Return what was removed.

        Args:
            keep_for: Seconds. Sessions that ended earlier are removed; None is no limit.
            keep_bytes: Then the oldest are removed until the rest has at most this size; None is no limit.
            dry_run: Only return the sessions that would be removed.
            force: Also remove work that is not pushed anywhere. Without it, a session with such work is kept.
            on_kept: Called with each session that is kept for its work.
        """
        await self.close_crashed()
        ended = [
            one
            for one in reversed(await self.store.listed())
            if one.status.phase.terminal and not self.alive(one)
            if one.is_local(self.folders.of(one.id))
        ]
        sizes = {
            one.id: await asyncio.to_thread(self.folders.of(one.id).size)
            for one in ended
        }
        total, removed = sum(sizes.values()), []
        for session in ended:
            size = sizes[session.id]
            too_old = keep_for is not None and self._age(session) > keep_for
            if not too_old and (keep_bytes is None or total <= keep_bytes):
                continue
            work = "" if force else await self.unpushed_work(session.id)
            if work:
                if on_kept is not None:
                    on_kept(KeptSession(session.id, size, work))
                continue
            if not dry_run:
                try:
                    await self.remove(session.id, force=force)
                except (Conflict, NotFound):  # resumed or removed meanwhile
                    continue
            total -= size
            removed.append(RemovedSession(session.id, size))
        return removed

    async def _recorded(self, session_id: str) -> StoredSession | None:
        try:
            return await self.store.get(session_id)
        except NotFound:
            return None

    def _age(self, session: StoredSession) -> float:
        """Return the seconds since the session ended."""
        status = session.status
        since = status.ended_at or status.last_activity_at or session.created_at
        return max(self._clock.now() - since, timedelta()).total_seconds()

    # Last: in the class body, the name hides the type `list`.
    async def list(
        self,
        *,
        phases: Sequence[Phase] = (),
        ticket: int | None = None,
        limit: int | None = None,
        after: tuple[datetime, str] | None = None,
    ) -> Sequence[StoredSession]:
        """Return sessions, the newest first, after `close_crashed`.

        Args:
            phases: Only sessions in one of these phases; empty for all.
            ticket: Only sessions for this ticket.
            limit: At most this many.
            after: Only sessions behind the one that was created at this time and has this id.
        """
        await self.close_crashed()
        return await self.store.listed(
            phases=phases, ticket=ticket, limit=limit, after=after
        )


def _transcript_key(session_id: str) -> TranscriptKey:
    return TranscriptKey(project_key=PROJECT, session_id=conversation_id(session_id))


def _overrides(session: StoredSession) -> OptionOverrides:
    return OptionOverrides.from_json(session.options.get("choices"))


def _recorded_end(paths: SessionPaths, session: StoredSession) -> SessionStatus | None:
    """Return the final status in the session's folder if the store lacks it; else None."""
    status = FolderRecords(paths.folder.path).load_status()
    if status is None or not status.phase.terminal:
        return None
    known = session.status
    later = (status.run, status.last_seq) > (known.run, known.last_seq)
    return status if later else None


def _repositories_to_clone(
    session: StoredSession, paths: SessionPaths
) -> tuple[RepoSpec, ...]:
    """Return the repositories; if there is no workspace here, with the branches that were pushed."""
    repositories = recorded_repositories(session)
    if session.status.last_seq and not paths.state.exists():
        return _as_pushed(session, repositories)
    return repositories


def _as_pushed(
    session: StoredSession, repositories: tuple[RepoSpec, ...]
) -> tuple[RepoSpec, ...]:
    """Return the repositories, each starting from the branch that the session has pushed."""
    if len(session.repositories) != len(repositories):
        return repositories
    own = f"midwatch/{session.id}"
    return tuple(
        (
            replace(one, branch=one.push_branch or own, tag=None)
            if record.get("status") == "pushed"
            and (record.get("commits") or record.get("files"))  # of its HEAD
            else one
        )
        for one, record in zip(repositories, session.repositories, strict=True)
    )


def _prompt_to_continue(session: StoredSession, here: SessionStatus) -> str | None:
    """Return the prompt for a resume without a prompt; None if a turn that was cut off here continues.

    Raises Conflict if everything is answered.
    """
    from midwatch.session.runner import CONTINUE_PROMPT

    if here.unfinished:
        return None
    if session.status.unfinished:  # cut off elsewhere: only the transcript has it
        return CONTINUE_PROMPT
    if not session.status.prompts and session.prompt:
        return session.prompt
    raise Conflict(
        f"session {session.id} has answered everything",
        hint="add what to do next: --prompt TEXT",
    )


def _notice_of_move(session: StoredSession, paths: SessionPaths) -> str:
    was = f"session {session.id} was last on {session.host}"
    if paths.state.exists():
        return f"{was}: the workspace is as the session left it here"
    return f"{was}: changes that it did not push are not in this workspace"
