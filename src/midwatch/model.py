"""The values that flow through Midwatch.

All are frozen. Times are aware datetimes in UTC, durations are seconds, money is US
dollars, sizes are bytes, shares are ratios between 0 and 1, unless a name says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

Fact = str | int | float | bool | None
Facts = Mapping[str, Fact]
Json = dict[str, Any]
_UNKEEPABLE = re.compile("[\x00\ud800-\udfff]")
_KEY_BYTES = 800  # three of them must fit one index entry of PostgreSQL, 2704 bytes


def keepable(text: str) -> str:
    """Return `text` as every database can store it: NUL and lone surrogates become U+FFFD."""
    if text.isascii() and "\0" not in text:
        return text
    return _UNKEEPABLE.sub("\ufffd", text)


class Severity(IntEnum):
    """How urgent a ticket is. Sorts with the most urgent first."""

    CRITICAL = 0
    WARNING = 1
    INFO = 2

    @property
    def label(self) -> str:
        return _LABELS[self]

    @classmethod
    def parse(cls, label: str) -> Severity:
        """Return the severity with this label. Raises KeyError for an unknown one."""
        return cls[label.upper()]


_LABELS = tuple(one.name.lower() for one in Severity)


class TicketStatus(StrEnum):
    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    DIAGNOSED = "diagnosed"
    GIVEN_UP = "given_up"  # no attempt had an answer that names it
    RESOLVED = "resolved"


UNDIAGNOSED = (TicketStatus.OPEN, TicketStatus.ACKNOWLEDGED)
"""The statuses of a ticket that waits for a diagnosis."""
UNRESOLVED = (*UNDIAGNOSED, TicketStatus.DIAGNOSED, TicketStatus.GIVEN_UP)


# ------------------------------------------------------------------ what is watched


class Unit(StrEnum):
    """The unit of a limit and of the values that are compared with it."""

    SECONDS = "seconds"
    BYTES = "bytes"
    RATIO = "ratio"
    COUNT = "count"
    NONE = ""  # the invariant has no limit: the subject itself reports whether it holds


@dataclass(frozen=True, slots=True)
class Invariant:
    """A condition that must hold on a subject, with its documentation.

    `limit` is in `unit`. With `above` true a value greater than the limit breaks the invariant, else a
    smaller one does. A ticket opens when it has been broken for `hold_for` seconds without a break.
    `vital` is true where a subject that breaks it is down, or is not what the settings say: `midwatch check` fails.
    `about` names the attributes by which `ignore` can leave something out (`("application", "role")`);
    "*" in it stands for any name, such as labels. Each entry of `ignore` maps some of them to shell patterns.
    """

    id: str
    title: str
    description: str
    severity: Severity = Severity.WARNING
    unit: Unit = Unit.NONE
    limit: float | None = None
    above: bool = True
    hold_for: float = 0.0
    vital: bool = False
    about: tuple[str, ...] = ()
    ignore: tuple[Mapping[str, str], ...] = ()

    def ignores(self, attributes: Mapping[str, object]) -> bool:
        """Return whether an entry of `ignore` matches: all its patterns fit the attributes of that name.

        Args:
            attributes: The values by name. None and a name that is missing are the empty text.
        """
        return any(
            all(
                fnmatchcase(_attribute(attributes.get(name)), pattern)
                for name, pattern in entry.items()
            )
            for entry in self.ignore
        )


def _attribute(value: object) -> str:
    return "" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Signal:
    """The state of one invariant on one component, in one observation.

    `holds` is given where the subject itself decides. Where it is None, `value` is compared with the
    invariant's limit. Neither of them, or a NaN, means that the state of this component is unknown.
    A signal of an invariant that is not among `Subject.invariants` has `holds` and `severity`.
    `message` is the one line that a ticket shows if the invariant is broken. `facts` are what a
    playbook needs (a pid, a user, a query). `severity` and `hold_for` (seconds) replace those of the
    invariant where they are given. `silenced_by` is what keeps it silent at its sender, such as
    "Alertmanager silence 4f…"; empty if nothing does.
    """

    invariant: str
    component: str
    message: str
    value: float | None = None
    holds: bool | None = None
    facts: Facts = field(default_factory=dict)
    severity: Severity | None = None
    hold_for: float | None = None
    silenced_by: str = ""


class ChangeKind(StrEnum):
    """What was changed."""

    DEPLOY = "deploy"
    CONFIG = "config"
    FLAG = "flag"
    MIGRATION = "migration"
    SCHEMA = "schema"
    CERTIFICATE = "certificate"
    COMMIT = "commit"
    TAG = "tag"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class ObservedChange:
    """A change that a subject itself knows of, such as a rollout. `Observation.changes` has them.

    Attributes:
        key: What makes it one within the subject, such as "deployment shop/web revision 12": it is stored once.
        title: One line, such as "rollout of deployment shop/web".
        at: When, if the system says so; else it happened between two observations.
        kind: What was changed.
        version_from: The version, image or value before.
        version_to: That after.
        author: Who did it, where the system says so.
        labels: What it is about, such as {"namespace": "shop"}.
    """

    key: str
    title: str
    at: datetime | None = None
    kind: ChangeKind = ChangeKind.DEPLOY
    version_from: str = ""
    version_to: str = ""
    author: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observation:
    """The result of one poll of a subject.

    `covered` has the ids of the invariants that were observed completely: on a component without a
    signal they hold. "*" covers all of them. An invariant that is not covered is unknown, never clear;
    `unavailable` has the reason, by id. `unsupported` has, by id, what a setting or a permission makes
    impossible to see, with the remedy: that is reported once, and is a violation only where it was seen before.
    `ignored` lists, by id, what the invariant's `ignore` left out. `state` is what the next observation is compared with
    (counters, sizes); it is kept across restarts and must be small and of JSON types. `background` is
    what a person would compare when something breaks (settings, versions, connected clients); it is
    not stored, and only differences are shown. `configuration` is the part of that which only a person or a
    deployment changes (settings, versions, certificates): it is kept across restarts, and each difference between two
    observations is stored as a change. An empty one could not be observed. `changes` are those that the system itself keeps, such as
    rollouts: each `key` is stored once, so an observation may repeat the recent ones.
    """

    signals: tuple[Signal, ...]
    covered: frozenset[str]
    unavailable: Mapping[str, str] = field(default_factory=dict)
    state: Json = field(default_factory=dict)
    background: Facts = field(default_factory=dict)
    unsupported: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    configuration: Facts = field(default_factory=dict)
    changes: tuple[ObservedChange, ...] = ()

    def covers(self, invariant: str) -> bool:
        """Return whether the invariant with this id was observed completely."""
        return invariant in self.covered or (
            "*" in self.covered
            and invariant not in self.unavailable
            and invariant not in self.unsupported
        )


class _Parts(NamedTuple):
    subject: str
    invariant: str
    component: str


class Key(_Parts):
    """The identity of a problem: at most one unresolved ticket exists per key.

    It is a tuple, as a hundred thousand of them are compared in each cycle of the monitor.
    """

    __slots__ = ()

    def __new__(cls, subject: str, invariant: str, component: str) -> Key:
        # A key that changed on its way through a store would never be found again.
        text = subject + invariant + component
        if len(text) <= _KEY_BYTES // 4 and text.isascii() and "\0" not in text:
            return tuple.__new__(cls, (subject, invariant, component))
        return tuple.__new__(cls, map(_key_part, (subject, invariant, component)))


def _key_part(text: str) -> str:
    """Return a storable, short text; two long texts stay different when they are cut."""
    if len(text) <= _KEY_BYTES and text.isascii() and "\0" not in text:
        return text
    clean = keepable(text)
    data = clean.encode()
    if len(data) <= _KEY_BYTES:
        return clean
    import hashlib  # loads OpenSSL

    start = data[: _KEY_BYTES - 20].decode(errors="ignore")
    return f"{start}…~{hashlib.sha256(data).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Violation:
    """An observed violation of an invariant on one component. `silenced_by` is that of its signal."""

    key: Key
    severity: Severity
    message: str
    value: float | None = None
    limit: float | None = None
    facts: Facts = field(default_factory=dict)
    silenced_by: str = ""


# ------------------------------------------------------------------ tickets

INVESTIGATION = "investigation"
"""The invariant of a ticket that somebody asked for: no observation opens or resolves it."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """The durable record of a violation until it clears.

    `attempts`, `next_attempt_at` and `last_error` are those of its batch, the unit of
    diagnosis. `seen` is true while the last successful observation still had the violation.
    `first_seen_at` is before `opened_at` where the invariant has a `hold_for`. `diagnosis_id` is the
    diagnosis that settled it; `left_out_by` is the last one that was made for it and did not name it.
    `silenced_by` is what keeps it silent, such as "silence 3", and `silenced_until` when that ends by itself:
    see `silenced_at`.
    """

    id: int
    key: Key
    severity: Severity
    status: TicketStatus
    held: bool
    message: str
    facts: Facts
    first_seen_at: datetime
    opened_at: datetime
    last_seen_at: datetime
    occurrence_count: int
    batch: int
    seen: bool = True
    flapping: bool = False
    previous_id: int | None = None
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None
    resolved_at: datetime | None = None
    resolution: str | None = None
    first_aid: Json | None = None
    diagnosis_id: int | None = None
    left_out_by: int | None = None
    attempts: int = 0
    next_attempt_at: datetime | None = None
    last_error: str | None = None
    silenced_by: str | None = None
    silenced_until: datetime | None = None

    @property
    def resolved(self) -> bool:
        return self.status is TicketStatus.RESOLVED

    def silenced_at(self, now: datetime) -> bool:
        """Return whether a silence keeps it silent at a time: no agent claims it, and no message is sent."""
        if self.silenced_by is None or self.resolved:
            return False
        return self.silenced_until is None or now < self.silenced_until


_NO_FACTS: Facts = {}


@dataclass(frozen=True, slots=True)
class OpenTicket:
    """What a cycle has to know of an unresolved ticket: there may be a hundred thousand.

    Attributes:
        new: Whether it waits for a diagnosis and has no first aid.
        message: Empty unless silences may match it, as `facts`.
    """

    id: int
    key: Key
    severity: Severity
    held: bool = False
    seen: bool = True
    new: bool = False
    message: str = ""
    facts: Facts = field(default_factory=lambda: _NO_FACTS)

    @classmethod
    def of(cls, id_: int, opened: Violation, seen: bool, texts: bool) -> OpenTicket:
        """Return it for a violation whose ticket has just opened, with message and facts if `texts`."""
        brief = (id_, opened.key, opened.severity, False, seen)
        if texts:
            return cls(*brief, message=opened.message, facts=opened.facts)
        return cls(*brief)


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One change of a ticket: when, by whom or what, from which state to which, and why."""

    ticket_id: int
    at: datetime
    actor: str
    action: str
    before: str | None
    after: str | None
    why: str


