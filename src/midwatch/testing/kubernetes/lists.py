"""Lists: in pages, filtered, in the form that each kind has."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from midwatch.model import Json

from .api import Api
from .kinds import Kind
from .refusals import Refused
from .selectors import Predicate, field_selector, label_selector
from .state import key_of


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
    found = api.state.all(kind.resource, namespace)
    if predicate is not None:
        found = [document for document in found if predicate(document)]
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
