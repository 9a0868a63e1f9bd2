"""The objects of a session: valid, restricted, with the least rights, and the environment as agreed."""

from __future__ import annotations

import json
import re
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.kube.environment import RUNNER_VARIABLES
from midwatch.kube.manifests import job, objects
from midwatch.kube.resource import SessionResource, read_resource
from midwatch.kube.rules import (
    MAX_BRANCH,
    MAX_NAME,
    MAX_PROMPT_BYTES,
    MAX_REPOS,
    MAX_URL,
    MAX_VARIABLE,
)
from midwatch.kube.runner import (
    INSPECT_WITHIN,
    PUSH_AT_LEAST,
    REPORT_WITHIN,
    SAVE_WITHIN,
)
from midwatch.kube.runner_workspace import WIND_UP
from midwatch.session.options import Limits
from midwatch.settings import KeyReference, OperatorSettings

UID = "0f8fad5b-d9cb-469f-a165-70867728950e"
IMAGE = "registry.example/midwatch:1"
PLAIN = OperatorSettings(image=IMAGE)
FULL = OperatorSettings(
    image=IMAGE,
    image_pull_policy="IfNotPresent",
    image_pull_secrets=["registry"],
    api_key_secret=KeyReference(name="claude", key="key"),
    base_url="https://claude.example",
    model="claude-sonnet-5-5",
    variables={"TZ": "UTC", "MIDWATCH_LOG__LEVEL": "debug", "MODEL": "never"},
    storage="claim",
    storage_class="fast",
    content_url="http://content:8080",
    node_selector={"pool": "agents"},
    tolerations=[{"key": "agents", "operator": "Exists"}],
    service_account_annotations={"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"},
    pod_labels={"team": "a", "midwatch.dev/session": "not-ours"},
    pod_annotations={"team": "a", "example.com/scrape": "true"},
    runtime_class="gvisor",
    priority_class="low",
    termination_grace=30.5,
)

LEFT_TO_SECRETS = {
    "GIT_TOKEN",
    "GIT_HOST",
    "GIT_USERNAME",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_CUSTOM_HEADERS",
}
"""Variables of the runner that the operator does not write: a secret of `spec.environment` may."""


def resource(name: str = "fix-login", **spec: Any) -> SessionResource:
    base = {"prompt": "Fix it.", "repos": [{"input": {"url": "https://git.example/a"}}]}
    about = {"name": name, "namespace": "team", "uid": UID, "generation": 3}
    return read_resource({"metadata": about, "spec": {**base, **spec}})


def run(
    of: SessionResource,
    settings: OperatorSettings = PLAIN,
    attempt: int = 1,
    resume_from: SessionResource | None = None,
) -> dict[str, Any]:
    return job(of, settings, attempt=attempt, timeout=600, resume_from=resume_from)


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return spec


def environment(manifest: dict[str, Any]) -> dict[str, Any]:
    """Literal values by name; of others, where they come from."""
    env = pod(manifest)["containers"][0]["env"]
    found = {one["name"]: one.get("value", one.get("valueFrom")) for one in env}
    assert len(found) == len(env), "a variable stands there twice"
    return found


WISHES: list[dict[str, Any]] = [
    {},
    {
        "llmSettings": {"maxTurns": 5, "maxBudgetUsd": 0.5, "effort": "high"},
        "environment": {"secrets": ["tokens"], "variables": {"TZ": "CET", "A": "b"}},
        "apiKeySecret": {"name": "mine"},
        "resources": {"limits": {"cpu": 2}},
        "podAnnotations": {"team": "b"},
        "runtimeClassName": "kata",
        "priorityClassName": "high",
        "resumeFrom": "before",
        "interactive": True,
    },
]


