"""The output of `midwatch session`: tables and text for people, documents for `--json`, and events."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midwatch.cli.output import (
    BOLD,
    DIM,
    GREEN,
    RED,
    YELLOW,
    Cell,
    Output,
    cut,
    wrapped,
)
from midwatch.json_shapes import iso
from midwatch.model import Json
from midwatch.session.event_words import KIND_WIDTH, event_line
from midwatch.session.events import Event, PermissionRequest, Phase, TurnResult, to_json
from midwatch.session.permissions import TOOLS_DENIED, denied_line
from midwatch.session.records import (
    StoredSession,
    repository_to_json,
)
from midwatch.text import clean, one_line
from midwatch.units import format_count, format_duration
from midwatch.workspace.git import OnProgress, Progress
from midwatch.workspace.inspect import RepoState
from midwatch.workspace.mirrors import Mirror
from midwatch.workspace.push import PushResult

if TYPE_CHECKING:
    from midwatch.session.agentic_session import SessionResult
    from midwatch.session.status import SessionStatus

PHASE_STYLES = {
    Phase.COMPLETED: GREEN,
    Phase.FAILED: RED,
    Phase.STOPPED: YELLOW,
    Phase.RUNNING: BOLD,
}


def session_table(output: Output, sessions: Sequence[StoredSession]) -> None:
    """Print sessions as a table."""
    headings = ("id", "phase", "ticket", "since", "cost", "prompt", "repositories")
    rows = [_row(output, one) for one in sessions]
    shrink = ("prompt", "repositories", "phase")
    output.table(headings, rows, shrink, drop=("cost", "ticket"))


def _row(output: Output, session: StoredSession) -> list[Cell]:
    phase = session.status.phase
    shown = str(phase)
    if phase in (Phase.FAILED, Phase.STOPPED):
        shown = f"{phase}: {session.status.reason}"
    return [
        Cell(session.id),
        Cell(shown, PHASE_STYLES.get(phase, "")),
        Cell("" if session.ticket is None else str(session.ticket)),
        Cell(output.age(session.created_at)),
        Cell(f"${session.status.cost_usd:.4f}"),
        Cell(session.prompt),
        Cell(", ".join(_short_line(one) for one in session.repositories)),
    ]


def _short_line(record: Mapping[str, Any]) -> str:
    """Return a repository of a record as `app changed`, with what is not at its HEAD: `app changed (branch fix)`."""
    items = [f"{one['kind']} {one['name']}" for one in record.get("other") or ()]
    items += [str(one["name"]) for one in record.get("submodules") or ()]
    shown = [*items[:3], *(["…"] if len(items) > 3 else [])]
    where = f" ({', '.join(shown)})" if shown else ""
    return one_line(f"{record['name']} {record['status']}{where}", 200)


def show_session(output: Output, session: StoredSession) -> None:
    """Print all that is recorded of a session."""
    status = session.status
    why = f", {status.reason}" if status.reason else ""
    why += "".join(f", {one}" for one in status.conditions)
    style = PHASE_STYLES.get(status.phase, BOLD)
    output.line(f"Session {session.id}: {status.phase}{one_line(why)}", style)
    output.line(one_line(session.prompt, 2000))
    output.line()
    output.pairs(_facts(output, session), indent=17)
    for repository in session.repositories:
        output.line(f"  {'repository:':<15}{record_line(repository)}")
    for one in status.denied:
        why = f" ({one_line(one.why)})" if one.why else ""
        call = one_line(f"{one.tool} {one.call}", 500)
        output.line(f"  {'denied:':<15}{call}{why}", YELLOW)
    for request in status.pending_permissions:
        for line in request_lines(request, output.width, session.id):
            output.line(f"  {line}", YELLOW)
    if status.error is not None:
        error = f"{status.error.message} ({status.error.hint})"
        output.line(f"  {'error:':<15}{one_line(error, 1000)}", RED)
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
        ("last activity", output.when(status.last_activity_at or session.heartbeat_at)),
        ("runs", str(status.run)),
        ("work", f"{_calls(status)}, {format_duration(status.active_seconds)}"),
        ("tokens", tokens),
        ("cost", f"${status.cost_usd:.4f}"),
        ("folder", one_line(str(session.options.get("folder") or ""), 500)),
        ("host", one_line(str(session.options.get("host") or ""))),
        ("directory", one_line(session.cwd, 500)),
    ]
    if session.ticket is not None:
        facts.insert(0, ("ticket", str(session.ticket)))
    if session.forked_from is not None:
        facts.insert(0, ("forked from", session.forked_from))
    if status.unfinished:
        facts.append(("unanswered", f"{len(status.unfinished)} messages"))
    return facts


def record_line(record: Mapping[str, Any]) -> str:
    """Return a repository of a record as `app: changed, 2 files +10 -3, 1 commit`."""
    parts = [f"{one_line(str(record['name']))}: {record['status']}"]
    if record["files"]:
        lines = f"+{record['added']} -{record['removed']}"
        parts.append(f"{format_count(record['files'], 'file')} {lines}")
    if record["commits"]:
        parts.append(format_count(record["commits"], "commit"))
    if record["untracked"]:
        parts.append(f"{record['untracked']} untracked")
    if record["problem"]:
        parts.append(one_line(record["problem"], 300))
    # Records of earlier versions do not have the next two.
    parts += [_other_text(item) for item in (record.get("other") or ())[:_MAX_OTHER]]
    more = (record.get("other_count") or 0) - _MAX_OTHER
    if more > 0:
        parts.append(f"and {more} more branches or stashes")
    inner = (f"submodule {record_line(one)}" for one in record.get("submodules") or ())
    return "; ".join([", ".join(parts), *inner])


_MAX_OTHER = 5
"""Branches, worktrees and stashes that the line of a repository names."""


def _other_text(item: Mapping[str, Any]) -> str:
    """Return work that is not at HEAD as `branch fix/total: 1 commit, not pushed`."""
    parts = [format_count(item["commits"], "commit")] if item["commits"] else []
    if item["files"]:
        parts.append(f"{format_count(item['files'], 'file')} not committed")
    parts.append("pushed" if item["pushed"] else "not pushed")
    if item["problem"]:
        parts.append(one_line(item["problem"], 200))
    return f"{item['kind']} {one_line(item['name'], 100)}: {', '.join(parts)}"


def repository_line(state: RepoState) -> str:
    """Return a repository after a run, in the form of `record_line`."""
    return record_line(repository_to_json(state))


def _calls(of: SessionStatus | SessionResult | TurnResult) -> str:
    """Return the calls, and the requests if there were more: the program repeats some that were refused."""
    calls = format_count(of.turns, "call")
    return f"{calls} in {of.requests} requests" if of.requests > of.turns else calls


def summary_line(result: SessionResult) -> str:
    """Return the summary of a run: `session s-…: Completed, 3 calls, 4,100 tokens, $0.0200, 12s`."""
    usage = result.usage
    tokens = usage.input_tokens + usage.output_tokens
    why = f" ({one_line(result.reason)})" if result.reason else ""
    denied = denied_line(result.denied)
    parts = (
        f"session {result.session_id}: {result.phase}{why}",
        _calls(result),
        f"{tokens:,} tokens",
        f"${result.cost_usd:.4f}",
        format_duration(result.duration),
        *([denied] if denied else []),
    )
    return ", ".join(parts)


# ------------------------------------------------------------------ events

_MAX_TEXT = 2000
_STYLES: dict[str, str] = {
    "message": BOLD,
    "thinking": DIM,
    "tool_result": DIM,
    "notice": DIM,
    "permission": YELLOW,
    "retry": YELLOW,
    "rejected": YELLOW,
    "error": RED,
}


@dataclass(frozen=True, slots=True)
class EventPrinter:
    """Prints each event as a line of text or JSON and flushes it, so that a pipe delivers it at once.

    A permission request is printed whole, with the commands that answer it for the session `session_id`.
    """

    output: Output
    as_json: bool = False
    session_id: str = ""

    def event(self, event: Event) -> None:
        if self.as_json:
            self.document(to_json(event))
        elif isinstance(event, PermissionRequest):
            self._request(event)
        elif line := event_line(event):
            kind, text = line
            self.line(f"{event.at:%H:%M:%S}", kind, text)

    def _request(self, request: PermissionRequest) -> None:
        head = f"{request.at:%H:%M:%S} "
        room = self.output.width - len(head)
        for number, line in enumerate(request_lines(request, room, self.session_id)):
            start = head if number == 0 else " " * len(head)
            self.output.line(f"{start}{line}".rstrip(), YELLOW)
        self.output.stream.flush()

    def document(self, document: Any) -> None:
        """Print one line of JSON, escaped to ASCII."""
        print(json.dumps(document), file=self.output.stream, flush=True)

    def line(self, time: str, kind: str, text: str) -> None:
        head = f"{time} {kind:<{KIND_WIDTH}} "
        shown = one_line(text, _MAX_TEXT)
        if self.output.terminal:
            shown = cut(shown, max(self.output.width - len(head), 20))
        self.output.line(f"{head}{shown}".rstrip(), _STYLES.get(kind, ""))
        self.output.stream.flush()

    def plain(self, text: str = "", style: str = "") -> None:
        """Print a line of text; nothing with --json."""
        if not self.as_json:
            self.output.line(text, style)
            self.output.stream.flush()

    def answer(self, text: str) -> None:
        """Print Claude's last answer in full; nothing with --json."""
        if text and not self.as_json:
            self.output.line()
            self.output.markdown(text)
            self.output.stream.flush()

    def phase(self, phase: Phase, text: str) -> None:
        self.plain(text, GREEN if phase is Phase.COMPLETED else RED)


