"""The kinds `alerts` and `alertmanager`: what they observe, and what they say when they cannot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from midwatch.errors import ObservationFailed
from midwatch.model import Key, Severity
from midwatch.monitor.rules import check
from midwatch.received import KeptAlert, PushedAlerts, ReceivedAlert
from midwatch.subjects.alertmanager import (
    AlertmanagerSettings,
    AlertmanagerSubject,
    silenced_by,
)
from midwatch.subjects.alertmanager_api import ManagedAlert
from midwatch.subjects.pushed import PushedSettings, PushedSubject
from midwatch.testing.subject_conformance import check_kind, check_subject

from ..acceptance.web import Reply, serving

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Pushed:
    """What a store would say."""

    def __init__(self, *alerts: KeptAlert, **more: Any) -> None:
        self.found = PushedAlerts(alerts, more.pop("now", NOW), **more)

    async def pushed_alerts(self, subject: str) -> PushedAlerts:
        return self.found


def kept(component: str, **more: Any) -> KeptAlert:
    facts = {"alertname": "Down", "label_instance": component}
    given: Mapping[str, Any] = {"severity": Severity.WARNING, "facts": facts, **more}
    return KeptAlert(
        f"fp-{component}", True, "alert:Down", component, message="down", **given
    )


def pushed(reader: Pushed | None = None, **settings: Any) -> PushedSubject:
    given = {"name": "team", "sender": "alertmanager", **settings}
    subject = PushedSubject(PushedSettings.model_validate(given))
    if reader is not None:
        subject.read_pushed_from(reader)
    return subject


async def test_both_kinds_conform() -> None:
    check_kind(PushedSubject)
    check_kind(AlertmanagerSubject)
    await check_subject(pushed(Pushed(kept("a"), kept("b", silenced_by="x"))))
    await check_subject(pushed(), observable=False)
    nowhere = {"name": "am", "url": "http://127.0.0.1:9"}
    settings = AlertmanagerSettings.model_validate(nowhere)
    await check_subject(AlertmanagerSubject(settings), observable=False)


async def test_a_heartbeat_that_has_not_come_yet_is_awaited_once() -> None:
    """The wait goes on after a restart of the monitor: it is kept with the subject."""
    heard = {"heartbeat": {"alert": "Watchdog", "within": "60s"}}
    first = await pushed(Pushed(kept("a")), **heard).observe({})
    assert first.signals and not first.covers("alert:Down")
    later = Pushed(now=NOW.replace(minute=2))
    with pytest.raises(ObservationFailed, match="has not been received yet"):
        await pushed(later, **heard).observe(first.state)
    came = await pushed(Pushed(heartbeat_age=59.0), **heard).observe(first.state)
    assert came.covers("alert:Down") and came.state == {}
    with pytest.raises(ObservationFailed, match="last received 1m 1s ago"):
        await pushed(Pushed(heartbeat_age=61.0), **heard).observe({})


async def test_a_doubted_resolution_is_believed_once_the_heartbeat_has_been_back_for_a_while() -> (
    None
):
    """Each look keeps since when; a gap in the looks, and a later doubt, begin anew."""
    heard = {"heartbeat": {"alert": "Watchdog", "within": "60s", "settle": "3m"}}
    state: dict[str, object] = {}

    async def at(seconds: int, doubted_at: int = 0) -> list[bool | None]:
        nonlocal state
        reader = Pushed(
            now=NOW + timedelta(seconds=seconds),
            heartbeat_age=1.0,
            doubted=(replace(kept("a"), firing=False),),
            doubted_for=seconds - doubted_at,
        )
        observed = await pushed(reader, **heard).observe(state)
        state = dict(observed.state)
        return [one.holds for one in observed.signals]

    assert await at(100) == [None], "neither broken nor well: its ticket stays"
    assert [await at(seconds) for seconds in (150, 200, 250)] == [[None]] * 3
    assert await at(280) == [], "it is resolved"
    assert await at(290, doubted_at=285) == [None]
    assert await at(400, doubted_at=285) == [None], "a gap"
    for seconds in range(450, 560, 50):
        assert await at(seconds, doubted_at=285) == [None]
    assert await at(580, doubted_at=285) == []


def test_a_resolution_counts_although_the_settings_leave_its_alert_out() -> None:
    """It may have fired before they did."""
    for left_out in (
        {"ignore": ["Down"]},
        {"invariants": {"alert": {"ignore": [{"instance": "a*"}]}}},
        {"invariants": {"alert": {"enabled": False}}},
    ):
        read = pushed(**left_out).alerts
        fires = ReceivedAlert("Down", True, {"instance": "a1"})
        assert read.signal(fires) is None
        assert (resolved := read.signal(replace(fires, firing=False))) is not None
        assert (resolved.invariant, resolved.holds) == ("alert:Down", True)


async def test_what_was_left_out_of_a_request_is_unknown() -> None:
    observed = await pushed(Pushed(truncated={"g": (7, 5.0)})).observe({})
    assert "7 alerts" in observed.unavailable["alert"]
    assert not observed.covers("alert")


async def test_in_a_storm_what_has_a_ticket_keeps_it() -> None:
    alerts = [kept(f"h{number}") for number in range(6)]
    ticketed = frozenset({("alert:Down", "h4"), ("alert:Down", "h5")})
    reader = Pushed(*alerts, kept("q", silenced_by="x"), ticketed=ticketed)
    observed = await pushed(reader, most_tickets=3).observe({})
    shown = {one.component for one in observed.signals}
    assert shown == {"h0", "h4", "h5", "q", "more"}
    [more] = [one for one in observed.signals if one.component == "more"]
    assert more.message == "and 3 more alerts fire: Down ×3"


async def test_what_the_settings_leave_out_now_counts_no_more() -> None:
    left_out = {"alert": {"ignore": [{"instance": "a*"}]}}
    reader = Pushed(kept("a1"), kept("b1"))
    observed = await pushed(reader, invariants=left_out).observe({})
    assert [one.component for one in observed.signals] == ["b1"]


@pytest.mark.parametrize(
    ("state", "by", "says"),
    [
        ("active", {}, ""),
        ("suppressed", {"silenced_by": ("4f",)}, "Alertmanager silence 4f (ada: disk)"),
        ("suppressed", {"silenced_by": ("5",)}, "Alertmanager silence 5"),
        ("suppressed", {"inhibited_by": ("ab",)}, "inhibited by the alert ab"),
        ("suppressed", {"muted_by": ("nights",)}, "time interval nights"),
        ("suppressed", {}, "Alertmanager"),
    ],
)
def test_what_keeps_an_alert_silent_is_named(
    state: Any, by: dict[str, Any], says: str
) -> None:
    nothing: dict[str, Any] = dict.fromkeys(
        ("silenced_by", "inhibited_by", "muted_by"), ()
    )
    one = ManagedAlert({}, {}, "f", None, None, "", state, **{**nothing, **by})
    found = silenced_by(one, {"4f": "ada: disk"})
    assert found.endswith(says) and bool(found) == bool(says)


@pytest.mark.integration
async def test_what_alertmanager_has_not_processed_yet_is_unknown() -> None:
    """Its ticket is not resolved, and no new one opens."""
    alert = {
        "labels": {"alertname": "Down", "instance": "a"},
        "fingerprint": "f",
        "status": {"state": "unprocessed"},
    }

    def reply(handler: BaseHTTPRequestHandler) -> Reply:
        started = {"uptime": "2026-01-01T00:00:00Z"}
        found: Any = started if "status" in handler.path else [alert]
        return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()

    with serving(reply) as url:
        given = {"name": "am", "url": url}
        subject = AlertmanagerSubject(AlertmanagerSettings.model_validate(given))
        observed = await subject.observe({})
        await subject.close()
    checked = check("am", {}, observed, {}, 0.0)
    assert not checked.broken
    assert not checked.known(Key("am", "alert:Down", "instance=a"))
    assert checked.known(Key("am", "alert:Down", "instance=b"))
