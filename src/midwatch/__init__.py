"""Midwatch: an on-call engineer that a team runs itself.

The public names below are imported when they are first used, so that a short command does
not pay for what it does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .monitor import MonitorLoop as MonitorLoop
    from .runner import AgentRunner as AgentRunner

__version__ = "0.1.0"
__all__ = ["AgentRunner", "MonitorLoop", "__version__"]

_WHERE = {"AgentRunner": "runner", "MonitorLoop": "monitor"}


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
