"""The session of a pod: `pod_runner` assembles a `SessionRunner` from the pod's task.

`runner_task` reads the environment, `runner_workspace` keeps the folders in sync with the content proxy,
`status_writer` maps the end to phase and exit code, and `ResourceStatus` writes it to the resource.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus

from midwatch.cluster.errors import ClusterRefused, ResourceGone
from midwatch.errors import MidwatchError
from midwatch.kube.environment import STATUS_NOT_WRITTEN
from midwatch.kube.errors import WriterOutdated
from midwatch.kube.runner_task import Identity, PodTask, next_prompt
from midwatch.kube.runner_workspace import (
    PodPlaces,
    PodWorkspace,
    Sync,
    SyncSupervisor,
)
from midwatch.kube.status import Condition, merged, repository_changes, timestamp
from midwatch.kube.status_writer import (
    COMPLETED_OR_STOPPED,
    HINTS,
    End,
    ResourceRecords,
    StatusCluster,
    pod_end,
)
from midwatch.lifecycle import Clock, StopEvent, SystemClock, first
from midwatch.model import Json
from midwatch.redaction import Redactor
from midwatch.session.errors import FolderUnusable
from midwatch.session.events import Event, Phase
from midwatch.session.log import read_events
from midwatch.session.options import SessionOptions
from midwatch.session.records import FolderRecords, SessionSpec
from midwatch.session.runner import (
    Deadline,
    EventSink,
    RunEnd,
    RunnerDependencies,
    SessionRunner,
    SessionTask,
    ShutdownBudget,
    StepTimeouts,
)
from midwatch.settings import SessionSettings
from midwatch.workspace.environment import GitEnvironment
from midwatch.workspace.inspect import RepoState
from midwatch.workspace.push import PushResult
from midwatch.workspace.setup import WorkspaceOptions

FIRST_WRITE = 10.0
"""Seconds to wait for the first write: it shows whether this attempt still owns the session."""
PUSH_AT_LEAST, PUSH_AT_MOST = 50.0, 300.0
"""Seconds for the push of all repositories: what is left of the session's timeout, within these limits."""
INSPECT_WITHIN, SAVE_WITHIN, REPORT_WITHIN = 10.0, 40.0, 60.0
"""Seconds for each step after the session. With the end of the session itself and PUSH_AT_LEAST they fit into
`operator.deadline_margin`, so that the Job's deadline does not cut off the final status. Once the pod is ending,
`ShutdownBudget` replaces them."""
OUTAGE = 900.0
"""Seconds to retry while the content proxy or the API server is down at the end, if the session has that much time left."""


@dataclass(frozen=True, slots=True)
class Dependencies:
    """The dependencies of a pod's runner.

    Attributes:
        cluster: The API server.
        sync: The sync with the content proxy; None without one.
        options: The session's options from the settings; the task's override them.
        environment: The environment of git, from the settings.
        events: The pod's log.
        clock: The source of time.
        settings: The settings that decide on permissions.
    """

    cluster: StatusCluster
    sync: Sync | None
    options: SessionOptions
    environment: GitEnvironment
    events: EventSink
    clock: Clock = SystemClock()
    settings: SessionSettings = field(default_factory=SessionSettings)


