"""What senders write, read into one form: Alertmanager, Grafana, PagerDuty, and programs by JMESPath."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from midwatch.matchers import match_all, parse_matchers
from midwatch.model import Key
from midwatch.received import Delivery, KeptAlert
from midwatch.redaction import Redactor, Sanitizer
from midwatch.server.alert_intake import AlertIntake
from midwatch.server.problems import Unauthenticated
from midwatch.server.senders import read_delivery
from midwatch.server.senders.reading import Unreadable
from midwatch.server.signatures import check_gitlab, check_signature, sign
from midwatch.silences import labels_of
from midwatch.subjects.alert_signals import AlertReader
from midwatch.subjects.pushed import FieldSettings, PushedSettings, PushedSubject
from midwatch.text import clean

from ..acceptance.alert_bodies import alertmanager_alert, alertmanager_body, incident

AT = datetime(2026, 3, 1, 10, tzinfo=UTC)


def read(sender: str, body: object, **headers: str) -> Delivery:
    return read_delivery(sender, json.dumps(body).encode(), headers)


def test_grafana_keeps_its_links_and_values() -> None:
    alert = {
        **alertmanager_alert(),
        "silenceURL": "https://grafana.example/alerting/silence/new?x=1",
        "dashboardURL": "https://grafana.example/d/1",
        "values": {"A": 93.5, "B": None},
        "valueString": "[ var='A' value=93.5 ]",
    }
    [found] = read("grafana", alertmanager_body(alert, orgId=1, title="t")).alerts
    assert found.facts["silenceURL"] == alert["silenceURL"]
    assert found.facts["value_A"] == 93.5
    assert found.facts["valueString"] == "[ var='A' value=93.5 ]"


def test_an_alert_without_a_name_does_not_lose_its_group() -> None:
    """Alertmanager takes such an alert, and does not send again what is refused."""
    unnamed = {**alertmanager_alert(), "labels": {"severity": "x"}}
    body = alertmanager_body(alertmanager_alert(), unnamed)
    named, other = read("alertmanager", body).alerts
    assert named.name != other.name == "alert"


def test_only_an_end_that_has_come_counts() -> None:
    """Of what fires, Alertmanager may give the time at which it would end by itself."""
    firing = {**alertmanager_alert(), "endsAt": "2026-03-01T12:00:00Z"}
    resolved = alertmanager_alert(status="resolved")
    delivery = read(
        "alertmanager", alertmanager_body(firing, resolved, truncatedAlerts=3)
    )
    assert [one.ends_at for one in delivery.alerts] == [
        None,
        datetime(2026, 3, 1, 11, tzinfo=UTC),
    ]
    assert (delivery.truncated, delivery.alerts[0].starts_at) == (3, AT)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"alerts": None}, "alerts: expected a list"),
        ({"alerts": [[]]}, r"alerts\[0\]: expected an object, found a list"),
        ({"alerts": [{"status": "on"}]}, r"alerts\[0\].status: expected firing"),
        (
            {"alerts": [{**alertmanager_alert(), "startsAt": "yesterday"}]},
            r"alerts\[0\].startsAt: 'yesterday' is not a time",
        ),
        (
            {
                "alerts": [
                    {**alertmanager_alert(), "startsAt": "9999-12-31T23:59:59-23:59"}
                ]
            },
            "is not a time",
        ),
        (
            {"alerts": [{**alertmanager_alert(), "startsAt": 10**400}]},
            "is not a time",
        ),
        (
            {"alerts": [alertmanager_alert(**{f"l{n}": "" for n in range(100_000)})]},
            "100,003 names are too many; at most 1,000",
        ),
        (
            {"alerts": [alertmanager_alert()] * 10_001},
            "10,001 alerts are too many; at most 10,000",
        ),
        ({"truncatedAlerts": -1}, "truncatedAlerts"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], says: str) -> None:
    body = {**alertmanager_body(alertmanager_alert()), **change}
    with pytest.raises(Unreadable, match=says) as caught:
        read("alertmanager", body)
    assert caught.value.status == 422


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe\x00", b'{"a": NaN}', b"[" * 100_000, b"1" * 5000]
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(Unreadable):
        read_delivery("alertmanager", body, {})


# ------------------------------------------------------------------ PagerDuty


def test_an_incident_of_pagerduty_is_an_alert_of_its_service() -> None:
    body = incident("incident.triggered", "2026-03-01T10:00:01Z")
    [opened] = read("pagerduty", body).alerts
    assert (opened.name, opened.firing, opened.fingerprint) == ("Shop", True, "Q1")
    assert (opened.starts_at, opened.severity) == (AT, "high")
    assert opened.facts["html_url"] == "https://team.pagerduty.example/incidents/Q1"
    ended = incident("incident.resolved", "2026-03-01T10:05:00Z", status="resolved")
    [closed] = read("pagerduty", ended).alerts
    assert not closed.firing
    assert closed.changed_at == closed.ends_at == AT.replace(minute=5)


@pytest.mark.parametrize(
    "event",
    [
        {"event": {"event_type": "pagey.ping", "data": {"message": "Hello"}}},
        incident("incident.annotated", "2026-03-01T10:00:01Z", type="incident_note"),
        {"event": {"event_type": "service.updated", "data": {"type": "service"}}},
    ],
)
def test_other_events_of_pagerduty_are_no_alerts(event: dict[str, Any]) -> None:
    assert read("pagerduty", event).alerts == ()


def test_the_published_example_of_standard_webhooks_is_right() -> None:
    """Of https://github.com/standard-webhooks/standard-webhooks, as its libraries test it."""
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    given = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    check_gitlab(given, body, [secret], 1614265330)
    several = f"v1,bm8= {given['webhook-signature']}"
    check_gitlab(
        {**given, "webhook-signature": several}, body, ["x", secret], 1.614e9 + 265330
    )
    wrong: list[tuple[dict[str, str], bytes, float]] = [
        (given, body + b" ", 0),
        (given, body, 301),
        (given, body, -301),
        ({**given, "webhook-id": "msg_2"}, body, 0),
        ({**given, "webhook-id": ""}, body, 0),
        ({**given, "webhook-timestamp": "1614265331"}, body, 0),
        ({**given, "webhook-timestamp": ""}, body, 0),
        (
            {
                **given,
                "webhook-signature": given["webhook-signature"].replace("v1", "v2"),
            },
            body,
            0,
        ),
    ]
    for headers, sent, later in wrong:
        with pytest.raises(Unauthenticated):
            check_gitlab(headers, sent, [secret], 1614265330 + later)


