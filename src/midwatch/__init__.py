"""Midwatch: an on-call engineer that a team runs itself.

A public name is imported when it is first used, so that a short command starts fast.
"""

from __future__ import annotations

from importlib import import_module

from midwatch._moved import install

TYPE_CHECKING = False  # as in typing, which is slow to import
if TYPE_CHECKING:
    from midwatch.agent.runner import AgentRunner as AgentRunner
    from midwatch.agent.ticket_db import TicketDB as TicketDB
    from midwatch.monitor.loop import MonitorLoop as MonitorLoop
    from midwatch.session.agentic_session import AgenticSession as AgenticSession
    from midwatch.session.agentic_session import (
        AsyncAgenticSession as AsyncAgenticSession,
    )
    from midwatch.session.agentic_session import (
        run_agentic_session as run_agentic_session,
    )
    from midwatch.session.manager import SessionManager as SessionManager
    from midwatch.session.options import ApiAccess as ApiAccess
    from midwatch.session.options import Limits as Limits
    from midwatch.session.options import SessionOptions as SessionOptions
    from midwatch.workspace import RepoSpec as RepoSpec
    from midwatch.workspace import WorkspaceOptions as WorkspaceOptions
    from midwatch.workspace import setup_workspace as setup_workspace
    from midwatch.workspace import setup_workspace_async as setup_workspace_async

__version__ = "0.1.0"
__all__ = [
    "AgentRunner",
    "AgenticSession",
    "ApiAccess",
    "AsyncAgenticSession",
    "Limits",
    "MonitorLoop",
    "RepoSpec",
    "SessionManager",
    "SessionOptions",
    "TicketDB",
    "WorkspaceOptions",
    "__version__",
    "run_agentic_session",
    "setup_workspace",
    "setup_workspace_async",
]

install()

_WHERE = {
    "AgentRunner": "agent.runner",
    "AgenticSession": "session.agentic_session",
    "ApiAccess": "session.options",
    "AsyncAgenticSession": "session.agentic_session",
    "Limits": "session.options",
    "MonitorLoop": "monitor.loop",
    "RepoSpec": "workspace",
    "SessionManager": "session.manager",
    "SessionOptions": "session.options",
    "TicketDB": "agent.ticket_db",
    "WorkspaceOptions": "workspace",
    "run_agentic_session": "session.agentic_session",
    "setup_workspace": "workspace",
    "setup_workspace_async": "workspace",
}


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
