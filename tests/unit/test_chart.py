"""The chart, rendered by Helm's own engine: valid, complete in itself, and current."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import pytest
import referencing
import yaml
from deploy import render
from deploy.cases import CASES, SCHEDULES
from helm_python import HelmError
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from typer.main import get_command

from midwatch import __version__
from midwatch.cli.command_table import app
from midwatch.config import load
from midwatch.kube.rules import SESSION_LABEL
from midwatch.kube.schedules import SCHEDULE_LABEL, objects
from midwatch.schedule_settings import ScheduleSettings
from midwatch.settings import Settings

Json = dict[str, Any]
VERSIONS = ("1.29.0", "1.33.0", "1.37.0")
THEIRS = {
    "Secret": {
        *("midwatch-database", "midwatch-owner", "midwatch-anthropic"),
        *("midwatch-content-key", "midwatch-subjects", "images"),
        "midwatch-bucket",
    },
    "ConfigMap": {"company-ca"},
    "PersistentVolumeClaim": {"big-disk"},
    "ServiceAccount": {"vault-reader"},
}
"""What people bring themselves, by kind."""


@cache
def rendered(case: str) -> list[Json]:
    return render.documents(CASES[case])


def of_kind(documents: list[Json], *kinds: str) -> list[Json]:
    return [one for one in documents if one["kind"] in kinds]


def pods(documents: list[Json]) -> Iterator[tuple[str, Json]]:
    """Names and templates of all pods."""
    for one in of_kind(documents, "Deployment", "StatefulSet", "Job", "CronJob"):
        job = one["spec"].get("jobTemplate", one)
        yield one["metadata"]["name"], job["spec"]["template"]


def containers(template: Json) -> list[Json]:
    spec = template["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]


every_case = pytest.mark.parametrize("case", CASES)

# ------------------------------------------------------------------ valid


@cache
def validator(version: str, kind: str, group: str) -> Draft202012Validator:
    """Kubernetes' own schema, in which an unknown field is an error."""
    folder = f"kubernetes-json-schema/v{version}-local-strict"
    schema = schema_contents(f"{folder}/{kind}-{group}.json", version)
    return Draft202012Validator(schema, registry=definitions(version))


@cache
def definitions(version: str) -> Any:
    folder = f"kubernetes-json-schema/v{version}-local-strict"
    contents = schema_contents(f"{folder}/_definitions.json", version)
    return referencing.Resource.from_contents(contents) @ referencing.Registry()


_WORDS = {"type": "array", "items": {"type": "string"}}
_SERVICE_MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["selector", "endpoints"],
    "properties": {
        "jobLabel": {"type": "string"},
        "namespaceSelector": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"matchNames": _WORDS},
        },
        "selector": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "matchLabels": {"type": "object"},
                "matchExpressions": {"type": "array"},
            },
        },
        "endpoints": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "port": {"type": "string"},
                    "path": {"type": "string", "pattern": "^/"},
                    "interval": {"type": "string", "pattern": "^[0-9]+[hms]$"},
                },
            },
        },
    },
}
"""What we use of monitoring.coreos.com/v1, by the Prometheus operator's API reference: it is none of
Kubernetes' own kinds."""


def errors(document: Json, version: str) -> list[str]:
    group, _, last = document["apiVersion"].partition("/")
    if (group, document["kind"]) == ("monitoring.coreos.com", "ServiceMonitor"):
        own = Draft202012Validator(_SERVICE_MONITOR).iter_errors(document["spec"])
        return [one.message for one in own]
    group = f"{group.split('.')[0]}-{last}" if last else group
    kind = validator(version, document["kind"].lower(), group)
    return [f"{one.json_path}: {one.message}" for one in kind.iter_errors(document)]


@every_case
def test_every_object_is_valid(case: str) -> None:
    for one in rendered(case):
        for version in VERSIONS:
            assert errors(one, version) == [], one["metadata"]["name"]


