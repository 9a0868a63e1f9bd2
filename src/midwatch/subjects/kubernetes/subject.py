"""The class KubernetesSubject: observations of a cluster from what its watches know, and evidence from its API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar

from midwatch.cluster.connection import Connection
from midwatch.errors import MidwatchError, ObservationFailed, SettingsError
from midwatch.lifecycle import Clock, SystemClock
from midwatch.model import Fact, Invariant, Json, Observation, Signal, Ticket
from midwatch.subjects.actionable import (
    ActionCheck,
    ActionKind,
    ActionResult,
    ActionSettings,
    Findings,
    ProposedAction,
)
from midwatch.subjects.base import EvidenceSource, configure
from midwatch.subjects.kubernetes import workload_problems as problems
from midwatch.subjects.kubernetes.check_view import View
from midwatch.subjects.kubernetes.checks import CHECKS
from midwatch.subjects.kubernetes.cluster_reader import ClusterReader
from midwatch.subjects.kubernetes.cluster_watch import (
    DAEMON_SETS,
    DEPLOYMENTS,
    INGRESSES,
    KINDS,
    NODES,
    PODS,
    STATEFUL_SETS,
    ClusterWatch,
    Doubt,
    WatchedKind,
)
from midwatch.subjects.kubernetes.evidence import EvidenceReader
from midwatch.subjects.kubernetes.ingress_certificates import IngressCertificates
from midwatch.subjects.kubernetes.kubernetes_tools import KubernetesTools
from midwatch.subjects.kubernetes.object_fields import Ref
from midwatch.subjects.kubernetes.rollout_changes import RolloutChanges
from midwatch.subjects.kubernetes.settings import (
    CLUSTER_INVARIANTS,
    CONTAINER_CONFIG,
    CRASH_LOOP,
    IMAGE_PULL,
    INGRESS_CERTIFICATE,
    INVARIANTS,
    NEED_ALL_LABELS,
    OOM_KILLED,
    POD_PENDING,
    PODS_UNREADY,
    UNSCHEDULABLE,
    WEBHOOK_ENDPOINTS,
    KubernetesSettings,
)
from midwatch.subjects.kubernetes.storage_classes import StorageClasses
from midwatch.subjects.kubernetes.workload_control import WorkloadActions
from midwatch.subjects.kubernetes.workload_problems import Problem
from midwatch.subjects.kubernetes.workload_proposals import KINDS as ACTION_KINDS
from midwatch.subjects.kubernetes.workload_proposals import propose
from midwatch.subjects.kubernetes.workloads import WorkloadFinder, component
from midwatch.subjects.tools import Tool
from midwatch.text import ticket_line

_SHARE_OF_TIMEOUT = 0.7  # the rest is for owners that have to be asked for
_SHARE_OF_HANDSHAKES = 0.15
_SHARE_OF_CHANGES = 0.1
_MOST_BACKGROUND = 300
_MOST_REMEMBERED = 500
_OF_PODS = (
    CRASH_LOOP,
    OOM_KILLED,
    IMAGE_PULL,
    CONTAINER_CONFIG,
    UNSCHEDULABLE,
    POD_PENDING,
    PODS_UNREADY,
)


class KubernetesSubject:
    """The workloads of a cluster, or of some namespaces of it."""

    kind: ClassVar[str] = "kubernetes"
    settings_model: ClassVar[type[KubernetesSettings]] = KubernetesSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS + CLUSTER_INVARIANTS

    def __init__(
        self, settings: KubernetesSettings, clock: Clock | None = None
    ) -> None:
        self.settings = settings
        self.name, self.timeout = settings.name, settings.timeout
        self.clock = clock or SystemClock()
        self._path = f"subjects.{settings.name}"
        self.invariants = configure(
            _invariants(settings), settings.invariants, self._path
        )
        self._certificates = _certificates(self, self._path)
        self._connection: Connection | None = None
        self._reader = ClusterReader(self.connection)
        self._watch: ClusterWatch | None = None
        self._finder: WorkloadFinder | None = None
        self._classes: StorageClasses | None = None
        self._changes = RolloutChanges(self._reader, settings.exclude_namespaces)

    @property
    def secrets(self) -> Sequence[str]:
        return self._connection.secrets if self._connection else ()

    def connection(self) -> Connection:
        """Return the connection to the API server, which is made once. Raises ObservationFailed."""
        if self._connection is None:
            settings = self.settings
            if find_spec("croniter") is None:
                raise ObservationFailed(
                    "the extra kubernetes is not installed: there is no croniter",
                    hint="pip install 'midwatch[kubernetes]'",
                )
            try:
                self._connection = Connection.connect(
                    settings.kubeconfig,
                    settings.context,
                    max(1.0, settings.timeout / 2),
                    clock=self.clock,
                    setting=f"{self._path}.kubeconfig",
                )
            except SettingsError as error:
                raise ObservationFailed(error.message, hint=error.hint) from error
        return self._connection

    async def observe(self, previous: Json) -> Observation:
        """Observe the cluster: the first time, once everything is listed. Raises ObservationFailed when nothing is current."""
        watch, finder = self._started()
        await watch.start()
        await watch.settled(self.timeout * _SHARE_OF_TIMEOUT)
        doubts = watch.doubts()
        if len(doubts) == len(watch.collections):
            raise _unobservable(doubts)
        now = self.clock.now().timestamp()
        assert self._classes is not None
        await self._classes.read(watch)
        found = _Checked()
        self._check_pods(watch, now, found)
        view = View(watch, now, self._classes.waits_for_consumer, self._certificates)
        shown = await self._examine(watch, previous)
        enabled = {one.id: one for one in self.invariants}
        for check in CHECKS:
            wanted = [one.id for one in check.invariants if one.id in enabled]
            if wanted:
                self._take(watch, found, wanted, check.needs, lambda: check.run(view))
        placed = await self._placed(finder, found)
        signals, ignored = problems.signals(
            placed, enabled, _idle(watch, finder, placed)
        )
        changes = await self._changes.read(
            watch, self.clock.now(), self.timeout * _SHARE_OF_CHANGES
        )
        state = _State(previous)
        signals += state.settling(signals, watch, finder, now, self.settings.settle)
        signals += state.cleared(signals, found.partly)
        return Observation(
            signals=tuple(signals),
            covered=frozenset(
                id_
                for id_ in enabled
                if id_ not in found.unavailable and id_ not in found.unsupported
            ),
            unavailable=found.unavailable,
            state={**state.next(signals, now, found), **_seen(self._certificates)},
            background=_background(watch),
            unsupported=found.unsupported,
            ignored=ignored,
            configuration=shown,
            changes=changes,
        )

    async def _examine(self, watch: ClusterWatch, previous: Json) -> dict[str, Fact]:
        """Examine the certificates of ingresses that are due, and return those that are known."""
        certificates = self._certificates
        if certificates is None:
            return {}
        certificates.restore(previous.get("certificates"))
        if watch.doubt(INGRESSES) is None:
            excluded = set(self.settings.exclude_namespaces)
            wanted = [
                one
                for one in watch.all(INGRESSES)
                if one.namespace not in excluded and not one.deleting
            ]
            await certificates.examine(wanted, self.timeout * _SHARE_OF_HANDSHAKES)
        return certificates.shown()

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        reader = EvidenceReader(self._reader, tickets, self.settings.timeout)
        found = reader.sources(self.settings.shown)
        if self._certificates is not None:
            found += self._certificates.sources(tickets, self.settings.timeout)
        return found

    def tools(self) -> Sequence[Tool]:
        limit = self.settings.timeout
        return KubernetesTools(self._reader, self.settings, limit).tools()

    # -------------------------------------------------- approved actions

    action_kinds: ClassVar[Sequence[ActionKind]] = ACTION_KINDS

    @property
    def allowed_actions(self) -> Sequence[str]:
        return tuple(self.settings.actions.allow)

    @property
    def action_settings(self) -> ActionSettings:
        return self.settings.actions

    def propose_actions(self, findings: Findings) -> Sequence[ProposedAction]:
        return tuple(propose(findings, self.settings))

    async def check_action(self, action: ProposedAction) -> ActionCheck:
        return await self._actions().check(action)

    async def run_action(self, action: ProposedAction) -> ActionResult:
        return await self._actions().run(action)

    async def probe_actions(self) -> str:
        return await self._actions().probe()

    def _actions(self) -> WorkloadActions:
        return WorkloadActions(self.settings, self.clock)

    async def close(self) -> None:
        if self._watch is not None:
            await self._watch.close()
        if self._connection is not None:
            await self._connection.close()
        if self._certificates is not None:
            await self._certificates.close()
        self._watch = self._connection = None

    def _started(self) -> tuple[ClusterWatch, WorkloadFinder]:
        if self._watch is None or self._finder is None:
            settings, connection = self.settings, self.connection()
            self._watch = ClusterWatch(
                connection,
                [one for one in KINDS if one.namespaced or settings.cluster_objects],
                settings.namespaces,
                settings.selector,
                stale_after=settings.stale_after,
                request_timeout=max(1.0, settings.timeout / 2),
                clock=self.clock,
            )
            self._finder = WorkloadFinder(connection, self._watch)
            self._classes = StorageClasses(connection)
        return self._watch, self._finder

    def _check_pods(self, watch: ClusterWatch, now: float, found: _Checked) -> None:
        enabled = {one.id for one in self.invariants}
        wanted = [one.id for one in _OF_PODS if one.id in enabled]
        settle, window = self.settings.settle, self.settings.oom_window

        def run() -> Iterable[Problem]:
            for pod in watch.all(PODS):
                yield from problems.pod_problems(pod, now, settle, window)

        if wanted:
            self._take(watch, found, wanted, (PODS,), run)

    def _take(
        self,
        watch: ClusterWatch,
        found: _Checked,
        wanted: Sequence[str],
        needs: Sequence[WatchedKind[Any]],
        run: Callable[[], Iterable[Problem]],
    ) -> None:
        """Run a check on what is current, and record what of its invariants is unknown."""
        doubt = next(filter(None, map(watch.doubt, needs)), None)
        current: set[str] | None = None
        if doubt is not None:
            current = watch.current_namespaces(needs)
            for id_ in wanted:
                found.doubt(id_, doubt)
                found.partly[id_] = current
        if current is not None and not current:
            return
        excluded = set(self.settings.exclude_namespaces)
        found.problems += [
            one
            for one in run()
            if one.invariant.id in wanted
            and one.about.namespace not in excluded
            and (current is None or one.about.namespace in current)
        ]

    async def _placed(
        self, finder: WorkloadFinder, found: _Checked
    ) -> list[tuple[Ref, Problem]]:
        """Return the problems with their workloads; of one without, its invariant is unknown."""
        failed = await finder.look_up(one.about for one in found.problems)
        placed = []
        for one in found.problems:
            about = one.about
            workload = (
                finder.known_of(about)
                if isinstance(about, Ref)
                else finder.known(about, one.kind)
            )
            if workload is not None:
                placed.append((workload, one))
                continue
            why = next(iter(failed.values()), "it will be asked for")
            found.unavailable.setdefault(
                one.invariant.id,
                ticket_line(
                    f"the owner of {one.kind} {about.name} is not known: {why}"
                ),
            )
        return placed


@dataclass
class _Checked:
    """What the checks found: problems, and by id of the invariant why it is unknown, and the namespaces in which it is not."""

    problems: list[Problem] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    partly: dict[str, set[str]] = field(default_factory=dict)

    def doubt(self, id_: str, doubt: Doubt) -> None:
        if doubt.lasting:
            self.unsupported[id_] = ticket_line(f"{doubt.reason}; {doubt.remedy}", 500)
        else:
            self.unavailable[id_] = doubt.reason


class _State:
    """What the observation before had: broken components by invariant, and when each crash loop was seen last."""

    def __init__(self, previous: Json) -> None:
        broken, loops = previous.get("broken"), previous.get("crash_loops")
        self._broken: dict[str, list[str]] = broken if isinstance(broken, dict) else {}
        self._loops: dict[str, float] = loops if isinstance(loops, dict) else {}

    def settling(
        self,
        signals: Sequence[Signal],
        watch: ClusterWatch,
        finder: WorkloadFinder,
        now: float,
        settle: float,
    ) -> list[Signal]:
        """Return signals of workloads whose crash loop may go on in new pods: they are unknown until these have run."""
        told = {one.component for one in signals if one.invariant == CRASH_LOOP.id}
        wanted = {
            name
            for name, seen in self._loops.items()
            if name not in told and now - seen < 2 * settle
        }
        if not wanted:
            return []
        young, present = set[str](), Counter[str]()
        for pod in watch.all(PODS):
            workload = None if pod.deleting else finder.known(pod, "Pod")
            if workload is not None and (name := component(workload)) in wanted:
                present[name] += 1
                if not problems.is_settled(pod, now, settle):
                    young.add(name)
        for kind in (DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS):
            for one in watch.all(kind):
                name = component(Ref(one.kind, one.namespace, one.name))
                if name in wanted and present[name] < one.desired:
                    young.add(name)  # the next pod is yet to come
        says = "its pods have not run long enough to show that the crash loop is over"
        return [Signal(CRASH_LOOP.id, name, says) for name in sorted(young)]

    def cleared(
        self, signals: Sequence[Signal], partly: dict[str, set[str]]
    ) -> list[Signal]:
        """Return signals of what was broken and holds now, where only some namespaces of an invariant are current."""
        told = {(one.invariant, one.component) for one in signals}
        return [
            Signal(id_, name, "", holds=True)
            for id_, current in partly.items()
            for name in self._broken.get(id_, ())
            if name.partition("/")[0] in current and (id_, name) not in told
        ]

    def next(self, signals: Sequence[Signal], now: float, found: _Checked) -> Json:
        """Return the state for the next observation; what is unknown now stays as it was."""
        broken: dict[str, list[str]] = {}
        for one in signals[:_MOST_REMEMBERED]:
            if one.holds is not True:
                broken.setdefault(one.invariant, []).append(one.component)
        held = {
            one.component
            for one in signals
            if one.invariant == CRASH_LOOP.id and one.value is not None
        }
        unknown = {
            one.component
            for one in signals
            if one.invariant == CRASH_LOOP.id and one.value is None and not one.holds
        }
        whole = CRASH_LOOP.id in found.unavailable or CRASH_LOOP.id in found.unsupported
        loops = {
            name: seen for name, seen in self._loops.items() if whole or name in unknown
        }
        for id_ in found.unavailable.keys() | found.unsupported.keys():
            told = set(broken.get(id_, ()))
            # What holds again stays here too: it is reported until the whole invariant is known.
            earlier = [name for name in self._broken.get(id_, ()) if name not in told]
            if earlier:
                room = _MOST_REMEMBERED - sum(map(len, broken.values()))
                broken[id_] = [*broken.get(id_, ()), *earlier[: max(0, room)]]
        loops |= {name: now for name in sorted(held)[:_MOST_REMEMBERED]}
        return {"broken": broken, "crash_loops": loops}


def _invariants(settings: KubernetesSettings) -> tuple[Invariant, ...]:
    found = [*INVARIANTS]
    if settings.cluster_objects:
        found += CLUSTER_INVARIANTS
    if settings.selector:
        found = [one for one in found if one not in NEED_ALL_LABELS]
    if settings.selector or settings.namespaces:
        found = [one for one in found if one is not WEBHOOK_ENDPOINTS]
    return tuple(found)


def _certificates(subject: KubernetesSubject, path: str) -> IngressCertificates | None:
    """Return what examines certificates, unless that invariant is off."""
    for one in subject.invariants:
        if one.id == INGRESS_CERTIFICATE.id:
            file = subject.settings.ca_file
            limit = subject.timeout / 2
            return IngressCertificates(file, path, one, subject.clock, limit)
    return None


def _seen(certificates: IngressCertificates | None) -> Json:
    return {"certificates": certificates.state()} if certificates else {}


def _unobservable(doubts: dict[WatchedKind[Any], Doubt]) -> ObservationFailed:
    said = Counter(
        one.error.one_line() if isinstance(one.error, MidwatchError) else one.reason
        for one in doubts.values()
    )
    most, _ = said.most_common(1)[0]
    return ObservationFailed(f"nothing of the cluster is current: {most}", hint="")


def _idle(
    watch: ClusterWatch,
    finder: WorkloadFinder,
    placed: Sequence[tuple[Ref, Problem]],
) -> set[str]:
    """Return the components with a problem of which no pod is ready."""
    kinds = ("Pod", "Deployment", "StatefulSet", "DaemonSet")
    wanted = {
        component(ref)
        for ref, one in placed
        if one.kind in kinds and ref.kind not in ("Job", "CronJob")
    }
    # A pod that crashes again and again is ready now and then.
    looping = {one.about.uid for _, one in placed if one.invariant.id == CRASH_LOOP.id}
    if wanted:
        for pod in watch.all(PODS):
            serves = pod.ready and pod.uid not in looping
            workload = finder.known(pod, "Pod") if serves else None
            if workload is not None:
                wanted.discard(component(workload))
    return wanted


def _background(watch: ClusterWatch) -> dict[str, Fact]:
    found: dict[str, Fact] = {}
    for kind in (DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS):
        for one in watch.all(kind):
            if len(found) < _MOST_BACKGROUND:
                ref = Ref(one.kind, one.namespace, one.name)
                found[f"images of {component(ref)}"] = one.images
    for node in watch.all(NODES):
        if node.cordoned:
            found[f"cordoned: {node.name}"] = True
    return found
