"""One pod on its node: scheduled, mounted, started, followed to its end, or to the outcome that a test wishes for it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from midwatch.model import Json

from ..processes import is_midwatch
from .api import stamp
from .apiserver import Objects
from .containers import (
    ConfigError,
    Credentials,
    Folders,
    Image,
    NotMounted,
    Process,
    environment,
    expanded,
    relocated,
)
from .errors import Refused

# ------------------------------------------------------------------ status documents

NODE = "node-1"
ADDRESS = "127.0.0.1"


def condition(
    type: str, status: str, at: str, reason: str = "", message: str = ""
) -> Json:
    made = {
        "type": type,
        "status": status,
        "lastProbeTime": None,
        "lastTransitionTime": at,
    }
    return made | {k: v for k, v in (("reason", reason), ("message", message)) if v}


def unschedulable(message: str, at: str) -> Json:
    found = condition("PodScheduled", "False", at, "Unschedulable", message)
    return {"phase": "Pending", "conditions": [found]}


def waiting(pod: Json, reason: str, message: str, at: str) -> Json:
    """On a node, with a container that does not run yet."""
    state = {"waiting": {"reason": reason} | ({"message": message} if message else {})}
    return _on_node(pod, "Pending", state, at, ready=False)


def running(pod: Json, started: str) -> Json:
    return _on_node(
        pod, "Running", {"running": {"startedAt": started}}, started, ready=True
    )


def ended(pod: Json, code: int, reason: str, started: str, at: str) -> Json:
    """The container has terminated, and the pod with it."""
    state = {
        "terminated": {
            "exitCode": code,
            "reason": reason,
            "startedAt": started,
            "finishedAt": at,
            "containerID": _id(pod),
        }
    }
    phase = "Succeeded" if code == 0 else "Failed"
    return _on_node(pod, phase, state, at, ready=False)


def backing_off(pod: Json, seconds: float, at: str) -> Json:
    """The container has ended, and is started again after a while."""
    name = pod["spec"]["containers"][0]["name"]
    place = f"{pod['metadata']['name']}_{pod['metadata']['namespace']}({pod['metadata']['uid']})"
    said = f"back-off {seconds:g}s restarting failed container={name} pod={place}"
    state = {"waiting": {"reason": "CrashLoopBackOff", "message": said}}
    return _on_node(pod, "Running", state, at, ready=False)


def disrupted(status: Json, reason: str, message: str, at: str) -> Json:
    """The status with the condition that says that it was not the container's fault."""
    rest = [c for c in status.get("conditions", ()) if c["type"] != "DisruptionTarget"]
    mark = condition("DisruptionTarget", "True", at, reason, message)
    return status | {"conditions": [*rest, mark]}


def _id(pod: Json) -> str:
    return f"containerd://{pod['metadata']['uid'].replace('-', '') * 2}"


def _on_node(pod: Json, phase: str, state: Json, at: str, *, ready: bool) -> Json:
    over = phase in ("Succeeded", "Failed")
    why = (
        ""
        if ready
        else (
            "PodCompleted"
            if phase == "Succeeded"
            else "PodFailed" if over else "ContainersNotReady"
        )
    )
    word = "True" if ready else "False"
    container = pod["spec"]["containers"][0]
    created = "waiting" not in state
    about: Json = {
        "name": container["name"],
        "image": container["image"],
        "imageID": f"local/{container['image']}" if created else "",
        "ready": ready,
        "started": ready,
        "restartCount": 0,
        "state": state,
        "lastState": {},
    }
    if created:
        about["containerID"] = _id(pod)
    started = pod.get("status", {}).get("startTime", at)
    return {
        "phase": phase,
        "startTime": started,
        "hostIP": ADDRESS,
        "podIP": ADDRESS,
        "conditions": [
            condition("PodReadyToStartContainers", "False" if over else "True", at),
            condition("Initialized", "True", at),
            condition("Ready", word, at, why),
            condition("ContainersReady", word, at, why),
            condition("PodScheduled", "True", at),
        ],
        "containerStatuses": [about],
    }


# ------------------------------------------------------------------ outcomes other than a normal run


