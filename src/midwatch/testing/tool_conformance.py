"""The conformance suite for tools.

::

    async def test_the_tools_conform():
        await check_tools(subject, {"queue": {"name": "mail"}})
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

from pydantic import ValidationError

from midwatch.errors import MidwatchError
from midwatch.model import Json
from midwatch.subjects.base import Subject
from midwatch.subjects.tools import Answer, Arguments, Tool, tools_of

DESCRIPTION_LIMIT = 400  # characters: Claude reads it with each request
ANSWER_LIMIT = 2_000_000  # characters


async def check_tools(subject: Subject, calls: Mapping[str, Json]) -> dict[str, Answer]:
    """Call each tool of a subject once with good and once with bad arguments; return the answers, by name.

    Args:
        subject: The subject, whose own tools and those of installed packages are checked.
        calls: Good arguments for each tool, by its name.

    Raises:
        AssertionError: A rule of `midwatch.subjects.tools.Tool` is broken, or a tool has no arguments here.
    """
    tools = {tool.name: tool for tool in tools_of(subject)}
    assert tools.keys() == calls.keys(), f"give arguments for {sorted(tools)}"
    found = {}
    for name, tool in tools.items():
        _check_definition(tool)
        found[name] = await _call(subject, tool, calls[name])
    return found


def _check_definition(tool: Tool) -> None:
    assert 0 < len(tool.description) <= DESCRIPTION_LIMIT, f"{tool.name}: description"
    assert tool.timeout > 0, f"{tool.name}: a call needs time"
    assert issubclass(tool.arguments, Arguments), f"{tool.name}: arguments"
    schema = tool.arguments.model_json_schema()
    assert schema.get("additionalProperties") is False, f"{tool.name}: it takes any"
    try:
        tool.arguments.model_validate({"no_such_argument": 1})
    except ValidationError:
        return
    raise AssertionError(f"{tool.name}: an unknown argument is not refused")


async def _call(subject: Subject, tool: Tool, arguments: Json) -> Answer:
    try:
        async with asyncio.timeout(tool.timeout):
            answer = await tool.run(tool.arguments.model_validate(arguments))
    except TimeoutError:
        raise AssertionError(
            f"{tool.name}: took longer than its timeout of {tool.timeout:g} s"
        ) from None
    except MidwatchError as error:
        raise AssertionError(f"{tool.name}: {error.one_line()}") from None
    assert isinstance(answer, Answer), f"{tool.name}: not an Answer"
    assert answer.command.strip(), f"{tool.name}: no command"
    assert len(answer.text) <= ANSWER_LIMIT, f"{tool.name}: the answer is too long"
    for secret in subject.secrets:
        shown = json.dumps([answer.command, answer.text])
        assert secret not in shown, f"{tool.name} shows a secret"
    return answer
