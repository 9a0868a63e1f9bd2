"""The indexes of the tables; they belong to the tables' metadata once this module is imported.

They are not in `schema` because an option of PostgreSQL loads its dialect, which commands that list tickets do
not need.
"""

from __future__ import annotations

from sqlalchemy import Index, text

from midwatch.store.change_tables import changes
from midwatch.store.pull_requests import pull_requests
from midwatch.store.schedule_tables import scheduled_runs
from midwatch.store.schema import (
    alerts,
    audit,
    batches,
    deliveries,
    delivery_threads,
    diagnoses,
    diagnosis_tickets,
    idempotency_keys,
    investigations,
    past_incidents,
    sessions,
    silenced,
    silences,
    subjects,
    tickets,
    tokens,
    transcript_entries,
)

# A partial index is used only where a statement has its condition, as `midwatch.store.schema` has these.
_UNRESOLVED = text("status <> 'resolved'")
_CLAIMED = text("state = 'claimed'")
_UNSETTLED = text("outcome IN ('running', 'lost', 'late')")

Index(
    "batches_queue",
    batches.c.severity,
    batches.c.opened_at,
    batches.c.id,
    sqlite_where=text("queued = 1"),
    postgresql_where=text("queued"),
)
Index("subjects_watcher", subjects.c.watcher)
Index("batches_subject", batches.c.subject, batches.c.id)
Index(
    "tickets_one_unresolved_per_key",
    tickets.c.subject,
    tickets.c.invariant,
    tickets.c.component,
    unique=True,
    sqlite_where=_UNRESOLVED,
    postgresql_where=_UNRESOLVED,
)
Index(
    "tickets_unresolved",
    tickets.c.severity,
    tickets.c.opened_at,
    tickets.c.id,
    sqlite_where=_UNRESOLVED,
    postgresql_where=_UNRESOLVED,
)
Index("tickets_batch", tickets.c.batch_id)
_PLACE = (tickets.c.opened_at, tickets.c.id)
_KEY = (tickets.c.subject, tickets.c.invariant)
Index("tickets_opened", *_PLACE)
# With the severity, so that both orders of a list are read from them: see `midwatch.store.tickets.list_tickets`.
Index("tickets_urgency", tickets.c.severity, *_PLACE)
Index("tickets_subject", tickets.c.subject, tickets.c.severity, *_PLACE)
Index("tickets_invariant", tickets.c.invariant, tickets.c.severity, *_PLACE)
Index("tickets_subject_invariant", *_KEY, tickets.c.severity, *_PLACE)
Index("tickets_key", *_KEY, tickets.c.component, *_PLACE)
_PAST = past_incidents.c
Index(
    "past_incidents_key",
    _PAST.subject,
    _PAST.invariant,
    _PAST.component,
    _PAST.ticket_id,
)
Index("past_incidents_subject", _PAST.subject, _PAST.invariant, _PAST.ticket_id)
Index("past_incidents_invariant", _PAST.invariant, _PAST.ticket_id)
Index("diagnoses_batch", diagnoses.c.batch_id)
Index("diagnoses_started", diagnoses.c.started_at)
Index(
    "diagnoses_unsettled",
    diagnoses.c.started_at,
    sqlite_where=_UNSETTLED,
    postgresql_where=_UNSETTLED,
)
Index("diagnosis_tickets_ticket", diagnosis_tickets.c.ticket_id)
Index("audit_ticket", audit.c.ticket_id, audit.c.id)
Index("silences_revision", silences.c.revision, unique=True)
Index("silences_end", silences.c.ends_at)
Index(
    "silenced_now",
    silenced.c.subject,
    silenced.c.invariant,
    silenced.c.component,
    unique=True,
    sqlite_where=text("ended_at IS NULL"),
    postgresql_where=text("ended_at IS NULL"),
)
Index("silenced_seen", silenced.c.first_seen_at)
Index("silenced_ticket", silenced.c.ticket_id)
Index(
    "alerts_in_question",
    alerts.c.subject,
    alerts.c.invariant,
    alerts.c.component,
    sqlite_where=text("status != 'resolved'"),
    postgresql_where=text("status != 'resolved'"),
)
Index("alerts_received", alerts.c.received_at)
Index(
    "deliveries_due",
    deliveries.c.target,
    deliveries.c.thread,
    deliveries.c.due_at,
    sqlite_where=text("state = 'due'"),
    postgresql_where=text("state = 'due'"),
)
Index("deliveries_thread", deliveries.c.target, deliveries.c.thread)
Index("deliveries_ticket", deliveries.c.ticket_id)
Index("deliveries_created", deliveries.c.created_at)
Index("deliveries_state", deliveries.c.state, deliveries.c.created_at, deliveries.c.id)
Index("delivery_threads_updated", delivery_threads.c.updated_at)
Index("investigations_ticket", investigations.c.ticket_id)
Index("investigations_created", investigations.c.created_at, investigations.c.id)
Index("idempotency_keys_created", idempotency_keys.c.created_at)
Index("changes_at", changes.c.at, changes.c.id)
Index("changes_subject", changes.c.subject, changes.c.at, changes.c.id)
Index("sessions_created", sessions.c.created_at, sessions.c.id)
Index("sessions_ticket", sessions.c.ticket_id)
Index("sessions_phase", sessions.c.phase, sessions.c.created_at, sessions.c.id)
Index(
    "pull_requests_one_per_attempt",
    pull_requests.c.ticket_id,
    pull_requests.c.repository,
    pull_requests.c.attempt,
    unique=True,
)
Index(
    "pull_requests_due",
    pull_requests.c.next_check_at,
    pull_requests.c.id,
    sqlite_where=text("next_check_at IS NOT NULL"),
    postgresql_where=text("next_check_at IS NOT NULL"),
)
Index("tokens_parent", tokens.c.parent_id)
Index("tokens_end", tokens.c.expires_at)
_TRANSCRIPT = (
    transcript_entries.c.project_key,
    transcript_entries.c.session_id,
    transcript_entries.c.subpath,
)
Index("transcript_entries_order", *_TRANSCRIPT, transcript_entries.c.id)
# Entries without a uuid never conflict: null equals nothing, not even null.
Index("transcript_entries_once", *_TRANSCRIPT, transcript_entries.c.uuid, unique=True)
Index(
    "scheduled_runs_claimed",
    scheduled_runs.c.claimed_at,
    sqlite_where=_CLAIMED,
    postgresql_where=_CLAIMED,
)
