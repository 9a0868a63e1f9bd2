"""The report on an incident after it, as Markdown: what happened when, why, what was done, what it cost.

It is made of what the store has. Every string in it is hostile: it is escaped, or stands in a code fence that it cannot end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from midwatch.agent.grounding import ground
from midwatch.agent.recent_changes import RecentChanges, change_line
from midwatch.diagnosis_schema import DiagnosisOutput
from midwatch.markdown import fenced
from midwatch.model import AuditRow, Diagnosis, Evidence, Ticket, Usage
from midwatch.store.protocol import Store, TicketFilter, TicketSession
from midwatch.system_changes import SystemChange
from midwatch.text import markdown_escape, one_line
from midwatch.units import format_duration

MOST_TICKETS = 50
"""Tickets of one incident that are in the report."""
_LONGEST = 1000
_LONGEST_REASON = 300
_MOST_NUMBERS = 10
_MOST_QUOTES = 20
_DAEMONS = ("monitor", "agent", "first_aid", "notifier")
_ACTIONS = {
    "open": "opened",
    "first_aid": "first aid",
    "acknowledge": "acknowledged",
    "hold": "held",
    "unhold": "released",
    "diagnose": "diagnosed",
    "give up": "given up",
    "requeue": "queued again",
    "join": "joined another incident",
    "session": "",
    "retry": "queued again by hand",
    "resolve": "resolved",
    "approve_action": "approved an action",
    "run_action": "ran an action",
    "action_done": "action done",
    "action_not_run": "action not run",
    "action_failed": "action failed",
    "action_unknown": "action with an unknown end",
    "action_expired": "approval expired",
    "silence": "silenced",
    "unsilence": "no longer silenced",
}
_VERDICTS = {
    "identified": "The cause was identified",
    "suspected": "A cause is suspected",
    "insufficient_data": "The evidence did not suffice for a cause",
    "no_fault": "No fault was found",
}


@dataclass(frozen=True, slots=True)
class Incident:
    """What the store has of an incident.

    Attributes:
        ticket: The ticket that the report was asked for.
        tickets: The tickets of its batch, at most `MOST_TICKETS`, by number; the ticket is among them.
        history: Their changes, oldest first.
        attempts: Every call to diagnose one of them, oldest first.
        sessions: The sessions that were started for them, oldest first.
        more: Whether there are more tickets.
        changes: What was changed before, the nearest first.
    """

    ticket: Ticket
    tickets: tuple[Ticket, ...]
    history: tuple[AuditRow, ...]
    attempts: tuple[Diagnosis, ...]
    sessions: tuple[TicketSession, ...]
    more: bool = False
    changes: tuple[SystemChange, ...] = ()

    @property
    def diagnosis(self) -> Diagnosis | None:
        """The diagnosis that settled the ticket."""
        settled = self.ticket.diagnosis_id
        return next((one for one in self.attempts if one.id == settled), None)


async def read_incident(
    store: Store, ticket_id: int, changes: RecentChanges | None = None
) -> Incident:
    """Read all that belongs to a ticket and to the others of its batch, with changes before it. Raises NotFound."""
    ticket = await store.ticket(ticket_id)
    found = await store.tickets(
        TicketFilter(batch=ticket.batch, limit=MOST_TICKETS + 1)
    )
    others = [one for one in found if one.id != ticket.id][: MOST_TICKETS - 1]
    tickets = sorted([ticket, *others], key=lambda one: one.id)
    history: list[AuditRow] = []
    attempts: dict[int, Diagnosis] = {}
    sessions: list[TicketSession] = []
    for one in tickets:
        history += await store.history(one.id)
        attempts |= {call.id: call for call in await store.diagnoses(one.id)}
        sessions += await store.sessions_of(one.id)
    return Incident(
        ticket,
        tuple(tickets),
        tuple(sorted(history, key=lambda row: row.at)),
        tuple(attempts[id_] for id_ in sorted(attempts)),
        tuple(sorted(sessions, key=lambda one: one.created_at)),
        len(found) > MOST_TICKETS,
        tuple(one.change for one in await changes.before(tickets)) if changes else (),
    )


def incident_report(incident: Incident) -> str:
    """Return the report. Times are in UTC, durations count from the first sight of the violation."""
    output = _answer(incident.diagnosis)
    parts = [
        f"# Incident report: {_text(incident.ticket.message)}",
        _summary(incident, output),
        _list(_facts(incident)),
        _section("Tickets", _tickets(incident)),
        _section("Timeline", _timeline(incident)),
        *_cause(incident, output),
        _section("What was done", _done(incident)),
        *_advice(output),
        _section("What it cost", _costs(incident)),
        _section("Open questions", _questions(output)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _answer(diagnosis: Diagnosis | None) -> DiagnosisOutput | None:
    """Return the answer of a diagnosis; None without one, or in an older form."""
    if diagnosis is None or diagnosis.answer is None:
        return None
    try:
        return DiagnosisOutput.model_validate(diagnosis.answer)
    except ValidationError:
        return None


# ------------------------------------------------------------------ what happened


def _summary(incident: Incident, output: DiagnosisOutput | None) -> str:
    if output is not None and output.summary.strip():
        return _text(output.summary)
    aid = incident.ticket.first_aid or {}
    noted = _text(str(aid.get("summary") or ""))
    return f"First aid, no diagnosis: {noted}" if noted else ""


def _facts(incident: Incident) -> Iterator[str]:
    ticket = incident.ticket
    key = ticket.key
    yield f"Subject: {_text(key.subject)}"
    yield f"Invariant: {_text(key.invariant)}, component {_text(key.component)}"
    state = "resolved" if ticket.resolved else f"**{ticket.status.value}, not over**"
    yield f"Severity: {ticket.severity.label}; state: {state}"
    began = min(one.first_seen_at for one in incident.tickets)
    yield f"First seen: {_at(began)}"
    yield f"Ticket opened: {_after(ticket.opened_at, began)}"
    if ticket.acknowledged_at is not None:
        by = _text(ticket.acknowledged_by or "")
        yield f"Acknowledged: {_after(ticket.acknowledged_at, began)}, by {by}"
    if (diagnosis := incident.diagnosis) and diagnosis.finished_at:
        yield f"Diagnosed: {_after(diagnosis.finished_at, began)}"
    if ticket.resolved_at is not None:
        yield f"Resolved: {_after(ticket.resolved_at, began)}"
    if ticket.previous_id is not None:
        yield f"Earlier: ticket {ticket.previous_id}, of the same key"


def _tickets(incident: Incident) -> Iterator[str]:
    if len(incident.tickets) == 1:
        return
    for one in incident.tickets:
        key = f"{_text(one.key.subject)}, {_text(one.key.invariant)}"
        message = _text(one.message, _LONGEST_REASON)
        yield f"Ticket {one.id} ({key}, {one.severity.label}, {one.status.value}): {message}"
    if incident.more:
        yield f"More than these {MOST_TICKETS}; the rest is not in this report"


def _timeline(incident: Incident) -> Iterator[str]:
    moments = [*_before(incident), *_seen(incident)]
    moments += [*_changed(incident), *_failed(incident)]
    for at, what in sorted(moments, key=lambda moment: moment[0]):
        yield f"{_at(at)}: {what}"


def _before(incident: Incident) -> Iterator[tuple[datetime, str]]:
    """Yield what was changed in the systems before; that proves no cause."""
    onset = min(one.first_seen_at for one in incident.tickets)
    for one in incident.changes:
        yield one.at, f"changed, {_text(change_line(one, onset))}"


def _seen(incident: Incident) -> Iterator[tuple[datetime, str]]:
    first = min(incident.tickets, key=lambda one: one.first_seen_at)
    if first.first_seen_at < first.opened_at:
        where = _text(first.key.component)
        yield first.first_seen_at, f"first seen on {where}"


def _changed(incident: Incident) -> Iterator[tuple[datetime, str]]:
    """Yield the changes; one that many tickets have in common is one moment."""

    def common(row: AuditRow) -> tuple[datetime, str, str, str]:
        return row.at, row.action, row.actor, row.why if row.action != "open" else ""

    groups: dict[tuple[datetime, str, str, str], list[AuditRow]] = {}
    for row in incident.history:
        groups.setdefault(common(row), []).append(row)
    for (at, action, actor, _), same in groups.items():
        what = _ACTIONS.get(action, _text(action))
        whys = {row.why for row in same}
        why = _text(whys.pop(), _LONGEST_REASON) if len(whys) == 1 else ""
        reason = f": {why}" if why else ""
        yield at, f"{f'{_numbers(same)} {what}'.rstrip()}{reason} ({_text(actor)})"


def _numbers(rows: Sequence[AuditRow]) -> str:
    ids = sorted(row.ticket_id for row in rows)
    if len(ids) > _MOST_NUMBERS:
        return f"{len(ids)} tickets"
    noun = "ticket" if len(ids) == 1 else "tickets"
    return f"{noun} {', '.join(map(str, ids))}"


def _failed(incident: Incident) -> Iterator[tuple[datetime, str]]:
    """Yield the calls that had no answer; those that had one are changes of tickets."""
    for call in incident.attempts:
        if call.outcome in ("retry", "lost", "late", "error", "refused", "cut"):
            why = _text(call.error or "", _LONGEST_REASON)
            reason = f": {why}" if why else ""
            at = call.finished_at or call.started_at
            yield at, f"call {call.id} of {_text(call.model)} ended: {call.outcome}{reason}"


# ------------------------------------------------------------------ why


def _cause(incident: Incident, output: DiagnosisOutput | None) -> Iterator[str]:
    yield "## Cause"
    diagnosis = incident.diagnosis
    if output is None or diagnosis is None:
        yield _no_cause(incident)
        return
    grounding = ground(output, diagnosis.evidence)
    checked = (
        f"{grounding.verified} of {grounding.total} claims were found in the evidence"
    )
    yield f"{_VERDICTS[grounding.verdict]}, with {grounding.confidence} confidence; {checked}."
    yield _text(output.root_cause)
    sources = {one.id: one for one in diagnosis.evidence}
    quotes = [check for claim in grounding.claims for check in claim.citations]
    verified = dict.fromkeys(
        (one.evidence_id, one.quote) for one in quotes if one.verified
    )
    if verified:
        yield "### Evidence"
    for number, quote in list(verified)[:_MOST_QUOTES]:
        yield f"{_source(sources[number])}\n{fenced(quote)}"


def _no_cause(incident: Incident) -> str:
    diagnosis = incident.diagnosis
    if diagnosis is not None and diagnosis.answer:  # in a form of an earlier version
        found = diagnosis.answer.get("root_cause") or diagnosis.answer.get("summary")
        return _text(str(found or "The answer names none."))
    if diagnosis is not None:
        error = _text(diagnosis.error or "no reason is known", _LONGEST_REASON)
        return f"There is no answer: {diagnosis.outcome}, {error}"
    aid = incident.ticket.first_aid or {}
    if cause := _text(str(aid.get("root_cause") or "")):
        return f"By first aid alone, which no diagnosis confirmed: {cause}"
    return "It was not diagnosed."


def _source(evidence: Evidence) -> str:
    at = f"{evidence.at:%Y-%m-%d %H:%M:%S %Z}".strip()
    title = f"{_text(evidence.id)} {_text(evidence.title)}"
    return f"{title} ({_text(evidence.source)}, {at}):"


def _advice(output: DiagnosisOutput | None) -> Iterator[str]:
    actions = output.recommended_actions if output else []
    what = [_text(one.what) for one in actions]
    yield _section("What the diagnosis recommends", what)


def _questions(output: DiagnosisOutput | None) -> Iterator[str]:
    if output is not None:
        yield from map(_text, output.missing)


# ------------------------------------------------------------------ what was done, and its price


def _done(incident: Incident) -> Iterator[str]:
    """Yield what people did, the sessions, and how it ended."""
    for row in incident.history:
        if row.actor.split(" ")[0] in _DAEMONS or row.action in ("open", "session"):
            continue
        what = _ACTIONS.get(row.action, _text(row.action))
        why = f": {_text(row.why)}" if row.why else ""
        yield f"{_text(row.actor)}: ticket {row.ticket_id} {what}{why}"
    for session in incident.sessions:
        yield f"Session {_text(session.id)}, begun {_at(session.created_at)}: {_text(session.phase)}"
    ticket = incident.ticket
    if ticket.resolved:
        yield f"It ended: {_text(ticket.resolution or 'no reason was given')}"


def _costs(incident: Incident) -> Iterator[str]:
    for call in incident.attempts:
        used = f"{_tokens(call.usage):,} tokens, ${call.cost_usd:.4f}"
        yield f"Call {call.id}, {_text(call.model)}, {call.outcome}: {used}"
    for session in incident.sessions:
        yield f"Session {_text(session.id)}: ${session.cost_usd:.4f}"
    calls = sum(call.cost_usd for call in incident.attempts)
    total = calls + sum(session.cost_usd for session in incident.sessions)
    yield f"**Total: ${total:.4f}**"


def _tokens(usage: Usage) -> int:
    return (
        usage.input_tokens
        + usage.output_tokens
        + usage.cache_read_tokens
        + usage.cache_write_tokens
    )


# ------------------------------------------------------------------ form


def _section(title: str, lines: Iterable[str]) -> str:
    page = _list(lines)
    return f"## {title}\n\n{page}" if page else ""


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _text(text: str, longest: int = _LONGEST) -> str:
    return markdown_escape(one_line(text, longest))


def _at(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _after(at: datetime, began: datetime) -> str:
    seconds = (at - began).total_seconds()
    return _at(at) if seconds < 1 else f"{_at(at)}, after {format_duration(seconds)}"
