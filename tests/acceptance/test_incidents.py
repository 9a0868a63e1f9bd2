"""Incidents across subjects, on real servers: one batch, the deepest link first, and its state as evidence."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest

from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.first_aid import FirstAidWriter
from midwatch.agent.links import Links
from midwatch.errors import StoreBusy
from midwatch.lifecycle import SystemClock
from midwatch.model import UNRESOLVED, Context
from midwatch.monitor.loop import MonitorLoop
from midwatch.playbooks.base import playbooks
from midwatch.redaction import Redactor
from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import SqlStore
from midwatch.subjects.base import build_subjects, dependencies
from midwatch.subjects.host import HostSubject
from midwatch.testing.fakes import FakeSubject, ManualClock, broken, healthy
from midwatch.testing.postgres import PrivatePostgres

from ..waiting import PATIENCE
from .cli import comes_true, midwatch
from .web import Reply, serving

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
APP = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
PROXY = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{app}; }} }}
}}
"""


class Watched:
    """A monitor and a gatherer of some subjects on one store, as `midwatch up` has them."""

    def __init__(
        self, store: SqlStore, clock: ManualClock, written: Sequence[Mapping[str, Any]]
    ) -> None:
        self.store, self.clock = store, clock
        subjects = build_subjects(written)
        self.links = Links(subjects, dependencies(written))
        self.gatherer = ContextGatherer(
            {subject.name: subject for subject in subjects},
            Redactor([secret for one in subjects for secret in one.secrets]),
            SystemClock(),
            store.past,
            links=self.links,
            unresolved=lambda: store.tickets(TicketFilter(UNRESOLVED)),
        )
        kinds = {subject.name: subject.kind for subject in subjects}
        aid = FirstAidWriter(store, self.gatherer, playbooks(), kinds, clock, PATIENCE)
        self.loop = MonitorLoop(
            store, subjects, clock=clock, links=self.links, first_aid=aid
        )

    async def incident(self) -> Context:
        """Poll, claim the one incident that opened, and gather its evidence."""
        await self.loop.cycle()
        await self.clock.advance(10)
        [claim] = await self.store.claim("agent", lease=30, limit=9)
        return await self.gatherer.gather(
            claim.tickets, timeout=PATIENCE, tokens=30_000
        )


@contextlib.asynccontextmanager
async def watched(
    store: SqlStore, clock: ManualClock, *written: Mapping[str, Any]
) -> AsyncIterator[Watched]:
    made = Watched(store, clock, [{"timeout": PATIENCE, **one} for one in written])
    try:
        yield made
    finally:
        await made.loop.close()


def keys(context: Context) -> list[tuple[str, str]]:
    return [(ticket.key.subject, ticket.key.invariant) for ticket in context.tickets]


def piece(context: Context, title: str) -> str:
    [found] = [one for one in context.evidence if title in one.title]
    assert found.available, found.text
    return found.text


class Busy:
    """A store that is busy when the first note is saved."""

    def __init__(self, store: SqlStore) -> None:
        self._store, self.asked = store, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def save_first_aid(self, *given: Any) -> None:
        self.asked += 1
        if self.asked == 1:
            raise StoreBusy("all connections to the database are in use")
        await self._store.save_first_aid(*given)


async def test_first_aid_that_a_busy_store_did_not_take_is_given_again(
    store: SqlStore, clock: ManualClock
) -> None:
    looks = [broken("alive", "a"), broken("alive", "a", "b")]
    busy, subject = Busy(store), FakeSubject("db", looks)
    gatherer = ContextGatherer({"db": subject}, Redactor(), SystemClock())
    aid = FirstAidWriter(
        cast(SqlStore, busy), gatherer, playbooks(), {"db": "fake"}, clock, PATIENCE
    )
    loop = MonitorLoop(store, [subject], clock=clock, first_aid=aid)
    notes, asked = [], []
    for _ in range(3):
        await loop.cycle()
        tickets = await store.tickets(TicketFilter(UNRESOLVED))
        notes.append([one.first_aid is not None for one in tickets])
        asked.append(busy.asked)
        await clock.advance(30)
    assert notes == [[False], [True, True], [True, True]]
    assert asked[0] == 1 < asked[1] == asked[2]
    await loop.close()


