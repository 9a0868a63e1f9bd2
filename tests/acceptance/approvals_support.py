"""A stored diagnosis on real evidence, for the tests of approved actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from midwatch.agent.evidence import ContextGatherer
from midwatch.lifecycle import SystemClock
from midwatch.model import Evidence, Grounded
from midwatch.redaction import Redactor
from midwatch.store.protocol import Budget, Finish
from midwatch.store.sql import SqlStore
from midwatch.subjects.base import Subject
from midwatch.testing.fakes import answer


def recommending(what: str, commands: Sequence[str]) -> dict[str, Any]:
    return {"what": what, "commands": [*commands], "risk": "", "reversible": False}


async def store_diagnosis(
    store: SqlStore,
    subjects: Sequence[Subject],
    found: Callable[[Sequence[Evidence]], dict[str, Any]],
    change: Callable[[Evidence], Evidence] = lambda piece: piece,
) -> None:
    """Claim what waits, gather evidence of this moment, and store the answer that `found` makes of it."""
    by_name = {one.name: one for one in subjects}
    gatherer = ContextGatherer(by_name, Redactor(), SystemClock())
    [claim] = await store.claim("agent", lease=60)
    context = await gatherer.gather(claim.tickets, timeout=30, tokens=6000)
    evidence = tuple(map(change, context.evidence))
    made = await store.begin(
        claim,
        model="claude-test",
        prompt_version="7",
        reserve_usd=0.0,
        budget=Budget(None),
    )
    assert made is not None
    explains = tuple(one.id for one in claim.tickets)
    finish = Finish(
        "answered",
        answer=answer(**{"explains": explains, **found(evidence)}),
        markdown="It is broken.",
        confidence="high",
        grounded=Grounded(1, 1),
        evidence=evidence,
        explains=explains,
    )
    assert await store.finish(claim, made, finish)
