"""Create, read, change and delete: what each verb does to the objects, and the garbage collector that follows.

Knows nothing of HTTP nor of users. `admit` is asked before each write with the new and the old document.
"""

from __future__ import annotations

import asyncio
import copy
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from midwatch.model import Json

from . import builtin, errors, patches, schemas
from .builtin import CRD_FINALIZER, metadata_faults
from .errors import Cause, Refused, conflict
from .kinds import CRDS, Kind, Kinds
from .patches import MERGE
from .schemas import ABSENT, broken, fill, pruned, value_faults
from .storage import Change, Key, Resource, State, key_of

ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """`grace` is in seconds; None is the pod's own. `policy` is the propagation policy."""

    policy: str | None = None
    grace: int | None = None
    uid: str = ""
    revision: str = ""

    @classmethod
    def read(cls, body: Any, query: Mapping[str, str]) -> DeleteOptions:
        """Raises Refused (400)."""
        body = body if isinstance(body, dict) else {}
        wanted = body.get("preconditions") or {}
        policy = body.get("propagationPolicy") or query.get("propagationPolicy")
        if policy not in (None, "Orphan", "Background", "Foreground"):
            raise Refused(400, f"invalid propagationPolicy: {policy!r}")
        grace = body.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
        try:
            seconds = None if grace is None else int(grace)
        except ValueError:
            raise Refused(400, f"invalid gracePeriodSeconds: {grace!r}") from None
        return cls(
            policy, seconds, wanted.get("uid", ""), wanted.get("resourceVersion", "")
        )

    def check(self, kind: Kind, meta: Json) -> None:
        """Raises Refused (409) where a precondition does not hold."""
        for wanted, name in ((self.uid, "uid"), (self.revision, "resourceVersion")):
            if wanted and wanted != meta[name]:
                why = f"the {name} in the precondition ({wanted}) does not match the {name} in record ({meta[name]})"
                raise conflict(kind.plural, kind.group, meta["name"], why)

    def finalizers(self, kind: Kind, present: list[str]) -> list[str]:
        """The object's finalizers once it is marked, those of the garbage collector with them.

        A Job that is deleted without a policy leaves its pods behind, as it has always been.
        """
        policy = self.policy
        if policy is None and kind.resource == ("batch", "jobs"):
            policy = "Orphan"
        kept = [name for name in present if name not in (ORPHAN, FOREGROUND)]
        added = {"Orphan": [ORPHAN], "Foreground": [FOREGROUND]}.get(policy or "")
        if added is None and policy is None:
            return present
        return kept + (added or [])


Admit = Callable[[Kind, Json, Json | None], None]
Now = Callable[[], datetime]
CRD = (CRDS, "customresourcedefinitions")
TOP = frozenset({"apiVersion", "kind", "metadata"})
_SYSTEM = (
    "uid",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "namespace",
    "name",
    "generateName",
)
_OURS = ("labels", "annotations", "ownerReferences", "finalizers", "managedFields")


