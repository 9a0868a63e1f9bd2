"""Read YAML and JSON that people and programs write: in bounded time and memory, and no name given twice.

YAML is read as kubectl reads it: a timestamp stays text, and so does 22:22, which is 1342 in YAML 1.1. A value
is never repeated in an error: it may be a password.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from midwatch.errors import PermanentError

MAX_BYTES = 5_000_000
"""Bytes of an input; a single object of a Kubernetes API server has at most 1,500,000."""
_MAX_CHARACTERS = 20_000_000
"""Characters of a document with its aliases expanded: a few lines can stand for gigabytes."""
MAX_DEPTH = 60
_MAX_DIGITS = 400
"""Digits of a whole number. Python refuses to print one of more than 4,300."""
_TAG = "tag:yaml.org,2002:"
BAD_VALUES = (ValueError, KeyError, IndexError, AttributeError, TypeError)
"""Everything that code raises for a value of another kind than it takes, PyYAML among it (`!!bool x`)."""


class DocumentError(PermanentError):
    """A text is not the document that it should be."""

    command_exit_code = 2


def read_yaml_or_json(data: bytes) -> list[Any]:
    """Return the documents in a text; an empty one is None. Raises DocumentError."""
    text = _decoded(data)
    if text.lstrip()[:1] in ("{", "["):
        try:
            return [read_json(text)]
        except NotJson:  # YAML may start like JSON
            pass
    return _read_yaml(text)


def read_yaml(data: bytes) -> Any:
    """Return the only document in a text, None if it is empty. Raises DocumentError."""
    documents = _read_yaml(_decoded(data))
    if len(documents) > 1:
        raise DocumentError("there is a second document; use one")
    return documents[0] if documents else None


def line_of(text: str, path: Sequence[str]) -> int:
    """Return the line, from 1, of a value in the only document of a YAML text.

    Args:
        text: A text that `read_yaml` reads.
        path: The names and indices that lead to the value; where they lead nowhere, the last part that is there counts.
    """
    node = yaml.compose(text, Loader=_Loader)
    line = 0
    for part in path:
        if isinstance(node, yaml.MappingNode):
            inner = [(k, v) for k, v in node.value if k.value == part]
        elif isinstance(node, yaml.SequenceNode) and part.isdecimal():
            inner = [(one, one) for one in node.value[int(part) : int(part) + 1]]
        else:
            break
        if not inner:
            break
        name, node = inner[0]
        line = name.start_mark.line
    return line + 1


def _decoded(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise DocumentError(f"longer than {MAX_BYTES:,} bytes", hint="split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"byte {error.start} is not UTF-8") from None


# ------------------------------------------------------------------ JSON


class NotJson(DocumentError):
    """The text is not JSON."""


def read_json(text: str) -> Any:
    """Return the value in a JSON text.

    Raises:
        NotJson: The text is not JSON, or nested too deeply.
        DocumentError: A number is too long, or an object has two members of one name. Most parsers take the
            last one, and what the first one says is lost.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_int=_whole_number)
    except RecursionError:
        raise NotJson("is nested too deeply to be read") from None
    except ValueError:
        raise NotJson("is not valid JSON") from None


