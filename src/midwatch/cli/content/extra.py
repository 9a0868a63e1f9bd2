"""What only an installation with the extra `content` has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from midwatch.errors import SettingsError
from midwatch.settings import Settings

_PARTS = ("jwt", "prometheus_client", "starlette", "uvicorn")


@contextmanager
def needs_content() -> Iterator[None]:
    """Imports inside need the extra. Raises SettingsError where a package of it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PARTS:
            raise
        raise SettingsError(
            f"the content proxy needs the package {error.name}",
            hint="pip install 'midwatch[content]'",
        ) from None


def keys_of(settings: Settings) -> tuple[bytes, ...]:
    """The keys that tokens are signed with. Raises SettingsError."""
    from midwatch.content.tokens import read_keys

    return read_keys(key_file(settings))


def key_file(settings: Settings) -> Path:
    """The file that holds them. Raises SettingsError."""
    if settings.content.key_file is None:
        raise SettingsError(
            "there is no key for tokens",
            path="content.key_file",
            hint="openssl rand -hex 32 > FILE, and name the file; the operator needs the same",
        )
    return settings.content.key_file
