"""What may be written into a resource's `status`, whoever writes it. Pure.

The operator and the runners of several attempts write the same document. Each of them computes its patch
with `merged` from the document as it stands, so the rules below hold in every order of their writes:

- a terminal phase is never changed, nor its reason, message and times; data of the same attempt may follow it
- within an attempt the phase only goes forward
- a lower attempt writes nothing (WriterOutdated); neither does a later one after the end
- `observedGeneration`, `attempt`, `restarts` and what was counted or paid never go down
- `Ready` and `Finished` fit a terminal phase, whoever wrote that
- a start and an end are told once; a condition's `lastTransitionTime` moves only with its status

The limits of lengths are those of `metav1.Condition`, and smaller ones of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from midwatch.kube.errors import ResourceGone, WriterOutdated
from midwatch.kube.resource import VALIDATIONS, Part, cel
from midwatch.model import Json, Usage, keepable
from midwatch.session.events import Failure, Phase
from midwatch.session.status import SessionStatus
from midwatch.workspace.inspect import RepoState
from midwatch.workspace.push import PushResult

MAX_RESULT = 8192
"""Bytes of the result; the whole answer is in the session's outbox."""
MAX_MESSAGE = 4096
"""Bytes of a message; metav1.Condition takes 32768 characters."""
MAX_REASON = 128
"""Characters of a reason; metav1.Condition takes 1024."""
MAX_REPOS = 50
CUT = "… [cut]"

ConditionStatus = Literal["True", "False", "Unknown"]

_PHASES = {phase.value: phase for phase in Phase}
_ORDER = {Phase.PENDING: 0, Phase.CREATING: 1, Phase.RUNNING: 2}
_STORY = ("phase", "reason", "message")
"""What belongs to a phase: told together, refused together."""
_OF_THE_PHASE = ("Ready", "Finished")
"""The conditions that follow from a phase."""
_ONCE = ("startTime", "completionTime")
_UPWARD = ("observedGeneration", "attempt", "restarts", "numTurns", "totalCostUsd")
_NOT_OF_A_REASON = re.compile(r"[^A-Za-z0-9_]")


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes: for which resource, after which spec, in which attempt (0 before the first)."""

    uid: str
    generation: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Condition:
    """A `metav1.Condition`; its times and generation are added by `merged`."""

    type: str
    status: ConditionStatus
    reason: str
    message: str = ""


def merged(
    body: Mapping[str, Any],
    writer: Writer,
    changes: Json,
    conditions: Sequence[Condition],
    now: datetime,
) -> Json | None:
    """The merge patch of `status` that brings `changes` into the resource `body`; None for no change.

    A value of None in `changes` removes a field. Raises ResourceGone where the resource is another one
    than the writer's, and WriterOutdated where a later attempt has taken over, or the session is over.
    """
    status: Json = dict(body.get("status") or {})
    _check_writer(body, status, writer)
    taken = _taken(status, writer, changes)
    refused = "phase" in changes and "phase" not in taken
    wanted = _bounded_fields(taken)
    wanted["observedGeneration"] = writer.generation
    if writer.attempt:
        wanted["attempt"] = writer.attempt
    if _phase(wanted.get("phase")).terminal:
        wanted.setdefault("completionTime", timestamp(now))
    over = phase_of(body).terminal
    if over and not status.get("completionTime"):
        wanted["completionTime"] = timestamp(now)
    told = [
        condition
        for condition in conditions
        if not ((refused or over) and condition.type in _OF_THE_PHASE)
    ]
    wanted["conditions"] = _conditions(status, writer, told, now)
    if crooked := out_of_step({**status, **wanted}):
        wanted["conditions"] = _conditions(status, writer, [*told, *crooked], now)
    return _difference(status, wanted) or None


def phase_of(body: Mapping[str, Any]) -> Phase:
    """The phase in a resource; Pending where there is none."""
    status = body.get("status")
    return _phase(status.get("phase") if isinstance(status, Mapping) else None)


def timestamp(at: datetime) -> str:
    """A time as `metav1.Time` has it: UTC, whole seconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def bounded(text: str, limit: int) -> str:
    """`text` in at most `limit` bytes of UTF-8, with a mark where it was cut."""
    clean = keepable(text)
    data = clean.encode()
    if len(data) <= limit:
        return clean
    room = limit - len(CUT.encode())
    if room < 0:
        return data[:limit].decode(errors="ignore")
    return data[:room].decode(errors="ignore") + CUT


