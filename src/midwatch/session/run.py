"""One run of a session: from its folder to a terminal phase, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from midwatch.errors import MidwatchError, NotFound, TemporaryError
from midwatch.lifecycle import Clock
from midwatch.redaction import Redactor
from midwatch.session.claude_code import Conversation, Place, Program, transcript_file
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
from midwatch.session.process import sandbox_wanted
from midwatch.session.records import HEARTBEAT, SessionRecords, SessionSpec, Transcripts
from midwatch.session.signals import MailArrived, Signal, StopAsked
from midwatch.session.transcripts import (
    Mirror,
    TurnOutcome,
    lesser,
    read_entries,
    restore,
    spent_before,
    turn_outcome,
)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """All that the runs of a session have in common."""

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
    """`open`, `start`, `finish`; after `open` has succeeded, `finish` must be called."""

    def __init__(self, setting: RunConfig) -> None:
        self._setting = setting
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
        """Take the folder and close what an earlier run left open. Raises SessionBusy."""
        setting = self._setting
        setting.folder.make()
        self._stack.enter_context(setting.folder.locked())
        try:
            self.journal = Journal(setting.folder, setting.redactor, setting.clock.now)
        except BaseException:
            self._stack.close()
            raise
        try:
            left = await asyncio.to_thread(setting.place.launcher.reap)
            self._close_crashed_run(left)
            run = self.journal.ledger.run + 1
            self.journal.emit(PhaseChanged(phase=Phase.CREATING, run=run))
            await setting.records.save_spec(setting.spec)
            await self._save_status()
        except BaseException as raised:
            error = raised if isinstance(raised, MidwatchError) else None
            await self._close(RunOutcome(Phase.FAILED, type(raised).__name__), error)
            raise

    def accept(self, text: str) -> None:
        """Accept a prompt of the caller; it is answered once the loop runs."""
        # Never the same twice, also where the conversation goes on with another outbox.
        id = f"call/{uuid.uuid4().hex[:12]}"
        self._texts[id] = text
        self.journal.emit(
            Prompt(id=id, uuid=prompt_uuid(self._setting.spec.id, id), text=text)
        )

    def stop(self, reason: str) -> None:
        """End it soon; from any point on."""
        self._stop_reason = self._stop_reason or reason
        self._stop_asked.set()
        self.signals.put_nowait(StopAsked(reason))

    async def start(self) -> None:
        """Start the program; again is nothing. Raises the errors of a session."""
        if self._program is not None:
            return
        setting = self._setting
        sandbox = sandbox_wanted(setting.options)
        folders = (setting.place.cwd, *setting.place.directories)
        await asyncio.to_thread(check_folders, folders)
        self._conversation = await self._prepare_conversation()
        self._program = Program(
            setting.options,
            setting.place,
            self._conversation,
            self.signals.put_nowait,
            sandbox=sandbox,
            max_usd=self._dollars_left(self._conversation),
            store=(
                Mirror(setting.transcripts, setting.redactor)
                if setting.transcripts
                else None
            ),
        )
        starting = asyncio.create_task(
            self._program.start(setting.access.api_key, setting.access.base_url)
        )
        await self._unless_stopped(starting)
        self.journal.emit(
            PhaseChanged(phase=Phase.RUNNING, run=self.journal.ledger.run)
        )
        await self._save_status()

    async def finish(self, error: MidwatchError | None = None) -> None:
        """Converse to the end and close everything; `error` is what went wrong already.

        Raises what ended the session badly, after the terminal phase is written.
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
        crash = RunnerCrashed(f"run {ledger.run} ended without a word")
        self.journal.emit(failure(crash))
        self._crashed = True
        if left:
            self.journal.emit(Notice(text="what it had left running was ended"))
        reason = type(crash).__name__
        self.journal.emit(
            PhaseChanged(phase=Phase.FAILED, run=ledger.run, reason=reason)
        )

    async def _prepare_conversation(self) -> Conversation:
        """Put the transcript in place, and find out what became of the turn that was under way."""
        setting, id = self._setting, self._setting.conversation
        config, cwd = setting.place.config, setting.place.cwd
        path = transcript_file(config, cwd, id)
        if await restore(setting.transcripts, id, path):
            entries = list(read_entries(path))
            cut = self._settle_unfinished(entries)
            return Conversation(id, True, self._counted(entries), resume_turn=cut)
        origin = setting.spec.forked_from
        if origin is not None:
            origin_id = conversation_id(origin)
            found = transcript_file(config, cwd, origin_id)
            if not await restore(setting.transcripts, origin_id, found):
                raise NotFound(
                    f"session {origin} has no transcript to fork from",
                    hint="check its id, and that both sessions use the same `transcripts`",
                )
            spent = spent_before(read_entries(found))
            return Conversation(id, spent=spent, fork_of=origin_id)
        return Conversation(id)

    def _counted(self, entries: list[dict[str, Any]]) -> dict[str, ModelUsage]:
        """What of the program's sums is in our log: after a crash not what its last turn cost."""
        spent = spent_before(entries)
        return lesser(spent, self.journal.status.spend) if self._crashed else spent

    def _settle_unfinished(self, entries: list[dict[str, Any]]) -> bool:
        """Write the results that a crash kept from us; true if the program goes on with a turn."""
        queue = self.journal.ledger.queue
        if not queue or queue[0] is None or not queue[0].sent:
            return False
        waiting = queue[0]
        told = turn_outcome(
            entries, prompt_uuid(self._setting.spec.id, waiting.prompt.id)
        )
        if waiting.interrupted:
            told = TurnOutcome("ended", told.text)
        if told.state == "ended":
            self.journal.emit(
                TurnResult(
                    prompt_id=waiting.prompt.id,
                    outcome="interrupted" if waiting.interrupted else "completed",
                    text=told.text,
                    reason="told by the transcript",
                )
            )
        return told.state == "cut"

    def _dollars_left(self, conversation: Conversation) -> float | None:
        limit = self._setting.options.limits.max_usd
        if limit is None:
            return None
        spent = self.journal.status.cost_usd
        if spent >= limit:
            raise BudgetSpent(f"{spent:.2f} of {limit:.2f} dollars are spent")
        # The program counts on from what its transcript says.
        before = sum(cost.cost_usd for cost in conversation.spent.values())
        return limit - spent + before

    async def _started(self) -> bool:
        """Start the program, unless a stop comes first."""
        try:
            if self._program is None and self._stop_asked.is_set():
                return False
            await self.start()
        except MidwatchError:
            if not self._stop_asked.is_set():
                raise
            return False
        return True

    async def _unless_stopped(self, starting: asyncio.Task[None]) -> None:
        stopped = asyncio.create_task(self._stop_asked.wait())
        try:
            await asyncio.wait({starting, stopped}, return_when="FIRST_COMPLETED")
            if not starting.done():
                self._setting.place.launcher.terminate()
            await starting
        finally:
            for task in (starting, stopped):
                task.cancel()
            await asyncio.gather(starting, stopped, return_exceptions=True)

    # -------------------------------------------------------------- the loop and its end

    async def _converse(self) -> RunOutcome:
        assert self._program is not None and self._conversation is not None
        self._loop = Loop(
            self._setting.spec.id,
            self.journal,
            self._program,
            self._setting.options.limits,
            self._setting.clock,
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
        """What runs beside the loop: the heartbeat and, in interactive mode, the watch on the inbox."""
        spec, folder = self._setting.spec, self._setting.folder
        tasks = [asyncio.create_task(self._heartbeat(), name="heartbeat")]
        if spec.interactive:
            self._post = InboxConsumer(spec.id, folder)
            waiting = {w.prompt.id for w in self.journal.ledger.queue if w is not None}
            self._post.remember(waiting)
            watch = self._post.watch(lambda: self.signals.put_nowait(MailArrived()))
            tasks.append(asyncio.create_task(watch, name="inbox"))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _heartbeat(self) -> None:
        runner = f"{platform.node()}:{os.getpid()}"
        id, seen = self._setting.spec.id, -1
        while True:
            with contextlib.suppress(TemporaryError):
                await self._setting.records.heartbeat(
                    id, runner, self._setting.clock.now()
                )
                if seen != self.journal.status.last_seq:
                    seen = self.journal.status.last_seq
                    await self._setting.records.save_status(id, self.journal.status)
            await self._setting.clock.sleep(HEARTBEAT)

    async def _close(self, ending: RunOutcome, error: MidwatchError | None) -> None:
        """Shielded: a run that is cancelled must not leave a program or an open phase behind."""
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
        await self._setting.records.save_status(
            self._setting.spec.id, self.journal.status
        )
