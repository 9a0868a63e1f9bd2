"""The manifests of a session's objects. Pure: the same resource and settings give the same manifests.

Their names follow from the session's, so that a repeated create finds its own.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

from midwatch.kube.environment import (
    CACHE_PATH,
    SECRET_PREFIX,
    STATE_PATH,
    WORKSPACE_PATH,
    RunnerEnvironment,
    container_env,
)
from midwatch.kube.resource import SessionResource
from midwatch.kube.rules import (
    API_VERSION,
    ATTEMPT_LABEL,
    CONTAINER,
    GROUP,
    KIND,
    MANAGED_BY,
    PLURAL,
    SESSION_LABEL,
    UID_LABEL,
    account_name,
    claim_name,
    job_name,
    quantity,
    secret_name,
)
from midwatch.model import Json
from midwatch.settings import OperatorSettings

# ------------------------------------------------------------------ metadata


def labels(resource: SessionResource) -> dict[str, str]:
    """Return the labels of a session's objects."""
    return {**MANAGED_BY, SESSION_LABEL: resource.name, UID_LABEL: resource.uid}


def metadata(resource: SessionResource, name: str) -> Json:
    """Return an object's metadata. The owner reference deletes the object with the resource."""
    return {
        "name": name,
        "namespace": resource.namespace,
        "labels": labels(resource),
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": resource.name,
                "uid": resource.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


# ------------------------------------------------------------------ the Job

ARGUMENTS = ("session", "serve")
"""Arguments for the image's entry point, which stays: its first process reaps orphaned processes."""
USER = 10001
"""User and group of the image."""


def job(
    resource: SessionResource,
    settings: OperatorSettings,
    *,
    attempt: int,
    timeout: int,
    resume_from: SessionResource | None,
) -> Json:
    """Return the Job of one attempt. Its pod meets the Pod Security Standard `restricted`.

    Args:
        resource: The session.
        settings: The operator's settings; `image` is required.
        attempt: Number of the attempt, from 1.
        timeout: Seconds that are left for this attempt.
        resume_from: The resource that `spec.resumeFrom` names, if it exists.
    """
    about = metadata(resource, job_name(resource.name, attempt))
    about["labels"] = {**about["labels"], ATTEMPT_LABEL: str(attempt)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": about,
        "spec": {
            "parallelism": 1,
            "completions": 1,
            # The operator decides on restarts: it knows why the pod was lost.
            "backoffLimit": 0,
            # The Job fails only after its pod is gone: otherwise two attempts could run at once.
            "podReplacementPolicy": "Failed",
            "activeDeadlineSeconds": _deadline(timeout, settings),
            # No ttlSecondsAfterFinished: a Job that expired while the operator was down would count as lost
            # and run again. The operator sets it once the status has the end.
            "template": {
                "metadata": _pod_metadata(resource, settings, about["labels"]),
                "spec": _pod(
                    resource,
                    settings,
                    _environment(resource, settings, attempt, timeout, resume_from),
                ),
            },
        },
    }


def _pod_metadata(
    resource: SessionResource, settings: OperatorSettings, own: dict[str, str]
) -> Json:
    about: Json = {"labels": {**settings.pod_labels, **own}}
    annotations = {**settings.pod_annotations, **resource.spec.pod_annotations}
    return about | ({"annotations": annotations} if annotations else {})


def _deadline(timeout: int, settings: OperatorSettings) -> int:
    """Return the Job's deadline in seconds.

    It starts before the pod has a node and an image; the runner's timeout starts after that. So the longest waits for
    both are added, and the session keeps all of its time.
    """
    waits = settings.unschedulable_grace + settings.image_pull_grace
    return math.ceil(waits + timeout + settings.deadline_margin)


def _pod(
    resource: SessionResource, settings: OperatorSettings, environment: list[Json]
) -> Json:
    pod: Json = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(settings.termination_grace),
        "serviceAccountName": account_name(resource.name),
        # The runner writes the status with this token.
        "automountServiceAccountToken": True,
        # Otherwise services become variables, some with names of the runner's variables.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(resource, settings, environment)],
        "volumes": _volumes(resource, settings),
    }
    if settings.image_pull_secrets:
        pod["imagePullSecrets"] = [
            {"name": name} for name in settings.image_pull_secrets
        ]
    if settings.node_selector:
        pod["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        pod["tolerations"] = [dict(one) for one in settings.tolerations]
    if runtime := resource.spec.runtime_class_name or settings.runtime_class:
        pod["runtimeClassName"] = runtime
    if priority := resource.spec.priority_class_name or settings.priority_class:
        pod["priorityClassName"] = priority
    return pod


def _container(
    resource: SessionResource, settings: OperatorSettings, environment: list[Json]
) -> Json:
    container: Json = {
        "name": CONTAINER,
        "image": settings.image,
        "args": list(ARGUMENTS),
        "env": environment,
        "resources": _resources(resource, settings),
        # The operator shows the last lines of the log of a pod that died without a report.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": _mounts(settings),
    }
    secrets = resource.spec.environment.secrets
    if secrets:
        container["envFrom"] = [
            # A key of a secret may be LD_PRELOAD; the prefix makes it harmless.
            {"prefix": SECRET_PREFIX, "secretRef": {"name": name}}
            for name in secrets
        ]
    if settings.image_pull_policy is not None:
        container["imagePullPolicy"] = settings.image_pull_policy
    return container


def _resources(resource: SessionResource, settings: OperatorSettings) -> Json:
    """Return the requests and limits of the session, and the operator's of all other names.

    A default request gives way to a limit of the session, from which Kubernetes derives the request. A default limit stays
    beside a request of the session, and is raised to it where it is smaller.
    """
    own, usual = resource.spec.resources, settings.resources
    requests, limits = own.requests or {}, own.limits or {}
    bounds = {
        name: _larger(amount, requests.get(name))
        for name, amount in (usual.get("limits") or {}).items()
    }
    wanted = {n: v for n, v in (usual.get("requests") or {}).items() if n not in limits}
    made = {"requests": {**wanted, **requests}, "limits": {**bounds, **limits}}
    return {**usual, **{kind: amounts for kind, amounts in made.items() if amounts}}


def _larger(usual: Any, own: int | str | None) -> Any:
    """Return the session's own amount if it is larger, or if the usual one is in a form that cannot be compared."""
    if own is None:
        return usual
    try:
        return own if quantity(own) > quantity(usual) else usual
    except ValueError:
        return own


# ------------------------------------------------------------------ environment


def _environment(
    resource: SessionResource,
    settings: OperatorSettings,
    attempt: int,
    timeout: int,
    resume_from: SessionResource | None,
) -> list[Json]:
    spec, llm = resource.spec, resource.spec.llm_settings
    repos = [repo.model_dump(by_alias=True, exclude_none=True) for repo in spec.repos]
    own = RunnerEnvironment(
        anthropic_base_url=settings.base_url,
        session_name=resource.name,
        session_namespace=resource.namespace,
        session_uid=resource.uid,
        session_generation=resource.generation,
        session_attempt=attempt,
        job_name=job_name(resource.name, attempt),
        prompt=spec.prompt,
        interactive=spec.interactive,
        repos_json=json.dumps(repos, separators=(",", ":"), ensure_ascii=False),
        main_repo_index=spec.main_repo_index,
        model=llm.model or settings.model,
        max_turns=llm.max_turns,
        max_budget_usd=llm.max_budget_usd,
        effort=llm.effort,
        timeout=timeout,
        idle_timeout=spec.idle_timeout,
        auto_push_on_complete=spec.auto_push_on_complete,
        trust_repositories=spec.trust_repositories,
        resume_from=spec.resume_from or "",
        resume_from_folder=resume_from.folder if resume_from else "",
        content_url=settings.content_url or "",
        content_folder=resource.folder if settings.content_url else "",
        sync_interval=settings.sync_interval,
        status_interval=settings.status_interval,
        termination_grace=settings.termination_grace,
    )
    return container_env(
        own,
        _sources(resource, settings),
        settings=settings.variables,
        resource=spec.environment.variables,
    )


def _sources(resource: SessionResource, settings: OperatorSettings) -> dict[str, Json]:
    """Return the values that come from outside the Job: secrets, and the pod's name."""
    sources: dict[str, Json] = {}
    key = resource.spec.api_key_secret or settings.api_key_secret
    if key is not None:
        sources["ANTHROPIC_API_KEY"] = _secret(key.name, key.key)
    if settings.content_url:
        sources["CONTENT_TOKEN"] = _secret(secret_name(resource.name), "token")
    sources["POD_NAME"] = {"fieldRef": {"fieldPath": "metadata.name"}}
    return sources


def _secret(name: str, key: str) -> Json:
    return {"secretKeyRef": {"name": name, "key": key}}


# ------------------------------------------------------------------ disks


def _volumes(resource: SessionResource, settings: OperatorSettings) -> list[Json]:
    limit = {"sizeLimit": settings.workspace_size} if settings.workspace_size else {}
    claimed = settings.storage == "claim"
    own = ("tmp", "cache") if claimed else ("tmp", "cache", "session", "workspace")
    volumes: list[Json] = [{"name": name, "emptyDir": dict(limit)} for name in own]
    if claimed:
        claim = {"claimName": claim_name(resource.name)}
        volumes.append({"name": "saved", "persistentVolumeClaim": claim})
    return volumes


def _mounts(settings: OperatorSettings) -> list[Json]:
    mounts: list[Json] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "cache", "mountPath": CACHE_PATH},
    ]
    for name, path in (("session", STATE_PATH), ("workspace", WORKSPACE_PATH)):
        mount: Json = {"name": name, "mountPath": path}
        if settings.storage == "claim":
            mount = {"name": "saved", "mountPath": path, "subPath": name}
        mounts.append(mount)
    return mounts


