"""The loop of a running session: it runs one turn after the other and handles every signal."""

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
from midwatch.session.log import Journal, PendingPrompt, prompt_uuid
from midwatch.session.mailbox import InboxConsumer, Mail
from midwatch.session.options import Limits
from midwatch.session.translate import (
    InterruptRequested,
    MailArrived,
    PermissionDecision,
    PermissionRequested,
    ProgramEnded,
    ProgramEvent,
    Signal,
    StateChanged,
    StopRequested,
    TurnEnded,
)

NUDGE_AFTER = 5.0
"""Seconds until a turn that was cut off must continue by itself; then a prompt asks for it."""
IDLE = "idle"
"""The reason of a session that was stopped because no message arrived."""
_CONTINUE = "Continue where you were interrupted."


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run without an error ends."""

    phase: Phase
    reason: str = ""


@dataclass(slots=True)
class _Turn:
    """The current turn. `nudge_at` is set until a resumed turn shows activity."""

    waiting: PendingPrompt
    uuid: str
    nudge_at: float | None = None


@dataclass(slots=True)
class _PendingPermission:
    request: PermissionRequested
    until: float


@dataclass
class Loop:
    """The state between two signals. Times are of the clock's `monotonic`.

    `texts` holds the caller's prompts as written; the outbox has them redacted.
    """

    session_id: str
    journal: Journal
    program: Program
    limits: Limits
    clock: Clock
    signals: asyncio.Queue[Signal]
    inbox: InboxConsumer | None
    resume_turn: bool
    texts: Mapping[str, str]
    began_at: float = field(init=False)
    _turn: _Turn | None = None
    _last_activity: float = 0.0
    _stopping: str = ""
    _grace_until: float = 0.0
    _last_outcome: str = ""
    _busy: bool = False
    _pending: dict[str, _PendingPermission] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.began_at = self._last_activity = self.clock.monotonic()

    @property
    def in_turn(self) -> bool:
        """Whether the program works, for a prompt or in the background."""
        return self._turn is not None or self._busy

    async def run(self) -> RunOutcome:
        """Run until the session ends. Raises the MidwatchError that ends it."""
        if self.inbox is not None:
            await self._read_mail()
        while (outcome := await self._advance()) is None:
            signal = await self._next_signal()
            if signal is not None:
                await self._handle(signal)
            self._check_limits()
        return outcome

    # -------------------------------------------------------------- turns

    async def _advance(self) -> RunOutcome | None:
        """Start the next turn if none is running. Return the outcome if the session is over."""
        if self._stopping and self._turn is None:
            return RunOutcome(Phase.STOPPED, self._stopping)
        if self._turn is not None:
            return None
        queue = self.journal.ledger.queue
        at_end = queue[0] is None if queue else self.inbox is None
        if at_end and self._busy:  # by subagents, or the turn for their answer
            return None
        if queue and queue[0] is None:
            return RunOutcome(Phase.COMPLETED, "end_session")
        if queue and queue[0] is not None:
            self._begin_turn(queue[0])
        elif self.inbox is None:
            return self._one_shot_outcome()
        return None

    def _one_shot_outcome(self) -> RunOutcome:
        if self._last_outcome == "interrupted":
            return RunOutcome(Phase.STOPPED, "interrupted")
        return RunOutcome(Phase.COMPLETED)

    def _begin_turn(self, waiting: PendingPrompt) -> None:
        prompt = waiting.prompt
        uuid = prompt_uuid(self.session_id, prompt.id)
        self._turn = _Turn(waiting, uuid)
        self._record_activity()
        continues_by_itself, self.resume_turn = self.resume_turn, False
        self.journal.emit(TurnStarted(prompt_id=prompt.id))
        if continues_by_itself:
            self._turn.nudge_at = self._last_activity + NUDGE_AFTER
        else:
            self._run_in_background(self._send(self._text_of(waiting), uuid))

    def _text_of(self, waiting: PendingPrompt) -> str:
        prompt = waiting.prompt
        if prompt.id in self.texts or self.inbox is None:
            return self.texts.get(prompt.id, prompt.text)
        return self.inbox.text_of(prompt)

    async def _handle(self, signal: Signal) -> None:
        match signal:
            case ProgramEvent():
                self._record_activity()
                self.journal.emit(signal.event)
            case TurnEnded():
                self._record_activity()
                self._end_turn(signal)
            case StateChanged():
                self._busy = signal.state != "idle"
            case PermissionRequested():
                self._request_permission(signal)
            case ProgramEnded():
                if not self._stopping:
                    raise signal.error
                self._abandon_turn("the program ended")
            case InterruptRequested():
                self._interrupt()
            case StopRequested():
                self._stop(signal.reason)
            case MailArrived():
                await self._read_mail()

    def _end_turn(self, ended: TurnEnded) -> None:
        turn = self._turn
        matches = turn is not None and (not ended.uuids or turn.uuid in ended.uuids)
        prompt_id = turn.waiting.prompt.id if turn and matches else ""
        self.journal.emit(replace(ended.result, prompt_id=prompt_id))
        if ended.error is not None and not self._stopping:
            raise ended.error
        if matches:
            self._turn = None
            self._last_outcome = ended.result.outcome
            self._deny_pending()

    def _abandon_turn(self, why: str) -> None:
        """Record the turn as interrupted without waiting for its result."""
        if self._turn is not None:
            prompt_id = self._turn.waiting.prompt.id
            self.journal.emit(
                TurnResult(prompt_id=prompt_id, outcome="interrupted", reason=why)
            )
            self._turn = None
        self._deny_pending()

    # -------------------------------------------------------------- stopping

    def _interrupt(self) -> bool:
        """Interrupt the current turn; it ends with its result. Return whether there is one."""
        if self._turn is None:
            return False
        self._run_in_background(self.program.interrupt())
        return True

    def _run_in_background(self, work: Coroutine[None, None, None]) -> None:
        """Send to the program without waiting: signals and limits are still handled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _stop(self, reason: str) -> None:
        if not self._stopping:
            self._stopping = reason or "stopped"
            self._grace_until = self.clock.monotonic() + self.limits.grace
            self._deny_pending("the session ends")
            self._interrupt()

    async def close(self) -> None:
        """Deny pending permissions and cancel background tasks."""
        try:
            self._deny_pending()
        finally:
            await cancel(*self._tasks)

    # -------------------------------------------------------------- permissions

    def _request_permission(self, request: PermissionRequested) -> None:
        wait = self.limits.permission_wait if self.inbox is not None else 0.0
        until = self.clock.monotonic() + wait
        self.journal.emit(
            PermissionRequest(
                request_id=request.request_id,
                tool=request.tool,
                input=request.input,
                expires_at=self.clock.now() + timedelta(seconds=wait),
            )
        )
        self._pending[request.request_id] = _PendingPermission(request, until)
        if self.inbox is None:
            self._answer(
                request.request_id, PermissionDecision(False, "No one is there to ask.")
            )
        elif self._stopping:
            self._answer(
                request.request_id, PermissionDecision(False, "The session ends.")
            )

    def _answer(self, request_id: str, decision: PermissionDecision) -> bool:
        pending = self._pending.pop(request_id, None)
        if pending is None or pending.request.answer.done():
            return False
        self.journal.emit(
            PermissionAnswer(
                request_id=request_id, allowed=decision.allowed, why=decision.message
            )
        )
        pending.request.answer.set_result(decision)
        self._record_activity()
        return True

    def _deny_pending(self, why: str = "the turn ended") -> None:
        for request_id in list(self._pending):
            self._answer(request_id, PermissionDecision(False, why))

    # -------------------------------------------------------------- mail

    async def _read_mail(self) -> None:
        assert self.inbox is not None
        if await self.inbox.read(self.journal, self._command):
            # Other signals and the limits come first.
            self.signals.put_nowait(MailArrived())

    def _command(self, mail: Mail) -> None:
        """Log a command, then execute it: a reader of the log takes it as done."""
        if self._turn is None:  # during a turn only the program counts as activity
            self._record_activity()
        command = Command(id=mail.id, kind="interrupt")
        if mail.kind == "end_session":
            self.journal.emit(replace(command, kind=mail.kind, effect="in its turn"))
        elif mail.kind == "permission_response":
            known = mail.request_id in self._pending
            effect = f"answers {mail.request_id}" if known else "no such request waits"
            self.journal.emit(replace(command, kind=mail.kind, effect=effect))
            self._answer(mail.request_id, PermissionDecision(mail.allow, mail.text))
        else:
            effect = "ends the turn" if self._turn else "no turn was under way"
            self.journal.emit(replace(command, effect=effect))
            self._interrupt()

    # -------------------------------------------------------------- limits

    def _record_activity(self) -> None:
        self._last_activity = self.clock.monotonic()
        if self._turn is not None:
            self._turn.nudge_at = None

    async def _next_signal(self) -> Signal | None:
        """Return the next signal; None once a deadline has passed."""
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
            yield self.began_at + self.limits.wall
        if self._may_hang and self.limits.idle is not None:
            yield self._last_activity + self.limits.idle
        if self._waits_for_mail and self.limits.mail_idle is not None:
            yield self._last_activity + self.limits.mail_idle
        if self._turn is not None and self._turn.nudge_at is not None:
            yield self._turn.nudge_at
        yield from (pending.until for pending in self._pending.values())

    @property
    def _may_hang(self) -> bool:
        """Whether the idle limit applies: in a turn, without a pending permission."""
        return self.in_turn and not self._pending and not self._stopping

    @property
    def _waits_for_mail(self) -> bool:
        """Whether the session waits for a message."""
        return (
            self.inbox is not None
            and not self.in_turn
            and not self.journal.ledger.queue
            and not self._pending
            and not self._stopping
        )

    def _check_limits(self) -> None:
        now, limits = self.clock.monotonic(), self.limits
        for request_id, pending in list(self._pending.items()):
            if now >= pending.until:
                self._answer(
                    request_id, PermissionDecision(False, "No one answered in time.")
                )
        if self._stopping:
            if now >= self._grace_until:
                self._abandon_turn("it did not end within its grace")
            return
        if limits.wall is not None and now >= self.began_at + limits.wall:
            raise SessionTimedOut(
                f"the session ran for its limit of {round(limits.wall, 1):g} s"
            )
        silent = now - self._last_activity
        if self._may_hang and limits.idle is not None and silent >= limits.idle:
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
        self.journal.emit(
            Notice(text="the turn that was cut off did not continue by itself")
        )
        turn.uuid = prompt_uuid(self.session_id, f"{turn.waiting.prompt.id}/go-on")
        self._run_in_background(self._send(_CONTINUE, turn.uuid))

    async def _send(self, text: str, uuid: str) -> None:
        """Send a text to the program; a failure reaches the loop as a signal."""
        try:
            await self.program.send(text, uuid)
        except MidwatchError as error:
            self.signals.put_nowait(ProgramEnded(error))
