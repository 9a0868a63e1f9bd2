"""Sessions as JSON; docs/json.md is the table of these fields."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from midwatch.cli.output import iso
from midwatch.model import Json
from midwatch.session.agentic_session import SessionResult, repository_record
from midwatch.session.records import status_to_json
from midwatch.store.sessions import StoredSession
from midwatch.text import one_line
from midwatch.workspace.mirrors import Mirror
from midwatch.workspace.push import PushResult


def session_row(session: StoredSession) -> Json:
    """A session in a list: without its long texts."""
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
        "runs": status.run,
        "turns": status.turns,
        "duration": status.active_seconds,
        "usage": asdict(status.usage),
        "cost_usd": status.cost_usd,
        "repositories": list(session.repositories),
        "host": options.get("host"),
        "folder": options.get("folder"),
        "cwd": session.cwd,
    }


def session_document(session: StoredSession) -> Json:
    """A session with everything that is known of it."""
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
        "runner": session.runner,
        "heartbeat_at": iso(session.heartbeat_at),
        "asked_repositories": session.options.get("repositories") or [],
    }


def result_document(result: SessionResult) -> Json:
    """The last line of a run with --json; `type` tells it from the events before it."""
    return {
        "type": "session",
        "id": result.session_id,
        "phase": result.phase.value,
        "reason": result.reason,
        "result": result.text,
        "turns": result.turns,
        "duration": result.duration,
        "usage": asdict(result.usage),
        "cost_usd": result.cost_usd,
        "models": {name: asdict(spend) for name, spend in result.models.items()},
        "conversation": result.conversation,
        "folder": str(result.folder),
        "error": (
            None
            if result.error is None
            else {
                "kind": result.error.kind,
                "message": result.error.message,
                "hint": result.error.hint,
                "temporary": result.error.temporary,
                "status": result.error.status,
            }
        ),
        "repositories": [asdict(repository_record(r)) for r in result.repositories],
    }


def push_document(result: PushResult) -> Json:
    return {
        "type": "push",
        "name": result.name,
        "remote": result.remote,
        "branch": result.branch,
        "outcome": result.outcome,
        "commit": result.commit,
        "error": None if result.error is None else result.error.line(),
    }


def mirror_document(mirror: Mirror) -> Json:
    return {
        "url": mirror.url,
        "path": str(Path(mirror.path)),
        "size": mirror.size,
        "used_at": iso(mirror.used_at),
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else iso(at)
