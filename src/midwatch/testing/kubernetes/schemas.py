"""Kubernetes' own schemas over the built-in kinds: what is unknown or of a wrong type is refused.

As with `fieldValidation=Strict`; a real server without that parameter drops unknown fields with a warning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from referencing import Registry, Resource

from midwatch.model import Json

from .kinds import Kind
from .refusals import Cause, Refused, invalid

VERSION = "1.37"
"""The release whose schemas are used; `/version` says the same."""


def validate(kind: Kind, document: Json) -> None:
    """Raises Refused: 400 for what cannot be decoded, 422 for what is missing."""
    missing: list[Cause] = []
    for error in _errors(kind, document):
        path = dotted(error.absolute_path)
        if error.validator == "required":
            missing += _required(error, path)
        else:
            raise Refused(400, _undecodable(kind, path, error))
    if missing:
        name = document["metadata"].get("name", "")
        raise invalid(kind.kind, kind.group, name, list(dict.fromkeys(missing)))


def dotted(path: Iterable[str | int]) -> str:
    """`spec.containers[0].name`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _errors(kind: Kind, document: Json) -> Iterable[Any]:
    found: Iterable[Any] = _validator(kind.kind, kind.group, kind.version).iter_errors(
        document
    )
    return found


def _required(error: Any, path: str) -> list[Cause]:
    absent = [name for name in error.validator_value if name not in error.instance]
    return [
        Cause(
            f"{path}.{name}" if path else name, "Required value", "FieldValueRequired"
        )
        for name in absent
    ]


def _undecodable(kind: Kind, path: str, error: Any) -> str:
    begin = (
        f"{kind.kind} in version {kind.version!r} cannot be handled as a {kind.kind}: "
    )
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        fields = [name for name in error.instance if name not in known]
        where = f"{path}.{fields[0]}" if path else fields[0]
        return f'{begin}strict decoding error: unknown field "{where}"'
    return f"{begin}{path}: {error.message[:300]}"


@cache
def _folder() -> Any:
    """Of the newest schemas of the wanted release."""
    schemas = files("kubernetes_validate") / "kubernetes-json-schema"
    return next(
        entry
        for entry in schemas.iterdir()
        if entry.name.startswith(f"v{VERSION}.") and entry.name.endswith("-strict")
    )


@cache
def _definitions() -> Resource[Any]:
    return Resource.from_contents(
        json.loads((_folder() / "_definitions.json").read_text("utf-8"))
    )


@cache
def _validator(kind: str, group: str, version: str) -> Any:
    """Compiled once per kind: reading the definitions costs 20 ms, a validation 2."""
    short = f"{group.partition('.')[0]}-" if group else ""
    name = f"{kind.lower()}-{short}{version}.json"
    schema = json.loads((_folder() / name).read_text("utf-8"))
    registry = _definitions() @ (Resource.from_contents(schema) @ Registry())
    return Draft202012Validator(schema, registry=registry)