def test_one_right_signature_of_several_is_enough() -> None:
    """While a secret is replaced, PagerDuty signs with both, and the settings may have both."""
    body, header = b'{"event": 1}', "x-pagerduty-signature"
    both = f"v1={'0' * 64},v1={sign('new', body)}"
    check_signature({header: both}, header, body, ["old", "new"])
    check_signature({header: both}, header, body, ["new"])
    for wrong in ("", "v1=", f"v1={sign('new', body + b' ')}", "é" * 64, both[:70]):
        with pytest.raises(Unauthenticated):
            check_signature({header: wrong}, header, body, ["new"])


def test_a_signed_time_has_to_be_that_of_now() -> None:
    body, header = b"{}", "x-grafana-alerting-signature"
    headers = {header: sign("s", b"1000:" + body), "x-time": "1000"}
    check_signature(headers, header, body, ["s"], timestamp_header="X-Time", now=1200)
    for now, more in ((1301, {}), (1200, {"x-time": "1001"}), (1200, {"x-time": ""})):
        with pytest.raises(Unauthenticated):
            check_signature(
                {**headers, **more},
                header,
                body,
                ["s"],
                timestamp_header="x-time",
                now=now,
            )


# ------------------------------------------------------------------ any program

FIELDS = FieldSettings(
    alerts="data.checks",
    name="check",
    status="state",
    where="state != 'UNKNOWN'",
    labels={"host": "host.name"},
    severity="level",
    message="join(' ', [check, state])",
    starts_at="since",
    changed_at="at",
    facts={"url": "links[0]", "host": "host"},
)
CHECKS = {
    "checks": [
        {
            "check": "disk",
            "state": "FAILED",
            "host": {"name": "db-1"},
            "level": "fatal",
            "since": 1772359200,
            "at": 1772359260000,
            "links": ["https://checks.example/1"],
        },
        {"check": "disk", "state": "OK", "host": {"name": "db-2"}},
        {"check": "disk", "state": "UNKNOWN", "host": {"name": "db-3"}},
    ]
}
EVENT = {"specversion": "1.0", "id": "1", "source": "/checks", "type": "example.check"}


