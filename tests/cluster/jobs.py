"""The Job controller: pods for Jobs, counts and conditions back.

One pod at a time and one completion, as our Jobs have; no indexes, no pod failure policy. Order and wording follow
Kubernetes 1.36, where every step is a write of its own that others see before the next:

1. the Job notes the uid of a pod that ended (`uncountedTerminatedPods`) and says how it will end itself
   (`FailureTarget`, `SuccessCriteriaMet`); at a deadline it has deleted its pods before, and notes those that still run
2. the pod loses its finalizer; one that was deleted is gone with it
3. the Job counts it, and is over (`Failed`, `Complete`) unless a pod still runs: then once that is gone

A suspended Job lets its pods go without counting them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal

from midwatch.model import Json

from .api import stamp
from .apiserver import Objects
from .errors import Refused
from .storage import key_of

TRACKING = "batch.kubernetes.io/job-tracking"
GAP = timedelta(seconds=0.03)
"""Between two steps: from 7 ms to a second in Kubernetes."""
_ENDED = ("Succeeded", "Failed")
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_WHY = {
    "BackoffLimitExceeded": "Job has reached the specified backoff limit",
    "DeadlineExceeded": "Job was active longer than specified deadline",
}


class JobController:
    """`reconcile` is called for every Job that something happened to, and when it is due again."""

    def __init__(self, objects: Objects, now: Callable[[], datetime]) -> None:
        self._objects, self._now = objects, now
        self._next: dict[tuple[str, str], datetime] = {}
        """When a Job's next step may be taken."""
        self.due: dict[tuple[str, str], datetime] = {}
        """When a Job is to be looked at again by the clock."""

    def reconcile(self, namespace: str, name: str) -> None:
        """Raises Refused where the objects have changed meanwhile."""
        self.due.pop((namespace, name), None)
        job = self._objects.find("jobs", namespace, name)
        if job is None:
            self._next.pop((namespace, name), None)
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
        status = _begun(job)
        under_way = any(uncounted(job).values())
        if under_way and not self._counted(job, status, pods):
            return
        patient = job["spec"].get("podReplacementPolicy") == "Failed"
        tracked = [pod for pod in pods if _is_tracked(pod)]
        done = [pod for pod in tracked if over(pod, patient)]
        active = [pod for pod in tracked if not over(pod)]
        self._suspension(job, status, active)
        if job["spec"].get("suspend"):
            active = []
        else:
            waits = patient and any(map(leaving, pods))
            active = self._judge(job, status, done, active, waits)
        status["uncountedTerminatedPods"] = _noted(done)
        status["active"] = len(active)
        status["ready"] = sum(bool(condition(pod, "Ready")) for pod in active)
        status["terminating"] = sum(leaving(pod) for pod in self._pods(job))
        if under_way or not _differs(job, status):
            self._conclude(job, status)
        self._write(job, status)

    def _counted(self, job: Json, status: Json, pods: list[Json]) -> bool:
        """Go on with the pods that were noted: first let them go, then count them; whether they are."""
        if self._is_early(job):
            return False
        noted = uncounted(job)
        uids = {uid for some in noted.values() for uid in some}
        held = [p for p in pods if p["metadata"]["uid"] in uids and _is_tracked(p)]
        if held:
            self._let_go(held)
            self._rest(job)
            return False
        for outcome, some in noted.items():
            status[outcome] += len(some)
        return True

    def _judge(
        self, job: Json, status: Json, done: list[Json], active: list[Json], waits: bool
    ) -> list[Json]:
        """Start a pod, or stop them all, which adds them to those that are `done`; the active ones afterwards."""
        spec, succeeded = job["spec"], _count(done, "Succeeded")
        reason = ""
        if status["failed"] + len(done) - succeeded > spec["backoffLimit"]:
            reason = "BackoffLimitExceeded"
        elif self._late(job, status):
            reason = "DeadlineExceeded"
        if reason and _entry(status, "FailureTarget") is None:
            self._set(status, "FailureTarget", "True", reason, _WHY[reason])
        if _entry(status, "FailureTarget"):
            for pod in active:
                self._delete(pod)
            done += active
            return []
        if status["succeeded"] + succeeded >= spec["completions"]:
            why = "Reached expected number of succeeded pods"
            self._set(status, "SuccessCriteriaMet", "True", "CompletionsReached", why)
            return []
        if not active and not done and spec["parallelism"] > 0 and not waits:
            made = self._make(job)
            return [made] if made else []
        return active

    def _conclude(self, job: Json, status: Json) -> None:
        """The last condition, once every pod is counted and none is left that may still run."""
        busy = status["active"] or status["terminating"]
        if busy or any(status["uncountedTerminatedPods"].values()):
            return
        for target, outcome in (
            ("FailureTarget", "Failed"),
            ("SuccessCriteriaMet", "Complete"),
        ):
            why = _entry(status, target)
            if why and not self._is_early(job):
                self._set(status, outcome, "True", why["reason"], why["message"])
                if outcome == "Complete":
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

    def _rest(self, job: Json) -> None:
        """Let the others see what was done."""
        self._next[key_of(job)] = self._now() + GAP
        self._look_again(job, self._now() + GAP)

    def _is_early(self, job: Json) -> bool:
        """Whether the next step has its time to come."""
        end = self._next.get(key_of(job), _LONG_AGO)
        if self._now() >= end:
            return False
        self._look_again(job, end)
        return True

    def _look_again(self, job: Json, at: datetime) -> None:
        self.due[key_of(job)] = min(at, self.due.get(key_of(job), at))

    def _late(self, job: Json, status: Json) -> bool:
        limit = job["spec"].get("activeDeadlineSeconds")
        if limit is None:
            return False
        end = _time(status["startTime"]) + timedelta(seconds=limit)
        if self._now() < end:
            self._look_again(job, end)
        return self._now() >= end

    def _expire(self, job: Json) -> None:
        """Delete a Job whose time after its end is over."""
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        if ttl is None or "deletionTimestamp" in job["metadata"]:
            return
        last = condition(job, "Complete") or condition(job, "Failed") or {}
        end = _time(last["lastTransitionTime"]) + timedelta(seconds=ttl)
        if self._now() >= end:
            self._objects.delete("jobs", *key_of(job), policy="Foreground")
        else:
            self._look_again(job, end)

    def _make(self, job: Json) -> Json | None:
        """A pod of the template; none while its service account is missing."""
        meta, template = job["metadata"], copy.deepcopy(job["spec"]["template"])
        account = template["spec"].get("serviceAccountName", "default")
        if not self._objects.find("serviceaccounts", meta["namespace"], account):
            self._look_again(job, self._now())
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
                self._objects.merge("pods", *key_of(pod), patch)

    def _delete(self, pod: Json) -> None:
        if not leaving(pod):
            with _gone_is_fine():
                self._objects.delete("pods", *key_of(pod))

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
        if not _differs(job, status):
            return
        wanted = _told(status)
        cleared = {key: None for key in job.get("status", {}) if key not in wanted}
        pending = uncounted({"status": wanted})
        # A merge would leave the lists that are empty now.
        wanted["uncountedTerminatedPods"] = {
            outcome: uids or None for outcome, uids in pending.items()
        }
        patch = {"status": wanted | cleared}
        self._objects.merge("jobs", *key_of(job), patch, sub="status")
        self._rest(job)


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


