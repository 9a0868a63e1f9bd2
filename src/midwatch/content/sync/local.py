"""Chunks from local files, checked: a file that is not what it was any more has none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from midwatch.content.sync.reading import read_at
from midwatch.content.sync.roots import Walker
from midwatch.content.tree import CHUNK, Entry, chunk_hash
from midwatch.content.wire import frame_of

BATCH = CHUNK
"""Bytes that go from or to a thread at once, and a chunk more at most."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LocalChunks:
    """Where chunks are in local files; `changed` has the paths that were found to be other files by now."""

    def __init__(
        self,
        walker: Walker,
        entries: Mapping[str, Entry],
        captured: Mapping[str, bytes] | None = None,
    ) -> None:
        self._walker = walker
        self._captured = captured or {}
        self._places = {
            chunk: (path, number)
            for path, entry in entries.items()
            for number, chunk in enumerate(entry.chunks)
        }
        self.changed: set[str] = set()

    def __contains__(self, chunk: str) -> bool:
        return chunk in self._places

    def batches(self, chunks: Iterable[str]) -> Iterator[list[tuple[str, bytes]]]:
        """What there is of these chunks, about `BATCH` bytes at a time."""
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
        """The same as a stream of frames."""
        for batch in self.batches(chunks):
            yield b"".join(frame_of(name, data) for name, data in batch)

    def _read(self, chunk: str) -> bytes | None:
        if data := self._captured.get(chunk):
            return data
        path, number = self._places[chunk]
        if path in self.changed:
            return None
        try:
            data = self._at(path, number * CHUNK)
        except OSError:
            data = b""
        if chunk_hash(data) == chunk:
            return data
        self.changed.add(path)
        return None

    def _at(self, path: str, offset: int) -> bytes:
        folder, name = self._walker.parent(path)
        file = os.open(name, _READ, dir_fd=folder)
        try:
            return read_at(file, offset)
        finally:
            os.close(file)
