"""What is known of a cluster, and how current that is: one watch for each kind and namespace, which all run in the background."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from midwatch.cluster.errors import ResourceGone
from midwatch.cluster.reflector import Reflector, WatchStats, WatchTimes, is_refused
from midwatch.errors import MidwatchError
from midwatch.lifecycle import Clock, Liveness, cancel
from midwatch.logs import quiet_log
from midwatch.model import Json
from midwatch.subjects.kubernetes import ingress_fields
from midwatch.subjects.kubernetes import object_fields as objects
from midwatch.subjects.kubernetes import policy_fields as policies
from midwatch.text import ticket_line
from midwatch.units import format_duration

if TYPE_CHECKING:  # it needs the extra `kubernetes`
    from midwatch.cluster.connection import Connection

T = TypeVar("T", bound=objects.Object)
Key = tuple[str, str]
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST = METADATA.replace("Metadata;", "MetadataList;")
"""What to accept where only metadata is wanted (https://kubernetes.io/docs/reference/using-api/api-concepts/)."""
PAGE = 100
"""Objects of one page of a list: a page of pods is a few megabytes once it is read."""
_HOUR = 3600.0
_REQUESTS_PER_HOUR = 24
"""How many watches are opened again in an hour at most, in all."""
_SILENCE = 150.0
"""The API server sends a bookmark each minute."""
_REFUSED_WAIT = 600.0
_IDLE = 900.0
"""Seconds without an observation after which the watches end: the subject has passed to another monitor."""


@dataclass(frozen=True)
class WatchedKind(Generic[T]):
    """A kind that is watched.

    Attributes:
        plural: Its name in the API.
        root: Its API: `api/v1` or `apis/GROUP/VERSION`.
        read: Makes the value that is kept.
        namespaced: Whether its objects are in namespaces.
        selected: Whether the subject's label selector applies.
        bookmarks: Whether the API server sends bookmarks; it does not for events.
        fields: A field selector.
        optional: Whether clusters are right without it: then the reason says no more than that, and it is asked for again less often.
        metadata_only: Whether nothing but the metadata of its objects is requested.
    """

    plural: str
    root: str
    read: Callable[[Json], T]
    namespaced: bool = True
    selected: bool = True
    bookmarks: bool = True
    fields: str = ""
    optional: bool = False
    metadata_only: bool = False

    def path(self, namespace: str | None) -> str:
        within = f"namespaces/{namespace}/" if namespace else ""
        return f"{self.root}/{within}{self.plural}"

    @property
    def group(self) -> str:
        return self.root.split("/")[1] if self.root.startswith("apis/") else ""

    @property
    def full_name(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


_APPS, _BATCH = "apis/apps/v1", "apis/batch/v1"
PODS = WatchedKind("pods", "api/v1", objects.read_pod)
DEPLOYMENTS = WatchedKind("deployments", _APPS, objects.read_deployment)
STATEFUL_SETS = WatchedKind("statefulsets", _APPS, objects.read_stateful_set)
DAEMON_SETS = WatchedKind("daemonsets", _APPS, objects.read_daemon_set)
JOBS = WatchedKind("jobs", _BATCH, objects.read_job)
CRON_JOBS = WatchedKind("cronjobs", _BATCH, objects.read_cron_job)
CLAIMS = WatchedKind("persistentvolumeclaims", "api/v1", objects.read_claim)
AUTOSCALERS = WatchedKind(
    "horizontalpodautoscalers", "apis/autoscaling/v2", objects.read_autoscaler
)
SERVICES = WatchedKind("services", "api/v1", objects.read_service)
ENDPOINT_SLICES = WatchedKind(
    "endpointslices", "apis/discovery.k8s.io/v1", objects.read_endpoint_slice
)
INGRESSES = WatchedKind(
    "ingresses", "apis/networking.k8s.io/v1", ingress_fields.read_ingress
)
BUDGETS = WatchedKind(
    "poddisruptionbudgets", "apis/policy/v1", policies.read_disruption_budget
)
POLICIES = WatchedKind(
    "networkpolicies", "apis/networking.k8s.io/v1", policies.read_network_policy
)
_GATEWAY = "apis/gateway.networking.k8s.io/v1"
GATEWAYS = WatchedKind("gateways", _GATEWAY, policies.read_gateway, optional=True)
ROUTES = WatchedKind("httproutes", _GATEWAY, policies.read_http_route, optional=True)
GATEWAY_CLASSES = WatchedKind(
    "gatewayclasses",
    _GATEWAY,
    policies.read_gateway_class,
    namespaced=False,
    selected=False,
    optional=True,
)
REFUSALS = WatchedKind(
    "events",
    "api/v1",
    objects.read_refusal,
    selected=False,
    bookmarks=False,
    fields="reason=FailedCreate",
)
CONFIG_MAPS = WatchedKind(
    "configmaps",
    "api/v1",
    objects.read_config_map,
    selected=False,
    metadata_only=True,
)
"""No invariant needs them: they are for what was changed."""
NODES = WatchedKind(
    "nodes", "api/v1", objects.read_node, namespaced=False, selected=False
)
_ADMISSION = "apis/admissionregistration.k8s.io/v1"
VALIDATING = WatchedKind(
    "validatingwebhookconfigurations",
    _ADMISSION,
    objects.read_webhooks,
    namespaced=False,
    selected=False,
)
MUTATING = WatchedKind(
    "mutatingwebhookconfigurations",
    _ADMISSION,
    objects.read_webhooks,
    namespaced=False,
    selected=False,
)
KINDS: tuple[WatchedKind[Any], ...] = (
    PODS,
    DEPLOYMENTS,
    STATEFUL_SETS,
    DAEMON_SETS,
    JOBS,
    CRON_JOBS,
    CLAIMS,
    AUTOSCALERS,
    SERVICES,
    ENDPOINT_SLICES,
    INGRESSES,
    REFUSALS,
    CONFIG_MAPS,
    BUDGETS,
    POLICIES,
    GATEWAYS,
    ROUTES,
    GATEWAY_CLASSES,
    NODES,
    VALIDATING,
    MUTATING,
)


class Collection(Generic[T]):
    """The objects of one kind in one namespace or (None) in all, as a `Reflector` follows them."""

    def __init__(
        self,
        connection: Connection,
        kind: WatchedKind[T],
        namespace: str | None,
        selector: str,
    ) -> None:
        self.kind, self.namespace = kind, namespace
        self.objects: dict[Key, T] = {}
        self._connection = connection
        self._path = kind.path(namespace)
        self._lists = METADATA_LIST if kind.metadata_only else ""
        self._events = METADATA if kind.metadata_only else ""
        self._params = {"fieldSelector": kind.fields} if kind.fields else {}
        if selector and kind.selected:
            self._params["labelSelector"] = selector

    async def read_list(self) -> str:
        version, seen = "", set[Key]()
        doing = f"list {self.kind.full_name}"
        async for page in self._connection.pages(
            self._path, doing, self._params, PAGE, accept=self._lists
        ):
            meta = page.get("metadata")
            version = version or str((meta or {}).get("resourceVersion") or "")
            for body in page.get("items") or ():
                seen.add(self._put(body))
            await asyncio.sleep(0)
        for key in self.objects.keys() - seen:
            del self.objects[key]
        return version

    def watch(
        self, version: str, *, seconds: int, silence: float
    ) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, Json]]]:
        doing = f"watch {self.kind.full_name}"
        return self._connection.open_watch(
            self._path,
            doing,
            self._params,
            version,
            seconds=seconds,
            silence=silence,
            accept=self._events,
        )

    def apply(self, type_: str, body: Json) -> None:
        key = self._put(body)
        if type_ == "DELETED":
            self.objects.pop(key, None)

    def _put(self, body: Json) -> Key:
        made = self.kind.read(body)
        self.objects[made.key] = made
        return made.key


