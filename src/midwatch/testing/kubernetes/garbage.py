"""The garbage collector: what loses its last owner goes, and what waits for its dependents waits.

Also empties namespaces and definitions that are being deleted.
"""

from __future__ import annotations

import asyncio

from midwatch.model import Json

from .api import CRD, Api
from .kinds import Kind
from .naming import CRD_FINALIZER
from .options import FOREGROUND, ORPHAN, DeleteOptions
from .patches import MERGE
from .refusals import Refused
from .state import Change, Resource, key_of


class Collector:
    """Follows every change, a moment after it."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._changes: asyncio.Queue[Change] = asyncio.Queue()
        api.state.listeners.append(self._changes.put_nowait)

    async def run(self) -> None:
        while True:
            change = await self._changes.get()
            try:
                self._follow(change)
            except Refused:
                # What it is about has changed meanwhile, and that change is in the queue.
                continue
            if self._changes.qsize() % 50 == 0:
                await asyncio.sleep(0)

    def _follow(self, change: Change) -> None:
        meta = change.document["metadata"]
        if change.type == "DELETED":
            self._ended(change)
            return
        if meta.get("ownerReferences"):
            self._judge(change.resource, change.document)
        if "deletionTimestamp" not in meta:
            return
        finalizers = meta.get("finalizers", ())
        if ORPHAN in finalizers:
            self._orphan(change.resource, change.document)
        if FOREGROUND in finalizers:
            self._foreground(meta["uid"])
        if change.resource == ("", "namespaces"):
            self._empty_namespace(meta["name"])
        if change.resource == CRD and CRD_FINALIZER in finalizers:
            self._empty_definition(change.document)

    def _ended(self, change: Change) -> None:
        meta = change.document["metadata"]
        for resource, dependent in self._api.state.dependents(meta["uid"]):
            self._judge(resource, dependent)
        for owner in meta.get("ownerReferences", ()):
            self._foreground(owner["uid"])
        if meta.get("namespace"):
            self._empty_namespace(meta["namespace"])
        if change.resource == CRD:
            self._api.kinds.drop(meta["name"])
        for kind in self._kinds(change.resource):
            definition = self._api.state.get(CRD, ("", kind.crd))
            if definition and "deletionTimestamp" in definition["metadata"]:
                self._empty_definition(definition)

    def _kinds(self, resource: Resource) -> list[Kind]:
        return [k for k in self._api.kinds if k.resource == resource]

    def _kind(self, resource: Resource) -> Kind:
        return self._kinds(resource)[0]

    def _judge(self, resource: Resource, document: Json) -> None:
        """Delete it if none of its owners is there any more."""
        meta = document["metadata"]
        owners = meta.get("ownerReferences", ())
        alive = [owner for owner in owners if self._owns(owner, meta)]
        if owners and not alive and "deletionTimestamp" not in meta:
            self._delete(resource, document)

    def _owns(self, owner: Json, meta: Json) -> bool:
        found = self._api.state.with_uid(owner["uid"])
        if found is None:
            return False
        namespace = found[1]["metadata"].get("namespace")
        return namespace in (None, meta.get("namespace"))

    def _delete(self, resource: Resource, document: Json) -> None:
        options = DeleteOptions("Background", uid=document["metadata"]["uid"])
        current = self._api.state.get(resource, key_of(document))
        if current is not None:
            self._api.delete(self._kind(resource), key_of(document), options)

    def _orphan(self, resource: Resource, document: Json) -> None:
        """Let the dependents go free, then the object go."""
        uid = document["metadata"]["uid"]
        for where, dependent in self._api.state.dependents(uid):
            owners = dependent["metadata"]["ownerReferences"]
            rest = [owner for owner in owners if owner["uid"] != uid]
            self._patch(where, dependent, {"ownerReferences": rest})
        self._release(resource, document, ORPHAN)

    def _foreground(self, uid: str) -> None:
        """Delete the dependents of an owner that waits; release it when none blocks it."""
        found = self._api.state.with_uid(uid)
        if found is None or FOREGROUND not in found[1]["metadata"].get(
            "finalizers", ()
        ):
            return
        blocking = False
        for resource, dependent in self._api.state.dependents(uid):
            if "deletionTimestamp" not in dependent["metadata"]:
                self._delete(resource, dependent)
        for _, dependent in self._api.state.dependents(uid):
            owners = dependent["metadata"]["ownerReferences"]
            blocking |= any(
                o["uid"] == uid and o.get("blockOwnerDeletion") for o in owners
            )
        if not blocking:
            self._release(*found, FOREGROUND)

    def _empty_namespace(self, name: str) -> None:
        namespace = self._api.state.get(("", "namespaces"), ("", name))
        if namespace is None or "deletionTimestamp" not in namespace["metadata"]:
            return
        left = False
        for resource in self._api.state.resources():
            for document in self._api.state.all(resource, name):
                if "deletionTimestamp" not in document["metadata"]:
                    self._delete(resource, document)
                left |= self._api.state.get(resource, key_of(document)) is not None
        if not left and not namespace["metadata"].get("finalizers"):
            self._api.state.remove(("", "namespaces"), ("", name))

    def _empty_definition(self, definition: Json) -> None:
        spec = definition["spec"]
        resource = spec["group"], spec["names"]["plural"]
        for document in self._api.state.all(resource):
            if "deletionTimestamp" not in document["metadata"]:
                self._delete(resource, document)
        if not self._api.state.all(resource):
            self._release(CRD, definition, CRD_FINALIZER)

    def _release(self, resource: Resource, document: Json, finalizer: str) -> None:
        current = self._api.state.get(resource, key_of(document))
        finalizers = current["metadata"].get("finalizers", []) if current else []
        if current and finalizer in finalizers:
            rest = [name for name in finalizers if name != finalizer]
            self._patch(resource, current, {"finalizers": rest})

    def _patch(self, resource: Resource, document: Json, metadata: Json) -> None:
        patch = {"metadata": metadata}
        self._api.patch(self._kind(resource), key_of(document), "", MERGE, patch)
