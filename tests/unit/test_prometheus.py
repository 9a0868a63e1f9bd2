"""What becomes of alerts, series and their names, whatever a server sends; and how long answers are read."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.matchers import match_all, parse_matchers
from midwatch.model import Key, Severity
from midwatch.silences import labels_of
from midwatch.subjects.json_stream import LONGEST_VALUE, JsonFeed, JsonText
from midwatch.subjects.prometheus_alerts import MAX_ALERTS, AlertTally
from midwatch.subjects.prometheus_api import Alert, AlertRule, Remarks
from midwatch.subjects.prometheus_series import component, fill, label_facts
from midwatch.subjects.prometheus_settings import (
    ALERT,
    PrometheusSettings,
    RuleSettings,
)

# ------------------------------------------------------------------ long answers

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def read(data: bytes, cuts: list[int]) -> tuple[JsonFeed, list[Any]]:
    """Feed a document in pieces; return the feed, and the items of its list `long`."""
    text = JsonText()
    items: list[Any] = []

    def item() -> Any:
        items.append((yield from text.value()))

    feed = JsonFeed(text.object({"long": lambda _: text.array(item)}))
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
    for start, end in zip([0, *ends], ends, strict=False):
        feed.feed(data[start:end])
    feed.feed(b"", final=True)
    return feed, items


@given(
    st.dictionaries(st.text(), VALUES, max_size=3),
    st.lists(VALUES, max_size=5),
    st.lists(st.integers(0, 10_000), max_size=8),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_a_document_in_pieces_reads_like_a_whole_one(
    before: dict[str, Any], long: list[Any], cuts: list[int], ascii: bool, indent: Any
) -> None:
    document = {**before, "long": long, "after": 1}
    data = json.dumps(document, ensure_ascii=ascii, indent=indent)
    whole = data.encode(errors="replace")
    feed, items = read(b"\xef\xbb\xbf" + whole, cuts)
    expected = json.loads(whole)
    assert feed.error is None and items == expected["long"]
    assert feed.result == {**expected, "long": None}


def test_a_number_that_is_cut_anywhere_is_read_whole() -> None:
    numbers = [1.5, -0.25, 1e300, 5e-324, -7, 1435781451.781]
    data = json.dumps({"long": numbers, "after": 2.5}).encode()
    for first in range(len(data)):
        feed, items = read(data, [first, first + 1])
        assert (feed.error, items) == (None, numbers), data[:first]
        assert feed.result == {"long": None, "after": 2.5}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'{"long": [1, 2',
        b'{"long": {}}',
        b'{"long": [1 2]}',
        b'{"a": 1,}',
        b"{1: 2}",
        b'{"a" 1}',
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "' + b"x" * (LONGEST_VALUE + 70_000),
        b"<html>",
        b"\xff\xfe{\0}\0",
    ],
)
def test_anything_else_is_an_error(data: bytes) -> None:
    feed, _ = read(data, list(range(0, len(data), 65_536)))
    assert feed.error is not None or feed.result is None


def test_null_is_an_empty_list() -> None:
    assert read(b'{"long": null}', [])[1] == []


# ------------------------------------------------------------------ storms

SETTINGS = PrometheusSettings.model_validate({"name": "prom", "url": "http://a"})


def rule(name: str) -> AlertRule:
    return AlertRule(name, "g", "up", 0.0, {}, "ok", "")


def storm(alerts: list[Alert], before: Any = None) -> Any:
    tally = AlertTally(SETTINGS, ALERT, before or {})
    for one in alerts:
        tally.add(one)
    return tally.conclude([rule(one.name) for one in alerts], Remarks())


def many(name: str, count: int, severity: str = "warning", start: int = 0) -> list[Any]:
    return [
        Alert(name, {"n": f"{n:06}", "severity": severity}, {}, "firing", "")
        for n in range(start, start + count)
    ]


def counts(findings: Any) -> Counter[str]:
    return Counter(one.invariant for one in findings.signals)


def test_every_rule_has_its_turn_and_critical_ones_come_first() -> None:
    alerts = [
        *many("Aaa", 9000),
        *many("Info", 100, "info"),
        *many("Bbb", 3),
        *many("Ccc", 500),
        *many("Page", 7000, "page"),
        *many("Last", 1, "critical"),
    ]
    found = storm(alerts)
    assert counts(found) == {
        "alert:Last": 1,
        "alert:Page": 10,
        "alert:Aaa": 10,
        "alert:Bbb": 3,
        "alert:Ccc": 10,
        "alert:Info": 6,
        "alert": 1,
    }
    assert found.signals[0].severity is Severity.CRITICAL
    more = found.signals[-1]
    assert (more.component, more.severity) == ("more", Severity.CRITICAL)
    assert more.facts["alerts"] == len(alerts) - 40
    # The same of them, in whatever order they come.
    assert storm(alerts[::-1]).signals == found.signals


def test_in_a_storm_that_goes_on_every_ticket_stays_and_few_are_added() -> None:
    seen = storm(many("Old", MAX_ALERTS))
    assert counts(seen) == {"alert:Old": MAX_ALERTS}
    for step in range(1, 5):
        alerts = [
            *many("Old", MAX_ALERTS),
            *many("New", 100 * step),
            *many("Page", 100, "critical", start=10 * step),
        ]
        before = {(one.invariant, one.component) for one in seen.signals}
        firing = {(f"alert:{one.name}", f"n={one.labels['n']}") for one in alerts}
        seen = storm(alerts, seen.remembered)
        now = {(one.invariant, one.component) for one in seen.signals}
        assert before & firing <= now
        assert len(now) <= 2 * MAX_ALERTS + 1
        assert not counts(seen)["alert:New"]  # the old ones have the places


def test_forty_alerts_are_no_storm() -> None:
    assert counts(storm(many("Aaa", 40))) == {"alert:Aaa": 40}
    assert counts(storm(many("Aaa", 41))) == {"alert:Aaa": 10, "alert": 1}


# ------------------------------------------------------------------ names


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1), max_size=4))
def test_other_labels_are_another_component(labels: dict[str, str]) -> None:
    every = RuleSettings.model_validate({"name": "hot", "expr": "temp"})
    changed = [
        {**labels, "__name__": "another"},
        {**labels, "a": labels.get("a", "") + " "},
        {**labels, "a": labels.get("a", "") + ", b=1"},
        {**labels, "b": "1"},
    ]
    for other in changed:
        if other != labels:
            assert component(every, other) != component(every, labels)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{instance}/{job}", "db:9100/"),
        ("{service.name} on {k8s/pod}", "shop on p-1"),
        ("{my label} {größe} {missing.one}", "x 3 "),
        ("{__name__}: {value} {not a label}", "up: 7 {not a label}"),
        ('{"json": 1} {{instance}}', '{"json": 1} {db:9100}'),
    ],
)
def test_names_of_utf_8_are_placeholders(template: str, expected: str) -> None:
    values = {
        "__name__": "up",
        "instance": "db:9100",
        "service.name": "shop",
        "k8s/pod": "p-1",
        "my label": "x",
        "größe": "3",
        "value": "7",
    }
    assert fill(template, values) == expected


def test_severities_of_the_settings_are_found_in_any_case() -> None:
    given = {"name": "p", "url": "http://a", "severities": {"SEV1": "critical"}}
    settings = PrometheusSettings.model_validate(given)
    assert settings.severity("Sev1") is Severity.CRITICAL
    assert settings.severity("odd") is Severity.WARNING


def test_matchers_see_many_labels_and_the_facts_say_what_is_left_out() -> None:
    """As those of Kubernetes' pods and nodes together."""
    labels = {f"l{n:03}": str(n) for n in range(60)} | {"zone": "b"}
    facts = label_facts(labels)
    assert len(facts) == 61 and "labels_left_out" not in facts
    key = Key("prom", "alert:Down", "x")
    seen = labels_of(key, Severity.WARNING, facts)
    assert match_all(parse_matchers('zone="b"'), seen)
    assert not match_all(parse_matchers('zone!="b"'), seen)
    many = label_facts({f"l{n:03}": "" for n in range(130)})
    assert many["labels_left_out"] == 30 and len(many) == 101
