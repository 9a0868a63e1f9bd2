"""Lines for the mailbox of a session. Which of them mean something, its reader decides."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from midwatch.content.errors import ContentTooLarge
from midwatch.content.server.answers import RequestRefused

MAX_LINE = 500_000
"""Bytes: more is refused by whoever reads the mailbox."""
_LONGEST_NAME = 200


def inbox_line(data: Mapping[str, Any], now: datetime) -> tuple[str, bytes]:
    """The message's id and its line. Raises RequestRefused (422) and ContentTooLarge."""
    kind, given = data.get("type"), data.get("id")
    if not _is_name(kind):
        raise RequestRefused(422, "type must be a text", hint="such as user_message")
    if given is not None and not _is_name(given):
        raise RequestRefused(
            422, f"id must be a text of 1 to {_LONGEST_NAME} characters"
        )
    id = given or uuid.uuid4().hex
    message = {
        "id": id,
        "type": kind,
        "content": data.get("content"),
        "timestamp": str(data.get("timestamp") or now.isoformat())[:_LONGEST_NAME],
    }
    line = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")
    if len(line) > MAX_LINE:
        raise ContentTooLarge(f"a message may have {MAX_LINE} bytes")
    return id, line + b"\n"


def _is_name(text: object) -> bool:
    return isinstance(text, str) and 0 < len(text) <= _LONGEST_NAME
