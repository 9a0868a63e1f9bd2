"""Read and write Kubernetes documents as YAML or JSON. Input of any kind takes bounded memory."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

import yaml

from midwatch.kube.errors import SpecRefused
from midwatch.model import Json

MAX_BYTES = 5_000_000
"""Bytes of an input; a single object of the API server has at most 1,500,000."""
_MAX_CHARACTERS = 20_000_000
"""Characters of a document with its aliases expanded: a few lines can stand for gigabytes."""
_MAX_DEPTH = 60
_TAG = "tag:yaml.org,2002:"
_BREAKS = re.compile("[\\x85\\u2028\\u2029\\ufeff]")
_SURROGATES = re.compile("[\\ud800-\\udfff]")
_BAD_VALUES = (ValueError, KeyError, IndexError, AttributeError, TypeError)
"""Everything that PyYAML raises for a value that does not fit an explicit tag, such as `!!bool x`."""
_PLAIN = (str, int, float, bool, type(None))


def read_documents(data: bytes) -> list[Json]:
    """Return the objects in a text, without empty documents. Raises SpecRefused."""
    if len(data) > MAX_BYTES:
        raise SpecRefused(f"longer than {MAX_BYTES:,} bytes", hint="split it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SpecRefused("not UTF-8 text") from None
    found = _as_json(text) if text.lstrip()[:1] in ("{", "[") else None
    documents = _as_yaml(text) if found is None else found
    return [
        _checked_document(document) for document in documents if document is not None
    ]


def _as_json(text: str) -> list[Any] | None:
    """Return the JSON document; None if it is not JSON, because YAML may start like JSON."""
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError):
        return None


def _as_yaml(text: str) -> list[Any]:
    try:
        _refuse_bombs(text)
        return list(yaml.load_all(text, Loader=_Loader))
    except yaml.YAMLError as error:
        raise SpecRefused(
            f"neither YAML nor JSON{_position(error, text)}",
            hint="check the indentation, quotes, brackets and tags there",
        ) from None
    except _BAD_VALUES:
        raise SpecRefused(
            "neither YAML nor JSON: a value does not fit its tag, or is too long a number",
            hint="put it into quotes, or remove the tag",
        ) from None


def _position(error: yaml.YAMLError, text: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return f": line {mark.line + 1}, column {mark.column + 1}"
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f": line {line} has a control character"
    return ""


def _checked_document(document: Any) -> Json:
    _check_plain(document, 0)
    if not isinstance(document, dict):
        raise SpecRefused("not a Kubernetes object")
    return document


def _check_plain(value: Any, depth: int) -> None:
    """Raise SpecRefused for values that JSON does not have: dates, sets, keys that are numbers."""
    if depth > _MAX_DEPTH:
        raise SpecRefused(f"nested deeper than {_MAX_DEPTH}")
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise SpecRefused(
                    f"the name {key!r:.50} is not a string", hint="put it into quotes"
                )
            _check_plain(key, depth + 1)
            _check_plain(part, depth + 1)
    elif isinstance(value, list):
        for part in value:
            _check_plain(part, depth + 1)
    elif not isinstance(value, _PLAIN) or _is_not_json(value):
        shown = repr(value) if isinstance(value, _PLAIN) else str(value)
        raise SpecRefused(f"{shown:.50} is not a JSON value")


def _is_not_json(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, str) and _SURROGATES.search(value) is not None


def _refuse_bombs(text: str) -> None:
    """Raise SpecRefused for documents that are too large once expanded, by the events of the parser."""
    sizes: dict[str, int] = {}
    open_ones: list[tuple[str | None, int]] = []
    size = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.DocumentStartEvent):
            sizes, size = {}, 0
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise SpecRefused(
                    f"*{event.anchor:.50} refers to itself, or to nothing"
                )
            size += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor:
                sizes[event.anchor] = len(event.value) + 1
            size += len(event.value) + 1
        elif isinstance(event, yaml.CollectionStartEvent):
            if event.anchor:
                sizes.pop(event.anchor, None)
            open_ones.append((event.anchor, size))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_ones.pop()
            size += 1
            if anchor:
                sizes[anchor] = size - before
        if size > _MAX_CHARACTERS or len(open_ones) > _MAX_DEPTH:
            raise SpecRefused("too large once its aliases are expanded")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads as kubectl does: a timestamp stays a string, and so does 22:22, which is 1342 in YAML 1.1."""

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


# ------------------------------------------------------------------ writing


def write_yaml(documents: Iterable[Json], *, ascii_only: bool = False) -> str:
    """Return documents as YAML for kubectl. Long lines are not wrapped."""
    return yaml.dump_all(
        documents,
        Dumper=_Dumper,
        sort_keys=False,
        width=math.inf,
        allow_unicode=not ascii_only,
    )


class _Dumper(yaml.SafeDumper):
    """Writes strings of several lines as blocks, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text.strip("\n") else None
    if _BREAKS.search(text):  # PyYAML escapes them only here
        style = '"'
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_Dumper.add_representer(str, _text)
