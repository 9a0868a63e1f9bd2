"""The pure parts of the postgres subject: the tree of waits, series, log lines, messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.subjects import series
from midwatch.subjects.lock_queues import Blocking
from midwatch.subjects.postgres.checks import blocked
from midwatch.subjects.postgres.connection import _FULL, _UNREACHABLE
from midwatch.subjects.postgres.evidence import blocking
from midwatch.subjects.postgres.log import LogPosition, kind_of
from midwatch.subjects.postgres.observation import LockWaits
from midwatch.subjects.postgres.storage import _slot_signal
from midwatch.subjects.rows import text


def wait(
    pid: int, *blockers: int, waited: float = 1.0, database: str = "d"
) -> dict[str, Any]:
    return {
        "pid": pid,
        "datname": database,
        "blockers": list(blockers),
        "waited": waited,
    }


def test_a_chain_leads_to_its_root() -> None:
    tree = Blocking.of(
        [wait(3, 2, waited=9), wait(2, 1), wait(4, 2, 3), wait(8, 7, waited=2)]
    )
    assert tree.roots() == [1, 7]
    assert [queue.root for queue in tree.queues()] == [1, 7]
    assert {row["pid"] for row in tree.queues()[0].waiting} == {2, 3, 4}


def test_a_root_in_one_database_may_block_another() -> None:
    tree = Blocking.of([wait(2, 1, database="a"), wait(3, 2, database="b", waited=5)])
    assert [
        (s.component, s.facts["blocker_pid"], s.facts["blocked_count"])
        for s in blocked(LockWaits(tree))
    ] == [
        ("a", 1, 1),
        ("b", 1, 1),
    ]


def test_a_prepared_transaction_has_no_pid() -> None:
    tree = Blocking.of([wait(2, 0)])
    (one,) = blocked(LockWaits(tree))
    assert one.facts["blocker_pid"] is None
    assert one.message.startswith("a prepared transaction blocks 1 session;")
    assert tree.pids == [2]


@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.lists(st.integers(0, 12), max_size=3)),
        unique_by=lambda pair: pair[0],
    )
)
def test_everybody_who_waits_is_behind_a_root_even_in_circles(
    pairs: list[tuple[int, list[int]]],
) -> None:
    tree = Blocking.of([wait(pid, *blockers) for pid, blockers in pairs])
    roots = tree.roots()
    behind = {int(row["pid"]) for root in roots for _, row in tree.walk(root)}
    assert {pid for pid, blockers in pairs if blockers} <= behind | set(roots)
    assert blocking(tree, {})


def test_a_series_tells_the_growth_of_its_window() -> None:
    points: series.Series = []
    for minute in range(0, 181, 5):
        points = series.add_point(points, minute * 60.0, minute * 100.0, 3600)
    assert len(points) <= series.POINTS
    grown = series.series_growth(points, 3600)
    assert grown == pytest.approx(6000, rel=0.01)


def test_a_long_gap_gives_the_windows_share() -> None:
    points = series.add_point([[0.0, 0.0]], 36000, 1000, 3600)
    assert series.series_growth(points, 3600) == 100
    assert series.series_growth([[0.0, 5.0]], 3600) is None


def test_steps_leave_when_their_window_has_passed() -> None:
    points = [[0.0, 7.0]]
    points = series.add_step(points, 10, 9, 60)
    assert points[-1][1] - points[0][1] == 2
    points = series.add_step(points, 60, 9, 60)
    assert points[-1][1] - points[0][1] == 2
    points = series.add_step(points, 71, 9, 60)
    assert points[-1][1] - points[0][1] == 0


def test_a_clock_set_back_starts_the_series_anew() -> None:
    points = series.add_step([[1000.0, 3.0], [2000.0, 5.0]], 10, 5, 60)
    assert points == [[10, 5.0]]
    assert (
        series.series_growth(series.add_point([[1000.0, 3.0]], 10, 4, 60), 60) is None
    )


@pytest.mark.parametrize("raw", [None, 3, "x", [[1]], [["a", 1]], {"a": 1}])
def test_foreign_state_is_an_empty_series(raw: object) -> None:
    assert series.read_series(raw) == []
    assert LogPosition.of(raw) is None


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (
            "2026-01-01 UTC [7] LOG:  client backend (PID 12) was terminated by signal 9: Killed",
            "crash",
        ),
        ("[7] PANIC:  could not write to file: No space left on device", "panic"),
        (
            '[7] a@d ERROR:  could not extend file "base/1": No space left on device',
            "disk full",
        ),
        ("[7] ERROR:  invalid page in block 3 of relation base/1/2", "damaged data"),
        ("[7] FATAL:  out of memory", "out of memory"),
        (
            "[7] LOG:  database system was not properly shut down; automatic recovery",
            "crash",
        ),
        # What clients can put into a log proves nothing.
        ("[7] STATEMENT:  select 'PANIC:  out of memory'", None),
        ("\tPANIC:  second line of a statement", None),
        ('[7] ERROR:  relation "PANIC:  x" does not exist', None),
        (
            "[7] LOG:  statement: select 'client (PID 1) was terminated by signal 9'",
            None,
        ),
        ("[7] FATAL:  password authentication failed", None),
        ("x" * 10_000_000, None),
        ("", None),
    ],
)
def test_lines_of_the_log_are_judged_by_the_servers_own_words(
    line: str, kind: str | None
) -> None:
    assert kind_of(line) == kind


def test_words_from_outside_become_one_bounded_line() -> None:
    assert text("a\x1b[31m\nb\x00 \u202ec") == "a?[31m b? ?c"
    assert len(text("x" * 10_000, 50)) == 50
    assert text(None) == ""


@pytest.mark.parametrize(
    "words",
    [
        "connection refused",
        "FATAL: the database system is starting up",
        "FATAL: the database system is not yet accepting connections",
        "server closed the connection unexpectedly",
    ],
)
def test_words_that_mean_it_is_not_there(words: str) -> None:
    assert _UNREACHABLE.search(words) and not _FULL.search(words)


def test_an_invalidated_slot_breaks_whatever_it_keeps() -> None:
    row = {
        "slot_name": "s",
        "retained": None,
        "wal_status": "lost",
        "slot_type": "logical",
        "database": "d",
    }
    assert _slot_signal(row).holds is False
