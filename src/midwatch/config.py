"""Read settings from `midwatch.yaml` and variables, and explain a wrong setting in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from midwatch.errors import SettingsError
from midwatch.settings import Settings
from midwatch.settings_file import PREFIX, expand, read_file
from midwatch.units import format_duration, format_size, parse_duration, parse_size

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def load(environ: Mapping[str, str], file: Path | None = None) -> Settings:
    """Return the settings of a YAML file, overridden by MIDWATCH_… variables of `environ`.

    Args:
        environ: The environment of the process.
        file: The file; without it the one that MIDWATCH_CONFIG names, else `midwatch.yaml`
            if it exists.

    Raises:
        SettingsError: A setting is wrong. `path` names it, `hint` says what to write.
    """
    written = read_file(environ, file)
    variables = {
        name: value
        for name, value in environ.items()
        if name.upper().startswith(PREFIX) and name.upper() != "MIDWATCH_CONFIG"
        if _is_meant(_parts(name))
    }
    overridden = _override(expand(written, environ, ""), variables)
    try:
        return Settings.model_validate(overridden)
    except ValidationError as error:
        raise _naming_variable(explain(error, Settings), variables) from None


# ------------------------------------------------------------------ the environment


def _override(written: dict[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """Return `written` overridden by variables such as MIDWATCH_AGENT__POLL_INTERVAL.

    The variable of a whole group holds JSON; variables of its parts override it.
    """
    for name in sorted(variables, key=lambda name: len(_parts(name))):
        parts = _parts(name)
        annotation = _annotation_at(name, parts)
        value = _variable_value(name, variables[name], annotation)
        written = _with_value(written, parts, value)
    return written


def _parts(name: str) -> list[str]:
    return name[len(PREFIX) :].lower().split("__")


_SERVICE_LINK = re.compile(
    r"_(service_(host|port(_.+)?)|port(_\d+_(tcp|udp|sctp)(_(proto|port|addr))?)?)$"
)
"""https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables"""


def _is_meant(parts: list[str]) -> bool:
    """Return whether a variable is meant for Midwatch, perhaps misspelt.

    Other programs have such names too: Kubernetes sets MIDWATCH_SERVICE_HOST for a Service named midwatch.
    """
    if len(parts) > 1:
        return True
    near = difflib.get_close_matches(parts[0], Settings.model_fields, 1)
    return bool(near) and not _SERVICE_LINK.search(parts[0])


def _annotation_at(name: str, parts: list[str]) -> Any:
    """Return the type of the setting that a variable names. Raises SettingsError for an unknown one."""
    current: Any = Settings
    for depth, part in enumerate(parts):
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            raise SettingsError(
                "unknown setting",
                path=f"{name} ({'.'.join(parts[: depth + 1])})",
                hint=_suggest(part, fields),
            )
        current = fields[part].annotation
    return current


def _variable_value(name: str, value: str, annotation: Any) -> Any:
    """Return the value of a variable: groups, lists and mappings are written as JSON."""
    if value == "null" and NoneType in get_args(annotation):
        return None
    is_group = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    if not is_group and get_origin(annotation) not in (list, dict):
        return value
    from midwatch.documents import DocumentError, read_json

    hint = "write groups and lists in a variable as JSON"
    try:
        return read_json(value)
    except DocumentError as error:
        raise SettingsError(error.message, path=name, hint=hint) from None


def _with_value(base: Any, parts: list[str], value: Any) -> dict[str, Any]:
    """Return a copy of `base` with `value` at the path `parts`; mappings are merged."""
    present = dict(base) if isinstance(base, Mapping) else {}
    first, rest = parts[0], parts[1:]
    under = present.get(first)
    if rest:
        present[first] = _with_value(under, rest, value)
    elif isinstance(value, dict) and isinstance(under, Mapping):
        present[first] = {**under, **value}
    else:
        present[first] = value
    return present


def _naming_variable(
    error: SettingsError, variables: Mapping[str, str]
) -> SettingsError:
    """Return the error under the name of the variable that the wrong value came from."""
    for name in variables:
        if error.path == ".".join(_parts(name)):
            message = error.message.removeprefix(f"{error.path}: ")
            path = f"{name} ({error.path})"
            return SettingsError(message, path=path, hint=error.hint)
    return error


# ------------------------------------------------------------------ what is wrong


def explain(
    error: ValidationError,
    model: type[BaseModel],
    path: str = "",
    what: str = "setting",
) -> SettingsError:
    """Return the first problem of a validation as one line: the setting, its value, what is allowed.

    Args:
        error: What pydantic raised.
        model: The model that refused the values.
        path: Where the values stand, such as `subjects[0]`.
        what: What the model's fields are for the reader, such as "field" of a document.
    """
    problems = error.errors(include_url=False)
    # A misspelt name explains why the right one is missing.
    problems.sort(key=lambda problem: problem["type"] == "missing")
    return explain_problem(problems[0], model, path, what)


def explain_problem(
    problem: ErrorDetails,
    model: type[BaseModel],
    path: str = "",
    what: str = "setting",
) -> SettingsError:
    """Return one problem of a validation, as `explain` does."""
    kind, loc = problem["type"], problem["loc"]
    field, parts = _locate(model, loc)
    where = path
    for part in parts:
        where += f"[{part}]" if isinstance(part, int) else f".{part}"
    where = where.lstrip(".")
    if kind == "extra_forbidden":
        known = _fields_at(model, loc[:-1])
        return SettingsError(
            f"unknown {what}", path=where, hint=_suggest(str(loc[-1]), known)
        )
    shown = _shown(problem["input"], field, parts)
    values = {**problem.get("ctx", {}), "value": shown, "what": what}
    for bound in ("gt", "ge", "lt", "le"):
        if bound in values:
            values[bound] = format_setting(values[bound], field)
    message = PROBLEMS.get(kind, _UNKNOWN_PROBLEM).format_map(values)
    message = _LONG_VALUE.sub(r"\1…\2", message)
    return SettingsError(message, path=where, hint=_meaning(field))


_UNKNOWN_PROBLEM = "{value} is not valid"
PROBLEMS = {
    "bool_parsing": "{value} is not a truth value; use true or false",
    "bool_type": "{value} is not a truth value; use true or false",
    "dict_type": "{value} is not a mapping; use names and values such as {{name: value}}",
    "float_parsing": "{value} is not a number; use one such as 5 or 0.5",
    "float_type": "{value} is not a number; use one such as 5 or 0.5",
    "finite_number": "{value} is not a finite number; use one such as 5",
    "greater_than": "{value} is too small; use more than {gt}",
    "greater_than_equal": "{value} is too small; use {ge} or more",
    "int_from_float": "{value} is not a whole number; use one such as 5",
    "int_parsing": "{value} is not a whole number; use one such as 5",
    "int_parsing_size": "{value} has too many digits; use a whole number such as 5",
    "int_type": "{value} is not a whole number; use one such as 5",
    "invalid_key": "{value} is not a name of a {what}; put it in quotes",
    "less_than": "{value} is too large; use less than {lt}",
    "less_than_equal": "{value} is too large; use {le} or less",
    "list_type": "{value} is not a list; use one such as [a, b]",
    "literal_error": "{value} is not a choice; use {expected}",
    "missing": "is missing; this {what} is required",
    "model_type": "{value} is not a group of {what}s; use names and values such as {{name: value}}",
    "path_type": "{value} is not a path; use one such as /etc/midwatch/key",
    "string_pattern_mismatch": "{value} is not a name; use letters, digits, '.', '_' and '-', such as orders-db",
    "string_too_long": "{value} is too long; use at most {max_length} characters",
    "string_too_short": "{value} is too short; use at least {min_length} character(s)",
    "string_type": "{value} is not text; put text such as '5' in quotes",
    "string_unicode": "{value} is not UTF-8 text",
    "too_long": "the list has {actual_length} entries; use at most {max_length}",
    "too_short": "the list has {actual_length} entries; use at least {min_length}",
    "tuple_type": "{value} is not a list; use one such as [a, b]",
    "value_error": "{error}",
}
"""What to write for each error of pydantic that the settings models raise."""

_SECRET = re.compile(r"password|token|secret|key|auth|dsn|database|url|header|variable")
_MAX_SHOWN = 60  # characters of a value
_LONG_VALUE = re.compile(rf"('[^']{{{_MAX_SHOWN}}})[^']+(')")


def _shown(value: object, field: FieldInfo | None, parts: Sequence[int | str]) -> str:
    """Return a value for a message. One that may hold a secret is not repeated."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple, set)):
        return "a list"
    if value is None:
        return "null"
    if any(_SECRET.search(str(part).lower()) for part in parts):
        return "the value"
    if isinstance(value, (bool, int, float)) and abs(value) < 1e12:
        return format_setting(value, field)
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    shown = repr(text)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"


