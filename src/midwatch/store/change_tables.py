"""The tables of the changes of watched systems."""

from __future__ import annotations

from sqlalchemy import Column, Table

from midwatch.store.schema import Document, Id, Instant, SanitizedText, metadata

# What was changed in the watched systems; they are removed after a time.
changes = Table(
    "changes",
    metadata,
    Column("id", Id, primary_key=True),
    # What makes it one: a report that comes again is not stored.
    Column("dedup_key", SanitizedText, nullable=False, unique=True),
    # Empty for one that is known by its labels alone.
    Column("subject", SanitizedText, nullable=False),
    Column("at", Instant, nullable=False),
    # It happened after this, where only a period is known.
    Column("since", Instant),
    Column("kind", SanitizedText, nullable=False),
    Column("title", SanitizedText, nullable=False),
    Column("source", SanitizedText, nullable=False),
    Column("labels", Document, nullable=False),
    Column("version_from", SanitizedText, nullable=False),
    Column("version_to", SanitizedText, nullable=False),
    Column("link", SanitizedText, nullable=False),
    Column("author", SanitizedText, nullable=False),
    Column("details", Document, nullable=False),
    Column("recorded_at", Instant, nullable=False),
)

# How far the branches of repositories have been read.
change_readings = Table(
    "change_readings",
    metadata,
    Column("name", SanitizedText, primary_key=True),
    Column("state", Document, nullable=False),
    Column("read_at", Instant),
    Column("failed_at", Instant),
    Column("error", SanitizedText, nullable=False),
)
