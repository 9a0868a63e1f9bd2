"""Actions on workloads that a person approved: restart the pods, or roll back to the template of an earlier revision.

Both are one patch of the workload, as `kubectl rollout restart` and `kubectl rollout undo` send it. The patch names the resource
version that was checked right before, so the API server refuses it if anything has changed since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from midwatch.cluster.connection import Connection
from midwatch.cluster.error_mapping import Conflict
from midwatch.cluster.errors import ClusterRefused, ClusterUnavailable, ResourceGone
from midwatch.errors import MidwatchError, ObservationFailed, SettingsError
from midwatch.lifecycle import Clock
from midwatch.model import Json
from midwatch.subjects.actionable import ActionCheck, ActionResult, ProposedAction
from midwatch.subjects.kubernetes import settings as the
from midwatch.subjects.kubernetes.cluster_reader import (
    READABLE,
    ClusterReader,
    checked,
    label_selector,
    path_of,
)
from midwatch.subjects.kubernetes.describe import REVISION_LABEL, differences
from midwatch.subjects.kubernetes.object_fields import (
    Pod,
    Ref,
    controller_of,
    read_daemon_set,
    read_deployment,
    read_pod,
    read_stateful_set,
)
from midwatch.subjects.kubernetes.rollouts import (
    CHANGE_CAUSE,
    CONTROLLERS,
    Revision,
    revisions,
    template_of,
)
from midwatch.subjects.kubernetes.workload_problems import pod_problems
from midwatch.subjects.kubernetes.workload_proposals import ROLL_BACK, is_of_revision
from midwatch.subjects.kubernetes.workloads import HASH_LABEL, component
from midwatch.text import one_line, ticket_line

RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"
"""The annotation of a pod template that `kubectl rollout restart` sets."""
_ATTEMPTS = 4
_MOST_PODS = 1000
_TOO_MANY = 429
_Patch = Json | Sequence[Json]


@dataclass(frozen=True, slots=True)
class _Look:
    """What a look at a workload found: why nothing is to be done, or the patch, and what it changes for a person."""

    reason: str
    patch: _Patch = ()
    seen: str = ""
    wanted: Mapping[str, Any] | None = None


class WorkloadActions:
    """The actions on the workloads of one cluster, over a connection of their own.

    Args:
        settings: Of the subject.
        clock: The time that durations are measured with, and that of a restart.
    """

    def __init__(self, settings: the.KubernetesSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    async def check(self, action: ProposedAction) -> ActionCheck:
        """See `Actionable.check_action`: with a dry run by the API server."""
        async with self._connect() as connection:
            look = await self._look(connection, action)
            if look.reason:
                return ActionCheck(False, look.reason, _shown(action))
            doing = "patch it (a dry run)"
            try:
                await connection.patch(_path(action), look.patch, doing, dry=True)
            except (ClusterRefused, ResourceGone, Conflict) as error:
                return ActionCheck(False, error.one_line(), _shown(action))
        text = f"{look.seen}; the API server would take it (dryRun=All)"
        return ActionCheck(True, text, _shown(action))

    async def probe(self) -> str:
        """See `ProbesActions.probe_actions`: the API server is asked for each permission."""
        missing = []
        async with self._connect() as connection:
            for verb, kind, space, name in dict.fromkeys(self._needed()):
                root, plural = READABLE[kind]
                group = root.split("/")[1] if root.startswith("apis/") else ""
                place = {"namespace": space, "name": name}
                if not await connection.may(verb, group, plural, **place):
                    what = f"{verb} {plural}{name and f'/{name}'}"
                    missing.append(f"{what} in {space or 'all namespaces'}")
            server = connection.server
        if missing:
            raise ObservationFailed(
                f"the login of the actions may not {', '.join(missing)}",
                hint="give it the permissions of docs/actions.md, or narrow actions.workloads",
            )
        return f"{server} permits it"

    def _needed(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield the permissions for `actions.workloads`: verb, kind, namespace and name, the last two empty for any."""
        for pattern in self._settings.actions.workloads:
            space, kind, name = pattern.split("/")
            exact = "" if "*" in name else name
            for one in self._settings.namespaces or [""] if space == "*" else [space]:
                for each in CONTROLLERS if kind == "*" else [kind]:
                    yield "get", each, one, exact
                    yield "patch", each, one, exact
                    yield "list", CONTROLLERS[each], one, ""
                yield "list", "Pod", one, ""

    async def run(self, action: ProposedAction) -> ActionResult:
        """See `Actionable.run_action`."""
        try:
            async with self._connect() as connection:
                for _ in range(_ATTEMPTS):
                    look = await self._look(connection, action)
                    if look.reason:
                        return ActionResult("not_run", look.reason)
                    result = await self._act(connection, action, look)
                    if result is not None:
                        return result
        except MidwatchError as error:  # of the look: `_act` raises none
            return ActionResult("failed", f"nothing was done: {error.one_line()}")
        why = f"it changed between the check and the patch, {_ATTEMPTS} times"
        return ActionResult("not_run", f"{why}; look again")

    def _connect(self) -> Connection:
        """Connect as the user of `actions.kubeconfig`. Raises ObservationFailed."""
        chosen, subject = self._settings.actions, self._settings
        own = chosen.kubeconfig is not None
        where = "actions.kubeconfig" if own else "kubeconfig"
        try:
            return Connection.connect(
                chosen.kubeconfig if own else subject.kubeconfig,
                chosen.context if own else subject.context,
                max(1.0, chosen.timeout / 3),
                clock=self._clock,
                setting=f"subjects.{subject.name}.{where}",
            )
        except SettingsError as error:
            raise ObservationFailed(error.message, hint=error.hint) from error

    async def _act(
        self, connection: Connection, action: ProposedAction, look: _Look
    ) -> ActionResult | None:
        """Send the patch once. Return None if the workload has changed since the look: then nothing was done."""
        name = component(_ref(action))
        try:
            body = await connection.patch(_path(action), look.patch, f"patch {name}")
        except Conflict:
            return None
        except (ClusterRefused, ResourceGone) as error:
            return ActionResult("failed", f"nothing was done: {error.one_line()}")
        except ClusterUnavailable as error:
            if error.status == _TOO_MANY:
                return ActionResult("failed", f"nothing was done: {error.one_line()}")
            if not await self._has_arrived(connection, action, look):
                says = "it may have been done, and may yet be"
                return ActionResult("unknown", f"{says}: {error.one_line()}")
            said = "the connection was lost, and a second look showed the change"
            return ActionResult("done", f"{look.seen}; {said}")
        generation = (body.get("metadata") or {}).get("generation")
        return ActionResult(
            "done", f"{look.seen}; it has the generation {generation} now"
        )

    async def _has_arrived(
        self, connection: Connection, action: ProposedAction, look: _Look
    ) -> bool:
        """Return whether the workload has what a patch without an answer was to bring."""
        ref = _ref(action)
        try:
            reader = ClusterReader(lambda: connection)
            body = await reader.get(ref.kind, ref.namespace, ref.name)
        except MidwatchError:
            return False
        template = template_of(body)
        if body["metadata"].get("uid") != action.target["uid"] or look.wanted is None:
            return False
        if action.kind == ROLL_BACK:
            return _plain(template) == _plain(look.wanted)
        annotations = (template.get("metadata") or {}).get("annotations") or {}
        return bool(annotations.get(RESTARTED_AT) == look.wanted[RESTARTED_AT])

    # -------------------------------------------------- the look

    async def _look(self, connection: Connection, action: ProposedAction) -> _Look:
        """Compare the workload with that of the evidence, and make the patch. Raises MidwatchError."""
        ref, target = _ref(action), action.target
        name = component(ref)
        if not self._settings.actions.covers(name):
            return _Look(f"{name} is not among actions.workloads")
        reader = ClusterReader(lambda: connection)
        body = await reader.find(ref.kind, ref.namespace, ref.name)
        if body is None:
            return _Look(f"{name} does not exist any more")
        if reason := _not_itself(body, name, str(target["uid"])):
            return _Look(reason)
        found = await revisions(reader, ref, body)
        if reason := _other_revision(body, found, name, action):
            return _Look(reason)
        broken = await self._broken(reader, ref, body, action)
        if not broken:
            what = f"{target['invariant']} is not broken any more by the pods of revision {target['revision']}"
            return _Look(f"{what} of {name}")
        if action.kind != ROLL_BACK:
            return self._restart(body, name, broken)
        return _roll_back(body, found, name, action, broken)

    async def _broken(
        self, reader: ClusterReader, ref: Ref, body: Json, action: ProposedAction
    ) -> str:
        """Return what is still broken, as one line; empty if the invariant of the ticket holds."""
        invariant = str(action.target["invariant"])
        revision = str(action.target["revision_name"])
        if ref.kind == "Deployment" and invariant == the.ROLLOUT_STUCK.id:
            at = read_deployment(body).progressing
            stuck = at is not None and at.status == "False"
            return f"{at.reason}: {at.message}" if at is not None and stuck else ""
        selector = label_selector((body.get("spec") or {}).get("selector"))
        asked = {"labelSelector": selector}
        listed = await reader.list_objects("Pod", ref.namespace, _MOST_PODS, **asked)
        pods = [read_pod(one) for one in listed if _is_of(one, ref, revision)]
        if invariant == the.ROLLOUT_STUCK.id:
            reads = {"StatefulSet": read_stateful_set, "DaemonSet": read_daemon_set}
            workload = reads[ref.kind](body)
            unready = (one.name for one in pods if not one.ready and not one.deleting)
            behind = workload.updated < workload.desired
            pod = next(unready, "") if behind else ""
            return f"{pod} is not ready" if pod else ""
        return next(filter(None, map(partial(self._problem, invariant), pods)), "")

    def _problem(self, invariant: str, pod: Pod) -> str:
        now = self._clock.now().timestamp()
        settle, window = self._settings.settle, self._settings.oom_window
        for one in pod_problems(pod, now, settle, window):
            if one.invariant.id == invariant:
                return ticket_line(one.says)
        return ""

    def _restart(self, body: Json, name: str, broken: str) -> _Look:
        at = f"{self._clock.now():%Y-%m-%dT%H:%M:%SZ}"
        wanted = {RESTARTED_AT: at}
        patch = {
            "metadata": {"resourceVersion": body["metadata"]["resourceVersion"]},
            "spec": {"template": {"metadata": {"annotations": wanted}}},
        }
        seen = (
            f"{name} is restarted ({RESTARTED_AT}: {at}); it is still broken: {broken}"
        )
        return _Look("", patch, seen, wanted)


