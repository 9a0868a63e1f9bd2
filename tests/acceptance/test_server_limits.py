"""Bad input to the server: what is too large, too slow, too much or no HTTP, and a database that cannot be used."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

from ..waiting import PATIENCE
from .server_process import Running, server_process
from .test_server_auth import ELSEWHERE, OPEN, bearer, problem, token


def raw(server: Running, head: str, body: bytes = b"") -> bytes:
    """What comes back for these bytes, up to the end of the connection."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + body)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


POST = "POST /sign-in HTTP/1.1\nHost: localhost\nConnection: close\nContent-Type: application/x-www-form-urlencoded\n"


def test_a_body_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with server_process(tmp_path, {"server": {"max_body": 2000}}) as server:
        told = raw(server, f"{POST}Content-Length: 2001\n\n")
        assert status(told) == 413 and b"server.max_body" in told
        chunk = b"3e9\r\n" + b"a" * 1001 + b"\r\n"
        told = raw(server, f"{POST}Transfer-Encoding: chunked\n\n", chunk * 2)
        assert status(told) == 413 and b"2000 bytes" in told
        gzip = server.http.post("/sign-in", headers={"content-encoding": "gzip"})
        assert "compressed" in problem(gzip, 415)
        many = {f"x-{number}": "1" for number in range(101)}
        assert "more than 100" in problem(server.http.get(OPEN, headers=many), 431)
        long = (
            f"GET / HTTP/1.1\nHost: localhost\nConnection: close\nX: {'a' * 40_000}\n\n"
        )
        assert status(raw(server, long)) == 431
        endless = f"GET / HTTP/1.1\nHost: localhost\nX: {'a' * 66_000}"
        assert status(raw(server, endless)) == 400
        assert status(raw(server, "not HTTP at all\n\n")) == 400
        assert server.http.get("/healthz").status_code == 200


def test_slow_heads_and_bodies_end(tmp_path: Path) -> None:
    with server_process(tmp_path, {"server": {"request_time": "500ms"}}) as server:
        assert raw(server, "GET / HTTP/1.1\nHo") == b""
        told = raw(server, f"{POST}Content-Length: 100\n\n", b"token=")
        assert status(told) == 408 and b"within 0.5 s" in told
        assert b"connection: close" in told.lower()


def test_more_requests_than_allowed_are_told_to_come_again(tmp_path: Path) -> None:
    settings = {"server": {"max_requests": 2, "request_time": "60s"}}
    with server_process(tmp_path, settings) as server:
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        held = [socket.create_connection((host, int(port))) for _ in range(2)]
        try:
            for one in held:
                one.sendall(
                    f"{POST}Content-Length: 9\n\n".replace("\n", "\r\n").encode()
                )
            while (answer := server.http.get(OPEN)).status_code == 200:
                pass
            assert "too many requests" in problem(answer, 503).lower()
            assert answer.headers["retry-after"] == "1"
        finally:
            for one in held:
                one.close()
        while server.http.get(OPEN).status_code == 503:
            pass


def test_a_locked_database_is_503_and_says_when_to_try_again(tmp_path: Path) -> None:
    with server_process(tmp_path, {"server": ELSEWHERE}) as server:
        secret = token(tmp_path)
        form = {"token": secret}
        with closing(sqlite3.connect(tmp_path / "midwatch.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            answer = server.http.post("/sign-in", data=form)
            assert "try again" in problem(answer, 503)
            assert int(answer.headers["retry-after"]) > 0
            other.rollback()
        assert server.http.post("/sign-in", data=form).status_code == 303
    [line] = [one for one in server.log() if one.get("status") == 503]
    assert line["path"] == "/sign-in" and "database is locked" in line["error"]
    assert secret not in json.dumps(server.log())


def test_a_database_that_is_gone_is_503_until_it_is_back(tmp_path: Path) -> None:
    with server_process(tmp_path, {"server": ELSEWHERE}) as server:
        secret = token(tmp_path)
        (tmp_path / "midwatch.db").rename(tmp_path / "away")
        for name in ("-wal", "-shm"):
            (tmp_path / f"midwatch.db{name}").unlink(missing_ok=True)
        # A daemon makes a new one, which knows no token, and says so.
        while True:
            answer = server.http.get(OPEN, headers=bearer(secret))
            if answer.status_code == 401:
                break
            problem(answer, 503)
        assert "not known" in problem(answer, 401)
        assert "a new one was made" in server.http.get("/healthz").text


def test_a_stop_does_not_wait_for_requests_in_flight(
    tmp_path: Path,
) -> None:
    with server_process(tmp_path, {"server": {"request_time": "10m"}}) as server:
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(f"{POST}Content-Length: 9\n\n".replace("\n", "\r\n").encode())
            assert server.http.get("/healthz").status_code == 200
            began = time.monotonic()
            os.kill(server.pid, signal.SIGTERM)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(slow.recv, 1).result(PATIENCE)
            assert time.monotonic() - began < PATIENCE
    assert server.log()[-1]["event"] == "server stopped"


def test_a_stop_ends_open_streams(tmp_path: Path) -> None:
    """More than `max_streams` are told to come again; requests of another kind are answered meanwhile."""
    settings = {"server": {"max_streams": 3, "max_requests": 2}}
    wanted = {"accept": "text/event-stream"}
    with server_process(tmp_path, settings) as server, ExitStack() as stack:
        streams = []
        for _ in range(3):
            one = server.http.stream("GET", "/changes", headers=wanted)
            answer = stack.enter_context(one)
            pieces = answer.iter_bytes()
            assert b"retry" in next(pieces)
            streams.append(pieces)
        refused = server.http.get("/changes", headers=wanted)
        assert "streams" in problem(refused, 503)
        assert int(refused.headers["retry-after"]) > 0
        assert server.http.get(OPEN).status_code == 200
        began = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        for pieces in streams:
            assert b"".join(pieces) == b""
        assert time.monotonic() - began < PATIENCE
    assert server.log()[-1]["event"] == "server stopped"
