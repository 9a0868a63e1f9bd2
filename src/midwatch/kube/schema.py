"""Short ways to write a structural schema of Kubernetes, and rules in CEL within it."""

from __future__ import annotations

from typing import Any

from ..model import Json


def rule(expression: str, message: str, path: str | None = None) -> Json:
    """A rule of `x-kubernetes-validations`; `path` is the field that is to blame."""
    written = {"rule": expression, "message": message}
    return {**written, "fieldPath": path} if path else written


def rules(*written: Json) -> Json:
    return {"x-kubernetes-validations": list(written)}


def text(description: str, most: int, **more: Any) -> Json:
    """At most so many characters. A rule's cost is estimated from it, so each text has a bound."""
    return {
        "type": "string",
        "description": description,
        "maxLength": most,
        **more,
    }


def whole(description: str, least: int = 0, **more: Any) -> Json:
    return {
        "type": "integer",
        "format": "int64",
        "description": description,
        "minimum": least,
        **more,
    }


def flag(description: str, **more: Any) -> Json:
    return {"type": "boolean", "description": description, "default": False, **more}


def instant(description: str) -> Json:
    return {"type": "string", "format": "date-time", "description": description}


def part(description: str, properties: Json, **more: Any) -> Json:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        **more,
    }


def listed(description: str, items: Json, most: int, **more: Any) -> Json:
    return {
        "type": "array",
        "description": description,
        "items": items,
        "maxItems": most,
        **more,
    }


def by_name(description: str, values: Json, most: int, **more: Any) -> Json:
    return {
        "type": "object",
        "description": description,
        "additionalProperties": values,
        "maxProperties": most,
        **more,
    }