__all__ = [
    "content_secret",
    "job",
    "objects",
    "role",
    "role_binding",
    "service_account",
    "workspace_claim",
]

_RBAC = "rbac.authorization.k8s.io"


def objects(
    resource: SessionResource, settings: OperatorSettings, token: str | None
) -> list[Json]:
    """Return all objects but the Job, in the order to create them.

    Args:
        resource: The session.
        settings: The operator's settings.
        token: The token for the content proxy; None without a proxy.
    """
    made = [
        service_account(resource, settings),
        role(resource),
        role_binding(resource),
    ]
    if token is not None:
        made.append(content_secret(resource, token))
    if settings.storage == "claim":
        made.append(workspace_claim(resource, settings))
    return made


def service_account(resource: SessionResource, settings: OperatorSettings) -> Json:
    """Return the runner's service account. Its token is mounted only in pods that ask for it."""
    about = metadata(resource, account_name(resource.name))
    if settings.service_account_annotations:
        about["annotations"] = dict(settings.service_account_annotations)
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": about,
        "automountServiceAccountToken": False,
    }


def role(resource: SessionResource) -> Json:
    """Return the runner's role: read its own resource, write its status, and nothing else."""
    own = {"apiGroups": [GROUP], "resourceNames": [resource.name]}
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "Role",
        "metadata": metadata(resource, account_name(resource.name)),
        "rules": [
            {**own, "resources": [PLURAL], "verbs": ["get"]},
            {
                **own,
                "resources": [f"{PLURAL}/status"],
                "verbs": ["get", "patch", "update"],
            },
        ],
    }


def role_binding(resource: SessionResource) -> Json:
    """Return the binding of role and service account."""
    name = account_name(resource.name)
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": metadata(resource, name),
        "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": name},
        "subjects": [
            {"kind": "ServiceAccount", "name": name, "namespace": resource.namespace}
        ],
    }


def content_secret(resource: SessionResource, token: str) -> Json:
    """Return the secret with the token for the session's folder behind the content proxy."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(resource, secret_name(resource.name)),
        "type": "Opaque",
        "immutable": True,
        "data": {"token": base64.b64encode(token.encode()).decode("ascii")},
    }


def workspace_claim(resource: SessionResource, settings: OperatorSettings) -> Json:
    """Return the volume claim of the workspace. It outlives the pods, but not the resource."""
    spec: Json = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": settings.claim_size}},
    }
    if settings.storage_class is not None:
        spec["storageClassName"] = settings.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(resource, claim_name(resource.name)),
        "spec": spec,
    }