def print_notice(text: str) -> None:
    """Print a notice on standard error."""
    print(f"midwatch: {one_line(text, _MAX_TEXT)}", file=sys.stderr, flush=True)


def request_lines(request: PermissionRequest, width: int, session_id: str) -> list[str]:
    """Return a permission request in full, wrapped to `width` columns, and how to answer it."""
    id = one_line(request.request_id)
    lines = [f"permission  Claude asks to use {one_line(request.tool)}, request {id}:"]
    for name, value in request.input.items():
        text = value if isinstance(value, str) else json.dumps(value)
        whole = f"{name}: {clean(text, longest=None)}"
        lines += [f"    {line}" for line in _wrapped(whole, max(width - 4, 20))]
    if request.expires_at is None or request.expires_at > request.at:
        lines += _how_to_answer(request, id, session_id)
    return lines


def _how_to_answer(
    request: PermissionRequest, id: str, session_id: str
) -> Iterator[str]:
    expires = request.expires_at
    yield "  it waits for an answer" + (f" until {expires:%H:%M:%S}" if expires else "")
    yield f"  where you can type to the session: /approve {id} or /deny {id}"
    if session_id:
        yield f"  elsewhere: midwatch session approve {session_id} {id}"
        yield f"         or: midwatch session deny {session_id} {id}"