def format_setting(value: Any, field: FieldInfo | None) -> str:
    """Return a value of a setting as people write it in the file: `30s`, `2GB`, `true`, `0.5`."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (int, float)):
        return str(value)
    readers = {getattr(one, "func", None) for one in _metadata(field)}
    if parse_duration in readers:
        return format_duration(value).replace(" ", "") if value else "0s"
    if parse_size in readers:
        return format_size(value).replace(" ", "").replace(".0", "")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metadata(field: FieldInfo | None) -> Iterator[Any]:
    """Yield what annotates the field's type, also inside `Seconds | None`."""
    if field is None:
        return
    yield from field.metadata
    for inner in get_args(field.annotation):
        yield from getattr(inner, "__metadata__", ())


def _meaning(field: FieldInfo | None) -> str:
    """Return what the setting is for, and its default."""
    if field is None or not field.description:
        return "see docs/settings.md"
    meaning = field.description.rstrip(".")
    default = field.get_default()
    if field.is_required() or not isinstance(default, (str, int, float)):
        return meaning
    return f"{meaning}; default {format_setting(default, field)}"


def _locate(
    model: type[BaseModel], loc: Sequence[int | str]
) -> tuple[FieldInfo | None, list[int | str]]:
    """Return the last setting on the way to a problem, and the path to it as people write it.

    pydantic adds parts of its own: the member of a union, such as `float`, and `[key]`.
    """
    field: FieldInfo | None = None
    annotations: list[Any] = [model]
    parts: list[int | str] = []
    for part in loc:
        if part == "[key]":
            break
        if part in (fields := _fields_of(annotations)):
            field = fields[part]
            annotations = [field.annotation]
        elif entries := [_entry(one) for one in annotations if _has(one, part)]:
            annotations = entries
        elif fields:
            field = None
        else:
            continue
        parts.append(part)
        annotations = [one for each in annotations for one in _members(each)]
    return field, parts


