"""The Job controller: pods for Jobs, counts and conditions back.

One pod at a time and one completion, as our Jobs have; no indexes, no pod failure policy. Order and wording follow
Kubernetes: a Job that is to fail gets `FailureTarget` first and `Failed` when its pods have ended; a suspended one
lets its pods go without counting them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal

from midwatch.model import Json

from .api import stamp
from .objects import Objects
from .refusals import Refused

TRACKING = "batch.kubernetes.io/job-tracking"
_ENDED = ("Succeeded", "Failed")
_WHY = {
    "BackoffLimitExceeded": "Job has reached the specified backoff limit",
    "DeadlineExceeded": "Job was active longer than specified deadline",
}


class JobController:
    """`reconcile` is called for every Job that something happened to, and when it is due again."""

    def __init__(self, objects: Objects, now: Callable[[], datetime]) -> None:
        self._objects, self._now = objects, now
        self.due: dict[tuple[str, str], datetime] = {}
        """When a Job is to be looked at again by the clock."""

    def reconcile(self, namespace: str, name: str) -> None:
        """Raises Refused where the objects have changed meanwhile."""
        self.due.pop((namespace, name), None)
        job = self._objects.find("jobs", namespace, name)
        if job is None:
            self._release(namespace, name)
            return
        pods = self._pods(job)
        if condition(job, "Complete") or condition(job, "Failed"):
            self._let_go(pods)
            self._expire(job)
        elif "deletionTimestamp" not in job["metadata"]:
            self._manage(job, pods)
        else:
            self._let_go([pod for pod in pods if over(pod)])

    def _manage(self, job: Json, pods: list[Json]) -> None:
        status = copy.deepcopy(job.get("status", {}))
        counted = [
            pod for pod in pods if TRACKING in pod["metadata"].get("finalizers", ())
        ]
        patient = job["spec"].get("podReplacementPolicy") == "Failed"
        done = [pod for pod in counted if over(pod, patient)]
        active = [pod for pod in counted if not over(pod)]
        status["succeeded"] = status.get("succeeded", 0) + _count(done, "Succeeded")
        lost = len(done) - _count(done, "Succeeded")
        status["failed"] = status.get("failed", 0) + lost
        self._suspension(job, status, active)
        if not job["spec"].get("suspend"):
            waits = patient and any(map(leaving, pods))
            active = self._judge(job, status, active, waits)
        else:
            active = []
        status["active"] = len(active)
        status["ready"] = sum(bool(condition(pod, "Ready")) for pod in active)
        status["terminating"] = sum(leaving(pod) for pod in self._pods(job))
        self._conclude(job, status)
        self._write(job, status)
        self._let_go(done)

    def _judge(
        self, job: Json, status: Json, active: list[Json], waits: bool
    ) -> list[Json]:
        """Start a pod, or stop them all; the active ones afterwards."""
        spec = job["spec"]
        reason = ""
        if status["failed"] > spec["backoffLimit"]:
            reason = "BackoffLimitExceeded"
        elif self._late(job, status):
            reason = "DeadlineExceeded"
        target = _entry(status, "FailureTarget")
        if reason and target is None:
            self._set(status, "FailureTarget", "True", reason, _WHY[reason])
        if reason or target or status["succeeded"] >= spec["completions"]:
            for pod in active:
                self._delete(pod)
            return []
        if not active and spec["parallelism"] > 0 and not waits:
            made = self._make(job)
            return [made] if made else []
        return active

    def _conclude(self, job: Json, status: Json) -> None:
        """The last condition, once no pod is left that may still run."""
        if status["active"] or status["terminating"]:
            return
        target = _entry(status, "FailureTarget")
        if target:
            self._set(status, "Failed", "True", target["reason"], target["message"])
        elif status["succeeded"] >= job["spec"]["completions"]:
            why = "Reached expected number of succeeded pods"
            for name in ("SuccessCriteriaMet", "Complete"):
                self._set(status, name, "True", "CompletionsReached", why)
            status["completionTime"] = stamp(self._now())

    def _suspension(self, job: Json, status: Json, active: list[Json]) -> None:
        if job["spec"].get("suspend"):
            for pod in active:
                self._drop_finalizer(pod)
                self._delete(pod)
            self._set(status, "Suspended", "True", "JobSuspended", "Job suspended")
            status.pop("startTime", None)
            return
        if _entry(status, "Suspended"):
            self._set(status, "Suspended", "False", "JobResumed", "Job resumed")
        status.setdefault("startTime", stamp(self._now()))

    def _late(self, job: Json, status: Json) -> bool:
        limit = job["spec"].get("activeDeadlineSeconds")
        if limit is None:
            return False
        end = _time(status["startTime"]) + timedelta(seconds=limit)
        if self._now() < end:
            self.due[_key(job)] = end
        return self._now() >= end

    def _expire(self, job: Json) -> None:
        """Delete a Job whose time after its end is over."""
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        if ttl is None or "deletionTimestamp" in job["metadata"]:
            return
        last = condition(job, "Complete") or condition(job, "Failed") or {}
        end = _time(last["lastTransitionTime"]) + timedelta(seconds=ttl)
        if self._now() >= end:
            self._objects.delete("jobs", *_key(job), policy="Foreground")
        else:
            self.due[_key(job)] = end

    def _make(self, job: Json) -> Json | None:
        """A pod of the template; none while its service account is missing."""
        meta, template = job["metadata"], copy.deepcopy(job["spec"]["template"])
        account = template["spec"].get("serviceAccountName", "default")
        if not self._objects.find("serviceaccounts", meta["namespace"], account):
            self.due[_key(job)] = self._now()
            return None
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"]}
        owner |= {"uid": meta["uid"], "controller": True, "blockOwnerDeletion": True}
        about = template.get("metadata", {}) | {
            "generateName": f"{meta['name']}-",
            "ownerReferences": [owner],
            "finalizers": [TRACKING],
        }
        spec = {"serviceAccountName": account} | template["spec"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": spec}
        return self._objects.create(pod, meta["namespace"])

    def _pods(self, job: Json) -> list[Json]:
        return self._objects.owned("pods", job["metadata"]["uid"])

    def _release(self, namespace: str, name: str) -> None:
        """A Job that is gone counts nothing any more."""
        selector = f"batch.kubernetes.io/job-name={name}"
        for pod in self._objects.list("pods", namespace, selector):
            owners = pod["metadata"].get("ownerReferences", ())
            if not any(self._is_there(owner, namespace) for owner in owners):
                self._drop_finalizer(pod)

    def _is_there(self, owner: Json, namespace: str) -> bool:
        job = self._objects.find("jobs", namespace, owner["name"])
        return job is not None and job["metadata"]["uid"] == owner["uid"]

    def _let_go(self, pods: list[Json]) -> None:
        for pod in pods:
            self._drop_finalizer(pod)

    def _drop_finalizer(self, pod: Json) -> None:
        finalizers = pod["metadata"].get("finalizers", [])
        if TRACKING in finalizers:
            rest = [name for name in finalizers if name != TRACKING]
            with _gone_is_fine():
                patch = {"metadata": {"finalizers": rest}}
                self._objects.merge("pods", *_key(pod), patch)

    def _delete(self, pod: Json) -> None:
        if not leaving(pod):
            with _gone_is_fine():
                self._objects.delete("pods", *_key(pod))

    def _set(
        self,
        status: Json,
        type: str,
        state: Literal["True", "False"],
        reason: str,
        message: str,
    ) -> None:
        at = stamp(self._now())
        entry = {"type": type, "status": state, "reason": reason, "message": message}
        had = _entry(status, type)
        if had and had["status"] == state:
            return
        rest = [c for c in status.get("conditions", []) if c["type"] != type]
        times = {"lastProbeTime": at, "lastTransitionTime": at}
        status["conditions"] = [*rest, entry | times]

    def _write(self, job: Json, status: Json) -> None:
        for name in ("active", "succeeded", "failed"):
            if not status[name]:
                del status[name]
        if status != job.get("status", {}):
            cleared = {key: None for key in job.get("status", {}) if key not in status}
            self._objects.merge(
                "jobs", *_key(job), {"status": status | cleared}, sub="status"
            )


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        if refused.code != 404:
            raise


def condition(document: Json, type: str) -> Json | None:
    """A condition of the status, if it is there and true."""
    found = _entry(document.get("status", {}), type)
    return found if found and found["status"] == "True" else None


def leaving(pod: Json) -> bool:
    """Whether it has been deleted and may still run."""
    ended = pod.get("status", {}).get("phase") in _ENDED
    return "deletionTimestamp" in pod["metadata"] and not ended


def over(pod: Json, patient: bool = False) -> bool:
    """Whether the Job counts it as ended: a deleted one counts as failed at once, unless the Job
    is to replace failed pods only."""
    deleted = "deletionTimestamp" in pod["metadata"] and not patient
    return deleted or _is(pod, *_ENDED)


def _is(pod: Json, *phases: str) -> bool:
    return pod.get("status", {}).get("phase") in phases


def _count(pods: list[Json], phase: str) -> int:
    return sum(_is(pod, phase) for pod in pods)


def _entry(status: Json, type: str) -> Json | None:
    conditions = status.get("conditions") or ()
    return next((entry for entry in conditions if entry["type"] == type), None)


def _key(document: Json) -> tuple[str, str]:
    return document["metadata"]["namespace"], document["metadata"]["name"]


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
