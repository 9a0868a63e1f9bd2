"""What the API takes and gives, as the OpenAPI document describes it; docs/json.md says what the fields mean."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from midwatch.model import ChangeKind
from midwatch.server.actions import MAX_PROMPT, MAX_WHY
from midwatch.session.events import Phase
from midwatch.system_changes import LONGEST_TEXT, LONGEST_TITLE, MOST_LABELS

T = TypeVar("T")
SeverityName = Literal["critical", "warning", "info"]
StatusName = Literal["open", "acknowledged", "diagnosed", "given_up", "resolved"]
Object = dict[str, Any]
LONGEST_QUESTION = 2000
LONGEST_SILENCE = 366 * 86400.0


class Problem(BaseModel):
    """What went wrong (RFC 9457). `hint` says what to do next."""

    type: str
    title: str
    status: int
    detail: str
    hint: str | None = None


class Page(BaseModel, Generic[T]):
    """A page of a list. `next` is the cursor of the next page; null if this is the last."""

    items: list[T]
    next: str | None


class Usage(BaseModel):
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int


class Brief(BaseModel):
    outcome: str
    verdict: str | None
    confidence: str | None


class TicketSummary(BaseModel):
    """A ticket of a list."""

    id: int
    subject: str
    invariant: str
    component: str
    severity: SeverityName
    status: StatusName
    held: bool
    flapping: bool
    seen: bool
    message: str
    first_seen_at: datetime
    opened_at: datetime
    last_seen_at: datetime
    occurrence_count: int
    batch: int
    previous_id: int | None
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    attempts: int
    next_attempt_at: datetime | None
    last_error: str | None
    left_out_by: int | None
    silenced_by: str | None
    silenced_until: datetime | None
    resolved_at: datetime | None
    resolution: str | None
    diagnosis: Brief | None


class EvidencePiece(BaseModel):
    """A piece of evidence; `reported` are the parts of the text that others wrote, as [start, end]."""

    id: str
    title: str
    source: str
    at: datetime
    text: str
    available: bool
    origin: Literal["system", "reported", "earlier", "note"]
    reported: list[list[int]]
    command: str
    tickets: list[int]


class Grounded(BaseModel):
    verified: int
    total: int


class Diagnosis(BaseModel):
    """A diagnosis, or an attempt at one."""

    id: int
    outcome: str
    verdict: str | None
    summary: str | None
    root_cause: str | None
    confidence: str | None
    grounded: Grounded | None
    explains: list[int]
    settled_because: str | None
    model: str
    prompt_version: str
    started_at: datetime
    finished_at: datetime | None
    usage: Usage
    cost_usd: float
    error: str | None
    request_id: str | None
    answer: Object | None
    evidence: list[EvidencePiece]
    markdown: str | None


class TicketSession(BaseModel):
    id: str
    phase: str
    created_at: datetime


class PullRequest(BaseModel):
    """A pull request (at GitLab: merge request) of a ticket; `waiting` is the session whose changes wait for approval."""

    repository: str
    attempt: int
    state: Literal["waiting", "pushed", "open", "draft", "merged", "closed"]
    url: str | None
    number: int | None
    branch: str
    base: str
    checks: Literal["none", "pending", "passed", "failed", "unknown"]
    review: Literal["none", "approved", "changes_requested", "unknown"]
    session: str
    waiting: str | None
    requested_by: str
    approved_by: str | None
    created_at: datetime
    checked_at: datetime | None
    last_error: str | None


class TicketRunbook(BaseModel):
    """A runbook that was evidence on a ticket. `contradicted` is what the diagnosis says of the evidence against it."""

    id: str
    title: str
    source: str
    available: bool
    text: str
    contradicted: list[str]


class Ticket(TicketSummary):
    """A ticket with its facts, runbooks, first aid, diagnosis, sessions and pull requests.

    `runbook_url` is the address that its alert names, if it is one of http or https.
    """

    facts: Object
    runbook_url: str | None
    runbooks: list[TicketRunbook]
    first_aid: Object | None
    diagnosis: Diagnosis | None  # type: ignore[assignment]
    sessions: list[TicketSession]
    pull_requests: list[PullRequest]


class HistoryEntry(BaseModel):
    """One change of a ticket."""

    model_config = ConfigDict(populate_by_name=True)

    ticket: int
    at: datetime
    actor: str
    action: str
    before: str | None = Field(alias="from")
    after: str | None = Field(alias="to")
    why: str


class SessionSummary(BaseModel):
    """A session of a list."""

    id: str
    phase: Phase
    reason: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    last_activity_at: datetime | None
    ticket: int | None
    forked_from: str | None
    interactive: bool
    model: str
    prompt: str
    conditions: list[str]
    runs: int
    turns: int
    requests: int
    duration: float
    usage: Usage
    cost_usd: float
    repositories: list[Object]
    host: str | None
    folder: str | None
    cwd: str


class Session(SessionSummary):
    """A session."""

    conversation: str | None
    models: Object
    result: str | None
    last_message: str | None
    error: Object | None
    retries: int
    pending_permissions: list[Object]
    unfinished: list[str]
    denied: list[Object]
    runner: str | None
    heartbeat_at: datetime
    asked_repositories: list[Object]


class InvariantShape(BaseModel):
    """An invariant of a subject, with the limit that holds there."""

    id: str
    title: str
    severity: SeverityName


class SubjectShape(BaseModel):
    """A watched system. `state` is `unknown` where the last observation failed or there was none.

    `kind` is null, and there are no invariants, for a subject that is not in the settings of the server. `watched_by` is
    the monitor that has it in its share.
    """

    name: str
    kind: str | None
    state: Literal["ok", "broken", "unknown"]
    last_seen_at: datetime | None
    last_polled_at: datetime | None
    watched_by: str | None
    failures: int
    last_error: str | None
    unresolved: dict[SeverityName, int]
    invariants: list[InvariantShape]


class SilenceShape(BaseModel):
    """A silence."""

    id: int
    state: Literal["active", "pending", "ended"]
    matchers: list[str]
    starts_at: datetime
    ends_at: datetime
    active_until: datetime | None
    next_start: datetime | None
    rrule: str | None
    window_seconds: float | None
    timezone: str | None
    author: str
    reason: str
    created_at: datetime
    expired_at: datetime | None
    expired_by: str | None
    silenced: int


class Today(BaseModel):
    spent_usd: float
    budget_usd: float | None


class PauseShape(BaseModel):
    kind: str
    until: datetime
    reason: str
    actor: str


class DaemonShape(BaseModel):
    name: str
    kind: str
    beat_at: datetime
    info: Object


class Stats(BaseModel):
    """Figures about tickets and daemons."""

    since: datetime
    opened: int
    resolved: int
    unresolved: int
    given_up: int
    silenced: int
    silent_now: int
    seconds_to_detect: float | None
    seconds_to_see: float | None
    seconds_to_confirm: float | None
    seconds_to_diagnose: float | None
    seconds_to_resolve: float | None
    outcomes: dict[str, int]
    usage: Usage
    cost_usd: float
    today: Today
    pauses: list[PauseShape]
    daemons: list[DaemonShape]


InvestigationState = Literal["queued", "running", "answered", "failed", "cancelled"]


class Investigation(BaseModel):
    """An investigation. `diagnosis` is its answer, once there is one; `ticket` has each attempt."""

    id: str
    state: InvestigationState
    subject: str
    question: str
    requested_by: str
    callback_url: str | None
    ticket: int
    created_at: datetime
    ended_at: datetime | None
    diagnosis: Diagnosis | None


class InvestigationSummary(BaseModel):
    """An investigation of a list. `ended` is whether it was answered, failed or was cancelled."""

    id: str
    ended: bool
    subject: str
    question: str
    requested_by: str
    ticket: int
    created_at: datetime
    ended_at: datetime | None


# ------------------------------------------------------------------ requests


class Request(BaseModel):
    """The body of a request. Unknown fields are an error: a wrong name must not be without effect."""

    model_config = ConfigDict(extra="forbid")


class Why(Request):
    why: str = Field("", max_length=MAX_WHY, description="For the ticket's history.")


class Reason(Request):
    why: str = Field(
        min_length=1,
        max_length=MAX_WHY,
        pattern=r"\S",
        description="For the ticket's history; later diagnoses use it.",
    )


class SilenceTicket(Reason):
    seconds: float = Field(ge=1, le=LONGEST_SILENCE, description="How long, from now.")


class Fix(Request):
    prompt: str = Field(
        "", max_length=MAX_PROMPT, description="What is added to the task."
    )
    interactive: bool = Field(
        True,
        description="Whether it waits for messages and for answers to its requests for permission. Not of a session in a cluster.",
    )
    pull_request: bool = Field(
        False,
        description="Whether a pull request is opened for each repository that it changes, once it ends. "
        "Where the settings have `server.session_cluster`, it runs there.",
    )


class StartedSession(BaseModel):
    session: str = Field(
        description="Its id; of a session in a cluster the name of its resource."
    )
    resource: str | None = Field(
        None,
        description="NAMESPACE/NAME of its AgenticSession, where `server.session_cluster` runs it; else null.",
    )


class ChangeRecord(BaseModel):
    """A change of a watched system. Texts of it are what somebody wrote, unless its source is `observation`."""

    id: int
    time: datetime
    since: datetime | None
    kind: ChangeKind
    title: str
    source: str
    subject: str | None
    labels: dict[str, str]
    version_from: str
    version_to: str
    link: str
    author: str
    commit: str | None
    repository: str | None
    branch: str | None
    files: list[str]
    more_files: int
    recorded_at: datetime
    seconds_before_onset: float | None


class ProposedAction(BaseModel):
    """An action that can be approved. `problem` is why it cannot, or null."""

    id: str
    kind: str
    what: str
    target: Object
    evidence: list[str]
    diagnosis: int
    problem: str | None


class ActionRun(BaseModel):
    """An action that was approved. Its `id` is that of the proposal."""

    id: str
    kind: str
    what: str
    target: Object
    diagnosis: int
    state: Literal[
        "approved", "running", "done", "not_run", "failed", "unknown", "expired"
    ]
    approved_by: str
    channel: str
    approved_at: datetime
    expires_at: datetime
    run_by: str | None
    started_at: datetime | None
    ended_at: datetime | None
    output: str | None


class TicketActions(BaseModel):
    """What can be approved on a ticket, and what was. `reason` says why there is nothing to approve."""

    proposals: list[ProposedAction]
    runs: list[ActionRun]
    reason: str | None


class DryRun(BaseModel):
    """What an action would do, and whether its check holds now."""

    ready: bool
    text: str
    command: str


class NewSilence(Request):
    matchers: list[Annotated[str, StringConstraints(max_length=2000)]] = Field(
        min_length=1,
        max_length=20,
        description='Conditions on labels in Alertmanager\'s syntax, such as `severity="info"`; all must hold.',
    )
    reason: str = Field(min_length=1, max_length=MAX_WHY, pattern=r"\S")
    starts_at: datetime | None = Field(None, description="By default now.")
    ends_at: datetime | None = Field(None, description="This or `seconds`.")
    seconds: float | None = Field(
        None, ge=1, le=10 * LONGEST_SILENCE, description="From its start to its end."
    )
    rrule: str | None = Field(
        None, max_length=500, description="When its windows begin (RFC 5545)."
    )
    window_seconds: float | None = Field(
        None, ge=1, le=LONGEST_SILENCE, description="How long each window lasts."
    )
    timezone: str = Field("UTC", max_length=100)


Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class NewChangeRecord(Request):
    """A change of a watched system that has happened. It is of a subject, or of what has all its labels."""

    title: str = Field(min_length=1, max_length=LONGEST_TITLE, pattern=r"\S")
    kind: Literal["deploy", "config", "flag", "migration", "other"] = "deploy"
    time: datetime | None = Field(None, description="When; by default now.")
    subject: str | None = Field(None, min_length=1, max_length=200)
    labels: dict[Label, Label] = Field(
        default_factory=dict,
        max_length=MOST_LABELS,
        description="A ticket that has all these labels is concerned, if no subject is named.",
    )
    version_from: str = Field("", max_length=200)
    version_to: str = Field("", max_length=200)
    link: str = Field("", max_length=LONGEST_TEXT, description="A URL for people.")
    author: str = Field("", max_length=100, description="By default who reports it.")


class Alert(Request):
    """An alert as Alertmanager has it. Other fields of it are left out."""

    model_config = ConfigDict(extra="ignore")

    labels: dict[str, str] = Field(default_factory=dict, max_length=100)
    annotations: dict[str, str] = Field(default_factory=dict, max_length=100)
    startsAt: datetime | None = None
    generatorURL: str | None = Field(None, max_length=2000)


class NewInvestigation(Request):
    """A question about a subject, or an alert, or both."""

    subject: str = Field(min_length=1, max_length=200)
    question: str | None = Field(
        None, min_length=1, max_length=LONGEST_QUESTION, pattern=r"\S"
    )
    alert: Alert | None = None
    severity: SeverityName = Field(
        "warning", description="How urgent it is, among the tickets that wait."
    )
    callback_url: str | None = Field(
        None,
        max_length=2000,
        description="Its end is posted there; the host must be one of `notifications.callback_hosts`.",
    )
