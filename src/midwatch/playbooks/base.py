"""The seam for first aid: a playbook turns facts and evidence into a preliminary diagnosis.

Playbooks are pure: no input, no output, no clock. They are named in the entry-point group
``midwatch.playbooks``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from midwatch.answer import Citation, DiagnosisOutput
from midwatch.model import Context, Evidence, Ticket


class Playbook(Protocol):
    """First aid for some invariants of one kind of subject.

    `kind` is the kind of subject; `invariants` are those it knows, most telling first.
    """

    kind: str
    invariants: Sequence[str]

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        """A preliminary diagnosis of the batch, or None when the evidence tells nothing.

        Every claim cites the context's evidence: its citations are checked like Claude's.
        """
        ...


def find(context: Context, *needles: str) -> Citation | None:
    """A citation of the first line of evidence that has all the needles, in any letter case."""
    wanted = [needle.casefold() for needle in needles]
    for evidence in context.evidence:
        line = find_line(evidence, wanted) if evidence.available else None
        if line is not None:
            return Citation(evidence_id=evidence.id, quote=line)
    return None


def find_line(evidence: Evidence, wanted: Sequence[str]) -> str | None:
    for line in evidence.text.splitlines():
        folded = line.casefold()
        if all(needle in folded for needle in wanted):
            return bounded(line.strip())
    return None


def bounded(line: str, limit: int = 300) -> str:
    """The line, cut between two words: half a number would be another number."""
    return line if len(line) <= limit else line[:limit].rsplit(None, 1)[0]
