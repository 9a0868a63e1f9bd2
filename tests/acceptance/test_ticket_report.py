"""The report on an incident: the whole page of a usual one, hostile text in each field, and those without an answer."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from midwatch.agent.incident_report import incident_report, read_incident
from midwatch.model import Evidence, Grounded, Severity, Usage
from midwatch.session.events import ModelUsage, Phase
from midwatch.session.records import SessionSpec
from midwatch.session.status import SessionStatus
from midwatch.store.protocol import Changes, Finish
from midwatch.store.sessions import SqlSessions
from midwatch.store.sql import SqlStore, open_store
from midwatch.testing.fakes import answer
from midwatch.testing.store_conformance.fixture import MovableClock, StoreFixture

from .cli import refused, said, said_json
from .test_cli_tickets import HOSTILE

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
SEEN = Evidence(
    "E1", "Blocking tree", "pg_blocking_pids", AT, "pid 4711 is idle\npid 4712 waits"
)
ANSWER = answer(
    "pid 4711 holds the lock",
    quote="pid 4711 is idle",
    explains=[1, 2],
    recommended_actions=[
        {"what": "End it", "commands": ["SELECT 1;"], "risk": "", "reversible": True}
    ],
    missing=["Why it stopped"],
)  # fmt: skip
REPORT = """\
# Incident report: a is not well

Summary: pid 4711 holds the lock.

- Subject: db
- Invariant: connections, component a
- Severity: critical; state: resolved
- First seen: 2026-03-01 12:00:00 UTC
- Ticket opened: 2026-03-01 12:00:00 UTC
- Acknowledged: 2026-03-01 12:01:02 UTC, after 1m 2s, by `ann@laptop`
- Diagnosed: 2026-03-01 12:01:12 UTC, after 1m 12s
- Resolved: 2026-03-01 12:06:12 UTC, after 6m 12s

## Tickets

- Ticket 1 (db, connections, critical, resolved): a is not well
- Ticket 2 (db, connections, critical, resolved): b is not well

## Timeline

- 2026-03-01 12:00:00 UTC: tickets 1, 2 opened (monitor)
- 2026-03-01 12:00:02 UTC: tickets 1, 2 first aid: a lock (monitor)
- 2026-03-01 12:00:02 UTC: call 1 of claude-test ended: retry: 529, overloaded
- 2026-03-01 12:01:02 UTC: ticket 1 acknowledged: on it (`ann@laptop`)
- 2026-03-01 12:01:12 UTC: tickets 1, 2 diagnosed: diagnosis 2: answered (agent)
- 2026-03-01 12:06:12 UTC: ticket 1: session s-1: started to fix it (`ann@laptop`)
- 2026-03-01 12:06:12 UTC: tickets 1, 2 resolved: the invariant was observed to hold again (monitor)

## Cause

The cause was identified, with high confidence; 1 of 1 claims were found in the evidence.

pid 4711 holds the lock

### Evidence

E1 Blocking tree (pg_blocking_pids, 2026-03-01 12:00:00 UTC):
```text
pid 4711 is idle
```

## What was done

- `ann@laptop`: ticket 1 acknowledged: on it
- Session s-1, begun 2026-03-01 12:05:00 UTC: Completed
- It ended: the invariant was observed to hold again

## What the diagnosis recommends

- End it

## What it cost

- Call 1, claude-test, retry: 0 tokens, $0.0000
- Call 2, claude-test, answered: 1,100 tokens, $0.5000
- Session s-1: $0.2500
- **Total: $0.7500**

## Open questions

