"""Who watches what: the rule by which monitors share the subjects, and when each of them is due."""

from __future__ import annotations

import math
import random
from collections import Counter

from midwatch.fair_shares import fair_shares
from midwatch.monitor.schedule import Schedule

ALL = frozenset(f"s{number}" for number in range(100))


def loads(shares: dict[str, str]) -> list[int]:
    return sorted(Counter(shares.values()).values())


def test_equal_settings_make_equal_shares_and_few_moves() -> None:
    """A monitor that joins is given its share and no more moves; one that is gone leaves its share alone to the others."""
    before = fair_shares({"a": ALL, "b": ALL, "c": ALL}, {})
    assert loads(before) == [33, 33, 34]
    more = fair_shares({"a": ALL, "b": ALL, "c": ALL, "d": ALL}, dict(before))
    moved = {name for name in ALL if more[name] != before[name]}
    assert loads(more) == [25, 25, 25, 25]
    assert len(moved) == 25 and {more[name] for name in moved} == {"d"}
    less = fair_shares({"a": ALL, "c": ALL, "d": ALL}, dict(more))
    assert all(less[name] == more[name] for name in ALL if more[name] != "b")
    assert loads(less) == [33, 33, 34]


def test_a_subject_goes_only_to_who_knows_it() -> None:
    """Whatever the settings and the past: each is watched, by one that knows it, and no move would be fairer."""
    chance = random.Random(7)
    names = sorted(ALL)[:30]
    for _ in range(300):
        knows = {
            f"m{number}": frozenset(chance.sample(names, chance.randint(0, 30)))
            for number in range(chance.randint(1, 6))
        }
        held = {name: chance.choice([*knows, "gone", None]) for name in names}
        shares = fair_shares(knows, held)
        assert shares.keys() == frozenset().union(*knows.values())
        assert all(name in knows[member] for name, member in shares.items())
        count = Counter(shares.values())
        for name, member in shares.items():
            least = min(count[one] for one in knows if name in knows[one])
            assert count[member] - least < 2
        assert fair_shares(knows, dict(shares)) == shares


def test_each_subject_is_due_once_in_an_interval_and_never_all_at_once() -> None:
    schedule = Schedule(30.0)
    schedule.keep(ALL, 0.0)
    taken: dict[str, list[float]] = {}
    now = 0.0
    while now < 95:
        if (name := schedule.take(now)) is not None:
            taken.setdefault(name, []).append(now)
        else:
            now += schedule.wait(now)
    every = sorted(time for times in taken.values() for time in times)
    assert all(
        later - one > 0.019 for one, later in zip(every, every[1:], strict=False)
    )
    for times in taken.values():
        gaps = [later - one for one, later in zip(times, times[1:], strict=False)]
        assert len(times) == 4 and all(
            math.isclose(gap, 30, abs_tol=0.1) for gap in gaps
        )
    assert schedule.keep({"s1", "new"}, now) == [one for one in taken if one != "s1"]
    assert {schedule.take(now), schedule.take(now + 1)} == {"new", "s1"}
    assert schedule.take(now + 2) is None


def test_many_subjects_keep_their_interval_though_each_start_is_late() -> None:
    """A timer of the event loop is always late by some milliseconds; after a longer delay starts do not come all at once."""
    schedule = Schedule(20.0)
    schedule.keep({f"s{number}" for number in range(2000)}, 0.0)
    taken: Counter[str] = Counter()
    now = 0.0
    while now < 20:
        if (name := schedule.take(now)) is not None:
            taken[name] += 1
        now += schedule.wait(now) + 0.002
    assert len(taken) >= 1990 and max(taken.values()) == 1
    late = now + 10
    together = 0
    while schedule.take(late) is not None:
        together += 1
    assert together <= 6


def test_a_subject_has_an_interval_of_its_own() -> None:
    schedule = Schedule(30.0, {"s1": 300.0, "s2": 5.0})
    schedule.keep({"s0", "s1", "s2"}, 0.0)
    taken: Counter[str] = Counter()
    now = 0.0
    while now < 299:
        if (name := schedule.take(now)) is not None:
            taken[name] += 1
        else:
            now += schedule.wait(now)
    assert taken == {"s0": 10, "s1": 1, "s2": 60}
