"""Rules in PromQL against a server that speaks Prometheus' API."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from midwatch.errors import ObservationFailed
from midwatch.testing.subject_conformance import check_subject

from ..waiting import PATIENCE
from .prometheus_server import (
    BAD,
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


async def test_limits_are_held_against_each_series(server: Server) -> None:
    server.answers["temp"] = [
        (ROOM, "90.5"),
        ({"room": "a", "sensor": "2"}, "70"),
        ({"room": "b"}, "20"),
        ({"room": "c"}, "+Inf"),
        ({"room": "d"}, "NaN"),
    ]
    prom = subject(
        server.url,
        {**HOT, "for": "2m", "severity": "critical", "message": "{room} has {value}"},
        alerts=False,
    )
    observation = await check_subject(prom)
    assert observation is not None
    broken, known = verdicts(prom, observation)
    assert broken == {("hot", "room=a"), ("hot", "room=c")}
    assert known("hot", "room=b") and not known("hot", "room=d")
    assert [s.message for s in observation.signals][:1] == ["a has 90.5"]
    [invariant] = prom.invariants
    assert (invariant.limit, invariant.hold_for) == (80, 120)
    assert observation.state["rules"] == {"hot": ["room=a", "room=c"]}


async def test_a_broken_series_that_vanishes_stays_unknown_until_it_returns(
    server: Server,
) -> None:
    prom = subject(server.url, HOT, alerts=False)
    rest = [({"room": "b"}, "20")]
    server.answers["temp"] = [(ROOM, "90"), *rest]
    seen = await observe_once(prom)
    server.answers["temp"] = rest
    for _ in range(2):
        seen = await observe_once(prom, seen)
        broken, known = verdicts(prom, seen)
        assert not broken
        assert not known("hot", "room=a") and known("hot", "room=b")
        assert not seen.unavailable  # the series is unknown, the rule is not
    server.answers["temp"] = [(ROOM, "30"), *rest]
    seen = await observe_once(prom, seen)
    assert verdicts(prom, seen)[1]("hot", "room=a")
    assert seen.state["rules"] == {}

    server.answers["temp"] = []
    assert "returns no series" in (await observe_once(prom, seen)).unsupported["hot"]
    forgiving = subject(server.url, {**HOT, "absent": "clear"}, alerts=False)
    assert (await observe_once(forgiving)).covers("hot")
    await prom.close()
    await forgiving.close()


SERIES_NOT_SEEN: dict[str, tuple[Any, bool]] = {
    # how hot of room a cannot be seen, and whether the rest of its rule can
    "gone": ([({"room": "b"}, "20")], True),
    "not a number": ([({"room": "b"}, "20"), (ROOM, "NaN")], True),
    "no series": ([], False),
    "wrong": (BAD, False),
    "proxy": ((503, "text/html", b"<h1>Service Unavailable</h1>"), False),
    "null": ({"status": "success", "data": None}, False),
    "a store is away": (
        {
            "status": "success",
            "warnings": ["receive 10.0.0.1: deadline exceeded"],
            "data": {"resultType": "vector", "result": []},
        },
        False,
    ),
}


@pytest.mark.parametrize("case", SERIES_NOT_SEEN)
async def test_a_series_that_cannot_be_seen_is_unknown(
    server: Server, case: str
) -> None:
    prom = subject(server.url, HOT, {"name": "ok", "expr": "ok", "above": 1})
    server.rules = [alerting("Down")]
    server.answers["ok"] = [({}, "0")]
    server.answers["temp"] = [(ROOM, "90"), ({"room": "b"}, "20")]
    seen = await observe_once(prom)
    server.answers["temp"], rest = SERIES_NOT_SEEN[case]
    for _ in range(3):
        seen = await observe_once(prom, seen)
        broken, known = verdicts(prom, seen)
        assert not broken and not known("hot", "room=a")
        assert known("hot", "room=b") == rest
        reasons = {**seen.unavailable, **seen.unsupported}
        assert ("hot" in reasons) != rest
        # A rule that never returned a series is a warning; for one that did, the monitor opens a ticket.
        assert ("hot" in seen.unsupported) == (case == "no series")
    server.answers["temp"] = [(ROOM, "20")]
    seen = await observe_once(prom, seen)
    await prom.close()
    assert verdicts(prom, seen)[1]("hot", "room=a") and not seen.state["rules"]


@pytest.mark.parametrize(
    "remarks",
    [
        {"infos": ['PromQL info: metric might not be a counter: "temp" (1:6)']},
        {"infos": ["anything"], "warnings": []},
        {"warnings": ["PromQL info: metric might not be a counter"]},
        {"warnings": ["PromQL warning: bucket label is missing"], "infos": None},
        {"isPartial": False},
    ],
)
async def test_advice_on_the_expression_is_no_failure(
    server: Server, remarks: dict[str, Any]
) -> None:
    data = {
        "resultType": "vector",
        "result": [{"metric": {"room": "a"}, "value": [0, "1"]}],
    }
    server.answers["temp"] = {"status": "success", "data": data, **remarks}
    prom = subject(server.url, HOT, alerts=False)
    observation = await observe_once(prom)
    await prom.close()
    assert observation.covers("hot") and not observation.unavailable


async def test_in_a_storm_the_worst_series_have_tickets(server: Server) -> None:
    queue = {"name": "age", "expr": "temp", "above": 5}
    prom = subject(server.url, queue, alerts=False, timeout=PATIENCE)

    def answer(*values: float) -> None:
        server.answers["temp"] = [
            ({"queue": f"{n:05}", "note": "x" * 9000}, str(value))
            for n, value in enumerate(values)
        ]

    answer(*range(1100))  # some 10 MB
    first = await check_subject(prom)
    assert first is not None and first.covers("age")
    broken, _ = verdicts(prom, first)
    assert len(broken) == 11 and ("age", "more") in broken
    assert "age: and 1,084 more series are broken (limit 5)" in [
        signal.message for signal in first.signals
    ]
    # Those that have a ticket keep it, though others are worse now.
    answer(*range(1110, 10, -1))
    second, _ = verdicts(prom, await observe_once(prom, first))
    assert broken <= second and len(second) == 11
    # Many series within the limit are all known.
    answer(*[0.0] * 1100)
    third = await observe_once(prom, first)
    await prom.close()
    assert not verdicts(prom, third)[0] and third.covers("age")
    assert not third.unavailable and len(third.signals) <= 1000


async def test_series_of_two_metrics_are_two_components(server: Server) -> None:
    server.answers["temp"] = [
        ({"__name__": "queue_in", "service.name": "a", "pod": "1"}, "90"),
        ({"__name__": "queue_out", "service.name": "a", "pod": "1"}, "91"),
        ({"service.name": "b, pod=1", "pod": ""}, "92"),
        ({"service.name": "b", "pod": "1"}, "93"),
    ]
    rule = {"name": "hot", "expr": "temp", "above": 80}
    prom = subject(
        server.url,
        rule,
        {**rule, "name": "named", "component": "{service.name}/{pod}"},
        {**rule, "name": "listed", "component": ["service.name", "__name__"]},
        alerts=False,
    )
    observation = await check_subject(prom)
    assert observation is not None
    found = [(one.invariant, one.component) for one in observation.signals]
    hot = [component for name, component in found if name == "hot"]
    assert len(set(hot)) == len(hot) == 4
    assert hot[0] == "queue_in{pod=1, service.name=a}"
    named = {component for name, component in found if name == "named"}
    assert named == {"a/1", "b, pod=1/", "b/1"}
    assert ("listed", "__name__=queue_out, service.name=a") in found


async def test_without_a_limit_every_series_is_a_violation(server: Server) -> None:
    prom = subject(server.url, {"name": "stuck", "expr": "queue > 5"}, alerts=False)
    server.answers["queue > 5"] = [({"queue": "mail"}, "7")]
    assert verdicts(prom, await check_subject(prom))[0] == {("stuck", "queue=mail")}
    server.answers["queue > 5"] = []
    well = await observe_once(prom)
    await prom.close()
    assert not well.signals and well.covers("stuck")


async def test_a_rule_that_cannot_be_asked_leaves_the_others(server: Server) -> None:
    odd: dict[str, Any] = {
        "bad": BAD,
        "html": (502, "text/html", b"<h1>Bad Gateway</h1>"),
        "deep": (200, "application/json", b"[" * 100_000),
        "long": (200, "application/json", b'{"status": "' + b"x" * 9_000_000 + b'"}'),
        "away": {
            "status": "success",
            "isPartial": True,
            "data": {"resultType": "vector", "result": []},
        },
        "matrix": {"status": "success", "data": {"resultType": "matrix", "result": []}},
        "shape": {"status": "success", "data": {"resultType": "vector", "result": [1]}},
        "partial": {
            "status": "success",
            "warnings": ["store x is away"],
            "data": {
                "resultType": "vector",
                "result": [{"metric": {"i": "a"}, "value": [0, "99"]}],
            },
        },
    }
    server.answers.update(odd)
    server.answers["good"] = [({"i": "a"}, "1")]
    rules = [{"name": name, "expr": name, "above": 5} for name in [*odd, "good"]]
    prom = subject(server.url, *rules, alerts=False)
    observation = await check_subject(prom)
    assert observation is not None
    assert observation.covered == {"good"}
    assert observation.unavailable.keys() == odd.keys()
    assert "bad: the server refused with status 400: bad_data: 1:5: parse error" in (
        observation.unavailable["bad"]
    )
    assert "text/html instead of" in observation.unavailable["html"]
    assert "storage nodes did not answer" in observation.unavailable["away"]
    # What a partial answer shows to be broken is broken; what it lacks is unknown.
    assert verdicts(prom, observation)[0] == {("partial", "i=a")}


async def test_a_failed_look_forgets_nothing(server: Server) -> None:
    prom = subject(server.url, HOT, {"name": "ok", "expr": "ok", "above": 1})
    server.rules = [alerting("Down", alert(instance="a"))]
    server.answers["temp"] = [(ROOM, "90")]
    seen = await observe_once(prom)
    server.answers["temp"] = BAD
    again = await observe_once(prom, seen)
    await prom.close()
    assert again.state == seen.state and again.state["rules"] == {"hot": ["room=a"]}


async def test_a_server_that_does_not_answer_is_a_failed_observe_once(
    server: Server,
) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        await check_subject(subject(url, HOT), observable=False)
        with pytest.raises(
            ObservationFailed, match="did not answer: connection refused"
        ):
            await subject(url).observe({})
    server.hang.clear()
    rules = [{"name": f"r{n}", "expr": "x", "above": 1} for n in range(400)]
    prom = subject(server.url, *rules, timeout=0.5)
    with pytest.raises(ObservationFailed, match="no answer within"):
        # One limit for all of them: one each would be minutes.
        await asyncio.wait_for(prom.observe({}), PATIENCE)
    await prom.close()