@dataclass(frozen=True, slots=True)
class Unschedulable:
    """No node takes the pod."""

    message: str = (
        "0/1 nodes are available: 1 Insufficient memory."
        " preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
    )


@dataclass(frozen=True, slots=True)
class ImagePull:
    """The image cannot be pulled: `ErrImagePull` at first, `ImagePullBackOff` from then on."""

    message: str = "failed to pull and unpack image: not found"


@dataclass(frozen=True, slots=True)
class InvalidImageName:
    """The image's name cannot be read."""


@dataclass(frozen=True, slots=True)
class ContainerExits:
    """The container exits at once with this code; no process is started."""

    code: int = 0


@dataclass(frozen=True, slots=True)
class ContainerRuns:
    """The container runs until its pod is deleted or lost; no process is started."""


PodOutcome = (
    Unschedulable | ImagePull | InvalidImageName | ContainerExits | ContainerRuns
)


@dataclass(eq=False, slots=True)
class OutcomeRule:
    """An outcome for the pods that `when` selects, for `left` of them (None: all)."""

    outcome: PodOutcome
    when: Callable[[Json], bool]
    left: int | None
    removed: bool = False

    def remove(self) -> None:
        """Remove the rule: pods that it holds back start normally."""
        self.removed = True


class PodOutcomes:
    """The rules in their order; a new pod gets the outcome of the first that matches."""

    def __init__(self) -> None:
        self._rules: list[OutcomeRule] = []
        self._lock = threading.Lock()

    def add(
        self,
        outcome: PodOutcome,
        when: Callable[[Json], bool] = lambda pod: True,
        *,
        times: int | None = None,
    ) -> OutcomeRule:
        """Add a rule for pods created from now on that `when` selects."""
        made = OutcomeRule(outcome, when, times)
        with self._lock:
            self._rules.append(made)
        return made

    def for_pod(self, pod: Json) -> OutcomeRule | None:
        with self._lock:
            for rule in self._rules:
                if not rule.removed and rule.left != 0 and rule.when(pod):
                    rule.left = None if rule.left is None else rule.left - 1
                    return rule
        return None


# ------------------------------------------------------------------ one pod

RETRY = 0.1
"""Seconds between two attempts to start a pod; minutes on a real node."""
RESTART, LONGEST_RESTART = 0.1, 2.0
"""Seconds until the first restart of a container, and the longest; they double from 10 s to 5 minutes on a real node."""


@dataclass(frozen=True)
class Node:
    """The state that all pods share. `programs` maps the first word of a command to a local command line; where
    `forked`, `midwatch` is forked from one that has imported everything."""

    objects: Objects
    folders: Folders
    credentials: Credentials
    now: Callable[[], datetime]
    programs: Mapping[str, Sequence[str]]
    image: Image
    forked: bool


