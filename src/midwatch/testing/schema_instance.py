"""A small instance of a JSON schema: the default answer to a request for structured output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

_FORMATS = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT1S",
    "email": "scripted@example.com",
    "hostname": "scripted.example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_TEXT = "scripted"
_MAX_DEPTH = 64


def smallest_instance(schema: Schema) -> Any:
    """Return a value that fits `schema`: only required properties, the shortest lists allowed.

    Covers what the API's structured outputs allow (`$ref`, `anyOf`, `allOf`, `enum`, `const`,
    formats) and the usual bounds; `pattern` and `not` are ignored. Raises ValueError for
    a schema that requires infinite nesting.
    """
    return _Builder(schema).build(schema, 0)


class _Builder:
    def __init__(self, root: Schema) -> None:
        self._root = root

    def build(self, schema: Schema, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("the schema requires infinite nesting")
        schema = self._resolved(schema, depth)
        for fixed in ("const", "default"):
            if fixed in schema:
                return schema[fixed]
        if schema.get("enum"):
            return schema["enum"][0]
        for choice in ("anyOf", "oneOf"):
            if schema.get(choice):
                return self._first_that_ends(schema[choice], depth)
        return self._of_type(schema, depth)

    def _resolved(self, schema: Schema, depth: int) -> Schema:
        """Return the schema with its reference resolved and its `allOf` merged."""
        merged = dict(schema)
        others = list(merged.pop("allOf", []))
        if "$ref" in merged:
            others.append(self._target(str(merged.pop("$ref"))))
        if others and depth > _MAX_DEPTH:
            raise ValueError("the schema requires infinite nesting")
        for other in others:
            other = self._resolved(other, depth + 1)
            properties = {**other.get("properties", {}), **merged.get("properties", {})}
            required = [*other.get("required", []), *merged.get("required", [])]
            merged = {**other, **merged, "properties": properties, "required": required}
        return merged

    def _target(self, reference: str) -> Schema:
        node: Any = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(node, Mapping) or step not in node:
                raise ValueError(f"the schema has no {reference}")
            node = node[step]
        return node if isinstance(node, Mapping) else {}

    def _first_that_ends(self, choices: list[Schema], depth: int) -> Any:
        for choice in choices[:-1]:
            try:
                return self.build(choice, depth + 1)
            except ValueError:
                continue
        return self.build(choices[-1], depth + 1)

    def _of_type(self, schema: Schema, depth: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "null")
        if isinstance(kind, list):
            kind = kind[0] if kind else "null"
        if kind == "object":
            properties = schema.get("properties", {})
            return {
                name: self.build(properties.get(name, {}), depth + 1)
                for name in schema.get("required", [])
            }
        if kind == "array":
            item = schema.get("items", {})
            count = schema.get("minItems", 0)
            return [self.build(item, depth + 1) for _ in range(count)]
        if kind == "string":
            return _string(schema)
        if kind in ("integer", "number"):
            return _number(schema)
        return False if kind == "boolean" else None


def _string(schema: Schema) -> str:
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    text = _TEXT.ljust(schema.get("minLength", 0), ".")
    return text[: schema.get("maxLength", len(text))]


def _number(schema: Schema) -> int | float:
    step = schema.get("multipleOf", 1)
    low = schema.get("minimum")
    if "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + step
    high = schema.get("maximum")
    if "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - step
    value: int | float = 0
    if low is not None and low > 0:
        value = -(-low // step) * step
    if high is not None and high < value:
        value = high // step * step
    return int(value) if schema.get("type") == "integer" else value
