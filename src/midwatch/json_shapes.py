"""The JSON of tickets, diagnoses, sessions and figures, as the command line and the API give it to programs.

docs/json.md lists the fields, which are stable. Instants and dataclasses stay as they are: `plain` turns them into JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from midwatch.text import one_line
from midwatch.units import check_url

if TYPE_CHECKING:
    from midwatch.model import AuditRow, Diagnosis, Json, Ticket
    from midwatch.session.records import StoredSession
    from midwatch.silences import Silence
    from midwatch.store.action_runs_protocol import ActionRun
    from midwatch.store.on_call import Change, PullRequest
    from midwatch.store.protocol import Brief, Daemon, Pause, Stats, TicketSession
    from midwatch.system_changes import SystemChange


def iso(at: datetime) -> str:
    """Return an instant in UTC, to the millisecond: 2026-11-21T22:40:01.250Z."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """Return what JSON has for a value that it does not know: the `default` of `json.dumps`."""
    if isinstance(value, datetime):
        return iso(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be printed as JSON")


def dump(value: Any) -> bytes:
    """Return a document as JSON in one line."""
    return json.dumps(value, default=plain, separators=(",", ":")).encode()


# ------------------------------------------------------------------ tickets


def settled(ticket: Ticket, attempts: Sequence[Diagnosis]) -> Diagnosis | None:
    """Return the attempt whose answer, or error, is the ticket's diagnosis."""
    return next((one for one in attempts if one.id == ticket.diagnosis_id), None)


def settled_because(ticket: Ticket, diagnosis: Diagnosis | None) -> str | None:
    """Return why this diagnosis settled the ticket; None where none did. The rule is in docs/architecture.md."""
    if diagnosis is None or diagnosis.id != ticket.diagnosis_id:
        return None
    if ticket.id in diagnosis.explains:
        verdict = (diagnosis.answer or {}).get("verdict")
        by_cause = verdict in ("identified", "suspected")
        return (
            "its root cause explains this ticket"
            if by_cause
            else "it names this ticket"
        )
    if diagnosis.outcome == "answered":
        return "it names no ticket, and this was the only one of its incident"
    if diagnosis.outcome == "cut":
        return "it was cut off before it named tickets"
    return "without an answer, the error stands for the whole incident"


def ticket_summary(ticket: Ticket, brief: Brief | None) -> Json:
    """Return a ticket as it is in a list: without its long texts."""
    return {**_ticket_fields(ticket), "diagnosis": brief}


def ticket_document(
    ticket: Ticket,
    diagnosis: Diagnosis | None,
    sessions: Sequence[TicketSession],
    pull_requests: Sequence[PullRequest] = (),
) -> Json:
    """Return a ticket with its facts, first aid, diagnosis, sessions and pull requests."""
    return {
        **_ticket_fields(ticket),
        "facts": dict(ticket.facts),
        "runbook_url": runbook_url(ticket),
        "runbooks": ticket_runbooks(ticket, diagnosis),
        "first_aid": ticket.first_aid,
        "diagnosis": (
            None if diagnosis is None else diagnosis_document(ticket, diagnosis)
        ),
        "sessions": list(sessions),
        "pull_requests": [pull_request_document(one) for one in pull_requests],
    }


def runbook_url(ticket: Ticket) -> str | None:
    """Return the address that its alert names as its runbook, if it is one of http or https without a login."""
    value = ticket.facts.get("runbook_url")
    if not isinstance(value, str):
        return None
    try:
        parts = urlsplit(check_url(value.strip()))
    except ValueError:
        return None
    return None if "@" in parts.netloc else value.strip()


def ticket_runbooks(ticket: Ticket, diagnosis: Diagnosis | None) -> list[Json]:
    """Return the runbooks that were evidence on a ticket: of its diagnosis, else of its first aid.

    `contradicted` is what the diagnosis says of the evidence against each.
    """
    from midwatch.model import Origin
    from midwatch.store.schema import evidence_of

    found, answer = [], {}
    if diagnosis is not None:
        found, answer = list(diagnosis.evidence), diagnosis.answer or {}
    of_diagnosis = any(one.origin is Origin.NOTE for one in found)
    if not of_diagnosis:
        kept = (ticket.first_aid or {}).get("evidence") or ()
        found, answer = [evidence_of(one) for one in kept], {}
    points = answer.get("runbook_contradictions") or ()
    return [
        {
            "id": one.id,
            "title": one.title,
            "source": one.source,
            "available": one.available,
            "text": one.text,
            "contradicted": [
                point["statement"]
                for point in points
                if any(cited["evidence_id"] == one.id for cited in point["citations"])
            ],
        }
        for one in found
        if one.origin is Origin.NOTE and (not one.tickets or ticket.id in one.tickets)
    ]


