"""Render the chart with Helm's own engine. `python -m deploy.render` writes the generated files.

They are the CRD in the chart (from `midwatch.kube.crd`), its template and its schema of schedules (from
`midwatch.kube.schedules` and the settings), and deploy/manifests (from the chart). A test checks that all are current.
"""

from __future__ import annotations

import json
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
SCHEDULES = CHART / "templates" / "schedules.yaml"
SCHEMA = CHART / "values.schema.json"
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


_SCHEDULES_HEAD = """\
{{- /* Written by `make manifests` from midwatch.kube.schedules, which `midwatch kube schedules` prints too. */}}
{{- $operator := (include "midwatch.settings.operator" . | fromYaml).operator }}
{{- $namespace := include "midwatch.schedulesNamespace" . }}
{{- range $one := .Values.settings.schedules }}
"""


def schedules_template() -> str:
    """Return the template of schedules: their objects, with an expression of Helm for what differs between two of them."""
    from midwatch.kube.schedules import CronJobParts, cron_job_objects

    forbids = 'eq (dig "concurrency" "Forbid" $one) "Forbid"'
    parts = CronJobParts(
        name="{{ $one.name }}",
        namespace="{{ $namespace }}",
        cron="{{ $one.cron | toJson }}",
        timezone='{{ dig "timezone" "UTC" $one | toJson }}',
        suspend='{{ not (dig "enabled" true $one) }}',
        deadline='{{ dig "starting_deadline" 600 $one | include "midwatch.seconds" }}',
        verbs=f'{{{{ ternary (list "create" "list") (list "create") ({forbids}) | toJson }}}}',
        settings='{{ dict "schedules" (list $one) | toPrettyJson | toJson }}',
        image="{{ $operator.image | toJson }}",
        pull_policy="{{ $operator.image_pull_policy }}",
        pull_secrets='{{ include "midwatch.pullSecrets" $operator.image_pull_secrets }}',
    )
    plain = json.loads(json.dumps(cron_job_objects(parts)))  # YAML without anchors
    text = "".join(
        "---\n" + yaml.safe_dump(one, sort_keys=False, width=1000) for one in plain
    )
    for scalar in (parts.name, parts.namespace):  # 123 is a name, too
        text = text.replace(f"'{scalar}'", scalar.replace(" }}", " | toJson }}"))
    # The other expressions say themselves how they are quoted.
    text = re.sub(r"'(\{\{ .*? \}\})'", lambda found: found[1].replace("''", "'"), text)
    return f"{_SCHEDULES_HEAD}{text}{{{{- end }}}}\n"


_DURATION = r"^([0-9]+(\.[0-9]+)? *(ms|[smhdwSMHDW])? *)+$"


def schema_text() -> str:
    """Return the schema of the values, with that of a schedule in it: what a cluster can do of the settings."""
    from midwatch.kube.schedules import HERE_ONLY
    from midwatch.schedule_settings import ScheduleSettings

    whole = ScheduleSettings.model_json_schema()
    items = _plain_schema(whole, whole["$defs"])
    for name in HERE_ONLY:
        del items["properties"][name]
    items["properties"]["concurrency"]["enum"].remove("Replace")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    groups = schema["properties"]["settings"]["properties"]
    groups["schedules"] = {"type": "array", "items": items}
    return json.dumps(schema, indent=2) + "\n"


def _plain_schema(schema: Json, definitions: Json) -> Json:
    """Return a schema without references. A number may be a duration, such as 45m."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _plain_schema(definitions[name], definitions)
    if schema.get("type") == "number":
        return {"type": ["number", "string"], "pattern": _DURATION}
    plain: Json = {}
    for key, value in schema.items():
        if key in ("$defs", "default", "description", "title"):
            continue
        if key == "properties":
            value = {k: _plain_schema(v, definitions) for k, v in value.items()}
        elif key == "items":
            value = _plain_schema(value, definitions)
        elif key == "anyOf":
            value = [_plain_schema(one, definitions) for one in value]
        plain[key] = value
    return plain


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
    """Write the CRD, what the chart has of schedules, and the manifests."""
    CRD.parent.mkdir(exist_ok=True)
    MANIFESTS.mkdir(exist_ok=True)
    CRD.write_text(crd_text(), encoding="utf-8")
    SCHEDULES.write_text(schedules_template(), encoding="utf-8")
    SCHEMA.write_text(schema_text(), encoding="utf-8")
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