def _wrapped(text: str, room: int) -> Iterator[str]:
    """Yield the lines of a text in pieces of at most `room` columns; no character is left out."""
    for line in text.expandtabs().split("\n"):
        yield from wrapped(line, room)


# ------------------------------------------------------------------ JSON, as in docs/json.md


_ERROR = ("kind", "message", "hint", "temporary", "status")


def result_document(result: SessionResult) -> Json:
    """Return the last line of a run; its `type` differs from those of the events before it."""
    error = result.error
    return {
        "type": "session",
        "id": result.session_id,
        "phase": result.phase.value,
        "reason": result.reason,
        "result": result.text,
        "turns": result.turns,
        "requests": result.requests,
        "duration": result.duration,
        "usage": asdict(result.usage),
        "cost_usd": result.cost_usd,
        "models": {name: asdict(spend) for name, spend in result.models.items()},
        "conversation": result.conversation,
        "folder": str(result.folder),
        "error": None if error is None else {n: getattr(error, n) for n in _ERROR},
        "repositories": [repository_to_json(one) for one in result.repositories],
        "conditions": [TOOLS_DENIED] if result.denied else [],
        "denied": [asdict(one) for one in result.denied],
    }


def push_document(result: PushResult) -> Json:
    """Return the push of a repository."""
    return {
        "type": "push",
        "name": result.name,
        "remote": result.remote,
        "branch": result.branch,
        "outcome": result.outcome,
        "commit": result.commit,
        "error": None if result.error is None else result.error.one_line(),
    }


def mirror_document(mirror: Mirror) -> Json:
    """Return a mirror of `midwatch cache`."""
    return {
        "url": mirror.url,
        "path": str(Path(mirror.path)),
        "size": mirror.size,
        "used_at": iso(mirror.used_at),
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else iso(at)


# ------------------------------------------------------------------ progress of clones

_SHARE = {
    "asking": 0,
    "counting": 5,
    "receiving": 10,
    "resolving": 80,
    "checkout": 90,
    "done": 100,
}
_SPAN = {"counting": 5, "receiving": 70, "resolving": 10, "checkout": 10}


@contextmanager
def shown_progress(quiet: bool) -> Iterator[OnProgress]:
    """Yield the `on_progress` of `setup_workspace`: bars on a terminal, a line per repository elsewhere.

    It prints on standard error, or nothing if `quiet`.
    """
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        yield _lines


def _lines(progress: Progress) -> None:
    if progress.phase == "done":
        print_notice(f"cloned {progress.repository}")


@contextmanager
def _bars() -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn
    from rich.progress import Progress as Bars
    from rich.progress import TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, int] = {}

        def show(progress: Progress) -> None:
            name = one_line(progress.repository, 60)
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=100, detail="")
            done = _SHARE[progress.phase]
            done += _SPAN.get(progress.phase, 0) * progress.percent // 100
            detail = one_line(f"{progress.phase} {progress.detail}", 40)
            bars.update(tasks[name], completed=done, detail=detail)  # type: ignore[arg-type]

        yield show
