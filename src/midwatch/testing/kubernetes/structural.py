"""Structural schemas of custom resources: pruning, defaults, validation.

The subset that `apiextensions.k8s.io/v1` allows, in the order the API server applies it.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from datetime import date, datetime
from typing import Any
from urllib.parse import urlsplit

from midwatch.model import Json

from .refusals import Cause

TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "integer": lambda v: _number(v) and float(v).is_integer(),
    "number": lambda v: _number(v),
}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def pruned(value: Any, schema: Json, keep: frozenset[str] = frozenset()) -> Any:
    """A copy without fields that the schema does not name; `keep` are spared at this level."""
    if isinstance(value, list):
        items = schema.get("items", {})
        return [pruned(item, items) for item in value]
    if not isinstance(value, dict):
        return value
    kept: Json = {}
    for name, inner in value.items():
        below = field(schema, name)
        if below is not None:
            kept[name] = pruned(inner, below)
        elif name in keep or schema.get("x-kubernetes-preserve-unknown-fields"):
            kept[name] = copy.deepcopy(inner)
    return kept


def field(schema: Json, name: str) -> Json | None:
    """The schema of one field of an object; None if it has none."""
    found: Json | None = schema.get("properties", {}).get(name)
    if found is None:
        extra = schema.get("additionalProperties")
        found = extra if isinstance(extra, dict) else {} if extra is True else None
    if found is None and schema.get("x-kubernetes-embedded-resource"):
        found = _EMBEDDED.get(name)
    return found


_EMBEDDED: dict[str, Json] = {
    "apiVersion": {"type": "string"},
    "kind": {"type": "string"},
    "metadata": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
}


def fill(value: Any, schema: Json) -> None:
    """Put defaults in, in place; a null that may not be one counts as absent."""
    if isinstance(value, list):
        for item in value:
            fill(item, schema.get("items", {}))
        return
    if not isinstance(value, dict):
        return
    for name, below in schema.get("properties", {}).items():
        absent = name not in value or (value[name] is None and not _nullable(below))
        if absent and "default" in below:
            value[name] = copy.deepcopy(below["default"])
        elif absent:
            value.pop(name, None)
    for name, inner in value.items():
        fill(inner, field(schema, name) or {})


def _nullable(schema: Json) -> bool:
    return bool(
        schema.get("nullable") or schema.get("x-kubernetes-preserve-unknown-fields")
    )


def faults(value: Any, schema: Json, path: str = "") -> Iterator[Cause]:
    """What is wrong, field by field, worded as the API server does. Without CEL rules."""
    if value is None and schema.get("nullable"):
        return
    wanted = schema.get("type")
    if schema.get("x-kubernetes-int-or-string"):
        if not (TYPES["integer"](value) or isinstance(value, str)):
            yield _mistyped(value, "integer,string", path)
            return
    elif wanted and not TYPES[wanted](value):
        yield _mistyped(value, wanted, path)
        return
    yield from _limits(value, schema, path)
    yield from _combined(value, schema, path)
    if isinstance(value, dict):
        yield from _object(value, schema, path)
    elif isinstance(value, list):
        yield from _array(value, schema, path)


def _mistyped(value: Any, wanted: str, path: str) -> Cause:
    message = f'Invalid value: "{_type_of(value)}": {path} in body must be of type {wanted}: "{_type_of(value)}"'
    return Cause(path, message, "FieldValueTypeInvalid")


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    return next(name for name, test in TYPES.items() if test(value))


def _limits(value: Any, schema: Json, path: str) -> Iterator[Cause]:
    if "enum" in schema and value not in schema["enum"]:
        known = ", ".join(f'"{entry}"' for entry in schema["enum"])
        said = f"Unsupported value: {_shown(value)}: supported values: {known}"
        yield Cause(path, said, "FieldValueNotSupported")
    if isinstance(value, str):
        yield from _string(value, schema, path)
    elif _number(value):
        yield from _numeric(value, schema, path)


def _body(value: Any, path: str, what: str) -> Cause:
    return Cause(path, f"Invalid value: {_shown(value)}: {path} in body should {what}")


def _shown(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 200 else text[:200] + "…"


def _string(value: str, schema: Json, path: str) -> Iterator[Cause]:
    if len(value) < schema.get("minLength", 0):
        yield _body(value, path, f"be at least {schema['minLength']} chars long")
    if len(value) > schema.get("maxLength", math.inf):
        said = f"Too long: may not be more than {schema['maxLength']} bytes"
        yield Cause(path, said, "FieldValueTooLong")
    if "pattern" in schema and not re.search(schema["pattern"], value, re.ASCII):
        yield _body(value, path, f"match '{schema['pattern']}'")
    if not FORMATS.get(schema.get("format", ""), _any)(value):
        said = f"Invalid value: {_shown(value)}: {path} in body must be of type {schema['format']}: {_shown(value)}"
        yield Cause(path, said)


def _any(value: str) -> bool:
    return True


def _reads(parse: Callable[[str], object]) -> Callable[[str], bool]:
    def test(value: str) -> bool:
        try:
            parse(value)
        except ValueError:
            return False
        return True

    return test


FORMATS: dict[str, Callable[[str], bool]] = {
    "date-time": _reads(
        lambda v: datetime.fromisoformat(v) if "T" in v else datetime.strptime(v, "T")
    ),
    "date": _reads(date.fromisoformat),
    "uri": lambda v: bool(urlsplit(v).scheme) or v.startswith("/"),
    "duration": lambda v: bool(
        re.fullmatch(r"([+-]?\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+", v)
    ),
}
"""Formats that are looked at; the API server ignores unknown ones as well."""


def _numeric(value: float, schema: Json, path: str) -> Iterator[Cause]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and (
        value <= low if schema.get("exclusiveMinimum") else value < low
    ):
        beside = "" if schema.get("exclusiveMinimum") else " or equal to"
        yield _body(value, path, f"be greater than{beside} {low}")
    if high is not None and (
        value >= high if schema.get("exclusiveMaximum") else value > high
    ):
        beside = "" if schema.get("exclusiveMaximum") else " or equal to"
        yield _body(value, path, f"be less than{beside} {high}")
    step = schema.get("multipleOf")
    if step and not math.isclose(value / step, round(value / step)):
        yield _body(value, path, f"be a multiple of {step}")
    bits = {"int32": 31, "int64": 63}.get(schema.get("format", ""))
    if bits and not -(2**bits) <= value < 2**bits:
        yield _body(value, path, f"be of type {schema['format']}")


def _combined(value: Any, schema: Json, path: str) -> Iterator[Cause]:
    """The logic keywords; inside them only values are looked at, as in Kubernetes."""
    for below in schema.get("allOf", ()):
        yield from faults(value, below, path)
    for name, amount in (("anyOf", "at least one"), ("oneOf", "one and only one")):
        choices = schema.get(name, ())
        fitting = sum(_fits(value, one, path) for one in choices)
        if choices and (fitting != 1 if name == "oneOf" else not fitting):
            said = f"{path} in body must validate {amount} schema ({name})"
            yield Cause(path, f"Invalid value: {_shown(value)}: {said}")
    if "not" in schema and _fits(value, schema["not"], path):
        said = f"{path} in body must not validate the schema (not)"
        yield Cause(path, f"Invalid value: {_shown(value)}: {said}")


def _fits(value: Any, schema: Json, path: str) -> bool:
    return next(faults(value, schema, path), None) is None


def _object(value: Json, schema: Json, path: str) -> Iterator[Cause]:
    for name in schema.get("required", ()):
        if name not in value:
            yield Cause(_join(path, name), "Required value", "FieldValueRequired")
    yield from _amount(value, schema, path, "Properties", "properties")
    for name, inner in value.items():
        below = field(schema, name)
        if below is not None:
            yield from faults(inner, below, _join(path, name))


def _array(value: list[Any], schema: Json, path: str) -> Iterator[Cause]:
    yield from _amount(value, schema, path, "Items", "items")
    for place, item in enumerate(value):
        yield from faults(item, schema.get("items", {}), f"{path}[{place}]")
    yield from _duplicates(value, schema, path)


def _amount(
    value: Any, schema: Json, path: str, word: str, unit: str
) -> Iterator[Cause]:
    if len(value) < schema.get(f"min{word}", 0):
        yield _body(len(value), path, f"have at least {schema[f'min{word}']} {unit}")
    if len(value) > schema.get(f"max{word}", math.inf):
        said = f"Too many: {len(value)}: must have at most {schema[f'max{word}']} items"
        yield Cause(path, said, "FieldValueTooMany")


def _duplicates(value: list[Any], schema: Json, path: str) -> Iterator[Cause]:
    kind = schema.get("x-kubernetes-list-type")
    if kind not in ("map", "set"):
        return
    seen: list[Any] = []
    for place, item in enumerate(value):
        key = item
        if kind == "map":
            key = {k: item.get(k) for k in schema["x-kubernetes-list-map-keys"]}
        if key in seen:
            said = f"Duplicate value: {key}"
            yield Cause(f"{path}[{place}]", said, "FieldValueDuplicate")
        seen.append(key)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
