"""The tools of hosts, URLs, commands, Prometheus servers, repositories and Midwatch itself, on real parts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from midwatch.agent.incident_tools import search_tool, state_tool
from midwatch.agent.repository_tools import RepositoryTools, SourceRepository
from midwatch.errors import MidwatchError, SettingsError
from midwatch.model import Origin
from midwatch.subjects.base import Subject, build_subjects
from midwatch.subjects.host_tools import DiskUsage
from midwatch.subjects.tools import Answer, Refused, Tool, tools_of
from midwatch.testing.fakes import ALIVE, FakeSubject, broken
from midwatch.testing.tool_conformance import check_tools
from midwatch.workspace.git import Git
from midwatch.workspace.mirrors import Mirrors

from .web import Page, serve

pytestmark = pytest.mark.integration


async def call(tools: Sequence[Tool], name: str, **arguments: Any) -> Answer:
    [tool] = (one for one in tools if one.name == name)
    answer: Answer = await tool.run(tool.arguments.model_validate(arguments))
    return answer


def subject(**written: Any) -> Subject:
    [built] = build_subjects([{"name": "one", **written}])
    return built