# ------------------------------------------------------------------ evidence and diagnosis


class Origin(StrEnum):
    """Who wrote a piece of evidence: it says what a quote of it can prove."""

    SYSTEM = "system"  # measured by the system or by Midwatch
    REPORTED = "reported"  # written by clients, or into logs, where others can write
    EARLIER = "earlier"  # an earlier diagnosis, or what a person noted on one
    NOTE = "note"  # a runbook: what people do and believe, not what is


@dataclass(frozen=True, slots=True)
class Evidence:
    """One numbered, redacted, size-bounded piece of text with its source and time.

    `id` is "E1", "E2", … within its context; runbooks are "R1", "R2", …. `available` is false where the source failed;
    the text is then the reason. `origin` is that of the text, and `reported` are the spans (start, end)
    of it that clients wrote, such as a query in a list of sessions. `command` is what exactly was asked,
    where Claude asked for it. `tickets` are the ids of those that it is for, where that is not the whole incident.
    """

    id: str
    title: str
    source: str
    at: datetime
    text: str
    available: bool = True
    origin: Origin = Origin.SYSTEM
    reported: tuple[tuple[int, int], ...] = ()
    command: str = ""
    tickets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """The input of a diagnosis: the tickets of a batch and the evidence, in order."""

    tickets: tuple[Ticket, ...]
    evidence: tuple[Evidence, ...]
    gathered_at: datetime


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a call, as the API counts them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
        )