def _binary() -> tuple[bytes, dict[str, str]]:
    headers = {f"ce-{name}": value for name, value in EVENT.items()}
    return json.dumps(CHECKS).encode(), {"content-type": "application/json", **headers}


def _structured(**more: Any) -> tuple[bytes, dict[str, str]]:
    body = json.dumps({**EVENT, **more}).encode()
    return body, {"content-type": "application/cloudevents+json; charset=utf-8"}


@pytest.mark.parametrize(
    "request_",
    [
        (json.dumps({"data": CHECKS}).encode(), {"content-type": "application/json"}),
        _binary(),
        _structured(data=CHECKS),
        _structured(data_base64=base64.b64encode(json.dumps(CHECKS).encode()).decode()),
        (
            json.dumps([{**EVENT, "data": CHECKS}]).encode(),
            {"content-type": "application/cloudevents-batch+json"},
        ),
    ],
    ids=["json", "binary", "structured", "base64", "batch"],
)
def test_fields_are_found_by_jmespath_also_in_cloudevents(
    request_: tuple[bytes, dict[str, str]],
) -> None:
    body, headers = request_
    failed, fine = read_delivery("generic", body, headers, FIELDS).alerts
    assert (failed.name, failed.firing, failed.severity) == ("disk", True, "fatal")
    assert (failed.starts_at, failed.changed_at) == (AT, AT.replace(minute=1))
    assert failed.labels == {"host": "db-1"}
    assert failed.annotations == {"summary": "disk FAILED"}
    assert failed.facts == {
        "url": "https://checks.example/1",
        "host": '{"name": "db-1"}',
    }
    assert not fine.firing


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (_structured(specversion="2.0", data=CHECKS), "specversion"),
        (_structured(id="", data=CHECKS), "id: is missing"),
        (_structured(data_base64="%%"), "is not base64"),
        ((b'{"data": {"checks": [{"state": "x"}]}}', {}), "name"),
        ((b'{"data": {"checks": [{"check": "x"}]}}', {}), "status"),
        ((b'{"data": {"checks": [{"check": {}}]}}', {}), "expected a text"),
        (
            (b'{"data": {"checks": [{"check": "x", "state": 1}]}}', {}),
            "invalid type",
        ),
    ],
)
def test_what_the_settings_do_not_find_is_named(
    request_: tuple[bytes, dict[str, str]], says: str
) -> None:
    with pytest.raises(Unreadable, match=says):
        read_delivery("generic", *request_, FIELDS)