def pod_runner(task: PodTask, dependencies: Dependencies) -> SessionRunner[int]:
    """Return the runner of a pod's session; its `run` returns the exit code of the pod."""
    given, clock = task.environment, dependencies.clock
    places = PodPlaces(given.workspace_path, given.state_path, given.cache_path)
    redactor = Redactor(task.secrets)
    budget = ShutdownBudget.within(given.termination_grace)
    deadline = Deadline(clock, given.timeout)
    stop = StopEvent(clock)
    records = _records(task, dependencies, stop)

    def note(text: str) -> None:
        dependencies.events.note(redactor.text(text))

    def report(condition: Condition) -> None:
        message = redactor.text(condition.message)
        records.report({}, [replace(condition, message=message)])

    supervisor = SyncSupervisor(
        dependencies.sync, clock, report, budget.wind_up, note=note, on_lost=stop.set
    )
    lifetime = Lifetime(stop, deadline, budget)
    status = ResourceStatus(
        task.identity, dependencies, records, supervisor, lifetime, redactor
    )
    return SessionRunner(
        _session_task(task, places, dependencies, redactor),
        RunnerDependencies(
            workspace=PodWorkspace(
                task,
                places,
                _workspace_options(task, places, dependencies.environment),
                supervisor,
                deadline,
                status.report_step,
                note,
                save_within=lambda: _within(SAVE_WITHIN, deadline),
            ),
            status=status,
            events=dependencies.events,
            stops=status,
            stop=stop,
            deadline=deadline,
            timeouts=StepTimeouts(PUSH_AT_LEAST, PUSH_AT_MOST, INSPECT_WITHIN),
            budget=budget,
            clock=clock,
        ),
    )


def _records(
    task: PodTask, dependencies: Dependencies, stop: StopEvent
) -> ResourceRecords:
    return ResourceRecords(
        dependencies.cluster,
        task.identity.target,
        FolderRecords(task.environment.state_path),
        interval=task.environment.status_interval,
        clock=dependencies.clock,
        hints=HINTS,
        on_lost=stop.set,
    )


def _session_task(
    task: PodTask, places: PodPlaces, dependencies: Dependencies, redactor: Redactor
) -> SessionTask:
    given = task.environment
    return SessionTask(
        id=task.identity.name,
        prompt=lambda: next_prompt(_earlier_events(places), task.prompt),
        options=_options(task, dependencies.options),
        settings=dependencies.settings,
        access=task.access,
        contained=True,
        interactive=given.interactive,
        push=given.auto_push_on_complete,
        forked_from=given.resume_from or None,
        redactor=redactor,
    )


def _earlier_events(places: PodPlaces) -> list[Event]:
    """Return the events of earlier pods; none from an outbox that cannot be read, which ends the session."""
    try:
        return list(read_events(places.folder.outbox))
    except FolderUnusable:
        return []


def _options(task: PodTask, options: SessionOptions) -> SessionOptions:
    """Return the settings' options with those of the resource."""
    given = task.environment
    limits = replace(
        options.limits,
        idle=given.idle_timeout,
        mail_idle=given.idle_timeout,
        max_turns=given.max_turns or options.limits.max_turns,
        max_usd=given.max_budget_usd or options.limits.max_usd,
    )
    return replace(
        options,
        model=given.model or options.model,
        effort=given.effort or options.effort,
        trust_repository=given.trust_repositories or options.trust_repository,
        variables={**options.variables, **task.variables.of_the_program},
        limits=limits,
    )


def _workspace_options(
    task: PodTask, places: PodPlaces, environment: GitEnvironment
) -> WorkspaceOptions:
    """Return the options of the workspace. The task's token precedes those of the settings."""
    credentials = (*task.credentials, *environment.credentials)
    return WorkspaceOptions(
        session=task.identity.name,
        cache=places.cache,
        state=places.repositories,
        environment=replace(environment, home=places.home, credentials=credentials),
    )


def _within(least: float, deadline: Deadline) -> float:
    """Return the seconds for a step that saves work: at least `least`, and up to OUTAGE while the session has time left."""
    return max(least, min(OUTAGE, deadline.left()))


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long the pod's session may run: its stop, its timeout, and the seconds for each step once the pod is ending."""

    stop: StopEvent
    deadline: Deadline
    budget: ShutdownBudget


