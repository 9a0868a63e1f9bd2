"""What names, labels and other metadata may look like."""

from __future__ import annotations

import re
from collections.abc import Iterator

from midwatch.model import Json

from .kinds import RBAC, Kind
from .refusals import Cause

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
)
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_ANNOTATIONS = 256 * 1024
"""Bytes of all annotations of an object together."""


def metadata_faults(kind: Kind, document: Json) -> Iterator[Cause]:
    """What is wrong with the metadata of an object that is to be stored."""
    meta = document["metadata"]
    yield from _name(kind, meta["name"])
    for key, value in (meta.get("labels") or {}).items():
        yield from _qualified(key, "metadata.labels")
        if not _VALUE.fullmatch(value):
            said = f"Invalid value: \"{value}\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', at most 63 characters"
            yield Cause("metadata.labels", said)
    annotations = meta.get("annotations") or {}
    for key in annotations:
        yield from _qualified(key.lower(), "metadata.annotations")
    if sum(len(k) + len(v.encode()) for k, v in annotations.items()) > _ANNOTATIONS:
        said = "Too long: may not be more than 262144 bytes"
        yield Cause("metadata.annotations", said, "FieldValueTooLong")
    yield from _finalizers(meta)
    yield from _owners(meta)


def _name(kind: Kind, name: str) -> Iterator[Cause]:
    if kind.group == RBAC:
        if name in (".", "..") or "/" in name or "%" in name:
            yield Cause("metadata.name", f'Invalid value: "{name}": may not be a path')
    elif kind.plural == "namespaces":
        if not _LABEL.fullmatch(name):
            said = f"Invalid value: \"{name}\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-'"
            yield Cause("metadata.name", said)
    elif len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        said = f"Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"
        yield Cause("metadata.name", said)


def _qualified(key: str, field: str) -> Iterator[Cause]:
    prefix, slash, name = key.rpartition("/")
    fine = _QUALIFIED.fullmatch(name) and (
        not slash or (len(prefix) <= 253 and _SUBDOMAIN.fullmatch(prefix))
    )
    if not fine:
        said = f'Invalid value: "{key}": must be a qualified name, at most 63 characters after the prefix'
        yield Cause(field, said)


def _finalizers(meta: Json) -> Iterator[Cause]:
    for finalizer in meta.get("finalizers") or ():
        if "/" not in finalizer and finalizer not in (
            "orphan",
            "foregroundDeletion",
            CRD_FINALIZER,
        ):
            said = f'Invalid value: "{finalizer}": name is neither a standard finalizer name nor is it fully qualified'
            yield Cause("metadata.finalizers", said)


CRD_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"


def _owners(meta: Json) -> Iterator[Cause]:
    owners = meta.get("ownerReferences") or ()
    for place, owner in enumerate(owners):
        for name in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(name):
                field = f"metadata.ownerReferences[{place}].{name}"
                yield Cause(field, 'Invalid value: "": must not be empty')
    if sum(bool(owner.get("controller")) for owner in owners) > 1:
        said = "Invalid value: Only one reference can have Controller set to true"
        yield Cause("metadata.ownerReferences", said)
