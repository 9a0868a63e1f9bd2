"""What the daemons tell Prometheus and probes: real processes are asked, and the answers parsed by its library."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.runner import AgentRunner
from midwatch.cli.metrics import AGENT, MONITOR, metrics_served
from midwatch.cluster.reflector import WatchStats
from midwatch.content.server.app import CONTENT
from midwatch.errors import SettingsError, StoreBusy
from midwatch.kube.cache import Queue
from midwatch.kube.crd import crd
from midwatch.kube.operator import OPERATOR, readiness
from midwatch.lifecycle import Liveness, StopEvent
from midwatch.logs import open_log, quiet_log
from midwatch.metrics import Answer, Family, health, serving
from midwatch.monitor.loop import MonitorLoop
from midwatch.redaction import Redactor
from midwatch.settings import AgentSettings, LogSettings, MetricsSettings
from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import (
    FakeSubject,
    ManualClock,
    answer,
    broken,
    open_tickets,
)
from midwatch.testing.messages_api import Answer as Reply
from midwatch.testing.messages_api import Rule, ScriptedMessagesAPI
from tests.cluster import ApiServer

from ..processes import Midwatch
from ..waiting import PATIENCE
from .cli import KEY, comes_true, environ
from .content_proxy import process, proxy

eventually = partial(comes_true, timeout=PATIENCE)

Labels = frozenset[tuple[str, str]]
Samples = dict[tuple[str, Labels], float]
ANY_PORT = MetricsSettings(port=0)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, None, PATIENCE) as got:
            return got.status, got.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def asked(url: str) -> tuple[int, str]:
    return await asyncio.to_thread(get, url)


def parsed(text: str, families: tuple[Family, ...]) -> Samples:
    """The values, after a look at that each metric is what its table says."""
    known = {family.name: family for family in families}
    found: Samples = {}
    for metric in text_string_to_metric_families(text):
        for sample in metric.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
            if sample.name.startswith("process_") or sample.name == "midwatch_info":
                continue
            family = known[sample.name]
            assert metric.type == family.kind and metric.documentation == family.help
            assert sample.labels.keys() == set(family.labels)
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@contextmanager
def running(folder: Path, *command: str, **variables: str) -> Iterator[Midwatch]:
    """A daemon in `folder`, whose log goes to a file of its name."""
    with (folder / "log").open("w") as log:
        with Midwatch(
            command,
            cwd=folder,
            env=environ(folder, **variables),
            stdout=log,
            stderr=log,
        ) as daemon:
            try:
                yield daemon
            finally:
                daemon.terminate()
                daemon.wait(PATIENCE)


def address(folder: Path) -> str | None:
    found = re.search(r'"address": "([^"]+)"', (folder / "log").read_text())
    return found[1] if found else None


# ------------------------------------------------------------------ monitor and agent


@pytest.mark.timeout(900)
async def test_monitor_and_agent_tell_what_they_do(tmp_path: Path) -> None:
    (tmp_path / "midwatch.yaml").write_text(
        "monitor: {interval: 200ms, group_wait: 0s}\n"
        "agent: {poll_interval: 100ms}\n"
        "metrics: {port: 0}\n"
        "subjects:\n"
        "- {name: shop, kind: http, url: 'http://someone:hush@127.0.0.1:1/secret'}\n"
    )
    rule = Rule([Reply(structured=answer())], structured=True)
    with ScriptedMessagesAPI(rule) as api:
        base = {"ANTHROPIC_BASE_URL": api.base_url, "ANTHROPIC_API_KEY": KEY}
        with running(tmp_path, "up", **base):
            await eventually(lambda: address(tmp_path))
            url = address(tmp_path)
            # Until the answer nothing is asked of the daemon, whose time on a busy machine that takes.
            # A program for Claude that does not start within its minute is started again.
            await api.wait_for_requests(1, timeout=3 * PATIENCE, answered=True)
            await eventually(
                lambda: 'outcome="answered"} 1.0' in get(f"{url}/metrics")[1]
            )
            status, text = await asked(f"{url}/metrics")
            assert await asked(f"{url}/healthz") == (200, "ok\n")
    told = parsed(text, MONITOR + AGENT)
    assert status == 200 and {name for name, _ in told} >= {
        family.name for family in MONITOR + AGENT
    }
    monitor, agent = "midwatch_monitor", "midwatch_agent"
    severities = {"critical": 1, "warning": 0, "info": 0}
    for severity, count in severities.items():
        name = f"{monitor}_open_tickets"
        assert value(told, name, subject="shop", severity=severity) == count
    cycles = f"{monitor}_cycles_total"
    assert value(told, cycles, subject="shop", result="observed") >= 1
    assert value(told, cycles, subject="shop", result="unsaved") == 0
    assert value(told, f"{monitor}_tickets_opened_total", subject="shop") == 1
    assert value(told, f"{agent}_spent_usd_total") > 0
    assert value(told, f"{agent}_paused", reason="no_key") == 0
    assert value(told, "process_resident_memory_bytes") > 1e7
    assert not re.search(r"hush|someone|127\.0\.0\.1|sk-ant|http:", text)


def test_an_agent_without_a_key_says_so(tmp_path: Path) -> None:
    (tmp_path / "midwatch.yaml").write_text("metrics: {port: 0}\n")
    with running(tmp_path, "agent"):

        async def paused() -> None:
            await eventually(lambda: address(tmp_path))
            name = 'midwatch_agent_paused{reason="no_key"} 1.0'
            await eventually(lambda: name in get(f"{address(tmp_path)}/metrics")[1])

        asyncio.run(paused())


class Stuck:
    """A store that does all but one thing: a lease that was given is not renewed before `free` is set."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.free, self.hangs = asyncio.Event(), asyncio.Event()

    async def stay(self, *args: Any, **more: Any) -> Any:
        self.hangs.set()
        await self.free.wait()
        return await self._store.stay(*args, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Away:
    """A store that cannot be reached."""

    async def _refuse(self, *args: Any, **more: Any) -> Any:
        raise StoreBusy("nobody answers")

    def __getattr__(self, name: str) -> Any:
        return self._refuse


@asynccontextmanager
async def at_work(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_monitor_that_hangs_is_not_healthy(
    store: SqlStore, clock: ManualClock
) -> None:
    stuck = Stuck(store)
    subject = FakeSubject("fake", [broken("alive", "db")])
    loop = MonitorLoop(stuck, [subject], clock=clock)  # type: ignore[arg-type]
    async with metrics_served(
        ANY_PORT, quiet_log(), loop.progress, store=store, monitor=loop
    ) as url:
        async with at_work(loop.run(StopEvent(clock))):
            await asyncio.wait_for(stuck.hangs.wait(), PATIENCE)
            within = loop.settings.interval + subject.timeout + 180
            await clock.advance(within - 1)
            assert (await asked(f"{url}/healthz"))[0] == 200
            await clock.advance(2)
            assert await asked(f"{url}/healthz") == (503, "cycle: late by 1 s\n")
            told = parsed((await asked(f"{url}/metrics"))[1], MONITOR)
            labels = {"subject": "fake", "severity": "critical"}
            assert value(told, "midwatch_monitor_open_tickets", **labels) == 1
            stuck.free.set()
            await eventually(lambda: clock.sleeping)
            await clock.advance(30)
            await eventually(lambda: not loop.progress.late())
            assert (await asked(f"{url}/healthz"))[0] == 200


async def test_a_database_that_is_away_is_no_reason_to_restart(
    clock: ManualClock,
) -> None:
    loop = MonitorLoop(Away(), [FakeSubject("fake")], clock=clock)  # type: ignore[arg-type]
    async with at_work(loop.run(StopEvent(clock))):
        for _ in range(20):
            await eventually(lambda: clock.sleeping)
            await clock.advance(30)
        assert loop.progress.late() == {}
    assert loop.monitors[0].stats.cycles["unsaved"] > 3
    assert not loop.monitors[0].stats.known, "no tickets would be a lie"


class Silent:
    """A model that never answers."""

    model = "claude-sonnet-5-5"

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def ask(self, prompt: object, max_tokens: int) -> Any:
        self.asked.set()
        await asyncio.Event().wait()


async def test_an_agent_s_call_may_take_its_time_but_not_for_ever(
    store: SqlStore, clock: ManualClock
) -> None:
    await open_tickets(store, "db")
    gatherer = ContextGatherer(
        {"fake": FakeSubject("fake")}, Redactor(), clock, store.past
    )
    silent = Silent()
    settings = AgentSettings(lease=3600)  # nobody renews it while time leaps
    agent = AgentRunner(
        store, gatherer, lambda: silent, settings, clock=clock, longest_call=200
    )
    async with at_work(agent.run(StopEvent(clock))):
        await eventually(lambda: agent.last_success)
        await asyncio.wait_for(silent.asked.wait(), PATIENCE)
        await clock.advance(200 + 120 - 20)
        assert health(agent.progress)().status == 200
        await clock.advance(21)
        ended = health(agent.progress)()
        assert ended.status == 503 and b"agent worker 0" in ended.body


def test_a_list_of_tickets_imports_nothing_of_it(tmp_path: Path) -> None:
    for statement in (
        "sys.argv = ['midwatch', 'db', 'status']; main()",
        "import midwatch.cli.metrics, midwatch.cli.app, midwatch.kube.client",
    ):
        code = (
            "import atexit, sys\n"
            "atexit.register(lambda: print('\\n', *sys.modules, file=sys.stderr))\n"
            f"from midwatch.cli.main import main\n{statement}\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environ(tmp_path),
            capture_output=True,
            text=True,
        )
        modules = set(done.stderr.split())
        assert "midwatch.settings" in modules, done.stderr
        assert not modules & {"prometheus_client", "midwatch.exposition"}


def test_what_is_wrong_ends_the_start_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "midwatch.yaml").write_text("{}\n")

    def said(before: str, **variables: str) -> str:
        code = f"import sys; {before}\nfrom midwatch.cli.main import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, "agent"],
            cwd=tmp_path,
            env=environ(tmp_path, **variables),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    without = "sys.modules['prometheus_client'] = None"
    assert "midwatch[metrics]" in said(without, MIDWATCH_METRICS__PORT="0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = said("", MIDWATCH_METRICS__PORT=port)
    assert "metrics.port" in line and "choose another port" in line


# ------------------------------------------------------------------ the content proxy


async def test_a_content_proxy_tells_without_a_token(tmp_path: Path) -> None:
    with process(tmp_path) as (url, _):
        assert (await asked(f"{url}/content/list"))[0] == 401
        assert (await asked(f"{url}/wp-login.php"))[0] == 404
        name = "midwatch_content_folders"
        await eventually(lambda: name + " 0" in get(f"{url}/metrics")[1])
        told = parsed((await asked(f"{url}/metrics"))[1], CONTENT)
    requests = "midwatch_content_requests_total"
    assert value(told, requests, route="/content/list", code="401") == 1
    assert value(told, requests, route="other", code="404") == 1
    assert value(told, "midwatch_content_volume_free_bytes") > 0


async def test_a_scrape_under_load_does_not_disturb(tmp_path: Path) -> None:
    async with proxy(tmp_path) as opened:
        caller = opened.caller()
        base, _ = await caller.manifest()
        over = asyncio.Event()

        async def scrape() -> int:
            count = 0
            while not over.is_set():
                got = await opened.http.get("/metrics")
                assert got.status_code == 200
                parsed(got.text, CONTENT)
                count += 1
            return count

        scrapers = [asyncio.create_task(scrape()) for _ in range(4)]
        waiting = asyncio.create_task(caller.known(base, wait=10))
        for number in range(20):
            await caller.write({f"{number}.txt": os.urandom(100_000)})
        assert (await waiting).status_code == 200
        assert (await caller.commit(base)).status_code == 412
        over.set()
        assert min(await asyncio.gather(*scrapers)) > 2
        told = parsed((await opened.http.get("/metrics")).text, CONTENT)
    assert value(told, "midwatch_content_commits_total") == 20
    assert value(told, "midwatch_content_conflicts_total") == 1
    assert value(told, "midwatch_content_waiting") == 0
    assert value(told, "midwatch_content_received_bytes_total") > 2_000_000
    routes = {dict(labels).get("route") for _, labels in told} - {None}
    assert routes <= {
        "/metrics",
        *(f"/v1/folders/{{namespace}}/{{name}}/{x}" for x in ("manifest", "chunks")),
        "/v1/folders/{namespace}/{name}/commit",
    }, "no folder's name is a label"
    assert not [one for one in opened.lines() if one.get("path") == "/metrics"]


# ------------------------------------------------------------------ the operator


def session(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "midwatch.dev/v1alpha1",
        "kind": "AgenticSession",
        "metadata": {"name": name},
        "spec": {
            "prompt": "Mend it.",
            "repos": [{"input": {"url": "https://git.example.com/shop.git"}}],
        },
    }


def end(server: ApiServer, name: str, phase: str, reason: str) -> None:
    status = {"phase": phase, "reason": reason, "attempt": 1}
    change = {"status": status}
    server.objects.merge("agenticsessions", "default", name, change, sub="status")


async def test_an_operator_tells_and_is_ready_while_it_sees_the_cluster(
    tmp_path: Path,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    ours = "midwatch_operator"
    with ApiServer() as server:
        server.objects.create(crd())
        settings = {
            "kubeconfig": str(server.kubeconfig(tmp_path / "kubeconfig")),
            "image": "registry.example/midwatch:1",
            "api_key_secret": {"name": "claude"},
            "host": "127.0.0.1",
            "port": port,
            "watch_silence": 0.5,
            "backoff": 0.05,
            "backoff_max": 0.2,
        }
        text = json.dumps({"operator": settings})
        (tmp_path / "midwatch.yaml").write_text(text)
        with running(tmp_path, "kube", "operator"):
            await eventually(lambda: answers(f"{url}/readyz"))
            for name in ("one", "two", "three"):
                server.objects.create(session(name))
                server.objects.wait("jobs", "default", f"{name}-run-1", bool)
            end(server, "one", "Completed", "Completed")
            end(server, "two", "Failed", "A-reason-of-somebody-else")
            told: Samples = {}

            def settled() -> bool:
                nonlocal told
                told = parsed(get(f"{url}/metrics")[1], OPERATOR)
                ends = sum(name == f"{ours}_ends_total" for name, _ in told)
                return ends == 2 and value(told, f"{ours}_queue_depth") == 0

            await eventually(settled)
            with server.away():
                await eventually(lambda: get(f"{url}/readyz")[0] == 503)
                assert "watch of" in (await asked(f"{url}/readyz"))[1]
                assert (await asked(f"{url}/healthz"))[0] == 200
            await eventually(lambda: answers(f"{url}/readyz"))
    ends = f"{ours}_ends_total"
    assert value(told, ends, phase="Completed", reason="Completed") == 1
    assert value(told, ends, phase="Failed", reason="other") == 1
    assert value(told, f"{ours}_sessions", phase="Creating") == 1
    assert value(told, f"{ours}_starts_total") == 3
    assert value(told, f"{ours}_restarts_total") == 0
    requests = f"{ours}_api_requests_total"
    assert value(told, requests, verb="watch", code="2xx") >= 3
    assert value(told, requests, verb="create", code="2xx") >= 15
    for resource in ("agenticsessions", "jobs", "pods"):
        assert value(told, f"{ours}_watch_down_seconds", resource=resource) < 5


def answers(url: str) -> bool:
    try:
        return get(url)[0] == 200
    except OSError:
        return False


async def test_a_queue_that_nobody_takes_from_is_stuck(clock: ManualClock) -> None:
    progress = Liveness(clock)
    queue = Queue(1, 2, clock=clock, progress=progress, stuck_after=60)
    for name in ("one", "two"):
        queue.add(("default", name))
    await clock.advance(61)
    assert health(progress)().status == 503 and queue.oldest() == 61
    await queue.take()
    assert progress.late() == {} and len(queue) == queue.in_progress() == 1
    await queue.take()
    await clock.advance(1000)
    assert progress.late() == {}, "with nothing to do nothing is late"


def test_a_watch_is_down_until_the_server_takes_it(clock: ManualClock) -> None:
    async def life() -> None:
        stats = WatchStats(clock)
        page = readiness(stats, 2, silence=70)
        assert page().status == 503
        for path in ("/api/v1/pods", "/apis/batch/v1/jobs"):
            stats.opening(path)
            stats.opened(path)
        assert page().status == 200
        stats.opening("/api/v1/pods")
        await clock.advance(60)
        stats.opening("/api/v1/pods")
        assert page().status == 200 and stats.down()["pods"] == 60
        await clock.advance(11)
        assert page() == Answer(503, b"watch of pods: down for 71 s\n")
        stats.opened("/api/v1/pods")
        assert page().status == 200 and stats.down() == {"pods": 0, "jobs": 0}

    asyncio.run(life())


# ------------------------------------------------------------------ the port


async def test_strangers_at_the_port() -> None:
    def fail() -> Answer:
        raise RuntimeError("a fault of ours")

    pages = {"/ok": lambda: Answer(200, b"fine\n"), "/fault": fail}

    async def said(sent: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        try:
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    log = io.StringIO()
    opened = open_log(LogSettings(format="json"), log, Redactor())
    async with serving("127.0.0.1", 0, pages, opened, setting="x") as url:
        port = int(url.rpartition(":")[2])
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        assert (await said(b"GET /ok?x=1 HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\nfine\n")
        assert (await said(b"HEAD /ok HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")
        assert (await said(b"POST /ok HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
        assert (await said(b"GET /\xff HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        assert await said(b"GET /fault HTTP/1.1\r\n\r\n") == b""
        assert "a page failed" in log.getvalue() and "of ours" in log.getvalue()
        assert await said(b"\x16\x03\x01" * 10_000) == b""
        silent += [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        assert await said(b"GET /ok HTTP/1.1\r\n\r\n") == b"", "32 are enough"
        for _, writer in silent:
            writer.close()
        async with asyncio.timeout(PATIENCE):  # until their ends are noticed
            while not (await said(b"GET /ok HTTP/1.1\r\n\r\n")).endswith(b"fine\n"):
                await asyncio.sleep(0.01)
        with pytest.raises(SettingsError, match="cannot listen"):
            async with serving("127.0.0.1", port, pages, quiet_log(), setting="x"):
                pass
