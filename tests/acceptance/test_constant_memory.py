"""What comes and goes for as long as a daemon runs leaves nothing behind in it."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import ssl
import struct
import tracemalloc
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from midwatch.agent.claude_process import ClaudeProcess
from midwatch.agent.link_graph import LinkGraph
from midwatch.cli.app import ModelFromKey
from midwatch.content import tree as content_tree
from midwatch.content.errors import ContentTooLarge
from midwatch.errors import ObservationFailed
from midwatch.http_serving import Server, listening, protocol_with_timeout
from midwatch.lifecycle import Backoff, SystemClock
from midwatch.logs import quiet_log
from midwatch.model import Key, Observation, Signal
from midwatch.monitor import rules
from midwatch.notification_settings import NotificationSettings
from midwatch.server import authentication
from midwatch.server_settings import ServerSettings
from midwatch.session.events import Started, ToolResult, ToolUse
from midwatch.session.permissions import SandboxWatch
from midwatch.settings import Settings
from midwatch.store.on_call import NewDelivery, NewToken
from midwatch.store.sql import SqlStore, open_store
from midwatch.subjects.base import Subject
from midwatch.subjects.host import HostSubject
from midwatch.subjects.host_mounts import OffLoop
from midwatch.subjects.host_settings import HostSettings
from midwatch.subjects.mysql import MysqlSettings, MysqlSubject
from midwatch.subjects.postgres import PostgresSettings, PostgresSubject
from midwatch.testing.fakes import ALIVE
from midwatch.testing.store_conformance.fixture import MovableClock, StoreFixture
from midwatch.testing.subject_conformance import tickets_for
from tests.cluster import ApiServer, asking

from ..mariadb_server import free_port
from ..waiting import PATIENCE
from .cluster_subject import Watched, deployment, namespace, pod_spec
from .content_proxy import bearer, file, proxy
from .content_sync import side
from .notify_support import notifier, service, settings
from .test_notifications import running, told
from .web import Issued, ok, serving, subject

MANY = 20


@pytest.fixture
async def store() -> AsyncIterator[SqlStore]:
    found = await open_store("sqlite://")
    yield found
    await found.close()


def alive(kind: type) -> int:
    """Return how many objects of a class there are."""
    return sum(isinstance(one, kind) for one in gc.get_objects())


def collected(kind: type) -> int:
    """Return the same without what only the garbage collector frees."""
    gc.collect()
    return alive(kind)


async def falls(kind: type, most: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while collected(kind) > most:
            await asyncio.sleep(0.05)


async def test_callbacks(store: SqlStore) -> None:
    """Each may have an address of its own."""
    with service() as hook:
        chosen = NotificationSettings(
            callback_hosts=[hook.url.removeprefix("http://")], poll_interval=0.05
        )
        async with running(notifier(store, chosen)):
            before = collected(Backoff)
            [ticket] = await StoreFixture(store, MovableClock()).open("orders")
            new = [
                NewDelivery(
                    *(f"callback {n}", "callback", f"{hook.url}/{n}", "investigation"),
                    *(f"callback {n}", ticket.id, {"investigation": f"i-{n}"}),
                )
                for n in range(MANY)
            ]
            place = await store.cursor("notifier")
            while not await store.save_deliveries("notifier", place, place, new):  # type: ignore[arg-type]
                place = await store.cursor("notifier")
            await told(hook, MANY)
            await falls(Backoff, before)


async def test_cookies_of_a_service(store: SqlStore) -> None:
    cookie = {"Set-Cookie": "route=1; Path=/"}
    with service(lambda call: (200, cookie, b"")) as hook:
        async with running(notifier(store, settings({"webhook": {"url": hook.url}}))):
            await StoreFixture(store, MovableClock()).open("orders")
            await told(hook, 1)
            await StoreFixture(store, MovableClock()).open("shop")
            calls = await told(hook, 2)
    assert not any("cookie" in call.headers for call in calls)


async def test_tokens(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sign-in is one."""
    monkeypatch.setattr(authentication, "_MOST_REMEMBERED", MANY)
    found = authentication.Authenticator(
        ServerSettings(), store, SystemClock(), quiet_log()
    )
    for number in range(3 * MANY):
        secret = authentication.new_secret()
        digest = authentication.digest_of(secret)
        owner = ("api", f"t{number}", digest, "viewer", (), "ann", 60.0)
        await store.add_token(NewToken(*owner))
        assert (await found.valid(secret, "api")).name == f"t{number}"
    assert len(found._known) <= MANY and len(found._used) <= MANY
    await found.close()