@dataclass(eq=False)
class PodWorker:
    """The kubelet's and the scheduler's view of one pod. `step` is called again and again."""

    node: Node
    pod: Json
    rule: OutcomeRule | None
    process: Process | None = None
    started: str = ""
    lost: bool = False
    over: bool = False
    _written: Json = field(default_factory=dict)
    _kill_at: float | None = None
    _again_at: float = 0.0
    _pulls: int = 0
    _restarts: int = 0
    _last: Json = field(default_factory=dict)
    """How the run before ended."""

    @property
    def key(self) -> tuple[str, str]:
        return self.pod["metadata"]["namespace"], self.pod["metadata"]["name"]

    def due(self) -> bool:
        """Return whether a step is due although the pod has not changed."""
        if self.lost or self.over:
            return False
        now = time.monotonic()
        if self._kill_at is not None:
            return now >= self._kill_at or self._has_exited()
        if self.started:
            return self._has_exited()
        return now >= self._again_at

    def step(self) -> None:
        """Read the pod and take the next step. Raises Refused if the pod changed meanwhile."""
        if self.lost:
            return
        current = self.node.objects.find("pods", *self.key)
        if current is None or current["metadata"]["uid"] != self.pod["metadata"]["uid"]:
            self._vanished()
            return
        self.pod = current
        if self.over:
            self._remove_if_deleted()
        elif self.started:
            self._follow()
        elif "deletionTimestamp" in current["metadata"]:
            self._end(137, "Error")
        else:
            self._begin()

    def end_with(
        self, code: int, reason: str, extra: Callable[[Json], Json] = lambda s: s
    ) -> None:
        """Kill the process, and report this end."""
        if self.process:
            self.process.kill()
        self._end(code, reason, extra)

    def lose(self, *, zombie: bool) -> None:
        """Lose the node: no more status is written. A zombie's process keeps running."""
        self.lost = True
        if self.process and not zombie:
            self.process.kill()

    def log(self) -> Path:
        return self.node.folders.own(self.pod) / "log"

    def previous_log(self) -> Path:
        """What the run before has printed."""
        return self.node.folders.own(self.pod) / "log.previous"

    def _has_exited(self) -> bool:
        return self.process is not None and self.process.code() is not None

    def _outcome(self) -> object:
        return None if self.rule is None or self.rule.removed else self.rule.outcome

    def _begin(self) -> None:
        """Start the container of a new pod, or write the reason why it cannot start."""
        if self._restarts and time.monotonic() < self._again_at:
            return
        self._again_at = time.monotonic() + RETRY
        outcome = self._outcome()
        if isinstance(outcome, Unschedulable):
            self._write_status(unschedulable(outcome.message, self._at()))
            return
        try:
            mounts = self.node.folders.mounts(self.pod, self._container())
        except NotMounted as error:
            self._not_mounted(str(error))
            return
        if not self.pod["spec"].get("nodeName"):
            patch = {"spec": {"nodeName": NODE}}
            self.pod = self.node.objects.merge("pods", *self.key, patch)
        if isinstance(outcome, InvalidImageName):
            image = self._container()["image"]
            said = f'Failed to apply default image tag "{image}": couldn\'t parse image name "{image}": invalid reference format'
            self._wait("InvalidImageName", said)
        elif isinstance(outcome, ImagePull):
            self._cannot_pull(outcome.message)
        else:
            self._start(mounts)

    def _cannot_pull(self, message: str) -> None:
        image = self._container()["image"]
        self._pulls += 1
        if self._pulls == 1:
            self._wait(
                "ErrImagePull", f'rpc error: code = NotFound desc = {message} "{image}"'
            )
        else:
            self._wait(
                "ImagePullBackOff",
                f'Back-off pulling image "{image}": ErrImagePull: {message}',
            )

    def _not_mounted(self, message: str) -> None:
        if "persistentvolumeclaim" in message:
            self._write_status(
                unschedulable(f"0/1 nodes are available: {message}.", self._at())
            )
        else:
            self._wait("ContainerCreating", "")

    def _start(self, mounts: Mapping[str, Path]) -> None:
        outcome, container = self._outcome(), self._container()
        try:
            own = environment(self.node.objects, self.pod, container)
        except ConfigError as error:
            self._wait("CreateContainerConfigError", str(error))
            return
        if not isinstance(outcome, (ContainerExits, ContainerRuns)) and not self._run(
            container, own, mounts
        ):
            return
        self.started = self._at()
        self._write_status(running(self.pod, self.started))
        if isinstance(outcome, ContainerExits):
            self._end(outcome.code, "Error" if outcome.code else "Completed")

    def _run(
        self, container: Json, own: Mapping[str, str], mounts: Mapping[str, Path]
    ) -> bool:
        """Start the process. Return False if its program does not exist."""
        places = self.node.folders.placed(self.pod, mounts)
        variables = self._variables(own, places)
        argv = self._argv(container, variables, places)
        if not shutil.which(argv[0], path=variables["PATH"]):
            self._cannot_start(argv[0])
            return False
        home = self._home()
        working = Path(relocated(container.get("workingDir", ""), places) or home)
        if self.node.forked and is_midwatch(argv, variables):
            binds = self.node.folders.forked(mounts, places)
            if binds is not None:
                self.process = Process(argv, variables, working, self.log(), binds)
                return True
        line = self.node.folders.command(argv, working, mounts, places)
        start = home if line != argv else working
        self.process = Process(line, variables, start, self.log())
        return True

    def _cannot_start(self, program: str) -> None:
        self.started = self._at()
        self.log().write_text(
            f"exec: {program!r}: executable file not found in $PATH\n"
        )
        self._end(128, "StartError")

    def _variables(
        self, own: Mapping[str, str], places: Mapping[str, str]
    ) -> dict[str, str]:
        """Return the environment of the container, the image and Kubernetes."""
        moved = {name: relocated(value, places) for name, value in own.items()}
        given = {"HOME": str(self._home()), "HOSTNAME": self.key[1]}
        given |= self.node.image.environment
        if "/tmp" in places:
            given["TMPDIR"] = places["/tmp"]
        credentials = self.node.credentials.of(
            self.pod, self.node.folders.own(self.pod)
        )
        return given | credentials | moved

    def _argv(
        self, container: Json, variables: Mapping[str, str], places: Mapping[str, str]
    ) -> list[str]:
        words = self.node.image.argv(container)
        words = [relocated(expanded(word, variables), places) for word in words]
        return [*self.node.programs.get(words[0], words[:1]), *words[1:]]

    def _follow(self) -> None:
        """Handle the exit or the deletion of a running container."""
        code = self.process.code() if self.process else None
        if code is not None:
            assert self.process
            self.process.clean_up()
            self._end(code, "Error" if code else "Completed")
            return
        if "deletionTimestamp" not in self.pod["metadata"]:
            return
        if self._kill_at is None:
            grace = self.pod["metadata"]["deletionGracePeriodSeconds"]
            self._kill_at = time.monotonic() + grace
            if self.process:
                self.process.terminate()
        if self.process is None or time.monotonic() >= self._kill_at:
            self.end_with(137 if self.process else 143, "Error")

    def _end(
        self, code: int, reason: str, extra: Callable[[Json], Json] = lambda s: s
    ) -> None:
        at = self._at()
        status = ended(self.pod, code, reason, self.started or at, at)
        final = extra(status)
        if final == status and self._is_restarted(code):
            self._back_off(status["containerStatuses"][0]["state"], at)
            return
        self.over = True
        self._write_status(final)
        self._remove_if_deleted()

    def _is_restarted(self, code: int) -> bool:
        """Whether the kubelet starts the container again."""
        policy = self.pod["spec"].get("restartPolicy", "Always")
        wanted = policy == "Always" or (policy == "OnFailure" and code != 0)
        return wanted and "deletionTimestamp" not in self.pod["metadata"]

    def _back_off(self, last: Json, at: str) -> None:
        wait = min(RESTART * 2.0**self._restarts, LONGEST_RESTART)
        self._restarts += 1
        self._last = last
        self._again_at = time.monotonic() + wait
        self.process, self.started = None, ""
        if self.log().exists():
            self.log().replace(self.previous_log())
        self._write_status(backing_off(self.pod, wait, at))

    def _remove_if_deleted(self) -> None:
        """Remove a deleted pod from the API server once its containers have ended."""
        if "deletionTimestamp" in self.pod["metadata"]:
            try:
                self.node.objects.delete("pods", *self.key, grace=0)
            except Refused as refused:
                if refused.code != 404:
                    raise

    def _vanished(self) -> None:
        """Kill the process of a pod that was deleted by force."""
        self.over = self.lost = True
        if self.process:
            self.process.kill()

    def _wait(self, reason: str, message: str) -> None:
        self._write_status(waiting(self.pod, reason, message, self._at()))

    def _write_status(self, status: Json) -> None:
        """Write the status, unless only its times would change."""
        for about in status.get("containerStatuses", ()) if self._restarts else ():
            about |= {"restartCount": self._restarts, "lastState": self._last}
        if _timeless(status) != _timeless(self._written):
            self._written = status
            patch = {"status": status}
            self.pod = self.node.objects.merge("pods", *self.key, patch, sub="status")

    def _container(self) -> Json:
        container: Json = self.pod["spec"]["containers"][0]
        return container

    def _home(self) -> Path:
        home = self.node.folders.own(self.pod) / "home"
        home.mkdir(exist_ok=True)
        return home

    def _at(self) -> str:
        return stamp(self.node.now())


def _timeless(status: object) -> object:
    """Return a document without its times."""
    if isinstance(status, dict):
        return {
            k: _timeless(v) for k, v in status.items() if not k.endswith(("Time", "At"))
        }
    if isinstance(status, list):
        return [_timeless(item) for item in status]
    return status
