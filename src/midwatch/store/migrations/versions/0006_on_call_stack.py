"""Alerts in, notifications out: silences, pushed alerts, deliveries, tokens, investigations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from midwatch.store.schema import Instant

revision = "0006"
down_revision = "0005"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_INSTANT = Instant()
_DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_TEXT = sa.Text()


def _columns(
    kind: TypeEngine[Any], *names: str, nullable: bool = False
) -> Iterator[sa.Column[Any]]:
    return (sa.Column(name, kind, nullable=nullable) for name in names)


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    condition = sa.text(where)
    op.create_index(
        name, table, columns, sqlite_where=condition, postgresql_where=condition
    )


def upgrade() -> None:
    op.create_table(
        "cursors",
        *_columns(_TEXT, "name"),
        *_columns(_ID, "audit_id"),
        *_columns(_INSTANT, "updated_at"),
        sa.PrimaryKeyConstraint("name"),
    )
    _create_silences()
    _create_alerts()
    _create_deliveries()
    _create_api()


def _create_silences() -> None:
    op.add_column("subjects", sa.Column("kind", _TEXT))
    op.create_table(
        "silences",
        *_columns(_ID, "id"),
        *_columns(sa.BigInteger(), "revision"),
        *_columns(_DOCUMENT, "matchers"),
        *_columns(_INSTANT, "starts_at", "ends_at"),
        *_columns(_TEXT, "rrule", "timezone", nullable=True),
        *_columns(sa.Float(), "window_seconds", nullable=True),
        *_columns(_TEXT, "author", "reason"),
        *_columns(_INSTANT, "created_at"),
        *_columns(_INSTANT, "expired_at", nullable=True),
        *_columns(_TEXT, "expired_by", nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("silences_revision", "silences", ["revision"], unique=True)
    op.create_index("silences_end", "silences", ["ends_at"])
    key = ["subject", "invariant", "component"]
    op.create_table(
        "silenced",
        *_columns(_ID, "id"),
        *_columns(_TEXT, *key, "message", "by"),
        *_columns(sa.Integer(), "severity"),
        *_columns(_ID, "silence_id", "ticket_id", nullable=True),
        *_columns(_INSTANT, "until", "ended_at", nullable=True),
        *_columns(_INSTANT, "first_seen_at"),
        sa.ForeignKeyConstraint(["silence_id"], ["silences.id"]),
        sa.ForeignKeyConstraint(["ticket_id"], ["tickets.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    present = sa.text("ended_at IS NULL")
    op.create_index(
        "silenced_now",
        "silenced",
        key,
        unique=True,
        sqlite_where=present,
        postgresql_where=present,
    )
    op.create_index("silenced_seen", "silenced", ["first_seen_at"])
    op.create_index("silenced_ticket", "silenced", ["ticket_id"])


def _create_alerts() -> None:
    op.create_table(
        "alerts",
        *_columns(_TEXT, "subject", "fingerprint"),
        *_columns(_INSTANT, "starts_at", "received_at"),
        *_columns(_INSTANT, "ends_at", "changed_at", nullable=True),
        *_columns(_TEXT, "status", "invariant", "component", "message"),
        *_columns(sa.Integer(), "severity"),
        *_columns(_DOCUMENT, "facts"),
        *_columns(_TEXT, "silenced_by", nullable=True),
        sa.PrimaryKeyConstraint("subject", "fingerprint", "starts_at"),
    )
    key = ["subject", "invariant", "component"]
    _partial("alerts_firing", "alerts", key, "status = 'firing'")
    op.create_index("alerts_received", "alerts", ["received_at"])
    op.create_table(
        "senders",
        *_columns(_TEXT, "subject"),
        *_columns(_INSTANT, "received_at"),
        *_columns(_INSTANT, "heartbeat_at", nullable=True),
        *_columns(_DOCUMENT, "truncated"),
        sa.PrimaryKeyConstraint("subject"),
    )


def _create_deliveries() -> None:
    op.create_table(
        "deliveries",
        *_columns(_ID, "id"),
        *_columns(_TEXT, "dedup_key", "route", "target", "event", "thread", "state"),
        *_columns(_ID, "ticket_id", nullable=True),
        *_columns(_DOCUMENT, "content"),
        *_columns(_INSTANT, "created_at", "due_at", "due_since"),
        *_columns(sa.Integer(), "attempts"),
        *_columns(_TEXT, "claim_token", "last_error", nullable=True),
        *_columns(_INSTANT, "claim_until", "ended_at", nullable=True),
        sa.ForeignKeyConstraint(["ticket_id"], ["tickets.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("dedup_key"),
    )
    _partial(
        "deliveries_due",
        "deliveries",
        ["target", "thread", "due_at"],
        "state = 'due'",
    )
    op.create_index("deliveries_thread", "deliveries", ["target", "thread"])
    op.create_index("deliveries_ticket", "deliveries", ["ticket_id"])
    op.create_index("deliveries_created", "deliveries", ["created_at"])
    op.create_table(
        "delivery_threads",
        *_columns(_TEXT, "target", "thread"),
        *_columns(_DOCUMENT, "reference"),
        *_columns(_INSTANT, "updated_at"),
        sa.PrimaryKeyConstraint("target", "thread"),
    )


def _create_api() -> None:
    op.create_table(
        "tokens",
        *_columns(_ID, "id"),
        *_columns(_TEXT, "kind", "name", "digest", "role", "created_by"),
        *_columns(_DOCUMENT, "scopes"),
        *_columns(_INSTANT, "created_at", "expires_at"),
        *_columns(_ID, "parent_id", nullable=True),
        *_columns(_INSTANT, "last_used_at", "revoked_at", nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
    )
    op.create_table(
        "investigations",
        *_columns(_TEXT, "id", "question", "requested_by"),
        *_columns(_ID, "ticket_id"),
        *_columns(_TEXT, "callback_url", nullable=True),
        *_columns(_INSTANT, "created_at"),
        *_columns(_INSTANT, "cancelled_at", nullable=True),
        sa.ForeignKeyConstraint(["ticket_id"], ["tickets.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("investigations_ticket", "investigations", ["ticket_id"])
    op.create_table(
        "idempotency_keys",
        *_columns(_TEXT, "principal", "key", "request_digest"),
        *_columns(sa.Integer(), "status"),
        *_columns(_DOCUMENT, "answer"),
        *_columns(_INSTANT, "created_at"),
        sa.PrimaryKeyConstraint("principal", "key"),
    )
    op.create_index("idempotency_keys_created", "idempotency_keys", ["created_at"])
