"""Read and write durations, sizes, shares and times as people and programs write them.

Every command writes durations, few check an address: the functions that do import what they need.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import datetime, timedelta

from midwatch.model import Unit

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_PORT = re.compile(r"(?<=.):([^:@\]]+)$")  # after the host, which may be [::1]
_RFC_3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)")
_MAX_SHOWN = 60  # characters of a value
LONGEST_DURATION = 100 * 365 * 86400.0
"""Seconds; a moment that is further away than this may be none that a database has."""


def parse_duration(value: object) -> float:
    """Return the seconds of `10s`, `1h30m`, `500ms`, `2d`, a number of seconds or a timedelta.

    Raises ValueError for anything else, including negative durations and those over 100 years.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = _as_float(value)
    else:
        text = str(value).strip().lower()
        parts = _DURATION.findall(text)
        if parts and not _DURATION.sub("", text).strip():
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
        else:
            try:
                seconds = float(text)
            except ValueError:
                raise ValueError(
                    f"{_shown(value)} is not a duration; use 30s, 5m, 2h or 7d"
                ) from None
    if not 0 <= seconds < math.inf:
        raise ValueError(
            f"{_shown(value)} is not a duration; use 0s or more, such as 30s"
        )
    if seconds > LONGEST_DURATION:
        raise ValueError(f"{_shown(value)} is longer than 100 years")
    return seconds


def _as_float(value: float) -> float:
    """Return a number as a float; one that is too large for it is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _shown(value: object) -> str:
    """Return a value for a message: a long one is cut."""
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"


def parse_size(value: object) -> float:
    """Return the bytes of `512MB` (powers of 1000), `512MiB` (of 1024) or a number. Raises ValueError."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        size = _as_float(value)
    elif match := _SIZE.fullmatch(str(value).strip()):
        number, prefix, binary = match.groups()
        size = float(number) * (1024.0 if binary else 1000.0) ** _POWERS[prefix.lower()]
    else:
        size = math.nan
    if not math.isfinite(size):
        raise ValueError(f"{_shown(value)} is not a size; use 500MB or 2GiB")
    return size


def parse_ratio(value: object) -> float:
    """Return the ratio of `90%` or 0.9.

    Raises ValueError, also for 90: it would be 9,000%, and 90% was meant.
    """
    try:
        if isinstance(value, str) and value.strip().endswith("%"):
            return float(value.strip()[:-1]) / 100
        ratio = float(str(value))
    except ValueError:
        raise ValueError(f"{_shown(value)} is not a share; use 90% or 0.9") from None
    if ratio > 1:
        raise ValueError(f"{_shown(value)} would be {ratio:,.0%}; use 90% or 0.9")
    return ratio


def parse_limit(value: object, unit: Unit) -> float:
    """Return a limit that a person wrote, in `unit`. Raises ValueError with an example."""
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number; use one such as 5")
    if unit is Unit.SECONDS:
        return parse_duration(value)
    if unit is Unit.BYTES:
        return parse_size(value)
    if unit is Unit.RATIO:
        return parse_ratio(value)
    try:
        return float(str(value))
    except ValueError:
        raise ValueError(
            f"{_shown(value)} is not a number; use one such as 5"
        ) from None


def parse_port(value: str) -> int:
    """Return a port from 1 to 65535. Raises ValueError, without the text: a password may stand there by mistake."""
    if len(value) < 6 and value.isascii() and value.isdecimal():
        if 0 < (port := int(value)) < 65536:
            return port
    raise ValueError("the port is not a number from 1 to 65535")


def parse_listen(value: object) -> tuple[str, int]:
    """Return host and port of `127.0.0.1:8470`, `[::1]:0` or such a pair. Raises ValueError."""
    if isinstance(value, (tuple, list)) and len(value) == 2:
        value = f"[{value[0]}]:{value[1]}"
    host, _, port = str(value).strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port == "0" or _is_port(port)):
        raise ValueError(f"{_shown(value)} is not HOST:PORT; use 127.0.0.1:8470")
    return host, int(port)


