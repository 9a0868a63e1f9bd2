"""The kind `http` against real servers on loopback, with and without TLS."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import inspect
import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
import trustme
from pydantic import ValidationError

from midwatch.errors import ObservationFailed, SettingsError
from midwatch.model import Observation, Severity, Signal
from midwatch.subjects import tls
from midwatch.subjects.http import HttpSubject
from midwatch.subjects.http_client import WebClient, WebFailure, map_http_error
from midwatch.testing.subject_conformance import check_kind, check_subject

from ..waiting import PATIENCE

TOKEN = "s3cret-token-value"
Reply = tuple[int, dict[str, str], bytes]


@contextlib.contextmanager
def serving(
    reply: Callable[[BaseHTTPRequestHandler], Reply | None],
    tls: ssl.SSLContext | None = None,
) -> Iterator[str]:
    """A server that answers each request with `reply`, or drops it; its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = reply(self)
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # refused handshakes are what some tests are about

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        scheme = "https" if tls else "http"
        yield f"{scheme}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ok(handler: BaseHTTPRequestHandler) -> Reply:
    return 200, {"Set-Cookie": f"session={TOKEN}", "Server": "test"}, b"all is well"


def subject(url: str, **settings: object) -> HttpSubject:
    given = {"name": "shop", "url": url, "timeout": 5, **settings}
    return HttpSubject(HttpSubject.settings_model.model_validate(given))


def broken(observation: Observation) -> dict[str, Signal]:
    return {
        signal.invariant: signal
        for signal in observation.signals
        if signal.holds is False
    }


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
        assert observation.covered == {"reachable", "status", "latency", "body"}
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


async def test_a_body_that_cannot_be_judged_is_unknown() -> None:
    packed = gzip.compress(b"all is well")
    with serving(lambda _: (200, {"Content-Encoding": "gzip"}, packed)) as url:
        shop = subject(url, body_matches="well")
        compressed = await shop.observe({})
        await shop.close()
    with serving(lambda _: (200, {}, b"x" * 3_000_000 + b"well")) as url:
        shop = subject(url, body_matches="well", body_limit="100kB")
        long = await shop.observe({})
        await shop.close()
    for observation in (compressed, long):
        assert observation.covered == {"reachable", "status", "latency"}
        assert "body" in observation.unavailable


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
        shop = subject(url, timeout=0.4)
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


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_tls(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


async def test_certificates(authority: trustme.CA, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)

    async def observe_once(
        certificate: trustme.LeafCert, **settings: object
    ) -> tuple[Observation, str]:
        with serving(ok, server_tls(certificate)) as url:
            shop = subject(url, **{"ca_file": ca_file, **settings})
            observation = await check_subject(shop)
            text = await shop.sources(())[1].fetch()
            await shop.close()
        assert observation is not None
        return observation, text

    good, text = await observe_once(
        authority.issue_cert("127.0.0.1", not_after=now + 400 * day)
    )
    assert not broken(good)
    assert {"certificate_valid", "certificate_expiry"} <= good.covered
    assert "verification: accepted" in text and "names: 127.0.0.1" in text

    short, _ = await observe_once(
        authority.issue_cert("127.0.0.1", not_after=now + 3 * day)
    )
    [left] = [s for s in short.signals if s.invariant == "certificate_expiry"]
    assert left.value == pytest.approx(3 * 86400, abs=60)
    assert re.search("ends in (2d 23h|3d)", left.message)

    expired, text = await observe_once(
        authority.issue_cert(
            "127.0.0.1", not_before=now - 9 * day, not_after=now - 2 * day
        )
    )
    assert "certificate has expired" in broken(expired)["certificate_valid"].message
    [left] = [s for s in expired.signals if s.invariant == "certificate_expiry"]
    assert left.severity is Severity.CRITICAL
    assert left.value == pytest.approx(-2 * 86400, abs=60)
    assert not expired.covers("status") and expired.covers("reachable")
    assert "expired: 2d" in text and "not accepted: certificate has expired" in text

    wrong, _ = await observe_once(authority.issue_cert("other.example"))
    assert "127.0.0.1" in broken(wrong)["certificate_valid"].message

    stranger, _ = await observe_once(trustme.CA().issue_cert("127.0.0.1"))
    assert "certificate_valid" in broken(stranger)

    unchecked, _ = await observe_once(
        trustme.CA().issue_cert("127.0.0.1", not_after=now + 40 * day),
        verify=False,
        ca_file=None,
    )
    assert not broken(unchecked)
    assert "certificate_expiry" in unchecked.covered
    assert "certificate_valid" not in unchecked.covered


def test_a_certificate_that_is_none_is_refused_not_misread(
    authority: trustme.CA,
) -> None:
    der = ssl.PEM_cert_to_DER_cert(
        authority.issue_cert("a.example").cert_chain_pems[0].bytes().decode()
    )
    assert tls.parse(der).names == ("a.example",)
    for size in range(0, len(der), 7):
        with pytest.raises(ValueError):
            tls.parse(der[:size])


def patched(authority: trustme.CA, old: bytes, new: bytes) -> bytes:
    """The DER form of a certificate for *.a.example with some bytes replaced."""
    leaf = authority.issue_cert("*.a.example", common_name="*.a.example")
    der = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
    assert old in der
    return der.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "subject", "names"),
    [
        (b"\x0c\x0b*.", b"\x14\x0b\xe4.", tls.UNREADABLE, ("*.a.example",)),
        (b"\x82\x0b*.", b"\x82\x0b*\xff", None, (tls.UNREADABLE,)),
        (b"\x82\x0b*.", b"\xa5\x0b*.", None, (tls.UNREADABLE,)),
        (b"\x55\x1d\x13", b"\x55\x1d\x11", None, (tls.UNREADABLE,)),
    ],
)
def test_a_name_that_cannot_be_read_does_not_hide_the_dates(
    authority: trustme.CA,
    old: bytes,
    new: bytes,
    subject: str | None,
    names: tuple[str, ...],
) -> None:
    seen = tls.parse(patched(authority, old, new))
    organization = seen.issuer.partition(",")[0]
    assert seen.not_after == datetime.datetime(3000, 1, 1, tzinfo=datetime.UTC)
    assert seen.names == names
    assert organization.startswith("O=trustme")
    if subject is None:
        assert seen.subject.startswith("O=trustme")
        assert seen.subject.endswith("CN=*.a.example")
    else:
        assert seen.subject == subject


