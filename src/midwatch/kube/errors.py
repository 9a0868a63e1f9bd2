"""Errors of the cluster, below the two branches of `midwatch.errors`.

::

    TemporaryError
    └── ClusterUnavailable    the API server does not answer, or asks to retry later (retry_after); status
    PermanentError
    ├── ClusterRefused        401, 403, 400, 422: a retry does not help; status, reason
    ├── NameTaken             an object of this name exists and belongs to something else
    ├── ResourceGone          the session's resource was deleted (404), or replaced by another uid
    ├── SpecRefused           the spec is invalid; path: the field
    │   ├── SpecImpossible    the API server refuses its Job, and the field is immutable
    │   └── OriginNotEnded    the session of spec.resumeFrom still runs
    └── WriterOutdated        a later attempt has taken over, or the session has ended
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


class NameTaken(PermanentError):
    """An object of this name exists and does not belong to the session."""

    hint = "delete it, or give the session another name"


class ResourceGone(PermanentError):
    """The session's resource does not exist."""


class SpecRefused(PermanentError):
    """The spec of a resource is invalid.

    Attributes:
        path: The field, such as `spec.repos[0].name`.
    """

    def __init__(
        self, message: str, *, path: str = "", hint: str | None = None
    ) -> None:
        super().__init__(f"{path}: {message}" if path else message, hint=hint)
        self.path = path


class SpecImpossible(SpecRefused):
    """The API server refuses every Job of this resource."""

    hint = "create another session: this field is immutable"


class OriginNotEnded(SpecRefused):
    """The session that `spec.resumeFrom` names is still running."""


class WriterOutdated(PermanentError):
    """A later attempt has taken over this session, or the session has ended."""
