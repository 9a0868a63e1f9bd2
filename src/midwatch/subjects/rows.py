"""The rows of a database server as values and as plain text, one fact a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

MOST = 30  # lines of a list
QUERY = 300


Row = Mapping[str, Any]


def text(value: object, limit: int = 120) -> str:
    """Return one line of at most `limit` characters without control characters, cut with an ellipsis."""
    raw = "" if value is None else str(value)[: limit * 4]
    line = " ".join(
        "".join(c if c.isprintable() or c.isspace() else "?" for c in raw).split()
    )
    return line if len(line) <= limit else line[: limit - 1] + "…"


def number(value: object) -> float:
    """Return a number of seconds or a count; 0 for NULL."""
    return max(0.0, float(value)) if isinstance(value, (int, float, Decimal)) else 0.0


def facts(rows: Sequence[Row]) -> str:
    """Return `name: value` for a row with just these two, else `a=1 b=2` without empty values."""
    return bounded([_fact(row) for row in rows])


def _fact(row: Row) -> str:
    if set(row) == {"name", "value"}:
        return f"{text(row['name'], 80)}: {text(row['value'], QUERY)}"
    known = {key: value for key, value in row.items() if value not in (None, "")}
    return " ".join(f"{key}={text(value, QUERY)}" for key, value in known.items())


def bounded(lines: Sequence[str]) -> str:
    more = len(lines) - MOST
    return "\n".join([*lines[:MOST], *([f"… and {more} more"] if more > 0 else [])])