def test_a_negative_serial_number_is_read_without_a_warning(
    authority: trustme.CA,
) -> None:
    der = patched(authority, b"", b"")
    place = der.index(b"\x02\x01\x02\x02") + 5
    negative = der[:place] + bytes([der[place] | 0x80]) + der[place + 1 :]
    assert tls.parse(negative).names == ("*.a.example",)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09"),  # no such version
        (b"\x18\x0f3000", b"\x18\x0f0000"),  # no such year
        # A wildcard is not printable in the sense of ASN.1; some certificates say that it is.
        (b"\x0c\x0b*.", b"\x13\x0b*."),
    ],
)
async def test_a_certificate_that_cannot_be_read_is_unknown(
    authority: trustme.CA,
    monkeypatch: pytest.MonkeyPatch,
    old: bytes,
    new: bytes,
) -> None:
    der = patched(authority, old, new)
    with pytest.raises(ObservationFailed, match="certificate cannot be read: it is"):
        tls.read(der)

    async def odd(*_: object) -> bytes:
        return der

    monkeypatch.setattr(tls, "handshake", odd)
    with serving(ok, server_tls(trustme.CA().issue_cert("127.0.0.1"))) as url:
        shop = subject(url)
        observation = await check_subject(shop)
    assert observation is not None
    assert "certificate_valid" in broken(observation)
    assert "cannot be read" in observation.unavailable["certificate_expiry"]


async def test_an_accepted_certificate_needs_no_library(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    tls = server_tls(authority.issue_cert("127.0.0.1"))
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with serving(ok, tls) as url:
        shop = subject(url, ca_file=ca_file)
        observation = await shop.observe({})
        await shop.close()
    assert not broken(observation)
    [left] = [s for s in observation.signals if s.invariant == "certificate_expiry"]
    assert left.facts["not_after"] == "3000-01-01T00:00:00+00:00"


def test_names_that_python_cannot_decode_leave_the_date_to_the_library() -> None:
    class Undecodable:
        def getpeercert(self) -> dict[str, str]:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    assert tls.accepted_until(Undecodable()) is None  # type: ignore[arg-type]


async def test_no_resources_of_our_own_is_unknown_not_down() -> None:
    error = httpx2.ConnectError("x")
    error.__cause__ = OSError(24, "Too many open files")
    assert map_http_error(error).cause == "local"


def test_every_error_of_the_http_client_is_translated() -> None:
    foreign = [
        found
        for _, found in inspect.getmembers(httpx2, inspect.isclass)
        if issubclass(found, httpx2.HTTPError | httpx2.StreamError | httpx2.InvalidURL)
    ]
    assert len(foreign) > 20
    for kind in foreign:
        error = kind.__new__(kind)
        Exception.__init__(error, "reason")
        failure = map_http_error(error)
        assert isinstance(failure, WebFailure) and "reason" in failure.message
    assert map_http_error(httpx2.ReadTimeout("late")).cause == "timeout"


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


def test_a_certificate_file_that_holds_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(SettingsError, match="subjects.shop.ca_file"):
        subject("https://a", ca_file=tmp_path / "ca.pem")
