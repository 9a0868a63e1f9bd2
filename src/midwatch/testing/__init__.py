"""What Midwatch is tested with, and what you test your own settings, subjects and stores with.

The names below are imported when they are first used. Faults and errors of the scripted
Messages API are in `midwatch.testing.messages_api`, more fakes in `midwatch.testing.fakes`, and
conformance checks in `midwatch.testing.subject_conformance` and `midwatch.testing.store_conformance`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from midwatch.testing.fakes import FakeKind as FakeKind
    from midwatch.testing.fakes import FakeSubject as FakeSubject
    from midwatch.testing.fakes import ManualClock as ManualClock
    from midwatch.testing.messages_api import Answer as Answer
    from midwatch.testing.messages_api import Hold as Hold
    from midwatch.testing.messages_api import Request as Request
    from midwatch.testing.messages_api import Rule as Rule
    from midwatch.testing.messages_api import ScriptedMessagesAPI as ScriptedMessagesAPI
    from midwatch.testing.messages_api import ToolUse as ToolUse
    from midwatch.testing.messages_api import Usage as Usage
    from midwatch.testing.postgres import PrivatePostgres as PrivatePostgres

_WHERE = {
    "Answer": "messages_api",
    "FakeKind": "fakes",
    "FakeSubject": "fakes",
    "Hold": "messages_api",
    "ManualClock": "fakes",
    "PrivatePostgres": "postgres",
    "Request": "messages_api",
    "Rule": "messages_api",
    "ScriptedMessagesAPI": "messages_api",
    "ToolUse": "messages_api",
    "Usage": "messages_api",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
