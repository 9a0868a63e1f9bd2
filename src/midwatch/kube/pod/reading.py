"""Reading variables by the names and defaults of `RUNNER_VARIABLES`; a bad one names itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from ...errors import SettingsError
from ..environment import RUNNER_VARIABLES
from ..rules import MAX_SECONDS

TABLE = {variable.name: variable for variable in RUNNER_VARIABLES}
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no", "")


class Reader:
    """Reads variables by the names and defaults of the table."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str) -> str:
        """Its value, else the default of the table; an empty one counts as not there."""
        return self._environ.get(name, "").strip() or TABLE[name].default or ""

    def optional(self, name: str) -> str | None:
        """Its value; the table describes what it is without one."""
        return self._environ.get(name, "").strip() or None

    def required(self, name: str) -> str:
        value = self._environ.get(name, "").strip()
        if not value:
            raise SettingsError("is not set", path=name, hint=TABLE[name].meaning)
        return value

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self.text(name)
        if value not in allowed:
            raise bad(name, value, f"choose from {', '.join(allowed)}")
        return value

    def flag(self, name: str) -> bool:
        value = self.text(name).lower()
        if value not in _TRUE + _FALSE:
            raise bad(name, value, "write true or false")
        return value in _TRUE

    def whole(self, name: str, least: int) -> int:
        value = self.text(name)
        if not (value.isascii() and value.isdigit() and len(value) < 16):
            raise bad(name, value, "write a whole number")
        if int(value) < least:
            raise bad(name, value, f"at least {least}")
        return int(value)

    def optional_whole(self, name: str, least: int) -> int | None:
        return None if self.optional(name) is None else self.whole(name, least)

    def amount(self, name: str) -> float | None:
        value = self.optional(name)
        return None if value is None else _positive(name, value, math.inf)

    def seconds(self, name: str) -> float:
        return _positive(name, self.text(name), MAX_SECONDS)

    def folder(self, name: str) -> Path:
        path = Path(self.text(name))
        if not path.is_absolute() or ".." in path.parts or path == Path("/"):
            raise bad(name, str(path), "write the absolute path of a folder")
        return path


def bad(name: str, value: str, hint: str) -> SettingsError:
    return SettingsError(f"{value[:60]!r} cannot be meant", path=name, hint=hint)


def _positive(name: str, value: str, most: float) -> float:
    try:
        number = float(value)
    except ValueError:
        raise bad(name, value, "write a number") from None
    if not 0 < number <= most or not math.isfinite(number):
        raise bad(name, value, f"above 0, up to {most:g}")
    return number
