"""Schedules in a cluster: a CronJob for each, whose pod creates an AgenticSession at each of its times.

The session has the name that the CronJob gives to the Job of a time, so no time has two sessions.
"""

from __future__ import annotations

import json

from midwatch.errors import SettingsError
from midwatch.kube.client import Cluster
from midwatch.kube.manifests import USER
from midwatch.kube.rules import GROUP, PLURAL
from midwatch.kube.session_body import SessionTask, session_body
from midwatch.kube.status import phase_of
from midwatch.model import Json
from midwatch.schedule_settings import ScheduleSettings
from midwatch.settings import OperatorSettings
from midwatch.workspace.plan import RepoSpec

SCHEDULE_LABEL = f"{GROUP}/schedule"
_FILE = "session.json"
_FOLDER = "/etc/midwatch/schedule"
_RBAC = "rbac.authorization.k8s.io"
_HERE_ONLY = ("sandbox", "allowed_tools", "denied_tools")
"""What an AgenticSession has no field for: the settings of the operator decide it for all sessions."""


async def submit(cluster: Cluster, body: Json, *, unless_running: bool) -> str:
    """Create a session, and return what was done.

    Args:
        cluster: The connection to the API server.
        body: The resource; its name makes it be created once.
        unless_running: Create none while another session with the same label of a schedule has not ended.

    Raises:
        ClusterUnavailable, ClusterRefused: The API server does not answer, or refuses it.
    """
    meta = body["metadata"]
    name, namespace = meta["name"], meta["namespace"]
    schedule = (meta.get("labels") or {}).get(SCHEDULE_LABEL)
    if unless_running:
        for other in await cluster.list_sessions(namespace):
            about = other["metadata"]
            own = (about.get("labels") or {}).get(SCHEDULE_LABEL) == schedule
            if own and about["name"] != name and not phase_of(other).terminal:
                return (
                    f"missed: session {about['name']} still runs (concurrency: Forbid)"
                )
    created = await cluster.create(body, may_read=False)
    return f"session {name} {'created' if created else 'was there already'}"


def objects(
    schedule: ScheduleSettings, operator: OperatorSettings, namespace: str, path: str
) -> list[Json]:
    """Return the objects of a schedule, in the order to create them: permissions, the resource's text, the CronJob.

    Args:
        schedule: The schedule.
        operator: Has the image and the secrets for its registry.
        namespace: Where sessions run.
        path: The place of the schedule in the settings.

    Raises:
        SettingsError: The schedule has something that a cluster cannot do, or there is no image.
    """
    if operator.image is None:
        raise SettingsError(
            "is not set", path="operator.image", hint="name the image of Midwatch"
        )
    session = _session(schedule, namespace, path)
    about = {
        "name": f"schedule-{schedule.name}",
        "namespace": namespace,
        "labels": {
            "app.kubernetes.io/managed-by": "midwatch",
            SCHEDULE_LABEL: schedule.name,
        },
    }
    verbs = ["create"] if schedule.concurrency == "Allow" else ["create", "list"]
    name = about["name"]
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": about,
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "Role",
            "metadata": about,
            "rules": [{"apiGroups": [GROUP], "resources": [PLURAL], "verbs": verbs}],
        },
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": about,
            "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": name},
            "subjects": [
                {"kind": "ServiceAccount", "name": name, "namespace": namespace}
            ],
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": about,
            "data": {_FILE: json.dumps(session, ensure_ascii=False, indent=2)},
        },
        _cron_job(schedule, operator, about),
    ]


def _session(schedule: ScheduleSettings, namespace: str, path: str) -> Json:
    """Return the resource without its name. Raises SettingsError."""
    if schedule.concurrency == "Replace":
        raise SettingsError(
            "Replace is for daemons only",
            path=f"{path}.concurrency",
            hint="use Forbid or Allow in a cluster",
        )
    for name in _HERE_ONLY:
        if getattr(schedule, name):
            raise SettingsError(
                "an AgenticSession has no such field",
                path=f"{path}.{name}",
                hint=f"set sessions.{name} in the operator's settings (settings.sessions of the chart)",
            )
    task = SessionTask(
        title=schedule.name,
        prompt=schedule.prompt,
        repositories=[
            RepoSpec(one.url, one.branch, push_branch=schedule.push_branch)
            for one in schedule.repositories
        ],
        main=schedule.main,
        push=schedule.push,
        model=schedule.model,
        max_turns=schedule.max_turns,
        max_usd=schedule.max_usd,
        wall=schedule.wall,
        idle=schedule.idle,
        trust=schedule.trust_repository,
    )
    metadata = {"namespace": namespace, "labels": {SCHEDULE_LABEL: schedule.name}}
    return session_body(task, metadata, f"{schedule.name}-12345678", path)


def _cron_job(
    schedule: ScheduleSettings, operator: OperatorSettings, about: Json
) -> Json:
    pod: Json = {
        "restartPolicy": "Never",
        "serviceAccountName": about["name"],
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(schedule, operator)],
        "volumes": [{"name": "schedule", "configMap": {"name": about["name"]}}],
    }
    if operator.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": one} for one in operator.image_pull_secrets]
    job = {
        # A pod that was lost is tried again: the name lets no second session be.
        "backoffLimit": 3,
        "activeDeadlineSeconds": 600,
        "template": {"metadata": {"labels": about["labels"]}, "spec": pod},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {**about, "name": schedule.name},
        "spec": {
            "schedule": schedule.cron,
            "timeZone": schedule.timezone,
            "suspend": not schedule.enabled,
            "startingDeadlineSeconds": round(schedule.starting_deadline),
            # Of the Jobs, which only create sessions.
            "concurrencyPolicy": "Allow",
            "jobTemplate": {"metadata": {"labels": about["labels"]}, "spec": job},
        },
    }


def _container(schedule: ScheduleSettings, operator: OperatorSettings) -> Json:
    arguments = ["kube", "submit", f"{_FOLDER}/{_FILE}", "--name", "$(JOB_NAME)"]
    if schedule.concurrency == "Forbid":
        arguments.append("--unless-running")
    label = "metadata.labels['batch.kubernetes.io/job-name']"
    return {
        "name": "submit",
        "image": operator.image,
        "args": arguments,
        "env": [{"name": "JOB_NAME", "valueFrom": {"fieldRef": {"fieldPath": label}}}],
        "resources": {
            "requests": {"cpu": "50m", "memory": "128Mi"},
            "limits": {"memory": "256Mi"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "schedule", "mountPath": _FOLDER, "readOnly": True}],
    }
