"""A script as a JSON file: rules, answers and faults as plain data (format: `messages_api`)."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs

from midwatch.documents import MAX_BYTES, DocumentError, read_json
from midwatch.errors import SettingsError
from midwatch.testing import messages_script as script
from midwatch.testing.messages_script import Answer, Hold, Rule
from midwatch.testing.messages_wire import Reply

FAULTS: Mapping[str, Callable[..., Reply]] = {
    "bad_request": script.bad_request,
    "context_window_exceeded": script.context_window_exceeded,
    "cut": script.Cut,
    "cut_by_max_tokens": script.cut_by_max_tokens,
    "delay": script.Delay,
    "drip": script.Drip,
    "empty_body": script.empty_body,
    "error": script.Error,
    "forbidden": script.forbidden,
    "garbled": script.Garbled,
    "hang": script.Hang,
    "html_page": script.html_page,
    "overloaded": script.overloaded,
    "pings": script.Pings,
    "prompt_too_long": script.prompt_too_long,
    "rate_limited": script.rate_limited,
    "raw": script.Raw,
    "refusal": script.refusal,
    "request_too_large": script.request_too_large,
    "reset": script.Reset,
    "server_error": script.server_error,
    "spend_limit_reached": script.spend_limit_reached,
    "stream_error": script.StreamError,
    "truncated": script.Truncated,
    "unauthorized": script.unauthorized,
    "unknown_model": script.unknown_model,
}
"""Every fault that a file can name, beside `hold`; the other fields are its arguments."""
_NESTED = ("answer", "then", "error")
Built = TypeVar("Built")


@dataclass(frozen=True)
class LoadedScript:
    """What a script file says."""

    rules: tuple[Rule, ...]
    default: Reply
    holds: Mapping[str, Hold] = field(default_factory=dict)


class _RuleData(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    answer: Any = None
    answers: list[Any] | None = None
    model: str | None = None
    contains: str | None = None
    matches: str | None = None
    tools: bool | None = None
    stream: bool | None = None
    structured: bool | None = None
    path: str = "/v1/messages"
    method: str = "POST"


class _ScriptData(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    rules: list[_RuleData] = []
    default: Any = None


def load_script(path: Path) -> LoadedScript:
    """Read a script file. Raises SettingsError with the file and the path of the wrong field."""
    try:
        with path.open(encoding="utf-8-sig") as opened:
            data = read_json(opened.read(MAX_BYTES + 1))
    except OSError as error:
        raise SettingsError(error.strerror or str(error), path=str(path)) from None
    except UnicodeDecodeError:
        raise SettingsError("is not UTF-8", path=str(path)) from None
    except DocumentError as error:
        raise SettingsError(error.message, path=str(path)) from None
    try:
        return read_script(data)
    except SettingsError as error:
        raise SettingsError(error.message, path=str(path), hint=error.hint) from None


def read_script(data: object) -> LoadedScript:
    """Return the script in parsed JSON. Raises SettingsError with the path of the wrong field."""
    try:
        script = _ScriptData.model_validate(data)
    except ValidationError as error:
        raise _wrong("", error, _ScriptData) from None
    reader = _Reader()
    rules = tuple(
        reader.rule(rule, f"rules[{place}]") for place, rule in enumerate(script.rules)
    )
    default: Reply = Answer()
    if script.default is not None:
        default = reader.reply(script.default, "default")
    return LoadedScript(rules, default, reader.holds)


class _Reader:
    """Builds replies from data; collects the holds by name."""

    def __init__(self) -> None:
        self.holds: dict[str, Hold] = {}

    def rule(self, data: _RuleData, where: str) -> Rule:
        if (data.answer is None) == (data.answers is None):
            raise SettingsError("give either `answer` or `answers`", path=where)
        listed = data.answers if data.answers is not None else [data.answer]
        name = "answers" if data.answers is not None else "answer"
        replies = [
            self.reply(one, f"{where}.{name}" + (f"[{place}]" if data.answers else ""))
            for place, one in enumerate(listed)
        ]
        try:
            return Rule(replies, **data.model_dump(exclude={"answer", "answers"}))
        except re.error as error:
            raise SettingsError(
                f"{data.matches!r} is not a regular expression: {error}",
                path=f"{where}.matches",
            ) from None
        except ValueError as error:
            raise SettingsError(str(error), path=where) from None

    def reply(self, data: object, where: str) -> Reply:
        if isinstance(data, str):
            return Answer(data)
        if not isinstance(data, dict):
            raise SettingsError(
                f"{json.dumps(data)[:_MAX_SHOWN]} is not an answer; give a text or an object",
                path=where,
            )
        fields = dict(data)
        name = fields.pop("fault", None)
        if name is None:
            return _build(Answer, fields, where)
        for nested in _NESTED:
            if nested in fields:
                fields[nested] = self.reply(fields[nested], f"{where}.{nested}")
        if name == "hold":
            return self._hold(fields, where)
        if not isinstance(name, str) or name not in FAULTS:
            known = ", ".join(sorted([*FAULTS, "hold"]))
            raise SettingsError(
                f"there is no fault {name!r}",
                path=where,
                hint=f"the faults are: {known}",
            )
        return _build(FAULTS[name], fields, where)

    def _hold(self, fields: dict[str, Any], where: str) -> Hold:
        name = fields.pop("name", None)
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise SettingsError(
                f"a hold needs a `name` of letters, digits, '_', '.' and '-', not {name!r}",
                path=where,
            )
        if name in self.holds:
            raise SettingsError(
                f"there are two holds {name!r}", path=where, hint="rename one"
            )
        then = fields.pop("then", Answer())
        if fields:
            raise SettingsError(
                "unknown field",
                path=f"{where}.{min(fields)}",
                hint="the fields are: fault, name, then",
            )
        self.holds[name] = Hold(then)
        return self.holds[name]


def _build(make: Callable[..., Built], fields: dict[str, Any], where: str) -> Built:
    """Call `make` with the fields, each checked against the type it is declared with."""
    # A dataclass brings its own configuration; pydantic takes no second one.
    nesting = None if is_dataclass(make) else ConfigDict(arbitrary_types_allowed=True)
    anything: Any = make
    adapter: TypeAdapter[Built] = TypeAdapter(anything, config=nesting)
    try:
        return adapter.validate_python(ArgsKwargs((), fields))
    except ValidationError as error:
        raise _wrong(where, error, make) from None


_ALLOWED = {
    "bool": "true or false",
    "bytes": "a text",
    "dataclass": "an object",
    "dict": "an object",
    "float": "a number",
    "int": "a whole number",
    "is": "a list",  # `is_instance_of`: the only class that fields are checked against is Sequence
    "list": "a list",
    "mapping": "an object",
    "model": "an object",
    "string": "a text",
}
"""What a field takes, by the first word of the type of pydantic's error."""
_REPLIES = {
    "Answer": "an answer, which has no `fault`",
    "Error": 'an error of the API, such as {"fault": "overloaded"}',
}
"""What a field takes that is not for every reply, by pydantic's name of the class."""
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MAX_SHOWN = 60  # characters of a value