def pull_request_document(pull: PullRequest) -> Json:
    """Return a pull request of a ticket."""
    return {
        "repository": pull.repository,
        "attempt": pull.attempt,
        "state": pull.state,
        "url": pull.url,
        "number": pull.number,
        "branch": pull.branch,
        "base": pull.base,
        "checks": pull.checks,
        "review": pull.review,
        "session": pull.session,
        "waiting": pull.waiting,
        "requested_by": pull.requested_by,
        "approved_by": pull.approved_by,
        "created_at": pull.created_at,
        "checked_at": pull.checked_at,
        "last_error": pull.last_error,
    }


def pull_request_state(pull: PullRequest) -> str:
    """Return the state in words."""
    if pull.awaits_branch:
        return "waits for the branch of its session"
    words = {"waiting": "waits for approval", "pushed": "pushed, not open yet"}
    state = words.get(pull.state, pull.state)
    waits = pull.waiting is not None and pull.state != "waiting"
    return f"{state}; new commits wait for approval" if waits else state


def _ticket_fields(ticket: Ticket) -> Json:
    return {
        "id": ticket.id,
        "subject": ticket.key.subject,
        "invariant": ticket.key.invariant,
        "component": ticket.key.component,
        "severity": ticket.severity.label,
        "status": ticket.status.value,
        "held": ticket.held,
        "flapping": ticket.flapping,
        "seen": ticket.seen,
        "message": ticket.message,
        "first_seen_at": ticket.first_seen_at,
        "opened_at": ticket.opened_at,
        "last_seen_at": ticket.last_seen_at,
        "occurrence_count": ticket.occurrence_count,
        "batch": ticket.batch,
        "previous_id": ticket.previous_id,
        "acknowledged_at": ticket.acknowledged_at,
        "acknowledged_by": ticket.acknowledged_by,
        "attempts": ticket.attempts,
        "next_attempt_at": ticket.next_attempt_at,
        "last_error": ticket.last_error,
        "left_out_by": ticket.left_out_by,
        "silenced_by": ticket.silenced_by,
        "silenced_until": ticket.silenced_until,
        "resolved_at": ticket.resolved_at,
        "resolution": ticket.resolution,
    }


def action_run_document(run: ActionRun) -> Json:
    """Return an approved action."""
    return {
        "id": run.proposal,
        "kind": run.kind,
        "what": run.what,
        "target": dict(run.target),
        "diagnosis": run.diagnosis_id,
        "state": run.state.value,
        "approved_by": run.approved_by,
        "channel": run.channel,
        "approved_at": run.approved_at,
        "expires_at": run.expires_at,
        "run_by": run.run_by,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "output": run.output,
    }


def diagnosis_document(ticket: Ticket | None, diagnosis: Diagnosis) -> Json:
    """Return a diagnosis, and why it settled the ticket, if there is one."""
    answer = diagnosis.answer or {}
    return {
        "id": diagnosis.id,
        "outcome": diagnosis.outcome,
        "verdict": answer.get("verdict"),
        "summary": answer.get("summary"),
        "root_cause": answer.get("root_cause"),
        "confidence": diagnosis.confidence,
        "grounded": diagnosis.grounded,
        "explains": list(diagnosis.explains),
        "settled_because": (
            None if ticket is None else settled_because(ticket, diagnosis)
        ),
        "model": diagnosis.model,
        "prompt_version": diagnosis.prompt_version,
        "started_at": diagnosis.started_at,
        "finished_at": diagnosis.finished_at,
        "usage": diagnosis.usage,
        "cost_usd": diagnosis.cost_usd,
        "error": diagnosis.error,
        "request_id": diagnosis.request_id,
        "answer": diagnosis.answer,
        "evidence": diagnosis.evidence,
        "markdown": diagnosis.markdown,
    }


def history_document(row: AuditRow) -> Json:
    """Return one change of a ticket."""
    return {
        "ticket": row.ticket_id,
        "at": row.at,
        "actor": row.actor,
        "action": row.action,
        "from": row.before,
        "to": row.after,
        "why": row.why,
    }


def change_document(change: Change) -> Json:
    """Return one change of a ticket as `tickets watch` prints it."""
    return {
        "cursor": str(change.cursor),
        "ticket": change.ticket_id,
        "at": change.at,
        "actor": change.actor,
        "action": change.action,
        "from": change.before,
        "to": change.after,
        "why": change.why,
        "subject": change.subject,
        "invariant": change.invariant,
        "component": change.component,
        "severity": change.severity.label,
        "batch": change.batch,
        "message": change.message,
    }


# ------------------------------------------------------------------ sessions


