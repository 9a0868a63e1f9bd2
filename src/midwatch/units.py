"""Read and write durations, sizes and shares as people write them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator

from midwatch.model import Unit

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_duration(value: object) -> float:
    """Return the seconds of `10s`, `1h30m`, `500ms`, `2d`, a number of seconds or a timedelta.

    Raises ValueError for anything else, including negative durations.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
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
                    f"{value!r} is not a duration; use 30s, 5m or 2h"
                ) from None
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{value!r} is not a duration; use 0s or more, such as 30s")
    return seconds


def parse_size(value: object) -> float:
    """Return the bytes of `512MB` (powers of 1000), `512MiB` (of 1024) or a number. Raises ValueError."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    match = _SIZE.fullmatch(str(value).strip())
    if not match:
        raise ValueError(f"{value!r} is not a size; use 500MB or 2GiB")
    number, prefix, binary = match.groups()
    base = 1024.0 if binary else 1000.0
    return float(number) * base ** _POWERS[prefix.lower()]


def parse_ratio(value: object) -> float:
    """Return the ratio of `90%` or 0.9.

    Raises ValueError, also for 90: it would be 9,000%, and 90% was meant.
    """
    try:
        if isinstance(value, str) and value.strip().endswith("%"):
            return float(value.strip()[:-1]) / 100
        ratio = float(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is not a share; use 90% or 0.9") from None
    if ratio > 1:
        raise ValueError(f"{value!r} would be {ratio:,.0%}; use 90% or 0.9")
    return ratio


def parse_limit(value: object, unit: Unit) -> float:
    """Return a limit that a person wrote, in `unit`. Raises ValueError with an example."""
    if unit is Unit.SECONDS:
        return parse_duration(value)
    if unit is Unit.BYTES:
        return parse_size(value)
    if unit is Unit.RATIO:
        return parse_ratio(value)
    try:
        return float(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is not a number; use one such as 5") from None


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


Seconds = Annotated[float, BeforeValidator(parse_duration)]
"""A duration setting, in seconds once read."""
Bytes = Annotated[float, BeforeValidator(parse_size)]
Ratio = Annotated[float, BeforeValidator(parse_ratio)]
