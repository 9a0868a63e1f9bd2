"""`x-kubernetes-validations`: CEL rules of a structural schema, transition rules included.

Not as in a real cluster: rules are not type-checked against the schema when the definition is created, their
cost is not estimated, and of the CEL libraries of Kubernetes those of strings, sets, math and lists are there
(without `format`) and comparisons of `quantity`, not `url`, `ip`, `semver` and their like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

import cel
from cel.stdlib import STDLIB_FUNCTIONS

from midwatch.kube.rules import quantity
from midwatch.model import Json

from .refusals import Cause
from .structural import field

ABSENT = object()
"""Where there is no earlier value."""


def _index_of(where: Any, what: Any, start: int = 0) -> int:
    """Of a part of a string, or of an item of a list."""
    if isinstance(where, str):
        return where.find(what, start)
    return where.index(what) if what in where else -1


def _last_index_of(where: Any, what: Any) -> int:
    if isinstance(where, str):
        return where.rfind(what)
    return len(where) - 1 - where[::-1].index(what) if what in where else -1


def _quantity(text: str) -> float:
    """Near enough to compare; CEL has no decimal numbers."""
    return float(quantity(text))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: f for name, f in STDLIB_FUNCTIONS.items() if name != "contains"},
    "indexOf": _index_of,
    "lastIndexOf": _last_index_of,
    "quantity": _quantity,
    "isGreaterThan": lambda one, other: one > other,
    "isLessThan": lambda one, other: one < other,
    "isSorted": lambda items: items == sorted(items),
    "find": lambda text, pattern: (re.search(pattern, text) or [""])[0],
    "findAll": lambda text, pattern: [m[0] for m in re.finditer(pattern, text)],
}
"""What Kubernetes adds to CEL, as far as it is here."""
_REASONS = {
    "FieldValueRequired": "Required value",
    "FieldValueForbidden": "Forbidden",
    "FieldValueDuplicate": "Duplicate value",
}


def broken(
    value: Any, schema: Json, old: Any = ABSENT, path: str = ""
) -> Iterator[Cause]:
    """What the rules refuse in `value`, which was `old` before if that is given."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield from _one(rule, value, schema, old, path)
    if isinstance(value, dict):
        for name, inner in value.items():
            below = field(schema, name)
            if below:
                was = old.get(name, ABSENT) if isinstance(old, dict) else ABSENT
                yield from broken(inner, below, was, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and "items" in schema:
        for place, item in enumerate(value):
            was = _matching(item, schema, old)
            yield from broken(item, schema["items"], was, f"{path}[{place}]")


def problem(rule: Json) -> str:
    """Why a rule cannot be used, or nothing."""
    for name in ("rule", "messageExpression"):
        if name in rule:
            try:
                _program(rule[name])
            except ValueError as error:
                return f"compilation failed: {error}"
    return "" if rule.get("rule") else "rule is not specified"


def _matching(item: Any, schema: Json, old: Any) -> Any:
    """The earlier self of an item: only a list of type map has one."""
    keys = schema.get("x-kubernetes-list-map-keys", ())
    if not keys or not isinstance(old, list) or not isinstance(item, dict):
        return ABSENT
    for was in old:
        if isinstance(was, dict) and all(was.get(k) == item.get(k) for k in keys):
            return was
    return ABSENT


def _one(rule: Json, value: Any, schema: Json, old: Any, path: str) -> Iterator[Cause]:
    program = _program(rule["rule"])
    variables = {"self": _converted(value, schema)}
    if "oldSelf" in program.variables():
        if rule.get("optionalOldSelf"):
            gone = old is ABSENT
            variables["oldSelf"] = (
                cel.OptionalValue.none()
                if gone
                else cel.OptionalValue.of(_converted(old, schema))
            )
        elif old is ABSENT:
            return
        else:
            variables["oldSelf"] = _converted(old, schema)
    try:
        context = cel.Context(variables, FUNCTIONS)
        passed, why = program.execute(context), _message(rule, context)
    except (ArithmeticError, RuntimeError, KeyError, TypeError, ValueError) as error:
        passed, why = False, f"rule evaluation error: {error}"
    if passed is not True:
        yield _cause(rule, value, path, why)


def _cause(rule: Json, value: Any, path: str, why: str) -> Cause:
    reason = rule.get("reason", "FieldValueInvalid")
    at = f"{path}{rule.get('fieldPath', '')}".lstrip(".")
    if reason in _REASONS:
        return Cause(at, f"{_REASONS[reason]}: {why}", reason)
    shown = str(value)
    if isinstance(value, (dict, list)):
        shown = "object" if isinstance(value, dict) else "array"
    return Cause(at, f'Invalid value: "{shown}": {why}', reason)


def _message(rule: Json, context: cel.Context) -> str:
    if "messageExpression" in rule:
        said = _program(rule["messageExpression"]).execute(context)
        if isinstance(said, str) and said.strip():
            return said
    return str(rule.get("message") or f"failed rule: {rule['rule']}")


@lru_cache(maxsize=1024)
def _program(text: str) -> cel.Program:
    return cel.compile(text)


def _converted(value: Any, schema: Json) -> Any:
    """As the type that the schema gives it in CEL: double for number, timestamp for date-time."""
    if isinstance(value, dict):
        return {
            _escaped(name): _converted(inner, field(schema, name) or {})
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_converted(item, schema.get("items", {})) for item in value]
    if schema.get("type") == "number" and isinstance(value, int):
        return float(value)
    if schema.get("format") == "date-time" and isinstance(value, str):
        return datetime.fromisoformat(value)
    return value


def _escaped(name: str) -> str:
    """How a field's name is written in CEL."""
    for said, meant in (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__")):
        name = name.replace(said, meant)
    return name.replace("/", "__slash__")