def test_the_schemas_refuse_what_kubernetes_would() -> None:
    deployment = json.loads(json.dumps(of_kind(rendered("watch"), "Deployment")[0]))
    deployment["spec"]["template"]["spec"]["tolerance"] = []
    assert errors(deployment, VERSIONS[0])


@every_case
def test_nothing_is_there_twice(case: str) -> None:
    keys = [
        (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
        for one in rendered(case)
    ]
    assert len(set(keys)) == len(keys)
    if case == "nothing":
        assert keys == []


def test_helm_has_nothing_to_say() -> None:
    report = helm_python.lint(str(render.CHART), strict=True, kube_version="v1.29.0")
    bad = [one for one in report["messages"] if one["severity"] > 1]
    assert bad == [] and report["errors"] == []


def test_two_releases_in_two_namespaces_share_no_cluster_wide_name() -> None:
    def wide(namespace: str) -> set[str]:
        documents = render.documents({}, namespace=namespace)
        kinds = of_kind(documents, "ClusterRole", "ClusterRoleBinding")
        return {one["metadata"]["name"] for one in kinds}

    assert len(wide("one")) == 3 and not wide("one") & wide("two")


# ------------------------------------------------------------------ approved actions


def acting(account: str = "", sessions: Json | None = None) -> Json:
    """Values with a subject whose approved actions the server takes; `account` is one for all components."""
    actions = {
        "allow": ["restart_workload"],
        "workloads": ["shop/Deployment/checkout", "*/*/api-*"],
    }
    subject = {"name": "cluster", "kind": "kubernetes", "actions": actions}
    shared = {"serviceAccount": {"create": False, "name": account}} if account else {}
    components = ("monitor", "agents", "server")
    return {
        **{one: {"enabled": True, **shared} for one in components},
        "settings": {"subjects": [subject], "sessions": sessions or {}},
    }


def test_only_the_server_may_change_workloads_and_only_those_named() -> None:
    documents = render.documents(acting(sessions={"sandbox": "on"}))
    patching = {
        (one["kind"], one["metadata"].get("namespace")): [
            (rule["resources"], rule.get("resourceNames"))
            for rule in one["rules"]
            if "patch" in rule["verbs"] and rule["apiGroups"] == ["apps"]
        ]
        for one in of_kind(documents, "Role", "ClusterRole")
    }
    everything = ["deployments", "statefulsets", "daemonsets"]
    assert {key: found for key, found in patching.items() if found} == {
        ("Role", "shop"): [(["deployments"], ["checkout"])],
        ("ClusterRole", None): [(everything, None)],
    }
    bound = [
        subject["name"]
        for one in of_kind(documents, "RoleBinding", "ClusterRoleBinding")
        if one["roleRef"]["name"].endswith("-workload-actions")
        for subject in one["subjects"]
    ]
    assert bound == ["midwatch-server"] * 2
    mounts = {
        name: template["spec"]["automountServiceAccountToken"]
        for name, template in pods(documents)
    }
    assert mounts["midwatch-server"] is True
    without = acting()
    without["settings"]["subjects"][0]["actions"]["kubeconfig"] = "/run/acting"
    names = [one["metadata"]["name"] for one in render.documents(without)]
    assert not [name for name in names if name.endswith("-workload-actions")]


def creating(**more: Any) -> Json:
    """Values with a server that creates sessions in the namespace team-a."""
    cluster = {"namespace": "team-a", **more}
    settings = {"server": {"session_cluster": cluster}}
    return {"server": {"enabled": True}, "settings": settings}


def test_only_the_server_may_create_sessions_where_the_settings_say_so() -> None:
    def rights(values: Json) -> list[Any]:
        documents = render.documents(values)
        mounts = {
            name: template["spec"]["automountServiceAccountToken"]
            for name, template in pods(documents)
        }
        roles = {
            one["metadata"]["name"]: one["rules"] for one in of_kind(documents, "Role")
        }
        bound = [
            (
                one["metadata"]["namespace"],
                [subject["name"] for subject in one["subjects"]],
                roles[one["roleRef"]["name"]],
            )
            for one in of_kind(documents, "RoleBinding")
            if one["roleRef"]["name"] in roles
        ]
        return [mounts["midwatch-server"], *bound]

    create = {
        "apiGroups": ["midwatch.dev"],
        "resources": ["agenticsessions"],
        "verbs": ["create"],
    }
    assert rights(creating()) == [True, ("team-a", ["midwatch-server"], [create])]
    assert rights(creating(kubeconfig="/run/login/kubeconfig")) == [False]
    assert rights({"server": {"enabled": True}}) == [False]


# ------------------------------------------------------------------ wrong values


SQLITE = [{"name": "MIDWATCH_DATABASE", "value": "sqlite:////data/midwatch.db"}]
IN_B = {"schedules": {"namespace": "b"}}


def scheduled(**fields: Any) -> Json:
    return {"settings": {"schedules": [{**SCHEDULES[0], **fields}]}}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"monitor": {"enabeld": True}}, "'enabeld' not allowed"),
        ({"database": {"url": "postgresql://u:p@h/d"}}, "'url' not allowed"),
        ({"anthropic": {"apiKey": "sk-ant-x"}}, "'apiKey' not allowed"),
        ({"image": {"digest": "sha256:12"}}, "/image/digest"),
        ({"agents": {"replicas": -1}}, "/agents/replicas"),
        ({"monitor": {"replicas": "two"}}, "/monitor/replicas"),
        ({"extraEnv": SQLITE}, "extraEnv: MIDWATCH_DATABASE is written by the chart"),
        ({"agents": {"replicas": "many"}}, "/agents/replicas"),
        ({"content": {"keySecret": {"name": ""}}}, "/content/keySecret/name"),
        ({"content": {"persistence": {"size": "big"}}}, "/content/persistence/size"),
        ({"networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1"]}}}, "/cidrs/0"),
        ({"networkPolicy": {"sessions": {"ports": [0]}}}, "/sessions/ports/0"),
        ({"operator": {"namespaces": ["Team A"]}}, "/operator/namespaces/0"),
        ({"settings": {"subject": []}}, "'subject' not allowed"),
        ({"settings": {"operator": {"namespaces": ["a"]}}}, "set operator.namespaces"),
        ({"settings": {"content": {"root": "/x"}}}, "set content.persistence"),
        ({"settings": {"metrics": {"port": 1}}}, "leave it out"),
        ({"metrics": {"serviceMonitor": {"interval": "often"}}}, "/interval"),
        ({"settings": {"database": "sqlite://"}}, "name a secret in database.secret"),
        ({"monitor": {"enabled": True}}, "name systems in settings.subjects"),
        (scheduled(concurrency="Replace"), "/settings/schedules/0/concurrency"),
        (scheduled(sandbox="off"), "'sandbox' not allowed"),
        (scheduled(starting_deadline="soon"), "/schedules/0/starting_deadline"),
        (scheduled(prompt="Use ${TOKEN}."), "schedules[0]: a CronJob has no variables"),
        ({**scheduled(), "operator": {"enabled": False}}, "set operator.enabled"),
        (
            {**scheduled(), "operator": {"namespaces": ["a"]}, **IN_B},
            "runs no sessions in b",
        ),
        ({"settings": {"schedules": [SCHEDULES[0]] * 2}}, "[1].name: another one"),
        (acting(sessions={"allowed_tools": ["Bash(make:*)"]}), "without a sandbox"),
        (acting(account="default"), "have one service account"),
        ({**creating(), "operator": {"namespaces": ["b"]}}, "no sessions in team-a"),
    ],
)
def test_wrong_values_are_refused(values: Json, said: str) -> None:
    with pytest.raises(HelmError) as caught:
        render.documents(values)
    assert said in str(caught.value)


