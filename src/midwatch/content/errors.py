"""What can go wrong with content, as children of the one tree.

::

    TemporaryError
    ├── ContentUnavailable    the proxy does not answer, or asks to wait (retry_after)
    ├── VersionConflict       the folder has another version by now; current: which
    ├── ChunksMissing         the proxy does not have these chunks; hashes: which
    ├── ContentFull           no space on the volume; nothing was lost
    └── StreamBroken          a stream of chunks was cut, or is not what its hashes say
    PermanentError
    ├── ContentRefused        400, 403, 415, 422, 428: asking again changes nothing
    │   ├── TokenRefused          401: no token, or one that does not hold
    │   └── ContentTooLarge       413: more than a limit of the proxy
    ├── Superseded            a later attempt of the session works on the folder; this one is over
    ├── PathRefused           a path that is never stored nor written; path: which
    └── ContentDamaged        what the volume holds is not what was written
"""

from __future__ import annotations

from collections.abc import Sequence

from midwatch.errors import PermanentError, TemporaryError


class ContentUnavailable(TemporaryError):
    """The content proxy does not answer."""

    hint = "check the proxy's address and that it runs; it is tried again"


class VersionConflict(TemporaryError):
    """The folder was changed by somebody else meanwhile."""

    hint = "read its manifest again and merge"

    def __init__(self, current: str, message: str | None = None) -> None:
        super().__init__(message)
        self.current = current


class ChunksMissing(TemporaryError):
    """The proxy does not have some chunks."""

    hint = "send them, then try again"

    def __init__(self, hashes: Sequence[str], message: str | None = None) -> None:
        super().__init__(message or f"{len(hashes)} chunks are not there")
        self.hashes = tuple(hashes)


class ContentFull(TemporaryError):
    """The content proxy's volume is full."""

    hint = "make the volume larger or delete old sessions; nothing was lost, it is tried again"


class StreamBroken(TemporaryError):
    """A stream of chunks is broken."""

    hint = "ask which chunks are missing and send those"


class ContentRefused(PermanentError):
    """The content proxy refused."""


class TokenRefused(ContentRefused):
    """The token does not hold."""

    hint = "the operator issues one per session; its key must be the proxy's"


class ContentTooLarge(ContentRefused):
    """That is more than the content proxy takes."""

    hint = (
        "leave out what need not be kept, or raise the limit in the settings `content`"
    )


class Superseded(PermanentError):
    """A later attempt works on the folder: this one is over, and may change nothing there any more."""

    hint = "there is nothing to do: the later attempt went on with what was saved"

    def __init__(self, current: int = 0, message: str | None = None) -> None:
        super().__init__(message or f"attempt {current} works on this folder by now")
        self.current = current


class PathRefused(PermanentError):
    """A path that is never stored nor written."""

    hint = "paths are relative, with plain names between single slashes"

    def __init__(self, path: str, why: str, *, hint: str | None = None) -> None:
        # Paths are hostile: shown as ASCII, and not at any length.
        super().__init__(f"{ascii(path[:200])} {why}", hint=hint)
        self.path = path


class ContentDamaged(PermanentError):
    """What the volume holds is not what was written to it."""

    hint = "check the volume's disk; restore the folder from a backup, or delete it"
