"""Run every check of the suite on every database, and ask the database how it plans each statement."""

from __future__ import annotations

import pytest

from midwatch.store.sql import open_store
from midwatch.testing.store_conformance import CHECKS, Check, run_check

from . import plans

_planned: set[str] = set()
"""What this process has asked for: the checks have most statements in common."""


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conforms(check: Check, shared_database: str) -> None:
    with plans.recorded() as ran:
        await run_check(check, lambda clock: open_store(shared_database, clock=clock))
    assert ran
    new = {statement: ran[statement] for statement in ran.keys() - _planned}
    assert not (wrong := plans.scans(shared_database, new)), "\n\n".join(wrong)
    _planned.update(new)


def test_a_plan_without_an_index_is_seen(shared_database: str) -> None:
    by_index = {"SELECT id FROM tickets WHERE id = 1": ()}
    by_reading = {"SELECT id FROM tickets WHERE message = 'slow'": ()}
    assert plans.scans(shared_database, by_index) == []
    [told] = plans.scans(shared_database, by_reading)
    assert told.lower().startswith("s") and "message = 'slow'" in told