async def test_keys_that_are_replaced(tmp_path: Path) -> None:
    file = tmp_path / "key"
    written = {"anthropic": {"api_key_file": str(file)}}
    models = ModelFromKey(Settings.model_validate(written), {})
    before = collected(ClaudeProcess)
    for number in range(MANY):
        file.write_text(f"key-{number}")
        assert models() is not None
    assert collected(ClaudeProcess) == before + 1
    await models.close()


def test_names_that_are_no_subjects() -> None:
    """A ticket that somebody opened may have any subject."""
    graph = LinkGraph([("shop", "orders-db")])

    def size() -> int:
        return sum(len(one) for one in vars(graph).values() if isinstance(one, dict))

    def ask(name: str) -> tuple[Any, ...]:
        return graph.reached(name), graph.related(name, lambda _: False)

    assert ask("shop") == ({"orders-db"}, {"orders-db"})
    before = size()
    for number in range(MANY):
        name = f"job-{number}"
        assert ask(name) == (set(), set())
        assert graph.deepest_first([name, "shop"]) == [name, "shop"]
    assert size() == before


async def test_connections_that_are_reset() -> None:
    """Not even until an idle one would end."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        head = {"type": "http.response.start", "status": 204, "headers": []}
        await send(head)
        await send({"type": "http.response.body"})

    protocol = protocol_with_timeout(600)
    config = uvicorn.Config(app, http=protocol, timeout_keep_alive=600, lifespan="off")
    server = Server(config)
    with listening("127.0.0.1", 0, setting="test") as opened:
        task = asyncio.create_task(server.serve([opened]))
        loop = asyncio.get_running_loop()
        for _ in range(MANY):
            with socket.socket() as client:
                client.setblocking(False)
                await loop.sock_connect(client, opened.getsockname())
                await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"204" in await loop.sock_recv(client, 4096)
                reset = struct.pack("ii", 1, 0)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        await falls(protocol, 0)
        server.should_exit = True
        await task


# ------------------------------------------------------------------ observations that fail


@contextmanager
def uncollected() -> Iterator[None]:
    """Only what nothing refers to goes: a daemon looks for reference cycles rarely."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def looks(subject: Subject, count: int) -> None:
    for _ in range(count):
        seen = await subject.observe({})
        assert [one.holds for one in seen.signals if one.invariant == "reachable"]


def sockets() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_an_untrusted_certificate(tmp_path: Path) -> None:
    """A context of TLS takes a megabyte."""
    issued = Issued.root().issue("localhost")
    with serving(ok, issued.context(tmp_path)) as url:
        one = subject(url.replace("127.0.0.1", "localhost"))
        with uncollected():
            await looks(one, 1)
            before = alive(ssl.SSLContext)
            await looks(one, 3)
            assert alive(ssl.SSLContext) == before
        await one.close()


async def test_a_postgres_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        dsn = f"host=127.0.0.1 port={silent.getsockname()[1]} user=u dbname=d"
        given = {"name": "db", "dsn": dsn, "connect_timeout": 0.05}
        one = PostgresSubject(PostgresSettings.model_validate(given))
        with uncollected():
            await looks(one, 1)
            before = sockets()
            await looks(one, 5)
            assert sockets() == before


async def test_a_mysql_that_refuses_connections() -> None:
    """An error of the driver has its connection, with its buffers."""
    given = {"name": "db", "host": "127.0.0.1", "port": free_port(), "user": "u"}
    one = MysqlSubject(MysqlSettings.model_validate(given))
    with uncollected():
        await looks(one, 1)
        tracemalloc.start()
        try:
            await looks(one, 5)
            assert tracemalloc.get_traced_memory()[0] < 500_000
        finally:
            tracemalloc.stop()


