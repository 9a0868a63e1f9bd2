"""Which actions on a workload follow from a verified diagnosis: a restart, and a roll-back to an earlier revision (pure).

What is acted on comes from the lines of `rollouts.history` in the evidence. The commands of the diagnosis are compared with it only.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from midwatch.model import Evidence, Origin
from midwatch.subjects.actionable import ActionKind, Findings, ProposedAction
from midwatch.subjects.kubernetes import settings as the
from midwatch.subjects.kubernetes.evidence import ref_of
from midwatch.subjects.kubernetes.object_fields import Ref
from midwatch.subjects.kubernetes.rollouts import CONTROLLERS
from midwatch.subjects.kubernetes.workloads import component

RESTART, ROLL_BACK = "restart_workload", "roll_back_workload"
KINDS = (
    ActionKind(RESTART, "Restart the pods of a workload"),
    ActionKind(ROLL_BACK, "Roll a workload back to an earlier revision"),
)
_RESTARTABLE = {
    one.id
    for one in (the.CRASH_LOOP, the.OOM_KILLED, the.PODS_UNREADY, the.ROLLOUT_STUCK)
}
_OF_A_ROLLOUT = _RESTARTABLE | {
    one.id
    for one in (
        the.IMAGE_PULL,
        the.CONTAINER_CONFIG,
        the.UNSCHEDULABLE,
        the.POD_PENDING,
    )
}
_LONG_KINDS = {
    **dict.fromkeys(("deployment", "deployments", "deploy"), "Deployment"),
    **dict.fromkeys(("statefulset", "statefulsets", "sts"), "StatefulSet"),
    **dict.fromkeys(("daemonset", "daemonsets", "ds"), "DaemonSet"),
}

# ------------------------------------------------------------------ what was measured

_NAME = r"[a-z0-9][-a-z0-9.]{0,252}"
_IDENTITY = re.compile(rf"(?P<kind>\w+) (?P<name>{_NAME}): uid (?P<uid>[-\w]{{1,64}}),")
_REVISION = re.compile(
    rf"revision (?P<number>\d{{1,9}}): (?P<name>{_NAME}), created (?P<created>\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ)(?:,|$)"
)
_POD_REVISION = re.compile(rf", revision ({_NAME})(?:,|$)")


@dataclass(frozen=True, slots=True)
class _Revision:
    number: int
    name: str
    created: datetime


@dataclass(frozen=True, slots=True)
class _Rollout:
    """What the evidence says of a workload's rollouts; the latest revision is the first one."""

    evidence_id: str
    uid: str
    revisions: tuple[_Revision, ...]


def propose(
    findings: Findings, settings: the.KubernetesSettings
) -> Iterator[ProposedAction]:
    """Yield the restart and the roll-back of the ticket's workload, as far as the diagnosis recommends and the evidence proves it."""
    ref = ref_of(findings.ticket)
    if ref is None or ref.kind not in CONTROLLERS:
        return
    name = component(ref)
    own = [
        one
        for one in findings.evidence
        if one.available and one.source == settings.shown
    ]
    quoted = {quote.evidence_id for quote in findings.quotes}
    about = {one.id for one in own if _is_about(one, name)}
    rollout = _rollout(own, ref)
    if not settings.actions.covers(name) or rollout is None or not quoted & about:
        return
    invariant = findings.ticket.key.invariant
    present = rollout.revisions[0]
    target: dict[str, str | int | float | None] = {
        "namespace": ref.namespace,
        "kind": ref.kind,
        "name": ref.name,
        "uid": rollout.uid,
        "invariant": invariant,
        "revision": present.number,
        "revision_name": present.name,
    }
    asked = list(_commands(findings.commands, ref))
    ids = (rollout.evidence_id,)
    if invariant in _RESTARTABLE and any(verb == "restart" for verb, _ in asked):
        yield ProposedAction(RESTART, target, f"restart {name}", ids)
    began = findings.ticket.first_seen_at
    late = (began - present.created).total_seconds()
    if (
        invariant in _OF_A_ROLLOUT
        and rollout.evidence_id in quoted
        and 0 <= late <= settings.actions.since_rollout
        and _is_newest(rollout)
        and _is_in(present, findings, own, ref)
    ):
        for verb, number in asked:
            earlier = _earlier(rollout, number) if verb == "undo" else None
            if earlier is not None:
                back = target | {
                    "to_revision": earlier.number,
                    "to_name": earlier.name,
                }
                what = f"roll {name} back from revision {present.number} to revision {earlier.number}"
                yield ProposedAction(ROLL_BACK, back, what, ids)