def test_the_schema_knows_the_groups_of_the_settings() -> None:
    schema = json.loads((render.CHART / "values.schema.json").read_text())
    assert schema["properties"]["settings"]["properties"].keys() == set(
        Settings.model_fields
    )


# ------------------------------------------------------------------ complete in itself


def settings_of(template: Json, documents: list[Json], folder: Path) -> Settings:
    """What the first container's process reads, with a value for each variable that it is given."""
    container = template["spec"]["containers"][0]
    environ = {one["name"]: one.get("value", "") for one in container["env"]}
    environ |= {"ORDERS_DSN": "postgresql://u:p@orders/db"}
    if "MIDWATCH_DATABASE" in environ:
        environ["MIDWATCH_DATABASE"] = "postgresql://midwatch@db/midwatch"
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    file = Path(environ["MIDWATCH_CONFIG"])
    volumes = {one["name"]: one for one in template["spec"]["volumes"]}
    wanted = volumes[mounts[str(file.parent)]]["configMap"]["name"]
    maps = {m["metadata"]["name"]: m["data"] for m in of_kind(documents, "ConfigMap")}
    (folder / file.name).write_text(maps[wanted][file.name])
    return load(environ, folder / file.name)


@every_case
def test_midwatch_takes_its_settings(case: str, tmp_path: Path) -> None:
    documents = rendered(case)
    for name, template in pods(documents):
        if name.endswith("-database-upgrade"):
            continue
        settings = settings_of(template, documents, tmp_path)
        assert settings.log.format == "json" or settings.schedules
        files = {
            str(settings.anthropic.api_key_file or ""),
            str(settings.operator.content_key_file or ""),
            str(settings.content.key_file or ""),
        } - {""}
        mounted = mounted_files(template)
        assert files <= mounted, f"{name} is told of files that are not there"


