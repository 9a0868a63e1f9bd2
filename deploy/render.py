"""Render the chart with Helm's own engine. `python -m deploy.render` writes the generated files.

They are the CRD in the chart (from `midwatch.kube.crd`) and deploy/manifests (from the chart). A test checks that both
are current.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart, HelmError

Json = dict[str, Any]
HERE = Path(__file__).parent
CHART = HERE / "chart" / "midwatch"
CRD = CHART / "crds" / "agenticsessions.yaml"
MANIFESTS = HERE / "manifests"
NAMESPACE = "midwatch"

WATCH: Json = {
    "operator": {"enabled": False},
    "content": {"enabled": False},
    "monitor": {"enabled": True},
    "agents": {"enabled": True},
    "extraEnvFrom": [{"secretRef": {"name": "midwatch-subjects"}}],
    "settings": {
        "subjects": [{"name": "orders-db", "kind": "postgres", "dsn": "${ORDERS_DSN}"}]
    },
}
"""Monitor and agents with one example subject, and nothing else."""

_ORDER = (
    "NetworkPolicy",
    "PodDisruptionBudget",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "PersistentVolumeClaim",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "Deployment",
    "StatefulSet",
)
"""Kinds in the order in which Helm installs them: what a pod needs comes first. Other kinds come last."""
_KIND = re.compile(r"^kind: (\w+)$", re.MULTILINE)
_TITLES = {
    "namespace.yaml": "The namespace, which enforces the Pod Security Standard `restricted`.",
    "crd.yaml": "The resource AgenticSession. Apply it before the rest, and again before each upgrade.",
    "sessions.yaml": "Sessions as resources: the operator and the content proxy.",
    "watch.yaml": "Tickets and diagnoses: monitor and agents, which watch what their ConfigMap names.",
}


@cache
def chart() -> Chart:
    """Return the chart. This loads Helm, which takes 80 MB of memory."""
    return Chart.load(CHART)


def texts(
    values: Mapping[str, Any] | None = None,
    *,
    name: str = "midwatch",
    namespace: str = NAMESPACE,
) -> dict[str, str]:
    """Return the rendered templates by file name. Raises HelmError for wrong values."""
    rendered = chart().render(dict(values or {}), name=name, namespace=namespace)
    return {Path(path).name: text for path, text in sorted(rendered.items())}


def documents(
    values: Mapping[str, Any] | None = None,
    *,
    name: str = "midwatch",
    namespace: str = NAMESPACE,
) -> list[Json]:
    """Return all objects of a release, without the CRD."""
    rendered = texts(values, name=name, namespace=namespace)
    joined = "\n---\n".join(text for path, text in rendered.items() if _is_yaml(path))
    return [document for document in yaml.safe_load_all(joined) if document]


def rules_for(values: Mapping[str, Any] | None = None) -> dict[str, list[Json]]:
    """Return the operator's permissions: RBAC rules by namespace, with "" for all namespaces."""
    roles = [one for one in documents(values) if _is_operators(one)]
    return {one["metadata"].get("namespace", ""): one["rules"] for one in roles}


def _is_operators(document: Json) -> bool:
    kinds = ("Role", "ClusterRole")
    return document["kind"] in kinds and document["metadata"]["name"].endswith(
        "-operator"
    )


def crd_text() -> str:
    """Return the text of the CRD in the chart."""
    from midwatch.kube.crd import crd

    head = "# Written by `make manifests` from midwatch.kube.crd.\n"
    return head + _dump(crd())


def manifests() -> dict[str, str]:
    """Return the plain manifests by file name."""
    contents = {
        "namespace.yaml": _dump(_namespace()),
        "crd.yaml": crd_text().split("\n", 1)[1],
        "sessions.yaml": _joined(texts()),
        "watch.yaml": _joined(texts(WATCH)),
    }
    return {
        file: f"# {_TITLES[file]}\n# Written by `make manifests` from the chart; docs/kubernetes.md explains.\n{text}"
        for file, text in contents.items()
    }


def _namespace() -> Json:
    level = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": NAMESPACE, "labels": level}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def _joined(rendered: Mapping[str, str]) -> str:
    parts = []
    for path, text in rendered.items():
        if _is_yaml(path):
            parts += text.strip().removeprefix("---").split("\n---\n")
    kept = [part.strip() for part in parts if part.strip()]
    return "".join(f"---\n{part}\n" for part in sorted(kept, key=_install_order))


def _install_order(part: str) -> int:
    """Return the position of an object in the order of installation."""
    kind = _KIND.search(part)
    return _ORDER.index(kind[1]) if kind and kind[1] in _ORDER else len(_ORDER)


def _is_yaml(path: str) -> bool:
    return path.endswith(".yaml")


def _dump(document: Json) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=110, allow_unicode=True)


def main() -> int:
    """Write the CRD and the manifests."""
    CRD.parent.mkdir(exist_ok=True)
    MANIFESTS.mkdir(exist_ok=True)
    CRD.write_text(crd_text(), encoding="utf-8")
    try:
        rendered = manifests()
    except HelmError as error:
        print(f"the chart does not render: {error}", file=sys.stderr)
        return 1
    for file, text in rendered.items():
        (MANIFESTS / file).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
