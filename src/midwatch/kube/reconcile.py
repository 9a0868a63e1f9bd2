"""Plan the next actions for one session. Pure and level-triggered: the same state gives the same plan.

So a restarted operator, or a second one beside it, does the same. A plan's actions are executed in order; then the
next plan is made from the new state. Actions that cannot be undone are planned only from a fresh read.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from midwatch.kube.environment import PROVIDER_VARIABLE
from midwatch.kube.observed import (
    TRANSIENT_REASONS,
    AttemptHealth,
    JobView,
    ObservedState,
    PodView,
    attempt_health,
)
from midwatch.kube.rules import MAX_NAME, job_name
from midwatch.kube.status import (
    Condition,
    inconsistent_conditions,
    phase_changes,
    phase_conditions,
)
from midwatch.model import Json
from midwatch.session.events import Phase
from midwatch.settings import OperatorSettings

# ------------------------------------------------------------------ actions


@dataclass(frozen=True, slots=True)
class Refresh:
    """Read the resource, its Jobs and its pods again: an action that cannot be undone needs more than the cache."""


@dataclass(frozen=True, slots=True)
class ReadEvents:
    """Read the events of one object: they say why a pod does not start."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class AddFinalizer:
    """Add the finalizer, so that a deletion waits for the operator."""


@dataclass(frozen=True, slots=True)
class RemoveFinalizer:
    """Remove the finalizer, so that the resource can be deleted."""


@dataclass(frozen=True, slots=True)
class CreateJob:
    """Create the Job of an attempt, and its missing helper objects. `timeout`: seconds that are left."""

    attempt: int
    timeout: int


@dataclass(frozen=True, slots=True)
class SuspendJob:
    """Suspend a Job: its pods get SIGTERM and their grace period."""

    name: str


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Delete a Job and its pods."""

    name: str


@dataclass(frozen=True, slots=True)
class ExpireJob:
    """Have Kubernetes delete a Job, with its pod's log, `operator.job_ttl` after its end."""

    name: str


