"""What the operator does, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from midwatch.kube.statuses import Condition
from midwatch.model import Json


@dataclass(frozen=True, slots=True)
class Look:
    """Read the resource, its Jobs and its pods anew: a cache is no ground for what cannot be undone."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Hold the resource back from being deleted unseen."""


@dataclass(frozen=True, slots=True)
class Release:
    """Let it go."""


@dataclass(frozen=True, slots=True)
class CreateJob:
    """And what a session has beside it, where that is missing. `timeout`: seconds that are left."""

    attempt: int
    timeout: int


@dataclass(frozen=True, slots=True)
class SuspendJob:
    """End its pods with SIGTERM and their grace."""

    name: str


@dataclass(frozen=True, slots=True)
class DeleteJob:
    name: str


@dataclass(frozen=True, slots=True)
class ExpireJob:
    """Let Kubernetes delete it, with its pod's log, once it has been over for `operator.job_ttl`."""

    name: str


@dataclass(frozen=True)
class WriteStatus:
    """As the operator, on behalf of this attempt."""

    attempt: int
    changes: Json
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """For `kubectl describe`; told once for an attempt."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    attempt: int


Action = (
    Look
    | Hold
    | Release
    | CreateJob
    | SuspendJob
    | DeleteJob
    | ExpireJob
    | WriteStatus
    | Event
)


@dataclass(frozen=True)
class Plan:
    """`again`: seconds after which to look without anything having happened; None: no need.

    `done`: nothing is left to do for this session, ever.
    """

    actions: tuple[Action, ...] = ()
    again: float | None = None
    done: bool = False
