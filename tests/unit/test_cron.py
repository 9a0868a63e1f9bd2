"""The times of a cron expression, also on the days on which the clock is set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from midwatch.cron import Cron

BERLIN = ZoneInfo("Europe/Berlin")
SPRING = datetime(2026, 3, 28, 23, 30, tzinfo=UTC)  # 00:30; 02:00 becomes 03:00
AUTUMN = datetime(2026, 10, 24, 22, 30, tzinfo=UTC)  # 00:30; 03:00 becomes 02:00


@pytest.mark.parametrize(
    "day, expression, expected",
    [
        # A time in the gap is due at its end, once, also if that is a time itself.
        (SPRING, "30 2 * * *", ["03:00+0200"]),
        (SPRING, "0 2,3 * * *", ["03:00+0200"]),
        (SPRING, "15 1-3 * * *", ["01:15+0100", "03:00+0200", "03:15+0200"]),
        # What runs through the hours has nothing to do in the gap.
        (SPRING, "*/30 2 * * *", []),
        (SPRING, "0 * * * *", ["01:00+0100", "03:00+0200", "04:00+0200", "05:00+0200"]),
        # A repeated time is due the first time only; repeated hours are hours all the same.
        (AUTUMN, "30 2 * * *", ["02:30+0200"]),
        (AUTUMN, "0 2,3 * * *", ["02:00+0200", "03:00+0100"]),
        (AUTUMN, "0 * * * *", ["01:00+0200", "02:00+0200", "02:00+0100", "03:00+0100"]),
        (AUTUMN, "*/30 2 * * *", ["02:00+0200", "02:30+0200", "02:00+0100", "02:30+0100"]),
    ],
)  # fmt: skip
def test_times_on_the_days_on_which_the_clock_is_set(
    day: datetime, expression: str, expected: list[str]
) -> None:
    hours = timedelta(hours=3, minutes=40)
    times = Cron(expression, BERLIN).between(day, day + hours)
    assert [f"{at.astimezone(BERLIN):%H:%M%z}" for at in times] == expected


def test_other_zones_and_rare_times() -> None:
    # Lord Howe sets its clock by half an hour: 02:00 becomes 01:30.
    lord_howe = Cron("0 * * * *", ZoneInfo("Australia/Lord_Howe"))
    before = datetime(2026, 4, 4, 14, 30, tzinfo=UTC)
    assert lord_howe.next(before) == before + timedelta(hours=1)
    leap = Cron("0 0 29 2 *", ZoneInfo("UTC")).next(SPRING)
    assert leap == datetime(2028, 2, 29, tzinfo=UTC)
    # Samoa left out the whole 30 December 2011.
    samoa = Cron("0 12 30 12 *", ZoneInfo("Pacific/Apia"))
    left_out = samoa.next(datetime(2011, 12, 29, tzinfo=UTC))
    assert left_out == datetime(2011, 12, 30, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    "expression, why",
    [
        ("61 * * * *", "out of range"),
        ("* * *", "it has 3 fields and needs 5"),
        ("* * * * * *", "it has 6 fields"),
        ("0 0 31 2 *", "failed to find next date"),
        ("0 0 L * *", "its day of month is 'L'"),
        ("R * * * *", "its minute is 'R'"),
        ("0 0 * * mon#2", "its day of week is 'mon#2'"),
        ("0 0 * * foo", "not a cron expression"),
    ],
)
def test_a_wrong_expression_says_what_is_wrong(expression: str, why: str) -> None:
    with pytest.raises(ValueError, match="not a cron expression") as raised:
        Cron(expression, BERLIN)
    assert why in str(raised.value)
