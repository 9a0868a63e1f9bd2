"""The rules of writes to a resource's `status`, for every writer. Pure.

The operator and the runners of several attempts write the same document. Each of them computes its patch
with `merged` from the document as it stands, so the rules below hold in every order of their writes:

- a terminal phase is never changed, nor its reason, message and times; data of the same attempt may follow it
- within an attempt the phase only goes forward
- a lower attempt writes nothing (WriterOutdated); neither does a later one after the end
- `observedGeneration`, `attempt`, `restarts`, counts and costs never decrease
- `restarts` goes with `attempt`, in the first write of an attempt: the operator's or the runner's
- `Ready` and `Finished` are consistent with a terminal phase, also one that another writer set
- a start and an end are set once; a condition's `lastTransitionTime` moves only with its status

Lengths are limited as in `metav1.Condition`, or more tightly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from midwatch.cluster.errors import ResourceGone
from midwatch.kube.errors import WriterOutdated
from midwatch.kube.resource import VALIDATIONS, Part, cel
from midwatch.model import Json, Usage, keepable
from midwatch.session.events import Failure, Phase
from midwatch.session.permissions import TOOLS_DENIED, denied_line
from midwatch.session.status import SessionStatus
from midwatch.workspace.inspect import RepoState, describe_work, other_line
from midwatch.workspace.push import PushResult

MAX_RESULT = 8192
"""Bytes of the result; the full result is in the session's outbox."""
MAX_MESSAGE = 4096
"""Bytes of a message; metav1.Condition takes 32768 characters."""
MAX_REASON = 128
"""Characters of a reason; metav1.Condition takes 1024."""
MAX_REPOS = 50
CUT = "… [cut]"

ConditionStatus = Literal["True", "False", "Unknown"]

_PHASES = {phase.value: phase for phase in Phase}
_ORDER = {Phase.PENDING: 0, Phase.CREATING: 1, Phase.RUNNING: 2}
_PHASE_FIELDS = ("phase", "reason", "message")
"""The fields of a phase, which are accepted or refused together."""
_PHASE_CONDITIONS = ("Ready", "Finished")
"""The conditions that follow from a phase."""
_SET_ONCE = ("startTime", "completionTime")
_NEVER_LOWERED = (
    "observedGeneration",
    "attempt",
    "restarts",
    "numTurns",
    "totalCostUsd",
)
_INVALID_IN_REASON = re.compile(r"[^A-Za-z0-9_]")


@dataclass(frozen=True, slots=True)
class Writer:
    """The identity of a writer: the resource, the generation of its spec, and the attempt (0 before the first)."""

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
    """Return the merge patch of `status` that applies changes to a resource; None if nothing changes.

    Args:
        body: The resource.
        writer: The identity of the writer.
        changes: Fields of the status; None removes a field.
        conditions: Conditions to set; of two with one type the last counts.
        now: The time of new transitions.

    Raises:
        ResourceGone: The resource is not the writer's.
        WriterOutdated: A later attempt has taken over, or the session has ended.
    """
    status: Json = dict(body.get("status") or {})
    _check_writer(body, status, writer)
    allowed = _allowed_changes(status, writer, changes)
    refused = "phase" in changes and "phase" not in allowed
    wanted = _bounded_fields(allowed)
    wanted["observedGeneration"] = writer.generation
    if writer.attempt:
        wanted |= {"attempt": writer.attempt, "restarts": writer.attempt - 1}
    if _phase(wanted.get("phase")).terminal:
        wanted.setdefault("completionTime", timestamp(now))
    over = phase_of(body).terminal
    if over and not status.get("completionTime"):
        wanted["completionTime"] = timestamp(now)
    accepted = [
        condition
        for condition in conditions
        if not ((refused or over) and condition.type in _PHASE_CONDITIONS)
    ]
    wanted["conditions"] = _conditions(status, writer, accepted, now)
    if inconsistent := inconsistent_conditions({**status, **wanted}):
        wanted["conditions"] = _conditions(
            status, writer, [*accepted, *inconsistent], now
        )
    return _difference(status, wanted) or None


def phase_of(body: Mapping[str, Any]) -> Phase:
    """Return the phase of a resource; Pending if it has none."""
    status = body.get("status")
    return _phase(status.get("phase") if isinstance(status, Mapping) else None)


