"""Reading settings: `midwatch.yaml`, overridden by the environment that is handed in."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
)
from pydantic_settings import SettingsError as PydanticSettingsError

from .errors import SettingsError
from .settings import DEFAULT_FILE, Settings


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
        if name.upper().startswith("MIDWATCH_") and name.upper() != "MIDWATCH_CONFIG"
    }
    _refuse_unknown_variables(variables)
    try:
        return _Loading(_expand(written, environ, ""), variables).settings()
    except ValidationError as error:
        raise explain(error, Settings) from None
    except PydanticSettingsError as error:
        raise SettingsError(
            str(error.__cause__ or error), hint="check the MIDWATCH_ variables"
        ) from None


class _Loading:
    """Builds Settings from explicit sources, so that nothing reads the process's environment."""

    def __init__(self, written: dict[str, Any], variables: Mapping[str, str]) -> None:
        self._written = written
        self._variables = variables

    def settings(self) -> Settings:
        variables = self._variables

        class FromHere(Settings):
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                dotenv_settings: PydanticBaseSettingsSource,
                file_secret_settings: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                return _Variables(settings_cls, variables), init_settings

        return FromHere(**self._written)


class _Variables(EnvSettingsSource):
    """MIDWATCH_AGENT__POLL_INTERVAL and its like, from a mapping that is handed in."""

    def __init__(
        self, settings_cls: type[BaseSettings], variables: Mapping[str, str]
    ) -> None:
        self._given = {name.lower(): value for name, value in variables.items()}
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._given


def _refuse_unknown_variables(variables: Mapping[str, str]) -> None:
    """A misspelt variable would be ignored in silence."""
    for name in variables:
        parts = name[len("MIDWATCH_") :].lower().split("__")
        model: type[BaseModel] | None = Settings
        for depth, part in enumerate(parts):
            fields = model.model_fields if model is not None else {}
            if part not in fields:
                path = ".".join(parts[: depth + 1])
                raise SettingsError(
                    "unknown setting",
                    path=f"{name} ({path})",
                    hint=_suggest(part, fields),
                )
            inner = fields[part].annotation
            model = (
                inner
                if isinstance(inner, type) and issubclass(inner, BaseModel)
                else None
            )


def _read_yaml(file: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not must_exist:
            return {}
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
    return SettingsError(said[:1].lower() + said[1:], path=where)


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
