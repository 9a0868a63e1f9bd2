"""Tools that a subject of the kind `command` declares: a fixed list of arguments with typed parameters.

There is no shell, and a value is never an option: text of it that begins with a hyphen is refused, also where
the settings admit it by a pattern of their own.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import Field, create_model, model_validator

from midwatch.errors import ObservationFailed
from midwatch.settings import Group
from midwatch.subjects.tools import NAME, Answer, Arguments, Refused, Tool
from midwatch.text import ticket_line

_PLACE = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_PLAIN = r"[A-Za-z0-9_.:/@+=, -]{1,200}"
_LARGEST = 10**15


class ParameterSettings(Group):
    """A parameter of a tool."""

    type: Literal["text", "integer", "choice"] = Field(
        "text", description="What its values are."
    )
    description: str = Field("", max_length=200, description="What Claude reads.")
    pattern: str = Field(
        _PLAIN,
        description="A regular expression that a whole text matches; by default letters, digits and _.:/@+=, -.",
    )
    choices: list[str] = Field(
        default_factory=list, description="The values of a choice."
    )
    min: int = Field(0, ge=-_LARGEST, le=_LARGEST, description="The least integer.")
    max: int = Field(
        1_000_000, ge=-_LARGEST, le=_LARGEST, description="The greatest integer."
    )

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if (self.type == "choice") != bool(self.choices):
            raise ValueError("a choice has `choices`, and nothing else has")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"the pattern is not a regular expression: {error}"
            ) from None
        return self

    @property
    def annotation(self) -> Any:
        """The type of its values."""
        if self.type == "integer":
            return Annotated[int, Field(ge=self.min, le=self.max, strict=True)]
        if self.type == "choice":
            return Literal[tuple(self.choices)]
        return Annotated[str, Field(max_length=1000)]


class CommandToolSettings(Group):
    """A question that an investigation may ask with a command that only reads."""

    name: str = Field(pattern=f"^{NAME.pattern}$", description="Its name.")
    description: str = Field(
        min_length=1, max_length=300, description="What it returns, for Claude."
    )
    command: list[str] = Field(
        min_length=1,
        max_length=100,
        description="Program and arguments; `{name}` in an argument is the value of a parameter.",
    )
    parameters: dict[str, ParameterSettings] = Field(
        default_factory=dict, description="Its parameters by name; all are required."
    )

    @model_validator(mode="after")
    def _known_places(self) -> Self:
        program, *arguments = self.command
        if _PLACE.search(program) or not program.strip():
            raise ValueError("the program is fixed")
        used = {name for one in arguments for name in _PLACE.findall(one)}
        if used != self.parameters.keys():
            odd = ", ".join(sorted(used ^ self.parameters.keys()))
            raise ValueError(f"the command and the parameters differ in: {odd}")
        if any("\0" in one for one in self.command):
            raise ValueError("an argument has no NUL character")
        return self

    def filled(self, values: Mapping[str, object]) -> list[str]:
        """Return the command with the values. Raises Refused for one that the settings do not admit."""
        for name, parameter in self.parameters.items():
            text = str(values[name])
            if parameter.type == "text" and (
                text.startswith("-") or not re.fullmatch(parameter.pattern, text)
            ):
                raise Refused(f"{name} does not match {parameter.pattern}")
        return [
            _PLACE.sub(lambda match: str(values[match[1]]), one) for one in self.command
        ]


class Result(Protocol):
    """How a process ended."""

    @property
    def failure(self) -> str: ...

    @property
    def stdout(self) -> bytes: ...

    @property
    def stderr(self) -> bytes: ...


Run = Callable[[Sequence[str]], Awaitable[Result]]


def command_tools(
    settings: Sequence[CommandToolSettings], run: Run, limit: float
) -> Sequence[Tool]:
    """Return the tools that the settings declare.

    Args:
        settings: The tools.
        run: Runs a command as the subject runs its own, with its environment and limits.
        limit: Seconds that a call may take.
    """
    return tuple(_tool(one, run, limit) for one in settings)


def _tool(settings: CommandToolSettings, run: Run, limit: float) -> Tool:
    fields: dict[str, Any] = {
        name: (parameter.annotation, Field(description=parameter.description))
        for name, parameter in settings.parameters.items()
    }
    arguments = create_model(settings.name, __base__=Arguments, **fields)

    async def answer(asked: Arguments) -> Answer:
        command = settings.filled(asked.model_dump())
        result = await run(command)
        if result.failure:
            why = ticket_line(result.stderr[-600:].decode("utf-8", "replace"), 200)
            raise ObservationFailed(f"the command {result.failure}: {why}")
        text = result.stdout.decode("utf-8", "replace")
        return Answer(" ".join(command), text)

    return Tool(settings.name, settings.description, arguments, answer, limit)
