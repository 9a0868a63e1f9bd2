"""`midwatch serve`: the real process on loopback, and what it answers."""

from __future__ import annotations

from pathlib import Path

from .cli import refused
from .server_process import server_process


def test_the_process_serves_and_says_where(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        assert server.http.get("/healthz").json() == {"status": "ok"}
        missing = server.http.get("/nothing/here")
        assert missing.status_code == 404
        assert missing.headers["content-type"] == "application/problem+json"
        assert missing.json()["status"] == 404
    assert server.log()[-1]["reason"] == "SIGTERM"


def test_without_an_address_it_says_what_to_set(tmp_path: Path) -> None:
    assert "server.listen" in refused(tmp_path, "serve", code=2)
