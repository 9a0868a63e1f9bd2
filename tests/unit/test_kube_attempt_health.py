"""What became of an attempt: from the documents of the API server to the health."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from midwatch.kube.observed import AttemptHealth, attempt_health, read_job, read_pod
from midwatch.kube.status import timestamp
from midwatch.kube.views import EventWords, words_of
from midwatch.model import Json
from midwatch.settings import OperatorSettings

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SETTINGS = OperatorSettings(image_pull_grace=120, unschedulable_grace=600)


def ago(seconds: float) -> str:
    return timestamp(NOW - timedelta(seconds=seconds))


def meta(name: str, age: float = 30, **more: Any) -> Json:
    labels = {"midwatch.dev/session": "s", "midwatch.dev/session-uid": "u"}
    return {
        "name": name,
        "namespace": "team",
        "creationTimestamp": ago(age),
        "labels": {**labels, "midwatch.dev/attempt": "1"},
        **more,
    }


def condition(type_: str, status: str = "True", age: float = 0, **more: Any) -> Json:
    since = {"lastTransitionTime": ago(age)}
    return {"type": type_, "status": status, **since, **more}


def job(
    *conditions: Json, age: float = 30, counts: Json | None = None, **spec: Any
) -> Json:
    begun = {"startTime": ago(age)}
    status = {"conditions": list(conditions), **begun, **(counts or {})}
    return {"metadata": meta("s-run-1", age), "spec": spec, "status": status}


def pod(
    state: Json | None = None,
    *conditions: Json,
    phase: str = "Pending",
    about: Json | None = None,
    **status: Any,
) -> Json:
    container = {"name": "session", "state": state or {}}
    return {
        "metadata": about or meta("s-run-1-x"),
        "status": {
            "phase": phase,
            "conditions": [condition("PodScheduled", age=25), *conditions],
            "containerStatuses": [container] if state else [],
            **status,
        },
    }


def ended(code: int, reason: str = "Error", message: str = "") -> Json:
    at = {"startedAt": ago(20), "finishedAt": ago(1)}
    said = {"message": message} if message else {}
    return {"terminated": {"exitCode": code, "reason": reason, **at, **said}}


def waiting(reason: str, message: str = "") -> Json:
    return {"waiting": {"reason": reason, "message": message}}


def health(
    job_: Json | None, *pods: Json, later: float = 0, ran: bool = False, last: str = ""
) -> AttemptHealth:
    seen = read_job(job_) if job_ is not None else None
    now = NOW + timedelta(seconds=later)
    views = [read_pod(one) for one in pods]
    return attempt_health(seen, views, SETTINGS, now, ran=ran, last_known=last)


FAILED = condition("Failed", reason="BackoffLimitExceeded", message="limit reached")
UNSCHEDULABLE = condition(
    "PodScheduled",
    "False",
    age=30,
    reason="Unschedulable",
    message="0/3 nodes are available: 3 Insufficient memory.",
)


@pytest.mark.parametrize(
    ("state", "told", "hint"),
    [
        (ended(137, "OOMKilled"), "failed OutOfMemory", "spec.resources.limits.memory"),
        (ended(137), "lost Killed", "SIGKILL"),
        (ended(143), "lost Killed", "SIGTERM"),
        (ended(1, message="boom"), "failed ExitCode", "boom (see `kubectl logs"),
        (ended(2, message="PROMPT is empty"), "failed BadEnvironment", "PROMPT is"),
        (ended(3), "failed OutcomeUnknown", "resumeFrom"),
        (ended(0, "Completed"), "failed OutcomeUnknown", "did not report"),
    ],
)
def test_a_container_that_ended(state: Json, told: str, hint: str) -> None:
    for its in (job(), job(FAILED)):
        seen = health(its, pod(state, phase="Failed"))
        assert f"{seen.outcome} {seen.reason}" == told
        assert hint in seen.message


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        (pod(phase="Failed", reason="Evicted", message="low on disk"), "Evicted"),
        (
            pod(
                ended(137),
                condition("DisruptionTarget", reason="PreemptionByScheduler"),
                phase="Failed",
            ),
            "PreemptionByScheduler",
        ),
        (
            pod(ended(1), phase="Failed", about=meta("p", deletionTimestamp=ago(1))),
            "PodDeleted",
        ),
        (pod(phase="Failed"), "PodFailed"),
    ],
)
def test_a_pod_that_was_taken_away_is_lost(gone: Json, reason: str) -> None:
    for its in (job(), job(FAILED), None):
        seen = health(its, gone)
        assert (seen.outcome, seen.reason) == ("lost", reason)


def test_what_the_cluster_said_is_told_without_secrets() -> None:
    image = "cannot pull https://bob:hunter22@registry.example/x"
    seen = health(job(), pod(waiting("InvalidImageName", image)))
    assert (seen.outcome, seen.reason) == ("failed", "InvalidImageName")
    assert "registry.example" in seen.message and "hunter22" not in seen.message


def test_a_name_that_looks_like_a_key_is_still_the_name() -> None:
    name = "sk-abcdefghijklmnopqrstuvwxyz0123456789"
    its = job()
    its["metadata"]["name"] = its["metadata"]["labels"]["midwatch.dev/session"] = name
    seen = read_job(its)
    assert (seen.session, seen.name) == (name, name)


@pytest.mark.parametrize(
    ("its", "reason", "grace", "hint"),
    [
        (pod(waiting("ErrImagePull", "denied")), "ImagePull", 120 - 25, "registry"),
        (pod(waiting("ImagePullBackOff", "denied")), "ImagePull", 120 - 25, "denied"),
        (
            pod(waiting("CreateContainerConfigError", 'secret "key" not found')),
            "CreateContainerConfigError",
            120 - 25,
            'secret "key" not found (create the missing object',
        ),
        (
            {
                "metadata": meta("p"),
                "status": {"phase": "Pending", "conditions": [UNSCHEDULABLE]},
            },
            "Unschedulable",
            600 - 30,
            "Insufficient memory. (lower spec.resources",
        ),
    ],
)
def test_what_may_still_come_about_has_its_grace(
    its: Json, reason: str, grace: float, hint: str
) -> None:
    early = health(job(), its)
    assert (early.outcome, early.reason, early.recheck_in) == ("waiting", reason, grace)
    late = health(job(), its, later=grace)
    assert (late.outcome, late.reason) == ("failed", reason)
    assert hint in late.message


def test_a_node_that_does_not_answer() -> None:
    going = meta("p", deletionTimestamp=timestamp(NOW + timedelta(seconds=60)))
    its = pod({"running": {"startedAt": ago(20)}}, phase="Running", about=going)
    assert health(job(), its).outcome == "fine"
    seen = health(job(), its, later=60 + SETTINGS.deadline_margin)
    assert (seen.outcome, seen.reason) == ("lost", "NodeLost")


def test_the_job_alone() -> None:
    assert health(job(age=44)).outcome == "fine"
    assert health(job(age=599)).outcome == "waiting"
    assert health(job(age=600)).reason == "NoPod"
    assert health(job(age=900, suspend=True)).outcome == "fine"
    assert health(job(FAILED)).reason == "PodGone"
    assert health(job(condition("Complete"))).reason == "OutcomeUnknown"
    assert health(None) == AttemptHealth("lost", "JobDeleted", "its Job was deleted")


def test_a_pod_is_missed_only_once_the_job_controller_had_its_chance() -> None:
    """It was down, or a queue held the Job back: then nothing refuses the pod."""
    untouched = job(age=3600, counts={"startTime": None})
    seen = health(untouched)
    assert (seen.outcome, seen.reason, seen.recheck_in) == (
        "waiting",
        "JobNotBegun",
        None,
    )
    assert health(job(age=59, counts={"startTime": None})) == AttemptHealth(
        "fine", "JobNotBegun", seen.message, recheck_in=1
    )
    held = condition("Suspended", age=3000)
    released = job(held, age=3600)
    assert health(released) == AttemptHealth("fine")
    resumed = condition("Suspended", "False")
    assert (
        health(job(resumed, age=3600, counts={"startTime": ago(44)})).outcome == "fine"
    )
    begun = job(resumed, age=3600, counts={"startTime": ago(599)})
    assert health(begun).outcome == "waiting"
    assert health(begun, later=1).reason == "NoPod"


LOST = condition("FailureTarget", reason="BackoffLimitExceeded")
LATE = condition("FailureTarget", reason="DeadlineExceeded")
UNCOUNTED = {"failed": ["b5a1"]}


@pytest.mark.parametrize(
    "between",
    [
        # As Kubernetes 1.36 writes them, after the pod is gone and before the Job has failed.
        job(LOST, age=900, counts={"uncountedTerminatedPods": UNCOUNTED}),
        job(LOST, age=900, counts={"failed": 1, "uncountedTerminatedPods": {}}),
        # Before 1.31 there is no target, and a pod may be gone that is still counted as active.
        job(age=900, counts={"uncountedTerminatedPods": UNCOUNTED}),
        job(age=900, counts={"active": 1, "terminating": 0}),
        job(age=900, counts={"terminating": 1, "uncountedTerminatedPods": {}}),
        job(condition("SuccessCriteriaMet"), age=900, counts={"succeeded": 1}),
    ],
)
def test_a_job_that_ends_is_waited_for_when_its_pod_is_gone(between: Json) -> None:
    assert health(between) == AttemptHealth("fine")


def test_a_job_whose_pods_are_all_counted_as_none_never_had_one() -> None:
    none = {"active": 0, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}}
    assert health(job(age=900, counts=none)).reason == "NoPod"


@pytest.mark.parametrize(
    "its",
    [
        [],
        [pod(ended(143), phase="Failed", about=meta("p", deletionTimestamp=ago(1)))],
        [pod({"running": {}}, phase="Running", about=meta("p"))],
    ],
)
def test_a_deadline_is_told_when_it_strikes(its: list[Json]) -> None:
    seen = health(job(LATE, age=900, counts={"terminating": 1}), *its, ran=not its)
    assert (seen.outcome, seen.reason) == ("failed", "DeadlineExceeded")


def test_a_deadline_is_told_before_the_exit_code_that_it_caused() -> None:
    its = job(condition("Failed", reason="DeadlineExceeded"))
    assert health(its, pod(ended(143), phase="Failed")).reason == "DeadlineExceeded"


# ------------------------------------------------------------------ never started


def begun(name: str = "session", **state: Any) -> Json:
    return {"name": name, "state": state}


NOT_READY = condition("PodReadyToStartContainers", "False")
LOOP = {
    "name": "istio-init",
    "restartCount": 14,
    "state": waiting("CrashLoopBackOff", "back-off 5m0s restarting failed container"),
    "lastState": {"terminated": {"exitCode": 3, "reason": "Error"}},
}
GATED = condition(
    "PodScheduled",
    "False",
    age=30,
    reason="SchedulingGated",
    message="Scheduling is blocked due to non-empty scheduling gates",
)
NEVER: list[tuple[str, Json, str, str]] = [
    (
        "a volume that is attached elsewhere, or a network without addresses",
        pod(waiting("ContainerCreating"), NOT_READY),
        "PodNotStarted",
        "its container has not started: ContainerCreating",
    ),
    (
        "an init container that loops",
        pod(waiting("PodInitializing"), initContainerStatuses=[LOOP]),
        "PodNotStarted",
        "istio-init: CrashLoopBackOff: exit code 3: 14 restarts: back-off 5m0s",
    ),
    (
        "an init container whose image cannot be pulled",
        pod(
            waiting("PodInitializing"),
            initContainerStatuses=[
                begun("done", terminated={"exitCode": 0, "reason": "Completed"}),
                begun("proxy", **waiting("ImagePullBackOff", "denied")),
                begun("next", **waiting("PodInitializing")),
            ],
        ),
        "PodNotStarted",
        "init container proxy: ImagePullBackOff: denied",
    ),
    (
        "an init container that waits for ever",
        pod(
            waiting("PodInitializing"),
            initContainerStatuses=[begun("wait-for-db", running={"startedAt": ago(9)})],
        ),
        "PodNotStarted",
        "the init container wait-for-db is running",
    ),
    (
        "a node whose kubelet does nothing",
        pod(),
        "PodNotStarted",
        "its container has not started",
    ),
    (
        "a reason that nobody has heard of",
        pod(waiting("SandboxMystery", "no idea")),
        "PodNotStarted",
        "SandboxMystery: no idea",
    ),
    (
        "a scheduler that is down",
        {"metadata": meta("p"), "status": {"phase": "Pending"}},
        "NotScheduled",
        "no scheduler has looked for a node",
    ),
]


@pytest.mark.parametrize(("its", "reason", "said"), [one[1:] for one in NEVER])
def test_a_pod_that_does_not_start_is_told_within_a_minute(
    its: Json, reason: str, said: str
) -> None:
    early = health(job(), its)
    assert early.outcome == "fine" and early.recheck_in is not None
    told = health(job(), its, later=early.recheck_in)
    assert early.recheck_in + 30 <= 60
    assert (told.outcome, told.reason) == ("waiting", reason)
    assert said in told.message and told.about and told.about[0] == "Pod"
    # It may still start, as long as its Job lives.
    assert health(job(), its, later=4000) == told
    # And in the end it is not said to have run.
    for over in (job(LATE), job(condition("Failed", reason="DeadlineExceeded"))):
        end = health(over, its, later=4600)
        assert (end.outcome, end.reason) == ("failed", "NeverStarted")
        assert "never started" in end.message and "spec.timeout" not in end.message
        gone = health(over, later=4600, last=told.message)
        assert gone.reason == "NeverStarted" and said in gone.message


@pytest.mark.parametrize(
    ("its", "reason", "said", "about"),
    [
        (
            {
                "metadata": meta("p"),
                "spec": {"schedulingGates": [{"name": "example.com/quota"}]},
                "status": {"phase": "Pending", "conditions": [GATED]},
            },
            "SchedulingGated",
            "gates: example.com/quota (their controller",
            None,
        ),
        (
            {
                "metadata": meta("p"),
                "status": {
                    "phase": "Pending",
                    "conditions": [
                        UNSCHEDULABLE
                        | {
                            "message": "pod has unbound immediate PersistentVolumeClaims"
                        }
                    ],
                },
            },
            "Unschedulable",
            "unbound immediate PersistentVolumeClaims (check operator.storage_class",
            ("PersistentVolumeClaim", "s-workspace"),
        ),
        (
            {
                "metadata": meta("p"),
                "status": {
                    "phase": "Pending",
                    "conditions": [UNSCHEDULABLE | {"reason": "SchedulerError"}],
                },
            },
            "Unschedulable",
            "Insufficient memory",
            None,
        ),
    ],
)
def test_a_pod_without_a_node_is_told_at_once_and_fails_after_its_grace(
    its: Json, reason: str, said: str, about: tuple[str, str] | None
) -> None:
    seen = health(job(), its)
    assert (seen.outcome, seen.reason, seen.about) == ("waiting", reason, about)
    assert said in seen.message
    late = health(job(), its, later=SETTINGS.unschedulable_grace)
    assert (late.outcome, late.reason) == ("failed", reason)
    assert "lower spec.resources" in late.message or said in late.message


@pytest.mark.parametrize(
    ("its", "reason", "said"),
    [
        (
            pod(
                ended(128, "StartError", "failed to create shim task: no such file"),
                phase="Failed",
            ),
            "StartError",
            "its container never started: failed to create shim task",
        ),
        (
            pod(ended(127, "ContainerCannotRun", "not executable"), phase="Failed"),
            "StartError",
            "never started: not executable",
        ),
        (
            pod(phase="Failed", reason="Evicted", message="The node had DiskPressure"),
            "Evicted",
            "removed before its container started: Evicted: The node had DiskPressure",
        ),
        (
            pod(
                waiting("PodInitializing"),
                phase="Failed",
                initContainerStatuses=[begun("setup", **ended(1, message="no route"))],
            ),
            "PodFailed",
            "before its container started: the init container setup: Error: exit code 1",
        ),
    ],
)
def test_a_pod_that_ended_without_a_start_may_be_tried_again(
    its: Json, reason: str, said: str
) -> None:
    for owner in (job(), job(FAILED)):
        seen = health(owner, its)
        assert (seen.outcome, seen.reason) == ("lost", reason)
        assert said in seen.message


def test_a_pod_that_ran_is_not_said_to_have_been_removed_before() -> None:
    running = pod(ended(137), phase="Failed", reason="Evicted", message="low on disk")
    assert "before" not in health(job(), running).message


def test_a_runner_that_reported_has_started_whatever_is_left_of_its_pod() -> None:
    over = job(condition("Failed", reason="DeadlineExceeded"))
    assert health(over, ran=True).reason == "DeadlineExceeded"
    assert "spec.timeout" in health(over, ran=True).message
    assert health(over).reason == "NeverStarted"


def test_what_the_events_say_is_added_to_what_they_are_about() -> None:
    late = health(job(), pod(waiting("ContainerCreating")), later=60)
    said = "FailedAttachVolume: Multi-Attach error for volume"
    words = EventWords("Pod", "s-run-1-x", said, NOW)
    assert late.explained(words).message.endswith(f"ContainerCreating: {said}")
    assert late.explained(replace(words, name="other")) == late
    assert late.explained(replace(words, text="")) == late.explained(None) == late


def test_the_newest_warning_explains_most() -> None:
    def event(kind: str, reason: str, age: float, **more: Any) -> Json:
        at = {"lastTimestamp": ago(age)}
        return {"type": kind, "reason": reason, "message": "m", **at, **more}

    old = event("Warning", "FailedMount", 60)
    new = event("Warning", "FailedAttachVolume", 9)
    pulling = event("Normal", "Pulling", 1)
    assert words_of([new, pulling, old]) == "FailedAttachVolume: m"
    series = {"lastTimestamp": None, "series": {"lastObservedTime": ago(2)}}
    assert words_of([new, old | series]) == "FailedMount: m"
    assert words_of([pulling]) == "Pulling: m"
    assert words_of([old], since=ago(30)) == words_of([]) == ""
    secret = event("Warning", "Failed", 1, message="https://bob:hunter22@registry/x")
    assert "hunter22" not in words_of([secret])


def test_a_pod_that_starts_or_runs_is_fine() -> None:
    assert health(job(), pod(waiting("ContainerCreating"))).outcome == "fine"
    assert health(job(), pod({"running": {}}, phase="Running")).outcome == "fine"


def test_of_several_pods_the_newest_counts() -> None:
    old = pod(ended(1), phase="Failed", about=meta("a", age=50))
    new = pod({"running": {}}, phase="Running", about=meta("b", age=10))
    assert health(job(), new, old).outcome == "fine"
