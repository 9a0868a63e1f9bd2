"""Schedules in a cluster: a CronJob for each, whose pod creates an AgenticSession at each of its times.

The session has the name that the CronJob gives to the Job of a time, so no time has two sessions. `midwatch kube schedules`
prints the objects; the template `schedules.yaml` of the chart is written from the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from midwatch.errors import SettingsError
from midwatch.kube.client import Cluster
from midwatch.kube.manifests import USER
from midwatch.kube.rules import GROUP, PLURAL
from midwatch.kube.session_body import SessionTask, session_body
from midwatch.kube.status import phase_of
from midwatch.model import Json
from midwatch.schedule_settings import ScheduleSettings
from midwatch.settings import OperatorSettings
from midwatch.settings_file import DEFAULT_FILE
from midwatch.workspace.plan import RepoSpec

SCHEDULE_LABEL = f"{GROUP}/schedule"
_FOLDER = "/etc/midwatch"
_RBAC = "rbac.authorization.k8s.io"
HERE_ONLY = ("sandbox", "allowed_tools", "denied_tools")
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


@dataclass(frozen=True, slots=True)
class CronJobParts:
    """What differs between the objects of two schedules. For the chart each is an expression of Helm.

    Attributes:
        name: The schedule.
        namespace: Where sessions run.
        cron: The expression.
        timezone: Its time zone.
        suspend: Whether it is not enabled.
        deadline: Seconds that a session may start late.
        verbs: What its account may do with sessions.
        settings: The text of a `midwatch.yaml` that has this schedule alone.
        image: The image of Midwatch.
        pull_policy: When it is pulled; None for the default of Kubernetes.
        pull_secrets: The secrets for its registry, as a pod has them.
    """

    name: str
    namespace: str
    cron: str
    timezone: str
    suspend: bool | str
    deadline: int | str
    verbs: Sequence[str] | str
    settings: str
    image: str
    pull_policy: str | None
    pull_secrets: Sequence[Json] | str


def objects(
    schedule: ScheduleSettings, operator: OperatorSettings, namespace: str, path: str
) -> list[Json]:
    """Return the objects of a schedule, in the order to create them: permissions, the settings, the CronJob.

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
    session_of(schedule, namespace, path)
    written = schedule.model_dump(mode="json", exclude_defaults=True)
    settings = json.dumps({"schedules": [written]}, ensure_ascii=False, indent=2)
    parts = CronJobParts(
        name=schedule.name,
        namespace=namespace,
        cron=schedule.cron,
        timezone=schedule.timezone,
        suspend=not schedule.enabled,
        deadline=round(schedule.starting_deadline),
        verbs=["create", "list"] if schedule.concurrency == "Forbid" else ["create"],
        settings=settings,
        image=operator.image,
        pull_policy=operator.image_pull_policy,
        pull_secrets=[{"name": one} for one in operator.image_pull_secrets],
    )
    return cron_job_objects(parts)


def cron_job_objects(parts: CronJobParts) -> list[Json]:
    """Return the objects of a schedule."""
    about = {
        "name": f"schedule-{parts.name}",
        "namespace": parts.namespace,
        "labels": {
            "app.kubernetes.io/managed-by": "midwatch",
            SCHEDULE_LABEL: parts.name,
        },
    }
    name = about["name"]
    account = {"kind": "ServiceAccount", "name": name, "namespace": parts.namespace}
    rule = {"apiGroups": [GROUP], "resources": [PLURAL], "verbs": parts.verbs}
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
            "rules": [rule],
        },
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": about,
            "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": name},
            "subjects": [account],
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": about,
            "data": {DEFAULT_FILE: parts.settings},
        },
        _cron_job(parts, about),
    ]


def session_of(schedule: ScheduleSettings, namespace: str, path: str) -> Json:
    """Return the resource of a schedule, without its name.

    Raises:
        SettingsError: The schedule, which stands at `path`, has something that a cluster cannot do.
    """
    if schedule.concurrency == "Replace":
        raise SettingsError(
            "Replace is for daemons only",
            path=f"{path}.concurrency",
            hint="use Forbid or Allow in a cluster",
        )
    for name in HERE_ONLY:
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


def _cron_job(parts: CronJobParts, about: Json) -> Json:
    pod: Json = {
        "restartPolicy": "Never",
        "serviceAccountName": about["name"],
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "imagePullSecrets": parts.pull_secrets,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(parts)],
        "volumes": [{"name": "settings", "configMap": {"name": about["name"]}}],
    }
    job = {
        # A pod that was lost is tried again: the name lets no second session be.
        "backoffLimit": 3,
        "activeDeadlineSeconds": 600,
        "template": {"metadata": {"labels": about["labels"]}, "spec": pod},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {**about, "name": parts.name},
        "spec": {
            "schedule": parts.cron,
            "timeZone": parts.timezone,
            "suspend": parts.suspend,
            "startingDeadlineSeconds": parts.deadline,
            # Of the Jobs, which only create sessions.
            "concurrencyPolicy": "Allow",
            "jobTemplate": {"metadata": {"labels": about["labels"]}, "spec": job},
        },
    }


def _container(parts: CronJobParts) -> Json:
    where = ["--namespace", parts.namespace, "--name", "$(JOB_NAME)"]
    label = "metadata.labels['batch.kubernetes.io/job-name']"
    pulled = {"imagePullPolicy": parts.pull_policy} if parts.pull_policy else {}
    return {
        "name": "submit",
        "image": parts.image,
        **pulled,
        "args": ["kube", "submit", parts.name, *where],
        "env": [
            {"name": "MIDWATCH_CONFIG", "value": f"{_FOLDER}/{DEFAULT_FILE}"},
            {"name": "JOB_NAME", "valueFrom": {"fieldRef": {"fieldPath": label}}},
        ],
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
        "volumeMounts": [{"name": "settings", "mountPath": _FOLDER, "readOnly": True}],
    }
