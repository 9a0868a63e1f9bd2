"""Merge patches (RFC 7386) and JSON patches (RFC 6902).

Strategic merge and server-side apply are refused with 415, as a custom resource refuses the first.
"""

from __future__ import annotations

import copy
from typing import Any

from midwatch.model import Json

from .errors import Refused

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"


def patched(document: Json, content_type: str, patch: Any) -> Json:
    """The document with the patch applied; the given one stays. Raises Refused (400, 415, 422)."""
    if content_type == MERGE:
        if not isinstance(patch, dict):
            raise Refused(400, "a merge patch is an object")
        merged: Json = merge(document, patch)
        return merged
    if content_type == JSON_PATCH:
        if not isinstance(patch, list):
            raise Refused(400, "a JSON patch is a list of operations")
        return _apply(document, patch)
    raise Refused(
        415,
        "the body of the request was in an unknown format - accepted media types"
        f" include: {JSON_PATCH}, {MERGE}",
    )


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386; what is not patched is shared with the target."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def _apply(document: Json, operations: list[Any]) -> Json:
    result: Any = copy.deepcopy(document)
    for operation in operations:
        try:
            result = _one(result, operation)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            # A missing path and a failed test are one answer in Kubernetes.
            raise Refused(
                422,
                "the server rejected our request due to an error in our request",
                details={"causes": [{"message": f"{operation}: {error!r}"}]},
            ) from None
    if not isinstance(result, dict):
        raise Refused(400, "the patched document is not an object")
    return result


def _one(document: Any, operation: Any) -> Any:
    name, path = operation["op"], _pointer(operation["path"])
    if name == "test":
        if _get(document, path) != operation["value"]:
            raise ValueError("the test failed")
        return document
    if name in ("move", "copy"):
        source = _pointer(operation["from"])
        value = copy.deepcopy(_get(document, source))
        if name == "move":
            document = _remove(document, source)
        return _add(document, path, value)
    if name == "remove":
        return _remove(document, path)
    if name == "replace":
        _get(document, path)
        return _add(_remove(document, path), path, operation["value"])
    if name == "add":
        return _add(document, path, operation["value"])
    raise ValueError(f"no such operation: {name}")


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ValueError("a path begins with /")
    return [p.replace("~1", "/").replace("~0", "~") for p in text.split("/")[1:]]


def _step(container: Any, part: str) -> Any:
    return container[int(part)] if isinstance(container, list) else container[part]


def _get(document: Any, path: list[str]) -> Any:
    for part in path:
        document = _step(document, part)
    return document


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent = _get(document, path[:-1])
    if isinstance(parent, list):
        place = len(parent) if path[-1] == "-" else int(path[-1])
        if not 0 <= place <= len(parent):
            raise IndexError(place)
        parent.insert(place, value)
    else:
        parent[path[-1]] = value
    return document


def _remove(document: Any, path: list[str]) -> Any:
    if not path:
        return None
    parent = _get(document, path[:-1])
    if isinstance(parent, list):
        parent.pop(int(path[-1]))
    else:
        del parent[path[-1]]
    return document
