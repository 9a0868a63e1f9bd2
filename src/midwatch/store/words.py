"""What text and documents lose on their way into a database, the same on each.

PostgreSQL's text cannot hold NUL, UTF-8 cannot hold lone surrogates, JSON has no NaN. What comes
from outside may have all three; it must not make a write fail.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from sqlalchemy import Dialect, Text, TypeDecorator

from midwatch.model import keepable

_SUSPECT = re.compile(r"\\u0000|NaN|Infinity|[\ud800-\udfff]")


class Words(TypeDecorator[str]):
    """Text of any length, made keepable on its way in and in comparisons."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else keepable(value)


def dump_json(value: Any) -> str:
    """`value` as JSON that any database takes; a number that is none becomes a word."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if _SUSPECT.search(text):  # rare, and sometimes in vain
        text = json.dumps(_mended(value), ensure_ascii=False, separators=(",", ":"))
    return text


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return keepable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {_mended(name): _mended(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mended(item) for item in value]
    return value