# ------------------------------------------------------------------ comparing (pure)


def _not_itself(body: Json, name: str, uid: str) -> str:
    """Return why a workload is not the one of the evidence, or is not to be changed now; empty if it is."""
    meta, spec, status = (body.get(key) or {} for key in ("metadata", "spec", "status"))
    if meta.get("uid") != uid:
        return f"{name} was deleted and created again since the evidence"
    if "deletionTimestamp" in meta:
        return f"{name} is being deleted"
    if (owner := controller_of(body)) is not None:
        return f"{name} belongs to {owner.kind}/{owner.name}, which would undo the change: change that"
    if spec.get("paused"):
        return f"{name} is paused: somebody is changing it"
    strategy = spec.get("updateStrategy") or {}
    if strategy.get("type") == "OnDelete":
        return f"{name} has the update strategy OnDelete: no pod would be replaced"
    if (strategy.get("rollingUpdate") or {}).get("partition"):
        return f"{name} is updated up to a partition: somebody is changing it"
    if int(status.get("observedGeneration") or 0) < int(meta.get("generation") or 0):
        return f"{name} is being changed: its controller has not seen generation {meta.get('generation')} yet"
    return ""


def _other_revision(
    body: Json, found: Sequence[Revision], name: str, action: ProposedAction
) -> str:
    """Return why the present revision of a workload is not that of the evidence; empty if it is."""
    target = action.target
    if not found:
        return f"no revision of {name} is kept"
    present = found[0]
    is_same = (present.number, present.name) == (
        target["revision"],
        target["revision_name"],
    )
    if not is_same:
        there = f"revision {present.number} ({present.name})"
        return (
            f"{name} is at {there} now, and was at {target['revision']} in the evidence"
        )
    if _plain(present.template) != _plain(template_of(body)):
        return f"{name} is being changed: its pod template is not that of revision {present.number}"
    return ""


