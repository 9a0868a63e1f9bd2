"""Label and field selectors, as text and as predicates."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from midwatch.model import Json

from .errors import Refused

Predicate = Callable[[Json], bool]

_SET = re.compile(r"^\s*(\S+)\s+(in|notin)\s*\(([^)]*)\)\s*$")
_EQUAL = re.compile(r"^\s*([^\s!=]+)\s*(==|=|!=)\s*([^\s=]*)\s*$")
_EXISTS = re.compile(r"^\s*(!?)\s*([^\s!=,()]+)\s*$")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_FIELD = re.compile(r"^([^!=]+?)(==|=|!=)(.*)$")

FIELDS = {
    "pods": {
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "status.phase",
    },
    "jobs": {"status.successful"},
    "events": {
        "involvedObject.kind",
        "involvedObject.name",
        "involvedObject.namespace",
        "involvedObject.uid",
        "reason",
        "type",
    },
    "secrets": {"type"},
    "namespaces": {"status.phase"},
}
"""Fields that can be selected by, beside a name and a namespace."""


def label_selector(text: str) -> Predicate | None:
    """A predicate over documents; None if the text selects all. Raises Refused (400)."""
    parts = [part for part in re.split(r",(?![^()]*\))", text) if part.strip()]
    tests = [_label_test(part) for part in parts]
    if not tests:
        return None
    return lambda document: all(test(_labels(document)) for test in tests)


def field_selector(text: str, plural: str) -> Predicate | None:
    """As `label_selector`, for `metadata.name` and the fields that the kind offers."""
    tests = [_field_test(part, plural) for part in text.split(",") if part]
    if not tests:
        return None
    return lambda document: all(test(document) for test in tests)


def named_by(text: str, field: str = "metadata.name") -> str:
    """The one name that a field selector asks for, or nothing."""
    for part in text.split(","):
        match = _FIELD.match(part)
        if match and match[1] == field and match[2] != "!=":
            return match[3]
    return ""


def _labels(document: Json) -> dict[str, str]:
    return document["metadata"].get("labels") or {}


def _checked(key: str, *values: str) -> str:
    """A key, with or without a prefix, if it and the values may stand in a label. Raises Refused (400)."""
    for name in (key.rpartition("/")[2], *filter(None, values)):
        if not _NAME.fullmatch(name):
            said = f"unable to parse requirement: {key!r} {values}: {name!r} is no part of a label"
            raise Refused(400, said)
    return key


def _label_test(part: str) -> Callable[[dict[str, str]], bool]:
    if match := _SET.match(part):
        operator = match[2]
        values = {value.strip() for value in match[3].split(",")}
        key = _checked(match[1], *values)
        if operator == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUAL.match(part):
        operator, value = match[2], match[3]
        key = _checked(match[1], value)
        if operator == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := _EXISTS.match(part):
        absent, key = bool(match[1]), _checked(match[2])
        return lambda labels: (key not in labels) == absent
    raise Refused(400, f"unable to parse requirement: {part!r}")


def _field_test(part: str, plural: str) -> Predicate:
    match = _FIELD.match(part)
    if match is None:
        raise Refused(400, f"invalid selector: {part!r}; can't understand {part!r}")
    path, operator, value = match[1], match[2], match[3]
    known = {"metadata.name", "metadata.namespace"} | FIELDS.get(plural, set())
    if path not in known:
        raise Refused(400, f"field label not supported: {path}")
    wanted, parts = operator != "!=", path.split(".")
    return lambda document: (_at(document, parts) == value) == wanted


def _at(document: Json, parts: Sequence[str]) -> str:
    found: Any = document
    for part in parts:
        found = found.get(part) if isinstance(found, dict) else None
    return "" if found is None else str(found)
