"""Errors of the cluster, below the two branches of `midwatch.errors`.

::

    TemporaryError
    └── ClusterUnavailable    the API server does not answer, or asks to wait (retry_after)
    PermanentError
    ├── ClusterRefused        401, 403, 400, 422: asking again changes nothing; status, reason
    ├── NameTaken             an object of that name is there, and is not this session's
    ├── ResourceGone          the session's resource was deleted (404), or replaced by another uid
    ├── SpecRefused           a resource that means nothing; path: the field
    └── WriterOutdated        another attempt or a later generation has taken over
"""

from __future__ import annotations

from ..errors import PermanentError, TemporaryError


class ClusterUnavailable(TemporaryError):
    """The Kubernetes API server does not answer."""

    hint = "check the cluster's address and that it runs; it is tried again"


class ClusterRefused(PermanentError):
    """The Kubernetes API server refused. `status` is the HTTP status (0: no request was made), `reason`
    the API's word for it."""

    def __init__(
        self,
        message: str | None = None,
        *,
        hint: str | None = None,
        status: int = 0,
        reason: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.reason = reason


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


class WriterOutdated(PermanentError):
    """Another runner has taken over this session."""
