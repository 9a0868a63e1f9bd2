"""The pages of a ticket in Markdown: its diagnosis first, and first aid folded below it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from midwatch.agent.contradictions import Contradiction, contradictions, marked
from midwatch.diagnosis_schema import DiagnosisOutput
from midwatch.markdown import fold
from midwatch.model import Diagnosis, Ticket
from midwatch.text import markdown_escape, one_line


def ticket_pages(
    ticket: Ticket, diagnosis: Diagnosis | None, attempts: Sequence[Diagnosis]
) -> Iterator[str]:
    """Yield the pages of a ticket in Markdown: its diagnosis and, folded below it, first aid.

    Without an answer first aid is open; an answer that left the ticket out is folded below it.
    """
    first_aid = str((ticket.first_aid or {}).get("markdown") or "")
    if diagnosis is not None and diagnosis.markdown:
        yield diagnosis.markdown
        if first_aid:
            yield _folded_first_aid(ticket, diagnosis, first_aid)
        return
    if diagnosis is not None:
        yield _without_answer(diagnosis)
    if first_aid:
        yield first_aid
    for attempt in attempts:
        if attempt.id == ticket.left_out_by and attempt.markdown:
            title = f"Diagnosis {attempt.id}, which does not name this ticket"
            yield fold(title, attempt.markdown)


def _folded_first_aid(ticket: Ticket, diagnosis: Diagnosis, page: str) -> str:
    points = _contradictions(ticket, diagnosis)
    if not points:
        return fold("First aid, written before the diagnosis", page)
    title = f"First aid, contradicted: the diagnosis {', '.join(map(str, points))}"
    return fold(title, marked(page, points))


def _contradictions(ticket: Ticket, diagnosis: Diagnosis) -> list[Contradiction]:
    """Return where the diagnosis contradicts the first aid; nothing where either is of an older form."""
    try:
        aid = DiagnosisOutput.model_validate((ticket.first_aid or {}).get("answer"))
        found = DiagnosisOutput.model_validate(diagnosis.answer)
    except ValidationError:
        return []
    return contradictions(aid, found)


def _without_answer(diagnosis: Diagnosis) -> str:
    """Return the Markdown of a diagnosis that ended with an error."""
    error = markdown_escape(one_line(diagnosis.error or "no reason is known", 2000))
    return f"## Diagnosis\n\n**{diagnosis.outcome}**: {error}\n"
