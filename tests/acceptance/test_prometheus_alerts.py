"""The alerts of a server that speaks Prometheus' API."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import Any

import pytest

from midwatch.model import Severity
from midwatch.subjects.prometheus import PrometheusSubject
from midwatch.testing.subject_conformance import check_kind, check_subject, tickets_for

from ..waiting import PATIENCE
from .prometheus_server import (
    HOT,
    ROOM,
    Server,
    alert,
    alerting,
    observe_once,
    serving,
    subject,
    verdicts,
)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as state:
        yield state


async def test_firing_alerts_conform_and_carry_their_labels(server: Server) -> None:
    server.rules = [
        alerting("Down", alert(instance="b", job="db", severity="page")),
        alerting("Down", alert(instance="b", job="db", severity="warning")),
        alerting("Slow", alert("pending", instance="a")),
        alerting("Watchdog", alert()),
        alerting("InfoInhibitor", alert(severity="none"), health="err"),
        alerting("Bare", alert(severity="info")),
    ]
    check_kind(PrometheusSubject)
    prom = subject(server.url)
    observation = await check_subject(prom)
    assert observation is not None
    down, bare = observation.signals
    # Two rules of one name and other severities are one ticket, with the worse of them.
    assert (down.invariant, down.component) == ("alert:Down", "instance=b, job=db")
    assert (down.severity, bare.severity) == (Severity.CRITICAL, Severity.INFO)
    assert down.message == "Down: {{ not for us }} it is down"
    assert down.facts["label_job"] == "db"
    assert down.facts["runbook_url"] == "https://runbooks.example/down"
    assert bare.component == "Bare"
    assert observation.covers("alert:Slow") and observation.covers("alert:Watchdog")
    assert observation.ignored["alert"] == (
        "InfoInhibitor (1 alert)",
        "Watchdog (1 alert)",
    )


NEVER = "0001-01-01T00:00:00Z"
NO_DATA = alert("NoData", instance="a")
NOT_SEEN: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    # how alert:Down cannot be seen: the rules, other attributes of the server, and what is unavailable then
    "failing": ([alerting("Down", health="err", lastError="e")], {}, "alert:Down"),
    "Grafana: failing": ([alerting("Down", health="error")], {}, "alert:Down"),
    "one of two fails": (
        [alerting("Down"), alerting("Down", health="err")],
        {},
        "alert:Down",
    ),
    "restarted": ([alerting("Down", health="unknown")], {}, ""),
    "vmalert: restarted": ([alerting("Down", lastEvaluation=NEVER)], {}, ""),
    "Grafana: no state yet": ([alerting("Down", state="unknown")], {}, ""),
    "no health": ([alerting("Down", health=None)], {}, ""),
    "another word": ([alerting("Down", health="odd")], {}, ""),
    "Grafana: no data": ([alerting("Down", health="nodata")], {}, ""),
    "Grafana: one without data": ([alerting("Down", NO_DATA)], {}, ""),
    "Grafana: paused": ([alerting("Down", isPaused=True)], {}, ""),
    "deleted": ([alerting("New")], {}, ""),
    "all deleted": ([], {}, ""),
    "Thanos: a ruler is away": (
        [alerting("Down")],
        {"remarks": {"warnings": ["no rules from 10.0.0.1"]}},
        "alert",
    ),
    "one page of them": (
        [alerting("Down")],
        {"more": {"groupNextToken": "n"}},
        "alert",
    ),
    "breaks off": (
        [alerting("Down"), alerting("New", alert("pending", instance="z"))],
        {"cut": 30},
        "alert",
    ),
}


@pytest.mark.parametrize("case", NOT_SEEN)
async def test_an_alert_that_cannot_be_seen_is_unknown(
    server: Server, case: str
) -> None:
    rules, attributes, unavailable = NOT_SEEN[case]
    prom = subject(server.url)
    server.rules = [alerting("Down", alert(instance="a")), alerting("Other")]
    seen = await observe_once(prom)
    assert verdicts(prom, seen)[0] == {("alert:Down", "instance=a")}

    server.rules = [*rules, alerting("Other")] if rules else []
    for name, value in attributes.items():
        setattr(server, name, value)
    for _ in range(3):
        seen = await observe_once(prom, seen)
        broken, known = verdicts(prom, seen)
        assert ("alert:Down", "instance=a") not in broken
        assert not known("alert:Down", "instance=a")
        assert set(seen.unavailable) == ({unavailable} if unavailable else set())
        if not unavailable:
            assert seen.unsupported  # the reason, for a person
    if case != "all deleted":
        assert known("alert:Other", "instance=a") == (unavailable != "alert")

    server.remarks, server.more, server.cut = {}, {}, 0
    # It waits for its duration again: it was never clear.
    server.rules = [alerting("Down", alert("pending", instance="a"))]
    waits = await observe_once(prom, seen)
    assert verdicts(prom, waits)[0] == {("alert:Down", "instance=a")}
    server.rules = [alerting("Down")]
    clear = await observe_once(prom, seen)
    await prom.close()
    assert verdicts(prom, clear)[1]("alert:Down", "instance=a")
    assert clear.state["alerts"] == {} and not clear.unsupported


async def test_an_alert_that_waits_again_is_still_broken(server: Server) -> None:
    prom = subject(server.url)
    server.rules = [
        alerting("Down", alert(instance="a"), alert("pending", instance="b"))
    ]
    first = await observe_once(prom)
    server.rules = [alerting("Down", alert("pending", instance="a"))]
    second = await observe_once(prom, first)
    server.rules = [alerting("Down")]
    third = await observe_once(prom, second)
    await prom.close()
    assert [s.component for s in first.signals] == ["instance=a"]
    assert [s.component for s in second.signals] == ["instance=a"]
    assert not third.signals and third.state == {"alerts": {}, "rules": {}}


@pytest.mark.parametrize(
    ("state", "fires"),
    [
        ("Alerting", True),
        ("Alerting (NoData)", True),
        ("Recovering", True),
        ("Normal", False),
        ("Normal (Error)", False),
        ("Pending", False),
        ("inactive", False),
    ],
)
async def test_the_states_of_other_rulers(
    server: Server, state: str, fires: bool
) -> None:
    rule = alerting("Disk full", alert(state, instance="a"))
    server.rules = [
        {"alerts": rule.pop("alerts"), **rule},  # before the name of the rule
        alerting("recorded", type="recording", health="err"),
    ]
    prom = subject(server.url)
    observation = await observe_once(prom)
    await prom.close()
    broken, known = verdicts(prom, observation)
    assert broken == ({("alert:Disk full", "instance=a")} if fires else set())
    assert not observation.unavailable
    assert fires or known("alert:Disk full", "instance=a")


async def test_a_rule_that_fires_without_naming_its_alerts_is_broken(
    server: Server,
) -> None:
    prom = subject(server.url)
    server.rules = [alerting("Down", state="firing"), alerting("Other")]
    del server.rules[0]["alerts"]
    observation = await observe_once(prom)
    await prom.close()
    assert verdicts(prom, observation)[0] == {("alert:Down", "Down")}


async def test_one_that_is_listed_as_normal_is_clear_beside_one_without_data(
    server: Server,
) -> None:
    prom = subject(server.url)
    server.rules = [alerting("Down", alert(instance="a"), alert(instance="b"))]
    seen = await observe_once(prom)
    server.rules = [alerting("Down", alert("Normal", instance="a"), NO_DATA)]
    known = verdicts(prom, await observe_once(prom, seen))[1]
    await prom.close()
    assert known("alert:Down", "instance=a") and not known("alert:Down", "instance=b")


def crash_loops(count: int) -> list[dict[str, Any]]:
    """Return alerts of 9 kB each."""
    text = {"summary": "Pod is crash looping.", "description": "x" * 9000}
    return [
        {**alert(pod=f"cart-{n:05}", severity="warning"), "annotations": text}
        for n in range(count)
    ]


async def test_in_a_storm_the_most_urgent_alerts_have_tickets(server: Server) -> None:
    many = crash_loops(1000)
    quiet = alerting("Quiet", alert(pod="z", severity="warning"))
    server.rules = [alerting("Crash", *many), quiet]
    prom = subject(server.url, timeout=PATIENCE)
    first = await check_subject(prom)
    assert first is not None and first.covers("alert") and not first.unavailable
    named = [signal.component for signal in first.signals]
    assert len(named) == 12 and "pod=z" in named and named[-1] == "more"
    assert first.signals[-1].message == "and 990 more alerts fire: Crash ×990"

    # The evidence has those with a ticket, wherever they are in the list.
    server.rules[0]["alerts"].reverse()
    sources = prom.sources(tickets_for(prom, first))
    [alerts] = [one for one in sources if one.title == "Firing and pending alerts"]
    text = await alerts.fetch()
    assert all(
        f" Crash since 2026-01-01T00:00:00Z: alertname=ignored here, {name}" in text
        for name in named
        if name.startswith("pod=cart")
    )
    assert "more; in all Crash ×1,000, Quiet ×1" in text

    # A critical one comes late and last; what has a ticket keeps it, whatever comes.
    server.rules = [
        alerting("Aaa", *(alert(pod=f"{n}") for n in range(50))),
        *server.rules,
        alerting("Down", alert(severity="critical")),
    ]
    second = await observe_once(prom, first)
    assert second.signals[0].invariant == "alert:Down"
    assert set(named) <= {signal.component for signal in second.signals}
    assert len(second.signals) <= 42

    server.rules = [alerting("Crash", many[999]), alerting("Quiet")]
    third = await observe_once(prom, second)
    await prom.close()
    broken, known = verdicts(prom, third)
    assert len(broken) == 1 and known("alert", "more") and known("alert:Quiet", "pod=z")
    assert not known("alert:Down", "Down")  # its rule is gone


async def test_many_rules_that_fail_are_one_ticket(server: Server) -> None:
    server.rules = [alerting(f"R{n}", health="err", lastError="e") for n in range(300)]
    prom = subject(server.url)
    observation = await check_subject(prom)
    assert observation is not None
    assert observation.unavailable.keys() == {"alert"}
    assert "300 rules fail" in observation.unavailable["alert"]
    assert not observation.covers("alert:R7")


async def test_alerts_and_series_are_left_out_by_their_labels(server: Server) -> None:
    server.rules = [
        alerting("Down", alert(ns="test-1"), alert(ns="shop")),
        alerting("Flaky", health="err", labels={"team": "lab"}),
    ]
    server.answers["temp"] = [(ROOM, "90"), ({"room": "b"}, "91")]
    prom = subject(
        server.url,
        {**HOT, "ignore": [{"room": "b*"}]},
        invariants={"alert": {"ignore": [{"ns": "test-*"}, {"team": "lab"}]}},
    )
    observation = await check_subject(prom)
    assert observation is not None
    broken, known = verdicts(prom, observation)
    assert broken == {("alert:Down", "ns=shop"), ("hot", "room=a")}
    assert known("alert:Down", "ns=test-1") and known("hot", "room=b")
    assert observation.ignored == {"alert": ("Down (1 alert)",), "hot": ("room=b",)}
    assert not observation.unavailable
    # An invariant's own `ignore` replaces that of its rule.
    prom = subject(
        server.url,
        {**HOT, "ignore": [{"room": "b*"}]},
        invariants={"hot": {"ignore": [{"room": "a"}]}},
        alerts=False,
    )
    observation = await observe_once(prom)
    await prom.close()
    assert verdicts(prom, observation)[0] == {("hot", "room=b")}


async def test_a_storm_that_comes_compressed(server: Server) -> None:
    """As from a proxy that compresses whatever was asked for."""
    reply = server.reply

    def compressed(path: str, query: dict[str, list[str]]) -> tuple[int, str, bytes]:
        status, kind, body = reply(path, query)
        return status, f"{kind}\r\nContent-Encoding: gzip", gzip.compress(body)

    server.reply = compressed  # type: ignore[method-assign]
    server.rules = [alerting("Crash", *crash_loops(1000))]
    prom = subject(server.url, timeout=PATIENCE)
    observation = await check_subject(prom)
    assert observation is not None and len(observation.signals) == 11
