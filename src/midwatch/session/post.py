"""The mailbox at work: watches the inbox, accepts what is in it, and keeps aside what is no message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from midwatch.events import MailboxRejected, Prompt
from midwatch.session.files import append_line
from midwatch.session.folder import SessionFolder
from midwatch.session.journal import Journal
from midwatch.session.ledger import prompt_uuid
from midwatch.session.mailbox import (
    POLL_INTERVAL,
    Inbox,
    Mail,
    Rejected,
    beginning,
    rejected_line,
)

_AT_ONCE = 100  # lines between two chances for everything else


class Post:
    """The inbox of one running session."""

    def __init__(self, session_id: str, folder: SessionFolder) -> None:
        self._session_id = session_id
        self._folder = folder
        self._inbox = Inbox(folder.inbox, folder.cursor)
        self._texts: dict[str, str] = {}

    async def watch(self, arrived: Callable[[], None]) -> None:
        """Call `arrived` whenever the inbox has changed; runs until it is cancelled."""
        last = None
        while True:
            now = self._inbox.look()
            if now != last:
                last = now
                arrived()
            await asyncio.sleep(POLL_INTERVAL)

    async def read(self, journal: Journal, act: Callable[[Mail], None]) -> None:
        """Accept what is new: log it, act on commands, then move the cursor."""
        found = self._inbox.poll()
        if self._inbox.restarted:
            journal.ledger.rejected.clear()
        for number, item in enumerate(found):
            if isinstance(item, Rejected):
                self._reject(item, journal)
            elif item.id not in journal.ledger.known:
                self._accept(item, journal, act)
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
        self._inbox.commit()

    def text_of(self, prompt: Prompt) -> str:
        """What was written, as it was written: the outbox has it redacted."""
        return self._texts.pop(prompt.id, prompt.text)

    def remember(self, ids: set[str]) -> None:
        """Look up the texts of messages that an earlier run accepted."""
        for item in self._inbox.all():
            if isinstance(item, Mail) and item.id in ids:
                self._texts.setdefault(item.id, item.text)

    def _accept(
        self, mail: Mail, journal: Journal, act: Callable[[Mail], None]
    ) -> None:
        if mail.kind != "user_message":
            act(mail)
            return
        self._texts[mail.id] = mail.text
        journal.emit(
            Prompt(
                id=mail.id,
                uuid=prompt_uuid(self._session_id, mail.id),
                text=mail.text,
                source="inbox",
            )
        )

    def _reject(self, item: Rejected, journal: Journal) -> None:
        if item.offset in journal.ledger.rejected:
            return
        append_line(self._folder.rejected, rejected_line(item))
        journal.emit(
            MailboxRejected(offset=item.offset, why=item.why, beginning=beginning(item))
        )