@pytest.mark.parametrize(
    "given_",
    [
        {"sender": "pagerduty"},
        {"sender": "generic"},
        {"sender": "grafana", "fields": {"name": "a"}},
        {"sender": "generic", "fields": {"name": "a["}},
        {"sender": "grafana", "signing_secrets": [" "]},
    ],
)
def test_settings_that_cannot_work_are_refused(given_: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PushedSettings.model_validate({"name": "a", "kind": "alerts", **given_})


def test_settings_name_component_and_severity() -> None:
    def reader(**more: Any) -> AlertReader:
        written = {"name": "a", "sender": "alertmanager", **more}
        return PushedSubject(PushedSettings.model_validate(written)).alerts

    alert = read(
        "alertmanager",
        alertmanager_body(alertmanager_alert(team="shop", severity="P2")),
    ).alerts[0]
    plain = reader().signal(alert)
    assert plain is not None and plain.severity is not None
    assert (plain.component, plain.severity.label) == (
        "instance=db-1:9100, team=shop",
        "critical",
    )
    chosen = reader(component=["team"], severities={"p2": "info"}).signal(alert)
    assert chosen is not None and chosen.severity is not None
    assert (chosen.component, chosen.severity.label) == ("team=shop", "info")
    template = reader(component="{team}/{instance}").signal(alert)
    assert template is not None and template.component == "shop/db-1:9100"
    assert reader(ignore=["HostDown"]).signal(alert) is None
    assert (
        reader(invariants={"alert": {"ignore": [{"team": "sh*"}]}}).signal(alert)
        is None
    )
    heartbeat = reader(heartbeat={"alert": "HostDown"})
    assert heartbeat.is_heartbeat(alert) and heartbeat.signal(alert) is None


def test_matchers_see_the_label_of_the_severity() -> None:
    """A silence of what is not urgent silences nothing else, and an `ignore` counts for what fires already."""

    def signals(**more: Any) -> AlertReader:
        given = {"name": "a", "sender": "alertmanager", "severity_label": "level"}
        return PushedSubject(PushedSettings.model_validate({**given, **more})).alerts

    body = alertmanager_body(alertmanager_alert(level="P1"))
    found = signals().signal(read("alertmanager", body).alerts[0])
    assert found is not None and found.severity is not None
    key = Key("a", found.invariant, found.component)
    labels = labels_of(key, found.severity, found.facts)
    assert not match_all(parse_matchers('level!="P1"'), labels)
    kept = KeptAlert(
        "f",
        True,
        found.invariant,
        found.component,
        found.severity,
        found.message,
        found.facts,
    )
    left_out = {"alert": {"ignore": [{"level": "P1"}]}}
    assert signals().counts(kept)
    assert not signals(invariants=left_out).counts(kept)


# ------------------------------------------------------------------ anything

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["\ud800", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
BODIES = {
    "alertmanager": alertmanager_body(alertmanager_alert()),
    "grafana": alertmanager_body({**alertmanager_alert(), "values": {"A": 1}}),
    "pagerduty": incident("incident.triggered", "2026-03-01T10:00:01Z"),
    "generic": {"data": CHECKS},
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a document."""
    inner = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        inner = enumerate(value)
    return [path, *(one for key, part in inner for one in places(part, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of a document with another value at a path."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@given(st.data())
@settings(max_examples=300, deadline=None)
async def test_any_value_in_any_place_is_read_or_refused(data: st.DataObject) -> None:
    sender = data.draw(st.sampled_from(sorted(BODIES)))
    body = BODIES[sender]
    for _ in range(data.draw(st.integers(1, 3))):
        body = changed(body, data.draw(st.sampled_from(places(body))), data.draw(JUNK))
    more: dict[str, Any] = {"signing_secrets": ["s"]} if sender == "pagerduty" else {}
    fields = FIELDS.model_dump() if sender == "generic" else None
    subject = PushedSubject(
        PushedSettings.model_validate(
            {"name": "a", "sender": sender, "fields": fields, **more}
        )
    )
    content = json.dumps(body, allow_nan=False).encode()
    try:
        delivery = read_delivery(sender, content, {}, subject.settings.fields)
    except Unreadable as refused:
        assert clean(refused.one_line()) == refused.one_line()
        return
    push = await AlertIntake(Sanitizer(Redactor()), None).push(subject, delivery)
    for one in push.alerts:
        assert one.component and len(one.component) <= 300
        for text in (one.component, one.message, one.invariant, one.fingerprint):
            assert "\n" not in text
        one.fingerprint.encode(), one.component.encode(), one.invariant.encode()
