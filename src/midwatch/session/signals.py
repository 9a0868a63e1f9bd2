"""The signals that wake the loop of a session."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from midwatch.errors import MidwatchError
from midwatch.model import Json
from midwatch.session.events import Event, TurnResult


@dataclass(frozen=True, slots=True)
class Said:
    """The program emitted an event."""

    event: Event


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """The program ended a turn; `error` is what ends the session, if anything does.

    `uuids` are the prompts that the turn took in, as far as the program reports them.
    """

    result: TurnResult
    error: MidwatchError | None = None
    uuids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The program's state: "idle" only when no subagent runs in the background and no turn is due for one."""

    state: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a permission request."""

    allowed: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class PermissionAsked:
    """The program waits until `answer` has a result."""

    request_id: str
    tool: str
    input: Json
    answer: asyncio.Future[Verdict] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProgramEnded:
    """The program is gone."""

    error: MidwatchError


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The session is to end now."""

    reason: str


@dataclass(frozen=True, slots=True)
class InterruptAsked:
    """The turn is to end now."""


@dataclass(frozen=True, slots=True)
class MailArrived:
    """The inbox has a new line."""


Signal = (
    Said
    | TurnEnded
    | StateChanged
    | PermissionAsked
    | ProgramEnded
    | StopAsked
    | InterruptAsked
    | MailArrived
)
