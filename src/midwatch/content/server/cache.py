"""Manifests that were used last, as many as fit into a number of bytes; safe between threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from midwatch.content.server.manifest import Manifest


class Mark(NamedTuple):
    """What tells one manifest's file from the next: each is a file of its own."""

    inode: int
    changed: int
    size: int


class ManifestCache:
    """A manifest counts as long as its file has the mark that it had when it was read or written."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._held: OrderedDict[str, tuple[Mark, Manifest, int]] = OrderedDict()
        self._cost = 0
        self._lock = threading.Lock()

    def get(self, folder: str, mark: Mark) -> Manifest | None:
        with self._lock:
            held = self._held.get(folder)
            if held is None or held[0] != mark:
                return None
            self._held.move_to_end(folder)
            return held[1]

    def put(self, folder: str, mark: Mark, manifest: Manifest) -> None:
        cost = manifest.cost
        with self._lock:
            self._drop(folder)
            self._held[folder] = (mark, manifest, cost)
            self._cost += cost
            # The last one stays whatever its size: it would be read for every request.
            while self._cost > self._limit and len(self._held) > 1:
                self._drop(next(iter(self._held)))

    def drop(self, folder: str) -> None:
        with self._lock:
            self._drop(folder)

    def _drop(self, folder: str) -> None:
        if folder in self._held:
            self._cost -= self._held.pop(folder)[2]
