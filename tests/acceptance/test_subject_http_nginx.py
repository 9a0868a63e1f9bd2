"""The kind `http` against a real nginx: packed files, chains, redirects, names, and a restart."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.first_aid import preliminary
from midwatch.lifecycle import SystemClock
from midwatch.model import UNRESOLVED, Origin
from midwatch.monitor.loop import MonitorLoop
from midwatch.playbooks.general import PLAYBOOKS
from midwatch.redaction import Redactor
from midwatch.settings import MonitorSettings
from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import SqlStore
from midwatch.subjects.http import HttpSubject
from midwatch.testing.fakes import ManualClock
from midwatch.testing.subject_conformance import check_subject, tickets_for

from ..waiting import PATIENCE
from .cli import comes_true
from .web import Issued, broken, subject

PROGRAM = shutil.which("nginx") or shutil.which(
    "nginx", path="/usr/sbin:/usr/local/sbin"
)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs the program nginx")

CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{
        listen 127.0.0.1:{plain};
        root {folder}/www;
        location / {{ gzip_static always; }}
        location = /upgrade {{ return 301 https://localhost:{secure}/; }}
        location = /gone {{ return 444; }}
        location = /dead {{ proxy_pass http://127.0.0.1:1; }}
    }}
    server {{
        listen 127.0.0.1:{secure} ssl;
        server_name localhost;
        ssl_certificate {folder}/local.pem; ssl_certificate_key {folder}/local.key;
        location / {{ return 200 "local well"; }}
    }}
    server {{
        listen 127.0.0.1:{secure} ssl;
        server_name shop.example;
        ssl_certificate {folder}/shop.pem; ssl_certificate_key {folder}/shop.key;
        location / {{ return 200 "shop well"; }}
    }}
}}
"""


class Nginx:
    """nginx in the foreground, as one process, on two free ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            plain, secure = one.getsockname()[1], two.getsockname()[1]
        self.plain, self.secure = (
            f"http://127.0.0.1:{plain}",
            f"https://localhost:{secure}",
        )
        self._ports = {"plain": plain, "secure": secure}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        assert PROGRAM is not None
        file = self.folder / "nginx.conf"
        file.write_text(CONFIGURATION.format(folder=self.folder, **self._ports))
        self._process = await asyncio.create_subprocess_exec(
            PROGRAM,
            "-p",
            str(self.folder),
            "-c",
            str(file),
            stderr=asyncio.subprocess.DEVNULL,
        )
        await comes_true(self._answers, PATIENCE)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return not probe.connect_ex(("127.0.0.1", self._ports["secure"]))

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            await process.wait()


@pytest.fixture
async def nginx(tmp_path: Path) -> AsyncIterator[Nginx]:
    root = Issued.root()
    root.write(tmp_path, "root")
    root.authority("middle", days=3).issue("localhost", 90).write(tmp_path, "local")
    root.issue("shop.example", 90).write(tmp_path, "shop")
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "health.gz").write_bytes(gzip.compress(b'{"status": "ok"}'))
    server = Nginx(tmp_path)
    await server.start()
    yield server
    await server.stop()


def watching(nginx: Nginx, url: str, **settings: object) -> HttpSubject:
    return subject(url, **{"ca_file": nginx.folder / "root.pem", **settings})


async def test_a_file_that_is_always_sent_compressed(nginx: Nginx) -> None:
    shop = watching(nginx, f"{nginx.plain}/health", body_matches='^{"status": "ok"}$')
    observation = await check_subject(shop)
    text = await shop.sources(())[0].fetch()
    assert observation is not None and not broken(observation)
    assert "header content-encoding: gzip" in text and '| {"status": "ok"}' in text


@pytest.mark.parametrize("path", ["/upgrade", None])
async def test_the_intermediate_authority_counts_directly_and_by_redirect(
    path: str | None, nginx: Nginx
) -> None:
    shop = watching(nginx, nginx.plain + path if path else nginx.secure)
    observation = await shop.observe({})
    await shop.close()
    [expiry] = [
        one for one in observation.signals if one.invariant == "certificate_expiry"
    ]
    assert "CN=middle" in expiry.message
    assert expiry.value == pytest.approx(3 * 86400, abs=600)
    assert not broken(observation)


async def test_a_name_chooses_the_server_and_its_certificate(nginx: Nginx) -> None:
    url = nginx.secure.replace("localhost", "127.0.0.1")
    named = {"server_name": "shop.example", "headers": {"Host": "shop.example"}}
    shop = watching(nginx, url, body_matches="^shop well$", **named)
    assert not broken(await shop.observe({}))
    assert "shop.example" not in shop.secrets
    await shop.close()


async def test_a_restart_is_one_ticket_that_resolves(
    nginx: Nginx, store: SqlStore, clock: ManualClock
) -> None:
    limits = {"certificate_expiry": {"limit": "1d"}}
    shop = watching(nginx, nginx.secure, body_matches="well", invariants=limits)
    dropped = watching(nginx, f"{nginx.plain}/gone", name="gone")
    loop = MonitorLoop(
        store, [shop, dropped], MonitorSettings(group_wait=0), clock=clock
    )

    async def cycle() -> set[tuple[str, str]]:
        await loop.cycle()
        found = await store.tickets(TicketFilter(statuses=UNRESOLVED))
        return {(ticket.key.subject, ticket.key.invariant) for ticket in found}

    closed = ("gone", "reachable")  # nginx closes without an answer
    assert await cycle() == {closed}
    await nginx.stop()
    for _ in range(4):
        assert await cycle() == {closed, ("shop", "reachable")}
    await nginx.start()
    assert await cycle() == {closed}
    await loop.close()


async def test_a_dead_upstream_is_told_from_the_application(nginx: Nginx) -> None:
    log = nginx.folder / "error.log"
    shop = subject(f"{nginx.plain}/dead", log_files=[str(log)])
    observation = await shop.observe({})
    facts = broken(observation)["status"].facts
    assert facts["status"] == 502 and facts["answered_by"] == "nginx"
    tickets = [
        one for one in tickets_for(shop, observation) if one.key.invariant == "status"
    ]
    gatherer = ContextGatherer({shop.name: shop}, Redactor(), SystemClock())
    context = await gatherer.gather(tickets, timeout=PATIENCE, tokens=8000)
    await shop.close()
    [(_, note)] = preliminary(PLAYBOOKS, "http", tickets, context)
    assert "nginx itself answers" in note.root_cause
    assert "of the upstream http://127.0.0.1:1/dead" in note.root_cause
    [logged] = [one for one in context.evidence if one.title == "Log of the service"]
    assert logged.origin is Origin.REPORTED
