"""The tables, as both databases have them, and how their rows become values.

Instants are ``timestamptz`` on PostgreSQL and whole milliseconds since 1970 on SQLite, where
comparing integers is exact and cheap. Text and documents are sanitized on their way in, the same
for both: PostgreSQL's text cannot hold NUL, UTF-8 cannot hold lone surrogates, JSON has no NaN.
External text may have all three, and must not make a write fail.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    TIMESTAMP,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Dialect,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    Row,
    Select,
    Table,
    Text,
    TypeDecorator,
    and_,
    case,
    literal_column,
    or_,
    select,
    text,
)
from sqlalchemy.sql import ColumnElement
from sqlalchemy.types import TypeEngine

from midwatch import model
from midwatch.model import (
    Diagnosis,
    Evidence,
    Grounded,
    Json,
    Origin,
    Usage,
    keepable,
)
from midwatch.store.rows import EPOCH, MILLISECOND, DamagedDocument, instant_of

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_SUSPECT = ("\\u0000", "NaN", "Infinity")
_SURROGATE = re.compile("[\ud800-\udfff]")


class SanitizedText(TypeDecorator[str]):
    """Text of any length, sanitized when it is stored or compared."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else keepable(value)


def dump_json(value: Any) -> str:
    """Return `value` as JSON that any database takes; NaN and infinities become text."""
    text = _ENCODER.encode(value)
    suspect = any(one in text for one in _SUSPECT)  # rare, and sometimes in vain
    if suspect or (not text.isascii() and _SURROGATE.search(text)):
        text = _ENCODER.encode(_sanitized(value))
    return text


def as_stored(facts: Json) -> Json:
    """Return facts as they are read again."""
    sanitized: Json = _sanitized(facts)
    return sanitized


