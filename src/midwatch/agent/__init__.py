"""The agent: claims tickets, gathers evidence, asks Claude and stores a diagnosis.

The public names below are imported when they are first used: the package `anthropic`, which
`midwatch.agent.claude` imports, takes a second and 50 MB that a monitor never needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from midwatch.agent.diagnosis import SYSTEM_PROMPT as SYSTEM_PROMPT
    from midwatch.agent.evidence import ContextGatherer as ContextGatherer
    from midwatch.agent.runner import AgentRunner as AgentRunner
    from midwatch.diagnosis_schema import DiagnosisOutput as DiagnosisOutput

__all__ = ["AgentRunner", "ContextGatherer", "DiagnosisOutput", "SYSTEM_PROMPT"]

_WHERE = {
    "AgentRunner": "midwatch.agent.runner",
    "ContextGatherer": "midwatch.agent.evidence",
    "DiagnosisOutput": "midwatch.diagnosis_schema",
    "SYSTEM_PROMPT": "midwatch.agent.diagnosis",
}


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
