"""A database for tests of the API: tickets of each kind, with diagnoses, evidence and hostile text."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from midwatch.model import Evidence, Facts, Grounded, Key, Severity, Usage, Violation
from midwatch.store.protocol import Budget, Changes, Finish, Opening
from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import answer

from .cli import in_store, said

HOSTILE = "</script><b>ä\u202e\x00 `x` "
SETTINGS: dict[str, Any] = {
    "subjects": [{"name": "box", "kind": "host"}],
    "notifications": {"callback_hosts": ["ci.example.org", "127.0.0.1:8080"]},
}


def seed(folder: Path) -> None:
    """Make the database: ticket 1 is diagnosed, 2 is open and hostile, 3 is resolved."""
    said(folder, "db", "upgrade")
    in_store(folder, _fill)


async def _fill(store: SqlStore) -> None:
    for component, severity in (
        ("root", Severity.CRITICAL),
        (HOSTILE, Severity.WARNING),
        ("gone", Severity.INFO),
    ):
        await _open(store, component, severity)
    [claim] = await store.claim("agent", lease=30)
    made = await store.begin(
        claim,
        model="claude-test",
        prompt_version="7",
        reserve_usd=0.0,
        budget=Budget(None),
    )
    assert made is not None
    piece = Evidence(
        "E1",
        "Disks",
        "df",
        datetime.now(UTC),
        f"/ is full {HOSTILE}",
        reported=((2, 4),),
    )
    finish = Finish(
        "answered",
        usage=Usage(1000, 50),
        cost_usd=0.02,
        answer=answer(explains=(1,)),
        markdown="## Diagnosis\n\nIt is full.",
        confidence="high",
        grounded=Grounded(1, 2),
        evidence=(piece,),
        explains=(1,),
    )
    assert await store.finish(claim, made, finish)
    await store.resolve(3, "ann", "restarted")


async def _open(store: SqlStore, component: str, severity: Severity) -> None:
    facts: Facts = {"pid": 4711, "share": 0.5, "who": HOSTILE, "none": None}
    violation = Violation(
        Key("box", "disk", component),
        severity,
        f"{component} is full",
        97.0,
        90.0,
        facts,
    )
    revision = await store.revision("box") or (await store.watch("box")).revision
    await store.save_cycle("box", revision, Changes((Opening(violation),)))