def _roll_back(
    body: Json,
    found: Sequence[Revision],
    name: str,
    action: ProposedAction,
    broken: str,
) -> _Look:
    number, named = action.target["to_revision"], action.target["to_name"]
    earlier = next(
        (one for one in found[1:] if (one.number, one.name) == (number, named)),
        None,
    )
    if earlier is None:
        return _Look(f"revision {number} ({named}) of {name} is not kept any more")
    template = _without_hash(earlier.template)
    if not template.get("spec"):
        return _Look(f"revision {number} of {name} has no pod template")
    if _plain(template_of(body)) == _plain(template):
        return _Look(f"{name} has the pod template of revision {number} already")
    meta = body["metadata"]
    patch: list[Json] = [
        # The lock: the server answers 409 if the object has another version.
        _replace("/metadata/resourceVersion", meta["resourceVersion"]),
        _replace("/spec/template", template),
    ]
    cause = earlier.cause or None
    known = dict(meta.get("annotations") or {})
    if cause != known.pop(CHANGE_CAUSE, None):
        annotations = {**known, **({CHANGE_CAUSE: cause} if cause else {})}
        patch.append({**_replace("/metadata/annotations", annotations), "op": "add"})
    changes = differences(template_of(body), template, 6) or ["a hidden value"]
    said = "; ".join(one_line(one, 200) for one in changes)
    seen = f"{name} gets the pod template of revision {number} ({named}): {said}; it is still broken: {broken}"
    return _Look("", patch, seen, template)


