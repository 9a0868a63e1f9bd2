"""The conformance suite for stores: checks of every promise of the `Store` protocol.

With pytest, and no plug-in::

    import asyncio, pytest
    from midwatch.testing.store_conformance import CHECKS, run_check

    async def make_store(clock):          # a new, empty store whose clock is `clock`
        return await open_store("sqlite://", clock=clock)

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_conforms(check):
        asyncio.run(run_check(check, make_store))

A check fails with AssertionError; its name and docstring name the broken promise. Call
`pytest.register_assert_rewrite("midwatch.testing.store_conformance")` in a `conftest.py` to see
the values too.
"""

from __future__ import annotations

from midwatch._moved import renamed
from midwatch.testing.store_conformance import (
    action_runs,
    api_tokens,
    changes,
    claims,
    daemons,
    feed,
    incidents,
    integrations,
    notifications,
    overview,
    pushes,
    requests,
    silences,
    text,
    tickets,
    watchers,
)
from midwatch.testing.store_conformance.fixture import (
    Check,
    MakeStore,
    MovableClock,
    StoreFixture,
    run_check,
)

CHECKS: tuple[Check, ...] = (
    *tickets.CHECKS,
    *incidents.CHECKS,
    *integrations.CHECKS,
    *silences.CHECKS,
    *claims.CHECKS,
    *daemons.CHECKS,
    *feed.CHECKS,
    *notifications.CHECKS,
    *text.CHECKS,
    *requests.CHECKS,
    *api_tokens.CHECKS,
    *pushes.CHECKS,
    *overview.CHECKS,
    *watchers.CHECKS,
    *changes.CHECKS,
    *action_runs.CHECKS,
)

__all__ = ["CHECKS", "Check", "MakeStore", "MovableClock", "StoreFixture", "run_check"]


def __getattr__(name: str) -> object:
    return renamed(__name__, name)
