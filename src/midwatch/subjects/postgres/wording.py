"""Words from the server made fit for one line: bounded and without control characters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...units import format_duration

Row = Mapping[str, Any]


def text(value: object, limit: int = 120) -> str:
    """One line of at most `limit` characters; the end is cut with an ellipsis."""
    raw = "" if value is None else str(value)[: limit * 4]
    line = " ".join(
        "".join(c if c.isprintable() or c.isspace() else "?" for c in raw).split()
    )
    return line if len(line) <= limit else line[: limit - 1] + "…"


def number(value: object) -> float:
    """A number of seconds or a count; 0 where the server gives none."""
    return max(0.0, float(value)) if isinstance(value, (int, float)) else 0.0


def who(row: Row) -> str:
    """`user app, application orders` as a message names a session."""
    application = text(row.get("application_name"), 64)
    user = f"user {text(row.get('usename'), 64) or 'unknown'}"
    return f"{user}, application {application}" if application else user


def state(row: Row) -> str:
    """`idle in transaction for 3m 20s`."""
    name = text(row.get("state"), 40) or "unknown state"
    since = row.get("query_age") if name == "active" else row.get("state_age")
    return name if since is None else f"{name} for {format_duration(number(since))}"