@pytest.fixture(scope="module")
def database() -> Iterator[PrivatePostgres]:
    with PrivatePostgres(hba=["local all orders scram-sha-256"]) as server:
        yield server


def service(dsn: str, *, verbose: bool, statement: str = "SELECT 1") -> Any:
    """A service that answers 503 when its database fails, with the error or without."""

    def reply(handler: BaseHTTPRequestHandler) -> Reply:
        try:
            with psycopg.connect(dsn, connect_timeout=5) as connection:
                connection.execute(statement.encode())
        except psycopg.Error as error:
            text = f"database: {error}" if verbose else "try again later"
            return 503, {"Content-Type": "text/plain"}, text.encode()
        return 200, {}, b"well"

    return serving(reply)


@pytest.mark.parametrize("shown", [False, True], ids=["in the settings", "by itself"])
async def test_a_503_whose_cause_is_in_the_log_of_its_database(
    shown: bool, database: PrivatePostgres, store: SqlStore, clock: ManualClock
) -> None:
    """The client reads of a failed login alone, the log of the server has the expired password."""
    with psycopg.connect(database.dsn(), autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS orders")
        connection.execute(
            "CREATE ROLE orders LOGIN PASSWORD 'Tr0ub4dor' VALID UNTIL '2020-01-01'"
        )
    dsn = (
        f"host={database.socket_folder} user=orders password=Tr0ub4dor dbname=postgres"
    )
    db = {
        "name": "orders-db",
        "kind": "postgres",
        "dsn": database.dsn(),
        "log_file": str(database.log_file),
    }
    with service(dsn, verbose=shown) as url:
        needs = [] if shown else ["orders-db"]
        api = {"name": "api", "kind": "http", "url": f"{url}/", "depends_on": needs}
        async with watched(store, clock, api, db) as made:
            context = await made.incident()
    assert keys(context) == [("api", "status")]
    assert 'User "orders" has an expired password.' in piece(
        context, "orders-db: The server's log"
    )
    why = "api depends on orders-db: " + ("" if shown else "depends_on in the settings")
    assert why in piece(context, "Links between the systems")
    assert "no ticket is open on the linked orders-db" in piece(context, "Other open")
    assert "Tr0ub4dor" not in "".join(one.text for one in context.evidence)


@pytest.mark.skipif(NGINX is None, reason="needs the program nginx")
async def test_a_502_of_a_proxy_and_the_process_that_died(
    tmp_path: Path, store: SqlStore, clock: ManualClock
) -> None:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        port, app_port = one.getsockname()[1], two.getsockname()[1]
    script, settings = tmp_path / "orders_app.py", tmp_path / "nginx.conf"
    script.write_text(APP)
    settings.write_text(PROXY.format(folder=tmp_path, port=port, app=app_port))
    url = f"http://127.0.0.1:{port}/"
    written = (
        {"name": "shop", "kind": "http", "url": url},
        machine(processes=[{"pattern": str(script)}], process={}),
    )
    async with (
        running(sys.executable, str(script), str(app_port)) as app,
        running(str(NGINX), "-p", str(tmp_path), "-c", str(settings)),
        watched(store, clock, *written) as made,
    ):
        await comes_true(lambda: answers(port) and answers(app_port), PATIENCE)
        assert not (await made.loop.cycle()).opened
        app.kill()
        await app.wait()
        await clock.advance(60)
        context = await made.incident()
    assert keys(context) == [("box", "process"), ("shop", "status")]
    assert "shop depends on box: it is on that machine (127.0.0.1)" in piece(
        context, "Links"
    )
    titles = [one.title for one in context.evidence]
    assert any(title.startswith("shop: ") for title in titles)
    assert any(title.startswith("box: ") for title in titles)


@pytest.mark.usefixtures("short_walk")
async def test_four_alerts_on_one_full_disk_are_one_incident(
    database: PrivatePostgres, store: SqlStore, clock: ManualClock
) -> None:
    statement = (
        "COPY (SELECT repeat('x', 9000) FROM generate_series(1, 99)) TO '/dev/full'"
    )
    db = {
        "name": "orders-db",
        "kind": "postgres",
        "dsn": database.dsn(),
        "log_file": str(database.log_file),
    }
    report = '{"violations": [{"invariant": "queue", "component": "mail", "message": "No space left on device"}]}'
    queue = {"name": "queue", "kind": "command", "command": ["echo", report]}
    # The limit stands for a disk that is full.
    box = machine(mounts=["/"], disk={"limit": "0%"})
    async with watched(store, clock, db) as quiet:
        await quiet.loop.cycle()
    with service(database.dsn(), verbose=True, statement=statement) as url:
        api = {"name": "api", "kind": "http", "url": url, "depends_on": ["orders-db"]}
        with pytest.raises(psycopg.Error, match="No space left on device"):
            with psycopg.connect(database.dsn()) as connection:
                connection.execute(statement.encode())
        async with watched(store, clock, api, queue, db, box) as made:
            context = await made.incident()
    assert [subject for subject, _ in keys(context)] == [
        "box",
        "orders-db",
        "queue",
        "api",
    ]
    assert made.links.reach("api") == ["box", "orders-db"]


async def test_what_the_first_evidence_names_joins_the_incident(
    tmp_path: Path, store: SqlStore, clock: ManualClock
) -> None:
    """The body of a 503 has the address of the database, which is down: the settings name no link."""
    with PrivatePostgres() as server:
        dsn = server.dsn()
        db = {"name": "orders-db", "kind": "postgres", "dsn": dsn}
        with service(dsn, verbose=True) as url:
            api = {"name": "api", "kind": "http", "url": url}
            async with watched(store, clock, api, db) as made:
                assert not (await made.loop.cycle()).opened
                server.stop()
                context = await made.incident()
    assert keys(context) == [("orders-db", "reachable"), ("api", "status")]
    assert "api depends on orders-db: " in piece(context, "Links between the systems")


async def test_two_monitors_with_linked_subjects_open_one_incident(
    store: SqlStore, clock: ManualClock
) -> None:
    """Each has all subjects; what one opened, the other joins, and nobody opens twice."""
    subjects = [FakeSubject(name, [healthy(), broken("alive", "x")]) for name in "abc"]
    names = {"a": ["b"], "b": ["c"]}
    loops = [
        MonitorLoop(store, subjects, clock=clock, links=Links(subjects, names))
        for _ in range(2)
    ]
    for _ in range(3):
        await asyncio.gather(*(loop.cycle() for loop in loops))
    found = await store.tickets(TicketFilter(UNRESOLVED))
    assert len(found) == 3 and len({ticket.batch for ticket in found}) == 1


def test_check_shows_the_links(tmp_path: Path) -> None:
    (tmp_path / "midwatch.yaml").write_text(
        "subjects:\n"
        "- {name: box, kind: host}\n"
        "- {name: shop, kind: http, url: 'http://127.0.0.1:9/', depends_on: [orders-db]}\n"
        "- {name: orders-db, kind: postgres, dsn: 'host=localhost port=8'}\n"
    )
    lines = midwatch(tmp_path, "check").stdout.splitlines()
    assert (
        "✔ links of shop: depends on orders-db (depends_on in the settings), "
        "box (it is on that machine (127.0.0.1))"
    ) in lines
    assert (
        "✔ links of orders-db: depends on box (it is on that machine (localhost))"
        in lines
    )


def machine(
    *, mounts: Sequence[str] = (), processes: Sequence[Any] = (), **wanted: Any
) -> dict[str, Any]:
    """The settings of the subject `box`, this machine, with these invariants alone."""
    known = {one.id for one in HostSubject.default_invariants}
    off = {name: {"enabled": False} for name in known - wanted.keys()}
    return {
        **{"name": "box", "kind": "host", "invariants": {**off, **wanted}},
        **{"mounts": list(mounts), "processes": list(processes)},
    }


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", port))


@contextlib.asynccontextmanager
async def running(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
