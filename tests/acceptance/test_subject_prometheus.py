"""The kind `prometheus` against a server that speaks its API, and against the real one where it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import ValidationError

from midwatch.errors import ObservationFailed, SettingsError
from midwatch.model import Key, Observation, Severity
from midwatch.monitor.rules import check
from midwatch.subjects.prometheus import PrometheusSubject, compact
from midwatch.subjects.prometheus_api import Line
from midwatch.testing.subject_conformance import check_kind, check_subject, tickets_for

from ..waiting import PATIENCE

TOKEN = "s3cret-token-value"
BAD = {"status": "error", "errorType": "bad_data", "error": "1:5: parse error"}


class Server:
    """A little Prometheus: rules as given, and one answer for each expression.

    An answer is a list of (labels, value), an envelope (a dict), or (status, type, bytes).
    """

    def __init__(self) -> None:
        self.rules: list[dict[str, Any]] = []
        self.answers: dict[str, Any] = {}
        self.authorization: list[str | None] = []
        self.hang = threading.Event()
        self.hang.set()
        self.url = ""

    def reply(self, path: str, query: dict[str, list[str]]) -> tuple[int, str, bytes]:
        name = path.removeprefix("/prefix/api/v1/")
        if name == "rules":
            groups = [{"name": "g", "rules": self.rules}]
            return self.success({"groups": groups})
        if name == "targets":
            down = {
                "labels": {"job": "db"},
                "health": "down",
                "lastError": "refused",
                "lastScrape": "",
            }
            return self.success({"activeTargets": [down]})
        if name == "status/buildinfo":
            return self.success({"version": "2.42.0"})
        answer = self.answers.get(query["query"][0], [])
        if isinstance(answer, tuple):
            return answer
        if isinstance(answer, dict):
            status = 200 if answer["status"] == "success" else 400
            return status, "application/json", json.dumps(answer).encode()
        if name == "query_range":
            result = [{"metric": m, "values": [[0, v], [60, v]]} for m, v in answer]
            return self.success({"resultType": "matrix", "result": result})
        result = [{"metric": m, "value": [0, v]} for m, v in answer]
        return self.success({"resultType": "vector", "result": result})

    @staticmethod
    def success(data: object, **more: object) -> tuple[int, str, bytes]:
        body = {"status": "success", "data": data, **more}
        return 200, "application/json", json.dumps(body).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            state.authorization.append(self.headers["Authorization"])
            state.hang.wait(PATIENCE)
            status, kind, body = state.reply(parts.path, parse_qs(parts.query))
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{httpd.server_port}/prefix/"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
    thread.start()
    yield state
    state.hang.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def subject(url: str, *rules: dict[str, Any], **settings: Any) -> PrometheusSubject:
    given = {"name": "prom", "url": url, "timeout": 5, "rules": list(rules), **settings}
    return PrometheusSubject(PrometheusSubject.settings_model.model_validate(given))


def alerting(name: str, *alerts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "type": "alerting",
        "name": name,
        "query": "up == 0",
        "duration": 0,
        "health": "ok",
        "alerts": list(alerts),
        **fields,
    }


def alert(state: str = "firing", **labels: str) -> dict[str, Any]:
    return {
        "labels": {"alertname": "ignored here", **labels},
        "annotations": {"summary": "{{ not for us }} it is down"},
        "state": state,
        "activeAt": "2026-01-01T00:00:00Z",
    }


async def observe_once(
    prom: PrometheusSubject, before: Observation | None = None
) -> Observation:
    return await prom.observe(before.state if before else {})


def verdicts(
    prom: PrometheusSubject, observation: Observation
) -> tuple[set[tuple[str, str]], Callable[[str, str], bool]]:
    """The result of the monitor's check of an observation: the broken keys, and which are known."""
    known = {invariant.id: invariant for invariant in prom.invariants}
    checked = check("prom", known, observation, {}, 0.0)
    return (
        {(key.invariant, key.component) for key in checked.broken},
        lambda invariant, component: checked.known(Key("prom", invariant, component)),
    )


# ------------------------------------------------------------------ the server's alerts