def stamp(moment: datetime) -> str:
    """As in metadata: whole seconds, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def admit_all(kind: Kind, new: Json, old: Json | None) -> None:
    """Of the server itself, which may do everything."""


class Api:
    """The verbs. All of them raise Refused; what they return is not to be changed."""

    def __init__(self, state: State, kinds: Kinds, now: Now) -> None:
        self.state, self.kinds, self.now = state, kinds, now

    def get(self, kind: Kind, key: Key) -> Json:
        found = self.state.get(kind.resource, key)
        if found is None:
            raise errors.not_found(kind.plural, kind.group, key[1])
        return self.shown(kind, found)

    def shown(self, kind: Kind, document: Json) -> Json:
        """In the version that is asked for: no conversion but the name of it."""
        if document["apiVersion"] == kind.api_version:
            return document
        return {**document, "apiVersion": kind.api_version}

    def create(
        self,
        kind: Kind,
        namespace: str,
        body: Any,
        admit: Admit = admit_all,
        *,
        dry: bool = False,
    ) -> Json:
        document = self._readable(kind, body)
        meta = self._fresh_metadata(kind, namespace, document["metadata"])
        document["metadata"] = meta
        self._check_place(kind, meta)
        if kind.status:
            document.pop("status", None)
        if kind.crd:
            document = self._shaped(kind, document)
        else:
            builtin.validate(kind, document)
            builtin.fill(kind, document)
        self._check(kind, document, None)
        if kind.resource == CRD:
            meta["finalizers"] = [*meta.get("finalizers", ()), CRD_FINALIZER]
            document["status"] = schemas.established(document, stamp(self.now()))
        admit(kind, document, None)
        if self.state.get(kind.resource, (meta.get("namespace", ""), meta["name"])):
            raise errors.already_exists(kind.plural, kind.group, meta["name"])
        return document if dry else self._stored(kind, document)

    def replace(
        self,
        kind: Kind,
        key: Key,
        sub: str,
        body: Any,
        admit: Admit = admit_all,
        *,
        dry: bool = False,
    ) -> Json:
        """PUT, on the object or on its status."""
        document = self._readable(kind, body)
        old = self.get(kind, key)
        if document["metadata"].get("name", key[1]) != key[1]:
            raise Refused(
                400, "the name of the object does not match the name on the URL"
            )
        if kind.crd and not document["metadata"].get("resourceVersion"):
            said = "Invalid value: 0x0: must be specified for an update"
            cause = Cause("metadata.resourceVersion", said)
            raise errors.invalid(kind.kind, kind.group, key[1], [cause])
        return self._update(kind, old, document, sub, admit, dry)

    def patch(
        self,
        kind: Kind,
        key: Key,
        sub: str,
        content_type: str,
        patch: Any,
        admit: Admit = admit_all,
        *,
        dry: bool = False,
    ) -> Json:
        old = self.get(kind, key)
        wanted = patches.patched(old, content_type, patch)
        document = self._readable(kind, wanted)
        if document["metadata"].get("name") != key[1]:
            raise Refused(400, "the name of an object cannot be changed")
        if document["metadata"].get("uid") != old["metadata"]["uid"]:
            # No conflict, that would go away by reading anew: a patch has no precondition but the version.
            said = f'Invalid value: "{document["metadata"].get("uid")}": field is immutable'
            cause = Cause("metadata.uid", said)
            raise errors.invalid(kind.kind, kind.group, key[1], [cause])
        return self._update(kind, old, document, sub, admit, dry)

    def delete(
        self, kind: Kind, key: Key, options: DeleteOptions = DeleteOptions()
    ) -> Json | None:
        """The object as it lingers on, or None if it is gone."""
        old = self.get(kind, key)
        meta = old["metadata"]
        options.check(kind, meta)
        finalizers = options.finalizers(kind, meta.get("finalizers", []))
        grace = self._grace(kind, old, options.grace)
        lingers = bool(finalizers) or grace > 0 or kind.plural == "namespaces"
        if not lingers:
            self.state.remove(kind.resource, key)
            return None
        new = self._marked(kind, old, finalizers, grace)
        return old if new == old else self.state.put(kind.resource, new)

    def _marked(self, kind: Kind, old: Json, finalizers: list[str], grace: int) -> Json:
        meta = {**old["metadata"], "finalizers": finalizers}
        if not finalizers:
            del meta["finalizers"]
        first = "deletionTimestamp" not in meta
        if first and "generation" in meta:
            meta["generation"] += 1  # Kubernetes counts the mark as a change
        if first or grace < meta["deletionGracePeriodSeconds"]:
            meta["deletionTimestamp"] = stamp(self.now() + timedelta(seconds=grace))
            meta["deletionGracePeriodSeconds"] = grace
        new = {**old, "metadata": meta}
        if kind.plural == "namespaces":
            new["status"] = {**old.get("status", {}), "phase": "Terminating"}
        return new

    def _grace(self, kind: Kind, old: Json, asked: int | None) -> int:
        """Seconds until an object is gone; only a pod that may run has any."""
        if kind.resource != ("", "pods") or not old["spec"].get("nodeName"):
            return 0
        if old.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return 0
        own: int = old["spec"].get("terminationGracePeriodSeconds", 30)
        return own if asked is None else max(0, asked)

    def _readable(self, kind: Kind, body: Any) -> Json:
        """A document of this kind: a copy, complete with what says so."""
        if not isinstance(body, dict) or not isinstance(body.get("metadata", {}), dict):
            raise Refused(400, f"the body is not a {kind.kind}")
        if kind.crd and not (body.get("apiVersion") and body.get("kind")):
            raise Refused(400, "Object 'Kind' or 'apiVersion' is missing in the body")
        said = body.get("apiVersion") or kind.api_version, body.get("kind") or kind.kind
        if said != (kind.api_version, kind.kind):
            raise Refused(
                400,
                f"the API version and kind in the data {said} do not match the expected"
                f" ({kind.api_version}, {kind.kind})",
            )
        document = copy.deepcopy(body)
        meta = document.get("metadata") or {}
        return {**document, "apiVersion": said[0], "kind": said[1], "metadata": meta}

    def _fresh_metadata(self, kind: Kind, namespace: str, asked: Json) -> Json:
        if asked.get("resourceVersion"):
            raise Refused(
                400, "resourceVersion should not be set on objects to be created"
            )
        if asked.get("namespace", namespace) not in (namespace, ""):
            raise Refused(
                400,
                "the namespace of the provided object does not match the namespace sent"
                " on the request",
            )
        meta = self._named(kind, asked)
        if kind.namespaced:
            meta["namespace"] = namespace
        meta["uid"] = str(uuid.uuid4())
        meta["creationTimestamp"] = stamp(self.now())
        if kind.counts:
            meta["generation"] = 1
        return meta | {key: asked[key] for key in _OURS if asked.get(key)}

    def _named(self, kind: Kind, asked: Json) -> Json:
        if asked.get("name"):
            return {"name": asked["name"]}
        base = asked.get("generateName")
        if not base:
            said = "Required value: name or generateName is required"
            cause = Cause("metadata.name", said, "FieldValueRequired")
            raise errors.invalid(kind.kind, kind.group, "", [cause])
        tail = "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
        return {"name": base[:58] + tail, "generateName": base}

    def _check_place(self, kind: Kind, meta: Json) -> None:
        if not kind.namespaced:
            return
        namespace = self.state.get(("", "namespaces"), ("", meta["namespace"]))
        if namespace is None:
            raise errors.not_found("namespaces", "", meta["namespace"])
        if "deletionTimestamp" in namespace["metadata"]:
            full = f"{kind.plural}.{kind.group}".rstrip(".")
            raise Refused(
                403,
                f'{full} "{meta["name"]}" is forbidden: unable to create new content in'
                f" namespace {meta['namespace']} because it is being terminated",
                details={"causes": [{"reason": "NamespaceTerminating"}]},
            )

    def _definition(self, kind: Kind) -> Json:
        found = self.state.get(CRD, ("", kind.crd))
        if found is None:
            raise errors.not_found(kind.plural, kind.group, "")
        return found

    def _schema(self, kind: Kind) -> Json:
        return schemas.schema_of(self._definition(kind), kind.version)

    def _shaped(self, kind: Kind, document: Json) -> Json:
        """A custom resource, pruned and with its defaults."""
        schema = self._schema(kind)
        shaped: Json = pruned(document, schema, TOP)
        shaped["metadata"] = document["metadata"]
        fill(shaped, schema)
        return shaped

    def _check(self, kind: Kind, new: Json, old: Json | None) -> None:
        causes = list(metadata_faults(kind, new))
        if kind.crd:
            causes += self._custom_faults(kind, new, old)
        else:
            causes += builtin.faults(kind, new, old)
        if kind.resource == CRD and not causes:
            causes += schemas.definition_faults(new)
        if causes:
            name = new["metadata"]["name"]
            raise errors.invalid(kind.kind, kind.group, name, causes)

    def _custom_faults(self, kind: Kind, new: Json, old: Json | None) -> list[Cause]:
        schema = self._schema(kind)
        causes = list(value_faults(new, schema))
        if causes:  # CEL rules are only asked about what has the right shape
            return causes
        return list(broken(new, schema, ABSENT if old is None else old))

    def _update(
        self, kind: Kind, old: Json, wanted: Json, sub: str, admit: Admit, dry: bool
    ) -> Json:
        self._preconditions(kind, old, wanted["metadata"])
        new = self._merged(kind, old, wanted, sub)
        if kind.crd:
            new = self._shaped(kind, new)
        else:
            # What has not changed has been found valid, and looking at it again is most of the cost.
            kept = TOP | builtin.required(kind)
            changed = {k: v for k, v in new.items() if k in kept or v != old.get(k)}
            builtin.validate(kind, changed)
            builtin.count_template(kind, old, new)
        if new == old:
            return old
        self._check(kind, new, old)
        self._count(kind, old, new)
        admit(kind, new, old)
        if dry:
            return new
        if self._over(new["metadata"]):
            # One event, with the object as it was: removing the last finalizer is reported as DELETED only.
            self.state.remove(kind.resource, key_of(new))
            return new
        return self._stored(kind, new)

    def _preconditions(self, kind: Kind, old: Json, meta: Json) -> None:
        name, had = old["metadata"]["name"], old["metadata"]
        if meta.get("resourceVersion", had["resourceVersion"]) not in (
            "",
            had["resourceVersion"],
        ):
            raise errors.conflict(kind.plural, kind.group, name, errors.CHANGED)
        if meta.get("uid", had["uid"]) not in ("", had["uid"]):
            why = (
                f"Precondition failed: UID in precondition: {meta['uid']},"
                f" UID in object meta: {had['uid']}"
            )
            raise errors.conflict(kind.plural, kind.group, name, why)
        added = set(meta.get("finalizers") or ()) - set(had.get("finalizers", ()))
        if "deletionTimestamp" in had and added:
            said = f"Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {sorted(added)}"
            cause = Cause("metadata.finalizers", said, "FieldValueForbidden")
            raise errors.invalid(kind.kind, kind.group, name, [cause])

    def _merged(self, kind: Kind, old: Json, wanted: Json, sub: str) -> Json:
        """The new document: only the status changes through `status`, all but it otherwise."""
        if sub == "status":
            new = {key: value for key, value in old.items() if key != "status"}
            return new | ({"status": wanted["status"]} if "status" in wanted else {})
        had, asked = old["metadata"], wanted["metadata"]
        meta = {key: had[key] for key in (*_SYSTEM, "resourceVersion") if key in had}
        meta |= {key: asked[key] for key in _OURS if asked.get(key)}
        new = {**wanted, "metadata": meta}
        if kind.status:
            new.pop("status", None)
            new |= {"status": old["status"]} if "status" in old else {}
        return new

    def _count(self, kind: Kind, old: Json, new: Json) -> None:
        """The generation grows with every change but those of metadata and status."""
        beside = {"metadata", "status"} if kind.status else {"metadata"}
        if kind.counts and any(
            old.get(key) != new.get(key) for key in (old.keys() | new.keys()) - beside
        ):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1

    def _over(self, meta: Json) -> bool:
        """Whether the last finalizer went from an object that is to go."""
        return (
            "deletionTimestamp" in meta
            and not meta.get("finalizers")
            and meta["deletionGracePeriodSeconds"] == 0
        )

    def _stored(self, kind: Kind, document: Json) -> Json:
        stored = self.state.put(kind.resource, document)
        if kind.resource == CRD:
            self.kinds.drop(stored["metadata"]["name"])
            for served in schemas.kinds_of(stored):
                self.kinds.add(served)
        return stored


# ------------------------------------------------------------------ the garbage collector


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
