"""Runbooks of a folder: read and matched to a ticket, against a bare parse of their front matter and bare shell patterns.

The floor of reading opens each file and parses its front matter by the same YAML library; ours also checks the fields, removes secrets
from the whole text and builds the index. The floor of matching compares patterns and matchers of each with a list and `fnmatch`, without an order.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from midwatch.model import Key, Severity, Ticket, TicketStatus
from midwatch.redaction import Redactor
from midwatch.runbooks.folder import read_folder
from midwatch.runbooks.matching import RunbookIndex

from .report import Row, against_bound, against_floor, paired, sized

COUNT = sized(1000, 200)
TICKETS, ROUNDS = 200, 5
AT = datetime(2026, 3, 1, tzinfo=UTC)
TEXT = """\
---
title: Runbook {number}
match:
  kinds: [host, prometheus]
  subjects: ['app-{group}-*', 'db-{number}']
  invariants: [{invariants}]
  severity: [critical, warning]
---
# Runbook {number}

## First steps

1. Find what grows: `du -x --max-depth=2 /data`
2. Rotate the logs of the service, then look at the graphs of the last hour.

## Background

{background}
"""


async def run() -> Sequence[Row]:
    """Return the rows. Takes some ten seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(COUNT):
            (folder / f"runbook-{number}.md").write_text(_text(number))
        return [*await _reading(folder), *await _matching(folder)]


def _text(number: int) -> str:
    # One in ten is for the invariant of the ticket, the others for another one; one in fifty for any.
    invariants = f"'disk', load-{number}" if number % 10 == 0 else f"load-{number}"
    invariants = "'*'" if number % 50 == 1 else invariants
    background = "The volume is shared by the three services of the shop. " * 40
    return TEXT.format(
        number=number,
        group=number % 20,
        invariants=invariants,
        background=background,
    )


async def _reading(folder: Path) -> list[Row]:
    redact = Redactor(["a-known-secret"]).text
    known = read_folder(folder, redact, {}).known

    async def ours() -> float:
        return _seconds(lambda: RunbookIndex(read_folder(folder, redact, {}).runbooks))

    async def floor() -> float:
        return _seconds(lambda: _bare(folder))

    async def again() -> float:
        return _seconds(lambda: read_folder(folder, redact, known))

    taken, least = await paired(ours, floor, ROUNDS)
    unchanged, _ = await paired(again, again, ROUNDS)
    each = 1000 / COUNT
    return [
        against_floor(
            "read a runbook",
            taken * each,
            least * each,
            4.0,
            measure="processor",
            size=COUNT,
        ),
        against_bound(
            "read runbooks again, none changed",
            unchanged * 1000,
            100,
            "ms",
            measure="processor",
            size=COUNT,
        ),
    ]


async def _matching(folder: Path) -> list[Row]:
    index = RunbookIndex(read_folder(folder, lambda text: text, {}).runbooks)
    bare = _bare(folder)
    tickets = [_ticket(number) for number in range(TICKETS)]

    async def ours() -> float:
        return _seconds(lambda: [index.best(one, "host", 3) for one in tickets])

    async def floor() -> float:
        return _seconds(lambda: [_fitting(bare, one) for one in tickets])

    [hit, *_] = index.best(tickets[0], "host", 3)
    assert len(_fitting(bare, tickets[0])) == len(index.best(tickets[0], "host", COUNT))
    assert "invariant disk" in hit.reason
    taken, least = await paired(ours, floor, ROUNDS)
    each = 1e6 / TICKETS
    return [
        against_floor(
            "match the runbooks of a ticket",
            taken * each,
            least * each,
            1.0,
            "µs",
            measure="processor",
            size=COUNT,
            against="bare patterns",
        )
    ]


def _bare(folder: Path) -> list[dict[str, Any]]:
    """Parse the front matter of each file, and nothing more."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [
        yaml.load(file.read_bytes().split(b"---\n", 2)[1], Loader=loader)["match"]
        for file in sorted(folder.iterdir())
    ]


def _fitting(matches: Sequence[dict[str, Any]], ticket: Ticket) -> list[dict[str, Any]]:
    key = ticket.key
    return [
        one
        for one in matches
        if "host" in one["kinds"]
        and ticket.severity.label in one["severity"]
        and any(fnmatch(key.invariant, pattern) for pattern in one["invariants"])
        and any(fnmatch(key.subject, pattern) for pattern in one["subjects"])
    ]


def _ticket(number: int) -> Ticket:
    return Ticket(
        id=number,
        key=Key(f"app-{number % 2 * 10}-eu", "disk", "/data"),
        severity=Severity.WARNING,
        status=TicketStatus.OPEN,
        held=False,
        message="/data is at 97%",
        facts={},
        first_seen_at=AT,
        opened_at=AT,
        last_seen_at=AT,
        occurrence_count=1,
        batch=number,
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
