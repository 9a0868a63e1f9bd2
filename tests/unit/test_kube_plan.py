"""What the operator does next, and that it always ends well: a small cluster, as a model, in which things
happen in any order while two operators with caches of different age follow one session.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from midwatch.kube import reconcile as do
from midwatch.kube.errors import WriterOutdated
from midwatch.kube.observed import JobView, ObservedState, PodView, observe
from midwatch.kube.reconcile import SETTLE, impossible, plan, refusal
from midwatch.kube.rules import FINALIZER, job_name
from midwatch.kube.status import (
    Condition,
    Writer,
    merged,
    phase_changes,
    phase_conditions,
    phase_of,
    timestamp,
)
from midwatch.kube.views import EventWords
from midwatch.model import Json
from midwatch.session.events import Phase
from midwatch.settings import KeyReference, OperatorSettings

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SETTINGS = OperatorSettings(
    image="registry.example/midwatch:1", api_key_secret=KeyReference(name="claude")
)
RESTARTS = 2


def body(**spec: Any) -> Json:
    repos = [{"input": {"url": "https://git.example/shop.git"}}]
    wanted = {"prompt": "mend it", "repos": repos, "maxRestarts": RESTARTS}
    return {
        "metadata": {
            "name": "s",
            "namespace": "team",
            "uid": "u-1",
            "generation": 1,
            "resourceVersion": "1",
            "creationTimestamp": timestamp(START),
        },
        "spec": {**wanted, **spec},
    }


# ------------------------------------------------------------------ single plans


def started(**status: Any) -> Json:
    made = body(**status.pop("spec", {}))
    made["metadata"]["finalizers"] = [FINALIZER]
    running = {"phase": "Running", "attempt": 1, "startTime": timestamp(START)}
    return {**made, "status": running | status}


def a_job(attempt: int = 1, **more: Any) -> JobView:
    name = job_name("s", attempt)
    return JobView("team", "s", name, "u-1", attempt, created_at=START, **more)


def a_pod(attempt: int = 1, **more: Any) -> PodView:
    known = {"phase": "Running", **more}
    return PodView("team", "s", f"p{attempt}", "u-1", attempt, **known)


def next_plan(
    body_: Json,
    jobs: tuple[JobView, ...] = (),
    pods: tuple[PodView, ...] = (),
    *,
    after: float = 10,
    fresh: bool = True,
    settings: OperatorSettings = SETTINGS,
    words: EventWords | None = None,
) -> do.Plan:
    state = observe(body_, jobs, pods, fresh=fresh, words=words)
    return plan(state, settings, START + timedelta(seconds=after))


def written(of: do.Plan) -> do.WriteStatus:
    return next(one for one in of.actions if isinstance(one, do.WriteStatus))


@pytest.mark.parametrize(
    ("settings", "spec", "reason"),
    [
        ({"image": None}, {}, "NoImage"),
        ({"api_key_secret": None}, {}, "NoApiKey"),
        ({"content_url": "http://content"}, {}, "NoContentKey"),
        ({}, {"resumeFrom": "other"}, "NoContentProxy"),
        ({}, {"timeout": "soon"}, "InvalidSpec"),
    ],
)
def test_what_is_wrong_is_told_once(settings: Json, spec: Json, reason: str) -> None:
    wrong, ours = body(**spec), SETTINGS.model_copy(update=settings)
    write, event = next_plan(wrong, settings=ours).actions
    assert isinstance(write, do.WriteStatus) and isinstance(event, do.Event)
    accepted = write.conditions[0]
    assert (accepted.status, accepted.reason) == ("False", reason)
    assert write.changes["phase"] == "Pending" and event.reason == "Refused"

    patch = merged(wrong, Writer("u-1", 1, 0), write.changes, write.conditions, START)
    told = {**wrong, "status": patch}
    assert next_plan(told, settings=ours) == do.Plan()


def test_a_spec_that_became_unreadable_does_not_stop_what_runs() -> None:
    broken = started(spec={"timeout": "soon"})
    first = next_plan(broken, (a_job(),), (a_pod(),))
    assert written(first).conditions[0].reason == "InvalidSpec"
    assert written(first).changes == {}


def test_a_lost_pod_is_started_again_with_what_is_left_of_its_time() -> None:
    lost = a_pod(phase="Failed", reason="Evicted", ended_at=START)
    over = a_job(outcome="Failed", reason="BackoffLimitExceeded")
    assert next_plan(started(), (over,), (lost,), fresh=False).actions == (
        do.Refresh(),
    )
    again = next_plan(started(), (over,), (lost,), after=600)
    assert again.actions[0] == do.CreateJob(2, 3000)
    assert written(again).attempt == 2
    assert "Evicted" in written(again).changes["message"]

    late = next_plan(started(), (over,), (lost,), after=3601)
    assert written(late).changes["reason"] == "TimedOut"
    often = started(attempt=3)
    third = next_plan(often, (replace(over, attempt=3),), (replace(lost, attempt=3),))
    assert written(third).changes["phase"] == "Failed"
    assert "after 2 restarts" in written(third).changes["message"]


def test_the_job_of_a_killed_pod_is_asked_why_before_it_is_told() -> None:
    last = started(attempt=3)
    killed = a_pod(3, phase="Failed", exit_code=143, ended_at=START)
    for fresh in (True, False):
        unmarked = next_plan(last, (a_job(3),), (killed,), after=5, fresh=fresh)
        assert unmarked == do.Plan(recheck_in=SETTLE - 5)
    late = a_job(3, target="FailureTarget", reason="DeadlineExceeded")
    told = written(next_plan(last, (late,), (killed,), after=6))
    assert told.changes["reason"] == "DeadlineExceeded"
    silent = written(next_plan(last, (a_job(3),), (killed,), after=SETTLE))
    assert silent.changes["reason"] == "Killed"


def test_a_job_that_ends_by_itself_is_not_deleted() -> None:
    late = a_job(target="FailureTarget", reason="DeadlineExceeded")
    going = a_pod(delete_at=START + timedelta(seconds=40))
    (tell,) = next_plan(started(), (late,), (going,)).actions
    assert isinstance(tell, do.WriteStatus)
    asked = started(spec={"stop": True})
    assert next_plan(asked, (late,), (going,)).actions == ()
    told = next_plan(asked, (late,), after=60)
    assert written(told).changes["reason"] == "DeadlineExceeded"


def test_no_second_attempt_beside_a_pod_that_lives() -> None:
    over = a_job(outcome="Failed", reason="BackoffLimitExceeded")
    going = a_pod(delete_at=START + timedelta(seconds=40))
    assert next_plan(started(), (), (going,)).actions == ()
    waits = next_plan(started(), (over,), (going,)).recheck_in
    assert waits is not None and waits > 0


def test_an_idle_session_is_stopped_on_a_fresh_look() -> None:
    limit = 900 + SETTINGS.idle_margin
    quiet = started(lastActivityTime=timestamp(START))
    running = ((a_job(),), (a_pod(),))
    assert next_plan(quiet, *running, after=limit - 5) == do.Plan(recheck_in=5)
    assert next_plan(quiet, *running, after=limit, fresh=False).actions == (
        do.Refresh(),
    )
    # It may be silent because the API server was away: it gets the time to say so.
    [marking] = next_plan(quiet, *running, after=limit).actions
    assert isinstance(marking, do.WriteStatus) and marking.changes == {}
    assert [(c.type, c.reason) for c in marking.conditions] == [("Ready", "SeemsIdle")]
    marked = started(
        lastActivityTime=timestamp(START),
        conditions=[
            {
                "type": "Ready",
                "status": "False",
                "reason": "SeemsIdle",
                "lastTransitionTime": timestamp(START + timedelta(seconds=limit)),
            }
        ],
    )
    margin = SETTINGS.idle_margin
    assert next_plan(marked, *running, after=limit + margin - 5) == do.Plan(
        recheck_in=5
    )
    stopping = next_plan(marked, *running, after=limit + margin)
    assert stopping.actions[0] == do.SuspendJob("s-run-1")
    # Who waits for a person's answer is not idle.
    asking = started(lastActivityTime=timestamp(START), reason="PermissionNeeded")
    assert next_plan(asking, *running, after=10 * limit).actions == ()

    # The runner has told of the end of its pod meanwhile.
    told = started(reason="PodEnding", lastActivityTime=timestamp(START))
    since = START + timedelta(seconds=limit)
    suspended = a_job(suspended=True, suspended_at=since)
    ended = next_plan(told, (suspended,), after=limit + 60)
    assert written(ended).changes["phase"] == "Stopped"
    assert written(ended).changes["reason"] == "Idle"


def test_a_job_whose_image_cannot_be_pulled_is_taken_away() -> None:
    stuck = a_pod(phase="Pending", waiting="ErrImagePull", scheduled_at=START)
    creating = started(phase="Creating", reason="JobCreated")
    early = next_plan(creating, (a_job(),), (stuck,), after=10)
    assert written(early).changes["reason"] == "ImagePull"
    assert early.recheck_in == SETTINGS.image_pull_grace - 10
    late = next_plan(creating, (a_job(),), (stuck,), after=120)
    assert late.actions[0] == do.DeleteJob("s-run-1")
    assert written(late).changes["phase"] == "Failed"


def test_what_held_a_pod_up_is_not_told_for_longer_than_it_lasts() -> None:
    creating = started(phase="Creating", reason="Unschedulable")
    scheduled = a_pod(phase="Pending", scheduled_at=START)
    told = written(next_plan(creating, (a_job(),), (scheduled,), after=10))
    assert (told.changes["phase"], told.changes["reason"]) == (
        "Creating",
        "PodStarting",
    )


def told_of(after: float, text: str, kind: str = "Pod", name: str = "p1") -> EventWords:
    return EventWords(kind, name, text, START + timedelta(seconds=after))


def test_a_pod_that_does_not_start_is_told_in_the_words_of_its_events() -> None:
    creating = started(phase="Creating", reason="JobCreated")
    its: Any = ((a_job(),), (a_pod(phase="Pending", scheduled_at=START),))
    assert next_plan(creating, *its, after=10) == do.Plan(recheck_in=35)
    assert next_plan(creating, *its, after=50).actions == (do.ReadEvents("Pod", "p1"),)
    said = "FailedAttachVolume: Multi-Attach error"
    told = next_plan(creating, *its, after=50, words=told_of(50, said))
    assert [type(one) for one in told.actions] == [do.Event, do.WriteStatus]
    assert written(told).changes["reason"] == "PodNotStarted"
    assert written(told).changes["message"].endswith(said)
    assert written(told).changes["phase"] == "Creating"

    # Told once; the events are read again, the more seldom the longer it takes.
    waiting = started(
        phase="Creating", **{k: written(told).changes[k] for k in ("reason", "message")}
    )
    for read, pause in ((50, 60), (400, 200), (4000, 2000)):
        words = told_of(read, said)
        quiet = next_plan(waiting, *its, after=read + 10, words=words)
        assert quiet == do.Plan(recheck_in=pause - 10)
        again = next_plan(waiting, *its, after=read + pause, words=words)
        assert again.actions == (do.ReadEvents("Pod", "p1"),)
    # Another cause is told, without another event.
    other = next_plan(waiting, *its, after=90, words=told_of(90, "FailedMount: late"))
    assert [type(one) for one in other.actions] == [do.WriteStatus]
    assert written(other).changes["message"].endswith("FailedMount: late")


def test_a_job_without_a_pod_is_told_in_the_words_of_its_events() -> None:
    creating = started(phase="Creating", reason="JobCreated")
    jobs = (a_job(begun_at=START),)
    assert next_plan(creating, jobs, after=50).actions == (
        do.ReadEvents("Job", "s-run-1"),
    )
    words = told_of(50, "FailedCreate: exceeded quota: pods=3", "Job", "s-run-1")
    told = written(next_plan(creating, jobs, after=50, words=words))
    assert (told.changes["phase"], told.changes["reason"]) == ("Creating", "NoPod")
    assert "exceeded quota: pods=3" in told.changes["message"]
    end = written(next_plan(creating, jobs, after=600, words=words))
    assert (end.changes["phase"], end.changes["reason"]) == ("Failed", "NoPod")
    assert "exceeded quota: pods=3" in end.changes["message"]


def test_in_the_end_it_is_said_that_it_never_started_and_why() -> None:
    why = "its container has not started: FailedMount: no such volume"
    waiting = started(phase="Creating", reason="PodNotStarted", message=why)
    over = a_job(outcome="Failed", reason="DeadlineExceeded")
    end = written(next_plan(waiting, (over,), after=4600))
    assert (end.changes["phase"], end.changes["reason"]) == ("Failed", "NeverStarted")
    assert why in end.changes["message"] and "timeout" not in end.changes["message"]
    # The first attempt ran; the second never did.
    second = started(phase="Creating", attempt=2, reason="Restarted", podName=None)
    late = a_job(2, outcome="Failed", reason="DeadlineExceeded")
    told = written(next_plan(second, (late,), after=4600))
    assert told.changes["reason"] == "NeverStarted"
    ran = started(phase="Creating", attempt=2, reason="Cloning", podName="p2")
    told = written(next_plan(ran, (late,), after=4600))
    assert told.changes["reason"] == "DeadlineExceeded"


def test_what_a_lost_runner_had_not_saved_is_not_known() -> None:
    saved = {"type": "WorkspaceSaved", "status": "True", "reason": "Saved"}
    over = a_job(outcome="Failed", reason="BackoffLimitExceeded")
    gone = a_pod(phase="Failed", exit_code=137, ended_at=START)
    for told, status in (("Working", {"Unknown"}), ("PodEnding", set())):
        running = started(reason=told, conditions=[saved])
        begun = written(next_plan(running, (over,), (gone,), after=30))
        assert begun.attempt == 2
        found = {c.status for c in begun.conditions if c.type == "WorkspaceSaved"}
        assert found == status


def ended(**status: Any) -> Json:
    told = phase_conditions(Phase.COMPLETED, "Completed")
    conditions = [{"type": one.type, "status": one.status} for one in told]
    times = {"completionTime": timestamp(START), "conditions": conditions}
    return started(phase="Completed", **{**times, **status})


def test_a_job_goes_only_after_its_end_was_told() -> None:
    """Else an operator that was away for longer than its time would take finished work for lost."""
    over = a_job(outcome="Failed", reason="BackoffLimitExceeded")
    untold = a_pod(phase="Failed", exit_code=3, ended_at=START)
    first = next_plan(started(), (over,), (untold,), after=86400)
    assert written(first).changes["reason"] == "OutcomeUnknown"
    assert not [one for one in first.actions if isinstance(one, do.ExpireJob)]

    both = (a_job(1, outcome="Failed"), a_job(2, outcome="Complete"))
    told = next_plan(ended(attempt=2), both)
    expire = (do.ExpireJob("s-run-1"), do.ExpireJob("s-run-2"))
    assert told.actions[1:] == (do.RemoveFinalizer(), *expire)
    # An operator that was ended in between.
    released = ended(attempt=2)
    released["metadata"]["finalizers"] = []
    again = next_plan(released, (replace(both[0], expires=True), both[1]))
    assert again.actions == expire[1:]


def test_a_phase_that_somebody_wrote_alone_gets_its_conditions() -> None:
    """By the token of its pod any session can write its own status; nobody must wait for it for ever."""
    forged = started(phase="Completed", result="All is well.")
    (tell,) = next_plan(forged, (a_job(),), (a_pod(),)).actions
    assert tell == do.WriteStatus(1, {})
    patch = merged(forged, Writer("u-1", 1, 1), {}, (), START)
    assert patch is not None
    straight = {**forged, "status": forged["status"] | patch}
    finished = [one for one in patch["conditions"] if one["type"] == "Finished"]
    assert [one["status"] for one in finished] == ["True"]
    assert patch["completionTime"] == timestamp(START)
    assert do.RemoveFinalizer() in next_plan(straight, (a_job(),), (a_pod(),)).actions


def test_a_session_that_is_over_costs_nothing() -> None:
    over = ended()
    assert [type(one) for one in next_plan(over).actions] == [
        do.Event,
        do.RemoveFinalizer,
    ]
    over["metadata"]["finalizers"] = []
    assert next_plan(over, (a_job(outcome="Complete", expires=True),)) == do.Plan(
        done=True
    )
    assert next_plan(over) == do.Plan(done=True)
    # The Job's controller is behind: its log is left to be read.
    gone_pods = (a_pod(phase="Succeeded", exit_code=0, ended_at=START),)
    assert next_plan(over, (a_job(expires=True),), gone_pods, after=80) == do.Plan(
        done=True
    )
    assert next_plan(over, (a_job(had_pod=True, expires=True),), after=80) == do.Plan(
        done=True
    )
    counted = a_job(suspended=True)
    assert next_plan(over, (counted,), gone_pods, after=80) == do.Plan(done=True)
    hung = next_plan(over, (a_job(expires=True),), (a_pod(),), after=10)
    assert (
        hung.actions == ()
        and hung.recheck_in == SETTINGS.termination_grace + SETTLE - 10
    )
    hangs = ((a_job(had_pod=True, expires=True),), (a_pod(),))
    assert next_plan(over, *hangs, after=80, fresh=False).actions == (do.Refresh(),)
    gone = (do.DeleteJob("s-run-1"),)
    assert next_plan(over, *hangs, after=80).actions == gone
    assert next_plan(over, (a_job(expires=True),), after=80).actions == gone
    assert next_plan(over, (a_job(suspended=True, had_pod=True),)).actions == gone


def test_nothing_is_refused_after_the_end() -> None:
    over = observe(started(phase="Completed"))
    assert refusal(over, "ClusterRefused", "403") == ()
    assert impossible(over, "InvalidSpec", "422") == ()


def test_a_session_that_never_began_ends_with_an_event() -> None:
    asked = body(stop=True)
    tell, event = next_plan(asked).actions
    assert isinstance(tell, do.WriteStatus) and isinstance(event, do.Event)
    assert (event.type, event.reason) == ("Normal", "Stopped")
    asked["metadata"]["finalizers"] = [FINALIZER]
    assert len(next_plan(asked).actions) == 1, "the last event follows with the release"


# ------------------------------------------------------------------ the model


@dataclass
class Cluster:
    """What is true. Jobs and pods by name; `phases` are those that were written, in order."""

    body: Json
    now: datetime = START
    jobs: dict[str, JobView] = field(default_factory=dict)
    pods: dict[str, PodView] = field(default_factory=dict)
    deadlines: dict[str, datetime] = field(default_factory=dict)
    created: list[str] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    version: int = 1
    gone: bool = False

    def write(
        self, attempt: int, changes: Json, conditions: tuple[Condition, ...] = ()
    ) -> None:
        writer = Writer("u-1", 1, attempt)
        try:
            patch = merged(self.body, writer, changes, conditions, self.now)
        except WriterOutdated:
            return
        if patch is None or self.gone:
            return
        if patch.get("reason") == "NoPod":
            job = self.jobs[job_name("s", attempt)]
            # Told as waiting from a cache it may be late; as the end it must be true.
            waits = patch.get("phase") != Phase.FAILED.value
            assert waits or not job.had_pod, "it had one"
            assert job.begun_at is not None, "nobody has tried to make one"
        status = {**(self.body.get("status") or {}), **patch}
        self._set(status={k: v for k, v in status.items() if v is not None})
        phase = phase_of(self.body)
        if phase not in self.phases[-1:]:
            self.phases.append(phase)

    def _set(self, **parts: Any) -> None:
        self.version += 1
        self.body = {**self.body, **parts}
        meta = {**self.body["metadata"], "resourceVersion": str(self.version)}
        self.body = {**self.body, "metadata": meta}

    def annotate(self, **meta: Any) -> None:
        self._set(metadata={**self.body["metadata"], **meta})

    def ask_to_stop(self) -> None:
        self._set(spec={**self.body["spec"], "stop": True})

    def act(self, action: do.Action) -> None:
        """As the API server does it."""
        match action:
            case do.AddFinalizer():
                self.annotate(finalizers=[FINALIZER])
            case do.RemoveFinalizer():
                self.annotate(finalizers=[])
                self.gone = "deletionTimestamp" in self.body["metadata"]
            case do.CreateJob(attempt=attempt, timeout=left):
                self._create_job(attempt, left)
            case do.SuspendJob(name=name) if name in self.jobs:
                self._suspend(name)
            case do.DeleteJob(name=name) if name in self.jobs:
                del self.jobs[name]
            case do.ExpireJob(name=name) if name in self.jobs:
                assert phase_of(self.body).terminal, "it may still be asked for"
                self.jobs[name] = replace(self.jobs[name], expires=True)
            case do.WriteStatus():
                self.write(action.attempt, action.changes, action.conditions)

    def _suspend(self, name: str) -> None:
        job = self.jobs[name]
        if not job.over:
            at = job.suspended_at or self.now
            self.jobs[name] = replace(job, suspended=True, suspended_at=at)

    def _create_job(self, attempt: int, left: int) -> None:
        name = job_name("s", attempt)
        if name in self.jobs or self.gone:
            return
        assert not self.live_jobs, "two live Jobs of one session"
        late = [job for job in self.jobs.values() if job.reason == "DeadlineExceeded"]
        assert not late, "another attempt after the deadline"
        assert not [p for p in self.pods.values() if not p.over and not p.delete_at]
        self.created.append(name)
        limit = timedelta(seconds=left + SETTINGS.deadline_margin)
        self.deadlines[name] = self.now + limit
        self.jobs[name] = JobView(
            "team", "s", name, "u-1", attempt, created_at=self.now
        )

    @property
    def live_jobs(self) -> list[JobView]:
        return [job for job in self.jobs.values() if not job.over]

    # -------------------------------------------------- Kubernetes and the runner

    def controller(self) -> None:
        """The Job controller, the garbage collector and the kubelet, one step of each."""
        for job in self.live_jobs:
            self.jobs[job.name] = self._step_of(job)
        for pod in list(self.pods.values()):
            if job_name("s", pod.attempt) not in self.jobs:
                self._delete_pod(pod)
            if pod.delete_at is not None and self.now >= pod.delete_at:
                self._end_pod(pod)

    def _step_of(self, job: JobView) -> JobView:
        """First it is known how a Job ends, then its pod is let go, then it has ended."""
        mine = [pod for pod in self.pods.values() if pod.attempt == job.attempt]
        ended = [pod for pod in mine if pod.over]
        if job.suspended:
            for pod in mine:
                self._delete_pod(pod)
        elif job.target:
            return self._concluded(job, mine)
        elif ended or (not mine and job.had_pod):
            good = bool(ended) and ended[0].phase == "Succeeded"
            target = "SuccessCriteriaMet" if good else "FailureTarget"
            reason = "CompletionsReached" if good else "BackoffLimitExceeded"
            return replace(job, target=target, reason=reason)
        elif self.now >= self.deadlines[job.name]:
            for pod in mine:
                self._delete_pod(pod)
            return replace(job, target="FailureTarget", reason="DeadlineExceeded")
        elif not mine:
            self.pods[f"p{job.attempt}"] = a_pod(
                job.attempt, created_at=self.now, scheduled_at=self.now
            )
            return replace(job, had_pod=True, begun_at=self.now)
        return job

    def _concluded(self, job: JobView, pods: list[PodView]) -> JobView:
        going = [pod for pod in pods if pod.delete_at is not None]
        if going:
            for pod in going:
                if pod.over:
                    del self.pods[pod.name]
            return job
        good = job.target == "SuccessCriteriaMet"
        return replace(job, outcome="Complete" if good else "Failed")

    def _end_pod(self, pod: PodView) -> None:
        """By its grace it has ended; its Job holds it until that has noted it."""
        job = self.jobs.get(job_name("s", pod.attempt))
        if job is None or job.suspended:
            del self.pods[pod.name]
        elif not pod.over:
            self.pods[pod.name] = replace(
                pod, phase="Failed", exit_code=143, ended_at=self.now
            )

    def _delete_pod(self, pod: PodView) -> None:
        if pod.name in self.pods and pod.delete_at is None:
            grace = timedelta(seconds=SETTINGS.termination_grace)
            self.pods[pod.name] = replace(pod, delete_at=self.now + grace)

    @property
    def running(self) -> PodView | None:
        return next((pod for pod in self.pods.values() if not pod.over), None)

    def runner(self, how: str) -> None:
        """The runner of the pod that runs goes on, or ends in one of several ways."""
        pod = self.running
        if pod is None:
            return
        if how == "works":
            changes = phase_changes(Phase.RUNNING, "Working") | {
                "startTime": timestamp(self.now),
                "lastActivityTime": timestamp(self.now),
            }
            self.write(pod.attempt, changes, phase_conditions(Phase.RUNNING, "Working"))
            return
        if how in ("completes", "stops"):
            phase = Phase.COMPLETED if how == "completes" else Phase.STOPPED
            self.write(pod.attempt, phase_changes(phase, "Done"))
        code = {"completes": 0, "stops": 0, "crashes": 1, "is killed": 137}.get(how, 1)
        self.pods[pod.name] = replace(
            pod,
            phase="Succeeded" if code == 0 else "Failed",
            exit_code=None if how == "is evicted" else code,
            exit_reason="OOMKilled" if how == "needs memory" else "",
            reason="Evicted" if how == "is evicted" else "",
            ended_at=self.now,
        )

    def happen(self, what: str) -> None:
        match what.split(":"):
            case ["wait", seconds]:
                self.now += timedelta(seconds=float(seconds))
            case ["runner", how]:
                self.runner(how)
            case ["controller"]:
                self.controller()
            case ["pod deleted"]:
                for pod in list(self.pods.values()):
                    self._delete_pod(pod)
            case ["job deleted"]:
                self.jobs.pop(next(iter(self.jobs), ""), None)
            case ["stop asked"]:
                self.ask_to_stop()
            case ["deleted"] if "deletionTimestamp" not in self.body["metadata"]:
                self.annotate(deletionTimestamp=timestamp(self.now))
                self.gone = not self.body["metadata"].get("finalizers")


_OF_JOBS = (do.CreateJob, do.SuspendJob, do.DeleteJob, do.ExpireJob)


class Operator:
    """Plans from a cache and carries out one action at a time, so that all may happen in between."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.restart()

    def restart(self) -> None:
        self.pending: list[do.Action] = []
        self.fresh = self.current = False
        self.done = False
        self.words: EventWords | None = None
        self.read()

    def read(self) -> None:
        cluster = self.cluster
        self.body, self.gone = cluster.body, cluster.gone
        self.jobs, self.pods = dict(cluster.jobs), dict(cluster.pods)

    def seen(self) -> ObservedState:
        jobs, pods = self.jobs.values(), self.pods.values()
        return observe(
            self.body,
            jobs,
            pods,
            fresh=self.fresh,
            current=self.current,
            words=self.words,
        )

    def step(self) -> bool:
        """Carry out the next action; false if there is none and the plan waits."""
        if self.gone:
            return False
        if not self.pending:
            next_ = plan(self.seen(), SETTINGS, self.cluster.now)
            self.pending, self.done = list(next_.actions), next_.done
            if not self.pending:
                self.fresh = self.current = False
                return False
        self._act(self.pending.pop(0))
        return True

    def _act(self, action: do.Action) -> None:
        if isinstance(action, (do.Refresh, do.AddFinalizer)):
            if self.cluster.gone:
                self.gone, self.pending = True, []
                return
            self.current = True
        if isinstance(action, do.ReadEvents):
            now = self.cluster.now
            self.words = EventWords(action.kind, action.name, "FailedX: no", now)
            return
        self.cluster.act(action)
        self.fresh = False
        # A write answers with what is there then.
        self.body, self.gone = self.cluster.body, self.cluster.gone
        if isinstance(action, do.Refresh):
            self.read()
            self.fresh = True
        if isinstance(action, _OF_JOBS):
            self.jobs = dict(self.cluster.jobs)

    def settle(self) -> int:
        """All there is to do now; how many actions that was."""
        count = 0
        while self.step():
            count += 1
            assert count < 20, f"no end of {self.seen()}"
        return count


