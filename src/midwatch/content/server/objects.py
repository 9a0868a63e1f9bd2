"""What the content proxy asks of the place that keeps its folders: `Volume` and `Bucket` satisfy it.

A folder has one manifest and any number of segments. The manifest is the only thing that changes, and it is replaced
on condition that it is still the one that was read. Segments are written once, under names that never come again.

Removal is safe without a lock that all replicas share. A segment is deleted only after a manifest that lists it as
`dropped` has taken the place of the one before; no commit names a dropped segment, and a commit that was computed
from an earlier manifest is refused, as its condition does not hold any more. So the age of a segment decides only
what is worth keeping, and clocks that differ lose nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple, Protocol

from midwatch.content.errors import ContentFull, ContentUnavailable
from midwatch.content.server.segments import Place, Stored
from midwatch.errors import MidwatchError, TemporaryError
from midwatch.files import is_disk_full


class Tag(NamedTuple):
    """Identifies one manifest of a folder: the next one has another tag."""

    etag: str
    version: str | None = None


class ManifestChanged(TemporaryError):
    """The manifest is not the one that was read, or a segment that the new one needs is gone."""


class Overview(NamedTuple):
    """A folder as a listing shows it: when it was last used is in seconds since the epoch."""

    folder: str
    tag: Tag | None
    segments: Sequence[Stored]
    used: float


class Objects(Protocol):
    """Where folders are kept. All methods block; they raise OSError or the errors of this package."""

    poll: float
    """Seconds between two looks at a folder that somebody waits for."""

    def tag(self, folder: str) -> Tag | None:
        """Return the tag of a folder's manifest; None without one."""

    def manifest(self, folder: str, known: Tag | None) -> tuple[Tag, BinaryIO | None]:
        """Return the manifest and its tag; None instead of the manifest if it is the known one.

        Raises FileNotFoundError if there is none, and ContentUnavailable if the whole store is gone.
        """

    def replace(
        self,
        folder: str,
        pieces: Iterable[bytes],
        expected: Tag | None,
        needed: Collection[str],
    ) -> Tag:
        """Replace the manifest, durably. Return its tag.

        Args:
            folder: The folder.
            pieces: The new manifest.
            expected: The tag that the present one must have; None: there must be none.
            needed: Segments that must exist.

        Raises:
            ManifestChanged: The condition does not hold. A request that was repeated may have had its effect.
        """

    def remove(
        self,
        folder: str,
        tag: Tag | None,
        tombstone: Iterable[bytes],
        names: Collection[str],
    ) -> bool:
        """Delete a folder whose manifest still has this tag. Return whether it existed. Raises ManifestChanged.

        Where the segments `names` cannot be deleted together with the manifest, `tombstone` takes its place first: it
        lists them as dropped.
        """

    def forget(self, folder: str, tag: Tag | None, before: float) -> None:
        """Delete what is left of a folder without content since this time (seconds, epoch), unless it has changed."""

    def write(self, folder: str, name: str, data: bytes) -> None:
        """Store a segment; it is durable at the latest when a manifest that needs it is."""

    def read(
        self, folder: str, name: str, ranges: Sequence[tuple[int, int]]
    ) -> list[bytes]:
        """Return ranges of a segment, as (start, length). Raises FileNotFoundError."""

    def heads(
        self, folder: str, names: Sequence[str]
    ) -> Mapping[str, Mapping[bytes, Place]]:
        """Return where the chunks of these segments are; nothing for a segment that is gone."""

    def segments(self, folder: str) -> list[Stored]:
        """Return the segments that exist."""

    def overview(self) -> Iterator[Overview]:
        """Yield all folders."""

    def delete(self, folder: str, names: Collection[str]) -> None:
        """Delete segments."""

    def renew(self, folder: str, segment: Stored) -> None:
        """Keep a segment that no manifest names for another grace period."""

    def use(self, folder: str) -> None:
        """Record that a folder is read or written."""

    def probe(self) -> None:
        """Raise ContentFull or ContentUnavailable if a commit could not be written."""

    def clean(self) -> None:
        """Remove what processes that have ended did not complete."""

    def disk_usage(self) -> tuple[int, int] | None:
        """Return the bytes used and free; None where that is not known."""

    def close(self) -> None:
        """Free what this process holds."""


@contextlib.contextmanager
def map_disk_errors() -> Iterator[None]:
    """Turn an OSError into ContentFull or ContentUnavailable."""
    try:
        yield
    except OSError as error:
        raise map_disk_error(error) from error


def map_disk_error(error: OSError) -> MidwatchError:
    """Return the error for a client. It does not contain paths."""
    why = error.strerror or type(error).__name__
    if is_disk_full(error):
        return ContentFull(f"the volume is full: {why}")
    return ContentUnavailable(
        f"the volume cannot be used: {why}",
        hint="check the volume of the content proxy, its mount and its owner",
    )
