"""Map errors of the HTTP client and answers of the Kubernetes API server to the errors of `cluster.errors`."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from midwatch.cluster.errors import ClusterRefused, ClusterUnavailable
from midwatch.errors import MidwatchError, TemporaryError
from midwatch.metrics import code_label

MAX_MESSAGE = 1000
"""Characters kept of an API server's message."""
_MAX_CAUSES = 20
_HINTS = {
    401: "check the token, the certificate or the service account",
    403: "check the roles of the service account and the quotas of the namespace",
    404: "check that the resource definition and the namespace exist",
    422: "correct the fields that the API server names; an unknown field means another version of the cluster or of the CRD",
}
CLIENT_ERRORS = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    httpx2.StreamError,
    KeyError,
    ValueError,  # an answer that is not JSON
    TimeoutError,
    OSError,
)
"""Everything that a call of the HTTP client raises."""


class Conflict(TemporaryError):
    """HTTP 409: the object changed since it was read, or exists already."""


def result_code(error: Exception) -> str:
    """Return the metric label of one of CLIENT_ERRORS: an HTTP status, `timeout` or `error`."""
    if isinstance(error, httpx2.HTTPStatusError):
        return code_label(error.response.status_code)
    timed_out = isinstance(error, (TimeoutError, httpx2.TimeoutException))
    return "timeout" if timed_out else "error"


def map_client_error(error: Exception, doing: str) -> MidwatchError:
    """Map one of CLIENT_ERRORS, raised while `doing` something, to an error of `cluster.errors`."""
    if isinstance(error, httpx2.HTTPStatusError):
        return _map_response_error(error.response, doing)
    if isinstance(error, (TimeoutError, httpx2.TimeoutException)):
        return ClusterUnavailable(f"cannot {doing}: no answer within the timeout")
    if isinstance(error, (httpx2.TransportError, OSError)):
        return ClusterUnavailable(f"cannot {doing}: {_text(error)}")
    if isinstance(error, (httpx2.InvalidURL, httpx2.TooManyRedirects)):
        return ClusterRefused(f"cannot {doing}: {_text(error)}")
    return ClusterUnavailable(
        f"cannot {doing}: the answer is not from an API server: {_text(error)}"
    )


def _map_response_error(response: httpx2.Response, doing: str) -> MidwatchError:
    code = response.status_code
    status = _status_of(response)
    text = str(status.get("message") or response.reason_phrase or "no message")
    message = f"cannot {doing}: {code} {text[:MAX_MESSAGE]}"
    if code == 409:
        return Conflict(message)
    # 410: a paged list has expired; the next list starts again.
    if code in (408, 410, 429) or code >= 500:
        retry_after = _retry_after(response, status)
        return ClusterUnavailable(message, retry_after=retry_after, status=code)
    return ClusterRefused(
        message,
        hint=_HINTS.get(code),
        status=code,
        reason=str(status.get("reason") or "")[:100],
        fields=_wrong_fields(status),
    )


def _wrong_fields(status: dict[str, Any]) -> tuple[str, ...]:
    """Return the fields of the object that the server names as wrong."""
    details = status.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    if not isinstance(causes, list):
        return ()
    named = (one.get("field") for one in causes[:_MAX_CAUSES] if isinstance(one, dict))
    return tuple(str(field)[:200] for field in named if field)


def _status_of(response: httpx2.Response) -> dict[str, Any]:
    """Return the `Status` in an answer; empty without one."""
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
    return (str(error) or type(error).__name__)[:MAX_MESSAGE]
