"""Lists and watches: what they make of an API server that forgets, breaks off, refuses and speaks nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from midwatch.cluster.errors import ClusterUnavailable
from midwatch.cluster.reflector import Reflector, WatchStats
from midwatch.kube.cache import Index, Key, session_reflector
from midwatch.kube.client import Cluster
from midwatch.kube.crd import crd
from midwatch.kube.rules import API_VERSION, KIND, PLURAL, SESSION_LABEL
from midwatch.lifecycle import Liveness, SystemClock
from midwatch.logs import open_log
from midwatch.model import Json
from midwatch.redaction import Redactor
from midwatch.settings import LogSettings, OperatorSettings
from tests.cluster import ApiServer, asking

from ..acceptance.cli import comes_true
from ..waiting import PATIENCE

pytestmark = pytest.mark.integration

eventually = partial(comes_true, timeout=PATIENCE)


class Stand:
    """A reflector on a server, and what came of it."""

    def __init__(self, server: ApiServer, kubeconfig: Path) -> None:
        self.server = server
        self.kubeconfig = kubeconfig
        self.index = Index()
        self.changed: list[Key] = []
        self.stats = WatchStats(SystemClock())
        self.log = io.StringIO()

    @contextlib.asynccontextmanager
    async def reflector(
        self,
        resource: str = PLURAL,
        namespace: str | None = None,
        *,
        resync: float = 300.0,
        **settings: Any,
    ) -> AsyncIterator[Reflector]:
        ours = {"backoff": 0.05, "backoff_max": 0.2, "request_timeout": 2, **settings}
        clock = SystemClock()
        async with Cluster.connect(self.kubeconfig, timeout=2) as cluster:
            one = session_reflector(
                cluster,
                resource,
                namespace,
                index=self.index,
                changed=self.changed.append,
                settings=OperatorSettings(**ours),
                stats=self.stats,
                progress=Liveness(clock),
                clock=clock,
                log=open_log(LogSettings(format="json"), self.log, Redactor()),
                resync=resync,
            )
            task = asyncio.create_task(one.run())
            try:
                await eventually(lambda: self.stats.watches() == 1 or self.log.tell())
                yield one
                await eventually(lambda: self.stats.down()[resource] == 0)
                assert not task.done()
            finally:
                task.cancel()
                await asyncio.wait([task])

    def lines(self) -> list[Json]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def create(self, name: str, prompt: str = "mend it") -> None:
        repos = [{"input": {"url": "https://git.example/shop.git"}}]
        document = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name},
            "spec": {"prompt": prompt, "repos": repos},
        }
        self.server.objects.create(document)

    def pod(self, name: str, namespace: str = "default") -> None:
        labels = {SESSION_LABEL: "shop"}
        meta = {"name": name, "namespace": namespace, "labels": labels}
        spec = {"containers": [{"name": "session", "image": "x"}]}
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
        self.server.objects.create(document)

    def pods(self, namespace: str = "default") -> set[str]:
        known = self.index.get((namespace, "shop"))
        return set(known.pods) if known else set()

    def names(self) -> set[str]:
        return {name for _, name in self.index}

    def asked(self, verb: str) -> int:
        return len(self.server.requests.where(asking(verb)))


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with ApiServer(bookmarks=0.1) as server:
        server.objects.create(crd(), "")
        yield Stand(server, server.kubeconfig(tmp_path / "kubeconfig"))


async def test_what_is_deleted_while_the_history_is_lost_is_gone(stand: Stand) -> None:
    """The server does not know any more what happened: by its status, and in the stream."""
    for name in ("one", "two", "three"):
        stand.pod(name)
    faults = stand.server.faults
    async with stand.reflector("pods"):
        assert stand.pods() == {"one", "two", "three"}
        for name in ("one", "two"):
            stand.changed.clear()
            closed = faults.refuse(asking("watch"))
            faults.break_watches()
            stand.server.objects.delete("pods", "default", name, grace=0)
            if name == "one":
                stand.server.forget_history()
            else:
                faults.refuse(asking("watch"), status=410, times=1)
            await asyncio.sleep(0.1)
            assert name in stand.pods()
            faults.lift(closed)
            await eventually(lambda: name not in stand.pods())
            assert ("default", "shop") in stand.changed
        stand.pod("four")
        await eventually(lambda: stand.pods() == {"three", "four"})
        stand.server.objects.delete("pods", "default", "three", grace=0)
        await eventually(lambda: stand.pods() == {"four"})


async def test_a_namespace_that_is_not_served_keeps_what_another_reflector_found(
    stand: Stand,
) -> None:
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
    stand.server.objects.create(space)
    stand.pod("one")
    stand.pod("two", "team")
    async with stand.reflector("pods"):
        assert stand.pods() == {"one"} and stand.pods("team") == {"two"}
    stand.stats = WatchStats(SystemClock())
    stand.server.objects.delete("pods", "team", "two", grace=0)
    stand.server.objects.delete("pods", "default", "one", grace=0)
    async with stand.reflector("pods", "team"):
        assert stand.pods() == {"one"} and stand.pods("team") == set()


async def test_a_watch_goes_on_where_it_was(stand: Stand) -> None:
    async with stand.reflector(watch_silence=0.4):
        assert (stand.asked("list"), stand.asked("watch")) == (1, 1)
        await asyncio.sleep(0.8)
        assert stand.asked("watch") == 1, "bookmarks are a sign of life"
        stand.server.faults.break_watches()
        stand.create("one")
        await eventually(lambda: stand.names() == {"one"})
        stand.server.faults.freeze_watches()
        stand.create("two")
        await eventually(lambda: stand.names() == {"one", "two"})
        assert stand.asked("list") == 1 and stand.lines() == []


async def test_everything_is_listed_again_from_time_to_time(stand: Stand) -> None:
    stand.create("one")
    async with stand.reflector(resync=1.0):
        stand.changed.clear()
        await eventually(lambda: stand.asked("list") == 3)
        await eventually(lambda: len(stand.changed) == 2)


async def test_an_outage_is_logged_once_and_its_end(stand: Stand) -> None:
    async with stand.reflector():
        refused = stand.server.faults.refuse(status=503)
        stand.server.faults.break_watches()
        before = stand.asked("watch")
        await eventually(lambda: stand.asked("watch") > before + 4)
        assert stand.stats.down()[PLURAL] > 0.2
        stand.server.faults.lift(refused)
        await eventually(lambda: stand.stats.down()[PLURAL] == 0)
    first, last = stand.lines()
    assert first["event"] == "cannot watch" and "503" in first["error"]
    assert first["watch"] == f"*/{PLURAL}" == last["watch"]
    assert last["event"] == "watching again"


async def test_a_resource_that_is_not_defined_is_waited_for(stand: Stand) -> None:
    missing = stand.server.faults.refuse(asking("list"), status=404)
    async with stand.reflector() as reflector:
        assert "midwatch kube crd" in stand.lines()[0]["hint"]
        assert not reflector.listed.is_set() and stand.stats.watches() == 0
        stand.server.faults.lift(missing)
        stand.create("one")
        await eventually(lambda: stand.names() == {"one"})


@pytest.mark.parametrize("rotated", ["in the kubeconfig", "in a file"])
async def test_a_token_that_was_replaced_is_read_again(
    stand: Stand, tmp_path: Path, rotated: str
) -> None:
    token, good = tmp_path / "token", stand.server.admin_token

    def write(value: str) -> None:
        token.write_text(value)
        user = {"token": value}
        if rotated == "in a file":
            user = {"tokenFile": str(token)}
        cluster = {"name": "a", "cluster": {"server": stand.server.url}}
        context = {"name": "a", "context": {"cluster": "a", "user": "a"}}
        config = {"current-context": "a", "clusters": [cluster], "contexts": [context]}
        config |= {"users": [{"name": "a", "user": user}]}
        stand.kubeconfig.write_text(json.dumps(config))

    write("old")
    async with stand.reflector():
        assert "401" in stand.lines()[0]["error"]
        write(good)
        stand.create("one")
        await eventually(lambda: stand.names() == {"one"})


# ------------------------------------------------------------------ the stream


@contextlib.asynccontextmanager
async def answering(folder: Path, body: bytes) -> AsyncIterator[Cluster]:
    """A cluster that answers each request with this stream, in pieces of seven bytes, and breaks off."""

    done = asyncio.Event()

    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) + 1}\r\n\r\n"
        with contextlib.suppress(ConnectionError):  # the client has read enough
            writer.write(head.encode())
            for start in range(0, len(body), 7):
                writer.write(body[start : start + 7])
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        done.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        "current-context: a\n"
        f"clusters: [{{name: a, cluster: {{server: 'http://127.0.0.1:{port}/prefix'}}}}]\n"
        "contexts: [{name: a, context: {cluster: a, user: a}}]\n"
        "users: [{name: a, user: {token: t}}]\n"
    )
    async with server, Cluster.connect(kubeconfig, timeout=2) as cluster:
        yield cluster
        await asyncio.wait_for(done.wait(), PATIENCE)


async def read(cluster: Cluster) -> list[tuple[str, Json]]:
    async with cluster.watch(PLURAL, None, "1", seconds=9, silence=9) as events:
        return [event async for event in events]


def event(type_: str, body: Json) -> bytes:
    return json.dumps({"type": type_, "object": body}, ensure_ascii=False).encode()


async def test_a_separator_in_a_prompt_is_not_the_end_of_an_event(
    tmp_path: Path,
) -> None:
    body = {"spec": {"prompt": "a\x85b\u2028c"}, "metadata": {"name": "one"}}
    stream = event("ADDED", body) + b"\n" + event("DELETED", body) + b"\n{half"
    async with answering(tmp_path, stream) as cluster:
        assert await read(cluster) == [("ADDED", body), ("DELETED", body)]
        assert cluster.requests == {("watch", "2xx"): 1}


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (event("ERROR", {"code": 410, "message": "too old"}), 410),
        (event("ERROR", {"code": 500, "message": "etcd"}), 500),
        (b"<html>", 0),
        (b'{"type": "ADDED"}', 0),
    ],
)
async def test_an_error_in_the_stream(tmp_path: Path, line: bytes, status: int) -> None:
    async with answering(tmp_path, line + b"\n") as cluster:
        with pytest.raises(ClusterUnavailable, match="cannot watch") as caught:
            await read(cluster)
    assert caught.value.status == status