def mounted_files(template: Json) -> set[str]:
    """Paths of all files of secrets in the first container."""
    volumes = {one["name"]: one for one in template["spec"]["volumes"]}
    found = set()
    for mount in template["spec"]["containers"][0]["volumeMounts"]:
        for item in volumes[mount["name"]].get("secret", {}).get("items", ()):
            found.add(f"{mount['mountPath']}/{item['path']}")
    return found


def test_what_the_operator_is_told(tmp_path: Path) -> None:
    def told(case: str) -> Any:
        documents = rendered(case)
        template = next(t for name, t in pods(documents) if name.endswith("-operator"))
        return settings_of(template, documents, tmp_path).operator

    plain = told("defaults")
    assert plain.image == "midwatch:0.1.0" and plain.namespaces == []
    assert plain.content_url == "http://midwatch-content.midwatch.svc:8080"
    assert (plain.storage, told("claims").storage) == ("ephemeral", "claim")
    assert told("claims").content_url is None
    assert told("proxy elsewhere").content_url == "https://content.example.com"
    full = told("everything")
    assert full.image.endswith("@sha256:" + "0123456789abcdef" * 4)
    assert full.image_pull_secrets == ["images"]
    assert full.namespaces == ["team-a", "team-b"]
    assert full.base_url == "https://gateway.example.com"
    assert (full.storage, full.claim_size) == ("claim", "50Gi")
    assert full.node_selector == {"pool": "agents"}
    assert full.pod_annotations == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "no"
    }
    assert (full.runtime_class, full.priority_class) == ("kata", "low")


def test_classes_of_the_charts_own_pods() -> None:
    found = {
        name.rpartition("-")[2]: (
            template["spec"].get("runtimeClassName"),
            template["spec"].get("priorityClassName"),
        )
        for name, template in pods(rendered("everything"))
    }
    assert found["monitor"] == ("gvisor", "important")
    assert found["operator"] == found["content"] == (None, None)


def test_a_session_gets_the_settings_of_sessions(tmp_path: Path) -> None:
    documents = rendered("everything")
    template = next(t for name, t in pods(documents) if name.endswith("-operator"))
    variables = settings_of(template, documents, tmp_path).operator.variables
    wanted = CASES["everything"]["settings"]["sessions"]
    told = load(variables).sessions
    assert {name: getattr(told, name) for name in wanted} == wanted
    assert told.wall == 7200, "the operator's own variables stay"