def timestamp(at: datetime) -> str:
    """Return a time in the format of `metav1.Time`: UTC, whole seconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def bounded(text: str, limit: int) -> str:
    """Return `text` in at most `limit` bytes of UTF-8, with a mark where it was cut."""
    clean = keepable(text)
    data = clean.encode()
    if len(data) <= limit:
        return clean
    room = limit - len(CUT.encode())
    if room < 0:
        return data[:limit].decode(errors="ignore")
    return data[:room].decode(errors="ignore") + CUT


def reason_of(text: str) -> str:
    """Return `text` as a reason: CamelCase, within the pattern of metav1.Condition."""
    words = [word for word in _INVALID_IN_REASON.split(text) if word.strip("_")]
    name = "".join(word[:1].upper() + word[1:] for word in words).strip("_")
    name = name[:MAX_REASON].rstrip("_").lstrip("0123456789_")
    return name or "Unspecified"


# ------------------------------------------------------------------ the rules


def _check_writer(body: Mapping[str, Any], status: Json, writer: Writer) -> None:
    uid = (body.get("metadata") or {}).get("uid", "")
    if writer.uid and uid and uid != writer.uid:
        raise ResourceGone("the resource was replaced by another of the same name")
    attempt = _number(status.get("attempt"))
    if attempt > writer.attempt:
        raise WriterOutdated(f"attempt {attempt:g} has taken over this session")
    phase = phase_of(body)
    if phase.terminal and attempt < writer.attempt:
        raise WriterOutdated(f"the session is {phase.value} already")


def _allowed_changes(status: Json, writer: Writer, changes: Json) -> Json:
    """Return the changes that the rules allow."""
    current, same = _phase(status.get("phase")), _same_attempt(status, writer)
    proposed = _phase(changes.get("phase", current.value))
    back = same and _ORDER.get(proposed, 3) < _ORDER.get(current, 3)
    allowed = dict(changes)
    if current.terminal or back:
        for name in (*_PHASE_FIELDS, "completionTime"):
            allowed.pop(name, None)
    if same and allowed.get("podName", "") is None:  # only the next attempt clears it
        del allowed["podName"]
    for name in _SET_ONCE:
        if status.get(name):
            allowed.pop(name, None)
    return allowed


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
    """Return the fields of `wanted` that differ from the status, as a merge patch."""
    patch: Json = {}
    for name, value in wanted.items():
        had = status.get(name)
        if name in _NEVER_LOWERED and value is not None:
            value = max(value, _number(had)) if had is not None else value
        elif name == "usage" and isinstance(value, Mapping):
            value = _max_usage(had, value)
        if value != had:
            patch[name] = value
    return patch


def _max_usage(had: Any, counts: Mapping[str, Any]) -> Json:
    """Return usage that never decreases: a later attempt may have lost the counts of tokens already paid for."""
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
    """Return the new list of conditions. Of a type given twice the last counts; types not given stay."""
    by_type: dict[str, Json] = {
        condition["type"]: condition
        for condition in status.get("conditions") or ()
        if isinstance(condition, dict) and isinstance(condition.get("type"), str)
    }
    for condition in {one.type: one for one in conditions}.values():
        before = by_type.get(condition.type)
        if not _concerns_older_spec(condition, before, writer):
            by_type[condition.type] = _condition(condition, before, writer, now)
    return list(by_type.values())


def _concerns_older_spec(
    condition: Condition, before: Json | None, writer: Writer
) -> bool:
    """Return whether a condition concerns an older spec than the current condition does.

    Only `Accepted` concerns a spec. The others are about the run, which continues when the spec changes: a runner that
    a new generation stops still writes them last.
    """
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


# ------------------------------------------------------------------ what a session reports


def phase_changes(phase: Phase, reason: str, message: str = "") -> Json:
    """Return the fields of a phase."""
    return {"phase": phase.value, "reason": reason_of(reason), "message": message}


def phase_conditions(
    phase: Phase, reason: str, message: str = ""
) -> tuple[Condition, ...]:
    """Return `Ready` (the session works, or waits for messages) and `Finished` for a phase."""
    ready: ConditionStatus = "True" if phase is Phase.RUNNING else "False"
    finished: ConditionStatus = "True" if phase.terminal else "False"
    return (
        Condition("Ready", ready, reason, message),
        Condition("Finished", finished, reason, message),
    )


def inconsistent_conditions(status: Mapping[str, Any]) -> tuple[Condition, ...]:
    """Return corrections of the conditions that are inconsistent with a terminal phase.

    A session's pod may write any status, and Claude's Bash runs in that pod: a terminal phase written alone must not
    leave others waiting for `Finished`.
    """
    phase = _phase(status.get("phase"))
    if not phase.terminal:
        return ()
    listed = status.get("conditions") or ()
    has = {one.get("type"): one.get("status") for one in listed}
    reason, message = status.get("reason") or phase.value, status.get("message") or ""
    wanted = phase_conditions(phase, str(reason), str(message))
    return tuple(one for one in wanted if has.get(one.type) != one.status)


def denied_conditions(status: SessionStatus) -> tuple[Condition, ...]:
    """Return the condition `ToolsDenied` if a tool call was denied; it names the calls."""
    if not status.denied:
        return ()
    message = denied_line(status.denied, MAX_MESSAGE)
    return (Condition(TOOLS_DENIED, "True", "PermissionDenied", message),)


def session_changes(
    status: SessionStatus, *, hints: Mapping[str, str] | None = None
) -> Json:
    """Return a session's status as fields of the resource.

    Args:
        status: The session's status.
        hints: Hints by kind of error that replace the error's own, which address a user of the command line.
    """
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
    """Return the reason and the message of a session's phase."""
    match status.phase:
        case Phase.CREATING:
            return "StartingClaude", ""
        case Phase.RUNNING if status.pending_permissions:
            tool = status.pending_permissions[0].tool
            return "PermissionNeeded", f"Claude asks for permission to use {tool[:100]}"
        case Phase.RUNNING if status.unfinished:
            return "Working", ""
        case Phase.RUNNING:
            return "WaitingForMessages", "send the next message to the inbox"
        case Phase.COMPLETED:
            turns = "1 turn" if status.turns == 1 else f"{status.turns} turns"
            denied = denied_line(status.denied)
            return "Completed", f"done after {turns}" + (denied and f"; {denied}")
        case Phase.FAILED if status.error is not None:
            return failure_reason(status.error, hints)
        case Phase.STOPPED:
            return _stopped(status.reason)
        case _:
            return status.reason or status.phase.value, ""


