"""Errors of the content proxy and of the sync.

::

    TemporaryError
    ├── ContentUnavailable    the proxy does not answer, or asks to wait (retry_after)
    ├── VersionConflict       the folder has another version; current: which
    ├── ChunksMissing         the proxy does not have these chunks; hashes: which
    ├── ContentFull           no space left on the volume; nothing was lost
    └── StreamBroken          a stream of chunks was cut, or does not match its hashes
    PermanentError
    ├── ContentRefused        400, 403, 415, 422, 428: a retry does not help
    │   ├── TokenRefused          401: no token, or an invalid one
    │   └── ContentTooLarge       413: more than a limit of the proxy
    ├── Superseded            a later attempt of the session owns the folder
    ├── PathRefused           a path that is neither stored nor written; path: which
    └── ContentDamaged        a file on the volume is not what was written
"""

from __future__ import annotations

from collections.abc import Sequence

from midwatch.errors import PermanentError, TemporaryError


class ContentUnavailable(TemporaryError):
    """The content proxy does not answer."""

    hint = "check the proxy's address and that it runs; the request is retried"


class VersionConflict(TemporaryError):
    """Another writer has changed the folder."""

    hint = "read its manifest again and merge"

    def __init__(self, current: str, message: str | None = None) -> None:
        super().__init__(message)
        self.current = current


class ChunksMissing(TemporaryError):
    """The proxy does not have some chunks."""

    hint = "send them, then retry"

    def __init__(self, hashes: Sequence[str], message: str | None = None) -> None:
        super().__init__(message or f"the proxy does not have {len(hashes)} chunks")
        self.hashes = tuple(hashes)


class ContentFull(TemporaryError):
    """The content proxy's volume is full."""

    hint = "make the volume larger or delete old sessions; nothing was lost, the write is retried"


class StreamBroken(TemporaryError):
    """A stream of chunks is broken."""

    hint = "ask which chunks are missing and send those"


class ContentRefused(PermanentError):
    """The content proxy refused the request."""


class TokenRefused(ContentRefused):
    """The token is not valid."""

    hint = "the operator issues one per session and must use the same key as the proxy"


class ContentTooLarge(ContentRefused):
    """The content is larger than the content proxy allows."""

    hint = "leave out files that need not be kept, or raise the limit in the settings `content`"


class Superseded(PermanentError):
    """A later attempt owns the folder; this one must not change it any more."""

    hint = "nothing to do: the later attempt continues from what was saved"

    def __init__(self, current: int = 0, message: str | None = None) -> None:
        super().__init__(message or f"attempt {current} owns this folder now")
        self.current = current


class PathRefused(PermanentError):
    """The path is neither stored nor written."""

    hint = "paths are relative, with plain names between single slashes"

    def __init__(self, path: str, why: str, *, hint: str | None = None) -> None:
        # Paths are hostile: shown as ASCII, and cut.
        super().__init__(f"{ascii(path[:200])} {why}", hint=hint)
        self.path = path


class ContentDamaged(PermanentError):
    """A file on the volume is not what was written to it."""

    hint = "check the volume's disk; restore the folder from a backup, or delete it"
