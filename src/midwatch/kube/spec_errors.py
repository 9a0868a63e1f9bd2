"""The first fault of a document that pydantic refused, in words of Kubernetes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from midwatch.kube.rules import MODEL, NO_NUL, OBJECT_NAME, SECRET_KEY

_PATTERNS = {
    MODEL: "not a valid model name: start with a letter or digit, and use no spaces",
    NO_NUL: "contains a NUL",
    OBJECT_NAME: "not a valid object name: use lower-case letters, digits, dashes and dots",
    SECRET_KEY: "not a valid key of a secret: use letters, digits, dots, dashes and underscores",
}
"""Messages for strings that do not match a pattern."""
_TYPES = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_type": "an object",
    "string_type": "a string",
    "tuple_type": "a list",
}
"""What a field takes, by pydantic's type of the error."""
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_NOT_SHOWN = frozenset({"podAnnotations", "prompt", "url", "variables"})
"""Fields whose values are not repeated: they are long, or may contain a credential."""


def first_fault(error: ValidationError) -> tuple[str, str]:
    """Return the path of the first wrong field, such as `.repos[0].name`, and the value and what is allowed."""
    first = error.errors(include_url=False)[0]
    # pydantic marks an error in the name of a map's entry by a last part `[key]`.
    is_key = first["loc"][-1:] == ("[key]",)
    place = first["loc"][:-2] if is_key else first["loc"]
    path = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in place)
    value = first["input"]
    shown = _shown(value) if is_key or not _NOT_SHOWN & set(place) else ""
    message = _fault(first["type"], value, shown, first.get("ctx", {}))
    return path, f"{shown} is {message}" if shown and message[:4] == "not " else message


def _fault(kind: str, value: Any, shown: str, context: Mapping[str, Any]) -> str:
    """Return what is wrong with a value, in no words of pydantic."""
    if kind in _TYPES:
        return f"not {_TYPES[kind]}"
    if kind in _BOUNDS:
        limit, words = _BOUNDS[kind]
        return f"is {shown or 'out of range'}: use {words} {context[limit]:.15g}"
    match kind:
        case "rule":
            return str(context["message"])
        case "value_error":
            return str(context["error"])
        case "missing":
            return "is missing"
        case "string_too_short" | "too_short":
            return "is empty: give at least one"
        case "string_too_long":
            return f"has {len(value)} characters: use at most {context['max_length']}"
        case "too_long":
            return f"has {len(value)} entries: use at most {context['max_length']}"
        case "literal_error":
            return f"not allowed: use {context['expected']}"
        case "string_pattern_mismatch":
            return _PATTERNS.get(context["pattern"], "not in the required form")
        case "string_unicode":
            return "contains characters that UTF-8 does not have"
        case "json_invalid":
            return "not valid JSON"
    return "not a valid value"


def _shown(value: Any) -> str:
    """Return a scalar as it is written in a document, shortened; empty for objects and lists."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value!r:.50}" if isinstance(value, str | int | float) else ""
