"""All objects of the server, one growing revision over them, and who watches them.

Writes happen in one event loop; other threads may read. A stored document is never changed in place: a write puts
another in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from midwatch.model import Json

from .errors import Refused

Resource = tuple[str, str]
"""Group and plural."""
Key = tuple[str, str]
"""Namespace (empty for cluster-wide kinds) and name."""


@dataclass(frozen=True, slots=True)
class Change:
    """One event of a watch. A deleted document is its last state, at the revision of its end."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    resource: Resource
    revision: int
    document: Json
    before: Json | None = None
    _lines: dict[str, bytes] = field(default_factory=dict, repr=False)

    def line(self, type: str) -> bytes:
        """As sent to a watcher; encoded once for all of them."""
        if type not in self._lines:
            self._lines[type] = event_line(type, self.document)
        return self._lines[type]


def event_line(type: str, document: Json) -> bytes:
    event = {"type": type, "object": document}
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


def key_of(document: Json) -> Key:
    meta = document["metadata"]
    return meta.get("namespace", ""), meta["name"]


class State:
    """`history` is how many changes of one resource can still be watched from."""

    def __init__(self, history: int = 20_000) -> None:
        self.revision = 1
        self.listeners: list[Callable[[Change], None]] = []
        self._objects: dict[Resource, dict[Key, Json]] = defaultdict(dict)
        self._history: dict[Resource, deque[Change]] = defaultdict(
            lambda: deque(maxlen=history)
        )
        self._forgotten = 0
        self._latest: dict[Resource, int] = {}
        self._followers: dict[Resource, set[asyncio.Queue[Change]]] = defaultdict(set)
        self._uids: dict[str, tuple[Resource, Key]] = {}
        self._dependents: dict[str, set[tuple[Resource, Key]]] = defaultdict(set)
        self._events: dict[str, set[Key]] = defaultdict(set)

    def get(self, resource: Resource, key: Key) -> Json | None:
        return self._objects[resource].get(key)

    def all(
        self,
        resource: Resource,
        namespace: str = "",
        fits: Callable[[Json], bool] | None = None,
        about: str = "",
    ) -> list[Json]:
        """In the order of namespace and name; of one namespace if it is given, and what fits.

        `about` leaves only the events of objects with this name: a thousand sessions have many thousand events.
        """
        objects = self._objects[resource]
        keys = tuple(self._events.get(about, ())) if about else tuple(objects)
        found = [
            (key, document)
            for key in keys
            if (document := objects.get(key)) is not None
            if not namespace or key[0] == namespace
            if fits is None or fits(document)
        ]
        found.sort(key=lambda item: item[0])
        return [document for _, document in found]

    def latest(self, *resources: Resource) -> int:
        """Return the revision of the last change to one of these resources."""
        return max(self._latest.get(resource, 0) for resource in resources)

    def resources(self) -> list[Resource]:
        return [resource for resource, found in self._objects.items() if found]

    def with_uid(self, uid: str) -> tuple[Resource, Json] | None:
        place = self._uids.get(uid)
        return place and (place[0], self._objects[place[0]][place[1]])

    def dependents(self, uid: str) -> list[tuple[Resource, Json]]:
        """What names this owner, in a stable order."""
        places = sorted(tuple(self._dependents.get(uid, ())))
        found = ((resource, self.get(resource, key)) for resource, key in places)
        return [(resource, one) for resource, one in found if one is not None]

    def put(self, resource: Resource, document: Json) -> Json:
        """Store it at a new revision, which it gets; the stored document is returned."""
        key, revision = key_of(document), self._next()
        meta = {**document["metadata"], "resourceVersion": str(revision)}
        stored = {**document, "metadata": meta}
        before = self._objects[resource].get(key)
        self._objects[resource][key] = stored
        self._index(resource, key, before, stored)
        type: Literal["ADDED", "MODIFIED"] = "MODIFIED" if before else "ADDED"
        self._tell(Change(type, resource, revision, stored, before))
        return stored

    def remove(self, resource: Resource, key: Key) -> Json:
        """Returns the last state. Raises KeyError."""
        before, revision = self._objects[resource].pop(key), self._next()
        self._index(resource, key, before, None)
        meta = {**before["metadata"], "resourceVersion": str(revision)}
        last = {**before, "metadata": meta}
        self._tell(Change("DELETED", resource, revision, last, before))
        return last

    def since(self, resource: Resource, revision: int) -> list[Change]:
        """What happened after a revision. Raises Refused (410) where that is forgotten."""
        kept = self._history[resource]
        full = len(kept) == kept.maxlen
        oldest = max(self._forgotten, kept[0].revision - 1 if full else 0)
        if revision < oldest:
            said = f"too old resource version: {revision} ({oldest})"
            raise Refused(410, said)
        return [change for change in kept if change.revision > revision]

    def forget(self) -> None:
        """Compact: no earlier revision than the present one can be watched from."""
        self._forgotten = self.revision
        self._history.clear()

    @contextlib.contextmanager
    def followed(self, resource: Resource) -> Iterator[asyncio.Queue[Change]]:
        """A queue of the changes from now on."""
        queue: asyncio.Queue[Change] = asyncio.Queue()
        self._followers[resource].add(queue)
        try:
            yield queue
        finally:
            self._followers[resource].discard(queue)

    def _next(self) -> int:
        self.revision += 1
        return self.revision

    def _tell(self, change: Change) -> None:
        self._latest[change.resource] = change.revision
        self._history[change.resource].append(change)
        for queue in self._followers[change.resource]:
            queue.put_nowait(change)
        for listener in self.listeners:
            listener(change)

    def _index(
        self, resource: Resource, key: Key, before: Json | None, after: Json | None
    ) -> None:
        place = resource, key
        for document, present in ((before, False), (after, True)):
            if document is None:
                continue
            meta = document["metadata"]
            if present:
                self._uids[meta["uid"]] = place
            else:
                self._uids.pop(meta["uid"], None)
            if about := document.get("involvedObject", {}).get("name"):
                if present:
                    self._events[about].add(key)
                else:
                    self._events[about].discard(key)
            for owner in meta.get("ownerReferences", ()):
                if present:
                    self._dependents[owner["uid"]].add(place)
                else:
                    self._dependents[owner["uid"]].discard(place)
