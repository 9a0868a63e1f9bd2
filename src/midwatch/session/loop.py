"""The loop of a running session: one turn after the other, and one place where everything arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

from midwatch.errors import MidwatchError
from midwatch.lifecycle import Clock, cancel
from midwatch.session.claude_code import Program
from midwatch.session.errors import SessionIdle, SessionTimedOut
from midwatch.session.events import (
    Command,
    Notice,
    PermissionAnswer,
    PermissionRequest,
    Phase,
    TurnResult,
    TurnStarted,
)
from midwatch.session.log import Journal, Waiting, prompt_uuid
from midwatch.session.mailbox import InboxConsumer, Mail
from midwatch.session.options import Limits
from midwatch.session.translate import (
    InterruptAsked,
    MailArrived,
    PermissionAsked,
    ProgramEnded,
    Said,
    Signal,
    StateChanged,
    StopAsked,
    TurnEnded,
    Verdict,
)

NUDGE_AFTER = 5.0
"""Seconds that the program gets to go on with a cut turn by itself, before it gets a prompt to."""
IDLE = "idle"
"""The reason of a session that was stopped because it got no message."""
_NUDGE = "Continue where you were interrupted."


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ends where nothing went wrong."""

    phase: Phase
    reason: str = ""


@dataclass(slots=True)
class _Turn:
    """The turn under way. `nudge_at` is set while a resumed turn gives no sign of life."""

    waiting: Waiting
    uuid: str
    nudge_at: float | None = None


@dataclass(slots=True)
class _Asked:
    asked: PermissionAsked
    until: float


