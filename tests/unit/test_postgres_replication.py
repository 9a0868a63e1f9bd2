"""The pure part of the check of replication: what the rows of both sides mean from one poll to the next."""

from __future__ import annotations

from typing import Any, cast

import pytest

from midwatch.model import Json
from midwatch.subjects.postgres import INVARIANTS, PostgresSettings
from midwatch.subjects.postgres.connection import Connection
from midwatch.subjects.postgres.observation import ObservationContext
from midwatch.subjects.postgres.replication import (
    OwnReplay,
    Standby,
    _known_standbys,
    _own_signal,
    _standby_signal,
)

LIMIT = 60.0


def context(at: float, previous: Json | None = None) -> ObservationContext:
    settings = PostgresSettings.model_validate({"name": "db", "dsn": "postgresql://h"})
    return ObservationContext(
        cast(Connection, None),  # nothing here runs a statement
        settings,
        at,
        previous or {},
        {},
        {one.id: one for one in INVARIANTS},
    )


def own(**changed: Any) -> dict[str, Any]:
    """A standby with a connection that has replayed all."""
    return {
        "receiver": "streaming",
        "receiver_pid": 7,
        "message_age": 1.0,
        "patience": 60.0,
        "behind": 0.0,
        "replayed": 1.0,
        "replay_lsn": "0/100",
        "delay": 0.0,
        "paused": False,
        **changed,
    }


AWAY = {"receiver": None, "receiver_pid": None, "message_age": None}
MORE = {"behind": 10.0}


@pytest.mark.parametrize(
    ("polls", "value", "holds"),
    [
        # Replayed all: not late, however old the last transaction is.
        ([(0, own(replayed=90_000.0))], 0.0, None),
        ([(0, own(**MORE, replayed=90.0))], 90.0, None),
        # A burst after a quiet time: the last transaction is old, the standby is not late.
        ([(0, own(replayed=9_000.0)), (5, own(**MORE, replayed=9_005.0))], 5.0, None),
        ([(0, own(behind=2e9, replayed=1.0))], 1.0, False),
        # NULL is unknown, and late once nothing has moved for longer than the limit.
        ([(0, own(**MORE, replayed=None))], None, None),
        ([(0, own(**MORE, replayed=None)), (61, own(**MORE, replayed=None))], 61, None),
        (
            [
                (0, own(**MORE, replayed=None)),
                (61, own(**MORE, replayed=None, replay_lsn="0/200")),
            ],
            None,
            None,
        ),
        # Late on purpose (recovery_min_apply_delay).
        ([(0, own(behind=2e9, replayed=3_605.0, delay=3_600.0))], 5.0, None),
        # Cut off: unknown at first, then as late as its last message.
        ([(0, own(**AWAY))], None, None),
        ([(0, own(**AWAY)), (30, own(**AWAY))], None, None),
        ([(0, own()), (5, own(**AWAY)), (70, own(**AWAY))], 65.0, None),
        ([(0, own(receiver="waiting", message_age=500.0))], 500.0, None),
        # A new connection is one if it stays.
        ([(0, own()), (5, own(**AWAY)), (70, own(receiver_pid=8))], 65.0, None),
        (
            [
                (0, own()),
                (5, own(**AWAY)),
                (70, own(receiver_pid=8)),
                (80, own(receiver_pid=8)),
            ],
            0.0,
            None,
        ),
        (
            [
                (0, own()),
                (5, own(**AWAY)),
                (70, own(receiver_pid=8)),
                (80, own(receiver_pid=9)),
            ],
            75.0,
            None,
        ),
        # Connected in name only.
        ([(0, own(message_age=3_000.0))], 3_000.0, None),
        ([(0, own(message_age=59.0))], 0.0, None),
    ],
)
def test_a_standby_is_as_late_as_what_it_knows(
    polls: list[tuple[float, dict[str, Any]]], value: float | None, holds: bool | None
) -> None:
    state = OwnReplay()
    for at, row in polls:
        state = state.after(row, at)
        signal = _own_signal(row, state, context(at))
    assert (signal.value, signal.holds) == (value, holds)


def sender(name: str = "b", client: str = "10.0.0.2", **changed: Any) -> dict[str, Any]:
    return {
        "application_name": name,
        "client": client,
        "state": "streaming",
        "slot": "",
        "logical": None,
        "temporary": False,
        "replays": True,
        "lsn": "0/100",
        "flushed": "0/100",
        "replay_lag": None,
        "behind": 0.0,
        "replied": 1_000.0,
        **changed,
    }


