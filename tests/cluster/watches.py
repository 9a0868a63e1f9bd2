"""Lists and watch streams."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aiohttp import web

from midwatch.model import Json

from .api import Api
from .errors import Refused
from .kinds import Kind
from .requests import LiveWatch
from .selectors import Predicate, field_selector, label_selector, named_by
from .storage import Change, event_line, key_of


def selected(query: Mapping[str, str], plural: str) -> Predicate | None:
    """Both selectors of a query; None if it selects everything. Raises Refused (400)."""
    labels = label_selector(query.get("labelSelector", ""))
    fields = field_selector(query.get("fieldSelector", ""), plural)
    if labels is None or fields is None:
        return labels or fields
    return lambda document: labels(document) and fields(document)


def listed(api: Api, kind: Kind, namespace: str, query: Mapping[str, str]) -> Json:
    """The list document. `continue` keeps the first page's revision, so that a watch from it
    misses nothing; a later page may be newer than that."""
    revision, after = _continued(query.get("continue", ""), api.state.revision)
    _check_revision(query.get("resourceVersion", ""), api.state.revision)
    predicate = selected(query, kind.plural)
    about = named_by(query.get("fieldSelector", ""), "involvedObject.name")
    found = api.state.all(kind.resource, namespace, predicate, about)
    if after:
        found = [document for document in found if list(key_of(document)) > after]
    limit = _limit(query.get("limit", ""))
    meta: Json = {"resourceVersion": str(revision)}
    if limit and len(found) > limit:
        mark = [revision, list(key_of(found[limit - 1]))]
        meta["continue"] = base64.urlsafe_b64encode(json.dumps(mark).encode()).decode()
        meta["remainingItemCount"] = len(found) - limit
        found = found[:limit]
    return {
        "kind": kind.list_kind,
        "apiVersion": kind.api_version,
        "metadata": meta,
        "items": [_item(api, kind, document) for document in found],
    }


def _item(api: Api, kind: Kind, document: Json) -> Json:
    """Items of built-in kinds do not say what they are, those of custom resources do."""
    if kind.crd:
        return api.shown(kind, document)
    return {k: v for k, v in document.items() if k not in ("apiVersion", "kind")}


def _continued(token: str, revision: int) -> tuple[int, list[str]]:
    if not token:
        return revision, []
    try:
        at, after = json.loads(base64.urlsafe_b64decode(token.encode()))
    except ValueError:
        raise Refused(400, "continue key is not valid") from None
    return at, after


def _check_revision(text: str, present: int) -> None:
    if number(text) > present:
        raise Refused(
            504,
            f"Too large resource version: {text}, current: {present}",
            retry_after=1,
        )


def number(text: str) -> int:
    """A resource version as a query has it; 0 for none. Raises Refused (400)."""
    if text and not text.isdecimal():
        raise Refused(400, f'Invalid value: "{text}": invalid resource version')
    return int(text or 0)


def _limit(text: str) -> int:
    return int(text) if text.isdecimal() else 0


INITIAL_END = "k8s.io/initial-events-end"


@dataclass(frozen=True, slots=True)
class Watch:
    """What one client wants to see. `timeout` and `bookmarks` are seconds between, 0: none."""

    kind: Kind
    namespace: str
    predicate: Predicate | None
    revision: int
    initial: bool
    marked: bool
    timeout: float
    bookmarks: float
    only_metadata: bool = False

    @classmethod
    def read(
        cls, kind: Kind, namespace: str, query: Mapping[str, str], bookmarks: float
    ) -> Watch:
        """Raises Refused (400, 422)."""
        revision = number(query.get("resourceVersion", ""))
        marked = query.get("sendInitialEvents", "").lower() == "true"
        if marked and query.get("resourceVersionMatch") != "NotOlderThan":
            raise Refused(
                422,
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )
        wanted = query.get("allowWatchBookmarks", "").lower() in ("true", "1")
        seconds = query.get("timeoutSeconds", "")
        return cls(
            kind,
            namespace,
            selected(query, kind.plural),
            revision,
            initial=marked or revision == 0,
            marked=marked and wanted,
            timeout=float(seconds) if seconds.isdecimal() else 1800.0,
            bookmarks=bookmarks if wanted else 0.0,
        )

    def sees(self, document: Json | None) -> bool:
        if document is None:
            return False
        if self.namespace and document["metadata"].get("namespace") != self.namespace:
            return False
        return self.predicate is None or self.predicate(document)

    def line(self, api: Api, change: Change) -> bytes | None:
        """The event as this watch sees it: what stops to match the selectors is deleted for it."""
        before = change.before is not None and self.sees(change.before)
        after = change.type != "DELETED" and self.sees(change.document)
        if not before and not after:
            return None
        type = "MODIFIED" if before and after else "ADDED" if after else "DELETED"
        if not after and change.type != "DELETED" and change.before is not None:
            # It is there, and seen no more: what is sent is what was seen last.
            return event_line(type, api.shown(self.kind, _at(change, change.before)))
        if change.document["apiVersion"] != self.kind.api_version:
            return event_line(type, api.shown(self.kind, change.document))
        return change.line(type)


async def serve(
    api: Api, watch: Watch, live: LiveWatch, response: web.StreamResponse
) -> None:
    """Write events until the time is up; the connection's end cancels this."""
    with api.state.followed(watch.kind.resource) as queue:
        try:
            lines = _begin(api, watch)
        except Refused as refused:
            await response.write(event_line("ERROR", refused.status()))
            return
        for line in lines:
            await response.write(_shaped(watch, [line]))
        end = time.monotonic() + watch.timeout
        while (left := end - time.monotonic()) > 0:
            lines = await _next(api, watch, queue, left)
            if live.frozen:
                await asyncio.Event().wait()  # until the client gives up
            if lines:
                await response.write(_shaped(watch, lines))
        if watch.bookmarks:
            await response.write(_bookmark(api, watch))