- Why it stopped
"""


async def seeded(folder: Path) -> None:
    """An incident of two tickets from its beginning to its end."""
    clock = MovableClock(AT)
    store = await open_store(f"sqlite:///{folder / 'midwatch.db'}", clock=clock)
    fixture = StoreFixture(store, clock)
    await fixture.open("a", "b", severity=Severity.CRITICAL)
    clock.move(2)
    await store.save_first_aid([1, 2], {"summary": "a lock", "root_cause": "a lock"})
    await fixture.diagnose(Finish("retry", error="529, overloaded", retry_in=5))
    clock.move(60)
    await store.acknowledge(1, "ann@laptop", "on it")
    clock.move(10)
    usage, found = Usage(1000, 100), Grounded(1, 1)
    await fixture.diagnose(Finish("answered", usage, 0.5, answer=ANSWER, evidence=(SEEN,), grounded=found, explains=(1, 2)))  # fmt: skip
    clock.move(300)
    await _session(store, clock)
    await fixture.cycle(Changes(resolved=(1, 2)))
    await store.close()


async def _session(store: SqlStore, clock: MovableClock) -> None:
    records = SqlSessions(store.transactions, clock)
    began = AT + timedelta(minutes=5)
    await records.save_spec(
        SessionSpec("s-1", began, "/srv/a", (), "claude-x", prompt="Fix it.", ticket=1)
    )
    spend = {"claude-x": ModelUsage(Usage(10, 2), 0.25)}
    await records.save_status("s-1", SessionStatus(phase=Phase.COMPLETED, spend=spend))
    await records.note(1, "s-1", "ann@laptop", "started to fix it")


async def test_the_whole_page(tmp_path: Path) -> None:
    await seeded(tmp_path)
    assert said(tmp_path, "tickets", "report", "1") == REPORT
    assert said_json(tmp_path, "tickets", "report", "1") == {
        "ticket": 1,
        "markdown": REPORT,
    }
    assert "there is no ticket 9" in refused(tmp_path, "tickets", "report", "9")


async def test_hostile_text_stays_text(tmp_path: Path) -> None:
    """In what is observed, typed and answered: no link, image, HTML or heading comes of it."""
    store = await open_store(f"sqlite:///{tmp_path / 'midwatch.db'}")
    fixture = StoreFixture(store, MovableClock())
    hostile = f"{HOSTILE}\n# head <b>x</b> [a](http://evil.example) | ``` $x$"
    await fixture.open(hostile)
    found = answer(hostile, quote=hostile, missing=[hostile])
    evidence = (replace(SEEN, title=hostile, source=hostile, text=hostile),)
    await fixture.diagnose(Finish("answered", answer=found, evidence=evidence))
    await store.resolve(1, hostile, hostile)
    page = incident_report(await read_incident(store, 1))
    await store.close()
    assert "\x1b" not in page and "\x9b" not in page and "\u202e" not in page
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(page)
    every = [one for token in tokens for one in (token, *(token.children or ()))]
    kinds = {one.type for one in every}
    assert not kinds & {"link_open", "image", "html_inline", "html_block", "table_open"}
    headings = [one.tag for one in tokens if one.type == "heading_open"]
    assert headings == ["h1", *["h2"] * 2, "h3", *["h2"] * 3]


@pytest.mark.parametrize(
    ("finish", "says"),
    [
        (None, "By first aid alone, which no diagnosis confirmed: a lock"),
        (Finish("error", error="400"), "There is no answer: error, 400"),
        (Finish("answered", answer={"summary": "an old form"}), "an old form"),
    ],
)
async def test_without_an_answer_it_says_so(
    tmp_path: Path, finish: Finish | None, says: str
) -> None:
    store = await open_store(f"sqlite:///{tmp_path / 'midwatch.db'}")
    fixture = StoreFixture(store, MovableClock())
    await fixture.open(*(f"c{number}" for number in range(60)))
    await store.save_first_aid([60], {"summary": "s", "root_cause": "a lock"})
    if finish is not None:
        await fixture.diagnose(finish)
    page = incident_report(await read_incident(store, 60))
    await store.close()
    state = "diagnosed" if finish else "open"
    assert says in page and f"**{state}, not over**" in page
    assert page.count("\n- Ticket ") == 50 + 1, "and when it was opened"
    assert "More than these 50" in page and "- **Total: $0.0000**" in page
