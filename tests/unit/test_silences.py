"""Silences without a store: when they hold, their windows over changes of the clocks, and what they match."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from midwatch.matchers import Matcher
from midwatch.model import Key, Severity
from midwatch.recurrence import InvalidSilence, Recurrence
from midwatch.silences import (
    Hold,
    Silence,
    hold,
    in_force,
    labels_of,
    matching,
    unusable,
    why_silent,
)

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def made(
    start: str, days: float, recurrence: Recurrence | None = None, id_: int = 1
) -> Silence:
    return Silence(
        id=id_,
        matchers=(Matcher("subject", "=", "db"),),
        starts_at=at(start),
        ends_at=at(start) + days * DAY,
        author="ann",
        reason="upgrade",
        created_at=at(start),
        rrule=recurrence and recurrence.rrule,
        window_seconds=recurrence and recurrence.window_seconds,
        timezone=recurrence and recurrence.timezone,
    )


def windows(silence: Silence) -> list[str]:
    """The starts of all windows, in UTC."""
    assert silence.recurrence is not None
    found = silence.recurrence.windows(silence.starts_at, silence.ends_at)
    return [f"{one:%Y-%m-%d %H:%M}" for one in found]


def test_a_silence_holds_from_its_start_to_its_end() -> None:
    one = made("2026-05-01T12:00", 1)
    assert one.active(one.starts_at) and one.active(one.ends_at - HOUR)
    assert not one.active(one.starts_at - HOUR) and not one.active(one.ends_at)
    assert one.next_start(one.starts_at - HOUR) == one.starts_at
    early = replace(one, expired_at=one.starts_at + HOUR, expired_by="bob")
    assert early.active_until(one.starts_at) == one.starts_at + HOUR
    assert early.ended(one.starts_at + HOUR)
    before = replace(one, expired_at=one.starts_at - HOUR)
    assert before.next_start(one.starts_at - 2 * HOUR) is None


def test_each_window_begins_by_the_local_clock() -> None:
    """In Berlin 2:30 is skipped on 29 March 2026, and comes twice on 25 October: the first one counts."""
    rule = Recurrence(
        "FREQ=WEEKLY;BYDAY=SU;BYHOUR=2;BYMINUTE=30", 3600, "Europe/Berlin"
    )
    assert windows(made("2026-03-20T00:00", 20, rule)) == [
        "2026-03-22 01:30",
        "2026-03-29 01:30",  # as much after 1:59 as 2:30 would be: 3:30 in summer time
        "2026-04-05 00:30",
    ]
    assert windows(made("2026-10-15T00:00", 20, rule)) == [
        "2026-10-18 00:30",
        "2026-10-25 00:30",
        "2026-11-01 01:30",
    ]


def test_a_window_lasts_its_seconds_over_a_change_of_the_clocks() -> None:
    rule = Recurrence("FREQ=DAILY;BYHOUR=1;BYMINUTE=0", 3 * 3600, "Europe/Berlin")
    autumn = made("2026-10-24T12:00", 1, rule)
    begin = at("2026-10-24T23:00")  # 1:00 in summer time
    assert autumn.active_until(begin) == begin + 3 * HOUR  # 3:00 in winter time
    assert not autumn.active(begin + 3 * HOUR)


def test_the_day_is_that_of_the_time_zone() -> None:
    rule = Recurrence("FREQ=MONTHLY;BYMONTHDAY=1;BYHOUR=8", 60, "Pacific/Auckland")
    silence = made("2026-05-01T00:00", 62, rule)
    assert windows(silence) == ["2026-05-31 20:00", "2026-06-30 20:00"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("FREQ=DAILY;INTERVAL=3", ["02-01", "02-04", "02-07", "02-10", "02-13"]),
        ("FREQ=DAILY;COUNT=2", ["02-01", "02-02"]),
        ("FREQ=WEEKLY;BYDAY=MO,FR", ["02-02", "02-06", "02-09", "02-13"]),
        ("FREQ=MONTHLY;BYDAY=2TU", ["02-10"]),
        ("FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1", []),
        ("FREQ=YEARLY;BYYEARDAY=40", ["02-09"]),
        ("FREQ=YEARLY;BYWEEKNO=7;BYDAY=MO", ["02-09"]),
        ("FREQ=WEEKLY", ["02-01", "02-08"]),
    ],
)
def test_rules(rule: str, expected: list[str]) -> None:
    """From Sunday, 1 February 2026, for two weeks; the time of day is that of the start."""
    silence = made("2026-02-01T10:00", 14, Recurrence(rule, 60))
    assert windows(silence) == [f"2026-{day} 10:00" for day in expected]


def test_a_leap_day_and_the_last_day_of_a_month() -> None:
    leap = made(
        "2026-01-01T00:00", 2000, Recurrence("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29", 60)
    )
    assert windows(leap) == ["2028-02-29 00:00"]
    rare = made("2024-01-01T00:00", 2500, Recurrence("FREQ=YEARLY;BYDAY=53MO", 60))
    assert windows(rare) == ["2024-12-30 00:00", "2029-12-31 00:00"]
    last = made("2028-01-01T00:00", 70, Recurrence("FREQ=MONTHLY;BYMONTHDAY=-1", 60))
    assert windows(last) == ["2028-01-31 00:00", "2028-02-29 00:00"]


def test_windows_that_touch_are_one() -> None:
    rule = Recurrence("FREQ=DAILY", 86400)
    silence = made("2026-02-01T10:00", 3, rule)
    assert silence.active_until(at("2026-02-01T10:00")) == silence.ends_at
    longer = made("2026-02-01T10:00", 3, replace(rule, window_seconds=90_000))
    assert longer.active_until(at("2026-02-02T10:30")) == silence.ends_at


def test_the_end_of_a_silence_cuts_its_window() -> None:
    silence = made("2026-02-01T10:00", 1.02, Recurrence("FREQ=DAILY", 3600))
    assert silence.active_until(at("2026-02-02T10:00")) == silence.ends_at
    expired = replace(silence, expired_at=at("2026-02-01T10:30"))
    assert expired.active_until(at("2026-02-01T10:00")) == at("2026-02-01T10:30")
    assert expired.next_start(at("2026-02-01T11:00")) is None
    assert silence.next_start(at("2026-02-01T11:00")) == at("2026-02-02T10:00")


def test_a_rule_for_now_on_begins_with_the_hour() -> None:
    assert (
        Recurrence("FREQ=DAILY;BYHOUR=2", 60)
        .from_now_on()
        .rrule.endswith(";BYMINUTE=0")
    )
    for rule in ("FREQ=DAILY", "FREQ=DAILY;BYHOUR=2;BYMINUTE=5"):
        assert Recurrence(rule, 60).from_now_on().rrule == rule


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "DAILY",
        "FREQ=HOURLY",
        "FREQ=SECONDLY",
        "INTERVAL=2",
        "FREQ=DAILY;FREQ=DAILY",
        "FREQ=DAILY;INTERVAL=0",  # dateutil would never end
        "FREQ=DAILY;INTERVAL=-1",
        "FREQ=DAILY;COUNT=0",
        "FREQ=DAILY;BYDAY=XX",
        "FREQ=YEARLY;BYDAY=60MO",
        "FREQ=DAILY;BYHOUR=24",
        "FREQ=DAILY;BYHOUR=٣",
        "FREQ=DAILY;BYMONTHDAY=0",
        "FREQ=DAILY;BYSECOND=1",
        "FREQ=DAILY;BYEASTER=1",
        "FREQ=DAILY;UNTIL=20270101T000000Z",
        "FREQ=DAILY\nDTSTART:20260101T000000Z",
        "FREQ=DAILY;BYHOUR=" + ",".join(map(str, range(24))) + ";BYMINUTE=0,30",
        "FREQ=DAILY;BYMONTH=" + ",".join(["1"] * 32),
        "FREQ=DAILY;BYMONTH=1" + " " * 500,
    ],
)
def test_a_wrong_rule_is_refused(rule: str) -> None:
    with pytest.raises(InvalidSilence) as caught:
        Recurrence(rule, 60).check()
    assert len(caught.value.one_line()) < 300


@pytest.mark.parametrize(
    "place", ["", "Mars/Base", "../../etc/passwd", "Europe", "/etc/localtime", "a\0b"]
)
def test_a_wrong_time_zone_is_refused(place: str) -> None:
    with pytest.raises(InvalidSilence, match="time zone"):
        Recurrence("FREQ=DAILY", 60, place).check()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 367 * 86400])
def test_a_wrong_length_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidSilence, match="window"):
        Recurrence("FREQ=DAILY", seconds).check()


def test_a_silence_needs_a_window_and_not_too_many() -> None:
    never = Recurrence("FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30", 60)
    with pytest.raises(InvalidSilence, match="no window"):
        made("2026-02-01T10:00", 9000, never).check()
    nowhere = Recurrence("FREQ=MONTHLY;BYDAY=53MO", 60)
    with pytest.raises(InvalidSilence, match="no month has"):
        made("2026-02-01T10:00", 90, nowhere).check()
    often = Recurrence("FREQ=DAILY;BYHOUR=1,2,3,4,5", 60)
    with pytest.raises(InvalidSilence, match="more than"):
        made("2026-02-01T10:00", 900, often).check()


def test_the_last_silence_to_end_is_what_keeps_it_silent() -> None:
    labels = labels_of(Key("db", "disk", "/"), Severity.INFO, {}, "host")
    now = at("2026-02-01T12:00")
    short, long = made("2026-02-01T10:00", 1), made("2026-02-01T10:00", 2, id_=2)
    other = replace(long, id=3, matchers=(Matcher("kind", "=", "http"),))
    force = in_force([short, long, other], now)
    found = hold(force, labels, sender="its sender")
    assert found == Hold("silence 2", long.ends_at, 2)
    assert "silence 2 of ann for 2d: upgrade" in why_silent(found, force)
    assert hold((), labels, sender="its sender") == Hold("its sender")
    assert hold((), labels) is None
    assert matching([short, long, other], labels, now) == [short, long]


def test_what_somebody_asked_is_never_silent() -> None:
    now = at("2026-02-01T12:00")
    labels = labels_of(Key("db", "investigation", "1"), Severity.INFO, {})
    force = in_force([made("2026-02-01T10:00", 1)], now)
    assert hold(force, labels, "sender") is None


def test_a_silence_that_cannot_be_evaluated_says_why() -> None:
    now = at("2026-02-01T12:00")
    wrong = made("2026-02-01T10:00", 1, Recurrence("FREQ=NEVER", 60))
    assert in_force([wrong], now) == []
    assert "FREQ=NEVER" in unusable([wrong], now)[1]


def test_labels_of_an_alert_never_replace_those_of_midwatch() -> None:
    facts = {
        "label_team": "shop",
        "label_severity": "page",
        "label_n": 3,
        "x": "y",
        "label_none": None,
    }
    labels = labels_of(Key("a", "b", "c"), Severity.WARNING, facts, "alerts")
    assert labels == {
        "team": "shop",
        "n": "3",
        "subject": "a",
        "kind": "alerts",
        "invariant": "b",
        "component": "c",
        "severity": "warning",
    }