def uncounted(job: Json) -> dict[str, list[str]]:
    """The uids of pods that have ended and are not counted yet, by what became of them."""
    noted = job.get("status", {}).get("uncountedTerminatedPods") or {}
    return {outcome: noted.get(outcome, []) for outcome in ("succeeded", "failed")}


def _begun(job: Json) -> Json:
    """A copy of the status, with all counts."""
    status = copy.deepcopy(job.get("status", {}))
    return {"succeeded": 0, "failed": 0, **status}


def _told(status: Json) -> Json:
    """As it is written: without those counts that are left out where they are 0."""
    named = ("active", "succeeded", "failed")
    return {key: v for key, v in status.items() if v or key not in named}


def _differs(job: Json, status: Json) -> bool:
    return _plain(job.get("status", {})) != _plain(_told(status))


def _plain(status: Json) -> Json:
    return {**status, "uncountedTerminatedPods": uncounted({"status": status})}


def _noted(pods: list[Json]) -> Json:
    """`uncountedTerminatedPods` of these."""
    by: dict[str, list[str]] = {}
    for pod in pods:
        outcome = "succeeded" if _is(pod, "Succeeded") else "failed"
        by.setdefault(outcome, []).append(pod["metadata"]["uid"])
    return by


def _is_tracked(pod: Json) -> bool:
    return TRACKING in pod["metadata"].get("finalizers", ())


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


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
