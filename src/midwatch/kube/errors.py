"""Errors of the cluster, below the two branches of `midwatch.errors`.

::

    TemporaryError
    └── ClusterUnavailable    the API server does not answer, or asks to wait (retry_after); status
    PermanentError
    ├── ClusterRefused        401, 403, 400, 422: asking again changes nothing; status, reason
    ├── NameTaken             an object of that name is there, and is not this session's
    ├── ResourceGone          the session's resource was deleted (404), or replaced by another uid
    ├── SpecRefused           a resource that means nothing; path: the field
    │   ├── SpecImpossible    the API server takes no Job of it, and the field cannot be changed any more
    │   └── OriginNotEnded    the session of spec.resumeFrom still runs
    └── WriterOutdated        a later attempt has taken over, or the session is over
"""

from __future__ import annotations

from midwatch.errors import PermanentError, TemporaryError


class ClusterUnavailable(TemporaryError):
    """The Kubernetes API server does not answer.

    `status` is the HTTP status that asks to try again; 0: there was no answer.
    """

    hint = "check the cluster's address and that it runs; it is tried again"

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
    """The Kubernetes API server refused. `status` is the HTTP status (0: no request was made), `reason`
    the API's word for it, `fields` are those that it found wrong."""

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
    """An object of that name is there, and belongs to somebody else."""

    hint = "delete it, or give the session another name"


class ResourceGone(PermanentError):
    """The session's resource is gone."""


class SpecRefused(PermanentError):
    """The resource asks for something that cannot be."""

    def __init__(
        self, message: str, *, path: str = "", hint: str | None = None
    ) -> None:
        super().__init__(f"{path}: {message}" if path else message, hint=hint)
        self.path = path


class SpecImpossible(SpecRefused):
    """No Job can be made of the resource."""

    hint = "create another session: this field cannot be changed"


class OriginNotEnded(SpecRefused):
    """The session that this one goes on with is still running."""


class WriterOutdated(PermanentError):
    """A later attempt has taken over this session, or it is over."""