_CONTAINERS = (list, dict, tuple)


def _has(annotation: Any, part: int | str) -> bool:
    """Return whether `part` may name an entry of a container of this type."""
    container = get_origin(annotation)
    return container is dict or container in _CONTAINERS and isinstance(part, int)


def _entry(container: Any) -> Any:
    """Return the type of a container's entries: of a mapping, that of its values."""
    arguments = get_args(container)
    return arguments[-1] if get_origin(container) is dict else arguments[0]


def _members(annotation: Any) -> list[Any]:
    """Return the types that a value may have, without what annotates them."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [one for member in get_args(annotation) for one in _members(member)]
    return [annotation]


def _fields_of(annotations: Sequence[Any]) -> dict[str | int, FieldInfo]:
    """Return the settings of those types that are groups, by their names in the file."""
    return {
        field.alias or name: field
        for one in annotations
        for name, field in getattr(one, "model_fields", {}).items()
    }


def _fields_at(
    model: type[BaseModel], loc: Sequence[int | str]
) -> Mapping[str | int, FieldInfo]:
    """Return the settings of the group at `loc`."""
    field, _ = _locate(model, loc)
    if not loc:
        return _fields_of([model])
    inner = [] if field is None else _members(field.annotation)
    while inner and get_origin(inner[0]) in _CONTAINERS:
        inner = _members(_entry(inner[0]))
    return _fields_of(inner)


def _suggest(name: str, fields: Mapping[Any, Any]) -> str:
    known = [str(key) for key in fields]
    near = difflib.get_close_matches(name, known, 1)
    if near:
        return f"did you mean {near[0]}?"
    return f"known here: {', '.join(known)}" if known else "see docs/settings.md"