@dataclass
class Loop:
    """The state between two signals. Times are of the clock's `monotonic`.

    `texts` has the caller's prompts as they were written: the outbox has them redacted.
    """

    session_id: str
    journal: Journal
    program: Program
    limits: Limits
    clock: Clock
    signals: asyncio.Queue[Signal]
    post: InboxConsumer | None
    resume_turn: bool
    texts: Mapping[str, str]
    began: float = field(init=False)
    _turn: _Turn | None = None
    _last_sign: float = 0.0
    _stopping: str = ""
    _grace_until: float = 0.0
    _last_outcome: str = ""
    _busy: bool = False
    _pending: dict[str, _Asked] = field(default_factory=dict)
    _aside: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.began = self._last_sign = self.clock.monotonic()

    @property
    def in_turn(self) -> bool:
        """Return whether the program works, for a prompt or in the background."""
        return self._turn is not None or self._busy

    async def converse(self) -> RunOutcome:
        """Run until there is nothing more to do. Raises what ends the session badly."""
        if self.post is not None:
            await self._read_mail()
        while (ending := await self._advance()) is None:
            signal = await self._next_signal()
            if signal is not None:
                await self._handle(signal)
            self._check_limits()
        return ending

    # -------------------------------------------------------------- turns

    async def _advance(self) -> RunOutcome | None:
        """Begin the next turn if none is under way. Return the outcome if there is no next turn."""
        if self._stopping and self._turn is None:
            return RunOutcome(Phase.STOPPED, self._stopping)
        if self._turn is not None:
            return None
        queue = self.journal.ledger.queue
        at_end = queue[0] is None if queue else self.post is None
        if (
            at_end and self._busy
        ):  # subagents in the background, and the turn for their answer
            return None
        if queue and queue[0] is None:
            return RunOutcome(Phase.COMPLETED, "end_session")
        if queue and queue[0] is not None:
            self._begin(queue[0])
        elif self.post is None:
            return self._one_shot_ending()
        return None

    def _one_shot_ending(self) -> RunOutcome:
        if self._last_outcome == "interrupted":
            return RunOutcome(Phase.STOPPED, "interrupted")
        return RunOutcome(Phase.COMPLETED)

    def _begin(self, waiting: Waiting) -> None:
        prompt = waiting.prompt
        uuid = prompt_uuid(self.session_id, prompt.id)
        self._turn = _Turn(waiting, uuid)
        self._sign_of_life()
        goes_on_by_itself, self.resume_turn = self.resume_turn, False
        self.journal.emit(TurnStarted(prompt_id=prompt.id))
        if goes_on_by_itself:
            self._turn.nudge_at = self._last_sign + NUDGE_AFTER
        else:
            self._run_aside(self._send(self._text_of(waiting), uuid))

    def _text_of(self, waiting: Waiting) -> str:
        prompt = waiting.prompt
        if prompt.id in self.texts or self.post is None:
            return self.texts.get(prompt.id, prompt.text)
        return self.post.text_of(prompt)

    async def _handle(self, signal: Signal) -> None:
        match signal:
            case Said():
                self._sign_of_life()
                self.journal.emit(signal.event)
            case TurnEnded():
                self._sign_of_life()
                self._ended(signal)
            case StateChanged():
                self._busy = signal.state != "idle"
            case PermissionAsked():
                self._asked(signal)
            case ProgramEnded():
                if not self._stopping:
                    raise signal.error
                self._abandon("the program ended")
            case InterruptAsked():
                self._interrupt()
            case StopAsked():
                self._stop(signal.reason)
            case MailArrived():
                await self._read_mail()

    def _ended(self, ended: TurnEnded) -> None:
        turn = self._turn
        ours = turn is not None and (not ended.uuids or turn.uuid in ended.uuids)
        prompt_id = turn.waiting.prompt.id if turn and ours else ""
        self.journal.emit(replace(ended.result, prompt_id=prompt_id))
        if ended.error is not None and not self._stopping:
            raise ended.error
        if ours:
            self._turn = None
            self._last_outcome = ended.result.outcome
            self._drop_questions()

    def _abandon(self, why: str) -> None:
        """Count the turn as interrupted: its result is no longer waited for."""
        if self._turn is not None:
            prompt_id = self._turn.waiting.prompt.id
            self.journal.emit(
                TurnResult(prompt_id=prompt_id, outcome="interrupted", reason=why)
            )
            self._turn = None
        self._drop_questions()

    # -------------------------------------------------------------- stopping

    def _interrupt(self) -> bool:
        """Interrupt the turn under way, if there is one; it ends with its result."""
        if self._turn is None:
            return False
        self._run_aside(self.program.interrupt())
        return True

    def _run_aside(self, work: Coroutine[None, None, None]) -> None:
        """Send to the program without waiting for it: limits and signals must go on."""
        task = asyncio.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    def _stop(self, reason: str) -> None:
        if not self._stopping:
            self._stopping = reason or "stopped"
            self._grace_until = self.clock.monotonic() + self.limits.grace
            self._drop_questions("the session ends")
            self._interrupt()

    async def settle(self) -> None:
        """End what still runs beside the loop."""
        self._drop_questions()
        await cancel(*self._aside)

    # -------------------------------------------------------------- permissions

    def _asked(self, asked: PermissionAsked) -> None:
        wait = self.limits.permission_wait if self.post is not None else 0.0
        until = self.clock.monotonic() + wait
        self.journal.emit(
            PermissionRequest(
                request_id=asked.request_id,
                tool=asked.tool,
                input=asked.input,
                expires_at=self.clock.now() + timedelta(seconds=wait),
            )
        )
        self._pending[asked.request_id] = _Asked(asked, until)
        if self.post is None:
            self._answer(asked.request_id, Verdict(False, "No one is there to ask."))
        elif self._stopping:
            self._answer(asked.request_id, Verdict(False, "The session ends."))

    def _answer(self, request_id: str, verdict: Verdict) -> bool:
        pending = self._pending.pop(request_id, None)
        if pending is None or pending.asked.answer.done():
            return False
        self.journal.emit(
            PermissionAnswer(
                request_id=request_id, allowed=verdict.allowed, why=verdict.message
            )
        )
        pending.asked.answer.set_result(verdict)
        self._sign_of_life()
        return True

    def _drop_questions(self, why: str = "the turn ended") -> None:
        for request_id in list(self._pending):
            self._answer(request_id, Verdict(False, why))

    # -------------------------------------------------------------- mail

    async def _read_mail(self) -> None:
        assert self.post is not None
        await self.post.read(self.journal, self._command)

    def _command(self, mail: Mail) -> None:
        """Log a command, then carry it out: a reader of the log counts it as done."""
        if self._turn is None:  # during a turn only the program gives signs of life
            self._sign_of_life()
        command = Command(id=mail.id, kind="interrupt")
        if mail.kind == "end_session":
            self.journal.emit(replace(command, kind=mail.kind, effect="in its turn"))
        elif mail.kind == "permission_response":
            known = mail.request_id in self._pending
            effect = f"answers {mail.request_id}" if known else "no such request waits"
            self.journal.emit(replace(command, kind=mail.kind, effect=effect))
            self._answer(mail.request_id, Verdict(mail.allow, mail.text))
        else:
            effect = "ends the turn" if self._turn else "no turn was under way"
            self.journal.emit(replace(command, effect=effect))
            self._interrupt()

    # -------------------------------------------------------------- limits

    def _sign_of_life(self) -> None:
        self._last_sign = self.clock.monotonic()
        if self._turn is not None:
            self._turn.nudge_at = None

    async def _next_signal(self) -> Signal | None:
        """Return the next signal; None when a limit may be reached."""
        now = self.clock.monotonic()
        due = min(self._deadlines(), default=None)
        try:
            async with asyncio.timeout(None if due is None else max(0.0, due - now)):
                return await self.signals.get()
        except TimeoutError:
            return None

    def _deadlines(self) -> Iterable[float]:
        if self._stopping:
            yield self._grace_until
        elif self.limits.wall is not None:
            yield self.began + self.limits.wall
        if self._idles and self.limits.idle is not None:
            yield self._last_sign + self.limits.idle
        if self._waits_for_mail and self.limits.mail_idle is not None:
            yield self._last_sign + self.limits.mail_idle
        if self._turn is not None and self._turn.nudge_at is not None:
            yield self._turn.nudge_at
        yield from (pending.until for pending in self._pending.values())

    @property
    def _idles(self) -> bool:
        """Return whether silence means that something hangs: not while a permission is asked for."""
        return self.in_turn and not self._pending and not self._stopping

    @property
    def _waits_for_mail(self) -> bool:
        """Return whether the session waits for a message."""
        return (
            self.post is not None
            and not self.in_turn
            and not self.journal.ledger.queue
            and not self._pending
            and not self._stopping
        )

    def _check_limits(self) -> None:
        now, limits = self.clock.monotonic(), self.limits
        for request_id, pending in list(self._pending.items()):
            if now >= pending.until:
                self._answer(request_id, Verdict(False, "No one answered in time."))
        if self._stopping:
            if now >= self._grace_until:
                self._abandon("it did not end within its grace")
            return
        if limits.wall is not None and now >= self.began + limits.wall:
            raise SessionTimedOut(
                f"the session ran for its limit of {round(limits.wall, 1):g} s"
            )
        silent = now - self._last_sign
        if self._idles and limits.idle is not None and silent >= limits.idle:
            raise SessionIdle(f"nothing happened for {limits.idle:g} s")
        if (
            self._waits_for_mail
            and limits.mail_idle is not None
            and silent >= limits.mail_idle
        ):
            self._stop(IDLE)
        if self._turn and self._turn.nudge_at and now >= self._turn.nudge_at:
            self._nudge(self._turn)

    def _nudge(self, turn: _Turn) -> None:
        turn.nudge_at = None
        self.journal.emit(Notice(text="the cut turn did not go on by itself"))
        turn.uuid = prompt_uuid(self.session_id, f"{turn.waiting.prompt.id}/go-on")
        self._run_aside(self._send(_NUDGE, turn.uuid))

    async def _send(self, text: str, uuid: str) -> None:
        """Send a text to the program; a failure reaches the loop as a signal."""
        try:
            await self.program.send(text, uuid)
        except MidwatchError as error:
            self.signals.put_nowait(ProgramEnded(error))
