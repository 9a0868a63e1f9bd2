"""What became of every message: a pure fold of the outbox, made when a run begins.

The rule that a crash at any point can neither lose nor double a message:

1. A line of the inbox is accepted by its event in the outbox (`prompt`, `command`); its id is known from then on.
2. Only then does the cursor of the inbox move. A crash in between shows the line again; its id is known.
3. A prompt is handed to the program behind a `turn` event, under a uuid that is computed from its id.
4. It is finished by its `result`, unless that is a failure. What has none when a run begins is handed over again under the same
   uuid. The program takes a uuid once: if it is in its transcript already, the turn goes on from
   there (or had ended, and only its result is made up for); if not, the program never had it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from midwatch.events import (
    Command,
    Event,
    MailboxRejected,
    Phase,
    PhaseChanged,
    Prompt,
    TurnResult,
    TurnStarted,
)

_NAMESPACE = uuid.UUID("6b8a7d1e-3b1f-5d6c-9a55-0d7a51d0b7c4")


def conversation_id(session_id: str) -> str:
    """The program's id for the conversation of a session."""
    return str(uuid.uuid5(_NAMESPACE, session_id))


def prompt_uuid(session_id: str, prompt_id: str) -> str:
    """The program's id for a prompt: the same whenever it is handed over."""
    return str(uuid.uuid5(_NAMESPACE, f"{session_id}/{prompt_id}"))


@dataclass(slots=True)
class Waiting:
    """A prompt without a result. `sent`: the program may have it. `interrupted`: a person ended its turn."""

    prompt: Prompt
    sent: bool = False
    interrupted: bool = False


@dataclass(slots=True)
class Ledger:
    """`queue` is in order of acceptance; None in it is where the session was asked to end."""

    run: int = 0
    known: set[str] = field(default_factory=set)
    rejected: set[int] = field(default_factory=set)
    queue: list[Waiting | None] = field(default_factory=list)
    phase: Phase = Phase.PENDING

    def add(self, event: Event) -> None:
        match event:
            case PhaseChanged():
                self.run, self.phase = event.run, event.phase
                if event.phase in (Phase.COMPLETED, Phase.STOPPED):
                    self.queue = [item for item in self.queue if item is not None]
            case Prompt():
                self.queue.append(Waiting(event))
                if event.source == "inbox":
                    self.known.add(event.id)
            case TurnStarted():
                for waiting in self._of(event.prompt_id):
                    waiting.sent = True
            case TurnResult() if event.outcome != "failed":
                done = self._of(event.prompt_id)
                self.queue = [item for item in self.queue if item not in done]
            case Command():
                self._command(event)
            case MailboxRejected():
                self.rejected.add(event.offset)

    def _command(self, command: Command) -> None:
        self.known.add(command.id)
        if command.kind == "end_session":
            self.queue.append(None)
        elif command.kind == "interrupt":
            for waiting in self.queue[:1]:
                if waiting is not None and waiting.sent:
                    waiting.interrupted = True

    def _of(self, prompt_id: str) -> list[Waiting]:
        return [w for w in self.queue if w is not None and w.prompt.id == prompt_id]


def read_ledger(events: Iterable[Event]) -> Ledger:
    ledger = Ledger()
    for event in events:
        ledger.add(event)
    return ledger
