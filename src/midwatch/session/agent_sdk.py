"""Import the Agent SDK without `mcp` and `jsonschema`, for commands that have no tool servers in their own process.

The SDK imports both for such servers alone. Four fifths of the processor time of its import are spent on the
types of that protocol, and half of the rest on JSON schemas. A session's own MCP servers are started by the program.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_SDK = "claude_agent_sdk"
_LEFT_OUT = (
    "jsonschema",
    "mcp",
    "mcp.server",
    "mcp.shared",
    "mcp.shared.memory",
    "mcp.shared.message",
    "mcp.types",
)


class _Absent:
    """A class of a package that was left out: it can be named and extended, and nothing else."""

    def __init_subclass__(cls, **options: Any) -> None:
        pass

    def __init__(self, *arguments: Any, **options: Any) -> None:
        raise RuntimeError("this process has no servers of tools")


class _StandIn(ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}", _Absent)


def import_without_tool_servers() -> None:
    """Import the Agent SDK with stand-ins for `mcp` and `jsonschema`, unless it is there already, or needs more than they have.

    For the process of a command: who uses the SDK beside Midwatch in a program may want its servers. Both packages
    themselves can be imported afterwards.
    """
    if _SDK in sys.modules or "mcp" in sys.modules:
        return
    left_out = [name for name in _LEFT_OUT if name not in sys.modules]
    sys.modules.update({name: _StandIn(name) for name in left_out})
    try:
        import_module(_SDK)
    except (ImportError, AttributeError, TypeError, RuntimeError):
        # Another version uses more of it; what needs the SDK imports all of it, or reports that it is missing.
        for name in [one for one in sys.modules if one.partition(".")[0] == _SDK]:
            del sys.modules[name]
    finally:
        for name in left_out:
            sys.modules.pop(name, None)