def _is_port(text: str) -> bool:
    try:
        return bool(parse_port(text))
    except ValueError:
        return False


def check_url(value: str) -> str:
    """Return `value` if it is a URL of http or https with a host. Raises ValueError, which does not repeat it."""
    if any(char.isspace() or not char.isprintable() for char in value):
        raise ValueError("a URL has no spaces and no control characters")
    from urllib.parse import urlsplit

    check_url_port(value)
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not a URL; use http://HOST/… or https://HOST/…")
    return value


_DEFAULT_PORTS = {"http": 80, "https": 443}


def url_is_at(url: str, hosts: Iterable[str]) -> bool:
    """Return whether a URL is one of http or https at one of the hosts, `HOST` (at the usual port) or `HOST:PORT`."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    if parts.scheme not in _DEFAULT_PORTS or not host:
        return False
    host = f"[{host}]" if ":" in host else host
    names = {f"{host}:{port or _DEFAULT_PORTS[parts.scheme]}"}
    if port in (None, _DEFAULT_PORTS[parts.scheme]):
        names.add(host)
    return any(one.lower() in names for one in hosts)


def check_origin(value: str) -> str:
    """Return a URL of http or https without its last slash. Raises ValueError if it has a path or a query."""
    from urllib.parse import urlsplit

    parts = urlsplit(check_url(value))
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("a URL with more than a host; use https://HOST")
    return f"{parts.scheme}://{parts.netloc}"


def check_network(value: str) -> str:
    """Return an address or a network such as 10.1.0.0/16. Raises ValueError."""
    from ipaddress import ip_network

    try:
        return str(ip_network(value))
    except ValueError:
        raise ValueError(
            f"{_shown(value)} is not an address; use 10.0.0.7 or 10.1.0.0/16"
        ) from None


def check_url_port(value: str) -> str:
    """Return `value` unless the host or the port of a URL cannot be one. Raises ValueError, which does not repeat it."""
    from urllib.parse import urlsplit

    try:
        netloc = urlsplit(value).netloc
    except ValueError:  # an IPv6 address that is none
        raise ValueError("not a URL; use http://HOST/… or https://HOST/…") from None
    if port := _PORT.search(netloc):
        parse_port(port[1])
    return value


def format_duration(seconds: float) -> str:
    """Return seconds as `850ms`, `4.2s`, `3m 20s`, `2h 5m` or `3d 4h`: two parts at most."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 10:
        return f"{seconds:.1f}s".replace(".0s", "s")
    total = round(seconds)
    if total < 60:
        return f"{total}s"
    parts: list[str] = []
    for name, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, total = divmod(total, size)
        if count or parts:
            parts.append(f"{count}{name}" if count else "")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if part)


def format_size(size: float) -> str:
    """Return bytes as `640 B` or `1.5 MB`, in powers of 1000."""
    for prefix in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < 1000:
            return f"{size:.0f} B" if prefix == "B" else f"{size:.1f} {prefix}"
        size /= 1000
    return f"{size:.1f} PB"


def format_count(number: int, noun: str) -> str:
    """Return `1 ticket` or `3 tickets`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def format_value(value: float, unit: Unit) -> str:
    """Return a value with its unit."""
    if unit is Unit.SECONDS:
        return format_duration(value)
    if unit is Unit.BYTES:
        return format_size(value)
    if unit is Unit.RATIO:
        return f"{value:.0%}" if value >= 0.01 or value == 0 else f"{value:.2%}"
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def parse_time(value: object) -> datetime | None:
    """Return a time in RFC 3339, with any number of decimals, which are dropped; None for anything else."""
    match = _RFC_3339.fullmatch(str(value))
    if match is None:
        return None
    try:
        return datetime.fromisoformat(match[1] + match[2].replace("Z", "+00:00"))
    except ValueError:
        return None