DiagnosisOutcome = Literal[
    "running",  # the call is under way, or its daemon died before it ended
    "lost",  # its daemon died or lost its claim before an answer was stored
    "late",  # an answer came after the claim had passed to another; paid, not used
    "asked",  # for tools; the next call has their answers
    "answered",
    "refused",
    "cut",  # the complete parts of an answer that max_tokens truncated
    "error",  # the error is the diagnosis: a person has to act
    "retry",  # failed in a way that will be tried again
]
FINAL_OUTCOMES: frozenset[str] = frozenset({"answered", "refused", "cut", "error"})


@dataclass(frozen=True, slots=True)
class Grounded:
    """How many of an answer's claims were found in the evidence that they cite."""

    verified: int
    total: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One stored call to diagnose a batch. `answer` is a `midwatch.diagnosis_schema.DiagnosisOutput`."""

    id: int
    batch: int
    outcome: DiagnosisOutcome
    model: str
    prompt_version: str
    started_at: datetime
    finished_at: datetime | None = None
    answer: Json | None = None
    markdown: str | None = None
    confidence: str | None = None
    grounded: Grounded | None = None
    usage: Usage = Usage()
    cost_usd: float = 0.0
    error: str | None = None
    request_id: str | None = None
    evidence: tuple[Evidence, ...] = ()
    explains: tuple[int, ...] = ()
