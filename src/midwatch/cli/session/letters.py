"""Lines of an inbox, as the commands write them."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from midwatch.cli.output import iso
from midwatch.cli.session.places import Place
from midwatch.errors import Conflict
from midwatch.session.log import read_events
from midwatch.session.mailbox import MAX_LINE, Kind, write_mail
from midwatch.session.records import FolderRecords
from midwatch.session.status import SessionStatus, fold


def write(place: Place, kind: Kind, content: Any, at: datetime) -> str:
    """Append one message; returns its id. Raises Conflict for one that no session would take."""
    if (
        isinstance(content, str)
        and len(content.encode("utf-8", "replace")) > MAX_LINE // 2
    ):
        raise Conflict("that is too long for a message", hint="put it into a file")
    message_id = uuid.uuid4().hex
    write_mail(
        place.folder.inbox, id=message_id, kind=kind, content=content, timestamp=iso(at)
    )
    return message_id


def expectation(place: Place) -> str:
    """What will become of a message, as far as can be told now."""
    spec = FolderRecords(place.folder.path).load_spec()
    if place.running and (spec is None or spec.interactive):
        return "written"
    how = f"`midwatch session resume {place.id} --interactive`"
    if place.running:
        return f"written, but the session does not read its mailbox; later {how}"
    return f"written; the session does not run, {how} reads it"


def pending_request(place: Place) -> str:
    """The one permission that is asked for. Raises Conflict where it is not just one."""
    asked = status_of(place).pending_permissions
    if not asked:
        raise Conflict(f"session {place.id} asks for nothing")
    if len(asked) > 1:
        names = ", ".join(f"{one.request_id} ({one.tool})" for one in asked)
        raise Conflict(f"session {place.id} asks for {len(asked)} things", hint=names)
    return asked[0].request_id


def status_of(place: Place) -> SessionStatus:
    return fold(SessionStatus(), read_events(place.folder.outbox))
