"""Certificates of the kind `http`: the whole chain, every redirect, and each reason for a refusal on its own."""

from __future__ import annotations

import datetime
import gc
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import ValidationError

from midwatch.errors import SettingsError
from midwatch.model import Key, Observation, Severity
from midwatch.monitor.rules import check
from midwatch.subjects import http_client, tls
from midwatch.subjects.http_errors import WebFailure
from midwatch.testing.fakes import ManualClock
from midwatch.testing.subject_conformance import check_subject, tickets_for

from ..waiting import PATIENCE
from .web import DAY, Issued, Reply, broken, ok, serving, subject, tunnelling

TRUST, NAME, EXPIRY = "certificate_valid", "certificate_name", "certificate_expiry"


@pytest.fixture(scope="module")
def root() -> Issued:
    return Issued.root()


@pytest.fixture
def ca_file(root: Issued, tmp_path: Path) -> Path:
    return root.write(tmp_path, "root")[0]


async def observed(
    issued: Issued, folder: Path, path: str = "", **settings: object
) -> tuple[Observation, str]:
    """Observe a server with this certificate, and return its evidence too."""
    with serving(ok, issued.context(folder)) as url:
        shop = subject(url.replace("127.0.0.1", "localhost") + path, **settings)
        observation = await check_subject(shop)
        text = await shop.sources(())[1].fetch()
        await shop.close()
    assert observation is not None
    return observation, text


def seconds_left(observation: Observation) -> dict[str, float | None]:
    return {
        one.component: one.value
        for one in observation.signals
        if one.invariant == EXPIRY
    }


async def test_a_good_certificate(root: Issued, ca_file: Path, tmp_path: Path) -> None:
    good, text = await observed(root.issue("localhost"), tmp_path, ca_file=ca_file)
    assert not broken(good)
    assert {TRUST, NAME, EXPIRY} <= good.covered
    assert "verification: accepted" in text and "names: localhost" in text
    assert "subject: CN=root" in text