@pytest.mark.parametrize(
    ("values", "namespace"),
    [
        (CASES["everything"], "team-a"),
        (CASES["schedules"], "team-b"),
        (scheduled(name="123"), "midwatch"),
    ],
)
def test_schedules_are_as_the_command_prints_them(
    values: Json, namespace: str, tmp_path: Path
) -> None:
    documents = render.documents(values)
    found = [one for one in documents if SCHEDULE_LABEL in one["metadata"]["labels"]]
    templates = dict(pods(documents))
    operator = next(one for name, one in templates.items() if "-operator" in name)
    options = settings_of(operator, documents, tmp_path).operator
    expected = []
    for written in values["settings"]["schedules"]:
        schedule = ScheduleSettings.model_validate(written)
        expected += objects(schedule, options, namespace, "")
        read = settings_of(templates[schedule.name], documents, tmp_path)
        assert read.schedules == [schedule]
    for one in (*found, *expected):
        one.pop("data", None)

    def in_order(objects: list[Json]) -> list[Json]:
        return sorted(objects, key=lambda one: (one["kind"], one["metadata"]["name"]))

    assert in_order(found) == in_order(expected)


def test_new_settings_make_new_pods() -> None:
    def mark(level: str) -> dict[str, str]:
        values = {**CASES["both"], "settings": {**CASES["both"]["settings"]}}
        values["settings"]["operator"] = {"model": level}
        return {
            name: template["metadata"]["annotations"]["midwatch.dev/settings"]
            for name, template in pods(render.documents(values))
        }

    one, two = mark("a"), mark("b")
    assert {name for name in one if one[name] != two[name]} == {"midwatch-operator"}


def references(template: Json) -> Iterator[tuple[str, str]]:
    """Kind and name of what a pod needs to start."""
    spec = template["spec"]
    yield "ServiceAccount", spec.get("serviceAccountName", "default")
    for secret in spec.get("imagePullSecrets", ()):
        yield "Secret", secret["name"]
    for volume in spec["volumes"]:
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for container in containers(template):
        for source in container.get("envFrom", ()):
            yield "Secret", source["secretRef"]["name"]
        for variable in container.get("env", ()):
            if key := variable.get("valueFrom", {}).get("secretKeyRef"):
                yield "Secret", key["name"]


@every_case
def test_what_a_pod_names_is_there(case: str) -> None:
    documents = rendered(case)
    made = {(one["kind"], one["metadata"]["name"]) for one in documents}
    for name, template in pods(documents):
        for kind, wanted in references(template):
            known = (kind, wanted) in made or wanted in THEIRS.get(kind, ())
            assert known or (kind, wanted) == ("ServiceAccount", "default"), name
        declared = {volume["name"] for volume in template["spec"]["volumes"]}
        for container in containers(template):
            used = {mount["name"] for mount in container["volumeMounts"]}
            assert used <= declared, f"{name}: {used - declared}"


def test_with_an_object_store_the_proxy_has_replicas_and_no_volume(
    tmp_path: Path,
) -> None:
    documents = rendered("object store")
    assert not of_kind(documents, "PersistentVolumeClaim", "StatefulSet")
    [proxy] = [
        one
        for one in of_kind(documents, "Deployment")
        if one["metadata"]["name"] == "midwatch-content"
    ]
    assert proxy["spec"]["replicas"] == 3
    template = proxy["spec"]["template"]
    found = settings_of(template, documents, tmp_path)
    assert found.content.url == "s3://midwatch-content/team"
    [container] = containers(template)
    assert container["envFrom"] == [{"secretRef": {"name": "midwatch-bucket"}}]
    # The credentials are the proxy's alone.
    for name, other in pods(documents):
        if name != "midwatch-content":
            assert ("Secret", "midwatch-bucket") not in references(other)
            assert "AWS_REGION" not in str(other)
    assert any(
        one["metadata"]["name"] == "midwatch-content"
        for one in of_kind(documents, "PodDisruptionBudget")
    )
    # By default there is one, on its own volume.
    [proxy] = of_kind(rendered("defaults"), "StatefulSet")
    assert proxy["spec"]["replicas"] == 1 and "envFrom" not in str(proxy)