HAPPENINGS = st.sampled_from(
    ["controller"] * 4
    + ["wait:1", "wait:20", "wait:100", "wait:1200"]
    + ["runner:works"] * 3
    + [
        f"runner:{how}"
        for how in (
            "completes",
            "stops",
            "crashes",
            "is killed",
            "is evicted",
            "needs memory",
        )
    ]
    + ["pod deleted", "job deleted", "stop asked", "deleted"]
)
OPERATORS = st.sampled_from(
    [(n, what) for n in (0, 1) for what in ("step", "step", "step", "read", "restart")]
)
STEPS = st.lists(st.one_of(HAPPENINGS, OPERATORS), max_size=60)


def calm(cluster: Cluster, operators: list[Operator]) -> None:
    """Nothing more happens than what has to: pods run and complete, and everybody gets round."""
    actions = 0
    for _ in range(40):
        for operator in operators:
            operator.read()
            actions += operator.settle()
        cluster.controller()
        cluster.runner("works")
        cluster.happen("wait:20")
        cluster.runner("completes")
        for _ in range(3):
            cluster.controller()
    for operator in operators:
        operator.read()
        assert operator.settle() == 0, "it repeats itself"
    assert actions < 60


ENDING = ("controller", "wait:70", "controller", "controller", "controller")
"""A pod ends, step by step: its Job knows how, it ends in its grace, it is gone, it is counted."""


