"""What to do next for one session. Pure, and level-triggered: the same state gives the same plan, so that
an operator that was restarted, and a second one beside it, do the same.

A plan's actions are carried out in order, then the next plan is made from the state as it is then. Whatever
cannot be undone is done on a fresh look only.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from midwatch.kube.observed import (
    PASSING,
    JobView,
    ObservedState,
    PodView,
    Verdict,
    judge,
)
from midwatch.kube.rules import MAX_NAME, job_name
from midwatch.kube.status import Condition, out_of_step, phase_changes, phase_conditions
from midwatch.model import Json
from midwatch.session.events import Phase
from midwatch.settings import OperatorSettings

# ------------------------------------------------------------ actions
# What the operator does, as values.


@dataclass(frozen=True, slots=True)
class Refresh:
    """Read the resource, its Jobs and its pods anew: a cache is no ground for what cannot be undone."""


@dataclass(frozen=True, slots=True)
class AddFinalizer:
    """Hold the resource back from being deleted unseen."""


@dataclass(frozen=True, slots=True)
class RemoveFinalizer:
    """Let it go."""


@dataclass(frozen=True, slots=True)
class CreateJob:
    """And what a session has beside it, where that is missing. `timeout`: seconds that are left."""

    attempt: int
    timeout: int


@dataclass(frozen=True, slots=True)
class SuspendJob:
    """End its pods with SIGTERM and their grace."""

    name: str


@dataclass(frozen=True, slots=True)
class DeleteJob:
    name: str


@dataclass(frozen=True, slots=True)
class ExpireJob:
    """Let Kubernetes delete it, with its pod's log, once it has been over for `operator.job_ttl`."""

    name: str


