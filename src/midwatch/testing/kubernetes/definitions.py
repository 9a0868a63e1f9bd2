"""Custom resource definitions: checked when they are made, then kinds like any other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from midwatch.model import Json

from .cel_rules import problem
from .kinds import Kind
from .refusals import Cause

_NEVER = (
    "$ref",
    "definitions",
    "dependencies",
    "deprecated",
    "id",
    "patternProperties",
)
_TYPELESS = (
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
)


def kinds_of(definition: Json) -> list[Kind]:
    """The kinds that a definition serves."""
    spec, names = definition["spec"], definition["spec"]["names"]
    return [
        Kind(
            group=spec["group"],
            version=version["name"],
            plural=names["plural"],
            kind=names["kind"],
            namespaced=spec["scope"] == "Namespaced",
            status="status" in version.get("subresources", {}),
            counts=True,
            short_names=tuple(names.get("shortNames", ())),
            categories=tuple(names.get("categories", ())),
            singular_name=names.get("singular", ""),
            crd=definition["metadata"]["name"],
        )
        for version in spec["versions"]
        if version["served"]
    ]


def schema_of(definition: Json, version: str) -> Json:
    """The structural schema of a version."""
    entry = next(v for v in definition["spec"]["versions"] if v["name"] == version)
    schema: Json = entry["schema"]["openAPIV3Schema"]
    return schema


def established(definition: Json, now: str) -> Json:
    """The status of a definition that is served."""
    names = dict(definition["spec"]["names"])
    names.setdefault("singular", names["kind"].lower())
    names.setdefault("listKind", f"{names['kind']}List")
    entries = [
        ("NamesAccepted", "NoConflicts", "no conflicts found"),
        ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
    ]
    return {
        "acceptedNames": names,
        "storedVersions": [
            v["name"] for v in definition["spec"]["versions"] if v["storage"]
        ],
        "conditions": [
            {
                "type": kind,
                "status": "True",
                "reason": reason,
                "message": message,
                "lastTransitionTime": now,
            }
            for kind, reason, message in entries
        ],
    }


def faults(definition: Json) -> list[Cause]:
    """What the API server refuses in a definition, beyond its schema."""
    spec, causes = definition["spec"], []
    wanted = f"{spec['names']['plural']}.{spec['group']}"
    name = definition["metadata"].get("name")
    if name != wanted:
        said = f'Invalid value: "{name}": must be spec.names.plural+"."+spec.group'
        causes.append(Cause("metadata.name", said))
    if sum(bool(v.get("storage")) for v in spec["versions"]) != 1:
        said = "Invalid value: must have exactly one version marked as storage version"
        causes.append(Cause("spec.versions", said))
    for place, version in enumerate(spec["versions"]):
        path = f"spec.versions[{place}].schema.openAPIV3Schema"
        schema = version.get("schema", {}).get("openAPIV3Schema")
        if schema is None:
            causes.append(
                Cause(
                    path, "Required value: schemas are required", "FieldValueRequired"
                )
            )
        else:
            causes += _schema_faults(schema, path, root=True)
    return causes


def _schema_faults(schema: Json, path: str, root: bool = False) -> Iterator[Cause]:
    if root and schema.get("type") != "object":
        yield Cause(f"{path}.type", 'Invalid value: must be "object" at the root')
    elif "type" not in schema and not any(schema.get(key) for key in _TYPELESS):
        said = "Required value: must not be empty for specified object fields"
        yield Cause(f"{path}.type", said, "FieldValueRequired")
    for key in _NEVER:
        if key in schema:
            yield Cause(
                f"{path}.{key}", "Forbidden: must not be set", "FieldValueForbidden"
            )
    if schema.get("uniqueItems"):
        said = "Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        yield Cause(f"{path}.uniqueItems", said, "FieldValueForbidden")
    if "properties" in schema and "additionalProperties" in schema:
        said = "Forbidden: additionalProperties and properties are mutual exclusive"
        yield Cause(f"{path}.additionalProperties", said, "FieldValueForbidden")
    for place, rule in enumerate(schema.get("x-kubernetes-validations", ())):
        why = problem(rule)
        if why:
            at = f"{path}.x-kubernetes-validations[{place}].rule"
            yield Cause(at, f"Invalid value: {rule.get('rule')!r}: {why}")
    for at, below in _below(schema, path):
        yield from _schema_faults(below, at)


def _below(schema: Json, path: str) -> Iterator[tuple[str, Any]]:
    for name, below in schema.get("properties", {}).items():
        yield f"{path}.properties[{name}]", below
    if isinstance(schema.get("items"), dict):
        yield f"{path}.items", schema["items"]
    if isinstance(schema.get("additionalProperties"), dict):
        yield f"{path}.additionalProperties", schema["additionalProperties"]