def _wrong(
    where: str, error: ValidationError, make: Callable[..., object]
) -> SettingsError:
    """Return the first problem: its place, such as `rules[0].answers[1].text`, the value and what is allowed.

    Args:
        where: The place of the values that were validated; empty for the whole script.
        error: What pydantic raised.
        make: The model or function that the values are for.
    """
    problems = error.errors(include_url=False)
    # A misspelt name explains why the right one is missing.
    problems.sort(key=lambda problem: problem["type"] not in _UNKNOWN)
    first = problems[0]
    kind, loc = first["type"], first["loc"]
    path = where
    for step in loc:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    path = path.lstrip(".")
    if kind in _UNKNOWN:
        names = ", ".join(_fields_at(make, loc[:-1])) or "none"
        return SettingsError(
            "unknown field", path=path, hint=f"the fields are: {names}"
        )
    if kind.startswith("missing"):
        return SettingsError("is missing; this field is required", path=path)
    shown = json.dumps(first["input"], ensure_ascii=False, default=_shown)
    if len(shown) > _MAX_SHOWN:
        shown = f"{shown[:_MAX_SHOWN]}…"
    allowed = _ALLOWED.get(kind.partition("_")[0], "another value")
    if first.get("ctx", {}).get("class_name") in _REPLIES:
        allowed = _REPLIES[first["ctx"]["class_name"]]
    return SettingsError(f"{shown} is not valid; give {allowed}", path=path)


def _shown(value: object) -> str:
    """Return what names a reply in a message, as it was built from the file already."""
    for name, make in FAULTS.items():
        if make is type(value):
            return f"the fault {name}"
    return f"the {type(value).__name__.lower()}"


def _fields_at(make: Callable[..., object], loc: Sequence[int | str]) -> list[str]:
    """Return the names that `make`, or the object at `loc` in its fields, takes."""
    nested = {"rules": _RuleData, "tool_uses": script.ToolUse, "usage": script.Usage}
    names = [step for step in loc if isinstance(step, str)]
    target = nested.get(names[-1], make) if names else make
    fields = list(inspect.signature(target).parameters)
    return ["fault", *fields] if target is Answer else fields