async def test_the_ciphers_of_other_clients_are_spoken(
    root: Issued, ca_file: Path, tmp_path: Path
) -> None:
    context = root.issue("localhost").context(tmp_path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA")
    with serving(ok, context) as url:
        shop = subject(url.replace("127.0.0.1", "localhost"), ca_file=ca_file)
        assert not broken(await shop.observe({}))
        await shop.close()


REFUSALS = {
    "expired": (("localhost", -2, 9), {EXPIRY: "ended 2d"}),
    "for another host": (("other.example", 90, 1), {NAME: "localhost"}),
    "by a stranger": (("localhost", 90, 1), {TRUST: "issuer certificate"}),
    "not begun": (("localhost", 90, -5), {TRUST: "valid only from"}),
    "expired, for another host": (
        ("other.example", -2, 9),
        {EXPIRY: "ended 2d", NAME: "localhost"},
    ),
    "all of it": (
        ("other.example", -2, 9),
        {EXPIRY: "ended 2d", NAME: "localhost", TRUST: "issuer certificate"},
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_each_reason_is_a_finding_of_its_own(
    case: str, root: Issued, ca_file: Path, tmp_path: Path
) -> None:
    (name, days, begun), expected = REFUSALS[case]
    signer = Issued.root("stranger") if TRUST in expected and begun > 0 else root
    issued = signer.issue(name, days, begun)
    observation, text = await observed(issued, tmp_path, ca_file=ca_file)
    found = {
        one.invariant: one
        for one in observation.signals
        if one.holds is False or (one.value is not None and one.value <= 0)
    }
    assert found.keys() == expected.keys()
    for invariant, part in expected.items():
        assert part in found[invariant].message
        assert found[invariant].severity in (None, Severity.CRITICAL)
    # What the refusal hides is unknown, and told once by the findings.
    assert observation.covered == {"reachable"} and not observation.unavailable
    assert not observation.covers("status")
    assert "verification: not accepted: " in text or "not begun" == case


async def test_what_one_handshake_alone_tells(
    root: Issued, ca_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the server is gone before the reasons can be told apart, the first one counts."""

    async def gone(*_: object) -> tls.Problems:
        raise WebFailure("refused", "connection refused")

    monkeypatch.setattr(http_client.WebClient, "examine", gone)
    for issued, invariant in (
        (root.issue("other.example"), NAME),
        (root.issue("localhost", -2, 9), TRUST),
    ):
        with serving(ok, issued.context(tmp_path)) as url:
            shop = subject(url.replace("127.0.0.1", "localhost"), ca_file=ca_file)
            observation = await shop.observe({})
            await shop.close()
        assert broken(observation).keys() == {invariant}


async def test_the_whole_chain_counts(
    root: Issued, ca_file: Path, tmp_path: Path
) -> None:
    middle = root.authority("middle", days=3)
    soon, text = await observed(
        middle.issue("localhost", 90), tmp_path, ca_file=ca_file
    )
    [signal] = [one for one in soon.signals if one.invariant == EXPIRY]
    assert signal.value == pytest.approx(3 * 86400, abs=300)
    assert "the certificate CN=middle above that of localhost ends in" in signal.message
    assert not broken(soon) and "subject: CN=middle" in text

    old = root.authority("middle", days=-1)
    expired, _ = await observed(old.issue("localhost", 90), tmp_path, ca_file=ca_file)
    [signal] = [one for one in expired.signals if one.invariant == EXPIRY]
    assert signal.severity is Severity.CRITICAL and "ended 1d" in signal.message
    assert not broken(expired)  # signed and named well: one finding

    short = Issued.root("short", days=5)
    trusted = short.write(tmp_path, "short")[0]
    by_root, _ = await observed(short.issue("localhost", 90), tmp_path, ca_file=trusted)
    assert (
        "CN=short" in [s for s in by_root.signals if s.invariant == EXPIRY][0].message
    )


async def test_an_intermediate_authority_in_the_file_is_enough(
    root: Issued, tmp_path: Path
) -> None:
    middle = root.authority("middle")
    trusted = middle.write(tmp_path, "middle")[0]
    good, _ = await observed(middle.issue("localhost"), tmp_path, ca_file=trusted)
    assert not broken(good)


async def test_every_redirect_counts(
    root: Issued, ca_file: Path, tmp_path: Path
) -> None:
    last = root.issue("localhost", 2).context(tmp_path)
    between = root.issue("localhost", 200).context(tmp_path)
    with serving(ok, last) as end:
        end = end.replace("127.0.0.1", "localhost")

        def to_end(_: object) -> Reply:
            return 302, {"Location": f"{end}/?token=secret-token"}, b""

        with serving(to_end, between) as middle, serving(to_end) as plain:
            middle = middle.replace("127.0.0.1", "localhost")
            first = subject(middle, ca_file=ca_file)
            observation = await first.observe({})
            text = await first.sources(())[1].fetch()
            unverified = subject(middle, verify=False)
            unchecked = await unverified.observe({})
            from_plain = subject(plain, ca_file=ca_file)
            upgraded = await from_plain.observe({})
            [signal] = [s for s in upgraded.signals if s.invariant == EXPIRY]
            sources = from_plain.sources(tickets_for(from_plain, upgraded))
            assert "as localhost" in await sources[1].fetch()
            for shop in (first, unverified, from_plain):
                await shop.close()
    for found in (observation, unchecked):
        left = seconds_left(found)
        assert left.keys() == {f"{middle}/", end}
        assert left[end] == pytest.approx(2 * 86400, abs=300)
        assert EXPIRY in found.covered
    assert text.count("address: https://localhost:") == 2
    assert signal.component == end and {TRUST, NAME} <= upgraded.covered


async def test_an_error_page_instead_of_a_redirect_resolves_nothing(
    root: Issued, ca_file: Path, tmp_path: Path
) -> None:
    pages: list[Reply] = [(200, {}, b""), (503, {}, b"")]
    with serving(ok, root.issue("localhost", 2).context(tmp_path)) as end:
        end = end.replace("127.0.0.1", "localhost")
        pages.append((302, {"Location": end}, b""))
        with serving(lambda _: pages.pop()) as url:
            shop = subject(url, ca_file=ca_file)
            invariants = {one.id: one for one in shop.invariants}
            redirected, failed, moved = [
                check("shop", invariants, await shop.observe({}), {}, 0.0)
                for _ in range(3)
            ]
            await shop.close()
    key = Key("shop", EXPIRY, end)
    assert key in redirected.broken
    assert not failed.known(key)
    assert moved.known(key)  # the URL no longer leads there


@pytest.mark.parametrize("stranger", [True, False])
async def test_a_refused_redirect_names_where_it_leads(
    stranger: bool, root: Issued, ca_file: Path, tmp_path: Path
) -> None:
    signer = Issued.root("stranger") if stranger else root
    last = signer.issue("localhost" if stranger else "other.example")
    with serving(ok, last.context(tmp_path)) as end:
        end = end.replace("127.0.0.1", "localhost")
        with serving(lambda _: (302, {"Location": end}, b"")) as url:
            shop = subject(url, ca_file=ca_file)
            observation = await shop.observe({})
            await shop.close()
    [found] = broken(observation).values()
    assert found.invariant == (TRUST if stranger else NAME)
    assert found.component == end
    assert observation.covers("reachable") and not observation.covers("status")
    # An address behind this one may have certificates too.
    assert not observation.covers(EXPIRY)


async def test_a_server_name_is_asked_for_and_expected(
    root: Issued, ca_file: Path, tmp_path: Path
) -> None:
    asked: list[str] = []
    context = root.issue("shop.example").context(tmp_path)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    with serving(lambda _: (302, {"Location": "/again"}, b""), context) as url:
        name = {"ca_file": ca_file, "server_name": "shop.example", "redirects": 1}
        shop = subject(url, **name)
        observation = await shop.observe({})
        await shop.close()
        wrong = subject(url, **{**name, "server_name": "mail.example"})
        refused = await wrong.observe({})
        await wrong.close()
    assert asked[:2] == ["shop.example"] * 2
    assert broken(observation).keys() == {"status"}  # only more than one redirect
    assert "mail.example" in broken(refused)[NAME].message
    assert "shop.example" in str(broken(refused)[NAME].facts["names"])


async def test_the_dot_of_an_absolute_name_is_no_part_of_it(
    root: Issued, ca_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def absolute(host: Any, *rest: Any, **more: Any) -> object:
        known = host in ("localhost.", b"localhost.")
        return resolve("localhost" if known else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", absolute)
    with serving(ok, root.issue("localhost").context(tmp_path)) as url:
        shop = subject(url.replace("127.0.0.1", "localhost."), ca_file=ca_file)
        assert not broken(await shop.observe({}))
        await shop.close()


@pytest.mark.parametrize("name", ["https://a", "a:443", "a b", ""])
def test_a_wrong_server_name_is_told(name: str) -> None:
    with pytest.raises(ValidationError, match="is not a host name"):
        subject("https://a", server_name=name)


async def test_certificates_are_left_out_by_host_subject_and_issuer(
    root: Issued, ca_file: Path, tmp_path: Path
) -> None:
    issued = root.authority("middle", days=3).issue("localhost", 90)
    rule = {EXPIRY: {"ignore": [{"host": "local*", "subject": "CN=middle"}]}}
    found, _ = await observed(issued, tmp_path, ca_file=ca_file, invariants=rule)
    [left] = seconds_left(found).values()
    assert left is not None and left > 80 * 86400
    assert found.ignored == {EXPIRY: ("CN=middle at localhost",)}

    wrong = root.issue("other.example")
    rule = {NAME: {"ignore": [{"issuer": "CN=root"}]}}
    hidden, _ = await observed(wrong, tmp_path, ca_file=ca_file, invariants=rule)
    assert not broken(hidden) and NAME in hidden.ignored
    # Nothing else reports that the answer was never seen.
    assert hidden.unsupported.keys() >= {"status", "latency"}
    assert "server_name" in hidden.unsupported["status"]


async def test_what_is_disabled_does_not_blind_in_silence(
    root: Issued, ca_file: Path, tmp_path: Path
) -> None:
    rule = {NAME: {"enabled": False}}
    wrong = root.issue("other.example")
    found, _ = await observed(wrong, tmp_path, ca_file=ca_file, invariants=rule)
    assert found.unsupported.keys() >= {"status", "latency"}
    assert not found.unavailable


async def test_an_injected_clock_decides_what_ends_when(
    root: Issued, ca_file: Path, tmp_path: Path
) -> None:
    clock = ManualClock(datetime.datetime.now(datetime.UTC) + 300 * DAY)
    with serving(ok, root.issue("localhost").context(tmp_path)) as url:
        shop = subject(url.replace("127.0.0.1", "localhost"), ca_file=ca_file)
        shop.clock = clock
        left = seconds_left(await shop.observe({}))
        await shop.close()
    assert [*left.values()] == [pytest.approx(65 * 86400, abs=300)]


# ------------------------------------------------------------------ client certificates and proxies


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_certificate_is_shown_also_to_find_the_reasons(
    version: ssl.TLSVersion, root: Issued, ca_file: Path, tmp_path: Path
) -> None:
    certificate, key = root.issue("client").write(tmp_path, "client")
    shown = {
        "ca_file": ca_file,
        "client_certificate": certificate,
        "client_key": key,
    }
    for name, invariant in (("localhost", None), ("other.example", NAME)):
        context = root.issue(name).context(tmp_path)
        context.load_verify_locations(ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
        context.maximum_version = version
        with serving(ok, context) as url:
            shop = subject(url.replace("127.0.0.1", "localhost"), **shown)
            observation = await shop.observe({})
            await shop.close()
            without = subject(url.replace("127.0.0.1", "localhost"), ca_file=ca_file)
            unseen = await without.observe({})
            await without.close()
        assert set(broken(observation)) == ({invariant} if invariant else set())
        assert not observation.covers("status") or not invariant
        assert broken(unseen) and not unseen.covers("status")


async def test_the_reasons_are_found_through_a_proxy(
    root: Issued, ca_file: Path, tmp_path: Path
) -> None:
    issued = root.issue("other.example", -2, 9)
    with serving(ok, issued.context(tmp_path)) as url, tunnelling() as (proxy, asked):
        shop = subject(url, ca_file=ca_file, proxy=proxy)
        observation = await shop.observe({})
        named = subject(url, ca_file=ca_file, proxy=proxy, server_name="other.example")
        other = await named.observe({})
        await named.close()
        await shop.close()
    assert broken(observation).keys() == {NAME}
    for found in (observation, other):
        [left] = seconds_left(found).values()
        assert left is not None and left < 0
    assert not broken(other)
    assert set(asked) == {url.removeprefix("https://")}


@pytest.mark.parametrize(
    ("refusal", "known"), [("502 Bad Gateway", True), ("403 Forbidden", False)]
)
async def test_what_a_proxy_says_is_not_what_the_server_says(
    refusal: str, known: bool
) -> None:
    with tunnelling(refusal) as (proxy, _):
        shop = subject("https://shop.example/", proxy=proxy)
        if known:
            found = broken(await shop.observe({}))
            assert refusal in found["reachable"].message
        else:
            with pytest.raises(WebFailure, match=refusal) as caught:
                await shop.observe({})
            assert caught.value.cause == "proxy"
        await shop.close()


async def test_a_proxy_that_is_down_leaves_the_server_unknown() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{bound.getsockname()[1]}"
        for url in ("http://shop.example/", "https://shop.example/"):
            shop = subject(url, proxy=proxy)
            with pytest.raises(WebFailure, match="no connection to the proxy"):
                await shop.observe({})
            await shop.close()


# ------------------------------------------------------------------ certificates that break the standard


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_tls(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


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
    with pytest.raises(ValueError, match="it is not in DER form"):
        tls.parse(der)
    monkeypatch.setattr(tls, "chain", lambda _: (der,))
    with serving(ok, server_tls(trustme.CA().issue_cert("127.0.0.1"))) as url:
        shop = subject(url, verify=False)
        observation = await check_subject(shop)
    assert observation is not None
    assert not observation.covers("certificate_expiry")
    assert "cannot be read" in observation.unsupported["certificate_expiry"]


async def test_an_accepted_certificate_that_only_python_can_read(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    unreadable = patched(authority, b"\x0c\x0b*.", b"\x13\x0b*.")
    monkeypatch.setattr(tls, "chain", lambda _: (unreadable,))
    with serving(ok, server_tls(authority.issue_cert("127.0.0.1"))) as url:
        shop = subject(url, ca_file=ca_file)
        observation = await shop.observe({})
        await shop.close()
    assert not broken(observation)
    [left] = [s for s in observation.signals if s.invariant == "certificate_expiry"]
    assert left.facts["not_after"] == "3000-01-01T00:00:00+00:00"
    assert "certificate_expiry" in observation.covered


def test_names_that_python_cannot_decode_leave_the_date_to_the_library() -> None:
    class Undecodable:
        def getpeercert(self) -> dict[str, str]:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    assert tls.accepted_until(Undecodable()) is None  # type: ignore[arg-type]


def test_a_certificate_file_that_holds_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(SettingsError, match="subjects.shop.ca_file"):
        subject("https://a", ca_file=tmp_path / "ca.pem")


async def test_a_handshake_that_never_ends_leaves_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        shop = subject(f"https://127.0.0.1:{listener.getsockname()[1]}/", timeout=2)
        found = broken(await shop.observe({}))["reachable"]
        await shop.close()
        assert "the TLS handshake did not end" in found.message
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(PATIENCE)
            while connection.recv(4096):  # its first message, then the end
                pass
    gc.collect()  # what was not closed is a warning, which is an error here
