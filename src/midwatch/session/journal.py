"""Everything a run says: into the outbox, the status, the ledger, and to whoever listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from midwatch.events import Event
from midwatch.redaction import Redactor
from midwatch.session.errors import DiskFull
from midwatch.session.folder import SessionFolder
from midwatch.session.ledger import Ledger
from midwatch.session.outbox import EventLog, read_events
from midwatch.status import SessionStatus, fold


class Journal:
    """Opened once a run has its folder for itself. `stream` ends with None."""

    def __init__(
        self, folder: SessionFolder, redactor: Redactor, now: Callable[[], datetime]
    ) -> None:
        self.status = SessionStatus()
        self.ledger = Ledger()
        self.stream: asyncio.Queue[Event | None] = asyncio.Queue()
        for event in read_events(folder.outbox):
            self._take(event)
        self._now = now
        self._log = EventLog(folder.outbox, redactor, now)

    def emit(self, event: Event) -> Event:
        """Log an event and pass it on. Raises DiskFull and FolderUnusable; then it did not happen."""
        logged = self._log.append(event)
        self._take(logged)
        self.stream.put_nowait(logged)
        return logged

    def emit_last(self, event: Event) -> Event:
        """As `emit`, but on a full disk the event still reaches the listener and the status."""
        try:
            return self.emit(event)
        except DiskFull:
            unlogged = replace(event, seq=self._log.last_seq + 1, at=self._now())
            self._take(unlogged)
            self.stream.put_nowait(unlogged)
            return unlogged

    def close(self) -> None:
        self._log.close()
        self.stream.put_nowait(None)

    def _take(self, event: Event) -> None:
        self.status = fold(self.status, (event,))
        self.ledger.add(event)
