"""Errors of the HTTP client and answers of the API server → ours."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from midwatch.errors import MidwatchError, TemporaryError
from midwatch.kube.errors import ClusterRefused, ClusterUnavailable
from midwatch.metrics import code_label

LONGEST_MESSAGE = 1000
"""Characters of an API server's message that are passed on."""
_MAX_CAUSES = 20
_HINTS = {
    401: "check the token, the certificate or the service account",
    403: "check the roles of the service account, and the quotas of the namespace",
    404: "check that the resource definition and the namespace are there",
    422: "correct what the API server names; a field that is unknown means another version of the cluster or of the CRD",
}
FOREIGN_ERRORS = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    httpx2.StreamError,
    # The client closes over answers that are no JSON, or have no content type.
    KeyError,
    ValueError,
    TimeoutError,
    OSError,
)
"""All that a call of the client raises."""


class Conflicted(TemporaryError):
    """409: the object changed since it was read, or is there already."""


def code_of(error: Exception) -> str:
    """What one of FOREIGN_ERRORS counts as: the status of an answer, `timeout` or `error`."""
    if isinstance(error, httpx2.HTTPStatusError):
        return code_label(error.response.status_code)
    timed_out = isinstance(error, (TimeoutError, httpx2.TimeoutException))
    return "timeout" if timed_out else "error"


def translated(error: Exception, doing: str) -> MidwatchError:
    """Our error for one of FOREIGN_ERRORS, raised while `doing` something."""
    if isinstance(error, httpx2.HTTPStatusError):
        return _of_answer(error.response, doing)
    if isinstance(error, (TimeoutError, httpx2.TimeoutException)):
        return ClusterUnavailable(f"cannot {doing}: no answer in time")
    if isinstance(error, (httpx2.TransportError, OSError)):
        return ClusterUnavailable(f"cannot {doing}: {_text(error)}")
    if isinstance(error, (httpx2.InvalidURL, httpx2.TooManyRedirects)):
        return ClusterRefused(f"cannot {doing}: {_text(error)}")
    return ClusterUnavailable(
        f"cannot {doing}: the answer is none of an API server: {_text(error)}"
    )


def _of_answer(response: httpx2.Response, doing: str) -> MidwatchError:
    code = response.status_code
    status = _status_of(response)
    said = str(status.get("message") or response.reason_phrase or "no message")
    message = f"cannot {doing}: {code} {said[:LONGEST_MESSAGE]}"
    if code == 409:
        return Conflicted(message)
    # 410: the list that is read in parts has expired; the next one begins anew.
    if code in (408, 410, 429) or code >= 500:
        return ClusterUnavailable(message, retry_after=_retry_after(response, status))
    return ClusterRefused(
        message,
        hint=_HINTS.get(code),
        status=code,
        reason=str(status.get("reason") or "")[:100],
        fields=_fields(status),
    )


def _fields(status: dict[str, Any]) -> tuple[str, ...]:
    """What is wrong with the object, where the server says so."""
    details = status.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    if not isinstance(causes, list):
        return ()
    named = (one.get("field") for one in causes[:_MAX_CAUSES] if isinstance(one, dict))
    return tuple(str(field)[:200] for field in named if field)


def _status_of(response: httpx2.Response) -> dict[str, Any]:
    """The `Status` in an answer; empty if there is none."""
    try:
        status = json.loads(response.content)
    except (ValueError, httpx2.ResponseNotRead):
        return {}
    return status if isinstance(status, dict) else {}


def _retry_after(response: httpx2.Response, status: dict[str, Any]) -> float | None:
    details = status.get("details")
    written = response.headers.get("retry-after")
    if written is None and isinstance(details, dict):
        written = details.get("retryAfterSeconds")
    try:
        return max(0.0, float(written)) if written is not None else None
    except (TypeError, ValueError):
        return None


def _text(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:LONGEST_MESSAGE]