class ClusterWatch:
    """The watches of one subject.

    Args:
        connection: To the API server; it stays open.
        kinds: What is watched.
        namespaces: Where; empty for everywhere.
        selector: A label selector.
        stale_after: Seconds after the loss of a watch from which what it knows is unknown.
        request_timeout: Seconds for each request.
        backoff: Seconds until the second attempt after a failure.
    """

    def __init__(
        self,
        connection: Connection,
        kinds: Iterable[WatchedKind[Any]],
        namespaces: Sequence[str],
        selector: str,
        *,
        stale_after: float,
        request_timeout: float,
        clock: Clock,
        backoff: float = 2.0,
    ) -> None:
        self._clock = clock
        self._stale_after = stale_after
        places: list[str | None] = [*namespaces]
        self.collections: dict[WatchedKind[Any], list[Collection[Any]]] = {
            kind: [
                Collection(connection, kind, place, selector)
                for place in ((places or [None]) if kind.namespaced else [None])
            ]
            for kind in kinds
        }
        count = sum(map(len, self.collections.values()))
        self._timeout = max(_HOUR, count / _REQUESTS_PER_HOUR * _HOUR) * 1.15
        self._request_timeout = request_timeout
        self._backoff = backoff
        self._stats = WatchStats(clock)
        self._reflectors: dict[int, Reflector] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._idle: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Start the watches unless they run; they end by themselves if this is not called for `_IDLE` seconds."""
        loop = asyncio.get_running_loop()
        if self._idle is not None:
            self._idle.cancel()
        self._idle = loop.call_later(_IDLE, self._end)
        if self._tasks:
            return
        for collection in self._all():
            self._reflectors[id(collection)] = reflector = self._reflector(collection)
            self._tasks.append(asyncio.create_task(reflector.run()))

    async def settled(self, seconds: float) -> None:
        """Wait until each kind has been listed or could not be, for `seconds` at most."""

        async def one(reflector: Reflector) -> None:
            while not reflector.listed.is_set() and reflector.failure is None:
                await self._clock.sleep(0.02)

        waits = [asyncio.create_task(one(each)) for each in self._reflectors.values()]
        if waits:
            await asyncio.wait(waits, timeout=max(0.0, seconds))
        await cancel(*waits)

    async def close(self) -> None:
        """End the watches."""
        if self._idle is not None:
            self._idle.cancel()
        tasks, self._tasks = self._tasks, []
        await cancel(*tasks)
        self._reflectors.clear()

    def monotonic(self) -> float:
        """Return the time of the clock of the watches."""
        return self._clock.monotonic()

    def all(self, kind: WatchedKind[T]) -> Iterator[T]:
        """Yield the objects of a kind that are known."""
        for collection in self.collections.get(kind, ()):
            yield from collection.objects.values()

    def get(self, kind: WatchedKind[T], namespace: str, name: str) -> T | None:
        for collection in self.collections.get(kind, ()):
            found: T | None = collection.objects.get((namespace, name))
            if found is not None:
                return found
        return None

    def doubt(self, kind: WatchedKind[Any]) -> Doubt | None:
        """Return why what is known of a kind may not be true now; None if it is current."""
        for collection in self.collections.get(kind, ()):
            if (doubt := self._doubt(collection)) is not None:
                return doubt
        return None

    def doubts(self) -> dict[WatchedKind[Any], Doubt]:
        """Return the doubts of all kinds that are not current."""
        found = {kind: self.doubt(kind) for kind in self.collections}
        return {kind: doubt for kind, doubt in found.items() if doubt is not None}

    def current_namespaces(self, kinds: Iterable[WatchedKind[Any]]) -> set[str]:
        """Return the chosen namespaces in which all these kinds are current."""
        found: dict[str, bool] = {}
        for kind in kinds:
            for one in self.collections.get(kind, ()):
                if one.namespace is not None:
                    well = self._doubt(one) is None
                    found[one.namespace] = found.get(one.namespace, True) and well
        return {name for name, well in found.items() if well}

    def _doubt(self, collection: Collection[Any]) -> Doubt | None:
        reflector = self._reflectors.get(id(collection))
        what = collection.kind.full_name
        where = f" in {collection.namespace}" if collection.namespace else ""
        if reflector is None:
            return Doubt(f"{what}{where}: not watched", None)
        failure = reflector.failure
        lost = reflector.lost_for()
        if collection.kind.optional and isinstance(failure, ResourceGone):
            return Doubt(f"{collection.kind.group} is not installed", failure)
        if math.isinf(lost):
            says = failure.one_line() if failure else "the list is being read"
            return Doubt(ticket_line(f"{what}{where}: {says}", 400), failure)
        if lost > self._stale_after:
            says = f"; {failure.one_line()}" if failure else ""
            text = (
                f"{what}{where}: the watch was lost {format_duration(lost)} ago{says}"
            )
            return Doubt(ticket_line(text, 400), failure)
        return None

    def _reflector(self, collection: Collection[Any]) -> Reflector:
        kind = collection.kind
        times = WatchTimes(
            backoff=self._backoff,
            backoff_max=30.0 * self._backoff,
            request_timeout=self._request_timeout,
            watch_timeout=self._timeout,
            silence=_SILENCE if kind.bookmarks else self._timeout,
            resync=math.inf,
            refused_wait=self._timeout if kind.optional else _REFUSED_WAIT,
            spread=0.13,
        )
        return Reflector(
            collection,
            f"{collection.namespace or '*'}/{kind.plural}",
            times,
            stats=self._stats,
            progress=Liveness(self._clock),
            clock=self._clock,
            log=quiet_log(),
        )

    def _all(self) -> Iterator[Collection[Any]]:
        for collections in self.collections.values():
            yield from collections

    def _end(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        self._reflectors.clear()


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a kind is unknown: `reason` in a line, and the error behind it."""

    reason: str
    error: MidwatchError | None

    @property
    def lasting(self) -> bool:
        """Whether it stays until somebody changes a role, or what the cluster serves."""
        return is_refused(self.error)

    @property
    def remedy(self) -> str:
        if isinstance(self.error, ResourceGone):
            return "the cluster does not serve it, which is right unless it should"
        return "grant get, list and watch of it to the service account (docs/kubernetes-workloads.md)"
