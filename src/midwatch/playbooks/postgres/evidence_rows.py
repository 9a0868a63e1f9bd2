"""The rows of the evidence: `a=1 b=2`, one a line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from midwatch.diagnosis_schema import Citation
from midwatch.model import Context
from midwatch.playbooks.base import bounded, evidence_lines

_FIELD = re.compile(r"(?:^| )([a-z_]+)=")

Row = dict[str, str]


def rows(context: Context, title: str) -> Iterator[tuple[Citation, Row]]:
    """Yield the rows of the evidence whose title contains `title`, each with its citation.

    What clients choose stands last in a row, and the first of two fields of one name counts: no name can
    pass for another field.
    """
    for evidence_id, line in evidence_lines(context, title):
        row: Row = {}
        starts = list(_FIELD.finditer(line))
        for start, after in zip(starts, [*starts[1:], None]):
            value = line[start.end() : after.start() if after else len(line)]
            row.setdefault(start[1], value)
        if row:
            yield Citation(evidence_id=evidence_id, quote=bounded(line)), row


def count(row: Row, name: str) -> int:
    """Return a whole number of the row; 0 without one."""
    value = row.get(name, "").partition(".")[0]
    return int(value) if value.isdecimal() else 0


def setting(context: Context, name: str) -> tuple[str, Citation | None]:
    """Return a setting of the server with its citation; empty where the evidence does not have it."""
    for evidence_id, line in evidence_lines(context, "Relevant settings"):
        if line.startswith(f"{name}: "):
            return line.partition(": ")[2], Citation(
                evidence_id=evidence_id, quote=line
            )
    return "", None
