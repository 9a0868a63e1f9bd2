"""One run of a session: it always ends in a terminal phase."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

from midwatch.errors import MidwatchError, NotFound, TemporaryError
from midwatch.lifecycle import Clock, background
from midwatch.redaction import Redactor
from midwatch.session.claude_code import (
    Conversation,
    Program,
    ProgramPaths,
    sandbox_enabled,
    transcript_file,
)
from midwatch.session.errors import BudgetSpent
from midwatch.session.events import (
    ModelUsage,
    Notice,
    Phase,
    PhaseChanged,
    Prompt,
    TurnResult,
)
from midwatch.session.log import Journal, SessionFolder, conversation_id, prompt_uuid
from midwatch.session.loop import Loop, RunOutcome
from midwatch.session.mailbox import InboxConsumer
from midwatch.session.options import ApiAccess, SessionOptions, check_folders
from midwatch.session.records import (
    HEARTBEAT,
    SessionRecords,
    SessionSpec,
    Transcripts,
    this_runner,
)
from midwatch.session.transcripts import (
    Mirror,
    TurnOutcome,
    cheaper_usage,
    read_entries,
    restore,
    spent_before,
    turn_outcome,
)
from midwatch.session.translate import (
    MailArrived,
    ProgramEvent,
    Signal,
    StopRequested,
)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What all runs of a session share."""

    spec: SessionSpec
    folder: SessionFolder
    paths: ProgramPaths
    access: ApiAccess
    options: SessionOptions
    records: SessionRecords
    transcripts: Transcripts | None
    redactor: Redactor
    clock: Clock

    @property
    def conversation(self) -> str:
        return conversation_id(self.spec.id)


