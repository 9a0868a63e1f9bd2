"""Uploads and downloads of chunks, in bounded memory; a transfer that breaks continues where it was."""

from __future__ import annotations

import asyncio
import os
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import ParamSpec, TypeVar

from midwatch.content.errors import ContentDamaged, ContentUnavailable, StreamBroken
from midwatch.content.sync.apply import Staging
from midwatch.content.sync.client import ContentClient
from midwatch.content.sync.roots import Roots, Walker, change_mode, read_at
from midwatch.content.tree import CHUNK, MAX_HASHES, Entry, chunk_hash, frame_of
from midwatch.errors import TemporaryError
from midwatch.files import open_regular

P = ParamSpec("P")
R = TypeVar("R")
BATCH = CHUNK
"""Bytes that are passed to or from a thread at once, and a chunk more at most."""
_TRIES = 4
"""Failures in a row without any progress."""
_APPEND_CHUNKS = 16
"""Chunks of lines that are appended in one round; the rest comes in the next."""
_APPEND_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT
_FEW = 64
_SMALL = 4 << 20
"""Chunks and bytes that are sent without asking which of them are missing."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


async def in_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return the result of a call that blocks. A cancellation waits for it, so that no thread still writes to the folders."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise


class LocalChunks:
    """Reads chunks from local files; `changed` has the paths of files that have changed since the scan.

    Args:
        walker: Opens the files.
        entries: The files by path.
        captured: Chunks that need not be read.
    """

    def __init__(
        self,
        walker: Walker,
        entries: Mapping[str, Entry],
        captured: Mapping[str, bytes] | None = None,
    ) -> None:
        self._walker = walker
        self._captured = captured or {}
        self._places = {
            chunk: (path, number * CHUNK, min(CHUNK, entry.size - number * CHUNK))
            for path, entry in entries.items()
            for number, chunk in enumerate(entry.chunks)
        }
        self.changed: set[str] = set()

    def __contains__(self, chunk: str) -> bool:
        return chunk in self._places

    def batches(self, chunks: Iterable[str]) -> Iterator[list[tuple[str, bytes]]]:
        """Yield those of these chunks that still exist, about `BATCH` bytes at a time."""
        batch: list[tuple[str, bytes]] = []
        size = 0
        for chunk in chunks:
            if data := self._read(chunk):
                batch.append((chunk, data))
                size += len(data)
            if size >= BATCH:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def frames(self, chunks: Iterable[str]) -> Iterator[bytes]:
        """Yield the same as a stream of frames."""
        for batch in self.batches(chunks):
            yield b"".join(frame_of(name, data) for name, data in batch)

    def _read(self, chunk: str) -> bytes | None:
        if data := self._captured.get(chunk):
            return data
        path, offset, length = self._places[chunk]
        if path in self.changed:
            return None
        try:
            data = self._at(path, offset, length)
        except OSError:
            data = b""
        if chunk_hash(data) == chunk:
            return data
        self.changed.add(path)
        return None

    def _at(self, path: str, offset: int, length: int) -> bytes:
        folder, name = self._walker.parent(path)
        file = os.open(name, _READ, dir_fd=folder)
        try:
            return read_at(file, offset, length)
        finally:
            os.close(file)


async def upload(
    client: ContentClient,
    roots: Roots,
    entries: Mapping[str, Entry],
    wanted: Collection[str],
    captured: Mapping[str, bytes],
) -> set[str]:
    """Send chunks of local files.

    Args:
        client: The proxy.
        roots: The local folders.
        entries: The files by path.
        wanted: The chunks to send.
        captured: Chunks that need not be read.

    Returns:
        The paths of files that have changed since the scan.
    """
    with roots.walker() as walker:
        local = LocalChunks(walker, entries, captured)
        left, size = [c for c in wanted if c in local], len(wanted) * CHUNK
        if len(left) > _FEW or sum(e.size for e in entries.values()) > _SMALL:
            left = await client.missing(left)
        tries = 0
        while left:
            try:
                await client.put_chunks(_stream(local.frames(left)), size)
                break
            except (ContentUnavailable, StreamBroken):
                before, left = len(left), await client.missing(left)
                tries = 0 if len(left) < before else tries + 1
                if tries >= _TRIES:
                    raise
        return local.changed


async def _stream(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    source = iter(pieces)
    while piece := await in_thread(next, source, b""):
        yield piece


async def download(
    client: ContentClient,
    roots: Roots,
    staging: Staging,
    present: Mapping[str, Entry],
    *,
    folder: str | None = None,
) -> None:
    """Complete the staged files.

    Args:
        client: The proxy.
        roots: The local folders.
        staging: The files to complete.
        present: Local files that may have some of the chunks.
        folder: The folder on the proxy; the client's by default.
    """
    if not staging.wanted:
        return
    await in_thread(_copy, roots, staging, present)
    tries = 0
    while wanted := staging.wanted[:MAX_HASHES]:
        before = len(staging.wanted)
        problem: TemporaryError = ContentUnavailable("the content proxy sent no chunks")
        try:
            await _fetch(client, staging, wanted, folder)
        except (ContentUnavailable, StreamBroken) as error:
            problem = error
        tries = 0 if len(staging.wanted) < before else tries + 1
        if tries >= _TRIES:
            raise problem


def _copy(roots: Roots, staging: Staging, present: Mapping[str, Entry]) -> None:
    with roots.walker() as walker:
        local = LocalChunks(walker, present)
        for batch in local.batches([c for c in staging.wanted if c in local]):
            staging.write(batch)


def finish(staging: Staging) -> None:
    """Finish and sync the staged files. Raises ContentDamaged."""
    try:
        staging.finish()
    except ValueError as error:
        raise ContentDamaged(
            f"the content proxy's manifest is invalid: {error}"
        ) from None


async def _fetch(
    client: ContentClient, staging: Staging, wanted: list[str], folder: str | None
) -> None:
    batch: list[tuple[str, bytes]] = []
    size = 0
    try:
        async for name, data in client.read_chunks(wanted, folder=folder):
            batch.append((name, data))
            size += len(data)
            if size >= BATCH:
                full, batch, size = batch, [], 0
                await in_thread(staging.write, full)
    finally:
        # Also if the stream breaks: complete chunks need not be sent again.
        if batch:
            await in_thread(staging.write, batch)


# ------------------------------------------------------------------ files that the proxy appends to


async def merge_appended_lines(
    client: ContentClient, roots: Roots, path: str, theirs: Entry, ours: Entry | None
) -> None:
    """Append the new whole lines of a file that only the proxy's side writes, such as the session's mailbox.

    Its reader knows it by byte offset, so it is never replaced, and what was read is never read again, whatever
    happens to the connection. Raises OSError if the local file cannot be appended to.
    """
    same = _shared(ours.chunks if ours else (), theirs.chunks)
    wanted = theirs.chunks[same : same + _APPEND_CHUNKS]
    pieces = {name: data async for name, data in client.read_chunks(wanted)}
    data = b"".join(pieces.get(name, b"") for name in wanted)
    await in_thread(_append, roots, path, same * CHUNK, data[: data.rfind(b"\n") + 1])


def _shared(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Return the number of equal chunks at the beginning."""
    same = 0
    for one, other in zip(ours, theirs, strict=False):
        if one != other:
            break
        same += 1
    return same


def _append(roots: Roots, path: str, start: int, theirs: bytes) -> None:
    """Append what is new in `theirs`, their lines from the offset `start` on."""
    with roots.walker() as walker:
        folder, name = walker.parent(path)
        try:
            file = open_regular(name, _APPEND_FLAGS, inside=folder)
        except PermissionError:  # the session closed it: its mailbox stays open
            change_mode(name, folder, 0o600)
            file = open_regular(name, _APPEND_FLAGS, inside=folder)
    try:
        ours = os.pread(file, len(theirs) + CHUNK, start)
        new = _new_lines(ours, theirs)
        while new:
            new = new[os.write(file, new) :]
        os.fsync(file)
    finally:
        os.close(file)


def _new_lines(ours: bytes, theirs: bytes) -> bytes:
    """Return what follows ours in theirs; if the two differ, the lines that ours does not have."""
    if theirs.startswith(ours):
        return theirs[len(ours) :]
    if ours.startswith(theirs):
        return b""
    known = set(ours.splitlines())
    lines = [line for line in theirs.splitlines() if line not in known]
    separator = b"" if ours.endswith(b"\n") or not lines else b"\n"
    return separator + b"".join(line + b"\n" for line in lines)