@pytest.mark.parametrize("settings", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("spec", WISHES, ids=["little", "much"])
def test_kubernetes_takes_every_manifest(
    spec: dict[str, Any], settings: OperatorSettings
) -> None:
    of = resource("n" * MAX_NAME, **spec)
    made = [*objects(of, settings, "token"), run(of, settings, attempt=11)]
    kinds = ["ServiceAccount", "Role", "RoleBinding", "Secret"]
    claim = ["PersistentVolumeClaim"] if settings.storage == "claim" else []
    assert [one["kind"] for one in made] == [*kinds, *claim, "Job"]
    for manifest in made:
        kubernetes_validate.validate(manifest, "1.37", strict=True)
        about = manifest["metadata"]
        assert len(about["name"]) <= 63 and about["namespace"] == "team"
        assert about["labels"]["midwatch.dev/session-uid"] == UID
        assert about["ownerReferences"] == [
            {
                "apiVersion": "midwatch.dev/v1alpha1",
                "kind": "AgenticSession",
                "name": "n" * MAX_NAME,
                "uid": UID,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
    again = [*objects(of, settings, "token"), run(of, settings, attempt=11)]
    assert again == made


def test_what_is_not_used_is_not_made() -> None:
    kinds = [one["kind"] for one in objects(resource(), PLAIN, None)]
    assert kinds == ["ServiceAccount", "Role", "RoleBinding"]


@pytest.mark.parametrize("settings", [PLAIN, FULL], ids=["plain", "full"])
def test_the_pod_is_restricted(settings: OperatorSettings) -> None:
    """Each field of the profile `restricted` of the Pod Security Standards."""
    spec = pod(run(resource(**WISHES[1]), settings))
    for name in ("hostNetwork", "hostPID", "hostIPC", "hostUsers", "initContainers"):
        assert name not in spec
    assert {
        kind for volume in spec["volumes"] for kind in volume if kind != "name"
    } <= {
        "emptyDir",
        "persistentVolumeClaim",
    }
    about = spec["securityContext"]
    assert about["runAsNonRoot"] is True
    assert about["seccompProfile"] == {"type": "RuntimeDefault"}
    assert about["runAsUser"] == about["runAsGroup"] == about["fsGroup"] == 10001
    assert not {"sysctls", "seLinuxOptions", "windowsOptions"} & set(about)
    [container] = spec["containers"]
    assert not any("hostPort" in port for port in container.get("ports", ()))
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_what_is_written_to_is_a_volume() -> None:
    for settings in (PLAIN, FULL):
        spec = pod(run(resource(), settings))
        mounts = spec["containers"][0]["volumeMounts"]
        assert {one["mountPath"] for one in mounts} == {
            "/tmp",
            "/cache",
            "/session",
            "/workspace",
        }
        assert {m["name"] for m in mounts} == {v["name"] for v in spec["volumes"]}
        sub = {m["mountPath"]: m.get("subPath") for m in mounts}
        kept = settings.storage == "claim"
        assert sub["/workspace"] == ("workspace" if kept else None)
        assert sub["/session"] == ("session" if kept else None)


def test_the_role_reads_its_own_resource_and_writes_its_status() -> None:
    account, role, binding = objects(resource(), FULL, None)[:3]
    assert account["automountServiceAccountToken"] is False
    assert account["metadata"]["annotations"] == FULL.service_account_annotations
    rights = {
        (group, kind, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for kind in rule["resources"]
        for verb in rule["verbs"]
    }
    assert rights == {
        ("midwatch.dev", "agenticsessions", "get"),
        ("midwatch.dev", "agenticsessions/status", "get"),
        ("midwatch.dev", "agenticsessions/status", "patch"),
        ("midwatch.dev", "agenticsessions/status", "update"),
    }
    assert all(rule["resourceNames"] == ["fix-login"] for rule in role["rules"])
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    [subject] = binding["subjects"]
    spec = pod(run(resource()))
    assert subject["name"] == spec["serviceAccountName"] == account["metadata"]["name"]
    assert subject["namespace"] == "team"
    assert spec["automountServiceAccountToken"] is True


def test_the_job_runs_once_and_ends_in_time() -> None:
    manifest = run(resource(), FULL, attempt=2)
    spec = manifest["spec"]
    assert manifest["metadata"]["name"] == "fix-login-run-2"
    assert (spec["backoffLimit"], spec["parallelism"], spec["completions"]) == (0, 1, 1)
    assert spec["podReplacementPolicy"] == "Failed"
    assert "ttlSecondsAfterFinished" not in spec, "it may go before its end was told"
    assert pod(manifest)["restartPolicy"] == "Never"
    assert pod(manifest)["terminationGracePeriodSeconds"] == 31
    labels = spec["template"]["metadata"]["labels"]
    assert labels["midwatch.dev/session"] == "fix-login"
    assert labels["midwatch.dev/attempt"] == "2" and labels["team"] == "a"
    # No command: the image's entry point has an init that reaps what a session leaves.
    assert pod(manifest)["containers"][0]["args"] == ["session", "serve"]
    assert "command" not in pod(manifest)["containers"][0]


def test_the_deadline_cuts_off_no_pod_that_keeps_to_its_own_limits() -> None:
    """The Job's clock runs while a node and the image are waited for, and while the runner has its last say."""
    settings = OperatorSettings(
        image=IMAGE, unschedulable_grace=400, image_pull_grace=30
    )
    after = (Limits().grace, WIND_UP, PUSH_AT_LEAST, INSPECT_WITHIN, SAVE_WITHIN)
    latest = 400 + 30 + 600 + sum(after) + REPORT_WITHIN
    deadline = run(resource(), settings)["spec"]["activeDeadlineSeconds"]
    assert latest <= deadline <= latest + 30


def resources(own: dict[str, Any], **usual: Any) -> dict[str, Any]:
    settings = OperatorSettings(image=IMAGE, resources=usual) if usual else PLAIN
    container = pod(run(resource(resources=own), settings))["containers"][0]
    made: dict[str, Any] = container["resources"]
    return made


REQUESTS = {"cpu": "500m", "memory": "1Gi"}


@pytest.mark.parametrize(
    ("own", "requests", "limits"),
    [
        ({}, REQUESTS, {"memory": "4Gi"}),
        ({"requests": {"cpu": 2}}, REQUESTS | {"cpu": 2}, {"memory": "4Gi"}),
        (
            {"requests": {"memory": "2Gi"}},
            REQUESTS | {"memory": "2Gi"},
            {"memory": "4Gi"},
        ),
        # A request above the default limit raises it: Kubernetes refuses a request above the limit.
        (
            {"requests": {"memory": "8Gi"}},
            REQUESTS | {"memory": "8Gi"},
            {"memory": "8Gi"},
        ),
        # Of a limit without a request Kubernetes makes the request.
        ({"limits": {"cpu": 2}}, {"memory": "1Gi"}, {"cpu": 2, "memory": "4Gi"}),
        ({"limits": {"memory": "512Mi"}}, {"cpu": "500m"}, {"memory": "512Mi"}),
        (
            {"requests": {"memory": "1Gi"}, "limits": {"memory": "6Gi"}},
            REQUESTS,
            {"memory": "6Gi"},
        ),
    ],
)
def test_what_a_session_leaves_open_stays_as_in_the_settings(
    own: dict[str, Any], requests: dict[str, Any], limits: dict[str, Any]
) -> None:
    assert resources(own) == {"requests": requests, "limits": limits}


def test_resources_in_forms_that_only_kubernetes_knows() -> None:
    usual = {"limits": {"memory": "4e9"}, "claims": [{"name": "gpu"}]}
    own = {"requests": {"memory": "2Gi"}}
    kept = {"limits": {"memory": "2Gi"}, "claims": [{"name": "gpu"}]}
    assert resources(own, **usual) == own | kept
    assert resources({"limits": {"cpu": 1}}, limits={}) == {"limits": {"cpu": 1}}


def test_annotations_and_classes_are_the_sessions_own_or_the_settings() -> None:
    template = run(resource(), FULL)["spec"]["template"]
    assert template["metadata"]["annotations"] == FULL.pod_annotations
    spec = template["spec"]
    assert (spec["runtimeClassName"], spec["priorityClassName"]) == ("gvisor", "low")
    template = run(resource(**WISHES[1]), FULL)["spec"]["template"]
    annotations = {"team": "b", "example.com/scrape": "true"}
    assert template["metadata"]["annotations"] == annotations
    spec = template["spec"]
    assert (spec["runtimeClassName"], spec["priorityClassName"]) == ("kata", "high")
    plain = run(resource())["spec"]["template"]
    assert "annotations" not in plain["metadata"]
    assert not {"runtimeClassName", "priorityClassName"} & set(plain["spec"])


# ------------------------------------------------------------------ the environment


def test_every_variable_of_the_contract_is_written() -> None:
    manifest = run(resource(**WISHES[1]), FULL, resume_from=resource("before"))
    written = set(environment(manifest))
    contract = {variable.name for variable in RUNNER_VARIABLES}
    assert contract - written == LEFT_TO_SECRETS
    asked = {"SESSION_VARIABLE_TZ", "SESSION_VARIABLE_A"}
    assert written - contract == {"TZ", "MIDWATCH_LOG__LEVEL", *asked}


def test_without_a_wish_the_runners_default_counts() -> None:
    written = set(environment(run(resource())))
    required = {v.name for v in RUNNER_VARIABLES if v.default is None and not v.secret}
    assert required <= written
    contract = {variable.name for variable in RUNNER_VARIABLES}
    assert contract - written - LEFT_TO_SECRETS == {
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_BASE_URL",
        "CONTENT_TOKEN",
        "MODEL",
        "MAX_TURNS",
        "MAX_BUDGET_USD",
        "EFFORT",
    }


def test_the_environment_says_what_the_resource_says() -> None:
    repos = [
        {"input": {"url": "https://git.example/a", "branch": "main"}},
        {
            "name": "b",
            "input": {"url": "https://git.example/b"},
            "output": {"branch": "x"},
        },
    ]
    before = resource("before")
    spec = {**WISHES[1], "repos": repos, "mainRepoIndex": 1}
    env = environment(run(resource(**spec), FULL, 2, before))
    assert json.loads(env["REPOS_JSON"]) == repos
    told = {
        "SESSION_NAME": "fix-login",
        "SESSION_NAMESPACE": "team",
        "SESSION_UID": UID,
        "SESSION_GENERATION": "3",
        "SESSION_ATTEMPT": "2",
        "JOB_NAME": "fix-login-run-2",
        "POD_NAME": {"fieldRef": {"fieldPath": "metadata.name"}},
        "PROMPT": "Fix it.",
        "INTERACTIVE": "true",
        "MAIN_REPO_INDEX": "1",
        "MODEL": "claude-sonnet-5-5",
        "MAX_TURNS": "5",
        "MAX_BUDGET_USD": "0.5",
        "EFFORT": "high",
        "TIMEOUT": "600",
        "IDLE_TIMEOUT": "900",
        "AUTO_PUSH_ON_COMPLETE": "false",
        "TRUST_REPOSITORIES": "false",
        "RESUME_FROM": "before",
        "RESUME_FROM_FOLDER": "team/before.0f8fad5b",
        "CONTENT_URL": "http://content:8080",
        "CONTENT_FOLDER": "team/fix-login.0f8fad5b",
        "SYNC_INTERVAL": "5",
        "STATUS_INTERVAL": "5",
        "TERMINATION_GRACE": "30.5",
        "TZ": "UTC",
        "SESSION_VARIABLE_TZ": "CET",
    }
    assert {name: env[name] for name in told} == told


def test_secrets_stay_references() -> None:
    manifest = run(resource(**WISHES[1]), FULL)
    env = environment(manifest)
    assert env["ANTHROPIC_API_KEY"] == {
        "secretKeyRef": {"name": "mine", "key": "ANTHROPIC_API_KEY"}
    }
    assert env["CONTENT_TOKEN"] == {
        "secretKeyRef": {"name": "fix-login-content", "key": "token"}
    }
    container = pod(manifest)["containers"][0]
    [source] = container["envFrom"]
    assert source == {"prefix": "SESSION_SECRET_", "secretRef": {"name": "tokens"}}
    settings_key = environment(run(resource(), FULL))["ANTHROPIC_API_KEY"]
    assert settings_key == {"secretKeyRef": {"name": "claude", "key": "key"}}


def expanded(value: str) -> str:
    """What a container is given: as Kubernetes does it for `$(NAME)` and `$$`."""
    return re.sub(
        r"\$(?:\$|\(([^)]*)\))",
        lambda m: "$" if m[0] == "$$" else f"<{m[1]}>",
        value,
    )


@given(st.text(st.sampled_from("$()A b"), max_size=12))
def test_a_prompt_cannot_name_another_variable(text: str) -> None:
    prompt = f"x{text}$(CONTENT_TOKEN)"
    env = environment(
        run(resource(prompt=prompt, environment={"variables": {"A": text}}))
    )
    assert expanded(env["PROMPT"]) == prompt
    assert expanded(env["SESSION_VARIABLE_A"]) == text


def test_the_largest_resource_fits_into_an_environment() -> None:
    """Linux takes 131,072 bytes of one variable, and a quarter of the stack (8 MiB) of all."""
    place = {
        "url": "https://git.example/".ljust(MAX_URL - 2, "x"),
        "branch": "ü" * MAX_BRANCH,
    }
    repos = [
        {
            "name": f"{i:02}".ljust(100, "n"),
            "input": {**place, "url": f"{place['url']}{i:02}"},
            "output": {**place},
        }
        for i in range(MAX_REPOS)
    ]
    variables = {f"V{i}": "€" * MAX_VARIABLE for i in range(64)}
    of = resource(
        prompt="x" * MAX_PROMPT_BYTES,
        repos=repos,
        environment={"variables": variables},
    )
    env = environment(run(of))
    sizes = [
        len(f"{name}={expanded(value)}\0".encode())
        for name, value in env.items()
        if isinstance(value, str)
    ]
    assert max(sizes) <= 131_072
    assert sum(sizes) <= 1_500_000
