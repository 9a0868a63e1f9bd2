"""The kind `prometheus`: its connection, evidence and settings, and the real program where it is."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
from pydantic import ValidationError

from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.first_aid import preliminary
from midwatch.agent.grounding import ground
from midwatch.errors import ObservationFailed, SettingsError
from midwatch.lifecycle import SystemClock
from midwatch.model import Observation
from midwatch.playbooks.general import PLAYBOOKS
from midwatch.redaction import Redactor
from midwatch.subjects.prometheus import PrometheusSubject
from midwatch.subjects.prometheus_api import Line
from midwatch.subjects.prometheus_evidence import over_time
from midwatch.subjects.promql import Compared
from midwatch.testing.subject_conformance import check_subject, tickets_for

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

TOKEN = "s3cret-token-value"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as state:
        yield state


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
    assert found["hot: values now"] == "temp{room=a, sensor=1}: 90\n1 series"
    assert "min 90, max 90; > 80 since before" in found["hot: over time"]
    assert "expr: up\n" in found["alert:Down: over time"]
    assert "expr: up == 0" in found["Definition of alert:Down"]
    assert "instance=a: 0" in found["alert:Down: values now"]
    assert "firing Down since 2026" in found["Firing and pending alerts"]
    assert found["Scrape targets that are down"].startswith("down job=db: refused")
    assert "version: 2.42.0" in found["Build of the server"]
    points = tuple((60.0 * n, float(n)) for n in range(61))
    text = over_time(Line({}, points), Compared("x", ">", 30), 60)
    assert "> 30 since 00:31:00 UTC (30 at 00:30:00, then 31)" in text
    assert "trend +1 a minute" in text and len(text) < 300


async def test_log_ins_are_sent_and_kept(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    prom = subject(server.url, bearer_token_file=file)
    await observe_once(prom)
    file.write_text("rotated-token")
    await observe_once(prom)
    sent = dict.fromkeys(headers["Authorization"] for headers in server.requests)
    assert [*sent] == [f"Bearer {TOKEN}", "Bearer rotated-token"]
    assert prom.secrets == ["rotated-token"]
    file.unlink()
    with pytest.raises(ObservationFailed, match="token file"):
        await observe_once(prom)
    await prom.close()
    auth = {"username": "me", "password": "pass-word"}
    prom = subject(server.url, basic_auth=auth)
    await check_subject(prom)
    assert server.requests[-1]["Authorization"] == "Basic bWU6cGFzcy13b3Jk"
    assert set(prom.secrets) == {"pass-word", "bWU6cGFzcy13b3Jk"}


HTML = (200, "text/html", b"<title>shop</title>")
NOT_ONE: dict[str, tuple[tuple[int, str, bytes], str]] = {
    "a page": (HTML, "check that `url`"),
    "a video": ((200, "video/mp4", b"\0\1" * 500_000), "check that `url`"),
    "nothing": ((204, "", b""), "check that `url`"),
    "another API": ((200, "application/json", b'{"status": "ok"}'), "check that `url`"),
    "its error": ((404, "application/json", b'{"status": 404}'), "check that `url`"),
    "a list": ((200, "application/json", b"[1, 2]"), "check that `url`"),
    "no data": ((200, "application/json", b'{"status": "success"}'), "check that"),
    "other data": (
        (200, "application/json", b'{"status": "success", "data": {"a": 1}}'),
        "check that `url`",
    ),
    "no tenant": ((401, "application/json", b"no org id\n"), "X-Scope-OrgID"),
    "a refused login": (
        (403, "application/json", b'{"status": "error", "error": "no"}'),
        "`basic_auth`",
    ),
    "a proxy": ((502, "text/html", b"<h1>Bad Gateway</h1>"), "up and ready"),
}


@pytest.mark.parametrize("alerts", [True, False])
@pytest.mark.parametrize("case", NOT_ONE)
async def test_a_url_that_is_not_that_of_a_prometheus(
    server: Server, case: str, alerts: bool
) -> None:
    answer, hint = NOT_ONE[case]
    server.reply = lambda path, query: answer  # type: ignore[method-assign]
    prom = subject(server.url, HOT, alerts=alerts)
    with pytest.raises(ObservationFailed) as failure:
        await prom.observe({})
    await prom.close()
    assert hint in (failure.value.hint or "")
    assert str(answer[0]) in failure.value.message
    if case == "no tenant":
        assert "no org id" in failure.value.message


async def test_a_server_without_an_api_for_rules_is_a_setting(server: Server) -> None:
    """As VictoriaMetrics without vmalert: that is reported with the fix, and is no ticket."""
    reply = server.reply

    def without_rules(path: str, query: dict[str, list[str]]) -> tuple[int, str, bytes]:
        missing = (404, "text/plain", b"404 page not found\n")
        return missing if path.endswith("rules") else reply(path, query)

    server.reply = without_rules  # type: ignore[method-assign]
    server.answers["temp"] = [(ROOM, "20")]
    prom = subject(server.url, HOT)
    observation = await check_subject(prom)
    assert observation is not None and observation.covers("hot")
    assert "alerts: false" in observation.unsupported["alert"]
    assert not observation.unavailable


# ------------------------------------------------------------------ the connection


async def test_headers_of_a_tenant(server: Server) -> None:
    headers = {"X-Scope-OrgID": "team-a|team-b", "Authorization": f"Bearer {TOKEN}"}
    auth = {"username": "me", "password": "replaced"}
    prom = subject(server.url, HOT, headers=headers, basic_auth=auth)
    await check_subject(prom)
    assert server.requests[-1]["X-Scope-OrgID"] == "team-a|team-b"
    assert server.requests[-1]["Authorization"] == f"Bearer {TOKEN}"
    assert f"Bearer {TOKEN}" in prom.secrets and "team-a|team-b" not in prom.secrets


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_through_a_proxy_with_a_client_certificate(
    tmp_path: Path, scheme: str
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    mine = authority.issue_cert("midwatch.example")
    mine.private_key_pem.write_to_path(tmp_path / "key.pem")
    mine.cert_chain_pems[0].write_to_path(tmp_path / "mine.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("prometheus.example").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    with serving(Server(), context if scheme == "https" else None) as server:
        server.answers["temp"] = [(ROOM, "90")]
        port = urlsplit(server.url).port
        url = f"{scheme}://prometheus.example:{port}/prefix"
        with proxying() as proxy:
            given: dict[str, Any] = {
                "alerts": False,
                "ca_file": tmp_path / "ca.pem",
                "proxy": f"http://me:proxy-pass@127.0.0.1:{proxy.server_address[1]}",
            }
            key = {
                "client_certificate": tmp_path / "mine.pem",
                "client_key": tmp_path / "key.pem",
            }
            prom = subject(url, HOT, **given, **key)
            observation = await check_subject(prom)
            assert observation is not None
            assert verdicts(prom, observation)[0] == {("hot", "room=a")}
            assert prom.secrets == ["proxy-pass"]
            assert "Basic bWU6cHJveHktcGFzcw==" in proxy.heads[0]
            assert f"prometheus.example:{port}" in proxy.heads[0]
            if scheme == "https":
                stranger = subject(url, HOT, **given)
                with pytest.raises(ObservationFailed):
                    await stranger.observe({})
                await stranger.close()


class Proxy(socketserver.ThreadingTCPServer):
    """A proxy that asks no name server: every host is this machine."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        super().__init__(("127.0.0.1", 0), _Relay)