def reason_of(text: str) -> str:
    """`text` as a reason: CamelCase, as the pattern of metav1.Condition wants it."""
    words = [word for word in _NOT_OF_A_REASON.split(text) if word.strip("_")]
    name = "".join(word[:1].upper() + word[1:] for word in words).strip("_")
    name = name[:MAX_REASON].rstrip("_").lstrip("0123456789_")
    return name or "Unspecified"


# ------------------------------------------------------------------ the rules


def _check_writer(body: Mapping[str, Any], status: Json, writer: Writer) -> None:
    uid = (body.get("metadata") or {}).get("uid", "")
    if writer.uid and uid and uid != writer.uid:
        raise ResourceGone("the resource was replaced by another of its name")
    attempt = _number(status.get("attempt"))
    if attempt > writer.attempt:
        raise WriterOutdated(f"attempt {attempt:g} has taken over this session")
    phase = phase_of(body)
    if phase.terminal and attempt < writer.attempt:
        raise WriterOutdated(f"the session is {phase.value} already")


def _taken(status: Json, writer: Writer, changes: Json) -> Json:
    """The changes without what the rules keep back."""
    current, same = _phase(status.get("phase")), _same_attempt(status, writer)
    proposed = _phase(changes.get("phase", current.value))
    back = same and _ORDER.get(proposed, 3) < _ORDER.get(current, 3)
    taken = dict(changes)
    if current.terminal or back:
        for name in (*_STORY, "completionTime"):
            taken.pop(name, None)
    for name in _ONCE:
        if status.get(name):
            taken.pop(name, None)
    return taken


def _same_attempt(status: Json, writer: Writer) -> bool:
    return _number(status.get("attempt")) == writer.attempt


def _phase(value: Any) -> Phase:
    return (
        _PHASES.get(value, Phase.PENDING) if isinstance(value, str) else Phase.PENDING
    )


def _number(value: Any) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if good else 0


def _difference(status: Json, wanted: Json) -> Json:
    """What of `wanted` is new, as a merge patch."""
    patch: Json = {}
    for name, value in wanted.items():
        had = status.get(name)
        if name in _UPWARD and value is not None:
            value = max(value, _number(had)) if had is not None else value
        elif name == "usage" and isinstance(value, Mapping):
            value = _upward(had, value)
        if value != had:
            patch[name] = value
    return patch


def _upward(had: Any, counts: Mapping[str, Any]) -> Json:
    """Tokens were paid for, also where the folder of a later attempt knows of fewer."""
    before: Mapping[str, Any] = had if isinstance(had, Mapping) else {}
    return {**before} | {
        name: max(count, _number(before.get(name, 0))) for name, count in counts.items()
    }


def _bounded_fields(changes: Json) -> Json:
    fields = dict(changes)
    for name, limit in (("message", MAX_MESSAGE), ("result", MAX_RESULT)):
        if isinstance(fields.get(name), str):
            fields[name] = bounded(fields[name], limit)
    if isinstance(fields.get("reason"), str):
        fields["reason"] = reason_of(fields["reason"])
    return fields


def _conditions(
    status: Json, writer: Writer, conditions: Iterable[Condition], now: datetime
) -> list[Json]:
    """The list as it should be: of a type named twice the last counts, and what nobody names stays as it is."""
    by_type: dict[str, Json] = {
        condition["type"]: condition
        for condition in status.get("conditions") or ()
        if isinstance(condition, dict) and isinstance(condition.get("type"), str)
    }
    for condition in {one.type: one for one in conditions}.values():
        before = by_type.get(condition.type)
        if not _speaks_of_an_older_spec(condition, before, writer):
            by_type[condition.type] = _condition(condition, before, writer, now)
    return list(by_type.values())


def _speaks_of_an_older_spec(
    condition: Condition, before: Json | None, writer: Writer
) -> bool:
    """`Accepted` judges a spec. The others tell of the run, which goes on when the spec changes: a
    runner that is stopped by a new generation still has the last word on them."""
    seen = _number((before or {}).get("observedGeneration"))
    return condition.type == "Accepted" and seen > writer.generation


def _condition(
    condition: Condition, before: Json | None, writer: Writer, now: datetime
) -> Json:
    before = before or {}
    same = before.get("status") == condition.status
    since = before.get("lastTransitionTime") if same else None
    seen = _number(before.get("observedGeneration"))
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": reason_of(condition.reason),
        "message": bounded(condition.message, MAX_MESSAGE),
        "lastTransitionTime": since or timestamp(now),
        "observedGeneration": int(max(seen, writer.generation)),
    }


# ------------------------------------------------------------------ what a session tells


def phase_changes(phase: Phase, reason: str, message: str = "") -> Json:
    """A phase with its reason and message."""
    return {"phase": phase.value, "reason": reason_of(reason), "message": message}