def _sanitized(value: Any) -> Any:
    if isinstance(value, str):
        return keepable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {_sanitized(name): _sanitized(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sanitized(item) for item in value]
    return value


REVISION = "0016"
"""The migration that creates these tables."""


class Instant(TypeDecorator[datetime]):
    """An aware datetime in UTC."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(TIMESTAMP(timezone=True))
        return dialect.type_descriptor(BigInteger())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return (value - EPOCH) // MILLISECOND

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if isinstance(value, datetime):
            return value.astimezone(UTC)
        return instant_of(value)


class Document(TypeDecorator[Any]):
    """JSON; `jsonb` on PostgreSQL, whose dialect is imported only where it is used."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name != "postgresql":
            return dialect.type_descriptor(JSON())
        from sqlalchemy.dialects.postgresql import JSONB

        return dialect.type_descriptor(JSONB())


_SERVER_NOW = text("SELECT clock_timestamp()")


def database_now(connection: Connection) -> datetime:
    """Return the time by the database's clock, which for SQLite is that of the machine."""
    if connection.dialect.name == "sqlite":
        now = datetime.now(UTC)
        return now - now.microsecond % 1000 * timedelta(microseconds=1)
    value: datetime = connection.execute(_SERVER_NOW).scalar_one()
    return value.astimezone(UTC)


Id = BigInteger().with_variant(Integer(), "sqlite")
LARGEST_ID = 2**63 - 1
metadata = MetaData()

subjects = Table(
    "subjects",
    metadata,
    Column("name", SanitizedText, primary_key=True),
    Column("revision", Integer, nullable=False, default=0),
    # Successful observations so far. A ticket that is observed without a break derives its count
    # from it, so a cycle in which nothing changed writes one row.
    Column("cycle", Integer, nullable=False, default=0),
    Column("failures", Integer, nullable=False, default=0),
    Column("last_error", SanitizedText),
    Column("last_good_at", Instant),
    Column("last_look_at", Instant),
    Column("state", Document, nullable=False, default=dict),
    # What kind of system it is, from the settings of the monitor that watches it.
    Column("kind", SanitizedText),
    # The id of the monitor that watches it, while that one has a row with a lease.
    Column("watcher", SanitizedText),
)

# The monitors that share the subjects.
monitors = Table(
    "monitors",
    metadata,
    Column("id", SanitizedText, primary_key=True),
    Column("name", SanitizedText, nullable=False),
    Column("process", SanitizedText, nullable=False),
    # The subjects in its settings, and their digest.
    Column("knows", Document, nullable=False),
    Column("digest", SanitizedText, nullable=False),
    Column("renewed_at", Instant, nullable=False),
    Column("lease", Float, nullable=False),
    # How often others gave it subjects: while that stays, it need not read which ones it has.
    Column("given", Integer, nullable=False, default=0),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Id, primary_key=True),
    Column("subject", SanitizedText, nullable=False),
    Column("severity", Integer, nullable=False),
    Column("opened_at", Instant, nullable=False),
    Column("queued", Boolean, nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_attempt_at", Instant),
    Column("last_error", SanitizedText),
    Column("claim_holder", SanitizedText),
    Column("claim_token", SanitizedText),
    Column("claim_until", Instant),
    # See `midwatch.process_identity`; null if others cannot see whether the holder still runs.
    Column("claim_process", SanitizedText),
    # When the times above were set. If that is in the future, the clock went back since, and
    # they are void.
    Column("set_at", Instant, nullable=False),
)

tickets = Table(
    "tickets",
    metadata,
    Column("id", Id, primary_key=True),
    Column("subject", SanitizedText, nullable=False),
    Column("invariant", SanitizedText, nullable=False),
    Column("component", SanitizedText, nullable=False),
    Column("severity", Integer, nullable=False),
    Column("status", SanitizedText, nullable=False),
    Column("held", Boolean, nullable=False, default=False),
    Column("message", SanitizedText, nullable=False),
    Column("facts", Document, nullable=False),
    # The last observation of the subject before the violation was first seen: the fault began after it. Null if
    # there was none.
    Column("unseen_since", Instant),
    Column("first_seen_at", Instant, nullable=False),
    Column("opened_at", Instant, nullable=False),
    Column("last_seen_at", Instant, nullable=False),
    Column("occurrence_count", Integer, nullable=False),
    # The subject's cycle at which the two columns above were written, while the violation
    # is observed without a break; null otherwise.
    Column("seen_cycle", Integer),
    Column("flapping", Boolean, nullable=False, default=False),
    Column("previous_id", Id),
    Column("batch_id", Id, ForeignKey("batches.id"), nullable=False),
    Column("acknowledged_at", Instant),
    Column("acknowledged_by", SanitizedText),
    Column("resolved_at", Instant),
    Column("resolution", SanitizedText),
    Column("first_aid", Document),
    Column("diagnosis_id", Id),
    # The last diagnosis of its batch that did not name it.
    Column("left_out_by", Id),
)

diagnoses = Table(
    "diagnoses",
    metadata,
    Column("id", Id, primary_key=True),
    Column("batch_id", Id, ForeignKey("batches.id"), nullable=False),
    Column("token", SanitizedText, nullable=False),
    Column("outcome", SanitizedText, nullable=False),
    Column("model", SanitizedText, nullable=False),
    Column("prompt_version", SanitizedText, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Column("answer", Document),
    Column("markdown", SanitizedText),
    Column("confidence", SanitizedText),
    Column("verified_claims", Integer),
    Column("total_claims", Integer),
    Column("input_tokens", Integer, nullable=False, default=0),
    Column("output_tokens", Integer, nullable=False, default=0),
    Column("cache_read_tokens", Integer, nullable=False, default=0),
    Column("cache_write_tokens", Integer, nullable=False, default=0),
    # While the call runs: its largest possible cost, reserved from the day's budget.
    Column("cost_usd", Float, nullable=False),
    Column("error", SanitizedText),
    Column("request_id", SanitizedText),
    Column("evidence", Document, nullable=False),
    Column("explains", Document, nullable=False),
)

diagnosis_tickets = Table(
    "diagnosis_tickets",
    metadata,
    Column("diagnosis_id", Id, ForeignKey("diagnoses.id"), primary_key=True),
    Column("ticket_id", Id, ForeignKey("tickets.id"), primary_key=True),
)

# Resolved tickets that teach something, with the distinct words of their text.
past_incidents = Table(
    "past_incidents",
    metadata,
    Column("ticket_id", Id, ForeignKey("tickets.id"), primary_key=True),
    Column("subject", SanitizedText, nullable=False),
    Column("invariant", SanitizedText, nullable=False),
    Column("component", SanitizedText, nullable=False),
    Column("words", SanitizedText, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Id, primary_key=True),
    Column("ticket_id", Id, ForeignKey("tickets.id"), nullable=False),
    Column("at", Instant, nullable=False),
    Column("actor", SanitizedText, nullable=False),
    Column("action", SanitizedText, nullable=False),
    Column("before", SanitizedText),
    Column("after", SanitizedText),
    Column("why", SanitizedText, nullable=False),
)

pauses = Table(
    "pauses",
    metadata,
    Column("kind", SanitizedText, primary_key=True),
    Column("until", Instant, nullable=False),
    Column("set_at", Instant, nullable=False),
    Column("reason", SanitizedText, nullable=False),
    Column("actor", SanitizedText, nullable=False),
)

spending = Table(
    "spending",
    metadata,
    Column("day", SanitizedText, primary_key=True),  # 2026-11-21, in UTC
    Column("usd", Float, nullable=False),
)

daemons = Table(
    "daemons",
    metadata,
    Column("name", SanitizedText, primary_key=True),
    Column("kind", SanitizedText, nullable=False),
    Column("beat_at", Instant, nullable=False),
    Column("info", Document, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", SanitizedText, primary_key=True),
    Column("created_at", Instant, nullable=False),
    Column("ticket_id", Id, ForeignKey("tickets.id")),
    Column("forked_from", SanitizedText),
    Column("model", SanitizedText, nullable=False),
    Column("interactive", Boolean, nullable=False),
    Column("prompt", SanitizedText, nullable=False),
    # Where it works on the machine of its last run.
    Column("cwd", SanitizedText, nullable=False),
    Column("directories", Document, nullable=False),
    Column("options", Document, nullable=False),
    Column("phase", SanitizedText, nullable=False),
    # The status that `midwatch.session.status` folds from events; null before the first.
    Column("status", Document),
    Column("cost_usd", Float, nullable=False),
    Column("repositories", Document, nullable=False),
    Column("runner", SanitizedText),
    Column("heartbeat_at", Instant, nullable=False),
)

# Append-only: one row is one entry of one transcript, in the order of `id`.
transcript_entries = Table(
    "transcript_entries",
    metadata,
    Column("id", Id, primary_key=True),
    Column("project_key", SanitizedText, nullable=False),
    Column("session_id", SanitizedText, nullable=False),
    Column("subpath", SanitizedText, nullable=False),  # "" is the main transcript
    Column("uuid", SanitizedText),
    Column("at", Instant, nullable=False),
    # JSON as text: no query reads it, and jsonb would reorder it.
    Column("entry", SanitizedText, nullable=False),
)

# ------------------------------------------------------------------ the on-call stack

# How far a reader of the audit rows has come.
cursors = Table(
    "cursors",
    metadata,
    Column("name", SanitizedText, primary_key=True),
    Column("audit_id", Id, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

silences = Table(
    "silences",
    metadata,
    Column("id", Id, primary_key=True),
    # Every change takes the next number: a monitor sees by the largest whether it knows all of them.
    Column("revision", BigInteger, nullable=False),
    Column("matchers", Document, nullable=False),  # [["severity", "=", "info"], …]
    Column("starts_at", Instant, nullable=False),
    Column("ends_at", Instant, nullable=False),
    # A recurring window: RFC 5545, with the length of each window and its time zone.
    Column("rrule", SanitizedText),
    Column("window_seconds", Float),
    Column("timezone", SanitizedText),
    Column("author", SanitizedText, nullable=False),
    Column("reason", SanitizedText, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expired_at", Instant),
    Column("expired_by", SanitizedText),
)

# Violations that a silence, or one of the alert's sender, kept silent, each for as long as that lasted without a break.
silenced = Table(
    "silenced",
    metadata,
    Column("id", Id, primary_key=True),
    Column("subject", SanitizedText, nullable=False),
    Column("invariant", SanitizedText, nullable=False),
    Column("component", SanitizedText, nullable=False),
    Column("severity", Integer, nullable=False),
    Column("message", SanitizedText, nullable=False),
    Column("by", SanitizedText, nullable=False),  # "silence 3", "Alertmanager …"
    Column("silence_id", Id, ForeignKey("silences.id")),
    # When the silence ends by itself; null if only the sender knows.
    Column("until", Instant),
    Column("first_seen_at", Instant, nullable=False),
    Column("ended_at", Instant),
    # The ticket that was open when it began, or that opened when it ended.
    Column("ticket_id", Id, ForeignKey("tickets.id")),
)

# Alerts that were pushed to a subject; one row for each fingerprint and start.
alerts = Table(
    "alerts",
    metadata,
    Column("subject", SanitizedText, primary_key=True),
    Column("fingerprint", SanitizedText, primary_key=True),
    Column("starts_at", Instant, primary_key=True),
    Column("status", SanitizedText, nullable=False),  # firing, resolved
    Column("ends_at", Instant),
    # When the sender gave it this status, where the sender says so.
    Column("changed_at", Instant),
    Column("received_at", Instant, nullable=False),
    Column("invariant", SanitizedText, nullable=False),
    Column("component", SanitizedText, nullable=False),
    Column("severity", Integer, nullable=False),
    Column("message", SanitizedText, nullable=False),
    Column("facts", Document, nullable=False),
    Column("silenced_by", SanitizedText),
)

# The last push of each sender and its last heartbeat alert.
senders = Table(
    "senders",
    metadata,
    Column("subject", SanitizedText, primary_key=True),
    Column("received_at", Instant, nullable=False),
    Column("heartbeat_at", Instant),
    # By group of alerts: how many were left out of its last push, and when that was.
    Column("truncated", Document, nullable=False),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Id, primary_key=True),
    # What makes it one: the same change is never delivered twice to one target.
    Column("dedup_key", SanitizedText, nullable=False, unique=True),
    Column("route", SanitizedText, nullable=False),
    Column("target", SanitizedText, nullable=False),
    Column("event", SanitizedText, nullable=False),
    Column("thread", SanitizedText, nullable=False),
    Column("ticket_id", Id, ForeignKey("tickets.id")),
    Column("content", Document, nullable=False),
    Column("state", SanitizedText, nullable=False),  # due, sent, given_up, dropped
    Column("created_at", Instant, nullable=False),
    Column("due_at", Instant, nullable=False),
    # When it was to be sent, whatever failed since: what waited for a digest or a silence did not fail.
    Column("due_since", Instant, nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("claim_token", SanitizedText),
    Column("claim_until", Instant),
    Column("ended_at", Instant),
    Column("last_error", SanitizedText),
)

# The message or thread of an incident at one target, as its service names it.
delivery_threads = Table(
    "delivery_threads",
    metadata,
    Column("target", SanitizedText, primary_key=True),
    Column("thread", SanitizedText, primary_key=True),
    Column("reference", Document, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Id, primary_key=True),
    Column("kind", SanitizedText, nullable=False),  # api, sign_in
    Column("name", SanitizedText, nullable=False),
    Column("digest", SanitizedText, nullable=False, unique=True),
    Column("role", SanitizedText, nullable=False),
    Column("scopes", Document, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("created_by", SanitizedText, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("parent_id", Id),  # the token that a sign-in was made with
    Column("last_used_at", Instant),
    Column("revoked_at", Instant),
)

investigations = Table(
    "investigations",
    metadata,
    Column("id", SanitizedText, primary_key=True),
    Column("ticket_id", Id, ForeignKey("tickets.id"), nullable=False),
    Column("question", SanitizedText, nullable=False),
    Column("requested_by", SanitizedText, nullable=False),
    Column("callback_url", SanitizedText),
    Column("created_at", Instant, nullable=False),
    Column("cancelled_at", Instant),
)

# Answers to requests with an idempotency key, so that a repeated request has the same answer.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("principal", SanitizedText, primary_key=True),
    Column("key", SanitizedText, primary_key=True),
    Column("request_digest", SanitizedText, nullable=False),
    Column("status", Integer, nullable=False),
    Column("answer", Document, nullable=False),
    Column("created_at", Instant, nullable=False),
)


# Conditions of partial indexes. They are literal in statements too: a plan that is made for any value of a parameter
# cannot use such an index.
RESOLVED: ColumnElement[bool] = tickets.c.status == literal_column("'resolved'")
UNRESOLVED: ColumnElement[bool] = tickets.c.status != literal_column("'resolved'")
WAITING: ColumnElement[bool] = and_(
    UNRESOLVED,  # has an index
    or_(
        *(
            tickets.c.status == literal_column(f"'{one.value}'")
            for one in model.UNDIAGNOSED
        )
    ),
)
"""Tickets that wait for their diagnosis."""
IN_QUESTION: ColumnElement[bool] = alerts.c.status != literal_column("'resolved'")
"""Alerts that fire, or whose sender fell silent before it resolved them."""


def is_due(column: Any) -> ColumnElement[bool]:
    """Return the condition of deliveries that are to be sent; `column` are the columns of the table or an alias."""
    due: ColumnElement[bool] = column.state == literal_column("'due'")
    return due


RESOLVED_BY_OBSERVATION = "the invariant was observed to hold again"
UNDIAGNOSED = tuple(status.value for status in model.UNDIAGNOSED)

_seen = tickets.c.seen_cycle.is_not(None)
_count: ColumnElement[int] = case(
    (_seen, tickets.c.occurrence_count + subjects.c.cycle - tickets.c.seen_cycle),
    else_=tickets.c.occurrence_count,
)
_last_seen = case((_seen, subjects.c.last_good_at), else_=tickets.c.last_seen_at)

_silenced_now = and_(
    silenced.c.subject == tickets.c.subject,
    silenced.c.invariant == tickets.c.invariant,
    silenced.c.component == tickets.c.component,
    silenced.c.ended_at.is_(None),
)

_TICKET_COLUMNS = (
    tickets,
    silenced.c.by.label("silenced_by"),
    silenced.c.until.label("silenced_until"),
    _count.label("count_now"),
    _last_seen.label("last_seen_now"),
    batches.c.attempts,
    batches.c.next_attempt_at,
    batches.c.last_error,
)


def select_tickets() -> Select[Any]:
    """Return a query of the rows that `ticket_of` takes."""
    return select(*_TICKET_COLUMNS).select_from(
        tickets.join(batches, batches.c.id == tickets.c.batch_id)
        .join(subjects, subjects.c.name == tickets.c.subject)
        .outerjoin(silenced, _silenced_now)
    )


def diagnosis_of(row: Row[Any]) -> Diagnosis:
    """Return the diagnosis of a row of `diagnoses`; one whose documents are damaged is an error."""
    names = ("answer", "evidence", "explains")
    damaged = [one for one in names if isinstance(getattr(row, one), DamagedDocument)]
    error = f"damaged in the database: {', '.join(damaged)}" if damaged else row.error
    return Diagnosis(
        id=row.id,
        batch=row.batch_id,
        outcome="error" if damaged else row.outcome,
        model=row.model,
        prompt_version=row.prompt_version,
        started_at=row.started_at,
        finished_at=row.finished_at,
        answer=None if damaged else row.answer,
        markdown=row.markdown,
        confidence=row.confidence,
        grounded=(
            None
            if row.total_claims is None
            else Grounded(row.verified_claims, row.total_claims)
        ),
        usage=usage_of(row),
        cost_usd=row.cost_usd,
        error=error,
        request_id=row.request_id,
        evidence=tuple(map(evidence_of, row.evidence)),
        explains=tuple(row.explains),
    )


def usage_of(row: Any) -> Usage:
    """Return the tokens in a row of `diagnoses`, or in sums over it."""
    return Usage(
        row.input_tokens or 0,
        row.output_tokens or 0,
        row.cache_read_tokens or 0,
        row.cache_write_tokens or 0,
    )


def evidence_document(evidence: tuple[Evidence, ...]) -> list[Json]:
    """Return evidence as it is stored."""
    return [
        {name: getattr(piece, name) for name in _OF_EVIDENCE}
        | {"at": piece.at.isoformat()}
        for piece in evidence
    ]


_OF_EVIDENCE = tuple(one.name for one in fields(Evidence))


def evidence_of(document: Json) -> Evidence:
    read = {
        "at": datetime.fromisoformat(document["at"]),
        "origin": Origin(document.get("origin", Origin.SYSTEM)),
        "reported": tuple((start, end) for start, end in document.get("reported", ())),
        "tickets": tuple(document.get("tickets", ())),
    }
    return Evidence(**{**document, **read})
