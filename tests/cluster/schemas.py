"""Custom resources: their values against structural schemas and CEL rules, and the definitions themselves.

Structural schemas are the subset that `apiextensions.k8s.io/v1` allows: pruned, filled with defaults and validated in the
order in which the API server does it. CEL rules are those of `x-kubernetes-validations`, transition rules included.

Not as in a real cluster: rules are not type-checked against the schema when the definition is created, their
cost is not estimated, and of the CEL libraries of Kubernetes those of strings, sets, math and lists are there
(without `format`) and comparisons of `quantity`, not `url`, `ip`, `semver` and their like.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from datetime import date, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import cel
from cel.stdlib import STDLIB_FUNCTIONS

from midwatch.kube.rules import quantity
from midwatch.model import Json

from .errors import Cause
from .kinds import Kind

# ------------------------------------------------------------------ values against a structural schema

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


def value_faults(value: Any, schema: Json, path: str = "") -> Iterator[Cause]:
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
        yield from value_faults(value, below, path)
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
    return next(value_faults(value, schema, path), None) is None


def _object(value: Json, schema: Json, path: str) -> Iterator[Cause]:
    for name in schema.get("required", ()):
        if name not in value:
            yield Cause(_join(path, name), "Required value", "FieldValueRequired")
    yield from _amount(value, schema, path, "Properties", "properties")
    for name, inner in value.items():
        below = field(schema, name)
        if below is not None:
            yield from value_faults(inner, below, _join(path, name))


def _array(value: list[Any], schema: Json, path: str) -> Iterator[Cause]:
    yield from _amount(value, schema, path, "Items", "items")
    for place, item in enumerate(value):
        yield from value_faults(item, schema.get("items", {}), f"{path}[{place}]")
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


# ------------------------------------------------------------------ rules in CEL

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
    """What the rules refuse in `value`, which was `old` before if that is given.

    What has not changed is not asked about again, as Kubernetes ratchets since 1.33.
    """
    if value == old:
        return
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


# ------------------------------------------------------------------ definitions

_NEVER = (
    "$ref",
    "definitions",
    "dependencies",
    "deprecated",
    "id",
    "patternProperties",
)
_TYPELESS = (
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
)


def kinds_of(definition: Json) -> list[Kind]:
    """The kinds that a definition serves."""
    spec, names = definition["spec"], definition["spec"]["names"]
    return [
        Kind(
            group=spec["group"],
            version=version["name"],
            plural=names["plural"],
            kind=names["kind"],
            namespaced=spec["scope"] == "Namespaced",
            status="status" in version.get("subresources", {}),
            counts=True,
            short_names=tuple(names.get("shortNames", ())),
            categories=tuple(names.get("categories", ())),
            singular_name=names.get("singular", ""),
            crd=definition["metadata"]["name"],
        )
        for version in spec["versions"]
        if version["served"]
    ]


def schema_of(definition: Json, version: str) -> Json:
    """The structural schema of a version."""
    entry = next(v for v in definition["spec"]["versions"] if v["name"] == version)
    schema: Json = entry["schema"]["openAPIV3Schema"]
    return schema


def established(definition: Json, now: str) -> Json:
    """The status of a definition that is served."""
    names = dict(definition["spec"]["names"])
    names.setdefault("singular", names["kind"].lower())
    names.setdefault("listKind", f"{names['kind']}List")
    entries = [
        ("NamesAccepted", "NoConflicts", "no conflicts found"),
        ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
    ]
    return {
        "acceptedNames": names,
        "storedVersions": [
            v["name"] for v in definition["spec"]["versions"] if v["storage"]
        ],
        "conditions": [
            {
                "type": kind,
                "status": "True",
                "reason": reason,
                "message": message,
                "lastTransitionTime": now,
            }
            for kind, reason, message in entries
        ],
    }


def definition_faults(definition: Json) -> list[Cause]:
    """What the API server refuses in a definition, beyond its schema."""
    spec, causes = definition["spec"], []
    wanted = f"{spec['names']['plural']}.{spec['group']}"
    name = definition["metadata"].get("name")
    if name != wanted:
        said = f'Invalid value: "{name}": must be spec.names.plural+"."+spec.group'
        causes.append(Cause("metadata.name", said))
    if sum(bool(v.get("storage")) for v in spec["versions"]) != 1:
        said = "Invalid value: must have exactly one version marked as storage version"
        causes.append(Cause("spec.versions", said))
    for place, version in enumerate(spec["versions"]):
        path = f"spec.versions[{place}].schema.openAPIV3Schema"
        schema = version.get("schema", {}).get("openAPIV3Schema")
        if schema is None:
            causes.append(
                Cause(
                    path, "Required value: schemas are required", "FieldValueRequired"
                )
            )
        else:
            causes += _schema_faults(schema, path, root=True)
    return causes


def _schema_faults(schema: Json, path: str, root: bool = False) -> Iterator[Cause]:
    if root and schema.get("type") != "object":
        yield Cause(f"{path}.type", 'Invalid value: must be "object" at the root')
    elif "type" not in schema and not any(schema.get(key) for key in _TYPELESS):
        said = "Required value: must not be empty for specified object fields"
        yield Cause(f"{path}.type", said, "FieldValueRequired")
    for key in _NEVER:
        if key in schema:
            yield Cause(
                f"{path}.{key}", "Forbidden: must not be set", "FieldValueForbidden"
            )
    if schema.get("uniqueItems"):
        said = "Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        yield Cause(f"{path}.uniqueItems", said, "FieldValueForbidden")
    if "properties" in schema and "additionalProperties" in schema:
        said = "Forbidden: additionalProperties and properties are mutual exclusive"
        yield Cause(f"{path}.additionalProperties", said, "FieldValueForbidden")
    for place, rule in enumerate(schema.get("x-kubernetes-validations", ())):
        why = problem(rule)
        if why:
            at = f"{path}.x-kubernetes-validations[{place}].rule"
            yield Cause(at, f"Invalid value: {rule.get('rule')!r}: {why}")
    for at, below in _below(schema, path):
        yield from _schema_faults(below, at)


def _below(schema: Json, path: str) -> Iterator[tuple[str, Any]]:
    for name, below in schema.get("properties", {}).items():
        yield f"{path}.properties[{name}]", below
    if isinstance(schema.get("items"), dict):
        yield f"{path}.items", schema["items"]
    if isinstance(schema.get("additionalProperties"), dict):
        yield f"{path}.additionalProperties", schema["additionalProperties"]
