"""Reading settings: `midwatch.yaml`, overridden by the environment that is handed in."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from midwatch.errors import SettingsError
from midwatch.settings import DEFAULT_FILE, Settings

PREFIX = "MIDWATCH_"


def load(environ: Mapping[str, str], file: Path | None = None) -> Settings:
    """The settings from a YAML file, overridden by MIDWATCH_… variables of `environ`.

    Without `file` the one that MIDWATCH_CONFIG names is read, else `midwatch.yaml` where
    there is one. Raises SettingsError naming the setting and what to do about it.
    """
    named = file or (
        Path(environ["MIDWATCH_CONFIG"]) if environ.get("MIDWATCH_CONFIG") else None
    )
    written = _read_yaml(named or Path(DEFAULT_FILE), must_exist=named is not None)
    variables = {
        name: value
        for name, value in environ.items()
        if name.upper().startswith(PREFIX) and name.upper() != "MIDWATCH_CONFIG"
    }
    overridden = _override(_expand(written, environ, ""), variables)
    try:
        return Settings.model_validate(overridden)
    except ValidationError as error:
        raise _naming_variable(explain(error, Settings), variables) from None


# ------------------------------------------------------------------ the environment


def _override(written: dict[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """`written` with MIDWATCH_AGENT__POLL_INTERVAL and its like laid over it.

    The variable of a whole group holds JSON; those of its parts come after it.
    """
    for name in sorted(variables, key=lambda name: len(_parts(name))):
        parts = _parts(name)
        annotation = _annotation_at(name, parts)
        value = _variable_value(name, variables[name], annotation)
        written = _laid_over(written, parts, value)
    return written


def _parts(name: str) -> list[str]:
    return name[len(PREFIX) :].lower().split("__")


def _annotation_at(name: str, parts: list[str]) -> Any:
    """The type of the setting that a variable names; a misspelt one would be ignored in silence."""
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
    """A variable's text as the setting wants it: groups, lists and mappings are JSON."""
    if value == "null" and NoneType in get_args(annotation):
        return None
    is_group = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    if not is_group and get_origin(annotation) not in (list, dict):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise SettingsError(
            "is not valid JSON",
            path=name,
            hint="groups and lists in a variable are written as JSON",
        ) from None


def _laid_over(base: Any, parts: list[str], value: Any) -> dict[str, Any]:
    """A copy of `base` with `value` at the path `parts`; mappings are merged."""
    present = dict(base) if isinstance(base, Mapping) else {}
    first, rest = parts[0], parts[1:]
    under = present.get(first)
    if rest:
        present[first] = _laid_over(under, rest, value)
    elif isinstance(value, dict) and isinstance(under, Mapping):
        present[first] = {**under, **value}
    else:
        present[first] = value
    return present


def _naming_variable(
    error: SettingsError, variables: Mapping[str, str]
) -> SettingsError:
    """The error, under the variable's name where the wrong value came from one."""
    for name in variables:
        if error.path == ".".join(_parts(name)):
            said = error.message.removeprefix(f"{error.path}: ")
            path = f"{name} ({error.path})"
            return SettingsError(said, path=path, hint=error.hint)
    return error


# ------------------------------------------------------------------ the file


def _read_yaml(file: Path, *, must_exist: bool) -> dict[str, Any]:
    if not must_exist and not file.exists():
        return {}
    import yaml

    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"there is no settings file {file}",
            hint="check --config or MIDWATCH_CONFIG",
        ) from None
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise SettingsError(f"{file} is not valid YAML: {where}") from None
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(
        isinstance(key, str) for key in document
    ):
        raise SettingsError(f"{file} must hold names and values, such as `database: …`")
    return document


_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _expand(value: Any, environ: Mapping[str, str], path: str) -> Any:
    """Put variables of the environment where the file says ${NAME}; so secrets can stay out of it."""
    if isinstance(value, dict):
        return {
            name: _expand(inner, environ, f"{path}.{name}".lstrip("."))
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [
            _expand(inner, environ, f"{path}[{index}]")
            for index, inner in enumerate(value)
        ]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in environ:
            raise SettingsError(
                f"the environment has no {name}",
                path=path,
                hint=f"set {name}, or write $ without braces",
            )
        return environ[name]

    return _REFERENCE.sub(replacement, value)


# ------------------------------------------------------------------ what is wrong


def explain(
    error: ValidationError, model: type[BaseModel], path: str = ""
) -> SettingsError:
    """The first problem of a validation as one line: where, what, and what to write instead."""
    problem = error.errors(include_input=False, include_url=False)[0]
    where = path
    for part in problem["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}"
    where = where.lstrip(".")
    if problem["type"] == "extra_forbidden":
        last = str(problem["loc"][-1])
        fields = _fields_at(model, problem["loc"][:-1])
        return SettingsError("unknown setting", path=where, hint=_suggest(last, fields))
    said = problem["msg"].removeprefix("Value error, ")
    said = said[:1].lower() + said[1:]
    return SettingsError(said, path=where, hint=_meaning(model, problem["loc"]))


def _meaning(model: type[BaseModel], path: tuple[int | str, ...]) -> str:
    """What the setting at `path` is for, and its default; or where that is written."""
    field = _fields_at(model, path[:-1]).get(str(path[-1])) if path else None
    if field is None or not field.description:
        return "see docs/settings.md"
    default = field.get_default()
    known = not field.is_required() and isinstance(default, (str, int, float))
    said = str(field.description).rstrip(".")
    return f"{said}; default {default}" if known else said


def _fields_at(
    model: type[BaseModel], path: tuple[int | str, ...]
) -> Mapping[str, Any]:
    current: Any = model
    for part in path:
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            return {}
        current = fields[part].annotation
    return getattr(current, "model_fields", {})


def _suggest(name: str, fields: Mapping[str, Any]) -> str:
    known = [field.alias or key for key, field in fields.items()]
    near = difflib.get_close_matches(name, known, 1)
    if near:
        return f"did you mean {near[0]}?"
    return f"known here: {', '.join(known)}" if known else "see docs/settings.md"