def test_what_has_replicas_is_spread_and_keeps_one_of_them() -> None:
    documents = rendered("everything")
    kept = {
        one["metadata"]["name"] for one in of_kind(documents, "PodDisruptionBudget")
    }
    assert kept == {"night-watch-monitor", "night-watch-agents", "night-watch-server"}
    for name, template in pods(of_kind(documents, "Deployment")):
        spread = template["spec"].get("topologySpreadConstraints", ())
        assert len(spread) == 2 * (name in kept), name
    assert dict(
        (one["metadata"]["name"], one["spec"].get("replicas"))
        for one in of_kind(documents, "Deployment")
    ) == {
        "night-watch-monitor": 3,
        "night-watch-agents": None,  # the autoscaler's
        "night-watch-server": 2,
        "night-watch-operator": 1,
    }
    assert not of_kind(rendered("server alone"), "PodDisruptionBudget")


def test_a_hook_needs_nothing_that_comes_after_it() -> None:
    """Helm runs it before it makes accounts and settings."""
    jobs = dict(pods(of_kind(rendered("everything"), "Job")))
    needed = set(references(jobs["night-watch-database-upgrade"]))
    assert needed == {
        ("ServiceAccount", "default"),
        ("Secret", "images"),
        ("Secret", "midwatch-owner"),
    }


@every_case
def test_ports_and_selectors_meet(case: str) -> None:
    documents = rendered(case)
    templates = dict(pods(documents))
    for one in of_kind(documents, "Deployment", "StatefulSet"):
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for one in of_kind(documents, "Service", "PodDisruptionBudget"):
        selector = one["spec"]["selector"]
        wanted = selector.get("matchLabels", selector)
        met = [
            template
            for template in templates.values()
            if wanted.items() <= template["metadata"]["labels"].items()
        ]
        assert len(met) == 1
        ports = {
            port["name"] for c in containers(met[0]) for port in c.get("ports", ())
        }
        for port in one["spec"].get("ports", ()):
            assert port["targetPort"] in ports
    for template in templates.values():
        for container in containers(template):
            ports = {port["name"] for port in container.get("ports", ())}
            probed = {probe["httpGet"]["port"] for probe in http_probes(container)}
            assert probed <= ports


@pytest.mark.parametrize("case", ["scraped sessions", "everything"])
def test_prometheus_finds_every_pod(case: str) -> None:
    """By the labels and the ports of services in the namespace, as the Prometheus operator looks for them."""
    documents = rendered(case)
    [monitor] = of_kind(documents, "ServiceMonitor")
    spec, labels = monitor["spec"], monitor["metadata"]["labels"]
    assert labels["app.kubernetes.io/part-of"] == "midwatch"
    wanted = CASES[case]["metrics"]["serviceMonitor"].get("labels", {})
    assert wanted.items() <= labels.items()
    [endpoint], found = spec["endpoints"], set()
    for service in of_kind(documents, "Service"):
        about = service["metadata"]
        assert about["namespace"] in spec["namespaceSelector"]["matchNames"]
        assert spec["selector"]["matchLabels"].items() <= about["labels"].items()
        for one in spec["selector"]["matchExpressions"]:
            assert one["operator"] == "In"
            assert about["labels"][one["key"]] in one["values"]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        found.add(about["labels"][spec["jobLabel"]])
    kinds = of_kind(documents, "Deployment", "StatefulSet")
    component = "app.kubernetes.io/component"
    assert found == {one["metadata"]["labels"][component] for one in kinds}


