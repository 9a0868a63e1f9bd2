"""The settings file, as it is written: `midwatch.config` checks it.

A command that needs nothing but the database reads that alone, as the check of all settings takes longer than
the command.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midwatch.errors import SettingsError

PREFIX = "MIDWATCH_"
DEFAULT_FILE = "midwatch.yaml"
DEFAULT_DATABASE = "sqlite:///midwatch.db"
GROUPS = frozenset(
    "agent anthropic changes content database forges investigation log metrics monitor notifications"
    " operator pull_requests runbooks schedules server sessions subjects telemetry".split()
)
"""The names in the file. With another one the file is wrong."""


def sqlite_file(environ: Mapping[str, str], file: Path | None) -> str | None:
    """Return the path of the SQLite database, if the settings can be trusted for that without a check of all.

    Raises:
        SettingsError: As `midwatch.config.load` does.
    """
    written = read_file(environ, file)
    variables = {n.upper() for n in environ if n.upper().startswith(PREFIX)}
    if not written.keys() <= GROUPS or variables - {f"{PREFIX}CONFIG"}:
        return None
    database = expand(written.get("database", DEFAULT_DATABASE), environ, "database")
    scheme, separator, path = str(database).partition(":///")
    plain = scheme == "sqlite" and separator and path and not set(path) & set("?%#\0:")
    return path if plain else None


def read_file(environ: Mapping[str, str], file: Path | None) -> dict[str, Any]:
    """Return what is written in the file, in the one that MIDWATCH_CONFIG names, or in `midwatch.yaml` if it exists.

    Raises:
        SettingsError: The file cannot be read, or has something else than names and values.
    """
    if file is None and environ.get("MIDWATCH_CONFIG"):
        file = Path(environ["MIDWATCH_CONFIG"])
    if file is None:
        file = Path(DEFAULT_FILE)
        if not file.exists():
            return {}
    from midwatch.documents import MAX_BYTES, DocumentError, read_yaml

    try:
        with file.open("rb") as opened:
            document = read_yaml(opened.read(MAX_BYTES + 1))
    except FileNotFoundError:
        raise SettingsError(
            f"there is no settings file {file}",
            hint="check --config or MIDWATCH_CONFIG",
        ) from None
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from None
    except DocumentError as error:
        raise SettingsError(
            f"{file} is not valid YAML: {error.message}", hint=error.hint
        ) from None
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(
        isinstance(key, str) for key in document
    ):
        raise SettingsError(f"{file} must hold names and values, such as `database: …`")
    return document


_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def expand(value: Any, environ: Mapping[str, str], path: str) -> Any:
    """Replace ${NAME} in a value of the file by the variable NAME, so that secrets can stay out of the file."""
    if isinstance(value, dict):
        return {
            name: expand(inner, environ, f"{path}.{name}".lstrip("."))
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [
            expand(inner, environ, f"{path}[{index}]")
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