def phase_conditions(
    phase: Phase, reason: str, message: str = ""
) -> tuple[Condition, ...]:
    """`Ready` (a session works, or waits for messages) and `Finished`, as they follow from a phase."""
    ready: ConditionStatus = "True" if phase is Phase.RUNNING else "False"
    finished: ConditionStatus = "True" if phase.terminal else "False"
    return (
        Condition("Ready", ready, reason, message),
        Condition("Finished", finished, reason, message),
    )


def out_of_step(status: Mapping[str, Any]) -> tuple[Condition, ...]:
    """The conditions that do not fit a terminal phase, as they should be.

    A session's pod may write any status, and Claude's Bash is in that pod: a phase that somebody wrote alone
    must not leave others waiting for `Finished`.
    """
    phase = _phase(status.get("phase"))
    if not phase.terminal:
        return ()
    listed = status.get("conditions") or ()
    has = {one.get("type"): one.get("status") for one in listed}
    reason, message = status.get("reason") or phase.value, status.get("message") or ""
    wanted = phase_conditions(phase, str(reason), str(message))
    return tuple(one for one in wanted if has.get(one.type) != one.status)


def session_changes(
    status: SessionStatus, *, hints: Mapping[str, str] | None = None
) -> Json:
    """A session's status as fields of the resource. `hints` by kind of error take the place of the
    error's own, which speak to somebody at a command line."""
    reason, message = phase_reason(status, hints or {})
    changes = phase_changes(status.phase, reason, message) | {
        "numTurns": status.turns,
        "totalCostUsd": round(status.cost_usd, 6),
        "usage": usage_fields(status.usage),
    }
    if status.conversation:
        changes["sessionId"] = status.conversation
    if status.model:
        changes["model"] = bounded(status.model, 100)
    if status.result:
        changes["result"] = bounded(status.result, MAX_RESULT)
    if status.last_activity_at is not None:
        changes["lastActivityTime"] = timestamp(status.last_activity_at)
    if status.phase.terminal and status.ended_at is not None:
        changes["completionTime"] = timestamp(status.ended_at)
    return changes


def usage_fields(usage: Usage) -> Json:
    return {
        "inputTokens": usage.input_tokens,
        "outputTokens": usage.output_tokens,
        "cacheReadInputTokens": usage.cache_read_tokens,
        "cacheCreationInputTokens": usage.cache_write_tokens,
    }


def phase_reason(status: SessionStatus, hints: Mapping[str, str]) -> tuple[str, str]:
    """The reason and the message of a session's phase."""
    match status.phase:
        case Phase.CREATING:
            return "StartingClaude", ""
        case Phase.RUNNING if status.pending_permissions:
            tool = status.pending_permissions[0].tool
            return "PermissionNeeded", f"Claude asks whether it may use {tool[:100]}"
        case Phase.RUNNING if status.unfinished:
            return "Working", ""
        case Phase.RUNNING:
            return "WaitingForMessages", "the next message goes into the inbox"
        case Phase.COMPLETED:
            turns = "1 turn" if status.turns == 1 else f"{status.turns} turns"
            return "Completed", f"done after {turns}"
        case Phase.FAILED if status.error is not None:
            return failure_story(status.error, hints)
        case Phase.STOPPED:
            return _stopped(status.reason)
        case _:
            return status.reason or status.phase.value, ""


def failure_story(error: Failure, hints: Mapping[str, str]) -> tuple[str, str]:
    """The reason and the message of a failure: what failed, then what to do."""
    hint = hints.get(error.kind, error.hint)
    return error.kind, f"{error.message} ({hint})" if hint else error.message


def _stopped(reason: str) -> tuple[str, str]:
    """`idle` and `interrupted` are the session's own words; else somebody asked from outside."""
    if reason == "idle":
        return "Idle", "no message came within spec.idleTimeout"
    if reason == "interrupted":
        return "Interrupted", "its turn was interrupted"
    return "Stopped", f"it was stopped: {reason}" if reason else "it was stopped"


def repository_changes(
    records: Sequence[RepoState], pushes: Sequence[PushResult] = ()
) -> list[Json]:
    """The repositories as `status.repos`; what became of a push goes over how a clone looks."""
    by_name = {push.name: push for push in pushes}
    return [_repository(one, by_name.get(one.name)) for one in records[:MAX_REPOS]]


