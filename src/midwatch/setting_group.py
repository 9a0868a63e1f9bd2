"""What groups of settings have in common."""

from __future__ import annotations

from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from midwatch.units import (
    check_network,
    check_origin,
    check_url,
    check_url_port,
    parse_duration,
    parse_listen,
    parse_ratio,
    parse_size,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]

Seconds = Annotated[float, BeforeValidator(parse_duration)]
"""A duration setting, in seconds once read."""
Url = Annotated[str, AfterValidator(check_url)]
"""The address of something that speaks HTTP."""
Listen = Annotated[tuple[str, int], BeforeValidator(parse_listen)]
"""Where a server listens: host and port."""
Origin = Annotated[str, AfterValidator(check_origin)]
"""Scheme, host and port under which a server is reached."""
Network = Annotated[str, AfterValidator(check_network)]
"""An address, or a network of addresses."""
PortChecked = Annotated[str, AfterValidator(check_url_port)]
"""The address of a repository, which may be one of SSH or a path."""
Bytes = Annotated[float, BeforeValidator(parse_size)]
Ratio = Annotated[float, BeforeValidator(parse_ratio)]


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("not a time zone; use one such as Europe/Berlin") from None
    return name


TimeZone = Annotated[str, AfterValidator(_time_zone)]
"""An IANA name."""


def _switch(value: object) -> object:
    """Return `on` or `off` for a truth value: YAML 1.1 reads these words as truth values."""
    return ("on" if value else "off") if isinstance(value, bool) else value


Sandbox = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]
"""Whether Bash of a session runs in a sandbox."""


class Group(BaseModel):
    """A group of settings: frozen, and an unknown name in it is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