class _Relay(socketserver.StreamRequestHandler):
    server: Proxy

    def handle(self) -> None:
        first = self.rfile.readline().decode()
        lines = list(iter(lambda: self.rfile.readline().decode(), "\r\n"))
        self.server.heads.append("".join([first, *lines]))
        method, target, version = first.split()
        parts = urlsplit(target if "//" in target else f"//{target}")
        with socket.create_connection(("127.0.0.1", parts.port or 80)) as upstream:
            if method == "CONNECT":
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                path = parts._replace(scheme="", netloc="").geturl()
                kept = [one for one in lines if "connection" not in one.lower()]
                head = [f"{method} {path} {version}\r\n", *kept, "Connection: close"]
                upstream.sendall("".join([*head, "\r\n\r\n"]).encode())
            pump = threading.Thread(target=_copy, args=(self.connection, upstream))
            pump.start()
            _copy(upstream, self.connection)
            pump.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxying() -> Iterator[Proxy]:
    with Proxy() as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


def test_a_client_certificate_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "mine.pem"
    file.write_text("nothing")
    with pytest.raises(SettingsError, match="subjects.prom.client_certificate"):
        subject("https://a", client_certificate=file)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alerts": False},
        {"rules": [{**HOT, "below": 3}]},
        {"rules": [{**HOT, "above": "much"}]},
        {"rules": [HOT, HOT]},
        {"rules": [{**HOT, "name": "alert"}]},
        {"severities": {"sev1": "catastrophe"}},
        {"rules": [{**HOT, "ignore": [{}]}]},
        {"headers": {"a b": "c"}},
        {"client_key": "k"},
        {"proxy": "socks://a"},
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
HOURLY = """
groups:
  - name: hourly
    interval: 1h
    rules:
      - alert: TargetDown
        expr: vector(1)
"""


class Real:
    """Debian's Prometheus on loopback, with a configuration of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        (folder / "prometheus.yml").write_text(
            "global: {evaluation_interval: 200ms}\nrule_files: [rules.yml]\n"
        )

    @contextlib.contextmanager
    def running(self, rules: str) -> Iterator[subprocess.Popen[bytes]]:
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("the program `prometheus` is not on the PATH")
        self.configure(rules)
        with subprocess.Popen(
            [
                program,
                f"--config.file={self._folder}/prometheus.yml",
                f"--storage.tsdb.path={self._folder}/data",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            yield process
            process.kill()

    def configure(self, rules: str) -> None:
        (self._folder / "rules.yml").write_text(rules)


async def observed(
    prom: PrometheusSubject,
    wanted: Callable[[Observation], bool],
    before: Observation | None = None,
) -> Observation:
    """Observe until an observation is the wanted one."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(ObservationFailed):
            before = await observe_once(prom, before)
            if wanted(before):
                return before
        await asyncio.sleep(0.05)
    raise TimeoutError(f"not observed: {before}")


