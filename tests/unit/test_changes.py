"""What changed since all was well."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from midwatch.model import Fact, Observation, Signal
from midwatch.monitor.rules import MOST_LINES, Baselines, Calm, changes_since
from midwatch.testing.fakes import DISK

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
INVARIANTS = {DISK.id: DISK}


def seen(background: dict[str, Fact] | None = None, **values: float) -> Observation:
    signals = tuple(
        Signal("disk", component, "", value=value)
        for component, value in values.items()
    )
    return Observation(signals, frozenset({"*"}), background=background or {})


def test_values_and_background_are_compared() -> None:
    before = seen({"setting work_mem": "4MB", "gone": 1}, var=0.50, tmp=0.20)
    now = seen({"setting work_mem": "64MB", "new": "yes"}, var=0.97, tmp=0.201, srv=0.1)
    assert changes_since(Calm(AT, before), now, INVARIANTS).splitlines() == [
        "compared with a look in which all was well, 2026-03-01 12:00:00 UTC:",
        "gone: 1 → none",
        "new: none → yes",
        "setting work_mem: 4MB → 64MB",
        "disk on srv: not seen → 10%",
        "disk on var: 50% → 97%",
    ]


def test_a_background_that_was_not_seen_is_no_change() -> None:
    told = changes_since(Calm(AT, seen({"a": 1}, var=0.5)), seen(var=0.5), INVARIANTS)
    assert told.endswith("nothing but the violations")


def test_the_comparison_reaches_back_some_minutes() -> None:
    looks = Baselines()
    assert looks.oldest is None
    for minute in range(0, 20):
        looks.add(AT + timedelta(seconds=30 * minute), seen(var=minute / 100))
    assert looks.oldest and looks.oldest.at == AT + timedelta(minutes=5)


def test_a_flood_of_changes_is_bounded() -> None:
    now = seen(**{f"c{number}": 0.95 for number in range(1000)})
    lines = changes_since(Calm(AT, seen()), now, INVARIANTS).splitlines()
    assert len(lines) == MOST_LINES + 2 and lines[-1] == "and 960 more"
