"""Read the JSON of a request strictly: what is missing or wrong is named, and what is unknown is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from midwatch.model import Fact, keepable
from midwatch.server.problems import Unprocessable
from midwatch.text import ticket_line
from midwatch.units import parse_time

MOST_ALERTS = 10_000
"""Alerts in one request."""
MOST_LABELS = 1000
"""Labels, or annotations, of one alert."""
_ZERO_YEAR = 1  # of Go's zero time
_MILLISECONDS = 1e11
"""Unix times above this are in milliseconds: in seconds they would be after the year 5000."""
_LATEST = 253_402_300_799  # 9999-12-31T23:59:59Z


class Unreadable(Unprocessable):
    """The body is not what the sender writes."""

    hint = "docs/alerts.md shows what each sender writes"


def read_json(body: bytes) -> Any:
    """Return the value of a body. Raises Unreadable, with the place of the fault."""
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise _not_json("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _not_json(f"{error.msg.lower()} at {where}") from None
    except ValueError as error:  # not UTF-8, or a number with too many digits
        raise _not_json(type(error).__name__) from None


def _refuse_constant(name: str) -> Any:
    raise json.JSONDecodeError(f"{name} is not a number", name, 0)


def _not_json(why: str) -> Unreadable:
    error = Unreadable(f"the body is not JSON: {why}")
    error.status = 400
    return error


def object_of(value: Any, where: str) -> Mapping[str, Any]:
    """Return a JSON object. Raises Unreadable for anything else."""
    if not isinstance(value, dict):
        raise Unreadable(f"{where}: expected an object, found {kind_of(value)}")
    return value


def list_of(value: Any, where: str) -> list[Any]:
    """Return a list of at most `MOST_ALERTS` entries. Raises Unreadable."""
    if not isinstance(value, list):
        raise Unreadable(f"{where}: expected a list, found {kind_of(value)}")
    if len(value) > MOST_ALERTS:
        raise Unreadable(
            f"{where}: {len(value):,} alerts are too many; at most {MOST_ALERTS:,}",
            hint="limit the alerts of a request at the sender, such as max_alerts of Alertmanager",
        )
    return value


def texts_of(value: Any, where: str) -> dict[str, str]:
    """Return an object whose values are texts, such as labels; null is empty. Raises Unreadable."""
    if value is None:
        return {}
    found = object_of(value, where)
    if len(found) > MOST_LABELS:
        raise Unreadable(
            f"{where}: {len(found):,} names are too many; at most {MOST_LABELS:,}"
        )
    if all(type(one) is str for one in found.values()):
        return {keepable(name): keepable(one) for name, one in found.items()}
    return {
        keepable(name): text_of(one, f"{where}.{ticket_line(name, 60)}")
        for name, one in found.items()
    }


def text_of(value: Any, where: str) -> str:
    """Return a text; a number or a truth value as JSON has it, null as empty. Raises Unreadable."""
    match value:
        case str():
            return keepable(value)
        case None:
            return ""
        case bool() | int() | float():
            return json.dumps(value)
    raise Unreadable(f"{where}: expected a text, found {kind_of(value)}")


def required_text(value: Any, where: str) -> str:
    """Return a text that is not empty. Raises Unreadable."""
    text = text_of(value, where).strip()
    if not text:
        raise Unreadable(f"{where}: is missing")
    return text


def time_of(value: Any, where: str) -> datetime | None:
    """Return a time in RFC 3339, or in Unix seconds or milliseconds.

    Null, an empty text and Go's zero time are None. Raises Unreadable for anything else.
    """
    if value is None or value == "":
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # Compared before it is divided: a number of JSON may be too large for a float.
        if 0 <= value <= _LATEST * 1000:
            seconds = value / 1000 if value > _MILLISECONDS else value
            return datetime.fromtimestamp(int(seconds), UTC)
    elif isinstance(value, str) and (found := parse_time(value)) is not None:
        if found.year == _ZERO_YEAR:
            return None
        try:
            return found.astimezone(UTC)
        except OverflowError:
            pass
    shown = ticket_line(str(value), 40)
    raise Unreadable(f"{where}: {shown!r} is not a time; use RFC 3339")


def fact_of(value: Any) -> Fact:
    """Return a value as a fact; lists and objects as JSON."""
    if isinstance(value, str):
        return keepable(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return keepable(json.dumps(value, ensure_ascii=False))[:4000]


def kind_of(value: Any) -> str:
    """Return what a JSON value is, in a word or two."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
    return "an object"