async def test_the_real_program(tmp_path: Path) -> None:
    real = Real(tmp_path)
    prom = subject(
        real.url,
        {
            "name": "targets",
            "expr": f"{DOWN} or {UP}",
            "below": 1,
            "component": "{job}",
        },
        {"name": "wrong", "expr": "up("},
        {"name": "nan", "expr": f"0 / ({UP} * 0)", "above": 1, "component": ["job"]},
    )

    def evaluated(seen: Observation) -> bool:
        names = {signal.invariant for signal in seen.signals}
        return names >= {"alert:TargetDown", "targets", "nan"} and not seen.unsupported

    with real.running(RULES):
        await observed(prom, evaluated)
        observation = await check_subject(prom)
    assert observation is not None
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


async def test_the_real_program_restarts_and_loses_its_rules(tmp_path: Path) -> None:
    """The ticket neither resolves nor gets company, whatever the server has not evaluated or lost."""
    real = Real(tmp_path)
    prom = subject(real.url)
    key = "alert:TargetDown", "job=gone"
    with real.running(RULES):
        fires = await observed(prom, lambda seen: key in verdicts(prom, seen)[0])
    with pytest.raises(ObservationFailed, match="connection refused"):
        await observe_once(prom, fires)
    # Its first evaluation is within an hour.
    with real.running(HOURLY) as process:
        restarted = await observed(prom, lambda seen: True, fires)
        assert "not evaluated" in restarted.unsupported["alert:TargetDown"]
        assert not restarted.unavailable
        assert not verdicts(prom, restarted)[0]
        assert not verdicts(prom, restarted)[1](*key)

        real.configure(RULES.replace("TargetDown", "Renamed"))
        process.send_signal(signal.SIGHUP)
        gone = await observed(
            prom, lambda seen: bool(seen.covers("alert:Renamed")), restarted
        )
        assert "no rule TargetDown any more" in gone.unsupported["alert:TargetDown"]
        assert not verdicts(prom, gone)[1](*key)

        real.configure("groups: []")
        process.send_signal(signal.SIGHUP)
        empty = await observed(prom, lambda seen: "alert" in seen.unsupported, gone)
        assert not verdicts(prom, empty)[1](*key)
        assert not verdicts(prom, empty)[1]("alert:Renamed", "job=gone")

        real.configure(RULES.replace("== 0", "== 7"))
        process.send_signal(signal.SIGHUP)
        await observed(prom, lambda seen: verdicts(prom, seen)[1](*key), empty)
    await prom.close()


FULL = """
groups:
  - name: g
    rules:
      - {record: node_filesystem_used_percent, labels: {instance: 'db1:9100', mountpoint: /}, expr: vector(96)}
      - {record: pg_up, labels: {instance: 'db1:9187'}, expr: vector(0)}
      - {record: shop_errors_ratio, labels: {job: shop}, expr: vector(0.3)}
      - {record: shop_duration_seconds, labels: {job: shop}, expr: vector(9)}
      - {record: node_filesystem_used_percent, labels: {instance: 'app2:9100', mountpoint: /}, expr: vector(97)}
      - alert: ShopErrors
        expr: shop_errors_ratio > 0.05
      - alert: ShopSlow
        expr: shop_duration_seconds > 1
      - alert: PostgresDown
        expr: pg_up == 0
      - alert: SpaceLow
        expr: node_filesystem_used_percent{instance="db1:9100"} > 90
        annotations: {summary: "{{ $labels.mountpoint }} of {{ $labels.instance }} is full"}
      - alert: OtherSpaceLow
        expr: node_filesystem_used_percent{instance="app2:9100"} > 90
        for: 1h
"""


async def test_of_four_alerts_on_one_full_disk_the_disk_is_the_first_link(
    tmp_path: Path,
) -> None:
    real = Real(tmp_path)
    prom = subject(real.url)
    with real.running(FULL):
        seen = await observed(prom, lambda one: len(one.signals) == 4)
        tickets = tickets_for(prom, seen)
        gatherer = ContextGatherer({prom.name: prom}, Redactor(), SystemClock())
        context = await gatherer.gather(tickets, timeout=PATIENCE, tokens=8000)
        await prom.close()
    [(ids, note)] = preliminary(PLAYBOOKS, "prometheus", tickets, context)
    assert len(ids) == 4
    assert note.root_cause.startswith("the first link is SpaceLow on db1")
    assert "/ of db1:9100 is full" in note.root_cause
    assert "app2" not in note.model_dump_json()
    grounding = ground(note, context.evidence)
    assert grounding.verified == grounding.total, grounding
    [over] = [
        one for one in context.evidence if one.title.endswith("SpaceLow: over time")
    ]
    assert "last 96" in over.text and "> 90 since" in over.text