def _whole_number(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise DocumentError(f"has too long a number; use at most {_MAX_DIGITS} digits")
    return int(text)


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        names = [name for name, _ in members]
        twice = next(name for name in names if names.count(name) > 1)
        raise DocumentError(f"the member {twice!r:.50} is given twice")
    return found


# ------------------------------------------------------------------ YAML


def _read_yaml(text: str) -> list[Any]:
    try:
        _check_events(text)
        return list(yaml.load_all(text, Loader=_Loader))
    except yaml.YAMLError as error:
        raise DocumentError(_explained(_in_python(text) or error, text)) from None


_PROBLEMS = {
    r"character '\\t'": "a tab cannot indent; use spaces",
    r"found character '(.)'": r"text that starts with \1 needs quotes",
    r"mapping values are not allowed": "there is a second ':' or an indented name; put text with ': ' in quotes",
    r"expected ',' or|<stream end>": "a list or mapping in brackets is not closed",
    r"expected <block end>": "the indentation differs from the lines above",
    r"unexpected end of stream": "a quote is not closed",
    r"could not find expected ':'": "a line has no ':' after its name",
    # Neither the alias nor the tag is repeated: a password may start so.
    r"undefined alias": "text that starts with * needs quotes",
    r"constructor for the tag": "text that starts with ! needs quotes",
    r"unknown escape character '(.)'": r"\\\1 is not an escape; use single quotes",
    r"unhashable key": "a name must be text",
    r"special characters|control characters": "there is a control character; remove it",
}
"""What to write for the problems that the parser of YAML reports, by a pattern of its text."""
_MAX_EXPLAINED = 200_000  # characters
_UNKNOWN = "the text or value here cannot be read; put text in quotes"


def _in_python(text: str) -> yaml.YAMLError | None:
    """Return the error of PyYAML's own parser, which is slower and more precise than that of libyaml."""
    if len(text) > _MAX_EXPLAINED:
        return None
    try:
        for _ in yaml.parse(text, Loader=yaml.SafeLoader):
            pass
    except yaml.YAMLError as error:
        return error
    return None


def _explained(error: yaml.YAMLError, text: str) -> str:
    """Return where a document is wrong and how, without the parser's names for its input."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None)
    found = (
        match.expand(meaning)
        for pattern, meaning in _PROBLEMS.items()
        if (match := re.search(pattern, f"{problem or error}"))
    )
    meaning = next(found, _UNKNOWN)
    if mark is not None:
        return f"line {mark.line + 1}, column {mark.column + 1}: {meaning}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"line {text.count(chr(10), 0, error.position) + 1}: {meaning}"
    return meaning


@dataclass(slots=True)
class _Open:
    """A mapping or list that is open while events are read.

    Attributes:
        anchor: Its name for aliases, if it has one.
        before: Characters of the document before it.
        names: The line of each name, for a mapping.
        at_name: Whether the next node of the mapping is a name.
    """

    anchor: str | None
    before: int
    names: dict[str, int] | None
    at_name: bool = field(default=True)


def _check_events(text: str) -> None:
    """Read the events of the parser, which build nothing.

    Raises:
        DocumentError: A mapping has two values of one name, an alias refers to itself or to nothing, or the
            document is nested too deeply or too large once its aliases are expanded.
    """
    sizes: dict[str, int] = {}
    stack: list[_Open] = []
    size = 0
    for event in yaml.parse(text, Loader=_Loader):
        match event:
            case yaml.DocumentStartEvent():
                sizes, size = {}, 0
            case yaml.AliasEvent():
                if event.anchor not in sizes:
                    raise DocumentError(
                        f"{_place(event)}: text that starts with * needs quotes; as an alias it refers to itself or to nothing"
                    )
                size += sizes[event.anchor]
                _node(stack, None, event)
            case yaml.ScalarEvent():
                if event.anchor:
                    sizes[event.anchor] = len(event.value) + 1
                size += len(event.value) + 1
                _node(stack, event.value, event)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                if event.anchor:
                    sizes.pop(event.anchor, None)
                _node(stack, None, event)
                is_mapping = isinstance(event, yaml.MappingStartEvent)
                stack.append(_Open(event.anchor, size, {} if is_mapping else None))
            case yaml.CollectionEndEvent():
                ended = stack.pop()
                size += 1
                if ended.anchor:
                    sizes[ended.anchor] = size - ended.before
        if len(stack) > MAX_DEPTH:
            raise DocumentError(f"{_place(event)}: nested deeper than {MAX_DEPTH}")
        if size > _MAX_CHARACTERS:
            raise DocumentError("too large once its aliases are expanded")


def _node(stack: list[_Open], name: str | None, event: yaml.Event) -> None:
    """Take in a node of the innermost collection; `name` is its text. Raises DocumentError for a second one."""
    if not stack or (names := stack[-1].names) is None:
        return
    if stack[-1].at_name and name is not None and name != "<<":
        if name in names:
            raise DocumentError(
                f"{_place(event)}: {name:.50} is given twice, first in line {names[name]}",
                hint="put both together, or remove one",
            )
        mark: Any = event.start_mark
        names[name] = mark.line + 1
    stack[-1].at_name = not stack[-1].at_name


def _place(part: yaml.Event | yaml.Node) -> str:
    mark: Any = part.start_mark
    return f"line {mark.line + 1}, column {mark.column + 1}"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads numbers and times as kubectl does."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node. Raises DocumentError, which does not repeat it."""
        if node.tag == f"{_TAG}int" and len(getattr(node, "value", "")) > _MAX_DIGITS:
            raise DocumentError(
                f"{_place(node)}: too long a number; use at most {_MAX_DIGITS} digits"
            )
        try:
            return super().construct_object(node, deep)
        except BAD_VALUES:
            raise DocumentError(
                f"{_place(node)}: the value does not fit its tag",
                hint="put it into quotes, or remove the tag",
            ) from None

    yaml_implicit_resolvers = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag not in (f"{_TAG}timestamp", f"{_TAG}int", f"{_TAG}float")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    f"{_TAG}int",
    re.compile(r"[-+]?(0b[01]+|0x[0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
        r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)