async def test_downloads_whose_client_goes_away(tmp_path: Path) -> None:
    """A piece of a download has up to four megabytes."""
    data = os.urandom(8 << 20)
    async with proxy(tmp_path) as one:
        caller = one.caller()
        await caller.put(data)
        version, _ = await caller.manifest()
        whole = file(data)
        stored = await caller.commit(version, {"workspace/large": whole})
        assert stored.status_code == 200
        asked = json.dumps({"hashes": list(whole.chunks)}).encode()
        login = bearer(caller.folder)["authorization"]
        head = (
            f"POST {caller.at}/chunks/read HTTP/1.1\r\nHost: x\r\nAuthorization: {login}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(asked)}\r\n\r\n"
        )

        async def leave() -> None:
            host, _, port = one.url.removeprefix("http://").partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head.encode() + asked)
            assert await reader.readexactly(100)
            writer.transport.abort()

        await leave()
        with uncollected():
            tracemalloc.start()
            try:
                for _ in range(5):
                    await leave()
                async with asyncio.timeout(PATIENCE):
                    while tracemalloc.get_traced_memory()[0] > 4 << 20:
                        await asyncio.sleep(0.05)
            finally:
                tracemalloc.stop()


# ------------------------------------------------------------------ files of a session


async def test_commits_that_are_refused(tmp_path: Path) -> None:
    """A workspace that is too large stays so, and its files change."""
    async with (
        proxy(tmp_path, max_entries=2) as running,
        side(running, tmp_path / "pod") as pod,
    ):
        for name in "abcd":
            pod.write(f"workspace/{name}", "")
        before = collected(content_tree.Entry)
        for number in range(MANY):
            pod.write("workspace/a", f"{number}")
            with pytest.raises(ContentTooLarge):
                await pod.sync.push()
        assert collected(content_tree.Entry) < before + MANY


async def test_files_that_cannot_be_here_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that takes shorter names than the proxy."""
    monkeypatch.setattr(content_tree, "MAX_PART", 300)
    async with (
        proxy(tmp_path) as running,
        side(running, tmp_path / "pod") as pod,
    ):
        caller = running.caller()
        await caller.put(b"x")
        before = collected(content_tree.Entry)
        for number in range(MANY):
            path = f"workspace/{number:0300}"
            base, tree = await caller.manifest()
            gone = [one for one in tree if one.startswith("workspace/")]
            stored = await caller.commit(base, {path: file(b"x")}, gone)
            assert stored.status_code == 200
            await pod.sync.pull()
        assert os.listdir(pod.work) == []
        assert collected(content_tree.Entry) < before + MANY


def test_calls_of_bash_without_a_result() -> None:
    """Those that an interrupt ended, in a session whose sandbox is known to work."""
    watch = SandboxWatch()
    watch.observe(Started(conversation="c", sandbox=True))
    for number in range(MANY):
        for name in (f"ends-{number}", f"interrupted-{number}"):
            watch.observe(ToolUse(id=name, name="Bash", input={"command": "ls"}))
        watch.observe(ToolResult(tool_use_id=f"ends-{number}", text=""))
    assert len(watch._commands) < 2


# ------------------------------------------------------------------ components that are replaced


async def test_evidence_of_mounts_that_come_and_go(tmp_path: Path) -> None:
    """A machine of Kubernetes has others all the time."""
    host = HostSubject(HostSettings.model_validate({"name": "box"}))

    async def ask(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        facts = {"mount": str(folder)}
        full = Signal("disk", f"{folder}", "full", holds=False, facts=facts)
        [ticket] = tickets_for(host, Observation((full,), frozenset()))
        for source in host.sources([ticket]):
            with suppress(ObservationFailed):
                await source.fetch()

    await ask(0)
    before = alive(OffLoop)
    for number in range(1, 4):
        await ask(number)
    assert alive(OffLoop) == before


def test_violations_that_are_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pods that only a part of the answers shows, those seen last keep their start."""
    monkeypatch.setattr(rules, "_MOST_UNSEEN", MANY)
    alive_ = {ALIVE.id: replace(ALIVE, hold_for=3600.0)}
    pending: Mapping[Key, float] = {}
    for number in range(3 * MANY):
        signal = Signal(ALIVE.id, f"pod-{number}", "down", holds=False)
        partly = Observation((signal,), frozenset())
        pending = rules.check("web", alive_, partly, pending, number).pending
    assert len(pending) == MANY + 1
    assert pending[Key("web", ALIVE.id, f"pod-{3 * MANY - 2}")] == 3 * MANY - 2