@dataclass(frozen=True)
class WriteStatus:
    """As the operator, on behalf of this attempt."""

    attempt: int
    changes: Json
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """For `kubectl describe`; told once for an attempt."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    attempt: int


Action = (
    Refresh
    | AddFinalizer
    | RemoveFinalizer
    | CreateJob
    | SuspendJob
    | DeleteJob
    | ExpireJob
    | WriteStatus
    | Event
)


@dataclass(frozen=True)
class Plan:
    """`again`: seconds after which to look without anything having happened; None: no need.

    `done`: nothing is left to do for this session, ever.
    """

    actions: tuple[Action, ...] = ()
    again: float | None = None
    done: bool = False


# ------------------------------------------------------------ refusing
# Telling that a session is not run: as things are, or ever. Pure.


def refusal(seen: ObservedState, reason: str, message: str) -> tuple[Action, ...]:
    """Tell that the session cannot be started as things are; nothing, where that is told already."""
    condition = Condition("Accepted", "False", reason, message)
    if seen.phase.terminal or seen.told("Accepted", "False", reason, message):
        return ()
    changes = {} if seen.attempt else phase_changes(Phase.PENDING, reason, message)
    return (
        WriteStatus(seen.attempt, changes, (condition,)),
        Event("Warning", "Refused", message, seen.attempt),
    )


def impossible(seen: ObservedState, reason: str, message: str) -> tuple[Action, ...]:
    """Tell that the session can never be started: what is wrong with its spec cannot be changed any more."""
    if seen.phase.terminal:
        return ()
    changes = phase_changes(Phase.FAILED, reason, message)
    conditions = phase_conditions(Phase.FAILED, reason, message)
    refused = Condition("Accepted", "False", reason, message)
    return (WriteStatus(seen.attempt, changes, (refused, *conditions)),)


SETTLE = 15.0
"""Seconds that Kubernetes gets to follow: to mark a Job whose pod ended, to end a pod in its grace."""
_WAITING = "waiting for its pod"
_RESTARTING = "Restarting"
_IDLE = "Idle"
_SAVED = "WorkspaceSaved"
_QUIET = "SeemsIdle"
_QUIET_MESSAGE = "its runner has told nothing for longer than spec.idleTimeout"
_IDLE_MESSAGE = "nothing happened within spec.idleTimeout, and it did not stop itself"
_ACCEPTED = Condition("Accepted", "True", "Accepted", "")


def plan(seen: ObservedState, settings: OperatorSettings, now: datetime) -> Plan:
    """What to do now, and when to look again."""
    case = _Case(seen, settings, now)
    if seen.phase.terminal:
        return case.after_the_end()
    if seen.deleted_at is not None:
        return case.deleting(seen.deleted_at)
    job = seen.job
    if seen.resource.spec.stop or (job is not None and job.suspended):
        return case.stopping()
    if seen.attempt == 0:
        return case.starting()
    return case.following()


@dataclass(frozen=True)
class _Case:
    seen: ObservedState
    settings: OperatorSettings
    now: datetime

    # -------------------------------------------------------------- before

    def starting(self) -> Plan:
        seen = self.seen
        if len(seen.resource.name) > MAX_NAME:
            message = f"its name is longer than {MAX_NAME} characters"
            return self._end(Phase.FAILED, "NameTooLong", f"{message} (shorten it)")
        if refused := self._refused():
            return Plan(refusal(seen, *refused))
        if not seen.held:
            return Plan((AddFinalizer(),))
        if not seen.current:
            return Plan((Refresh(),))
        if (wait := self._until_gone(seen.live_pods)) is not None:
            return Plan(again=wait)
        return self._attempt(1, _WAITING)

    def _refused(self) -> tuple[str, str] | None:
        """What is wrong with the spec or our settings: the reason and the message."""
        if self.seen.refused is not None:
            return "InvalidSpec", self.seen.refused.one_line()
        if self.settings.image is None:
            return "NoImage", "the operator has no image to run (set operator.image)"
        spec = self.seen.resource.spec
        key = spec.api_key_secret or self.settings.api_key_secret
        if key is None and not spec.environment.secrets:
            hint = "set spec.apiKeySecret, or operator.api_key_secret"
            return "NoApiKey", f"no secret holds a key of the Claude API ({hint})"
        if self.settings.content_url and self.settings.content_key_file is None:
            return "NoContentKey", "operator.content_url needs content_key_file"
        if spec.resume_from and not self.settings.content_url:
            hint = "set operator.content_url"
            return "NoContentProxy", f"spec.resumeFrom needs the content proxy ({hint})"
        return None

    def _attempt(self, number: int, message: str) -> Plan:
        """Start an attempt. The Job comes before the status: a Job can be found, a lie cannot."""
        create = CreateJob(number, self._time_left())
        return Plan((create, *self._begun(number, message)))

    def _begun(self, number: int, message: str) -> tuple[Action, ...]:
        """Tell of an attempt that has its Job."""
        name = job_name(self.seen.resource.name, number)
        reason = "Restarted" if number > 1 else "JobCreated"
        changes = phase_changes(Phase.CREATING, reason, message)
        changes |= {"jobName": name, "podName": None, "restarts": number - 1}
        conditions = phase_conditions(Phase.CREATING, reason, message)
        conditions += _unsaved(self.seen)
        return (
            Event("Normal", reason, f"{name}: {message}", number),
            WriteStatus(number, changes, (_ACCEPTED, *conditions)),
        )

    def _time_left(self) -> int:
        """Seconds of spec.timeout that are left since the session first ran; may be negative."""
        started = self.seen.time("startTime")
        spent = (self.now - started).total_seconds() if started else 0.0
        return int(self.seen.resource.spec.timeout - max(0.0, spent))

    # -------------------------------------------------------------- during

    def following(self) -> Plan:
        seen = self.seen
        if seen.refused is not None:
            refused = refusal(seen, "InvalidSpec", seen.refused.one_line())
            if refused:
                return Plan(refused)
        verdict = judge(seen.job, seen.current_pods, self.settings, self.now)
        if verdict.outcome in ("lost", "failed"):
            lost = verdict.outcome == "lost"
            next_ = self._lost(verdict) if lost else self._failed(verdict)
            # To wait takes no fresh look.
            return next_ if seen.fresh or not next_.actions else Plan((Refresh(),))
        if (seen.status.get("attempt") or 0) < seen.attempt:
            return Plan(self._begun(seen.attempt, _WAITING))
        if verdict.outcome == "waiting" and seen.phase is not Phase.RUNNING:
            if seen.status.get("reason") != verdict.reason:
                return self._waiting(verdict)
        elif seen.phase is Phase.CREATING and seen.status.get("reason") in PASSING:
            return Plan(self._told(Phase.CREATING, "PodStarting", "its pod starts"))
        return self._unless_idle(verdict)

    def _waiting(self, verdict: Verdict) -> Plan:
        reason, message = verdict.reason, verdict.message
        event = Event("Warning", reason, message, self.seen.attempt)
        told = self._told(Phase.CREATING, reason, message)
        return Plan((event, *told), verdict.again)

    def _told(self, phase: Phase, reason: str, message: str) -> tuple[Action, ...]:
        changes = phase_changes(phase, reason, message)
        conditions = phase_conditions(phase, reason, message)
        return (WriteStatus(self.seen.attempt, changes, conditions),)

    def _unless_idle(self, verdict: Verdict) -> Plan:
        seen, again = self.seen, verdict.again
        last, job = seen.time("lastActivityTime"), seen.job
        if seen.phase is not Phase.RUNNING or last is None:
            return Plan(again=again)
        if job is None or job.ending:
            return Plan(again=again)
        limit = seen.resource.spec.idle_timeout + self.settings.idle_margin
        left = limit - (self.now - last).total_seconds()
        if left > 0:
            return Plan(again=left if again is None else min(left, again))
        if seen.status.get("reason") == "PermissionNeeded":  # it waits for a person
            return Plan(again=again)
        if not seen.fresh:
            return Plan((Refresh(),))
        # After an outage a runner that works has had no chance to say so: it gets one.
        since = seen.since("Ready", _QUIET)
        if since is None:
            ready = Condition("Ready", "False", _QUIET, _QUIET_MESSAGE)
            return Plan((WriteStatus(job.attempt, {}, (ready,)),))
        if (left := self.settings.idle_margin - self._age(since)) > 0:
            return Plan(again=left)
        return self._suspend(job, _IDLE, _IDLE_MESSAGE)

    # -------------------------------------------------------------- lost and failed

    def _lost(self, verdict: Verdict) -> Plan:
        seen, message = self.seen, verdict.message
        if (unexplained := self._until_explained()) > 0:
            return Plan(again=unexplained)
        if seen.status.get("reason") == _RESTARTING:
            message = str(seen.status.get("message") or message)
        restarts = seen.attempt
        if restarts > seen.resource.spec.max_restarts:
            often = {1: "no restarts", 2: "after 1 restart"}.get(
                restarts, f"after {restarts - 1} restarts"
            )
            why = f"{message} ({often}; spec.maxRestarts allows no more)"
            return self._failed(Verdict("failed", verdict.reason, why))
        if self._time_left() < 1:
            why = f"{message}, and spec.timeout is over"
            return self._failed(Verdict("failed", "TimedOut", why))
        job = seen.job
        if job is not None and not job.over:
            return self._give_up_job(job, message)
        if (wait := self._until_gone(seen.live_pods)) is not None:
            return Plan(again=wait)
        told = f"restart {restarts} of {seen.resource.spec.max_restarts}: {message}"
        return self._attempt(seen.attempt + 1, told)

    def _until_explained(self) -> float:
        """Seconds that the Job's own reason is waited for: at a deadline pods end first, by a signal."""
        job = self.seen.job
        return 0.0 if job is None or job.ending else self._until_marked()

    def _give_up_job(self, job: JobView, message: str) -> Plan:
        """A Job whose pod is lost ends by itself; one that does not is deleted."""
        if (wait := self._until_marked()) > 0:
            return Plan(again=wait)
        tell = WriteStatus(job.attempt, {"reason": _RESTARTING, "message": message})
        return Plan((tell, DeleteJob(job.name)))

    def _until_marked(self) -> float:
        """Seconds that Kubernetes still has to see that the pods ended."""
        pods = self.seen.current_pods
        ended = [pod.ended_at for pod in pods if pod.over and pod.ended_at]
        if not ended or len(ended) < len(pods):
            return 0.0
        return SETTLE - (self.now - max(ended)).total_seconds()

    def _failed(self, verdict: Verdict) -> Plan:
        job, pods = self.seen.job, self.seen.current_pods
        ends_itself = bool(pods) and all(pod.over for pod in pods)
        drop: tuple[Action, ...] = ()
        if job is not None and not job.ending and not ends_itself:
            drop = (DeleteJob(job.name),)
        ended = self._end(Phase.FAILED, verdict.reason, verdict.message)
        return Plan((*drop, *ended.actions))

    # -------------------------------------------------------------- stopping

    def stopping(self) -> Plan:
        seen, job = self.seen, self.seen.job
        if job is not None and not self._ends(job):
            return self._suspend(job, "Stopping", "its pod gets its grace to save")
        if (wait := self._until_gone(seen.live_pods)) is not None:
            return Plan(again=wait)
        if not seen.fresh:
            return Plan((Refresh(),))
        if job is not None and not job.suspended:
            verdict = judge(job, seen.current_pods, self.settings, self.now)
            if verdict.outcome == "failed":  # before anybody stopped it
                return self._failed(verdict)
        return self._end(Phase.STOPPED, *self._why_stopped())

    def _why_stopped(self) -> tuple[str, str]:
        if self.seen.resource.spec.stop:
            return "Stopped", "as spec.stop asks for"
        last, job = self.seen.time("lastActivityTime"), self.seen.job
        since = job.suspended_at if job is not None else None
        limit = self.seen.resource.spec.idle_timeout
        quiet = since and last and (since - last).total_seconds() >= limit
        if quiet or self.seen.status.get("reason") == _IDLE:
            return _IDLE, _IDLE_MESSAGE
        return "Stopped", "its Job was suspended"

    def _suspend(self, job: JobView, reason: str, message: str) -> Plan:
        event = Event("Normal", "Stopping", message, job.attempt)
        tell = WriteStatus(job.attempt, {"reason": reason, "message": message})
        return Plan((SuspendJob(job.name), event, tell))

    def deleting(self, since: datetime) -> Plan:
        """The runner has its grace to save; then the resource may go, and its objects with it."""
        seen, job = self.seen, self.seen.job
        if not seen.held:
            return Plan(done=True)
        if job is not None and not self._ends(job):
            event = Event("Normal", "Stopping", "it is being deleted", job.attempt)
            return Plan((SuspendJob(job.name), event))
        left = self.settings.termination_grace + 2 * SETTLE - self._age(since)
        wait = self._until_gone(seen.live_pods)
        if wait is not None and left > 0:
            return Plan(again=min(wait, left))
        return Plan((RemoveFinalizer(),))

    def _ends(self, job: JobView) -> bool:
        """Whether its pods are ended as it is."""
        return job.ending or job.suspended or job.deleting

    def _until_gone(self, pods: tuple[PodView, ...]) -> float | None:
        """Seconds to wait for the pods that live; None if none does, or none should any more."""
        waits = [self._grace_left(pod) for pod in pods]
        waits = [wait for wait in waits if wait > 0]
        return max(waits) if waits else None

    def _grace_left(self, pod: PodView) -> float:
        if pod.delete_at is not None:
            return SETTLE - self._age(pod.delete_at)
        job = next((job for job in self.seen.jobs if job.attempt == pod.attempt), None)
        if job is not None and job.suspended_at is not None:
            grace = self.settings.termination_grace + SETTLE
            return grace - self._age(job.suspended_at)
        return SETTLE  # Kubernetes is about to delete it

    def _age(self, since: datetime) -> float:
        return (self.now - since).total_seconds()

    # -------------------------------------------------------------- after

    def after_the_end(self) -> Plan:
        seen, job = self.seen, self.seen.job
        if seen.deleted_at is None and out_of_step(seen.status):
            return Plan((WriteStatus(_told_attempt(seen), {}),))
        expire = self._expiring()
        if seen.held:
            return Plan((self._last_event(), RemoveFinalizer(), *expire))
        if expire:
            return Plan(expire)
        if job is None or job.ending or job.deleting or seen.deleted_at is not None:
            return Plan(done=True)
        if any(pod.over and pod.delete_at is None for pod in seen.current_pods):
            # Kubernetes will mark the Job, however late, and keep the pod's log for its time.
            return Plan(done=True)
        wait = self._until_gone(seen.live_pods) if job.suspended else self._late()
        if wait is not None and wait > 0:
            return Plan(again=wait)
        if job.suspended:
            # It would stay for ever; its pod is gone, and the log with it.
            return Plan((DeleteJob(job.name),))
        if not seen.fresh:
            return Plan((Refresh(),))
        if job.had_pod and not seen.live_pods:
            return Plan(done=True)
        return Plan((DeleteJob(job.name),))

    def _expiring(self) -> tuple[Action, ...]:
        """Jobs are kept until the status tells the end, and for a time after it. What is deleted anyway is
        left out, and what is suspended: it never ends by itself."""
        if self.seen.deleted_at is not None:
            return ()
        return tuple(
            ExpireJob(job.name)
            for job in self.seen.jobs
            if not (job.expires or job.deleting or (job.suspended and not job.ending))
        )

    def _late(self) -> float:
        """Seconds that the pod of a session that is over still has to end."""
        ended = self.seen.time("completionTime")
        grace = self.settings.termination_grace + SETTLE
        return grace - (self._age(ended) if ended else 0.0)

    def _last_event(self) -> Event:
        seen = self.seen
        message = str(seen.status.get("message") or seen.status.get("reason") or "")
        return _ending(seen.phase, message, seen.attempt)

    def _end(self, phase: Phase, reason: str, message: str) -> Plan:
        changes = phase_changes(phase, reason, message)
        conditions = (*phase_conditions(phase, reason, message), *_unsaved(self.seen))
        tell = WriteStatus(self.seen.attempt, changes, conditions)
        if self.seen.held:
            return Plan((tell,))
        # Nothing is left to do after it: what is told last otherwise is told now.
        return Plan((tell, _ending(phase, message or reason, self.seen.attempt)))


def _unsaved(seen: ObservedState) -> tuple[Condition, ...]:
    """A runner that ended without a last word may have had more than it last saved."""
    saved = any(
        (one.get("type"), one.get("status")) == (_SAVED, "True")
        for one in seen.status.get("conditions") or ()
    )
    if not saved or seen.status.get("reason") == "PodEnding":
        return ()
    message = "its runner ended without a last word; what it had saved before is there"
    return (Condition(_SAVED, "Unknown", "NotTold", message),)


def _told_attempt(seen: ObservedState) -> int:
    told = seen.status.get("attempt")
    return told if isinstance(told, int) else 0


def _ending(phase: Phase, message: str, attempt: int) -> Event:
    kind: Literal["Normal", "Warning"] = "Normal"
    if phase is Phase.FAILED:
        kind = "Warning"
    return Event(kind, phase.value, message, attempt)
