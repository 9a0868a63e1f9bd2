"""The objects of the server for tests, around HTTP, access control, faults and journal."""

from __future__ import annotations

import marshal
import time
from collections.abc import Callable
from typing import Any, TypeVar

from midwatch.model import Json

from .api import Api
from .kinds import Kind
from .lists import selected
from .options import DeleteOptions
from .patches import MERGE
from .refusals import Refused

T = TypeVar("T")
Documents = list[Json]


class Objects:
    """Kinds are named by their plural (`pods`). Documents that come out are copies. All raise Refused."""

    def __init__(self, api: Api, call: Callable[[Callable[[], Any]], Any]) -> None:
        self._api, self._call = api, call

    def create(self, document: Json, namespace: str = "default") -> Json:
        """Its own namespace goes before the given one."""

        def run() -> Json:
            kind = self._api.kinds.of(document)
            own = document.get("metadata", {}).get("namespace") or namespace
            return self._api.create(kind, own if kind.namespaced else "", document)

        return self._copied(run)

    def apply(self, document: Json, namespace: str = "default") -> Json:
        """Create it, or merge it into what is there."""
        try:
            return self.create(document, namespace)
        except Refused as refused:
            if refused.reason != "AlreadyExists":
                raise
        kind = self._api.kinds.of(document)
        meta = document["metadata"]
        own = meta.get("namespace") or namespace
        return self.merge(kind.plural, own, meta["name"], document)

    def get(self, plural: str, namespace: str, name: str) -> Json:
        """`namespace` is empty for what has none."""
        # Read where we are: a stored document never changes, and the server's thread is not waited for.
        found: Json = _copy(self._api.get(self._kind(plural), (namespace, name)))
        return found

    def find(self, plural: str, namespace: str, name: str) -> Json | None:
        """As `get`; None if it is not there."""
        try:
            return self.get(plural, namespace, name)
        except Refused as refused:
            if refused.code != 404:
                raise
            return None

    def list(self, plural: str, namespace: str = "", selector: str = "") -> Documents:
        """In all namespaces, unless one is given; `selector` is of labels."""

        def run() -> Documents:
            kind = self._kind(plural)
            fits = selected({"labelSelector": selector}, plural)
            found = self._api.state.all(kind.resource, namespace)
            return [document for document in found if fits is None or fits(document)]

        return self._copied(run)

    def owned(self, plural: str, uid: str) -> Documents:
        """What names the object with this uid as an owner."""

        def run() -> Documents:
            wanted = self._kind(plural).resource
            found = self._api.state.dependents(uid)
            return [document for resource, document in found if resource == wanted]

        return self._copied(run)

    def merge(
        self, plural: str, namespace: str, name: str, patch: Json, *, sub: str = ""
    ) -> Json:
        """A merge patch; `sub` may be `status`."""
        kind, key = self._kind(plural), (
            namespace if self._kind(plural).namespaced else "",
            name,
        )
        return self._copied(lambda: self._api.patch(kind, key, sub, MERGE, patch))

    def delete(
        self,
        plural: str,
        namespace: str,
        name: str,
        *,
        policy: str = "Background",
        grace: int | None = None,
    ) -> None:
        options = DeleteOptions(policy, grace)
        self._call(
            lambda: self._api.delete(self._kind(plural), (namespace, name), options)
        )

    def wait(
        self,
        plural: str,
        namespace: str,
        name: str,
        until: Callable[[Json | None], object],
        timeout: float = 10.0,
    ) -> Json | None:
        """Look until the condition holds of the object (None: it is gone). Raises TimeoutError."""
        end = time.monotonic() + timeout
        while True:
            found = self.find(plural, namespace, name)
            if until(found):
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"{plural} {namespace}/{name} is still {found}")
            time.sleep(0.02)

    def _kind(self, plural: str) -> Kind:
        return self._api.kinds.named(plural)

    def _copied(self, function: Callable[[], T]) -> T:
        copied: T = _copy(self._call(function))
        return copied


def _copy(value: Any) -> Any:
    """Ten times as fast as `copy.deepcopy`, and documents are nothing but JSON."""
    return marshal.loads(marshal.dumps(value))
