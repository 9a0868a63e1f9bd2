"""Sessions as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midwatch.cli.output import BOLD, DIM, GREEN, RED, YELLOW, Cell, Output
from midwatch.session.agentic_session import SessionResult
from midwatch.session.events import Phase
from midwatch.store.sessions import StoredSession
from midwatch.text import one_line
from midwatch.units import format_duration
from midwatch.workspace.inspect import RepoState

_PROMPT = 5  # the column that is shortened
PHASE_STYLES = {
    Phase.COMPLETED: GREEN,
    Phase.FAILED: RED,
    Phase.STOPPED: YELLOW,
    Phase.RUNNING: BOLD,
}


def session_table(output: Output, sessions: Sequence[StoredSession]) -> None:
    if not sessions:
        if output.terminal:
            output.line("no sessions", DIM)
        return
    headings = ("id", "phase", "ticket", "since", "cost", "prompt", "repositories")
    output.table(headings, [_row(output, one) for one in sessions], shrink=_PROMPT)


def _row(output: Output, session: StoredSession) -> list[Cell]:
    phase = session.status.phase
    shown = f"{phase}: {session.status.reason}" if _tells(session) else str(phase)
    return [
        Cell(session.id),
        Cell(shown, PHASE_STYLES.get(phase, "")),
        Cell("" if session.ticket is None else str(session.ticket)),
        Cell(output.when(session.created_at)),
        Cell(f"${session.status.cost_usd:.4f}"),
        Cell(session.prompt),
        Cell(", ".join(f"{r['name']} {r['status']}" for r in session.repositories)),
    ]


def _tells(session: StoredSession) -> bool:
    return session.status.phase in (Phase.FAILED, Phase.STOPPED)


def show_session(output: Output, session: StoredSession) -> None:
    """Everything that is known of one."""
    status = session.status
    why = f", {status.reason}" if status.reason else ""
    style = PHASE_STYLES.get(status.phase, BOLD)
    output.line(f"Session {session.id}: {status.phase}{one_line(why)}", style)
    output.line(one_line(session.prompt, 2000))
    output.line()
    for name, value in _facts(output, session):
        output.line(f"  {name + ':':<14}{value}")
    for repository in session.repositories:
        output.line(f"  {'repository:':<14}{record_line(repository)}")
    for asked in status.pending_permissions:
        text = f"{asked.request_id}: {asked.tool}"
        output.line(f"  {'asks:':<14}{one_line(text, 500)}", YELLOW)
    if status.error is not None:
        error = f"{status.error.message} ({status.error.hint})"
        output.line(f"  {'error:':<14}{one_line(error, 1000)}", RED)
    if status.result:
        output.line()
        output.markdown(status.result)


def _facts(output: Output, session: StoredSession) -> list[tuple[str, str]]:
    status = session.status
    usage = status.usage
    tokens = f"{usage.input_tokens:,} in, {usage.output_tokens:,} out"
    facts = [
        ("model", one_line(status.model or session.model)),
        ("created", output.when(session.created_at)),
        ("last sign", output.when(status.last_activity_at or session.heartbeat_at)),
        ("runs", str(status.run)),
        ("work", f"{status.turns} calls, {format_duration(status.active_seconds)}"),
        ("tokens", tokens),
        ("cost", f"${status.cost_usd:.4f}"),
        ("folder", one_line(str(session.options.get("folder") or ""), 500)),
        ("host", one_line(str(session.options.get("host") or ""))),
        ("works in", one_line(session.cwd, 500)),
    ]
    if session.ticket is not None:
        facts.insert(0, ("ticket", str(session.ticket)))
    if session.forked_from is not None:
        facts.insert(0, ("forked from", session.forked_from))
    if status.unfinished:
        facts.append(("unanswered", f"{len(status.unfinished)} messages"))
    return facts


def record_line(record: Mapping[str, Any]) -> str:
    """A repository of a record: `app: changed, 2 files +10 -3, 1 commit`."""
    return _line(
        one_line(str(record["name"])),
        str(record["status"]),
        (record["files"], record["added"], record["removed"]),
        record["commits"],
        record["untracked"],
        record["problem"],
    )


def repository_line(state: RepoState) -> str:
    return _line(
        one_line(state.name),
        state.status,
        (len(state.files), state.added, state.removed),
        state.commit_count,
        state.untracked,
        state.problem,
    )


def _line(
    name: str,
    status: str,
    lines: tuple[int, int, int],
    commits: int,
    untracked: int,
    problem: str | None,
) -> str:
    files, added, removed = lines
    parts = [f"{name}: {status}"]
    if files:
        parts.append(f"{_count(files, 'file')} +{added} -{removed}")
    if commits:
        parts.append(_count(commits, "commit"))
    if untracked:
        parts.append(f"{untracked} untracked")
    if problem:
        parts.append(one_line(problem, 300))
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def summary_line(result: SessionResult) -> str:
    """`session s-…: Completed, 3 calls, 4,100 tokens, $0.0200, 12s`."""
    usage = result.usage
    tokens = usage.input_tokens + usage.output_tokens
    why = f" ({one_line(result.reason)})" if result.reason else ""
    parts = (
        f"session {result.session_id}: {result.phase}{why}",
        _count(result.turns, "call"),
        f"{tokens:,} tokens",
        f"${result.cost_usd:.4f}",
        format_duration(result.duration),
    )
    return ", ".join(parts)
