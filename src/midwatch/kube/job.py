"""The Job of one attempt: a pod that has what Pod Security calls `restricted`, and no more rights than it needs."""

from __future__ import annotations

import math

from ..model import Json
from ..settings import OperatorSettings
from .environment import SECRET_PREFIX
from .job_environment import CACHE_PATH, STATE_PATH, WORKSPACE_PATH, variables
from .names import (
    ATTEMPT_LABEL,
    CONTAINER,
    account_name,
    claim_name,
    job_name,
)
from .owned import metadata
from .resource import SessionResource

ARGUMENTS = ("session", "serve")
"""For the image's entry point, which stays: its first process reaps what a session leaves behind."""
USER = 10001
"""The image's own user and group."""


def job(
    resource: SessionResource,
    settings: OperatorSettings,
    *,
    attempt: int,
    timeout: int,
    resume_from: SessionResource | None,
) -> Json:
    """The manifest. `timeout` is seconds that are left to this attempt; `resume_from` the resource that
    `spec.resumeFrom` names, if there is one. `settings.image` has to be there.
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
            # Whether to start again is decided by the operator, which knows why the pod was lost.
            "backoffLimit": 0,
            # The Job has not failed before its pod is gone: else two attempts would run at once.
            "podReplacementPolicy": "Failed",
            "activeDeadlineSeconds": _deadline(timeout, settings),
            # No ttlSecondsAfterFinished: a Job that went while the operator was away would be taken for lost,
            # and run again. The operator sets it once the status tells the end.
            "template": {
                "metadata": {
                    "labels": {**settings.pod_labels, **about["labels"]},
                },
                "spec": _pod(
                    resource,
                    settings,
                    variables(resource, settings, attempt, timeout, resume_from),
                ),
            },
        },
    }


def _deadline(timeout: int, settings: OperatorSettings) -> int:
    """Seconds. A Job's clock starts before its pod has a node and an image, the runner's after that: as long
    as the operator would wait for those, the session still has all of its time."""
    waits = settings.unschedulable_grace + settings.image_pull_grace
    return math.ceil(waits + timeout + settings.deadline_margin)


def _pod(
    resource: SessionResource, settings: OperatorSettings, environment: list[Json]
) -> Json:
    pod: Json = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(settings.termination_grace),
        "serviceAccountName": account_name(resource.name),
        # The runner writes the status with it.
        "automountServiceAccountToken": True,
        # The namespace's services would become variables, some of them under names of ours.
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
    return pod


def _container(
    resource: SessionResource, settings: OperatorSettings, environment: list[Json]
) -> Json:
    container: Json = {
        "name": CONTAINER,
        "image": settings.image,
        "args": list(ARGUMENTS),
        "env": environment,
        "resources": resource.spec.resources.manifest or dict(settings.resources),
        # The last lines of its log are what the operator can tell of a pod that died without a word.
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
            # A key of a secret may be called LD_PRELOAD; under a prefix it is nobody's variable.
            {"prefix": SECRET_PREFIX, "secretRef": {"name": name}}
            for name in secrets
        ]
    if settings.image_pull_policy is not None:
        container["imagePullPolicy"] = settings.image_pull_policy
    return container


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
        place: Json = {"name": name, "mountPath": path}
        if settings.storage == "claim":
            place = {"name": "saved", "mountPath": path, "subPath": name}
        mounts.append(place)
    return mounts
