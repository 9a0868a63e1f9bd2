"""The rows of the evidence: `a=1 b=2`, one a line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from midwatch.diagnosis_schema import Citation
from midwatch.model import Context
from midwatch.playbooks.base import bounded, evidence_lines

_FIELD = re.compile(r"(?:^| )([a-z_]+)=")
# What clients choose: no other field begins behind it.
_LAST = {"gid", "application", "detail", "query"}
_GID = re.compile(r"^(kind=prepared transaction .*?) name=(.*) (detail=owner .*)$")

Row = dict[str, str]


def rows(context: Context, title: str) -> Iterator[tuple[Citation, Row]]:
    """Yield the rows of the evidence whose title contains `title`, each with its citation.

    What clients choose stands last in a row, where it is not cut at what looks like a field, and the first of two
    fields of one name counts: no name can pass for another field, also not for one that is empty and left out.
    """
    for evidence_id, line in evidence_lines(context, title):
        if row := _row(line):
            yield Citation(evidence_id=evidence_id, quote=bounded(line)), row


def _row(line: str) -> Row:
    row: Row = {}
    if named := _GID.match(line):
        return {
            **_row(named[1]),
            "name": named[2],
            "detail": named[3][len("detail=") :],
        }
    starts = list(_FIELD.finditer(line))
    last = next((n for n, one in enumerate(starts) if one[1] in _LAST), len(starts))
    starts = [one for n, one in enumerate(starts) if n <= last or one[1] == "query"]
    for start, after in zip(starts, [*starts[1:], None]):
        value = line[start.end() : after.start() if after else len(line)]
        row.setdefault(start[1], value)
    return row


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