def _is_about(piece: Evidence, name: str) -> bool:
    titles = ("Status of", "Pods of", "Events about", "Rollout history of")
    return piece.title in {f"{one} {name}" for one in titles}


def _rollout(evidence: Sequence[Evidence], ref: Ref) -> _Rollout | None:
    """Return what the evidence says of the rollouts of a workload; None if it does not say it whole."""
    for piece in evidence:
        if piece.title != f"Rollout history of {component(ref)}":
            continue
        if piece.origin is not Origin.SYSTEM:
            continue
        head, *lines = piece.text.splitlines() or [""]
        found = _IDENTITY.match(head)
        if found is None or (found["kind"], found["name"]) != (ref.kind, ref.name):
            continue
        revisions = []
        for line in lines:  # up to the first one that is no revision
            one = _REVISION.match(line)
            if one is None:
                break
            try:
                created = datetime.fromisoformat(one["created"])
            except ValueError:
                break
            revisions.append(_Revision(int(one["number"]), one["name"], created))
        if revisions:
            return _Rollout(piece.id, found["uid"], tuple(revisions))
    return None


def _is_newest(rollout: _Rollout) -> bool:
    """Return whether the present revision was made last: of one that was used before it is not known when it came back."""
    present, *earlier = rollout.revisions
    return all(
        one.number < present.number and one.created <= present.created
        for one in earlier
    )


def _is_in(
    present: _Revision, findings: Findings, own: Sequence[Evidence], ref: Ref
) -> bool:
    """Return whether the pod of the ticket is one of the present revision, where the ticket names a pod."""
    pod = findings.ticket.facts.get("pod")
    if not pod:
        return True
    if ref.kind == "Deployment":
        return str(pod).startswith(f"{present.name}-")
    for piece in own:
        if piece.title != f"Pods of {component(ref)}":
            continue
        for line in piece.text.splitlines():
            found = _POD_REVISION.search(line)
            if line.startswith(f"pod {pod}: ") and found is not None:
                return is_of_revision(found[1], present.name)
    return False


def is_of_revision(label: str, name: str) -> bool:
    """Return whether the label of a pod means a ControllerRevision: a StatefulSet's has its name, a DaemonSet's its hash."""
    return bool(label) and (name == label or name.endswith(f"-{label}"))


def _earlier(rollout: _Rollout, number: int) -> _Revision | None:
    """Return the revision that a roll-back means: the one before without a number (0). None if it is not an earlier one."""
    earlier = rollout.revisions[1:]
    if number:
        return next((one for one in earlier if one.number == number), None)
    return earlier[0] if earlier else None


# ------------------------------------------------------------------ what is recommended

_ENDS = re.compile(r"&&|\|\|?|;|\n")
_WITH_VALUE = {"-n", "--namespace", "--to-revision", "--context", "--kubeconfig"}


def _commands(commands: Sequence[str], ref: Ref) -> Iterator[tuple[str, int]]:
    """Yield verb and revision of each `kubectl rollout restart | undo` of a workload; a revision of 0 is the one before."""
    for text in commands:
        for one in _ENDS.split(text):
            try:
                words = shlex.split(one, comments=True)
            except ValueError:
                continue
            if "kubectl" not in words:
                continue
            named, options = _read(words[words.index("kubectl") + 1 :])
            if named[:1] != ["rollout"] or len(named) not in (3, 4):
                continue
            kind, _, name = "/".join(named[2:]).partition("/")
            space = options.get("-n", options.get("--namespace", ref.namespace))
            number = options.get("--to-revision", "0")
            if (
                _LONG_KINDS.get(kind.partition(".")[0].lower()) == ref.kind
                and (name, space) == (ref.name, ref.namespace)
                and number.isdecimal()
            ):
                yield named[1], int(number)


def _read(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the names and the options of a command; an option that is not known has no value of its own."""
    named: list[str] = []
    options: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            named.append(word)
            continue
        option, equals, value = word.partition("=")
        if not equals and option in _WITH_VALUE:
            value = next(rest, "")
        options[option] = value
    return named, options