class ResourceStatus:
    """The status of a session in its resource. Satisfies `StatusSink` and `StopPolicy`.

    The resource also shows whether this attempt still owns the session, and whether a SIGTERM stops the session
    (`spec.stop`, or the resource is being deleted) or only the pod (a drained node, an eviction).
    """

    def __init__(
        self,
        identity: Identity,
        dependencies: Dependencies,
        records: ResourceRecords,
        supervisor: SyncSupervisor,
        lifetime: Lifetime,
        redactor: Redactor,
    ) -> None:
        self.records = records
        self._identity = identity
        self._cluster = dependencies.cluster
        self._clock = dependencies.clock
        self._events = dependencies.events
        self._supervisor = supervisor
        self._lifetime = lifetime
        self._redactor = redactor
        self._body: Json | None = None
        self._outdated: MidwatchError | None = None

    async def __aenter__(self) -> None:
        await self.records.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        await self.records.__aexit__(*error)

    async def begin(self, spec: SessionSpec) -> None:
        """Report the start. The folder gets `spec` when the session opens, after it is restored."""
        now = timestamp(self._clock.now())
        names = {"jobName": self._identity.job, "podName": self._identity.pod}
        changes: Json = {"startTime": now, "lastActivityTime": now}
        changes |= {name: value for name, value in names.items() if value}
        self.records.report_phase(Phase.CREATING, "Starting", changes=changes)
        await self.records.settled(FIRST_WRITE)

    def report_step(self, reason: str, message: str = "") -> None:
        """Report a step of the preparation."""
        self.records.report_phase(Phase.CREATING, reason, message)

    async def owned(self) -> bool:
        """Read the resource and return whether this attempt still owns it.

        If the server does not answer, it does; if it does not know the token any more, which ends with its pod, it
        does not.
        """
        identity, self._body = self._identity, None
        try:
            async with asyncio.timeout(self._lifetime.budget.ask):
                body = await self._cluster.get_session(
                    identity.namespace, identity.name
                )
            merged(body, identity.target.writer, {}, (), self._clock.now())
            self._body = body
        except (ResourceGone, WriterOutdated) as error:
            self._outdated = error
        except ClusterRefused as error:
            if error.status == HTTPStatus.UNAUTHORIZED:
                self._outdated = error
        except (MidwatchError, TimeoutError):
            pass
        return self._superseded is None

    def ends_session(self) -> bool:
        body = self._body or {}
        stop = body.get("spec", {}).get("stop")
        return bool(stop or body.get("metadata", {}).get("deletionTimestamp"))

    async def save_repositories(
        self, states: Sequence[RepoState], pushes: Sequence[PushResult]
    ) -> None:
        changes = repository_changes(states, pushes)
        if changes:
            self.records.report({"repos": self._redactor.value(changes)})

    async def finish(self, end: RunEnd) -> int:
        """Write the end and return the exit code. If another attempt has taken over, nothing is written."""
        records, outcome = self.records, pod_end(end)
        written: bool | None = False
        if self._superseded is None:
            self._report_end(outcome)
            written = await first(
                records.settled(_within(REPORT_WITHIN, self._lifetime.deadline)),
                self._lifetime.stop.wait(),
                grace=self._lifetime.budget.report,
            )
        if self._superseded is not None:
            self._note(f"this attempt is over: {self._superseded.one_line()}")
            return COMPLETED_OR_STOPPED
        if written or outcome.phase is None:
            return replace(outcome, phase=records.overruled or outcome.phase).exit_code
        why = records.problem.one_line() if records.problem else "no answer"
        self._note(f"the final status could not be written: {why}")
        return STATUS_NOT_WRITTEN

    def _note(self, text: str) -> None:
        self._events.note(self._redactor.text(text))

    def _report_end(self, end: End) -> None:
        end = replace(end, message=self._redactor.text(end.message))
        if end.phase is None:
            condition = Condition("Ready", "False", end.reason, end.message)
            changes = {"reason": end.reason, "message": end.message}
            self.records.report(changes, [condition], urgent=True)
        else:
            self.records.report_phase(end.phase, end.reason, end.message)
        self._note(str(end))

    @property
    def _superseded(self) -> MidwatchError | None:
        """The error that shows that another attempt owns the session; None while this one does."""
        return self.records.superseded or self._outdated or self._supervisor.lost
