"""The tables of schedules."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Integer,
    Table,
    literal_column,
)

from midwatch.store.schema import Instant, SanitizedText, metadata

# How far the times of a schedule were looked at, and how many of them were missed. Daemons can have schedules of one name
# that work on other repositories (`fingerprint`), or whose times follow from something else (`definition`).
schedules = Table(
    "schedules",
    metadata,
    Column("name", SanitizedText, primary_key=True),
    Column("fingerprint", SanitizedText, primary_key=True),  # "" is from before 0014
    Column("definition", SanitizedText, primary_key=True),
    Column("seen_until", Instant, nullable=False),
    Column("missed", Integer, nullable=False),
    # A daemon has started whose settings have other times, or which are not enabled.
    Column("superseded", Boolean, nullable=False),
)

# One time of a schedule, or a run by hand; the key is the claim on it. `state` is claimed, started or missed.
scheduled_runs = Table(
    "scheduled_runs",
    metadata,
    Column("schedule", SanitizedText, primary_key=True),
    Column("fingerprint", SanitizedText, primary_key=True),
    Column("at", Instant, primary_key=True),
    Column("state", SanitizedText, nullable=False),
    Column("session_id", SanitizedText),
    Column("reason", SanitizedText, nullable=False),
    Column("claimed_at", Instant, nullable=False),
)

CLAIMED_RUN: ColumnElement[bool] = scheduled_runs.c.state == literal_column("'claimed'")