def failure_reason(error: Failure, hints: Mapping[str, str]) -> tuple[str, str]:
    """Return the reason and the message of a failure: what failed, then what to do."""
    hint = hints.get(error.kind, error.hint)
    return error.kind, f"{error.message} ({hint})" if hint else error.message


def _stopped(reason: str) -> tuple[str, str]:
    """Return reason and message of a stop: `idle` and `interrupted` come from the session, others from outside."""
    if reason == "idle":
        return "Idle", "no message came within spec.idleTimeout"
    if reason == "interrupted":
        return "Interrupted", "its turn was interrupted"
    return "Stopped", f"it was stopped: {reason}" if reason else "it was stopped"


_WEIGHT = {"nothing": 0, "pushed": 1, "failed": 2}


def repository_changes(
    records: Sequence[RepoState], pushes: Sequence[PushResult] = ()
) -> list[Json]:
    """Return `status.repos`. The outcome of a push replaces the state of the clone."""
    by_name: dict[str, PushResult] = {}
    for push in pushes:  # a repository has one for each branch
        known = by_name.setdefault(push.name, push)
        if _WEIGHT[push.outcome] > _WEIGHT[known.outcome]:
            by_name[push.name] = push
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
    work = _other_work(record)
    if record.problem or work:
        fields["message"] = bounded(record.problem or work, 1024)
    if push is not None and push.outcome == "pushed":
        to = f"{push.remote} {push.branch}"
        fields |= {"state": "pushed", "pushedTo": bounded(to, 2304)}
    if push is not None and push.outcome == "failed" and push.error is not None:
        fields |= {"state": "failed", "message": bounded(push.error.one_line(), 1024)}
    return fields


def _other_work(record: RepoState) -> str:
    """Return the work that is not at HEAD: on other branches, in stashes, worktrees and submodules."""
    parts = [other_line(item) for item in record.other[:_MAX_OTHER]]
    if record.other_count > _MAX_OTHER:
        parts.append(f"{record.other_count - _MAX_OTHER} more")
    parts += [f"{one.name} ({describe_work(one)})" for one in record.submodules]
    return f"also: {', '.join(parts)}" if parts else ""