def _repository(record: RepoState, push: PushResult | None) -> Json:
    fields: Json = {
        "name": bounded(record.name, 100),
        "state": record.status,
        "added": record.added,
        "removed": record.removed,
        "files": len(record.files),
        "untracked": record.untracked,
        "commits": record.commit_count,
    }
    if record.branch:
        fields["branch"] = bounded(record.branch, 255)
    if record.problem:
        fields["message"] = bounded(record.problem, 1024)
    if push is not None and push.outcome == "pushed":
        to = f"{push.remote} {push.branch}"
        fields |= {"state": "pushed", "pushedTo": bounded(to, 2304)}
    if push is not None and push.outcome == "failed" and push.error is not None:
        fields |= {"state": "failed", "message": bounded(push.error.one_line(), 1024)}
    return fields


# ------------------------------------------------------------------ the document

# `crd` generates the schema of `status` from this. Bounds are wide: a status that is refused would be lost.
Count = Annotated[int, Field(strict=True, ge=0)]
Generation = Annotated[
    Count, Field(description="The generation of spec that this is about.")
]
Name = Annotated[str, Field(max_length=253)]
Reason = Annotated[
    str, Field(max_length=1024, description="Why, in one word of CamelCase.")
]
Message = Annotated[
    str, Field(max_length=32_768, description="Why, and what to do about it.")
]


class TokenUsage(Part):
    """What was read and written."""

    input_tokens: Count | None = Field(None, description="Read, in tokens.")
    output_tokens: Count | None = Field(None, description="Written, in tokens.")
    cache_read_input_tokens: Count | None = Field(
        None, description="Read from the cache, in tokens."
    )
    cache_creation_input_tokens: Count | None = Field(
        None, description="Put into the cache, in tokens."
    )


class StatusCondition(Part):
    """A condition, as Kubernetes has them."""

    type: str = Field(
        max_length=316, description="Accepted, Ready, WorkspaceSaved or Finished."
    )
    status: ConditionStatus
    reason: Annotated[Reason, Field(min_length=1)]
    message: Message
    last_transition_time: datetime = Field(description="When status became what it is.")
    observed_generation: Generation | None = None


class RepoStatus(Part):
    """A repository, as the session left it."""

    name: Name = Field(description="Its folder.")
    state: Literal["clean", "changed", "pushed", "failed"]
    branch: str | None = Field(
        None, max_length=1024, description="The branch that the session works on."
    )
    added: Count | None = Field(None, description="Lines added.")
    removed: Count | None = Field(None, description="Lines removed.")
    files: Count | None = Field(None, description="Files changed.")
    untracked: Count | None = Field(None, description="Files that git does not know.")
    commits: Count | None = Field(None, description="Commits made.")
    pushed_to: str | None = Field(
        None, max_length=4096, description="The repository and branch they are at."
    )
    message: Message | None = Field(None, description="What went wrong.")


_TERMINAL = ", ".join(f"'{phase}'" for phase in Phase if phase.terminal)
_PHASE_RULE = cel(
    f"self == oldSelf || !(oldSelf in [{_TERMINAL}])",
    "the session has ended: its phase stays",
)
_STATUS_RULE = cel(
    "!has(oldSelf.phase) || has(self.phase)", "the phase cannot be taken away", ".phase"
)


class Status(Part):
    """What has become of it."""

    model_config = ConfigDict(json_schema_extra={VALIDATIONS: [_STATUS_RULE]})

    phase: Phase | None = Field(
        None,
        description="Completed, Failed and Stopped are the end, and stay.",
        json_schema_extra={VALIDATIONS: [_PHASE_RULE]},
    )
    reason: Reason | None = None
    message: Message | None = None
    observed_generation: Generation | None = None
    start_time: datetime | None = Field(
        None, description="When the first attempt began."
    )
    completion_time: datetime | None = Field(None, description="When it ended.")
    last_activity_time: datetime | None = Field(
        None, description="The last sign of life of the session."
    )
    job_name: Name | None = Field(None, description="The Job of the present attempt.")
    pod_name: Name | None = Field(None, description="The pod of the present attempt.")
    attempt: Count | None = Field(None, description="Which attempt this is, from 1.")
    restarts: Count | None = Field(
        None, description="How often a lost pod was started again."
    )
    session_id: Name | None = Field(
        None, description="Claude's own id of the conversation."
    )
    model: Name | None = Field(None, description="The model that works.")
    num_turns: Count | None = Field(None, description="Calls of the API.")
    usage: TokenUsage | None = None
    total_cost_usd: float | None = Field(None, ge=0, description="Dollars spent.")
    result: str | None = Field(
        None,
        max_length=MAX_RESULT,
        description="What Claude said at the end, shortened.",
    )
    conditions: tuple[StatusCondition, ...] | None = Field(
        None,
        max_length=16,
        description="What holds and what does not.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    )
    repos: tuple[RepoStatus, ...] | None = Field(
        None, max_length=64, description="The repositories of the workspace."
    )
