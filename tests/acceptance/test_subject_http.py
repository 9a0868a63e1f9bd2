"""The kind `http` against real servers on loopback, with and without TLS."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs

import httpcore2
import httpx2
import pytest
from pydantic import ValidationError

from midwatch.errors import ObservationFailed
from midwatch.monitor.loop import MonitorLoop
from midwatch.settings import MonitorSettings
from midwatch.store.sql import SqlStore
from midwatch.subjects.http import HttpSubject
from midwatch.subjects.http_client import WebClient
from midwatch.subjects.http_errors import WebFailure, foreign_errors, map_http_error
from midwatch.testing.fakes import ManualClock
from midwatch.testing.subject_conformance import check_kind, check_subject

from ..waiting import PATIENCE
from .web import TOKEN, Reply, broken, ok, sending, serving, subject


async def test_a_good_server_conforms_and_its_secrets_stay_inside() -> None:
    seen: list[str | None] = []

    def reply(handler: BaseHTTPRequestHandler) -> Reply:
        seen.append(handler.headers["X-Api-Key"])
        seen.append(handler.headers["Authorization"])
        return ok(handler)

    check_kind(HttpSubject)
    with serving(reply) as url:
        shop = subject(
            url.replace("//", "//me:pass-word@") + f"/health?key={TOKEN}",
            headers={"X-Api-Key": TOKEN},
            body_matches="well$",
        )
        observation = await check_subject(shop)
        assert observation is not None
        assert not broken(observation)
        assert observation.covered == {one.id for one in shop.invariants}
        texts = [await source.fetch() for source in shop.sources(())]
        await shop.close()
    assert TOKEN in seen and any(value and "Basic" in value for value in seen)
    assert "status: HTTP/1.0 200 OK" in texts[0] and "| all is well" in texts[0]
    assert "cookie" not in "".join(texts).lower()
    assert "127.0.0.1 has address 127.0.0.1" in texts[1]


async def test_wrong_status_and_body_are_violations() -> None:
    with serving(lambda _: (503, {}, b"database is down")) as url:
        shop = subject(url, body_lacks="database is (down|gone)")
        observation = await shop.observe({})
        await shop.close()
    found = broken(observation)
    assert found.keys() == {"status", "body"}
    assert found["status"].message == (
        f"{url}/ answered 503 Service Unavailable, expected 2xx, 3xx"
    )
    assert found["status"].facts["status"] == 503


PACKED = gzip.compress(b"\xef\xbb\xbfall is well", mtime=0)
BOMB = gzip.compress(b"\0" * 50_000_000 + b"well", mtime=0)


@pytest.mark.parametrize(
    ("headers", "body", "settings"),
    [
        ({"Content-Encoding": "gzip"}, PACKED, {}),
        ({"Content-Encoding": "gzip, identity"}, PACKED, {"body_lacks": "down"}),
        ({"Content-Encoding": "UTF-8"}, b"all is well", {}),
        (
            {"Content-Type": "text/plain; charset=utf-16"},
            "all is well".encode("utf-16"),
            {},
        ),
        ({"Content-Encoding": "gzip"}, PACKED, {"method": "POST"}),
        ({}, b"all is well" + b"x" * 3_000_000, {"body_limit": "100kB"}),
    ],
)
async def test_a_body_is_read_however_it_arrives(
    headers: dict[str, str], body: bytes, settings: dict[str, object]
) -> None:
    with serving(lambda _: (200, headers, body)) as url:
        shop = subject(url, **{"body_matches": "^all is well", **settings})
        observation = await check_subject(shop)
        text = await shop.sources(())[0].fetch()
    assert observation is not None and not broken(observation)
    assert observation.covers("body") and "| all is well" in text


@pytest.mark.parametrize(
    ("coding", "body", "reason"),
    [
        (
            "",
            b"x" * 3_000_000 + b"well",
            "longer than 100000 bytes (raise `body_limit`)",
        ),
        ("gzip", BOMB, "longer than 100000 bytes (raise `body_limit`)"),
        (
            "br",
            b"\x0b\x02\x80well\x03",
            "compressed with br, which cannot be read here",
        ),
        ("gzip, zstd", b"(\xb5/\xfd", "compressed with zstd"),
    ],
)
async def test_a_body_that_cannot_be_judged_is_a_warning(
    coding: str, body: bytes, reason: str, store: SqlStore, clock: ManualClock
) -> None:
    """Never a ticket, also after many polls: the settings or the server have to change."""
    headers = {"Content-Encoding": coding} if coding else {}
    with serving(lambda _: (200, headers, body)) as url:
        shop = subject(url, body_matches="well", body_limit="100kB")
        observation = await shop.observe({})
        loop = MonitorLoop(store, [shop], MonitorSettings(group_wait=0), clock=clock)
        for _ in range(5):
            assert not (await loop.cycle()).opened
        await loop.close()
    assert reason in observation.unsupported["body"]
    assert not observation.covers("body") and not observation.unavailable
    assert {"reachable", "status", "latency"} <= observation.covered


async def test_a_body_that_nobody_can_decompress_is_a_violation() -> None:
    with serving(lambda _: (200, {"Content-Encoding": "gzip"}, b"all is well")) as url:
        shop = subject(url, body_matches="well")
        found = broken(await shop.observe({}))
        await shop.close()
    assert "the body is not gzip: " in found["body"].message


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Server : x\r\nContent-Length : 4\r\n\r\nwell",
        OK + b"X[0]: a\r\n: b\r\nX \xe4: c\r\nX: M\xfcller\x0b\r\n folded\r\n\r\nwell",
        b"HTTP/1.1 200 OK\nContent-Length: 4\nContent-Length: 4\n\nwell",
        OK
        + b"Transfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n4\nwell\n0\n\n",
        OK + b"Transfer-Encoding: identity\r\nContent-Length: 4\r\n\r\nwell",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n"
        b"%x\r\n%s\r\n0\r\n\r\n"
        % (len(gzip.compress(b"well", mtime=0)), gzip.compress(b"well", mtime=0)),
        b"http/1.1  200  \xc4\r\n\r\nwell",
        b"HTTP/1.1 302 Found\r\nLocation: http://[bad\r\n\r\nwell",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: \xff=;;=\r\nContent-Type: \xff\r\n\r\nwell",
    ],
)
async def test_an_answer_that_curl_accepts_is_accepted(answer: bytes) -> None:
    with sending(answer) as url:
        shop = subject(url, body_matches="^well$", redirects=0)
        observation = await check_subject(shop)
    assert observation is not None and not broken(observation)
    assert not observation.unavailable and not observation.unsupported


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs the program curl")
@pytest.mark.parametrize(
    "answer",
    [
        OK + b"X: a\0b\r\nContent-Length: 4\r\n\r\nwell",
        OK + b"Content-Length: -4\r\n\r\nwell",
        OK + b"Content-Length: 9\r\n\r\nwell",
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nwell\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ],
)
async def test_an_answer_that_curl_refuses_is_refused(answer: bytes) -> None:
    with sending(answer) as url:
        program = await asyncio.create_subprocess_exec(
            "curl", "-sS", url, stderr=-3, stdout=-3
        )
        assert await program.wait()
        shop = subject(url)
        found = broken(await shop.observe({}))
        await shop.close()
    assert found["reachable"].facts["cause"] == "protocol"


async def test_a_server_that_is_not_there_is_an_observation() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{bound.getsockname()[1]}"
        refused = await check_subject(subject(closed))
    assert refused is not None
    assert broken(refused)["reachable"].facts["cause"] == "refused"
    # The rest is unknown, and the one violation is reported once.
    assert refused.covered == {"reachable"} and not refused.unavailable

    nowhere = subject("http://no-such-host.invalid/")
    found = broken(await nowhere.observe({}))["reachable"]
    await nowhere.close()
    assert found.facts["cause"] == "dns"


async def test_a_silent_server_and_one_that_talks_nonsense() -> None:
    release = threading.Event()

    def silent(handler: BaseHTTPRequestHandler) -> None:
        release.wait(PATIENCE)

    with serving(silent) as url:
        shop = subject(url, timeout=2)
        found = broken(await shop.observe({}))["reachable"]
        await shop.close()
        release.set()
    assert found.facts["cause"] == "timeout"
    assert "connected, but the server sends nothing" in found.message

    def nonsense(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"\x00\xffEHLO\r\n\r\n")

    with serving(nonsense) as url:
        shop = subject(url)
        found = broken(await shop.observe({}))["reachable"]
        await shop.close()
    assert found.facts["cause"] == "protocol"


@pytest.mark.parametrize(
    "location",
    [
        "ftp://me:s3cret-token-value@a.example/",
        "mailto:a@b",
        "http://a:x/",
        "javascript:x",
    ],
)
async def test_a_redirect_to_nowhere_is_the_fault_of_the_status(location: str) -> None:
    with serving(lambda _: (302, {"Location": location + "?key=" + TOKEN}, b"")) as url:
        shop = subject(url)
        observation = await shop.observe({})
        await shop.close()
    found = broken(observation)
    assert found.keys() == {"status"} and TOKEN not in found["status"].message
    assert "redirected to an unsupported address" in found["status"].message


async def test_a_redirect_to_a_server_that_is_down_names_it() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with serving(lambda _: (307, {"Location": f"{down}/x"}, b"")) as url:
            shop = subject(url, headers={"X-Api-Key": "bär"})
            found = broken(await shop.observe({}))
            await shop.close()
    assert found["reachable"].message == (
        f"{url}/ did not answer: redirected to {down}: connection refused"
    )


async def test_a_login_by_redirect_keeps_its_cookie_until_the_end() -> None:
    seen: list[tuple[str, str | None, str | None]] = []

    def reply(handler: BaseHTTPRequestHandler) -> Reply:
        values = handler.headers["Cookie"], handler.headers["X-Api-Key"]
        seen.append((handler.path, *values))
        if handler.path == "/":
            return 303, {"Location": "/home page?ü", "Set-Cookie": "a=b"}, b""
        return ok(handler)

    with serving(reply) as url:
        shop = subject(url, headers={"X-Api-Key": TOKEN}, method="POST")
        for _ in range(2):
            assert not broken(await shop.observe({}))
        await shop.close()
    assert seen[:2] == [("/", None, TOKEN), ("/home%20page?%C3%BC", "a=b", TOKEN)]
    assert seen[2:] == seen[:2]


async def test_redirects_are_bounded_and_headers_stay_at_home() -> None:
    reported: list[str | None] = []

    def elsewhere(handler: BaseHTTPRequestHandler) -> Reply:
        reported.append(handler.headers["X-Api-Key"])
        return 200, {}, b"internal page"

    with serving(elsewhere) as other:
        with serving(lambda _: (302, {"Location": other}, b"")) as url:
            shop = subject(url, headers={"X-Api-Key": TOKEN})
            observation = await shop.observe({})
            text = await shop.sources(())[0].fetch()
            await shop.close()
    # Same host name here, another port: another origin all the same.
    assert reported == [None, None]
    assert not broken(observation)
    assert "internal page" in text

    with serving(lambda _: (302, {"Location": "/again"}, b"")) as url:
        shop = subject(url, redirects=3)
        found = broken(await shop.observe({}))
        await shop.close()
        first = subject(url, redirects=0, expect_status=[302])
        assert not broken(await first.observe({}))
        await first.close()
    assert found["status"].message == f"{url}/: more than 3 redirects"
    assert "reachable" not in found


async def test_no_resources_of_our_own_is_unknown_not_down() -> None:
    error = httpx2.ConnectError("x")
    error.__cause__ = OSError(24, "Too many open files")
    assert map_http_error(error).cause == "local"


def test_every_error_of_the_http_client_is_translated() -> None:
    foreign = [
        found
        for _, found in inspect.getmembers(httpx2, inspect.isclass)
        if issubclass(found, httpx2.HTTPError | httpx2.StreamError | httpx2.InvalidURL)
    ] + [
        found
        for _, found in inspect.getmembers(httpcore2, inspect.isclass)
        if issubclass(found, Exception)
    ]
    assert len(foreign) > 35
    assert all(issubclass(kind, foreign_errors()) for kind in foreign)
    for kind in foreign:
        error = kind.__new__(kind)
        Exception.__init__(error, "reason")
        failure = map_http_error(error)
        assert isinstance(failure, WebFailure) and "reason" in failure.message
    assert map_http_error(httpx2.ReadTimeout("late")).cause == "timeout"


async def test_a_query_is_kept_and_added_to() -> None:
    asked: list[str] = []

    def reply(handler: BaseHTTPRequestHandler) -> Reply:
        asked.append(f"{handler.path} {handler.headers['User-Agent']}")
        return ok(handler)

    web = WebClient()
    with serving(reply) as url:
        for params in (None, {"b": "2 3"}):
            await web.fetch(
                "GET", f"{url}/x?a=1%2F&c", params=params, timeout=PATIENCE, limit=10
            )
        await web.close()
    assert asked[0] == "/x?a=1%2F&c midwatch"
    query = parse_qs(asked[1].partition("?")[2].split()[0], keep_blank_values=True)
    assert query == {"a": ["1/"], "b": ["2 3"], "c": [""]}


async def test_a_request_that_cannot_be_sent_is_our_fault() -> None:
    web = WebClient()
    with pytest.raises(WebFailure) as caught:
        await web.fetch("GET", "http://a\x00b/", timeout=1, limit=10)
    await web.close()
    assert caught.value.cause == "request"
    assert isinstance(caught.value, ObservationFailed)


@pytest.mark.parametrize(
    ("wrong", "reported"),
    [
        ({"url": "ftp://a"}, "url"),
        ({"url": "http://a b/"}, "url"),
        ({"body_matches": "("}, "body_matches"),
        ({"expect_status": ["2x"]}, "expect_status"),
        ({"headers": {"a\nb": "c"}}, "headers"),
        ({"headers": {"a": "c\r\nd: e"}}, "headers"),
        ({"follow": True}, "follow"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, object], reported: str) -> None:
    with pytest.raises(ValidationError) as caught:
        subject(**{"url": "http://a", **wrong})
    assert reported in str(caught.value.errors()[0]["loc"])