class Run:
    """One run: `open`, `start`, `finish`. After `open` has succeeded, `finish` or `discard` must be called."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self.signals: asyncio.Queue[Signal] = asyncio.Queue()
        self._stack = contextlib.ExitStack()
        self._program: Program | None = None
        self._loop: Loop | None = None
        self._inbox: InboxConsumer | None = None
        self._conversation: Conversation | None = None
        self._stop_requested = asyncio.Event()
        self._stop_reason = ""
        self._crashed = False
        self._texts: dict[str, str] = {}
        self.journal: Journal
        self.opened = False

    async def open(self) -> None:
        """Lock the folder and close a run that crashed. Raises SessionBusy."""
        config = self._config
        config.folder.make()
        self._stack.enter_context(config.folder.locked())
        try:
            self.journal = Journal(config.folder, config.redactor, config.clock.now)
        except BaseException:
            self._stack.close()
            raise
        self.opened = True
        try:
            left = await asyncio.to_thread(config.paths.launcher.reap)
            self._crashed = self.journal.close_crashed_run()
            if self._crashed and left:
                self.journal.emit(Notice(text="its remaining processes were ended"))
            self.journal.begin_run()
            await config.records.save_spec(config.spec)
            await self._save_status()
        except BaseException as raised:
            error = raised if isinstance(raised, MidwatchError) else None
            await self._close(RunOutcome(Phase.FAILED, type(raised).__name__), error)
            raise

    def accept(self, text: str) -> None:
        """Accept a prompt of the caller; it is answered once the loop runs."""
        # Unique, also if the conversation continues with another outbox.
        id = f"call/{uuid.uuid4().hex[:12]}"
        self._texts[id] = text
        self.journal.emit(
            Prompt(id=id, uuid=prompt_uuid(self._config.spec.id, id), text=text)
        )

    def stop(self, reason: str) -> None:
        """Ask for the end of the run; may be called at any time."""
        self._stop_reason = self._stop_reason or reason
        self._stop_requested.set()
        self.signals.put_nowait(StopRequested(reason))

    async def start(self) -> None:
        """Start the program if it does not run yet. Raises the errors of a session."""
        if self._program is not None:
            return
        config = self._config
        sandbox = sandbox_enabled(config.options)
        folders = (config.paths.cwd, *config.paths.directories)
        await asyncio.to_thread(check_folders, folders)
        self._conversation = await self._prepare_conversation()
        self._program = Program(
            config.options,
            config.paths,
            self._conversation,
            self.signals.put_nowait,
            sandbox=sandbox,
            max_usd=self._dollars_left(self._conversation),
            store=(
                Mirror(config.transcripts, config.redactor)
                if config.transcripts
                else None
            ),
        )
        async with background(self._terminate_on_stop()):
            await self._program.start(config.access.api_key, config.access.base_url)
        self.journal.emit(
            PhaseChanged(phase=Phase.RUNNING, run=self.journal.ledger.run)
        )
        await self._save_status()

    async def finish(self, error: MidwatchError | None = None) -> None:
        """Run the loop to its end and close everything.

        Args:
            error: An earlier error; it ends the run at once.

        Raises:
            MidwatchError: What ended the session badly, after the terminal phase is written.
        """
        outcome = RunOutcome(Phase.FAILED, "the runner failed")
        try:
            if error is not None:
                raise error
            async with self._background_tasks():
                if await self._start_unless_stopped():
                    outcome = await self._converse()
                else:
                    outcome = RunOutcome(Phase.STOPPED, self._stop_reason)
        except MidwatchError as raised:
            error, outcome = raised, RunOutcome(Phase.FAILED, type(raised).__name__)
            raise
        except asyncio.CancelledError:
            outcome = RunOutcome(Phase.STOPPED, "cancelled")
            raise
        finally:
            await self._close(outcome, error)

    async def discard(self) -> None:
        """Close a run that was prepared and is not used."""
        await self._close(RunOutcome(Phase.STOPPED, "not used"), None)

    # -------------------------------------------------------------- before the loop

    async def _prepare_conversation(self) -> Conversation:
        """Write the transcript into the program's folder, and find how the unfinished turn ended."""
        config, id = self._config, self._config.conversation
        claude, cwd = config.paths.config, config.paths.cwd
        path = transcript_file(claude, cwd, id)
        if await restore(config.transcripts, id, path):
            entries = list(read_entries(path))
            cut = self._close_unfinished_turn(entries)
            return Conversation(id, True, self._usage_in_log(entries), resume_turn=cut)
        origin = config.spec.forked_from
        if origin is not None:
            origin_id = conversation_id(origin)
            found = transcript_file(claude, cwd, origin_id)
            if not await restore(config.transcripts, origin_id, found):
                raise NotFound(
                    f"session {origin} has no transcript to fork from",
                    hint="check its id, and that both sessions use the same `transcripts`",
                )
            spent = spent_before(read_entries(found))
            return Conversation(id, spent=spent, fork_of=origin_id)
        return Conversation(id)

    def _usage_in_log(self, entries: list[dict[str, Any]]) -> dict[str, ModelUsage]:
        """Return the usage of the transcript that is also in the log: after a crash, not that of the last turn."""
        spent = spent_before(entries)
        return (
            cheaper_usage(spent, self.journal.status.spend) if self._crashed else spent
        )

    def _close_unfinished_turn(self, entries: list[dict[str, Any]]) -> bool:
        """Log the result of a turn that ended before a crash. Return whether the program must continue the turn."""
        queue = self.journal.ledger.queue
        if not queue or queue[0] is None or not queue[0].sent:
            return False
        waiting = queue[0]
        outcome = turn_outcome(
            entries, prompt_uuid(self._config.spec.id, waiting.prompt.id)
        )
        if waiting.interrupted:
            outcome = TurnOutcome("ended", outcome.text)
        if outcome.state == "ended":
            self.journal.emit(
                TurnResult(
                    prompt_id=waiting.prompt.id,
                    outcome="interrupted" if waiting.interrupted else "completed",
                    text=outcome.text,
                    reason="read from the transcript",
                )
            )
        return outcome.state == "cut"

    def _dollars_left(self, conversation: Conversation) -> float | None:
        limit = self._config.options.limits.max_usd
        if limit is None:
            return None
        spent = self.journal.status.cost_usd
        if spent >= limit:
            raise BudgetSpent(f"{spent:.2f} of {limit:.2f} dollars are spent")
        # The program's count begins with what its transcript contains.
        before = sum(cost.cost_usd for cost in conversation.spent.values())
        return limit - spent + before

    async def _start_unless_stopped(self) -> bool:
        """Start the program. Return false if a stop came first."""
        try:
            if self._program is None and self._stop_requested.is_set():
                return False
            await self.start()
        except MidwatchError:
            if not self._stop_requested.is_set():
                raise
            return False
        return True

    async def _terminate_on_stop(self) -> None:
        """Terminate a program that is still starting; `Program.start` then raises."""
        await self._stop_requested.wait()
        self._config.paths.launcher.terminate()

    # -------------------------------------------------------------- the loop and its end

    async def _converse(self) -> RunOutcome:
        assert self._program is not None and self._conversation is not None
        self._loop = Loop(
            self._config.spec.id,
            self.journal,
            self._program,
            self._config.options.limits,
            self._config.clock,
            self.signals,
            self._inbox,
            self._conversation.resume_turn,
            self._texts,
        )
        try:
            return await self._loop.run()
        finally:
            await self._loop.close()

    @contextlib.asynccontextmanager
    async def _background_tasks(self) -> AsyncIterator[None]:
        """Run the heartbeat and, in interactive mode, watch the inbox, while the block runs."""
        spec, folder = self._config.spec, self._config.folder
        work: list[Coroutine[Any, Any, None]] = [self._heartbeat()]
        if spec.interactive:
            redactor = self._config.redactor
            self._inbox = InboxConsumer(spec.id, folder, redactor)
            waiting = {w.prompt.id for w in self.journal.ledger.queue if w is not None}
            await self._inbox.load_texts(waiting)
            watch = self._inbox.watch(lambda: self.signals.put_nowait(MailArrived()))
            work.append(watch)
        async with background(*work):
            yield

    async def _heartbeat(self) -> None:
        runner, id, saved_seq = this_runner(), self._config.spec.id, -1
        while True:
            if (lost := self.journal.lost()) is not None:
                # The loop ends when it logs this.
                self.signals.put_nowait(ProgramEvent(Notice(text=lost.message)))
            with contextlib.suppress(MidwatchError):
                await self._config.records.heartbeat(
                    id, runner, self._config.clock.now()
                )
                if saved_seq != self.journal.status.last_seq:
                    saved_seq = self.journal.status.last_seq
                    await self._config.records.save_status(id, self.journal.status)
            await self._config.clock.sleep(HEARTBEAT)

    async def _close(self, outcome: RunOutcome, error: MidwatchError | None) -> None:
        """Close everything, also if cancelled: no program keeps running and the phase is terminal."""
        closing = asyncio.ensure_future(self._close_all(outcome, error))
        while not closing.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(closing)
        closing.result()

    async def _close_all(
        self, outcome: RunOutcome, error: MidwatchError | None
    ) -> None:
        try:
            in_turn = self._loop is not None and self._loop.in_turn
            if self._program is not None:
                await self._program.close(now=error is not None or in_turn)
        finally:
            try:
                await self._write_end(outcome, error)
            finally:
                self.journal.close()
                self._stack.close()

    async def _write_end(
        self, outcome: RunOutcome, error: MidwatchError | None
    ) -> None:
        ended = self.journal.end_run(outcome.phase, outcome.reason, error)
        try:
            await self._save_status()
        except TemporaryError:
            pass
        except MidwatchError:
            if ended is None:
                raise
        if ended is not None and ended is not error:
            raise ended

    async def _save_status(self) -> None:
        await self._config.records.save_status(
            self._config.spec.id, self.journal.status
        )