def test_without_prometheus_there_is_nothing_of_it() -> None:
    assert not of_kind(rendered("both"), "ServiceMonitor")
    assert len(of_kind(rendered("both"), "Service")) == 1


@every_case
def test_every_daemon_is_restarted_when_it_hangs(case: str, tmp_path: Path) -> None:
    documents = rendered(case)
    for name, template in pods(of_kind(documents, "Deployment", "StatefulSet")):
        [container] = template["spec"]["containers"]
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz", name
        port, *others = container["ports"]
        settings = settings_of(template, documents, tmp_path)
        if container["name"] == "serve":
            [web] = others
            assert settings.server.listen == ("0.0.0.0", web["containerPort"])
            assert container["readinessProbe"]["httpGet"]["port"] == web["name"]
        else:
            assert not others
        groups = {"operator": settings.operator, "content": settings.content}
        served = groups.get(container["name"], settings.metrics)
        assert (served.host, served.port) == ("0.0.0.0", port["containerPort"])


def http_probes(container: Json) -> list[Json]:
    kinds = ("startupProbe", "livenessProbe", "readinessProbe")
    return [container[k] for k in kinds if "httpGet" in container.get(k, {})]


@every_case
def test_commands_are_the_command_line_s_own(case: str) -> None:
    for _, template in pods(rendered(case)):
        for container in containers(template):
            find_command(container["args"])
            if probe := container.get("readinessProbe", {}).get("exec"):
                assert probe["command"][0] == "midwatch"
                find_command(probe["command"][1:])


def find_command(words: list[str]) -> None:
    command: Any = get_command(app)
    rest = [*words]
    while rest and hasattr(command, "get_command"):
        command = command.get_command(None, rest.pop(0))
        assert command is not None, f"midwatch has no {' '.join(words)}"
    command.make_context(
        "midwatch", rest
    )  # an error for arguments that it does not take


def test_a_session_is_told_apart_by_its_label() -> None:
    policies = of_kind(rendered("defaults"), "NetworkPolicy")
    assert any(SESSION_LABEL in json.dumps(one["spec"]) for one in policies)


def test_no_secret_has_a_value_in_the_chart() -> None:
    for case in CASES:
        assert not of_kind(rendered(case), "Secret")


# ------------------------------------------------------------------ current


def test_the_versions_are_one() -> None:
    about = render.chart().metadata
    assert about["version"] == about["appVersion"] == __version__


def test_the_crd_is_current() -> None:
    assert render.CRD.read_text() == render.crd_text(), "run `make manifests`"


def test_what_the_chart_has_of_schedules_is_current() -> None:
    assert render.SCHEDULES.read_text() == render.schedules_template(), "make manifests"
    assert render.SCHEMA.read_text() == render.schema_text(), "run `make manifests`"


def test_the_manifests_are_current() -> None:
    written = {file.name: file.read_text() for file in render.MANIFESTS.iterdir()}
    assert written == render.manifests(), "run `make manifests`"


@pytest.mark.parametrize("file", ["sessions.yaml", "watch.yaml"])
def test_what_a_pod_needs_stands_before_it(file: str) -> None:
    kinds = [one["kind"] for one in yaml.safe_load_all(render.manifests()[file])]
    pods = min(kinds.index(kind) for kind in {"Deployment", "StatefulSet"} & {*kinds})
    needed = {"NetworkPolicy", "ServiceAccount", "ConfigMap", "ClusterRoleBinding"}
    assert not needed & set(kinds[pods:])


def test_the_manifests_are_valid() -> None:
    found: list[Mapping[str, Any]] = []
    for text in render.manifests().values():
        found += yaml.safe_load_all(text)
    for one in found:
        assert errors(dict(one), VERSIONS[0]) == []
    names = [(one["kind"], one["metadata"]["name"]) for one in found]
    assert len(set(names)) == len(names), "one file would overwrite another's"
    kinds = {one["kind"] for one in found}
    assert {"Namespace", "CustomResourceDefinition", "StatefulSet"} <= kinds