@pytest.mark.parametrize("moment", range(len(ENDING) + 1))
@pytest.mark.parametrize(
    ("fate", "created", "reason"),
    [
        (["wait:1200"], 1, "DeadlineExceeded"),
        (["wait:700", "pod deleted"], 2, "Done"),
        (["wait:700", "runner:is killed"], 2, "Done"),
        (["wait:700", "runner:crashes"], 1, "ExitCode"),
    ],
)
def test_an_end_is_told_alike_whenever_one_looks(
    fate: list[str], created: int, reason: str, moment: int
) -> None:
    """Also when the Job is older than the grace in which it has to have a pod."""
    cluster = Cluster(body(timeout=900, idleTimeout=9000))
    operator = Operator(cluster)
    operator.settle()
    for what in ("controller", "runner:works", *fate, *ENDING[:moment]):
        cluster.happen(what)
    operator.read()
    operator.settle()
    for what in ENDING[moment:]:
        cluster.happen(what)
    calm(cluster, [operator])
    assert len(cluster.created) == created
    assert cluster.body["status"]["reason"] == reason


@given(STEPS)
@examples(max_examples=250)
def test_every_session_ends_once_whatever_happens(
    steps: list[str | tuple[int, str]],
) -> None:
    cluster = Cluster(body(timeout=900))
    operators = [Operator(cluster), Operator(cluster)]
    for step in steps:
        if isinstance(step, str):
            cluster.happen(step)
        elif step[1] == "read":
            operators[step[0]].read()
        elif step[1] == "restart":
            operators[step[0]].restart()
        else:
            operators[step[0]].step()
    calm(cluster, operators)

    ended = [phase for phase in cluster.phases if phase.terminal]
    assert len(ended) == 1 or (cluster.gone and not ended)
    assert ended == [phase for phase in cluster.phases[-1:] if phase.terminal]
    assert len(set(cluster.created)) <= RESTARTS + 1
    assert cluster.created == sorted(cluster.created)
    assert not cluster.live_jobs or cluster.gone
    assert all(job.expires for job in cluster.jobs.values()) or cluster.gone
    assert all(operator.done or operator.gone for operator in operators)
