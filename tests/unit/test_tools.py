"""Which tools are offered: those of several subjects, those of other packages, and how they are named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import Field

from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.investigation import Toolbox
from midwatch.diagnosis_schema import ToolCall
from midwatch.errors import SettingsError
from midwatch.model import Context, Evidence
from midwatch.redaction import Redactor
from midwatch.subjects.tools import Answer, Arguments, Tool, tools_of
from midwatch.testing.fakes import FakeSubject, ManualClock

NOTHING = Context((), (), ManualClock().now())


class Queue(Arguments):
    name: str | None = Field(None, description="The queue.", max_length=50)


class Other(Arguments):
    pass


def tool(text: str, arguments: type[Arguments] = Queue, name: str = "length") -> Tool:
    async def run(asked: Arguments) -> Answer:
        return Answer("length", text)

    return Tool(name, "The length.", arguments, run)


def toolbox(**offered: Sequence[Tool]) -> Toolbox:
    gatherer = ContextGatherer({}, Redactor(), ManualClock())
    return Toolbox(gatherer, offered, 500)


async def ask(box: Toolbox, name: str, /, **arguments: object) -> Evidence:
    call = ToolCall("1", name, dict(arguments))
    [result] = await box.answer([call], NOTHING, 5, 5.0)
    assert result.evidence is not None
    return result.evidence


def test_a_definition_is_short() -> None:
    [definition] = toolbox(db=[tool("4")]).definitions
    assert definition == {
        "name": "length",
        "description": "The length.",
        "input_schema": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"name": {"type": "string", "description": "The queue."}},
        },
    }


async def test_a_tool_of_two_subjects_takes_the_name_of_one() -> None:
    box = toolbox(db=[tool("four")], cache=[tool("five")])
    [definition] = box.definitions
    schema = definition["input_schema"]
    assert schema["properties"]["subject"] == {
        "type": "string",
        "enum": ["db", "cache"],
    }
    assert schema["required"] == ["subject"]
    found = await ask(box, "length", subject="cache", name="a")
    assert (found.text, found.source) == ("five", "cache: length")
    found = await ask(box, "length", subject="elsewhere")
    assert not found.available and "no such subject" in found.text
    assert not (await ask(box, "length")).available


async def test_tools_of_one_name_with_other_arguments_stay_apart() -> None:
    box = toolbox(**{"db": [tool("four")], "orders-db": [tool("five", Other)]})
    assert [one["name"] for one in box.definitions] == ["length", "orders_db_length"]
    assert (await ask(box, "orders_db_length")).text == "five"


@pytest.mark.parametrize("names", [["a", "a"], ["Length"], ["a-b"], [""]], ids=str)
def test_a_name_is_plain_and_stands_once(names: list[str]) -> None:
    with pytest.raises(SettingsError):
        tools_of(FakeSubject(tools=[tool("4", name=name) for name in names]))


PACKAGE = """
from midwatch.subjects.tools import Answer, Arguments, Tool

async def run(asked):
    return Answer("lag", "4711")

def tools(subject):
    return [Tool("lag", "The lag.", Arguments, run)] if subject.kind == "fake" else []
"""
LIST = """
from midwatch.subjects.tools import tools_of
from midwatch.testing.fakes import FakeSubject
print([tool.name for tool in tools_of(FakeSubject())], tools_of(FakeSubject(kind="x")))
"""


@pytest.mark.integration
def test_a_package_adds_tools_by_an_entry_point(tmp_path: Path) -> None:
    (tmp_path / "brokers.py").write_text(PACKAGE)
    info = tmp_path / "brokers-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brokers\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[midwatch.tools]\nb = brokers:tools\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{LIST}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['lag'] []\n"
