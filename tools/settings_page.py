"""`python -m tools.settings_page docs/settings.md`: generate the page of all settings."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from midwatch.cli.stats import known_invariants, limit, load_kinds, row, unit
from midwatch.config import format_setting
from midwatch.model import Invariant
from midwatch.settings import Group, InvariantSettings, Settings, SubjectSettings
from midwatch.settings_file import PREFIX
from midwatch.units import parse_duration, parse_listen, parse_ratio, parse_size

_HEAD = """\
# Settings

*Written by `make docs` from the code; a test keeps it current.*

Settings come from `midwatch.yaml` in the folder where Midwatch starts, or from the file that
`--config` or `MIDWATCH_CONFIG` names. Environment variables override the file: the name of the
setting in capitals, its parts joined by two underscores. A variable of a whole group or list
holds JSON. In the file, `${NAME}` stands for the variable NAME, so that a secret can stay out of it.

Durations are written like `500ms`, `10s`, `1h30m`, `2d`; shares like `90%` or `0.9`; sizes like
`500MB` (powers of 1000) or `2GiB` (of 1024). A setting that is unknown or wrong ends the command
with one line that names it.

More variables are read as `anthropic.Anthropic()` reads them: `ANTHROPIC_API_KEY` (the key), `ANTHROPIC_BASE_URL` (another
address than Anthropic's own), and those for gateways, proxies and clouds in [providers.md](providers.md). `XDG_STATE_HOME` and
`XDG_CACHE_HOME` move the default folders, and `NO_COLOR` turns off colours on the terminal.
"""


def main(arguments: Sequence[str]) -> int:
    """Write the page to the named file, or to standard output."""
    page = settings_page()
    if arguments:
        Path(arguments[0]).write_text(page, encoding="utf-8")
    else:
        sys.stdout.write(page)
    return 0


def settings_page() -> str:
    """Return the page as Markdown."""
    return "\n".join([_HEAD, *_groups(), *_subjects(), *_invariants()]) + "\n"


def _groups() -> Iterator[str]:
    yield "## Top level\n"
    plain = {
        name: field
        for name, field in Settings.model_fields.items()
        if not _is_group(field.annotation)
    }
    yield from _table(plain, PREFIX)
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if _is_group(group):
            assert isinstance(group, type) and issubclass(group, BaseModel)
            yield f"\n## `{name}`\n\n{_doc(group)}\n"
            yield from _table(group.model_fields, f"{PREFIX}{name.upper()}__")
            yield from _parts(dict(group.model_fields), f"{name}: ")
        for entry in () if _is_group(group) else _groups_in(group):
            yield f"\n## `{name}`\n\nA list. {_doc(entry)}\n"
            yield from _table(entry.model_fields)
            yield from _parts(dict(entry.model_fields), f"{name}: ")


def _subjects() -> Iterator[str]:
    yield "\n## `subjects`\n\nA list; each entry has these settings and those of its kind.\n"
    yield from _table(SubjectSettings.model_fields)
    yield from _parts(
        {"repositories": SubjectSettings.model_fields["repositories"]}, ""
    )
    yield "\n### `subjects[].invariants.ID`\n\n" + _doc(InvariantSettings) + "\n"
    yield from _table(InvariantSettings.model_fields)
    for kind in load_kinds():
        model: type[BaseModel] = kind.settings_model
        yield f"\n### kind `{kind.kind}`\n\n{_doc(model)}\n"
        own = {
            name: field
            for name, field in model.model_fields.items()
            if name not in SubjectSettings.model_fields
            or field.default != SubjectSettings.model_fields[name].default
            and name != "kind"
        }
        yield from _table(own)
        yield from _parts(own, f"{kind.kind}: ")


def _parts(fields: dict[str, FieldInfo], prefix: str) -> Iterator[str]:
    """Yield the tables of groups inside lists or mappings of a kind's settings."""
    for name, field in fields.items():
        for group in _groups_in(field.annotation):
            yield f"\n#### {prefix}`{name}`\n\n{_doc(group)}".rstrip("\n") + "\n"
            yield from _table(group.model_fields)
            yield from _parts(dict(group.model_fields), prefix)


def _groups_in(annotation: Any) -> list[type[Group]]:
    if _is_group(annotation):
        return [annotation]
    return [group for inner in get_args(annotation) for group in _groups_in(inner)]


def _invariants() -> Iterator[str]:
    yield "\n## Invariants\n\nWhat each kind of subject watches (`midwatch invariants`)."
    for kind, invariants in known_invariants():
        yield f"\n### {kind}\n"
        if not invariants:
            yield "None of its own: what it watches is in its settings."
            continue
        yield "| id | unit | broken when | for | severity | what holds | `ignore` by |"
        yield "|---|---|---|---|---|---|---|"
        yield from map(_invariant, invariants)


def _invariant(one: Invariant) -> str:
    id_, _, held, severity, what = row(one)
    cells = (f"`{id_}`", unit(one), limit(one), held, severity, what, _ignore(one))
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _ignore(one: Invariant) -> str:
    """Return the attributes that `ignore` takes, and what it leaves out by default."""
    if not one.about:
        return "–"
    names = ", ".join("any name" if name == "*" else f"`{name}`" for name in one.about)
    entries = (
        ", ".join(f"{name}: {pattern!r}" for name, pattern in entry.items())
        for entry in one.ignore
    )
    default = ", ".join(f"`{{{entry}}}`" for entry in entries)
    return f"{names}; by default {default}" if default else names


# ------------------------------------------------------------------ tables


def _table(fields: dict[str, FieldInfo], prefix: str = "") -> Iterator[str]:
    """Yield one row a setting; with a `prefix`, also the variable that overrides it."""
    if not fields:
        yield "Nothing more."
        return
    variable = " variable |" if prefix else ""
    yield f"| setting | type | default | what it is |{variable}"
    yield "|---|---|---|---|" + ("---|" if prefix else "")
    for name, field in fields.items():
        cells = [
            f"`{field.alias or name}`",
            _type(field),
            _default(field),
            field.description or "",
        ]
        if prefix:
            cells.append(f"`{prefix}{name.upper()}`")
        yield "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _doc(model: type[BaseModel]) -> str:
    """Return the model's own docstring; pydantic's models inherit none."""
    return " ".join((model.__doc__ or "").split())


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


# By the function that reads a value (`midwatch.units`).
_READ_BY: dict[Any, str] = {
    parse_duration: "duration",
    parse_listen: "HOST:PORT",
    parse_size: "size",
    parse_ratio: "share",
}
_PLAIN: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    SecretStr: "secret text",
    types.NoneType: "null",
    Any: "anything",
}


def _type(field: FieldInfo) -> str:
    """Return a field's type in plain words."""
    for one in field.metadata:
        if known := _READ_BY.get(getattr(one, "func", None)):
            return known
    return _words(field.annotation)


def _words(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is Annotated:
        known = (_READ_BY.get(getattr(one, "func", None)) for one in inner[1:])
        return next(filter(None, known), None) or _words(inner[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, inner))
    if origin is dict:
        return "mapping"
    if origin in (list, tuple, set, frozenset):
        return f"list of {_words(inner[0])}" if inner else "list"
    return "group" if _is_group(annotation) else "text"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    return "–" if default is None else _value(default, field)


def _value(value: Any, field: FieldInfo) -> str:
    """Return a default as it is written in the file."""
    if _is_group(type(value)) or value in ([], {}, ()):
        return "empty"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(one, field) for one in value)
    return f"`{format_setting(value, field)}`"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
