"""A little server that speaks Prometheus' API, and what the tests of the kind `prometheus` share."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from midwatch.model import Key, Observation
from midwatch.monitor.rules import check
from midwatch.subjects.prometheus import PrometheusSubject

from ..waiting import PATIENCE

BAD = {"status": "error", "errorType": "bad_data", "error": "1:5: parse error"}
HOT = {"name": "hot", "expr": "temp", "above": 80, "component": ["room"]}
ROOM = {"__name__": "temp", "room": "a", "sensor": "1"}


class Server:
    """A little Prometheus: rules as given, and one answer for each expression.

    An answer is a list of (labels, value), an envelope (a dict), or (status, type, bytes).
    """

    def __init__(self) -> None:
        self.rules: list[dict[str, Any]] = []
        self.remarks: dict[str, Any] = {}  # beside the rules
        self.more: dict[str, Any] = {}  # beside their groups
        self.cut = 0  # bytes that are missing at the end of an answer
        self.answers: dict[str, Any] = {}
        self.managers: list[str] | None = []  # None: it does not name them
        self.external: dict[str, str] = {}  # labels
        self.requests: list[Message] = []
        self.hang = threading.Event()
        self.hang.set()
        self.url = ""

    def reply(self, path: str, query: dict[str, list[str]]) -> tuple[int, str, bytes]:
        name = path.removeprefix("/prefix/api/v1/")
        if name == "rules":
            groups = [{"name": "g", "rules": self.rules}]
            return self.success({"groups": groups, **self.more}, **self.remarks)
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
        if name == "alertmanagers" and self.managers is not None:
            return self.success(
                {"activeAlertmanagers": [{"url": one} for one in self.managers]}
            )
        if name == "status/config":
            section = {"global": {"external_labels": self.external}}
            return self.success(
                {"yaml": f"{yaml.safe_dump(section)}rule_files: [r.yml]\n"}
            )
        if "query" not in query:
            return 404, "text/plain", b"404 page not found"
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


@contextlib.contextmanager
def serving(state: Server, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            state.requests.append(self.headers)
            state.hang.wait(PATIENCE)
            status, kind, body = state.reply(parts.path, parse_qs(parts.query))
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) - state.cut])

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        httpd.socket = tls.wrap_socket(httpd.socket, server_side=True)
    scheme = "http" if tls is None else "https"
    state.url = f"{scheme}://127.0.0.1:{httpd.server_port}/prefix/"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
    thread.start()
    yield state
    state.hang.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def subject(url: str, *rules: dict[str, Any], **settings: Any) -> PrometheusSubject:
    given = {
        "name": "prom",
        "url": url,
        "timeout": PATIENCE,
        "rules": list(rules),
        **settings,
    }
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
        "annotations": {
            "summary": "{{ not for us }} it is down",
            "runbook_url": "https://runbooks.example/down",
        },
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
