"""What an answer of the content proxy that is no success means: the other end of `answers`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx2

from midwatch.content.errors import (
    ChunksMissing,
    ContentFull,
    ContentRefused,
    ContentTooLarge,
    ContentUnavailable,
    StreamBroken,
    Superseded,
    TokenRefused,
    VersionConflict,
)
from midwatch.content.wire import SUPERSEDED
from midwatch.errors import MidwatchError

_LONGEST = 500


def error_of(response: httpx2.Response, body: bytes, path: str) -> MidwatchError:
    """The error of this status. What is not known is temporary: a gateway may be in between."""
    data = _data(body)
    status = response.status_code
    message = _text(data.get("error")) or f"the content proxy answered {status}"
    hint = _text(data.get("hint")) or None
    match status:
        case 400 if path == "/chunks":
            return StreamBroken(message, hint=hint)
        case 401:
            return TokenRefused(message, hint=hint)
        case 409 if data.get("code") == SUPERSEDED:
            current = data.get("attempt")
            return Superseded(current if isinstance(current, int) else 0, message)
        case 409:
            missing = data.get("missing")
            names = missing if isinstance(missing, list) else []
            return ChunksMissing([str(name) for name in names], message)
        case 412:
            return VersionConflict(_text(data.get("version")), message)
        case 413:
            return ContentTooLarge(message, hint=hint)
        case 507:
            return ContentFull(message, hint=hint)
        case 400 | 403 | 404 | 405 | 411 | 415 | 422 | 428:
            return ContentRefused(message, hint=hint)
    return ContentUnavailable(message, hint=hint, retry_after=_retry_after(response))


def _data(body: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _text(data: object) -> str:
    return data[:_LONGEST] if isinstance(data, str) else ""


def _retry_after(response: httpx2.Response) -> float | None:
    given = response.headers.get("retry-after", "")
    return min(float(given), 3600.0) if given.isdecimal() else None
