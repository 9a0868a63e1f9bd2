"""The CustomResourceDefinition of `AgenticSession`, for Kubernetes 1.29 and later. Pure.

Its schema is generated from the models `Spec` and `Status`: `model_json_schema` returns JSON Schema, and `_structural`
turns that into a structural schema.
Source: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from midwatch.kube.resource import CHANGEABLE, VALIDATIONS, Part, Spec, cel
from midwatch.kube.rules import (
    API_VERSION,
    GROUP,
    KIND,
    MAX_NAME,
    PLURAL,
    SHORT_NAME,
    SINGULAR,
    VERSION,
)
from midwatch.kube.status import Status
from midwatch.model import Json


def crd() -> Json:
    """Return the manifest, ready to be applied."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": [SHORT_NAME],
                "categories": ["all", "midwatch"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _columns(),
                    "schema": {"openAPIV3Schema": _schema()},
                }
            ],
        },
    }


def _columns() -> list[Json]:
    shown = [
        ("Phase", "string", ".status.phase"),
        ("Model", "string", ".status.model"),
        ("Turns", "integer", ".status.numTurns"),
        ("Cost", "number", ".status.totalCostUsd"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ]
    columns: list[Json] = [
        {"name": name, "type": type, "jsonPath": path} for name, type, path in shown
    ]
    wide = {"name": "Message", "type": "string", "jsonPath": ".status.message"}
    return [*columns, {**wide, "priority": 1}]


def _schema() -> Json:
    return {
        "type": "object",
        "description": f"{KIND} ({API_VERSION}): a run of Claude Code in a workspace of Git repositories.",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _spec_schema(),
            "status": _model_schema(Status),
        },
        "required": ["spec"],
        VALIDATIONS: [
            cel(
                f"self.metadata.name.size() <= {MAX_NAME}",
                f"metadata.name has at most {MAX_NAME} characters: the names of its Jobs start with it",
            ),
            cel(
                "!self.metadata.name.contains('.')",
                "metadata.name must not have dots: the host names of its pods start with it",
            ),
            cel(
                "!has(self.spec.resumeFrom) || self.spec.resumeFrom != self.metadata.name",
                "a session cannot continue itself: name another session",
                ".spec.resumeFrom",
            ),
        ],
    }


def _spec_schema() -> Json:
    """Return the schema of `Spec`, with a rule for each immutable field."""
    schema = _model_schema(Spec)
    schema[VALIDATIONS] += [
        _unchanged(name, "default" in field or name in schema["required"])
        for name, field in schema["properties"].items()
        if name not in CHANGEABLE
    ]
    return schema


def _unchanged(name: str, always: bool) -> Json:
    """Return the rule of an immutable field; `always`: every resource has the field."""
    same = f"self.{name} == oldSelf.{name}"
    if not always:
        same = (
            f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || {same})"
        )
    message = (
        f"{name} is immutable: create another session (resumeFrom continues this one)"
    )
    return cel(same, message, f".{name}")


# ------------------------------------------------------------------ JSON Schema to structural schema

_LEFT_OUT = ("title", "$defs", "propertyNames")
"""Keys of pydantic's schema that a structural schema must not have."""
_FIRST = ("type", "format", "description", "properties", "items")
"""Keys that come first, for readers of the manifest."""


class _AsDeclared(GenerateJsonSchema):
    """Keeps keys in the order of their declaration, for readers of the manifest."""

    def sort(
        self, value: JsonSchemaValue, parent_key: str | None = None
    ) -> JsonSchemaValue:
        return value


def _model_schema(model: type[Part]) -> Json:
    schema = model.model_json_schema(by_alias=True, schema_generator=_AsDeclared)
    return _structural(schema, schema.get("$defs", {}))


def _structural(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Json:
    """Return a schema without references, alternatives with null, and titles.

    In Kubernetes a field without a value is absent, so a default of null is dropped. The default of an object is empty:
    the API server sets those of its fields.
    """
    node = _resolved(node, definitions)
    schema = {key: value for key, value in node.items() if key not in _LEFT_OUT}
    if schema.get("default", ...) is None:
        del schema["default"]
    for key in ("items", "additionalProperties"):
        if key in schema:
            schema[key] = _structural(schema[key], definitions)
    if "anyOf" in schema:  # int or string; copied, so that YAML has no anchors
        schema["anyOf"] = [dict(one) for one in schema["anyOf"]]
    if "properties" in schema:
        schema["properties"] = {
            name: _structural(field, definitions)
            for name, field in schema["properties"].items()
        }
        if "default" in schema:
            schema["default"] = {}
    if schema.get("type") == "integer":
        schema["format"] = "int64"
    if "exclusiveMinimum" in schema:  # a number in JSON Schema, a flag in OpenAPI 3.0
        schema["minimum"] = schema["exclusiveMinimum"]
        schema["exclusiveMinimum"] = True
    first = {key: schema[key] for key in _FIRST if key in schema}
    return first | schema


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Json:
    """Return a node with its reference resolved, and without the alternative of null."""
    outer = dict(node)
    if "$ref" in outer:
        inner = definitions[outer.pop("$ref").rpartition("/")[2]]
    elif {"type": "null"} in outer.get("anyOf", ()):
        [inner] = [one for one in outer.pop("anyOf") if one != {"type": "null"}]
    else:
        return outer
    inner = _resolved(inner, definitions)
    rules = [*inner.get(VALIDATIONS, ()), *outer.get(VALIDATIONS, ())]
    return {**inner, **outer} | ({VALIDATIONS: rules} if rules else {})
