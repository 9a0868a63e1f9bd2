"""Errors of the Kubernetes API, below the two branches of `midwatch.errors`.

::

    TemporaryError
    └── ClusterUnavailable    the API server does not answer, or asks to retry later (retry_after); status
    PermanentError
    ├── ClusterRefused        401, 403, 400, 422: a retry does not help; status, reason
    └── ResourceGone          the object or its kind does not exist (404), or another uid has replaced it
"""

from __future__ import annotations

from midwatch.errors import PermanentError, TemporaryError


class ClusterUnavailable(TemporaryError):
    """The Kubernetes API server does not answer.

    Attributes:
        status: The HTTP status that asks for a retry; 0 without an answer.
    """

    hint = (
        "check that the cluster runs and that its address is correct; Midwatch retries"
    )

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_after: float | None = None,
        status: int = 0,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.status = status


class ClusterRefused(PermanentError):
    """The Kubernetes API server refused a request.

    Attributes:
        status: The HTTP status; 0 if no request was sent.
        reason: The API's reason, such as Forbidden.
        fields: The fields of the object that are wrong.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        hint: str | None = None,
        status: int = 0,
        reason: str = "",
        fields: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.reason = reason
        self.fields = fields


class ResourceGone(PermanentError):
    """The object, or its kind, does not exist."""
