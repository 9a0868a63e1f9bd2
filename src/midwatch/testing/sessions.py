"""For tests of what runs sessions: the real program against the scripted API, in a folder of the test."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from midwatch.events import Event
from midwatch.session.mailbox import Kind, write_mail
from midwatch.session.options import ApiAccess, Limits, SessionOptions
from midwatch.session.session import AsyncAgenticSession

from .messages_api import ScriptedMessagesAPI

KEY = "sk-ant-test-0123456789abcdefghij"
LIMITS = Limits(wall=60, idle=30, retries=1, grace=5, permission_wait=20)
_E = TypeVar("_E")


def options(**changes: Any) -> SessionOptions:
    """Options for a test: few retries, short limits, and Bash may be used."""
    limits = replace(LIMITS, **changes.pop("limits", {}))
    return SessionOptions(
        **{"limits": limits, "allowed_tools": ("Bash",), "sandbox": "off", **changes}
    )


def session_in(
    root: Path, api: ScriptedMessagesAPI | str, **arguments: Any
) -> AsyncAgenticSession:
    """A session named "test" whose workspace is `work` and whose own folder is `session` in `root`."""
    work = root / "work"
    work.mkdir(exist_ok=True)
    base_url = api if isinstance(api, str) else api.base_url
    given = {
        "client": ApiAccess(KEY, base_url),
        "workspace": work,
        "folder": root / "session",
        "session_id": "test",
        "options": options(),
    }
    return AsyncAgenticSession(**{**given, **arguments})


async def collect(session: AsyncAgenticSession, prompt: str | None) -> list[Event]:
    """All events of one `execute`; raises as it does."""
    return [event async for event in session.execute(prompt)]


def only(events: list[Event], kind: type[_E]) -> list[_E]:
    """The events of one kind."""
    return [event for event in events if isinstance(event, kind)]


def post(session: AsyncAgenticSession, kind: Kind, content: Any, id: str) -> None:
    """Put a message into the session's inbox."""
    inbox = session.folder.inbox
    inbox.parent.mkdir(parents=True, exist_ok=True)
    write_mail(inbox, id=id, kind=kind, content=content, timestamp="")


def wait_until(true: Callable[[], bool], timeout: float = 10.0) -> None:
    """Look every 10 ms. Raises TimeoutError after `timeout` seconds."""
    until = time.monotonic() + timeout
    while not true():
        if time.monotonic() > until:
            raise TimeoutError(f"not true after {timeout:g} s")
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" and os.path.exists(f"/proc/{pid}")
