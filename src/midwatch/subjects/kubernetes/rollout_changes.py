"""Rollouts of workloads and changed ConfigMaps as changes of the cluster, with what they changed.

The watches show that a workload has a new revision; its history is read once for each. What happened within a day before
the first observation is found too, by the `managedFields` of the objects.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from midwatch.errors import MidwatchError, PermanentError
from midwatch.model import ChangeKind, ObservedChange
from midwatch.subjects.kubernetes.cluster_reader import ClusterReader
from midwatch.subjects.kubernetes.cluster_watch import (
    CONFIG_MAPS,
    DAEMON_SETS,
    DEPLOYMENTS,
    STATEFUL_SETS,
    ClusterWatch,
)
from midwatch.subjects.kubernetes.describe import differences
from midwatch.subjects.kubernetes.object_fields import (
    ConfigMap,
    Ref,
    Workload,
)
from midwatch.subjects.kubernetes.rollouts import Revision, revisions
from midwatch.subjects.kubernetes.workloads import component

_DAY = 86400.0
_WORKLOADS = (DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS)
_MOST_READ = 10
"""Histories that are read for one observation."""
_AT_ONCE = 4
_TRIES = 3
_MOST_KEPT = 150
_BUSY = 6
"""Changes of a ConfigMap in an hour from which a program writes it all the time: they say nothing any more."""
_HOUR = 3600.0
_DIFFERENCES = 3


@dataclass(frozen=True)
class _Rollout:
    """A workload with a revision that is new; `seen` is whether an earlier one was seen by this process."""

    workload: Workload
    seen: bool


class RolloutChanges:
    """Finds the changes of one cluster.

    Args:
        reader: Reads the histories of workloads.
        excluded: Namespaces that do not count.
    """

    def __init__(self, reader: ClusterReader, excluded: Iterable[str]) -> None:
        self._reader = reader
        self._excluded = frozenset(excluded)
        self._revisions: dict[str, str] = {}
        self._tries: Counter[str] = Counter()
        self._maps: dict[str, tuple[str, str]] = {}
        self._written: dict[str, list[float]] = defaultdict(list)
        self._found: OrderedDict[str, ObservedChange] = OrderedDict()

    async def read(
        self, watch: ClusterWatch, now: datetime, seconds: float
    ) -> tuple[ObservedChange, ...]:
        """Return the changes of the last day, the latest last.

        Args:
            watch: What is known of the cluster.
            now: The time.
            seconds: How long requests may take; what is not read by then is read with the next observation.
        """
        rollouts = sorted(
            self._new_rollouts(watch, now.timestamp()),
            key=lambda one: -one.workload.changed.at,
        )
        turns = asyncio.Semaphore(_AT_ONCE)

        async def take(one: _Rollout) -> None:
            async with turns:
                await self._take(one, now)

        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*map(take, rollouts[:_MOST_READ]))
        except TimeoutError:
            pass
        for change in self._changed_maps(watch, now):
            self._found[change.key] = change
        self._forget(now)
        return tuple(self._found.values())

    # ------------------------------------------------------------------ rollouts

    def _new_rollouts(self, watch: ClusterWatch, now: float) -> Iterator[_Rollout]:
        present = set[str]()
        for kind in _WORKLOADS:
            for one in watch.all(kind):
                present.add(one.uid)
                known = self._revisions.get(one.uid)
                if not one.revision or known == one.revision or one.deleting:
                    continue
                since = one.changed.at or one.created
                if one.namespace in self._excluded or (
                    known is None and now - since > _DAY
                ):
                    self._revisions[one.uid] = one.revision
                    continue
                yield _Rollout(one, known is not None)
        # A kind in doubt, which may be for good, still has the objects that it had.
        for uid in (self._revisions.keys() | self._tries.keys()) - present:
            self._revisions.pop(uid, None)
            self._tries.pop(uid, None)

    async def _take(self, rollout: _Rollout, now: datetime) -> None:
        """Read the history of a workload with a new revision. One that cannot be read is a change without details."""
        one = rollout.workload
        history: Sequence[Revision] = ()
        try:
            history = await revisions(self._reader, _ref(one))
        except MidwatchError as error:
            self._tries[one.uid] += 1
            refused = isinstance(error, PermanentError)
            if not refused and self._tries[one.uid] < _TRIES:
                return
        self._tries.pop(one.uid, None)
        self._revisions[one.uid] = one.revision
        change = rollout_change(one, history, rollout.seen, now)
        if change is not None:
            self._found[change.key] = change

    # ------------------------------------------------------------------ ConfigMaps

    def _changed_maps(
        self, watch: ClusterWatch, now: datetime
    ) -> Iterator[ObservedChange]:
        users: dict[tuple[str, str], list[str]] = defaultdict(list)
        for kind in _WORKLOADS:
            for workload in watch.all(kind):
                for name in workload.config_maps:
                    users[workload.namespace, name].append(component(_ref(workload)))
        used = [one for one in watch.all(CONFIG_MAPS) if one.key in users]
        for uid in self._maps.keys() - {one.uid for one in used}:
            del self._maps[uid]
            self._written.pop(uid, None)
        for one in used:
            if one.namespace in self._excluded:
                continue
            mark = str(one.changed.at) if one.changed.at else one.version
            known, version = self._maps.get(one.uid, ("", ""))
            self._maps[one.uid] = mark, one.version
            age = now.timestamp() - (one.changed.at or one.created)
            if known == mark or (not known and age > _DAY):
                continue
            if self._is_quiet(one, now.timestamp()):
                yield _map_change(one, version, users[one.key], now)

    def _is_quiet(self, one: ConfigMap, now: float) -> bool:
        """Note a change, and return whether the ConfigMap is not written all the time."""
        times = [at for at in self._written[one.uid] if now - at < _HOUR]
        self._written[one.uid] = [*times[-_BUSY:], now]
        return len(times) < _BUSY

    def _forget(self, now: datetime) -> None:
        """Forget changes of more than a day ago, and the earliest of too many."""
        recent = sorted(self._found.values(), key=lambda one: one.at or now)
        self._found = OrderedDict(
            (one.key, one)
            for one in recent[-_MOST_KEPT:]
            if one.at is None or (now - one.at).total_seconds() < _DAY
        )


def rollout_change(
    one: Workload, history: Sequence[Revision], seen: bool, now: datetime
) -> ObservedChange | None:
    """Return a rollout as a change (pure); None for one of more than a day ago.

    Args:
        one: The workload.
        history: Its revisions, the latest first; empty if they could not be read.
        seen: Whether the revision before was seen, so that this one is new.
        now: The time.
    """
    # A DaemonSet does not name its revision.
    named = one.kind != "DaemonSet"
    at = next(
        (i for i, each in enumerate(history) if named and _is_latest(each, one)), 0
    )
    new, *older = history[at:] or (None,)
    old = older[0] if older else None
    reused = new is not None and any(each.created > new.created for each in older)
    when = one.changed.at or (now.timestamp() if seen else one.created)
    if new is not None and not reused:
        when = new.created
    if not seen and now.timestamp() - when > _DAY:
        return None
    what = "rollout" if old or seen else "deployment"
    if reused:
        what = "rollback"
    changed = _differences(old, new)
    title = f"{what} of {component(_ref(one))}"
    return ObservedChange(
        key=f"{component(_ref(one))} {one.uid} revision {one.revision}",
        title=f"{title}: {'; '.join(changed)}" if changed else title,
        at=_time(when, now),
        kind=ChangeKind.DEPLOY,
        version_from=_version(old),
        version_to=_version(new) or one.images,
        author=one.changed.by,
        labels={"component": component(_ref(one))},
    )


def _is_latest(revision: Revision, one: Workload) -> bool:
    return one.revision in (str(revision.number), revision.name)


def _differences(old: Revision | None, new: Revision | None) -> list[str]:
    if old is None or new is None:
        return []
    found = [
        line
        for line in differences(old.template, new.template)
        if ".annotations." not in line
    ]
    more = len(found) - _DIFFERENCES
    return [*found[:_DIFFERENCES], *([f"{more} more differences"] if more > 0 else [])]


def _version(revision: Revision | None) -> str:
    return f"revision {revision.number}, {revision.images}" if revision else ""


def _map_change(
    one: ConfigMap, before: str, users: Sequence[str], now: datetime
) -> ObservedChange:
    some = ", ".join(sorted(set(users))[:5])
    what = "change" if before or one.changed.at > one.created + 1 else "creation"
    return ObservedChange(
        key=f"{one.namespace}/ConfigMap/{one.name} {one.uid} {one.changed.at or one.version}",
        title=f"{what} of {one.namespace}/ConfigMap/{one.name}, which {some} uses",
        at=_time(one.changed.at or now.timestamp(), now),
        kind=ChangeKind.CONFIG,
        version_from=f"resource version {before}" if before else "",
        version_to=f"resource version {one.version}",
        author=one.changed.by,
        labels={"component": users[0]} if len(set(users)) == 1 else {},
    )


def _ref(one: Workload) -> Ref:
    return Ref(one.kind, one.namespace, one.name, one.uid, "apps")


def _time(seconds: float, now: datetime) -> datetime:
    return min(datetime.fromtimestamp(seconds, UTC), now)