@dataclass(frozen=True)
class WriteStatus:
    """Write fields and conditions of the status, on behalf of an attempt."""

    attempt: int
    changes: Json
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """Record a Kubernetes event, once for an attempt."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    attempt: int


Action = (
    Refresh
    | ReadEvents
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
    """Actions in order.

    Attributes:
        recheck_in: Seconds after which to plan again without an event; None: not needed.
        done: Whether this session needs no more work, ever.
    """

    actions: tuple[Action, ...] = ()
    recheck_in: float | None = None
    done: bool = False


# ------------------------------------------------------------------ plans


def refusal(state: ObservedState, reason: str, message: str) -> tuple[Action, ...]:
    """Return the actions that report a session that cannot start now; none if the status has it already."""
    condition = Condition("Accepted", "False", reason, message)
    if state.phase.terminal or state.has_condition(
        "Accepted", "False", reason, message
    ):
        return ()
    changes = {} if state.attempt else phase_changes(Phase.PENDING, reason, message)
    return (
        WriteStatus(state.attempt, changes, (condition,)),
        Event("Warning", "Refused", message, state.attempt),
    )


def impossible(state: ObservedState, reason: str, message: str) -> tuple[Action, ...]:
    """Return the actions that fail a session that can never start: the wrong field is immutable."""
    if state.phase.terminal:
        return ()
    changes = phase_changes(Phase.FAILED, reason, message)
    conditions = phase_conditions(Phase.FAILED, reason, message)
    refused = Condition("Accepted", "False", reason, message)
    return (WriteStatus(state.attempt, changes, (refused, *conditions)),)


SETTLE = 15.0
"""Seconds that Kubernetes gets to mark a Job whose pod ended, or to end a pod after its grace period."""
EVENTS_AGAIN = 60.0
"""Seconds, at least, after which events are read again; the longer a pod waits, the more seldom."""
_WAITING = "waiting for its pod"
_RESTARTING = "Restarting"
_IDLE = "Idle"
_WORKSPACE_SAVED = "WorkspaceSaved"
_SILENT = "SeemsIdle"
_SILENT_MESSAGE = "its runner has reported nothing for longer than spec.idleTimeout"
_IDLE_MESSAGE = (
    "there was no activity within spec.idleTimeout, and it did not stop itself"
)
_ACCEPTED = Condition("Accepted", "True", "Accepted", "")


def plan(state: ObservedState, settings: OperatorSettings, now: datetime) -> Plan:
    """Return what to do now, and when to plan again."""
    case = _Case(state, settings, now)
    if state.phase.terminal:
        return case.finished()
    if state.deleted_at is not None:
        return case.deleting(state.deleted_at)
    job = state.job
    if state.resource.spec.stop or (job is not None and job.suspended):
        return case.stopping()
    if state.attempt == 0:
        return case.starting()
    return case.following()


@dataclass(frozen=True)
class _Case:
    """The planner of one state, by stage of the session."""

    state: ObservedState
    settings: OperatorSettings
    now: datetime

    # -------------------------------------------------------------- start

    def starting(self) -> Plan:
        state = self.state
        if len(state.resource.name) > MAX_NAME:
            message = f"its name is longer than {MAX_NAME} characters"
            return self._end(Phase.FAILED, "NameTooLong", f"{message} (shorten it)")
        if refused := self._refused():
            return Plan(refusal(state, *refused))
        if not state.has_finalizer:
            return Plan((AddFinalizer(),))
        if not state.current:
            return Plan((Refresh(),))
        if (wait := self._until_gone(state.live_pods)) is not None:
            return Plan(recheck_in=wait)
        return self._attempt(1, _WAITING)

    def _refused(self) -> tuple[str, str] | None:
        """Return the reason and message of a wrong spec or wrong operator settings; None if both are good."""
        if self.state.refused is not None:
            return "InvalidSpec", self.state.refused.one_line()
        if self.settings.image is None:
            return "NoImage", "the operator has no image to run (set operator.image)"
        spec = self.state.resource.spec
        key = spec.api_key_secret or self.settings.api_key_secret
        own_key = (
            self.settings.variables.get(PROVIDER_VARIABLE, "anthropic") == "anthropic"
        )
        if key is None and own_key and not spec.environment.secrets:
            hint = "set spec.apiKeySecret, or operator.api_key_secret"
            return "NoApiKey", f"no secret holds a key of the Claude API ({hint})"
        if self.settings.content_url and self.settings.content_key_file is None:
            return "NoContentKey", "operator.content_url needs content_key_file"
        if spec.resume_from and not self.settings.content_url:
            hint = "set operator.content_url"
            return "NoContentProxy", f"spec.resumeFrom needs the content proxy ({hint})"
        return None

    def _attempt(self, number: int, message: str) -> Plan:
        """Start an attempt. The Job is created before the status is written: an operator that restarts finds the Job."""
        create = CreateJob(number, self._time_left())
        return Plan((create, *self._publish_attempt(number, message)))

    def _publish_attempt(self, number: int, message: str) -> tuple[Action, ...]:
        """Report an attempt whose Job exists."""
        name = job_name(self.state.resource.name, number)
        reason = "Restarted" if number > 1 else "JobCreated"
        changes = phase_changes(Phase.CREATING, reason, message)
        changes |= {"jobName": name, "podName": None}
        conditions = phase_conditions(Phase.CREATING, reason, message)
        conditions += _unsaved(self.state)
        return (
            Event("Normal", reason, f"{name}: {message}", number),
            WriteStatus(number, changes, (_ACCEPTED, *conditions)),
        )

    def _time_left(self) -> int:
        """Return the seconds that are left of spec.timeout since the first attempt; may be negative."""
        started = self.state.time("startTime")
        spent = (self.now - started).total_seconds() if started else 0.0
        return int(self.state.resource.spec.timeout - max(0.0, spent))

    # -------------------------------------------------------------- run

    def following(self) -> Plan:
        state = self.state
        if state.refused is not None:
            refused = refusal(state, "InvalidSpec", state.refused.one_line())
            if refused:
                return Plan(refused)
        health = self._health()
        if (wait := self._until_events(health)) is not None and wait <= 0:
            return Plan((ReadEvents(*health.about),)) if health.about else Plan()
        if health.outcome in ("lost", "failed"):
            lost = health.outcome == "lost"
            next_plan = self._lost(health) if lost else self._failed(health)
            # Waiting needs no fresh read.
            return (
                next_plan
                if state.fresh or not next_plan.actions
                else Plan((Refresh(),))
            )
        if (state.status.get("attempt") or 0) < state.attempt:
            return Plan(self._publish_attempt(state.attempt, _WAITING))
        if health.outcome == "waiting" and state.phase is not Phase.RUNNING:
            reported = state.status.get("reason"), state.status.get("message")
            changed = reported[0] != health.reason or (
                wait is not None and reported[1] != health.message
            )
            if changed:
                return self._report_waiting(health, new=reported[0] != health.reason)
            if wait is not None:
                return Plan(recheck_in=min(wait, health.recheck_in or wait))
        elif (
            state.phase is Phase.CREATING
            and state.status.get("reason") in TRANSIENT_REASONS
        ):
            return Plan(
                self._write_phase(Phase.CREATING, "PodStarting", "its pod starts")
            )
        return self._check_idle(health)

    def _health(self) -> AttemptHealth:
        """Return the health of the latest attempt, with what the events say of it."""
        state = self.state
        waited = state.status.get("reason") in TRANSIENT_REASONS
        health = attempt_health(
            state.job,
            state.current_pods,
            self.settings,
            self.now,
            ran=state.ran,
            last_known=str(state.status.get("message") or "") if waited else "",
        )
        return health.explained(state.words)

    def _until_events(self, health: AttemptHealth) -> float | None:
        """Return the seconds until the events that explain a delay are read (again); None if none do."""
        if health.about is None or health.outcome not in ("waiting", "failed"):
            return None
        words = self.state.words
        if words is None or (words.kind, words.name) != health.about:
            return 0.0
        if health.outcome == "failed":
            return None
        read = self._age(words.at)
        waited_then = self._age(health.since) - read if health.since else 0.0
        return max(EVENTS_AGAIN, waited_then / 2) - read

    def _report_waiting(self, health: AttemptHealth, *, new: bool) -> Plan:
        reason, message = health.reason, health.message
        event = Event("Warning", reason, message, self.state.attempt)
        published = self._write_phase(Phase.CREATING, reason, message)
        return Plan((event, *published) if new else published, health.recheck_in)

    def _write_phase(
        self, phase: Phase, reason: str, message: str
    ) -> tuple[Action, ...]:
        changes = phase_changes(phase, reason, message)
        conditions = phase_conditions(phase, reason, message)
        return (WriteStatus(self.state.attempt, changes, conditions),)

    def _check_idle(self, health: AttemptHealth) -> Plan:
        state, recheck_in = self.state, health.recheck_in
        last, job = state.time("lastActivityTime"), state.job
        if state.phase is not Phase.RUNNING or last is None:
            return Plan(recheck_in=recheck_in)
        if job is None or job.ending:
            return Plan(recheck_in=recheck_in)
        limit = state.resource.spec.idle_timeout + self.settings.idle_margin
        left = limit - (self.now - last).total_seconds()
        if left > 0:
            return Plan(
                recheck_in=left if recheck_in is None else min(left, recheck_in)
            )
        if state.status.get("reason") == "PermissionNeeded":  # it waits for a person
            return Plan(recheck_in=recheck_in)
        if not state.fresh:
            return Plan((Refresh(),))
        # After an outage a working runner gets time to report before it is stopped.
        since = state.since("Ready", _SILENT)
        if since is None:
            ready = Condition("Ready", "False", _SILENT, _SILENT_MESSAGE)
            return Plan((WriteStatus(job.attempt, {}, (ready,)),))
        if (left := self.settings.idle_margin - self._age(since)) > 0:
            return Plan(recheck_in=left)
        return self._suspend(job, _IDLE, _IDLE_MESSAGE)

    # -------------------------------------------------------------- lost and failed

    def _lost(self, health: AttemptHealth) -> Plan:
        state, message = self.state, health.message
        if (unexplained := self._until_explained()) > 0:
            return Plan(recheck_in=unexplained)
        if state.status.get("reason") == _RESTARTING:
            message = str(state.status.get("message") or message)
        restarts = state.attempt
        if restarts > state.resource.spec.max_restarts:
            count = {1: "no restarts", 2: "after 1 restart"}.get(
                restarts, f"after {restarts - 1} restarts"
            )
            why = f"{message} ({count}; spec.maxRestarts allows no more)"
            return self._failed(AttemptHealth("failed", health.reason, why))
        if self._time_left() < 1:
            why = f"{message}, and spec.timeout is over"
            return self._failed(AttemptHealth("failed", "TimedOut", why))
        job = state.job
        if job is not None and not job.over:
            return self._delete_lost_job(job, message)
        if (wait := self._until_gone(state.live_pods)) is not None:
            return Plan(recheck_in=wait)
        published = (
            f"restart {restarts} of {state.resource.spec.max_restarts}: {message}"
        )
        return self._attempt(state.attempt + 1, published)

    def _until_explained(self) -> float:
        """Return the seconds to wait for the Job's own reason: at a deadline its pods end first, by a signal."""
        job = self.state.job
        return 0.0 if job is None or job.ending else self._until_marked()

    def _delete_lost_job(self, job: JobView, message: str) -> Plan:
        """Wait for a Job whose pod is lost to end by itself, then delete it."""
        if (wait := self._until_marked()) > 0:
            return Plan(recheck_in=wait)
        write = WriteStatus(job.attempt, {"reason": _RESTARTING, "message": message})
        return Plan((write, DeleteJob(job.name)))

    def _until_marked(self) -> float:
        """Return the seconds that Kubernetes still has to notice that the pods ended."""
        pods = self.state.current_pods
        ended = [pod.ended_at for pod in pods if pod.over and pod.ended_at]
        if not ended or len(ended) < len(pods):
            return 0.0
        return SETTLE - (self.now - max(ended)).total_seconds()

    def _failed(self, health: AttemptHealth) -> Plan:
        job, pods = self.state.job, self.state.current_pods
        ends_itself = bool(pods) and all(pod.over for pod in pods)
        delete: tuple[Action, ...] = ()
        if job is not None and not job.ending and not ends_itself:
            delete = (DeleteJob(job.name),)
        ended = self._end(Phase.FAILED, health.reason, health.message)
        return Plan((*delete, *ended.actions))

    # -------------------------------------------------------------- stopping

    def stopping(self) -> Plan:
        state, job = self.state, self.state.job
        if job is not None and not self._is_ending(job):
            return self._suspend(
                job, "Stopping", "its pod gets its grace period to save"
            )
        if (wait := self._until_gone(state.live_pods)) is not None:
            return Plan(recheck_in=wait)
        if not state.fresh:
            return Plan((Refresh(),))
        if job is not None and not job.suspended:
            health = self._health()
            if health.outcome == "failed":  # before it was stopped
                return self._failed(health)
        return self._end(Phase.STOPPED, *self._why_stopped())

    def _why_stopped(self) -> tuple[str, str]:
        if self.state.resource.spec.stop:
            return "Stopped", "spec.stop is set"
        last, job = self.state.time("lastActivityTime"), self.state.job
        since = job.suspended_at if job is not None else None
        limit = self.state.resource.spec.idle_timeout
        quiet = since and last and (since - last).total_seconds() >= limit
        if quiet or self.state.status.get("reason") == _IDLE:
            return _IDLE, _IDLE_MESSAGE
        return "Stopped", "its Job was suspended"

    def _suspend(self, job: JobView, reason: str, message: str) -> Plan:
        event = Event("Normal", "Stopping", message, job.attempt)
        write = WriteStatus(job.attempt, {"reason": reason, "message": message})
        return Plan((SuspendJob(job.name), event, write))

    def deleting(self, since: datetime) -> Plan:
        """Let the runner save within its grace period, then remove the finalizer; the objects go with the resource."""
        state, job = self.state, self.state.job
        if not state.has_finalizer:
            return Plan(done=True)
        if job is not None and not self._is_ending(job):
            event = Event("Normal", "Stopping", "it is being deleted", job.attempt)
            return Plan((SuspendJob(job.name), event))
        left = self.settings.termination_grace + 2 * SETTLE - self._age(since)
        wait = self._until_gone(state.live_pods)
        if wait is not None and left > 0:
            return Plan(recheck_in=min(wait, left))
        return Plan((RemoveFinalizer(),))

    def _is_ending(self, job: JobView) -> bool:
        """Return whether the pods of a Job are already being terminated."""
        return job.ending or job.suspended or job.deleting

    def _until_gone(self, pods: tuple[PodView, ...]) -> float | None:
        """Return the seconds to wait for pods to end; None if none runs, or if all are overdue."""
        waits = [self._grace_left(pod) for pod in pods]
        waits = [wait for wait in waits if wait > 0]
        return max(waits) if waits else None

    def _grace_left(self, pod: PodView) -> float:
        if pod.delete_at is not None:
            return SETTLE - self._age(pod.delete_at)
        job = next((job for job in self.state.jobs if job.attempt == pod.attempt), None)
        if job is not None and job.suspended_at is not None:
            grace = self.settings.termination_grace + SETTLE
            return grace - self._age(job.suspended_at)
        return SETTLE  # Kubernetes is about to delete it

    def _age(self, since: datetime) -> float:
        return (self.now - since).total_seconds()

    # -------------------------------------------------------------- end

    def finished(self) -> Plan:
        state, job = self.state, self.state.job
        if state.deleted_at is None and inconsistent_conditions(state.status):
            return Plan((WriteStatus(_status_attempt(state), {}),))
        expire = self._expire_jobs()
        if state.has_finalizer:
            return Plan((self._last_event(), RemoveFinalizer(), *expire))
        if expire:
            return Plan(expire)
        if job is None or job.ending or job.deleting or state.deleted_at is not None:
            return Plan(done=True)
        if any(pod.over and pod.delete_at is None for pod in state.current_pods):
            # Kubernetes marks the Job, however late, and keeps the pod's log until it expires.
            return Plan(done=True)
        wait = (
            self._until_gone(state.live_pods)
            if job.suspended
            else self._until_overdue()
        )
        if wait is not None and wait > 0:
            return Plan(recheck_in=wait)
        if job.suspended:
            # A suspended Job never expires; its pod is gone, and the log with it.
            return Plan((DeleteJob(job.name),))
        if not state.fresh:
            return Plan((Refresh(),))
        if job.had_pod and not state.live_pods:
            return Plan(done=True)
        return Plan((DeleteJob(job.name),))

    def _expire_jobs(self) -> tuple[Action, ...]:
        """Return the actions that expire Jobs, once the status has the end.

        Jobs that are being deleted are omitted, and suspended ones, which never end by themselves.
        """
        if self.state.deleted_at is not None:
            return ()
        return tuple(
            ExpireJob(job.name)
            for job in self.state.jobs
            if not (job.expires or job.deleting or (job.suspended and not job.ending))
        )

    def _until_overdue(self) -> float:
        """Return the seconds that the pod of an ended session still has to end."""
        ended = self.state.time("completionTime")
        grace = self.settings.termination_grace + SETTLE
        return grace - (self._age(ended) if ended else 0.0)

    def _last_event(self) -> Event:
        state = self.state
        message = str(state.status.get("message") or state.status.get("reason") or "")
        return _end_event(state.phase, message, state.attempt)

    def _end(self, phase: Phase, reason: str, message: str) -> Plan:
        changes = phase_changes(phase, reason, message)
        conditions = (*phase_conditions(phase, reason, message), *_unsaved(self.state))
        write = WriteStatus(self.state.attempt, changes, conditions)
        if self.state.has_finalizer:
            return Plan((write,))
        # Without the finalizer no further plan follows, so the last event is recorded now.
        return Plan((write, _end_event(phase, message or reason, self.state.attempt)))


def _unsaved(state: ObservedState) -> tuple[Condition, ...]:
    """Return `WorkspaceSaved` Unknown for a runner that did not report its end: it may have had unsaved changes."""
    saved = any(
        (one.get("type"), one.get("status")) == (_WORKSPACE_SAVED, "True")
        for one in state.status.get("conditions") or ()
    )
    if not saved or state.status.get("reason") == "PodEnding":
        return ()
    message = "its runner ended without a final report; earlier saves are kept"
    return (Condition(_WORKSPACE_SAVED, "Unknown", "NotReported", message),)


def _status_attempt(state: ObservedState) -> int:
    published = state.status.get("attempt")
    return published if isinstance(published, int) else 0


def _end_event(phase: Phase, message: str, attempt: int) -> Event:
    kind: Literal["Normal", "Warning"] = "Normal"
    if phase is Phase.FAILED:
        kind = "Warning"
    return Event(kind, phase.value, message, attempt)