_MAX_OTHER = 10

# ------------------------------------------------------------------ the document

# `crd` generates the schema of `status` from this. Limits are wide: a refused status would be lost.
Count = Annotated[int, Field(strict=True, ge=0)]
Generation = Annotated[
    Count, Field(description="The generation of the spec that this applies to.")
]
Name = Annotated[str, Field(max_length=253)]
Reason = Annotated[
    str, Field(max_length=1024, description="The reason, one word in CamelCase.")
]
Message = Annotated[
    str, Field(max_length=32_768, description="What happened, and what to do.")
]


class TokenUsage(Part):
    """Tokens that were used."""

    input_tokens: Count | None = Field(None, description="Input tokens.")
    output_tokens: Count | None = Field(None, description="Output tokens.")
    cache_read_input_tokens: Count | None = Field(
        None, description="Tokens read from the prompt cache."
    )
    cache_creation_input_tokens: Count | None = Field(
        None, description="Tokens written to the prompt cache."
    )


class StatusCondition(Part):
    """A condition (metav1.Condition)."""

    type: str = Field(
        max_length=316, description="Accepted, Ready, WorkspaceSaved or Finished."
    )
    status: ConditionStatus
    reason: Annotated[Reason, Field(min_length=1)]
    message: Message
    last_transition_time: datetime = Field(description="When the status last changed.")
    observed_generation: Generation | None = None


class RepoStatus(Part):
    """The state of a repository."""

    name: Name = Field(description="Its folder in the workspace.")
    state: Literal["clean", "changed", "pushed", "failed"]
    branch: str | None = Field(
        None, max_length=1024, description="The branch that the session works on."
    )
    added: Count | None = Field(None, description="Lines added.")
    removed: Count | None = Field(None, description="Lines removed.")
    files: Count | None = Field(None, description="Files changed.")
    untracked: Count | None = Field(None, description="Untracked files.")
    commits: Count | None = Field(None, description="Commits made.")
    pushed_to: str | None = Field(
        None,
        max_length=4096,
        description="The repository and branch that the commits were pushed to.",
    )
    message: Message | None = Field(
        None, description="The error, or the work that is not at HEAD."
    )


_TERMINAL = ", ".join(f"'{phase}'" for phase in Phase if phase.terminal)
_PHASE_RULE = cel(
    f"self == oldSelf || !(oldSelf in [{_TERMINAL}])",
    "the session has ended: its phase cannot change",
)
_STATUS_RULE = cel(
    "!has(oldSelf.phase) || has(self.phase)",
    "the phase cannot be removed",
    ".phase",
)


class Status(Part):
    """The state of the session."""

    model_config = ConfigDict(json_schema_extra={VALIDATIONS: [_STATUS_RULE]})

    phase: Phase | None = Field(
        None,
        description="The phase. Completed, Failed and Stopped are final.",
        json_schema_extra={VALIDATIONS: [_PHASE_RULE]},
    )
    reason: Reason | None = None
    message: Message | None = None
    observed_generation: Generation | None = None
    start_time: datetime | None = Field(
        None, description="When the first attempt started."
    )
    completion_time: datetime | None = Field(
        None, description="When the session ended."
    )
    last_activity_time: datetime | None = Field(
        None, description="The last activity of the session."
    )
    job_name: Name | None = Field(None, description="The Job of the current attempt.")
    pod_name: Name | None = Field(None, description="The pod of the current attempt.")
    attempt: Count | None = Field(
        None, description="The number of the current attempt, from 1."
    )
    restarts: Count | None = Field(
        None, description="Number of restarts after a lost pod."
    )
    session_id: Name | None = Field(
        None, description="Claude's id of the conversation."
    )
    model: Name | None = Field(None, description="The model in use.")
    num_turns: Count | None = Field(None, description="Calls to the Claude API.")
    usage: TokenUsage | None = None
    total_cost_usd: float | None = Field(None, ge=0, description="Cost in US dollars.")
    result: str | None = Field(
        None,
        max_length=MAX_RESULT,
        description="Claude's final answer, shortened.",
    )
    conditions: tuple[StatusCondition, ...] | None = Field(
        None,
        max_length=16,
        description="The conditions of the session.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    )
    repos: tuple[RepoStatus, ...] | None = Field(
        None, max_length=64, description="The repositories of the workspace."
    )