async def after(
    *polls: list[dict[str, Any]], timelines: str = "1111"
) -> dict[str, Standby]:
    """Return what is known after these polls, 10 s apart."""
    state: Json = {}
    found: dict[str, Standby] = {}
    for number, rows in enumerate(polls):
        seen = context(number * 10.0, state)
        found = await _known_standbys(seen, rows, {"timeline": timelines[number]})
        state = seen.state
    return found


@pytest.mark.parametrize(
    ("polls", "timelines", "away"),
    [
        ([[sender()], []], "11", {"b 10.0.0.2": 10.0}),
        ([[sender()], [], []], "111", {"b 10.0.0.2": 10.0}),
        ([[sender()], [], [sender()]], "111", {"b 10.0.0.2": None}),
        # A connection that only starts is not back yet.
        (
            [[sender()], [sender(state="startup", replays=False)]],
            "11",
            {"b 10.0.0.2": 10.0},
        ),
        # The same one with another address; another one is another one.
        ([[sender()], [sender(client="10.0.0.9")]], "11", {"b 10.0.0.9": None}),
        (
            [[sender()], [sender("c", "10.0.0.9")]],
            "11",
            {"b 10.0.0.2": 10.0, "c 10.0.0.9": None},
        ),
        # One of two of the same name and host; a dead connection beside a new one is not two.
        ([[sender(), sender()], [sender()]], "11", {"b 10.0.0.2": 10.0}),
        ([[sender(replied=900.0), sender()], [sender()]], "11", {"b 10.0.0.2": None}),
        # Nothing that stays: a backup, the copy of a table, a temporary slot.
        ([[sender(replays=False)], []], "11", {}),
        ([[sender("pg_16394_sync_16385_74")], []], "11", {}),
        ([[sender(temporary=True)], []], "11", {}),
        # After a failover the others may follow another server; what was away before still is.
        ([[sender()], []], "12", {}),
        ([[sender()], [], []], "112", {"b 10.0.0.2": 10.0}),
    ],
)
async def test_a_standby_that_was_connected_is_missed(
    polls: list[list[dict[str, Any]]], timelines: str, away: dict[str, float | None]
) -> None:
    found = await after(*polls, timelines=timelines)
    assert {name: one.away for name, one in found.items()} == away


async def test_a_standby_that_returns_without_a_step_further_is_still_late() -> None:
    behind = sender(behind=9.0)
    found = await after([behind], [], [], [behind], timelines="1111")
    assert found["b 10.0.0.2"].since == 0.0
    found = await after([sender()], [], [], [behind], timelines="1111")
    assert found["b 10.0.0.2"].since == 10.0
    moved = sender(behind=9.0, lsn="0/200")
    found = await after([behind], [], [], [moved], timelines="1111")
    assert found["b 10.0.0.2"].since == 30.0


@pytest.mark.parametrize(
    "raw", [None, 3, "x", [1], {"known": 3}, {"known": [{"a": 1}]}]
)
async def test_foreign_state_knows_no_standby(raw: Any) -> None:
    seen = context(0.0, {"standbys": raw})
    assert await _known_standbys(seen, [], {"timeline": "1"}) == {}
    assert OwnReplay.of(raw) == OwnReplay()


@pytest.mark.parametrize(
    ("row", "since", "value", "holds"),
    [
        (sender(), None, 0.0, None),
        (sender(replay_lag=7.0, behind=9.0), None, 7.0, None),
        # NULL while there is more is unknown, and late when nothing moved for longer than the limit.
        (sender(behind=9.0), 95.0, None, None),
        (sender(behind=9.0), 20.0, 80.0, None),
        # The last measured lag is that of before the line broke.
        (sender(replay_lag=0.1, behind=9.0), 20.0, 80.0, None),
        (sender(behind=None), None, None, None),
        (sender(behind=2e9), None, None, False),
    ],
)
def test_a_lag_that_is_not_measured_is_unknown(
    row: dict[str, Any], since: float | None, value: float | None, holds: bool | None
) -> None:
    known = Standby("b", "10.0.0.2", since=since)
    signal = _standby_signal(row, known, context(100.0))
    assert (signal.value, signal.holds) == (value, holds)