def metadata_of(document: Json) -> Json:
    """What a client gets that asks for metadata alone."""
    shape = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
    return {**shape, "metadata": document["metadata"]}


def _shaped(watch: Watch, lines: Iterable[bytes]) -> bytes:
    if not watch.only_metadata:
        return b"".join(lines)
    events = map(json.loads, lines)
    return b"".join(
        event_line(one["type"], metadata_of(one["object"])) for one in events
    )


def _begin(api: Api, watch: Watch) -> Iterable[bytes]:
    """What a watch begins with: all there is, or what it has missed. Raises Refused (410)."""
    if not watch.initial:
        missed = api.state.since(watch.kind.resource, watch.revision)
        return [line for change in missed if (line := watch.line(api, change))]
    found = api.state.all(watch.kind.resource, watch.namespace)
    lines = [
        event_line("ADDED", api.shown(watch.kind, document))
        for document in found
        if watch.sees(document)
    ]
    if watch.marked:
        lines.append(_bookmark(api, watch, {INITIAL_END: "true"}))
    return lines


async def _next(
    api: Api, watch: Watch, queue: asyncio.Queue[Change], left: float
) -> list[bytes]:
    """The next events, or a bookmark when it is time for one."""
    patience = min(left, watch.bookmarks or left)
    try:
        first = await asyncio.wait_for(queue.get(), patience)
    except TimeoutError:
        due = watch.bookmarks and patience < left
        return [_bookmark(api, watch)] if due else []
    changes = [first]
    while not queue.empty() and len(changes) < 200:
        changes.append(queue.get_nowait())
    # A watch from a future revision, as after a restored backup, sends no event before that revision exists.
    come = [change for change in changes if change.revision > watch.revision]
    return [line for change in come if (line := watch.line(api, change))]


def _at(change: Change, document: Json) -> Json:
    """A document at the revision of a change."""
    meta = {**document["metadata"], "resourceVersion": str(change.revision)}
    return {**document, "metadata": meta}


def _bookmark(api: Api, watch: Watch, annotations: Json | None = None) -> bytes:
    meta: Json = {"resourceVersion": str(api.state.revision), "creationTimestamp": None}
    if annotations:
        meta["annotations"] = annotations
    document = {
        "kind": watch.kind.kind,
        "apiVersion": watch.kind.api_version,
        "metadata": meta,
    }
    return event_line("BOOKMARK", document)
