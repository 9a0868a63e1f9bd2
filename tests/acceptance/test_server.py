"""`midwatch serve`: the real process on loopback, and what it answers."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx2
import trustme
from prometheus_client.parser import text_string_to_metric_families

from .cli import refused, said
from .server_process import server_process


def test_the_process_serves_and_says_where(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        assert server.http.get("/healthz").text == "ok\n"
        assert server.http.get("/readyz").text == "ok\n"
        missing = server.http.get("/nothing/here")
        assert missing.status_code == 404
        assert missing.headers["content-type"] == "application/problem+json"
        assert missing.json()["status"] == 404
    assert server.log()[-1]["reason"] == "SIGTERM"


def test_up_serves_beside_monitor_and_agent(tmp_path: Path) -> None:
    subject = {"name": "true", "kind": "command", "command": ["true"]}
    settings = {"subjects": [subject], "metrics": {"port": 0}}
    with server_process(tmp_path, settings, command="up") as server:
        assert server.http.get("/readyz").status_code == 200
        assert server.http.get("/nothing/here").status_code == 404
        [address] = [
            one["address"] for one in server.log() if "metrics" in one["event"]
        ]
        text = httpx2.get(f"{address}/metrics").text
    counted = {
        (sample.labels["route"], sample.labels["code"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "midwatch_server_requests_total"
    }
    assert counted == {("/readyz", "2xx"): 1, ("other", "404"): 1}
    assert "midwatch_monitor_cycles_total{" in text
    assert server.log()[-1]["event"] == "stopped"


def test_its_health_over_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("midwatch.example.org")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "cert.pem").write_bytes(
        b"".join(one.bytes() for one in issued.cert_chain_pems)
    )
    files = {"certificate_file": "cert.pem", "certificate_key_file": "key.pem"}
    with server_process(tmp_path, {"server": files}) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context()
        authority.configure_trust(context)
        with httpx2.Client(verify=context, base_url=server.url) as http:
            name = {"sni_hostname": "midwatch.example.org"}
            answer = http.get("/healthz", extensions=name)
        assert answer.text == "ok\n"
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        port = server.url.rpartition(":")[2]
        env = {"MIDWATCH_SERVER__LISTEN": f"127.0.0.1:{port}"}
        assert said(tmp_path, "health", "serve", env=env) == "serve is healthy\n"


def test_without_an_address_it_says_what_to_set(tmp_path: Path) -> None:
    assert "server.listen" in refused(tmp_path, "serve", code=2)
