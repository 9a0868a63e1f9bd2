"""Which target is told of a change, when, and as what."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from midwatch.errors import SettingsError
from midwatch.model import Key, Severity, Ticket, TicketStatus
from midwatch.notification_settings import NotificationSettings
from midwatch.notify.routes import Routes, plan
from midwatch.store.on_call import Change, Cursor, NewDelivery, Told

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)  # a Monday


def routes(*given: dict[str, Any], **more: Any) -> Routes:
    names = sorted({name for route in given for name in route["to"]})
    targets = [{"name": name, "webhook": {"url": "http://localhost"}} for name in names]
    settings = NotificationSettings.model_validate(
        {"targets": targets, "routes": list(given), **more}
    )
    return Routes.from_settings(settings, {"db": "postgres"})


def ticket(severity: Severity = Severity.CRITICAL, **more: Any) -> Ticket:
    return replace(
        Ticket(
            id=3,
            key=Key("db", "connections", "orders"),
            severity=severity,
            status=TicketStatus.OPEN,
            held=False,
            message="it is broken",
            facts={"label_team": "shop"},
            first_seen_at=NOON,
            opened_at=NOON,
            last_seen_at=NOON,
            occurrence_count=1,
            batch=7,
        ),
        **more,
    )


def change(action: str, of: Ticket, number: int = 1) -> Change:
    return Change(
        Cursor(number),
        of.id,
        NOON,
        "ann",
        action,
        "open",
        "open",
        "why",
        of.key,
        of.severity,
        of.batch,
        of.message,
    )


def planned(
    all_: Routes,
    *actions: str,
    of: Ticket | None = None,
    told: tuple[Told, ...] = (),
    now: datetime = NOON,
) -> list[NewDelivery]:
    about = of or ticket()
    changes = [change(action, about, n) for n, action in enumerate(actions, 1)]
    return plan(changes, {about.id: about}, told, all_, now)


def names(found: list[NewDelivery]) -> list[tuple[str, str]]:
    return [(one.target, one.event) for one in found]


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        (['severity="critical"'], True),
        (["severity=~critical|warning", "kind=postgres"], True),
        (["team=shop"], True),
        (["subject=db", "component!=orders"], False),
        (["kind=host"], False),
    ],
)
def test_a_route_has_matchers_over_labels(match: list[str], fits: bool) -> None:
    found = planned(routes({"name": "a", "to": ["x"], "match": match}), "open")
    assert bool(found) is fits


def test_the_first_route_counts_unless_it_says_continue() -> None:
    first, second = {"name": "a", "to": ["x"]}, {"name": "b", "to": ["y"]}
    assert names(planned(routes(first, second), "open")) == [("x", "opened")]
    both = planned(routes({**first, "continue": True}, second), "open")
    assert names(both) == [("x", "opened"), ("y", "opened")]


def test_a_wrong_matcher_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match=r"notifications.routes\[0\].match"):
        routes({"name": "a", "to": ["x"], "match": ["severity=~'('"]})


@pytest.mark.parametrize(
    ("hours", "days", "at", "open_"),
    [
        ("08:00-18:00", None, "2026-03-02T07:30+00:00", True),  # 08:30 in Berlin
        ("08:00-18:00", None, "2026-03-02T06:30+00:00", False),
        ("08:00-18:00", None, "2026-07-01T06:30+00:00", True),  # in summer
        ("22:00-06:00", ["mon"], "2026-03-03T03:00+00:00", True),  # Monday's night
        ("22:00-06:00", ["tue"], "2026-03-03T03:00+00:00", False),
        (None, ["sat", "sun"], "2026-03-02T12:00+00:00", False),
    ],
)
def test_a_route_has_a_time_of_day_in_its_zone(
    hours: str | None, days: list[str] | None, at: str, open_: bool
) -> None:
    more = {"days": days} if days else {}
    route = {"name": "a", "to": ["x"], "hours": hours, "timezone": "Europe/Berlin"}
    found = planned(routes({**route, **more}), "open", now=datetime.fromisoformat(at))
    assert bool(found) is open_


def test_who_was_told_hears_the_end_at_any_hour_in_the_same_thread() -> None:
    day = {"name": "day", "to": ["x"], "hours": "08:00-18:00"}
    night = {"name": "night", "to": ["y"]}
    told = (Told(3, "day", "x", "incident-5"),)
    late = NOON + timedelta(hours=10)
    [one] = planned(routes(day, night), "resolve", told=told, now=late)
    assert (one.target, one.thread, one.event) == ("x", "incident-5", "resolved")


def test_a_ticket_that_joins_another_incident_goes_on_in_its_thread() -> None:
    """The first thread ends with a message; all that follows is in the other, also if that was planned before."""
    told = (Told(3, "all", "x", "incident-5"), Told(3, "all", "y", "incident-7"))
    all_ = routes({"name": "all", "to": ["x", "y"]})
    found = planned(all_, "join", "resolve", told=told)
    assert [(one.target, one.thread, one.event) for one in found] == [
        ("x", "incident-5", "joined"),
        ("x", "incident-7", "added"),
        ("x", "incident-7", "resolved"),
        ("y", "incident-7", "resolved"),
    ]
    later = planned(all_, "resolve", told=(*told, Told(3, "all", "x", "incident-7")))
    assert {one.thread for one in later} == {"incident-7"}


def test_only_events_that_the_route_names_are_told() -> None:
    all_ = routes({"name": "a", "to": ["x"], "events": ["diagnosed"]})
    found = planned(all_, "open", "join", "acknowledge", "diagnose", "give up")
    assert names(found) == [("x", "diagnosed"), ("x", "diagnosed")]


def test_planning_again_gives_the_same_keys() -> None:
    all_ = routes(
        {"name": "a", "to": ["x"], "escalate_after": 60}, {"name": "b", "to": ["y"]}
    )
    first, again = planned(all_, "open"), planned(all_, "open")
    assert [one.dedup_key for one in first] == [one.dedup_key for one in again]
    assert len({one.dedup_key for one in first}) == 2


def test_escalations_follow_each_other() -> None:
    all_ = routes(
        {"name": "a", "to": ["x"], "escalate_after": 60},
        {"name": "other", "to": ["z"], "match": ["kind=host"]},
        {"name": "b", "to": ["x", "y"], "escalate_after": 120},
        {"name": "c", "to": ["z"]},
    )
    found = planned(all_, "open")
    assert names(found) == [("x", "opened"), ("y", "escalated"), ("z", "escalated")]
    assert [one.due_in for one in found[1:]] == [60, 180]


def test_a_digest_is_due_at_its_time_of_day() -> None:
    route = {"name": "a", "to": ["x"], "digest": "24h", "digest_at": "09:00"}
    found = planned(routes({**route, "timezone": "Europe/Berlin"}), "open", "resolve")
    assert [one.thread for one in found] == ["digest a", "digest a"]
    due = {NOON + timedelta(seconds=one.due_in) for one in found}
    assert due == {datetime(2026, 3, 3, 8, tzinfo=UTC)}


def test_a_ticket_that_is_held_is_told_of_later() -> None:
    told = (Told(3, "a", "x", "incident-7"),)
    all_ = routes({"name": "a", "to": ["x"]}, held_after=3600)
    [one] = planned(all_, "hold", told=told)
    assert (one.event, one.due_in) == ("held_too_long", 3600)


def test_an_investigation_tells_nobody_of_the_routes() -> None:
    asked = ticket(key=Key("db", "investigation", "i-1"))
    assert planned(routes({"name": "a", "to": ["x"]}), "open", of=asked) == []


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"routes": [{"name": "a", "to": ["nobody"]}]}, "not a target"),
        ({"targets": [{"name": "a"}]}, "give a target one of"),
        (
            {
                "targets": [{"name": "a", "apprise": {"url": "json://x"}}],
                "routes": [{"name": "r", "to": ["a"], "timezone": "Mars/Base"}],
            },
            "not a time zone",
        ),
    ],
)
def test_wrong_settings_say_what_is_wrong(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        NotificationSettings.model_validate(wrong)