async def test_firing_alerts_conform_and_carry_their_labels(server: Server) -> None:
    server.rules = [
        alerting("Down", alert(instance="b", job="db", severity="page")),
        alerting("Down", alert(instance="b", job="db", severity="warning")),
        alerting("Slow", alert("pending", instance="a")),
        alerting("Watchdog", alert()),
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
    assert bare.component == "Bare"
    assert observation.covers("alert:Slow") and observation.covers("alert:Gone")


async def test_an_alert_whose_rule_fails_is_unknown_not_clear(server: Server) -> None:
    server.rules = [
        alerting("Broken", health="err", lastError="many-to-many matching"),
        alerting("New", health="unknown"),
        alerting("Fine"),
    ]
    prom = subject(server.url)
    observation = await observe_once(prom)
    await prom.close()
    assert observation.covers("alert:Fine")
    assert not observation.covers("alert:Broken") and not observation.covers(
        "alert:New"
    )
    assert "many-to-many" in observation.unavailable["alert:Broken"]


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
    assert not third.signals and third.state == {"alerts": [], "rules": {}}


async def test_more_alerts_than_count_leave_the_rest_unknown(server: Server) -> None:
    many = [alert(instance=f"{n:04}") for n in range(700)]
    server.rules = [alerting("Down", *many)]
    prom = subject(server.url)
    observation = await check_subject(prom)
    assert observation is not None
    assert len(observation.signals) == 500
    assert not observation.covers("alert:Down") and not observation.covers("alert:X")


# ------------------------------------------------------------------ rules of the settings

HOT = {"name": "hot", "expr": "temp", "above": 80, "component": ["room"]}
ROOM = {"__name__": "temp", "room": "a", "sensor": "1"}


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
    assert "returns no series" in (await observe_once(prom, seen)).unavailable["hot"]
    forgiving = subject(server.url, {**HOT, "absent": "clear"}, alerts=False)
    assert (await observe_once(forgiving)).covers("hot")
    await prom.close()
    await forgiving.close()


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
        "huge": (200, "application/json", b" " * 9_000_000),
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
    assert "larger than 8 MB" in observation.unavailable["huge"]
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


# ------------------------------------------------------------------ evidence and settings


async def test_evidence_is_compact(server: Server) -> None:
    server.rules = [alerting("Down", alert(instance="a"))]
    server.answers["temp"] = [(ROOM, "90")]
    server.answers["up == 0"] = [({"instance": "a"}, "0")]
    prom = subject(server.url, HOT)
    observation = await check_subject(prom)
    assert observation is not None
    found = {
        source.title: await source.fetch()
        for source in prom.sources(tickets_for(prom, observation))
    }
    await prom.close()
    assert found["Definition of hot"].startswith("rule: hot\nexpr: temp\nabove: 80")
    assert found["hot: values now"] == "room=a, sensor=1: 90\n1 series"
    assert "min 90, max 90, last 90" in found["hot: the last hour"]
    assert "expr: up == 0" in found["Definition of alert:Down"]
    assert "instance=a: 0" in found["alert:Down: values now"]
    assert "firing Down since 2026" in found["Firing and pending alerts"]
    assert found["Scrape targets that are down"].startswith("down job=db: refused")
    assert "version: 2.42.0" in found["Build of the server"]
    points = tuple((60.0 * n, float(n)) for n in range(61))
    assert len(compact(Line({}, points))) < 200


async def test_log_ins_are_sent_and_kept(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    prom = subject(server.url, bearer_token_file=file)
    await observe_once(prom)
    file.write_text("rotated-token")
    await observe_once(prom)
    assert server.authorization == [f"Bearer {TOKEN}", "Bearer rotated-token"]
    assert prom.secrets == ["rotated-token"]
    file.unlink()
    with pytest.raises(ObservationFailed, match="token file"):
        await observe_once(prom)
    await prom.close()
    auth = {"username": "me", "password": "pass-word"}
    prom = subject(server.url, basic_auth=auth)
    await check_subject(prom)
    assert server.authorization[-1] == "Basic bWU6cGFzcy13b3Jk"
    assert set(prom.secrets) == {"pass-word", "bWU6cGFzcy13b3Jk"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"alerts": False},
        {"rules": [{**HOT, "below": 3}]},
        {"rules": [{**HOT, "above": "much"}]},
        {"rules": [HOT, HOT]},
        {"rules": [{**HOT, "name": "alert"}]},
        {"severities": {"sev1": "catastrophe"}},
        {"bearer_token_file": "t", "basic_auth": {"username": "a", "password": "b"}},
    ],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PrometheusSubject.settings_model.model_validate(
            {"name": "prom", "url": "http://a", **wrong}
        )


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="subjects.prom.bearer_token_file"):
        subject("http://a", bearer_token_file=tmp_path / "gone")


# ------------------------------------------------------------------ the real program

DOWN = 'label_replace(vector(0), "job", "gone", "", "")'
UP = 'label_replace(vector(1), "job", "self", "", "")'
# Without targets, since a fresh server scrapes nothing for its first five seconds.
RULES = f"""
groups:
  - name: g
    rules:
      - alert: TargetDown
        expr: {DOWN} == 0
        labels: {{severity: page}}
        annotations: {{summary: "{{{{ $labels.job }}}} is down"}}
      - alert: Waiting
        expr: {DOWN} == 0
        for: 1h
      - alert: Failing
        expr: ({DOWN} or {UP}) * on(none) group_left() ({DOWN} or {UP})
"""


@pytest.fixture
def real(tmp_path: Path) -> Iterator[str]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("the program `prometheus` is not on the PATH")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "rules.yml").write_text(RULES)
    (tmp_path / "prometheus.yml").write_text(
        "global: {evaluation_interval: 200ms}\nrule_files: [rules.yml]\n"
    )
    with subprocess.Popen(
        [
            program,
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        yield f"http://127.0.0.1:{port}"
        process.kill()


async def test_the_real_program(real: str) -> None:
    prom = subject(
        real,
        {
            "name": "targets",
            "expr": f"{DOWN} or {UP}",
            "below": 1,
            "component": "{job}",
        },
        {"name": "wrong", "expr": "up("},
        {"name": "nan", "expr": f"0 / ({UP} * 0)", "above": 1, "component": ["job"]},
    )
    for _ in range(200):
        with contextlib.suppress(ObservationFailed):
            observation = await observe_once(prom)
            unhealthy = "alert:Failing" in observation.unavailable
            if unhealthy and "unknown" not in str(observation.unavailable):
                names = {signal.invariant for signal in observation.signals}
                if names >= {"alert:TargetDown", "targets", "nan"}:
                    break
        await asyncio.sleep(0.05)
    observation = await check_subject(prom) or observation
    broken, known = verdicts(prom, observation)
    assert broken == {
        ("alert:TargetDown", "job=gone"),
        ("targets", "gone"),
    }
    assert known("targets", "self") and known("alert:Waiting", "x")
    assert not known("nan", "job=self")
    assert observation.unavailable.keys() == {"alert:Failing", "wrong"}
    assert "many-to-many" in observation.unavailable["alert:Failing"]
    assert "parse error" in observation.unavailable["wrong"]
    messages = [s.message for s in observation.signals]
    assert "TargetDown: gone is down" in messages
