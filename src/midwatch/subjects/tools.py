"""The protocol of tools: read-only questions about a subject that Claude may ask in an investigation.

A subject offers tools by a method `tools`; packages of others add some by an entry point of the group
``midwatch.tools``, which names a function from a subject to its tools. `midwatch.testing.tool_conformance`
checks one.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from midwatch.errors import PermanentError, SettingsError
from midwatch.model import Origin
from midwatch.subjects.base import Subject

GROUP = "midwatch.tools"
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


class Arguments(BaseModel):
    """The arguments of a tool. Each field has a description; one that is not declared is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Refused(PermanentError):
    """A call is not admitted. The message tells Claude what is."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool read: plain text, one fact a line, and the exact command that was run.

    An empty text says that there is nothing, which proves nothing. `origin` says who wrote the text, and what
    `reported` matches in it (its group, if it has one) was written by clients.
    """

    command: str
    text: str
    origin: Origin = Origin.SYSTEM
    reported: tuple[re.Pattern[str], ...] = ()


@dataclass(frozen=True, slots=True)
class Tool:
    """A read-only question about one subject.

    `run` gets an instance of `arguments`. It may raise any `MidwatchError`, and is cancelled after `timeout`
    seconds. It must not write, ask any system but its subject, or take longer locks than a reader does.
    What it returns is cleaned, redacted, shortened and numbered like all evidence.

    Attributes:
        name: Lower-case letters, digits and underscores; unique within the subject.
        description: What it returns, in a sentence or two: Claude reads it, and each token of it is paid.
        arguments: The model of its arguments.
        run: Answers a call.
        timeout: Seconds that a call may take.
    """

    name: str
    description: str
    arguments: type[Arguments]
    run: Callable[[Any], Awaitable[Answer]]
    timeout: float = 10.0


@runtime_checkable
class HasTools(Protocol):
    """A subject that offers tools."""

    def tools(self) -> Sequence[Tool]: ...


ToolSource = Callable[[Subject], Sequence[Tool]]
"""What an entry point names: it returns the tools for a subject, none for a kind that it does not know."""


def tools_of(subject: Subject) -> list[Tool]:
    """Return the tools of a subject: its own, then those of other packages.

    Raises:
        SettingsError: A package cannot be loaded, or has a tool of a name that is taken or not allowed.
    """
    found: dict[str, Tool] = {}
    for origin, tool in _offered(subject):
        if not NAME.fullmatch(tool.name) or tool.name in found:
            raise SettingsError(
                f"{origin} offers a tool {tool.name!r}, a name that is taken or not allowed",
                path=f"subjects.{subject.name}",
                hint="use lower-case letters, digits and underscores, and each name once",
            )
        found[tool.name] = tool
    return list(found.values())


def _offered(subject: Subject) -> Iterator[tuple[str, Tool]]:
    if isinstance(subject, HasTools):
        for tool in subject.tools():
            yield subject.name, tool
    for origin, source in _sources():
        for tool in source(subject):
            yield origin, tool


@cache
def _sources() -> tuple[tuple[str, ToolSource], ...]:
    found = []
    for point in entry_points(group=GROUP):
        try:
            found.append((point.value, point.load()))
        except (ImportError, AttributeError) as error:
            raise SettingsError(
                f"the tools {point.name} cannot be loaded: {error}",
                hint=f"reinstall the package that provides {point.value}",
            ) from error
    return tuple(found)
