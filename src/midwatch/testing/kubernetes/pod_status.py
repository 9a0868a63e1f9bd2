"""The status documents of a pod, as the scheduler and the kubelet write them."""

from __future__ import annotations

from midwatch.model import Json

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
