"""What the API server refuses, as values that become a `Status` document.

Reasons and wording follow `k8s.io/apimachinery/pkg/api/errors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from midwatch.model import Json

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclass(frozen=True, slots=True)
class Cause:
    """One field that is wrong; `reason` is a `FieldValueInvalid` and its like."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class Refused(Exception):
    """The API server refuses; it is answered with this status."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        reason: str | None = None,
        details: Json | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = REASONS.get(code, "Unknown") if reason is None else reason
        self.details = dict(details or {})
        self.retry_after = retry_after
        if retry_after is not None:
            self.details["retryAfterSeconds"] = retry_after

    def status(self) -> Json:
        """The document that clients get."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            **({"details": self.details} if self.details else {}),
            "code": self.code,
        }


def _about(resource: str, group: str, name: str) -> Json:
    details = {"name": name, "group": group, "kind": resource}
    return {key: value for key, value in details.items() if value}


def not_found(resource: str, group: str, name: str) -> Refused:
    full = f"{resource}.{group}" if group else resource
    return Refused(
        404, f'{full} "{name}" not found', details=_about(resource, group, name)
    )


def already_exists(resource: str, group: str, name: str) -> Refused:
    full = f"{resource}.{group}" if group else resource
    details = _about(resource, group, name)
    message = f'{full} "{name}" already exists'
    return Refused(409, message, reason="AlreadyExists", details=details)


def conflict(resource: str, group: str, name: str, why: str) -> Refused:
    full = f"{resource}.{group}" if group else resource
    message = f'Operation cannot be fulfilled on {full} "{name}": {why}'
    return Refused(409, message, details=_about(resource, group, name))


CHANGED = (
    "the object has been modified; please apply your changes to the latest version"
    " and try again"
)


def invalid(kind: str, group: str, name: str, causes: Sequence[Cause]) -> Refused:
    full = f"{kind}.{group}" if group else kind
    said = [str(cause) for cause in causes]
    text = said[0] if len(said) == 1 else f"[{', '.join(said)}]"
    details = _about(kind, group, name)
    details["causes"] = [
        {"reason": cause.reason, "message": cause.message, "field": cause.field}
        for cause in causes
    ]
    return Refused(422, f'{full} "{name}" is invalid: {text}', details=details)
