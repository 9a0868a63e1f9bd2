"""Job controller, scheduler and kubelet in one thread: Jobs become pods, pods become local processes.

::

    with ApiServer() as server, ProcessKubelet(server, folder) as kubelet:
        kubelet.outcomes.add(ImagePull(), when=of_session("fix"), times=1)
        ...
        kubelet.oom_kill(kubelet.running("team", "fix")[0])

It uses the server's objects directly, not its HTTP side: faults do not strike it, and pods go on while the
server is gone. The environment is exactly the container's, plus what an image and Kubernetes bring (`IMAGE`,
`KUBERNETES_SERVICE_*`, and `KUBECONFIG`); mounts are local folders. `containers` says how.

Not as a real node: one container a pod, no init containers, no probes, seconds instead of minutes between restarts, no limits of memory and CPU, no user
of its own, the machine's file system is there and writable, and so is its network.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from midwatch.kube.rules import SESSION_LABEL
from midwatch.model import Json

from .api import stamp
from .apiserver import ApiServer
from .containers import IMAGE, PYTHON, Credentials, Folders, Image
from .errors import Refused
from .jobs import JobController
from .pods import NODE, Node, PodOutcomes, PodWorker, disrupted
from .storage import Change, key_of

Key = tuple[str, str]
PROGRAMS = {"midwatch": (str(PYTHON / "midwatch"),)}
_TICK = 0.03
_LOOK = 0.5
"""Seconds between two looks for the processes below each container."""


class ProcessKubelet:
    """`folder` holds everything it makes. `now` is the clock of deadlines, of the time after a Job's end
    and of time stamps; a pod's grace is real time.
    """

    def __init__(
        self,
        server: ApiServer,
        folder: Path,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        programs: Mapping[str, Sequence[str]] = PROGRAMS,
        image: Image = IMAGE,
        forked: bool = False,
    ) -> None:
        self._server, self._now = server, now
        self.outcomes = PodOutcomes()
        self.failures: list[Exception] = []
        self._folders = Folders(folder, server.objects)
        credentials = Credentials(server)
        self._node = Node(
            server.objects,
            self._folders,
            credentials,
            now,
            programs,
            image,
            forked,
        )
        self._jobs = JobController(server.objects, now)
        self._workers: dict[str, PodWorker] = {}
        self._dirty: deque[tuple[str, Key]] = deque()
        self._changed: set[Key] = set()
        self._orders: deque[Callable[[], None]] = deque()
        self._wake, self._ending = threading.Event(), threading.Event()
        self._lock = threading.RLock()
        self._looked = 0.0
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)

    def __enter__(self) -> ProcessKubelet:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin, with what is there already."""
        self._server.listen(self._noticed)
        self._server.serve_logs(self._log)
        for plural in ("jobs", "pods"):
            found = self._server.objects.list(plural)
            self._dirty.extend((plural, key_of(document)) for document in found)
        self._thread.start()

    def stop(self) -> None:
        """End, and every process with it, zombies too."""
        self._ending.set()
        self._wake.set()
        self._thread.join(30)
        for worker in self._workers.values():
            if worker.process:
                worker.process.kill()

    def pods(self, namespace: str, session: str) -> list[PodWorker]:
        """The workers of a session's pods that are known here, oldest first."""
        return [
            w
            for w in self.workers()
            if w.key[0] == namespace and _session(w.pod) == session
        ]

    def workers(self) -> list[PodWorker]:
        """The workers of all pods that are known here, oldest first."""
        with self._lock:
            return list(self._workers.values())

    def running(self, namespace: str, session: str, timeout: float = 60.0) -> PodWorker:
        """The session's pod whose container runs; waits for it. Raises TimeoutError."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for worker in self.pods(namespace, session):
                if worker.started and not worker.over and not worker.lost:
                    return worker
            time.sleep(_TICK)
        raise TimeoutError(f"no pod of {namespace}/{session} runs")

    def folder(self, worker: PodWorker, mount: str) -> Path:
        """What is mounted in the pod's container at this path."""
        container = worker.pod["spec"]["containers"][0]
        return self._folders.mounts(worker.pod, container)[mount]

    def output(self, worker: PodWorker) -> str:
        """What it has printed."""
        path = worker.log()
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def kill(self, worker: PodWorker) -> None:
        """SIGKILL from nowhere: exit code 137, no reason."""
        self._order(lambda: worker.end_with(137, "Error"))

    def oom_kill(self, worker: PodWorker) -> None:
        self._order(lambda: worker.end_with(137, "OOMKilled"))

    def evict(
        self, worker: PodWorker, message: str = "The node was low on resource: memory."
    ) -> None:
        """By the kubelet, because the node runs out of something."""

        def extra(status: Json) -> Json:
            at = stamp(self._now())
            marked = disrupted(status, "TerminationByKubelet", message, at)
            return marked | {"reason": "Evicted", "message": message}

        self._order(lambda: worker.end_with(137, "Error", extra))

    def preempt(self, worker: PodWorker) -> None:
        """By the scheduler, for a pod of a higher priority: deleted with its grace."""
        said = "default-scheduler: preempting to accommodate a higher priority pod"

        def run() -> None:
            self._disrupt(worker, "PreemptionByScheduler", said)
            self._server.objects.delete("pods", *worker.key)

        self._order(run)

    def lose_node(self, worker: PodWorker, *, zombie: bool = False) -> None:
        """Nothing is heard of its node any more. A zombie's process runs on, until `stop`."""
        said = f"Node {NODE} which was running pod {worker.key[1]} is unresponsive"

        def run() -> None:
            worker.lose(zombie=zombie)
            status = {"reason": "NodeLost", "message": said}
            self._server.objects.merge(
                "pods", *worker.key, {"status": status}, sub="status"
            )

        self._order(run)

    def collect_lost(self, worker: PodWorker) -> None:
        """The pod of a lost node is failed and removed, as when the node itself was deleted."""

        def run() -> None:
            self._disrupt(
                worker, "DeletionByPodGC", "PodGC: node no longer exists", "Failed"
            )
            self._server.objects.delete("pods", *worker.key, grace=0)

        self._order(run)

    def _disrupt(
        self, worker: PodWorker, reason: str, message: str, phase: str = ""
    ) -> None:
        pod = self._server.objects.get("pods", *worker.key)
        status = disrupted(pod["status"], reason, message, stamp(self._now()))
        if phase:
            status["phase"] = phase
        self._server.objects.merge(
            "pods", *worker.key, {"status": status}, sub="status"
        )

    def _order(self, order: Callable[[], None]) -> None:
        """Carry it out in the kubelet's thread, and come back when it is done."""
        done = threading.Event()

        def run() -> None:
            try:
                order()
            finally:
                done.set()

        self._orders.append(run)
        self._wake.set()
        if not done.wait(20):
            raise TimeoutError("the kubelet does not answer")

    def _noticed(self, change: Change) -> None:
        """In the server's thread: only noted."""
        _, plural = change.resource
        if plural in ("jobs", "pods"):
            self._dirty.append((plural, key_of(change.document)))
            owners = change.document["metadata"].get("ownerReferences", ())
            if plural == "pods":
                namespace = change.document["metadata"]["namespace"]
                names = [o["name"] for o in owners if o["kind"] == "Job"]
                self._dirty.extend(("jobs", (namespace, name)) for name in names)
            self._wake.set()

    def _run(self) -> None:
        while not self._ending.is_set():
            self._wake.wait(_TICK)
            self._wake.clear()
            for work in (self._obey, self._reconcile, self._turn):
                try:
                    work()
                except Refused:
                    continue  # it changed meanwhile; the change is noted, or the next turn sees it
                except Exception as error:  # the outermost guard of this thread
                    self.failures.append(error)

    def _obey(self) -> None:
        while self._orders:
            self._orders.popleft()()

    def _reconcile(self) -> None:
        """Everything that was noted, and the Jobs that are due by the clock."""
        noted: dict[tuple[str, Key], None] = {}
        self._changed.clear()
        while self._dirty:
            noted[self._dirty.popleft()] = None
        now = self._now()
        for key, due in tuple(self._jobs.due.items()):
            if due <= now:
                noted["jobs", key] = None
        for plural, (namespace, name) in noted:
            if plural == "pods":
                self._changed.add((namespace, name))
                self._adopt(namespace, name)
        for plural, (namespace, name) in noted:
            if plural == "jobs":
                try:
                    self._jobs.reconcile(namespace, name)
                except Refused:
                    self._dirty.append((plural, (namespace, name)))

    def _adopt(self, namespace: str, name: str) -> None:
        pod = self._server.objects.find("pods", namespace, name)
        if (
            pod
            and pod["metadata"]["uid"] not in self._workers
            and not pod["status"].get("startTime")
        ):
            worker = PodWorker(self._node, pod, self.outcomes.for_pod(pod))
            with self._lock:
                self._workers[pod["metadata"]["uid"]] = worker

    def _turn(self) -> None:
        """A step of every pod that has changed or is due; a look at their processes now and then."""
        look = time.monotonic() - self._looked > _LOOK
        if look:
            self._looked = time.monotonic()
        for worker in tuple(self._workers.values()):
            if worker.process and look and not worker.over:
                worker.process.look()
            if worker.key in self._changed or worker.due():
                try:
                    worker.step()
                except Refused:
                    self._dirty.append(("pods", worker.key))

    def _log(self, namespace: str, name: str, query: Mapping[str, str]) -> bytes:
        """`pods/log`. Raises Refused."""
        with self._lock:
            found = [w for w in self._workers.values() if w.key == (namespace, name)]
        if not found or not (found[0].started or found[0].previous_log().exists()):
            container = query.get("container", "")
            raise Refused(
                400,
                f'container "{container}" in pod "{name}" is waiting to start: ContainerCreating',
            )
        path = found[0].log()
        if query.get("previous") == "true":
            path = found[0].previous_log()
            if not path.exists():
                said = f'previous terminated container "{query.get("container", "")}" in pod "{name}" not found'
                raise Refused(400, said)
        text = path.read_bytes() if path.exists() else b""
        tail = query.get("tailLines", "")
        if tail.isdecimal():
            text = (
                b"".join(text.splitlines(keepends=True)[-int(tail) :])
                if int(tail)
                else b""
            )
        return text


def of_session(name: str) -> Callable[[Json], bool]:
    """A predicate over pods."""
    return lambda pod: _session(pod) == name


def _session(pod: Json) -> str:
    return str((pod["metadata"].get("labels") or {}).get(SESSION_LABEL, ""))
