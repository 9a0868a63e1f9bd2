"""What all routes of the server share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import Request

from midwatch.agent.links import Links
from midwatch.lifecycle import Clock, StopEvent
from midwatch.logs import Log
from midwatch.redaction import Redactor
from midwatch.server.auth import LOOPBACK, Principal
from midwatch.settings import Settings
from midwatch.store.protocol import Store
from midwatch.subjects.base import Subject

if TYPE_CHECKING:
    from midwatch.server.actions import Actions
    from midwatch.server.feed import ChangeFeed


@dataclass(slots=True, kw_only=True)
class ServerContext:
    """What all routes of the server share.

    Attributes:
        stop: Set when the process has to end; a stream ends then.
        lifespans: Each is entered before the first request and left after the last one, such as a poller.
        feed: The feed of changes.
        actions: What people and programs do to tickets.
        sessions: Sessions of Claude Code.
    """

    settings: Settings
    store: Store
    subjects: Sequence[Subject]
    redactor: Redactor
    links: Links
    log: Log
    clock: Clock
    environ: Mapping[str, str]
    stop: StopEvent
    lifespans: list[Callable[[], AbstractAsyncContextManager[object]]] = field(
        default_factory=list
    )
    feed: ChangeFeed = field(init=False)
    actions: Actions = field(init=False)
    sessions: Any = field(init=False)

    def authenticate(self, request: Request) -> Principal:
        """Return who sends a request."""
        return LOOPBACK
