"""The certificates that the hosts of ingresses show, of a cluster whose hosts are a real TLS server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from midwatch.agent.first_aid import preliminary
from midwatch.agent.grounding import ground
from midwatch.errors import SettingsError
from midwatch.model import Severity
from midwatch.playbooks.kubernetes import PLAYBOOKS
from midwatch.subjects.kubernetes.ingress_certificates import NEVER
from midwatch.subjects.kubernetes.ingress_fields import read_ingress
from tests.cluster import ApiServer, asking

from .cluster_subject import TlsHosts, Watched, ingress, namespace, reached
from .web import Issued

CERTIFICATE = "ingress_certificate"
SPACE = "shop"


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer(bookmarks=0.2) as server:
        namespace(server, SPACE)
        yield server


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[TlsHosts]:
    with TlsHosts(tmp_path) as hosts:
        yield hosts


@pytest.fixture(autouse=True)
def emptied(server: ApiServer) -> Iterator[None]:
    yield
    for one in server.objects.list("ingresses", SPACE):
        server.objects.delete("ingresses", SPACE, one["metadata"]["name"])


def key(name: str) -> tuple[str, str]:
    return CERTIFICATE, f"{SPACE}/Ingress/{name}"


def unexamined(watched: Watched) -> list[str]:
    """Return the messages about hosts that were not connected to yet."""
    messages = [one.message for one in watched.last.signals]
    return [one for one in messages if NEVER.unknown in one]


async def test_each_reason_is_told_and_what_cannot_be_reached_is_unknown(
    server: ApiServer, hosts: TlsHosts, tmp_path: Path
) -> None:
    root = Issued.root()
    stranger = Issued.root("stranger").issue("untrusted.example")
    shown = {
        "good": root.issue("good.example"),
        "soon": root.issue("soon.example", days=5.5),
        "ended": root.issue("ended.example", days=-2, begun=9),
        "misnamed": root.issue("other.example"),
        "untrusted": stranger,
    }
    says = {
        "soon": "ends in 5d",
        "ended": "ended 2d",
        "misnamed": "is for another name",
        "untrusted": "is not trusted",
    }
    for name, issued in shown.items():
        hosts.show(f"{name}.example", issued)
    for name in (*shown, "gone"):
        ingress(server, SPACE, name, f"{name}.example")
        reached(server, SPACE, name, hosts.port if name in shown else 1)
    ca_file = root.write(tmp_path, "root")[0]
    async with Watched(server, tmp_path, ca_file=ca_file) as watched:
        wanted = set(map(key, says))
        # An observation does not wait for every handshake.
        await watched.until(lambda found: found == wanted and not unexamined(watched))
        told = {one.facts["name"]: one for one in watched.last.signals}
        for name, text in says.items():
            assert text in told[name].message
            assert told[name].facts["host"] == f"{name}.example"
            critical = told[name].severity is Severity.CRITICAL
            assert critical is (name != "soon")
        assert watched.known(*key("good")) and not watched.known(*key("gone"))
        assert "connection refused" in told["gone"].message
        assert not server.requests.where(asking(resource="secrets"))

        for ticket in watched.tickets(CERTIFICATE):
            context = await watched.gathered([ticket])
            [(_, note)] = preliminary(PLAYBOOKS, "kubernetes", [ticket], context)
            grounding = ground(note, context.evidence)
            assert grounding.verified == grounding.total and note.confidence == "high"
            about = ticket.facts["host"]
            assert f"-servername {about}" in note.model_dump_json()

        # What is reached no more is unknown: its ticket stays. A new certificate is clear.
        reached(server, SPACE, "ended", 1)
        hosts.show("misnamed.example", root.issue("misnamed.example"))
        watched.clock.seconds = 301
        wanted = {key("soon"), key("untrusted")}
        await watched.until(lambda found: found == wanted and not unexamined(watched))
        assert watched.known(*key("misnamed")) and not watched.known(*key("ended"))
        changed = watched.last.configuration["certificate misnamed.example"]
        assert "misnamed.example" in str(changed)
        assert watched.last.configuration["certificate ended.example"] is None


async def test_a_host_is_asked_once_an_hour_also_after_a_restart(
    server: ApiServer, hosts: TlsHosts, tmp_path: Path
) -> None:
    root = Issued.root()
    for name in ("shop.example", "ignored.example"):
        hosts.show(name, root.issue(name))
        ingress(server, SPACE, name.partition(".")[0], name)
        reached(server, SPACE, name.partition(".")[0], hosts.port)
    given = {
        "ca_file": root.write(tmp_path, "root")[0],
        "invariants": {CERTIFICATE: {"ignore": [{"host": "ignored.*"}]}},
    }
    async with Watched(server, tmp_path, **given) as watched:
        await watched.until(lambda _: watched.known(*key("shop")))
        for _ in range(5):
            await watched.observe()
        kept = watched.last.state
    assert hosts.asked == ["shop.example"]
    async with Watched(server, tmp_path, **given) as restarted:
        restarted.last = await restarted.subject.observe(kept)
        assert restarted.known(*key("shop")) and hosts.asked == ["shop.example"]
        assert restarted.last.ignored[CERTIFICATE] == ("shop/Ingress/ignored",)
        restarted.clock.seconds = 3601
        await restarted.until(lambda _: len(hosts.asked) == 2)
        # It was fine an hour ago; the certificate that it shows then has an end all the same.
        restarted.clock.seconds = 360 * 86400
        await restarted.until(lambda found: found == {key("shop")})
    off = {"invariants": {CERTIFICATE: {"enabled": False}}}
    hosts.asked.clear()
    async with Watched(server, tmp_path, **off) as watched:
        await watched.observe()
    assert not hosts.asked


def test_a_file_of_authorities_that_cannot_be_used_is_one_line(
    server: ApiServer, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="no certificates could be read"):
        Watched(server, tmp_path, ca_file=tmp_path / "none.pem")


def test_hosts_and_addresses_are_taken_from_an_ingress() -> None:
    rules = [
        {"host": name} for name in ("a.example", "x.wild.example", "y.z.wild.example")
    ]
    places = [
        {"ip": "192.0.2.7"},
        {"hostname": "lb.example", "ports": [{"port": 80}, {"port": 8443}]},
        {"hostname": "-bad name"},
    ]
    found = read_ingress(
        {
            "metadata": {"name": "one", "namespace": SPACE},
            "spec": {
                "tls": [
                    {"secretName": "rest"},
                    {"hosts": ["*.wild.example", "B.example", 7], "secretName": "wild"},
                ],
                "rules": rules,
            },
            "status": {"loadBalancer": {"ingress": places}},
        }
    )
    assert found.tls_hosts == {
        "x.wild.example": "wild",
        "a.example": "rest",
        "y.z.wild.example": "rest",
    }
    assert found.addresses == (("192.0.2.7", 443), ("lb.example", 8443))
