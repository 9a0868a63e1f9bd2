"""Errors of the operator and the runner, beside those of the API (`midwatch.cluster.errors`).

::

    PermanentError
    ├── NameTaken             an object of this name exists and belongs to something else
    ├── SpecRefused           the spec is invalid; path: the field
    │   ├── SpecImpossible    the API server refuses its Job, and the field is immutable
    │   └── OriginNotEnded    the session of spec.resumeFrom still runs
    └── WriterOutdated        a later attempt has taken over, or the session has ended
"""

from __future__ import annotations

from midwatch.errors import PermanentError


class NameTaken(PermanentError):
    """An object of this name exists and does not belong to the session."""

    hint = "delete it, or give the session another name"


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
