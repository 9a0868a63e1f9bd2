"""What changed since every invariant held."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from midwatch.model import Fact, Observation, Signal
from midwatch.monitor.rules import MOST_LINES, Baseline, Baselines, changes_since
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
    assert changes_since(Baseline(AT, before), now, INVARIANTS).splitlines() == [
        "compared with 2026-03-01 12:00:00 UTC, when every invariant held:",
        "gone: 1 → none",
        "new: none → yes",
        "setting work_mem: 4MB → 64MB",
        "disk on srv: not seen → 10%",
        "disk on var: 50% → 97%",
    ]


def test_a_background_that_was_not_observed_is_not_a_change() -> None:
    text = changes_since(
        Baseline(AT, seen({"a": 1}, var=0.5)), seen(var=0.5), INVARIANTS
    )
    assert text.endswith("nothing but the violations")


def test_the_comparison_reaches_back_some_minutes() -> None:
    baselines = Baselines()
    assert baselines.oldest is None
    for minute in range(0, 20):
        baselines.add(AT + timedelta(seconds=30 * minute), seen(var=minute / 100))
    assert baselines.oldest and baselines.oldest.at == AT + timedelta(minutes=5)


def test_a_flood_of_changes_is_bounded() -> None:
    now = seen(**{f"c{number}": 0.95 for number in range(1000)})
    lines = changes_since(Baseline(AT, seen()), now, INVARIANTS).splitlines()
    assert len(lines) == MOST_LINES + 2 and lines[-1] == "and 960 more"
