"""Run every check of the suite on every database."""

from __future__ import annotations

import pytest

from midwatch.store.sql import open_store
from midwatch.testing.store_conformance import CHECKS, Check, run_check


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conforms(check: Check, database: str) -> None:
    await run_check(check, lambda clock: open_store(database, clock=clock))
