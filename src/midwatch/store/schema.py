"""The tables, as both databases have them.

Instants are ``timestamptz`` on PostgreSQL and whole milliseconds since 1970 on SQLite, where
comparing integers is exact and cheap.
"""

from __future__ import annotations

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
    Table,
    TypeDecorator,
    text,
)
from sqlalchemy.types import TypeEngine

from midwatch.store.words import Words

REVISION = "0002"
"""The migration that makes the database what these tables say."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


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
        return (value - _EPOCH) // _MILLISECOND

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if isinstance(value, datetime):
            return value.astimezone(UTC)
        return _EPOCH + int(value) * _MILLISECOND


class Document(TypeDecorator[Any]):
    """JSON; `jsonb` on PostgreSQL, whose dialect is imported only where it is spoken."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name != "postgresql":
            return dialect.type_descriptor(JSON())
        from sqlalchemy.dialects.postgresql import JSONB

        return dialect.type_descriptor(JSONB())


_SERVER_NOW = text("SELECT clock_timestamp()")


def database_now(connection: Connection) -> datetime:
    """The database's own clock. SQLite runs in this process and has none but the machine's."""
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
    Column("name", Words, primary_key=True),
    Column("revision", Integer, nullable=False, default=0),
    # Good looks so far. A ticket that is seen all the time derives its count from it, so a
    # cycle in which nothing changed writes one row.
    Column("cycle", Integer, nullable=False, default=0),
    Column("failures", Integer, nullable=False, default=0),
    Column("last_error", Words),
    Column("last_good_at", Instant),
    Column("last_look_at", Instant),
    Column("state", Document, nullable=False, default=dict),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Id, primary_key=True),
    Column("subject", Words, nullable=False),
    Column("severity", Integer, nullable=False),
    Column("opened_at", Instant, nullable=False),
    Column("queued", Boolean, nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_attempt_at", Instant),
    Column("last_error", Words),
    Column("claim_holder", Words),
    Column("claim_token", Words),
    Column("claim_until", Instant),
    # When the times above were set. Where that is in the future, the clock went back since,
    # and they are void.
    Column("set_at", Instant, nullable=False),
)

tickets = Table(
    "tickets",
    metadata,
    Column("id", Id, primary_key=True),
    Column("subject", Words, nullable=False),
    Column("invariant", Words, nullable=False),
    Column("component", Words, nullable=False),
    Column("severity", Integer, nullable=False),
    Column("status", Words, nullable=False),
    Column("held", Boolean, nullable=False, default=False),
    Column("message", Words, nullable=False),
    Column("facts", Document, nullable=False),
    Column("first_seen_at", Instant, nullable=False),
    Column("opened_at", Instant, nullable=False),
    Column("last_seen_at", Instant, nullable=False),
    Column("occurrence_count", Integer, nullable=False),
    # The subject's cycle at which the two columns above were written, while the violation
    # is seen without a break; null otherwise.
    Column("seen_cycle", Integer),
    Column("flapping", Boolean, nullable=False, default=False),
    Column("previous_id", Id),
    Column("batch_id", Id, ForeignKey("batches.id"), nullable=False),
    Column("acknowledged_at", Instant),
    Column("acknowledged_by", Words),
    Column("resolved_at", Instant),
    Column("resolution", Words),
    Column("first_aid", Document),
    Column("diagnosis_id", Id),
)

diagnoses = Table(
    "diagnoses",
    metadata,
    Column("id", Id, primary_key=True),
    Column("batch_id", Id, ForeignKey("batches.id"), nullable=False),
    Column("token", Words, nullable=False),
    Column("outcome", Words, nullable=False),
    Column("model", Words, nullable=False),
    Column("prompt_version", Words, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Column("answer", Document),
    Column("markdown", Words),
    Column("confidence", Words),
    Column("verified_claims", Integer),
    Column("total_claims", Integer),
    Column("input_tokens", Integer, nullable=False, default=0),
    Column("output_tokens", Integer, nullable=False, default=0),
    Column("cache_read_tokens", Integer, nullable=False, default=0),
    Column("cache_write_tokens", Integer, nullable=False, default=0),
    # While the call runs: its worst case, set aside from the day's budget.
    Column("cost_usd", Float, nullable=False),
    Column("error", Words),
    Column("request_id", Words),
    Column("evidence", Document, nullable=False),
    Column("explains", Document, nullable=False),
)

diagnosis_tickets = Table(
    "diagnosis_tickets",
    metadata,
    Column("diagnosis_id", Id, ForeignKey("diagnoses.id"), primary_key=True),
    Column("ticket_id", Id, ForeignKey("tickets.id"), primary_key=True),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Id, primary_key=True),
    Column("ticket_id", Id, ForeignKey("tickets.id"), nullable=False),
    Column("at", Instant, nullable=False),
    Column("actor", Words, nullable=False),
    Column("action", Words, nullable=False),
    Column("before", Words),
    Column("after", Words),
    Column("why", Words, nullable=False),
)

pauses = Table(
    "pauses",
    metadata,
    Column("kind", Words, primary_key=True),
    Column("until", Instant, nullable=False),
    Column("set_at", Instant, nullable=False),
    Column("reason", Words, nullable=False),
    Column("actor", Words, nullable=False),
)

spending = Table(
    "spending",
    metadata,
    Column("day", Words, primary_key=True),  # 2026-11-21, in UTC
    Column("usd", Float, nullable=False),
)

daemons = Table(
    "daemons",
    metadata,
    Column("name", Words, primary_key=True),
    Column("kind", Words, nullable=False),
    Column("beat_at", Instant, nullable=False),
    Column("info", Document, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Words, primary_key=True),
    Column("created_at", Instant, nullable=False),
    Column("ticket_id", Id, ForeignKey("tickets.id")),
    Column("forked_from", Words),
    Column("model", Words, nullable=False),
    Column("interactive", Boolean, nullable=False),
    Column("prompt", Words, nullable=False),
    # Where it works on the machine of its last run.
    Column("cwd", Words, nullable=False),
    Column("directories", Document, nullable=False),
    Column("options", Document, nullable=False),
    Column("phase", Words, nullable=False),
    # What `midwatch.status` folds from its events; null before the first.
    Column("status", Document),
    Column("cost_usd", Float, nullable=False),
    Column("repositories", Document, nullable=False),
    Column("runner", Words),
    Column("heartbeat_at", Instant, nullable=False),
)

# Append-only: one row is one entry of one transcript; `id` is their order.
transcript_entries = Table(
    "transcript_entries",
    metadata,
    Column("id", Id, primary_key=True),
    Column("project_key", Words, nullable=False),
    Column("session_id", Words, nullable=False),
    Column("subpath", Words, nullable=False),  # "" is the main one
    Column("uuid", Words),
    Column("at", Instant, nullable=False),
    # JSON as text: no database looks into it, and jsonb would reorder it.
    Column("entry", Words, nullable=False),
)
