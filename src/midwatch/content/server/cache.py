"""What the proxy keeps in memory of folders, within bounds: manifests with their indexes, and the last steps."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from midwatch.content.server.manifest import Manifest
from midwatch.content.server.objects import Tag
from midwatch.content.server.segments import PLACE_BYTES, Index, Place

_HISTORY_BYTES = 16 << 20
_FOLDER_HISTORY_BYTES = 1 << 20
"""Enough for the last 5,000 or so changed paths of a folder."""
_ITEM_BYTES = 120
"""Approximate bytes that a path or a step takes in addition to its characters."""


_FOLDER_BYTES = 1300
"""The same of a folder by itself, with one path or step or with none: measured at 930 to 1,300."""


# ------------------------------------------------------------------ manifests


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a folder.

    Attributes:
        tag: The tag of the manifest; None without one.
        manifest: The manifest.
        index: Where the chunks of some segments are, mostly those of the manifest.
        loose: Where the chunks of other segments are, by segment. They may be gone.
        weight: Approximate bytes of the manifest.
    """

    tag: Tag | None = None
    manifest: Manifest = Manifest()
    index: Index = Index()
    loose: Mapping[str, Mapping[bytes, Place]] = field(default_factory=dict)

    weight: int = 0

    @property
    def cost(self) -> int:
        """Return the approximate bytes of memory."""
        loose = sum(map(len, self.loose.values()))
        return _FOLDER_BYTES + self.weight + self.index.cost + PLACE_BYTES * loose


class ManifestCache:
    """The folders that were used last, up to `limit` bytes. Thread-safe.

    A manifest is valid while the stored one has its tag. Where the chunks of a segment are never changes.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._held: OrderedDict[str, tuple[Known, int]] = OrderedDict()
        self._cost = 0
        self._lock = threading.Lock()

    def get(self, folder: str) -> Known:
        """Return what is known of a folder."""
        with self._lock:
            if folder not in self._held:
                return Known()
            self._held.move_to_end(folder)
            return self._held[folder][0]

    def put_manifest(self, folder: str, tag: Tag, manifest: Manifest) -> None:
        """Keep a manifest."""
        self._update(folder, tag=tag, manifest=manifest, weight=manifest.cost)

    def put_index(
        self,
        folder: str,
        index: Index,
        loose: Mapping[str, Mapping[bytes, Place]],
    ) -> None:
        """Keep where chunks are."""
        self._update(folder, index=index, loose=loose)

    def _update(self, folder: str, **changes: object) -> None:
        """Change what is known, and drop the folders that were used least recently."""
        with self._lock:
            known, cost = self._held.pop(folder, (Known(), 0))
            known = replace(known, **changes)  # type: ignore[arg-type]
            self._held[folder] = known, known.cost
            self._cost += known.cost - cost
            # The last one stays whatever its size: it would be read for every request.
            while self._cost > self._limit and len(self._held) > 1:
                self._drop(next(iter(self._held)))

    def drop(self, folder: str) -> None:
        """Forget a folder."""
        with self._lock:
            self._drop(folder)

    def _drop(self, folder: str) -> None:
        if folder in self._held:
            self._cost -= self._held.pop(folder)[1]


# ------------------------------------------------------------------ the last steps


class _Step(NamedTuple):
    before: str
    after: str
    paths: frozenset[str]
    cost: int


@dataclass(slots=True)
class _Steps:
    """The steps of one folder: each begins at the version where the one before it ended."""

    held: deque[_Step] = field(default_factory=deque)
    cost: int = 0


class History:
    """The last changes of folders, so that a client with a recent version is sent the difference only. Thread-safe.

    It is in memory, bounded, and of this process: the whole manifest is sent if the commits in between are not recorded.

    Args:
        limit: Bytes for all folders.
        of_one: Bytes for one folder.
    """

    def __init__(
        self, limit: int = _HISTORY_BYTES, of_one: int = _FOLDER_HISTORY_BYTES
    ) -> None:
        self._limit = limit
        self._of_one = of_one
        self._folders: OrderedDict[str, _Steps] = OrderedDict()
        self._cost = 0
        self._lock = threading.Lock()

    def add(self, folder: str, before: str, after: str, paths: frozenset[str]) -> None:
        """Record a commit that changed these paths of version `before` and made version `after`."""
        cost = _ITEM_BYTES + sum(map(len, paths)) + _ITEM_BYTES * len(paths)
        with self._lock:
            if folder not in self._folders:
                self._folders[folder] = _Steps()
                self._cost += _FOLDER_BYTES
            steps = self._folders[folder]
            if steps.held and steps.held[-1].after != before:
                self._shorten(steps, 0)  # another process committed in between
            steps.held.append(_Step(before, after, paths, cost))
            steps.cost += cost
            self._cost += cost
            self._shorten(steps, self._of_one)
            self._folders.move_to_end(folder)
            while self._cost > self._limit:
                self._drop(next(iter(self._folders)))

    def since(self, folder: str, known: str, current: str) -> frozenset[str] | None:
        """Return the paths that changed from version `known` to `current`; None if some commits in between are not recorded."""
        with self._lock:
            found = self._folders.get(folder)
            steps = list(found.held) if found else []
        if not steps or steps[-1].after != current:
            return None
        paths: set[str] = set()
        for step in reversed(steps):
            paths |= step.paths
            if step.before == known:
                return frozenset(paths)
        return None

    def drop(self, folder: str) -> None:
        """Forget a folder."""
        with self._lock:
            self._drop(folder)

    def _drop(self, folder: str) -> None:
        if steps := self._folders.pop(folder, None):
            self._cost -= _FOLDER_BYTES + steps.cost

    def _shorten(self, steps: _Steps, limit: int) -> None:
        while steps.cost > limit:
            cost = steps.held.popleft().cost
            steps.cost -= cost
            self._cost -= cost
