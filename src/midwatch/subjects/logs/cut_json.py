"""Objects of JSON of which the end is missing: what can be read of them. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

_DECODE = json.JSONDecoder().raw_decode
_DEEPEST = 5  # objects in objects
_SPACE = re.compile(r"[ \t\r\n]*")
_STRING = r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*'
_KEY = re.compile(rf'({_STRING}")[ \t\r\n]*:[ \t\r\n]*')
_CUT_STRING = re.compile(rf"({_STRING})(?:\\(?:u[0-9a-fA-F]{{0,3}})?)?")
_CUT_SCALAR = re.compile(r"[-+.\w]*")


def cut_object(text: str) -> dict[str, Any] | None:
    """Return the members of an object that ends before its closing brace.

    Args:
        text: What is there of it, from its opening brace on.

    Returns:
        The complete members, and of one that is cut the beginning of its text, or the members of its object that can be read. None if
        the text is no such object: it is complete, or is wrong before its end.
    """
    return _members(text, 0, _DEEPEST) if text[:1] == "{" else None


def _members(text: str, start: int, depth: int) -> dict[str, Any] | None:
    read: dict[str, Any] = {}
    at, size = _SPACE.match(text, start + 1).end(), len(text)  # type: ignore[union-attr]
    while key := _KEY.match(text, at):
        name = json.loads(key[1])
        try:
            value, at = _DECODE(text, key.end())
        except (ValueError, RecursionError):
            value, is_cut = _beginning(text, key.end(), depth)
            if value is not None:
                read[name] = value
            return read if is_cut else None
        if text[at - 1] not in '"}]' and _CUT_SCALAR.fullmatch(text, at):
            return read  # a number may go on
        read[name] = value
        after = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if after == size:
            return read
        if text[after] != ",":
            return None
        at = _SPACE.match(text, after + 1).end()  # type: ignore[union-attr]
    ends = at == size or _CUT_STRING.fullmatch(text, at) is not None
    return read if ends or _is_key(text, at) else None


def _is_key(text: str, at: int) -> bool:
    """Return whether a text ends between a name and its value."""
    try:
        name, at = _DECODE(text, at)
    except (ValueError, RecursionError):
        return False
    return isinstance(name, str) and not text[at:].strip(" \t\r\n")


def _beginning(text: str, at: int, depth: int) -> tuple[Any, bool]:
    """Return what can be read of a value, None if nothing can, and whether the end of the text cuts it."""
    first = text[at : at + 1]
    if first == '"' and (found := _CUT_STRING.fullmatch(text, at)):
        shown = json.loads(found[1] + '"')
        return (None if shown.isdecimal() else shown), True
    if first == "{" and depth:
        read = _members(text, at, depth - 1)
        return read, read is not None
    return None, first in "{[" or _CUT_SCALAR.fullmatch(text, at) is not None