async def test_workloads_of_a_cluster(tmp_path: Path) -> None:
    """Also while a kind of them is forbidden, which can be for good."""
    with ApiServer(bookmarks=0.2) as server:
        space = namespace(server, "shop")
        server.faults.refuse(asking("list", "daemonsets"), status=403)
        histories = server.faults.refuse(asking("list", "replicasets"))
        async with Watched(server, tmp_path, namespaces=[space]) as watched:
            changes = watched.subject._changes

            async def shows(number: int, where: Collection[str]) -> None:
                deployment(server, space, f"web-{number}", 1)
                made = server.objects.get("deployments", space, f"web-{number}")
                uid = made["metadata"]["uid"]
                await watched.until(lambda _: uid in where)
                assert [*where] == [uid]
                server.objects.delete("deployments", space, f"web-{number}", grace=0)

            for number in range(3):
                await shows(number, changes._tries)
            server.faults.lift(histories)
            for number in range(3, 6):
                await shows(number, changes._revisions)


async def test_config_maps_of_a_cluster(tmp_path: Path) -> None:
    """Each rollout may have one of its own."""
    with ApiServer(bookmarks=0.2) as server:
        space = namespace(server, "shop")
        forbidden = asking("list", "configmaps", namespace="other")
        server.faults.refuse(forbidden, status=403)
        async with Watched(server, tmp_path, namespaces=[space, "other"]) as watched:
            changes = watched.subject._changes
            for number in range(3):
                name = f"config-{number}"
                meta = {"name": name}
                server.objects.create(
                    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}, space
                )
                uid = server.objects.get("configmaps", space, name)["metadata"]["uid"]
                source = {"configMapRef": {"name": name}}
                spec = pod_spec(container={"envFrom": [source]})
                deployment(server, space, f"web-{number}", 1, **spec)
                await watched.until(lambda _: uid in changes._maps)
                assert [*changes._maps] == [*changes._written] == [uid]
                for plural, gone in (
                    ("deployments", f"web-{number}"),
                    ("configmaps", name),
                ):
                    server.objects.delete(plural, space, gone, grace=0)


async def test_storage_classes_of_a_cluster(tmp_path: Path) -> None:
    with ApiServer(bookmarks=0.2) as server:
        space = namespace(server, "shop")
        failing = server.faults.refuse(asking("get", "storageclasses"))
        async with Watched(server, tmp_path, namespaces=[space]) as watched:
            await watched.observe()
            classes = watched.subject._classes
            assert classes is not None

            async def shows(number: int, where: Collection[str]) -> None:
                name = f"claim-{number}"
                server.objects.create(
                    {
                        "apiVersion": "v1",
                        "kind": "PersistentVolumeClaim",
                        "metadata": {"name": name},
                        "spec": {
                            "accessModes": ["ReadWriteOnce"],
                            "storageClassName": f"class-{number}",
                            "resources": {"requests": {"storage": "1Gi"}},
                        },
                    },
                    space,
                )
                status = {"status": {"phase": "Pending"}}
                server.objects.merge(
                    "persistentvolumeclaims", space, name, status, sub="status"
                )
                await watched.until(lambda _: f"class-{number}" in where)
                assert [*where] == [f"class-{number}"]
                server.objects.delete("persistentvolumeclaims", space, name, grace=0)

            for number in range(3):
                await shows(number, classes._failed)
            server.faults.lift(failing)
            for number in range(3, 6):
                await shows(number, classes._late)
