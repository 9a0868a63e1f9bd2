"""One run of a session: from its folder to a terminal phase, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import uuid
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

from midwatch.errors import MidwatchError, NotFound, TemporaryError
from midwatch.lifecycle import Clock, background
from midwatch.redaction import Redactor
from midwatch.session.claude_code import (
    Conversation,
    Place,
    Program,
    sandbox_wanted,
    transcript_file,
)
from midwatch.session.errors import BudgetSpent, RunnerCrashed
from midwatch.session.events import (
    ModelUsage,
    Notice,
    Phase,
    PhaseChanged,
    Prompt,
    TurnResult,
    failure,
)
from midwatch.session.log import Journal, SessionFolder, conversation_id, prompt_uuid
from midwatch.session.loop import Loop, RunOutcome
from midwatch.session.mailbox import InboxConsumer
from midwatch.session.options import ApiAccess, SessionOptions, check_folders
from midwatch.session.records import HEARTBEAT, SessionRecords, SessionSpec, Transcripts
from midwatch.session.transcripts import (
    Mirror,
    TurnOutcome,
    lesser,
    read_entries,
    restore,
    spent_before,
    turn_outcome,
)
from midwatch.session.translate import MailArrived, Signal, StopAsked


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What all runs of a session have in common."""

    spec: SessionSpec
    folder: SessionFolder
    place: Place
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
    """One run: `open`, `start`, `finish`. After `open` has succeeded, `finish` or `abandon` must be called."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self.signals: asyncio.Queue[Signal] = asyncio.Queue()
        self._stack = contextlib.ExitStack()
        self._program: Program | None = None
        self._loop: Loop | None = None
        self._post: InboxConsumer | None = None
        self._conversation: Conversation | None = None
        self._stop_asked = asyncio.Event()
        self._stop_reason = ""
        self._crashed = False
        self._texts: dict[str, str] = {}
        self.journal: Journal

    async def open(self) -> None:
        """Lock the folder and close what an earlier run left open. Raises SessionBusy."""
        config = self._config
        config.folder.make()
        self._stack.enter_context(config.folder.locked())
        try:
            self.journal = Journal(config.folder, config.redactor, config.clock.now)
        except BaseException:
            self._stack.close()
            raise
        try:
            left = await asyncio.to_thread(config.place.launcher.reap)
            self._close_crashed_run(left)
            run = self.journal.ledger.run + 1
            self.journal.emit(PhaseChanged(phase=Phase.CREATING, run=run))
            await config.records.save_spec(config.spec)
            await self._save_status()
        except BaseException as raised:
            error = raised if isinstance(raised, MidwatchError) else None
            await self._close(RunOutcome(Phase.FAILED, type(raised).__name__), error)
            raise

    def accept(self, text: str) -> None:
        """Accept a prompt of the caller; it is answered once the loop runs."""
        # Unique, also if the conversation goes on with another outbox.
        id = f"call/{uuid.uuid4().hex[:12]}"
        self._texts[id] = text
        self.journal.emit(
            Prompt(id=id, uuid=prompt_uuid(self._config.spec.id, id), text=text)
        )

    def stop(self, reason: str) -> None:
        """End the run soon; callable at any point."""
        self._stop_reason = self._stop_reason or reason
        self._stop_asked.set()
        self.signals.put_nowait(StopAsked(reason))

    async def start(self) -> None:
        """Start the program, unless it runs already. Raises the errors of a session."""
        if self._program is not None:
            return
        config = self._config
        sandbox = sandbox_wanted(config.options)
        folders = (config.place.cwd, *config.place.directories)
        await asyncio.to_thread(check_folders, folders)
        self._conversation = await self._prepare_conversation()
        self._program = Program(
            config.options,
            config.place,
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
        """Converse to the end and close everything.

        Args:
            error: What went wrong already; it ends the run at once.

        Raises:
            MidwatchError: What ended the session badly, after the terminal phase is written.
        """
        ending = RunOutcome(Phase.FAILED, "the runner failed")
        try:
            if error is not None:
                raise error
            async with self._beside():
                if await self._started():
                    ending = await self._converse()
                else:
                    ending = RunOutcome(Phase.STOPPED, self._stop_reason)
        except MidwatchError as raised:
            error, ending = raised, RunOutcome(Phase.FAILED, type(raised).__name__)
            raise
        except asyncio.CancelledError:
            ending = RunOutcome(Phase.STOPPED, "cancelled")
            raise
        finally:
            await self._close(ending, error)

    async def abandon(self) -> None:
        """Close a run that was prepared and never used."""
        await self._close(RunOutcome(Phase.STOPPED, "not used"), None)

    # -------------------------------------------------------------- before the loop

    def _close_crashed_run(self, left: int) -> None:
        ledger = self.journal.ledger
        if ledger.run == 0 or ledger.phase.terminal:
            return
        crash = RunnerCrashed(f"run {ledger.run} ended without a final status")
        self.journal.emit(failure(crash))
        self._crashed = True
        if left:
            self.journal.emit(
                Notice(text="the processes that it had left running were ended")
            )
        reason = type(crash).__name__
        self.journal.emit(
            PhaseChanged(phase=Phase.FAILED, run=ledger.run, reason=reason)
        )

    async def _prepare_conversation(self) -> Conversation:
        """Put the transcript in place, and find out how the turn ended that was under way."""
        config, id = self._config, self._config.conversation
        claude, cwd = config.place.config, config.place.cwd
        path = transcript_file(claude, cwd, id)
        if await restore(config.transcripts, id, path):
            entries = list(read_entries(path))
            cut = self._settle_unfinished(entries)
            return Conversation(id, True, self._counted(entries), resume_turn=cut)
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

    def _counted(self, entries: list[dict[str, Any]]) -> dict[str, ModelUsage]:
        """Return the part of the program's sums that is in the log: after a crash without the cost of its last turn."""
        spent = spent_before(entries)
        return lesser(spent, self.journal.status.spend) if self._crashed else spent

    def _settle_unfinished(self, entries: list[dict[str, Any]]) -> bool:
        """Write the result that a crash kept from the log. Return whether the program goes on with the turn."""
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

    async def _started(self) -> bool:
        """Start the program. Return false if a stop came first."""
        try:
            if self._program is None and self._stop_asked.is_set():
                return False
            await self.start()
        except MidwatchError:
            if not self._stop_asked.is_set():
                raise
            return False
        return True

    async def _terminate_on_stop(self) -> None:
        """End a program that is still starting: its start then raises."""
        await self._stop_asked.wait()
        self._config.place.launcher.terminate()

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
            self._post,
            self._conversation.resume_turn,
            self._texts,
        )
        try:
            return await self._loop.converse()
        finally:
            await self._loop.settle()

    @contextlib.asynccontextmanager
    async def _beside(self) -> AsyncIterator[None]:
        """Run the heartbeat and, in interactive mode, watch the inbox, while the block runs."""
        spec, folder = self._config.spec, self._config.folder
        work: list[Coroutine[Any, Any, None]] = [self._heartbeat()]
        if spec.interactive:
            self._post = InboxConsumer(spec.id, folder)
            waiting = {w.prompt.id for w in self.journal.ledger.queue if w is not None}
            self._post.remember(waiting)
            watch = self._post.watch(lambda: self.signals.put_nowait(MailArrived()))
            work.append(watch)
        async with background(*work):
            yield

    async def _heartbeat(self) -> None:
        runner = f"{platform.node()}:{os.getpid()}"
        id, seen = self._config.spec.id, -1
        while True:
            with contextlib.suppress(TemporaryError):
                await self._config.records.heartbeat(
                    id, runner, self._config.clock.now()
                )
                if seen != self.journal.status.last_seq:
                    seen = self.journal.status.last_seq
                    await self._config.records.save_status(id, self.journal.status)
            await self._config.clock.sleep(HEARTBEAT)

    async def _close(self, ending: RunOutcome, error: MidwatchError | None) -> None:
        """Close everything, shielded: a cancelled run must not leave a program or an open phase behind."""
        closing = asyncio.ensure_future(self._close_all(ending, error))
        while not closing.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(closing)
        closing.result()

    async def _close_all(self, ending: RunOutcome, error: MidwatchError | None) -> None:
        try:
            in_turn = self._loop is not None and self._loop.in_turn
            if self._program is not None:
                await self._program.close(now=error is not None or in_turn)
        finally:
            try:
                await self._write_end(ending, error)
            finally:
                self.journal.close()
                self._stack.close()

    async def _write_end(self, ending: RunOutcome, error: MidwatchError | None) -> None:
        if error is not None:
            self.journal.emit_last(failure(error))
        run, reason = self.journal.ledger.run, ending.reason
        self.journal.emit_last(PhaseChanged(phase=ending.phase, run=run, reason=reason))
        with contextlib.suppress(TemporaryError):
            await self._save_status()

    async def _save_status(self) -> None:
        await self._config.records.save_status(
            self._config.spec.id, self.journal.status
        )