def _replace(path: str, value: object) -> Json:
    return {"op": "replace", "path": path, "value": value}


def _without_hash(template: Json) -> Json:
    """Return a pod template without what the controller of its revision added."""
    meta = {**(template.get("metadata") or {})}
    labels = meta.get("labels") or {}
    meta["labels"] = {key: one for key, one in labels.items() if key != HASH_LABEL}
    # A ControllerRevision is written as a strategic merge patch, with `$patch: replace`.
    kept = {key: one for key, one in template.items() if key != "$patch"}
    return {**kept, "metadata": meta}


def _plain(template: Mapping[str, Any]) -> object:
    """Return a pod template in a form that can be compared: a missing field, null and an empty one are the same."""

    def shorter(value: object) -> object:
        if isinstance(value, dict):
            pairs = ((key, shorter(item)) for key, item in value.items())
            return {key: item for key, item in pairs if item not in (None, {}, [], "")}
        if isinstance(value, list):
            return [shorter(item) for item in value]
        return value

    return shorter(_without_hash(dict(template)))


def _is_of(pod: Json, ref: Ref, revision: str) -> bool:
    """Return whether a pod is one of a revision of a workload."""
    owner = controller_of(pod)
    if owner is None:
        return False
    if ref.kind == "Deployment":
        return (owner.kind, owner.name) == (CONTROLLERS[ref.kind], revision)
    labels = (pod.get("metadata") or {}).get("labels") or {}
    same = is_of_revision(str(labels.get(REVISION_LABEL) or ""), revision)
    return same and (owner.kind, owner.name) == (ref.kind, ref.name)


def _ref(action: ProposedAction) -> Ref:
    target = action.target
    return Ref(str(target["kind"]), str(target["namespace"]), str(target["name"]))


def _path(action: ProposedAction) -> str:
    ref = _ref(action)
    return f"{path_of(ref.kind, ref.namespace)}/{checked(ref.name)}"


def _shown(action: ProposedAction) -> str:
    """Return the command of kubectl that does the same, without the conditions."""
    ref = _ref(action)
    where = f"{ref.kind.lower()}/{ref.name} -n {ref.namespace}"
    if action.kind == ROLL_BACK:
        return (
            f"kubectl rollout undo {where} --to-revision={action.target['to_revision']}"
        )
    return f"kubectl rollout restart {where}"
