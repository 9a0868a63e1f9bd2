"""Pages of lists: opaque cursors, which stay right while entries are added."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query

from midwatch.json_shapes import plain
from midwatch.model import Json
from midwatch.server.problems import RequestRefused

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=500, description="The most entries of a page.")]
Cursor = Annotated[
    str | None,
    Query(
        max_length=500,
        description="`next` of the page before, with the same other parameters.",
    ),
]


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page: its entries, and the cursor of the next one; None if it is the last."""

    entries: Sequence[T]
    next: str | None

    def document(self, shape: Callable[[T], Any]) -> Json:
        return {"items": [shape(one) for one in self.entries], "next": self.next}


def page_of(found: Sequence[T], limit: int, place: Callable[[T], list[Any]]) -> Page[T]:
    """Return the page of what was found with a limit of one more.

    Args:
        found: At most `limit` + 1 entries.
        limit: The most entries of a page.
        place: Returns the place of an entry in the list, of JSON types and instants.
    """
    shown = found[:limit]
    more = len(found) > limit
    return Page(shown, _encoded(place(shown[-1])) if more else None)


def whole(found: Sequence[T]) -> Page[T]:
    """Return the only page of a list that is bounded by its nature."""
    return Page(found, None)


def _encoded(place: list[Any]) -> str:
    text = json.dumps([_written(one) for one in place], default=plain)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _written(part: Any) -> Any:
    return part.isoformat() if isinstance(part, datetime) else part


def read_cursor(cursor: str, *kinds: type) -> list[Any]:
    """Return the place in a cursor; its parts are of these kinds. Raises RequestRefused."""
    try:
        data = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        parts = json.loads(data)
        if not isinstance(parts, list):
            raise ValueError
        read = [_read(one, kind) for one, kind in zip(parts, kinds, strict=True)]
    except (ValueError, TypeError, RecursionError):
        raise RequestRefused(
            "the cursor is not one of this list", hint="begin without a cursor"
        ) from None
    return read


def _read(part: Any, kind: type) -> Any:
    if kind is datetime:
        at = datetime.fromisoformat(part)
        if at.tzinfo is None:
            raise ValueError
        return at
    if type(part) is not kind:
        raise ValueError
    if isinstance(part, int) and not -(2**63) <= part < 2**63:
        raise ValueError
    return part
