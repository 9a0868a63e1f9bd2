"""The CustomResourceDefinition of `AgenticSession`, for Kubernetes 1.29 and later. Pure."""

from __future__ import annotations

from ..model import Json
from .names import (
    API_VERSION,
    GROUP,
    KIND,
    MAX_NAME,
    PLURAL,
    SHORT_NAME,
    SINGULAR,
    VERSION,
)
from .schema import part, rule, rules
from .spec_schema import spec_schema
from .status_schema import status_schema


def crd() -> Json:
    """The manifest, ready to be applied."""
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
    return part(
        f"{KIND} ({API_VERSION}): a run of Claude Code in a workspace of Git repositories.",
        {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec_schema(),
            "status": status_schema(),
        },
        required=["spec"],
        **rules(
            rule(
                f"self.metadata.name.size() <= {MAX_NAME}",
                f"metadata.name has at most {MAX_NAME} characters: the names of the session's Jobs begin with it",
            ),
            rule(
                "!self.metadata.name.contains('.')",
                "metadata.name has no dots: the names of its pods, and so of their hosts, begin with it",
            ),
            rule(
                "!has(self.spec.resumeFrom) || self.spec.resumeFrom != self.metadata.name",
                "a session cannot continue itself: name another one",
                ".spec.resumeFrom",
            ),
        ),
    )