def session_row(session: StoredSession) -> Json:
    """Return a session of a list, without its long texts."""
    status, options = session.status, session.options
    return {
        "id": session.id,
        "phase": status.phase.value,
        "reason": status.reason,
        "created_at": iso(session.created_at),
        "started_at": _iso(status.started_at),
        "ended_at": _iso(status.ended_at),
        "last_activity_at": _iso(status.last_activity_at),
        "ticket": session.ticket,
        "forked_from": session.forked_from,
        "interactive": session.interactive,
        "model": status.model or session.model,
        "prompt": one_line(session.prompt, 500),
        "conditions": list(status.conditions),
        "runs": status.run,
        "turns": status.turns,
        "requests": status.requests,
        "duration": status.active_seconds,
        "usage": asdict(status.usage),
        "cost_usd": status.cost_usd,
        "repositories": list(session.repositories),
        "host": options.get("host"),
        "folder": options.get("folder"),
        "cwd": session.cwd,
    }


def session_document(session: StoredSession) -> Json:
    """Return all that is recorded of a session."""
    from midwatch.session.records import status_to_json

    status = session.status
    whole = status_to_json(status)
    return {
        **session_row(session),
        "prompt": session.prompt,
        "conversation": status.conversation,
        "models": whole["spend"],
        "result": status.result,
        "last_message": status.last_message,
        "error": whole["error"],
        "retries": status.retries,
        "pending_permissions": whole["pending_permissions"],
        "unfinished": list(status.unfinished),
        "denied": whole["denied"],
        "runner": session.runner,
        "heartbeat_at": iso(session.heartbeat_at),
        "asked_repositories": session.options.get("repositories") or [],
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else iso(at)


# ------------------------------------------------------------------ silences


def silence_document(silence: Silence, now: datetime, count: int) -> Json:
    """Return a silence. `count` is how many violations it keeps silent."""
    state = "active" if silence.active(now) else "pending"
    return {
        "id": silence.id,
        "state": "ended" if silence.ended(now) else state,
        "matchers": [str(one) for one in silence.matchers],
        "starts_at": silence.starts_at,
        "ends_at": silence.ends_at,
        "active_until": silence.active_until(now),
        "next_start": silence.next_start(now),
        "rrule": silence.rrule,
        "window_seconds": silence.window_seconds,
        "timezone": silence.timezone,
        "author": silence.author,
        "reason": silence.reason,
        "created_at": silence.created_at,
        "expired_at": silence.expired_at,
        "expired_by": silence.expired_by,
        "silenced": count,
    }


def change_record_document(change: SystemChange, onset: datetime | None = None) -> Json:
    """Return a change of a watched system; with the onset of a ticket, how long before it that was, in seconds."""
    before = None if onset is None else (onset - change.at).total_seconds()
    details = change.details
    return {
        "id": change.id,
        "time": change.at,
        "since": change.since,
        "kind": change.kind.value,
        "title": change.title,
        "source": change.source,
        "subject": change.subject or None,
        "labels": dict(change.labels),
        "version_from": change.version_from,
        "version_to": change.version_to,
        "link": change.link,
        "author": change.author,
        "commit": change.commit or None,
        "repository": details.get("repository"),
        "branch": details.get("branch"),
        "files": list(change.files),
        "more_files": details.get("more_files", 0),
        "recorded_at": change.recorded_at,
        "seconds_before_onset": before,
    }


# ------------------------------------------------------------------ figures


def stats_document(
    stats: Stats,
    spent_today: float,
    budget: float | None,
    pauses: Sequence[Pause],
    daemons: Sequence[Daemon],
    deliveries: Mapping[str, int],
) -> Json:
    """Return the figures about tickets, daemons and notifications. `budget` is that of a day in USD."""
    return {
        "since": stats.since,
        "opened": stats.opened,
        "resolved": stats.resolved,
        "unresolved": stats.unresolved,
        "given_up": stats.given_up,
        "silenced": stats.silenced,
        "silent_now": stats.silent_now,
        "seconds_to_detect": stats.to_detect,
        "seconds_to_see": stats.to_see,
        "seconds_to_confirm": stats.to_confirm,
        "seconds_to_diagnose": stats.to_diagnose,
        "seconds_to_resolve": stats.to_resolve,
        "notifications": dict(deliveries),
        "outcomes": dict(stats.outcomes),
        "usage": stats.usage,
        "cost_usd": stats.cost_usd,
        "today": {"spent_usd": spent_today, "budget_usd": budget},
        "pauses": [
            {
                "kind": pause.kind,
                "until": pause.until,
                "reason": pause.reason,
                "actor": pause.actor,
            }
            for pause in pauses
        ],
        "daemons": daemons,
    }
