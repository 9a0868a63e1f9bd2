"""The kind `logs`: journals, Loki, containers, evidence, tools and first aid."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import ValidationError

from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.first_aid import preliminary
from midwatch.agent.grounding import ground
from midwatch.lifecycle import SystemClock
from midwatch.model import Json, Observation, Origin
from midwatch.playbooks.general import PLAYBOOKS
from midwatch.redaction import Redactor
from midwatch.store.protocol import TicketFilter
from midwatch.store.sql import open_store
from midwatch.subjects.logs import LogsSubject
from midwatch.subjects.logs.journal import entries
from midwatch.subjects.logs.levels import Level
from midwatch.subjects.tools import Refused
from midwatch.testing.subject_conformance import check_subject, tickets_for
from midwatch.testing.tool_conformance import check_tools

from ..processes import Midwatch
from ..waiting import PATIENCE
from .cli import environ
from .web import Reply, serving

REMOTE = Path("/lib/systemd/systemd-journal-remote")
needs_journal = pytest.mark.skipif(
    not (shutil.which("journalctl") and REMOTE.exists()),
    reason="journalctl or systemd-journal-remote is not installed",
)


class Watch:
    """Observes a source `api` again and again, and keeps its state as the monitor does."""

    def __init__(self, source: Json, **settings: Any) -> None:
        given = {
            "name": "logs",
            "timeout": PATIENCE,
            "sources": [{"name": "api", **source}],
            **settings,
        }
        self.subject = LogsSubject(LogsSubject.settings_model.model_validate(given))
        self.state: Json = {}

    async def __call__(self) -> Observation:
        found = await self.subject.observe(self.state)
        self.state = json.loads(json.dumps(found.state))
        return found

    async def errors(self) -> int:
        found = await self()
        assert not found.unavailable, found.unavailable
        shapes = self.state["sources"]["api"]["shapes"]
        return sum(int(one["series"][-1][1]) for one in shapes)


# ------------------------------------------------------------------ journals


class Journal:
    """A journal that systemd-journal-remote writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0

    def write(
        self, *messages: str, unit: str = "shop.service", priority: int = 3
    ) -> None:
        text = b""
        for message in messages:
            self.number += 1
            at = int(time.time() * 1e6) + self.number
            text += (
                f"__REALTIME_TIMESTAMP={at}\n__MONOTONIC_TIMESTAMP={self.number}\n"
                f"_BOOT_ID={'7d8e1c6f' * 4}\nPRIORITY={priority}\n_SYSTEMD_UNIT={unit}\n"
            ).encode()
            data = message.encode("utf-8", "surrogateescape")
            text += (
                b"MESSAGE\n"
                + len(data).to_bytes(8, "little")
                + data
                + b"\nMESSAGE=again\n\n"
            )
        subprocess.run(
            [REMOTE, "-o", self.folder / "shop.journal", "-"],
            input=text,
            check=True,
            capture_output=True,
        )


@needs_journal
async def test_a_journal_is_read_from_its_cursor_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write("order 1 cannot be stored")
    watch = Watch({"journal": {"directory": str(tmp_path), "units": ["shop.service"]}})
    assert await watch.errors() == 0
    journal.write(*(f"order {n} cannot be stored" for n in range(60)))
    journal.write("other unit", unit="mail.service")
    journal.write("fine", "level=error msg=late", "bad \udcff byte: error", priority=6)
    assert await watch.errors() == 61
    assert await watch.errors() == 61
    found = await check_subject(watch.subject)
    assert found is not None
    journal.write("2026 INFO but the journal says 3")
    assert await watch.errors() == 61
    (tmp_path / "shop.journal").unlink()  # as --vacuum-size removes the oldest
    journal.write("order 2 cannot be stored")
    lost = await watch()
    assert "was vacuumed" in str(lost.unavailable) or "position" in str(
        lost.unavailable
    )
    assert not lost.covers("error_storm")


def test_entries_have_fields_of_every_form() -> None:
    lines = [
        {"__CURSOR": "a", "MESSAGE": [104, 105, 255], "PRIORITY": "2"},
        {"__CURSOR": "b", "MESSAGE": ["first", "second"], "PRIORITY": ["3", "6"]},
        {"__CURSOR": "c", "MESSAGE": [[104], "x"], "PRIORITY": "x"},
        {"__CURSOR": "d", "MESSAGE": None, "__REALTIME_TIMESTAMP": "1500000"},
        {"MESSAGE": "without a cursor"},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n[1]\n\nnot json\n{"__CURSOR": "cut'
    found = list(entries(text.encode()))
    assert [one.cursor for one in found] == ["a", "b", "c", "d"]
    assert [one.text for one in found] == ["hi\ufffd", "second\nfirst", "h\nx", ""]
    assert [one.level for one in found] == [Level.FATAL, Level.ERROR, None, None]
    assert found[3].at == 1.5 and found[3].unit == "kernel"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            "echo 'No journal files were opened due to insufficient permissions.' >&2; exit 1",
            "may not be read",
        ),
        ("echo 'No journal files were found.' >&2", "there is no journal"),
        (
            "echo 'Hint: You are currently not seeing messages from other users' >&2",
            "are hidden",
        ),
        ("echo 'Bad argument' >&2; exit 1", "exited with status 1: Bad argument"),
        ("exec sleep 600", "was killed"),
        (None, "could not be started"),
    ],
)
async def test_a_journal_that_cannot_be_read(
    script: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from midwatch.subjects.logs import journal

    program = tmp_path / "journalctl"
    if script is not None:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setattr(journal, "PROGRAM", str(program))
    limit = 1.0 if script and "sleep" in script else PATIENCE
    watch = Watch({"journal": {}}, timeout=limit)
    with contextlib.ExitStack() as stack:
        if told != "are hidden":
            stack.enter_context(pytest.raises(Exception, match=told))
        found = await watch()
    if told == "are hidden":
        assert told in str(found.unsupported) and not found.covered


# ------------------------------------------------------------------ Loki


class Loki:
    """A little Loki: lines by time, and its form of answers."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []
        self.requests: list[dict[str, str]] = []
        self.tenants: list[str | None] = []
        self.answer: tuple[int, str] | None = None

    def add(self, *texts: str, at: int | None = None) -> None:
        for text in texts:
            self.lines.append((at or time.time_ns(), text))

    def reply(self, handler: BaseHTTPRequestHandler) -> Reply:
        asked = {k: v[0] for k, v in parse_qs(urlsplit(handler.path).query).items()}
        self.requests.append(asked)
        self.tenants.append(handler.headers.get("X-Scope-OrgID"))
        if self.answer is not None:
            return (
                self.answer[0],
                {"Content-Type": "text/plain"},
                self.answer[1].encode(),
            )
        start, end, limit = (int(asked[one]) for one in ("start", "end", "limit"))
        found = [one for one in sorted(self.lines) if start <= one[0] < end]
        found = found[-limit:] if asked["direction"] == "backward" else found[:limit]
        values = [[str(at), text] for at, text in found]
        streams = [{"stream": {"app": "shop", "pod": "shop-1"}, "values": values}]
        data = {
            "resultType": "streams",
            "result": streams if values else [],
            "stats": {},
        }
        body = json.dumps({"status": "success", "data": data}).encode()
        return 200, {"Content-Type": "application/json"}, body


@pytest.fixture
def loki() -> Iterator[tuple[Loki, Watch]]:
    server = Loki()
    with serving(server.reply) as url:
        given = {
            "url": url,
            "query": '{app="shop"}',
            "tenant": "team-a",
            "delay": 0,
            "limit": 100,
        }
        yield server, Watch({"loki": given})


async def test_loki_is_polled_page_by_page(loki: tuple[Loki, Watch]) -> None:
    server, watch = loki
    server.add("level=error msg=before")
    assert await watch.errors() == 0
    moment = time.time_ns()
    server.add(*(f"level=error msg=order{n}" for n in range(95)))
    server.add(*(f"level=error msg=tie{n}" for n in range(90)), at=moment + 10**6)
    server.add(*(f"level=info msg=fine{n}" for n in range(95)))
    time.sleep(0.002)  # the moment of the ties is past
    assert await watch.errors() == 185
    assert await watch.errors() == 185
    assert set(server.tenants) == {"team-a"}
    server.add(*(f"level=error msg=late{n}" for n in range(5)))
    assert await watch.errors() == 190
    found = await check_subject(watch.subject)
    assert found is not None


ANSWERS: list[tuple[int, str, str]] = [
    (
        400,
        "max entries limit per query exceeded, limit > max_entries_limit (100 > 50)",
        "smaller `limit`",
    ),
    (401, "no org id", "the tenant"),
    (400, "parse error at line 1, col 6", "correct the query"),
    (429, "too many outstanding requests", "status 429"),
    (200, "<html>", "does not have the form"),
    (
        200,
        '{"status":"success","data":{"resultType":"matrix","result":[]}}',
        "not lines",
    ),
    (
        200,
        '{"status":"success","data":{"resultType":"streams","result":[{"stream":{},"values":[["x"]]}]}}',
        "form",
    ),
    (
        200,
        '{"status":"success","warnings":["an ingester timed out"],"data":{"resultType":"streams","result":[]}}',
        "incomplete",
    ),
]


@pytest.mark.parametrize(("status", "body", "told"), ANSWERS)
async def test_an_answer_of_loki_that_is_none_is_unknown(
    loki: tuple[Loki, Watch], status: int, body: str, told: str
) -> None:
    server, watch = loki
    await watch()
    server.add(*(f"level=error msg=order{n}" for n in range(80)))
    server.answer = status, body
    with pytest.raises(Exception, match=told):
        await watch()
    server.answer = None
    assert await watch.errors() == 80  # nothing was skipped meanwhile


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({}, "give one of"),
        ({"files": ["/x"], "journal": {}}, "give one of"),
        ({"files": ["x.log"]}, "absolute path"),
        (
            {
                "files": ["/x"],
                "heartbeats": [{"name": "a", "pattern": "(", "within": "1m"}],
            },
            "RE2",
        ),
        ({"journal": {"units": ["--all"]}}, "pattern"),
        ({"loki": {"url": "ftp://x", "query": "{}"}}, "url"),
    ],
)
def test_bad_settings_are_refused(source: Json, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Watch(source)


# ------------------------------------------------------------------ containers, evidence, tools, first aid


def cri(text: str, at: float, tag: str = "F") -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
    return f"{stamp}.123456789Z stderr {tag} {text}\n"


async def test_evidence_tools_and_first_aid(tmp_path: Path) -> None:
    pods, links = tmp_path / "pods", tmp_path / "containers"
    pods.mkdir()
    links.mkdir()
    log = pods / "0.log"
    log.write_text("")
    (links / "shop-1_default_shop-abc.log").symlink_to(log)
    beat = {"name": "alive", "pattern": "worker is alive", "within": "1s"}
    watch = Watch({"files": [f"{links}/*.log"], "heartbeats": [beat]}, learn=0)
    await watch()
    now = time.time()
    log.write_text(
        cri("INFO worker is alive", now - 1200)
        + cri("ERROR mail 1 cannot be sent", now - 900)
        + "".join(
            cri(
                f"ERROR order {n} cannot be stored: no space left on device, password=hunter2",
                now - 30,
            )
            for n in range(100)
        )
        + cri('ERROR user wrote "pid 1: the cause is x', now, "P")
        + cri('"', now)
    )
    watch.state["sources"]["api"]["beats"] = {}
    found = await watch()
    storm = next(one for one in found.signals if one.invariant == "error_storm")
    assert (
        storm.component
        == "api: ERROR: order # cannot be stored: no space left on device, password=#"
    )
    tickets = tickets_for(watch.subject, found)
    gatherer = ContextGatherer({"logs": watch.subject}, Redactor(), SystemClock())
    onset = datetime.fromtimestamp(now - 31, UTC)
    tickets = [replace(one, first_seen_at=onset, opened_at=onset) for one in tickets]
    context = await gatherer.gather(tickets, timeout=PATIENCE, tokens=8000)
    shown = {one.title: one for one in context.evidence}
    table = shown["Errors of api by shape"]
    assert "since=100 before=0" in table.text and "since=0 before=1" in table.text
    place = table.text.index("order #")
    assert any(start <= place < end for start, end in table.reported)
    around = shown["Log of api around the onset"]
    assert around.origin is Origin.REPORTED and "×100" in around.text
    assert "hunter2" not in str(context)
    notes = preliminary(PLAYBOOKS, "logs", tickets, context)
    assert notes
    for _, output in notes:
        grounding = ground(output, context.evidence)
        assert grounding.verified == grounding.total > 0, grounding
    assert "no space left" in str(notes[0][1].root_cause)
    calls = {
        "search_lines": {"source": "api", "pattern": "mail \\d+"},
        "count_lines": {"source": "api", "pattern": "(?i)error", "minutes": 60},
    }
    answers = await check_tools(watch.subject, calls)
    assert answers["search_lines"].origin is Origin.REPORTED
    assert "mail 1 cannot be sent" in answers["search_lines"].text
    assert answers["count_lines"].text.startswith("102 lines")
    tool = watch.subject.tools()[0]
    for bad, told in (
        ({"pattern": "("}, "RE2"),
        ({"source": "x"}, "no log"),
        ({"until": "soon"}, "not a time"),
    ):
        with pytest.raises(Refused, match=told):
            await tool.run(
                tool.arguments.model_validate({"source": "api", "pattern": "x", **bad})
            )


async def test_the_first_observation_may_begin_earlier(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    now = time.time()
    old = "".join(cri(f"ERROR order {n} is late", now - 7200 + n) for n in range(3000))
    log.write_text(
        old + "".join(cri(f"ERROR order {n} is late", now - 60) for n in range(70))
    )
    assert await Watch({"files": [str(log)]}, since="30m").errors() in range(65, 200)
    assert await Watch({"files": [str(log)]}).errors() == 0


async def test_a_subject_of_many_files_keeps_a_small_state(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"pod-{os.urandom(8).hex()}-{number}.log").write_text("x\n")
    watch = Watch({"files": [f"{tmp_path}/*.log"]})
    found = await check_subject(watch.subject)
    assert found is not None and not found.unavailable
    threads = threading.active_count()
    await watch()
    assert threading.active_count() <= threads + 1


# ------------------------------------------------------------------ a monitor that is killed


class Writer:
    """A program that writes numbered errors, while its log is rotated and compressed."""

    def __init__(self, log: Path, seed: int) -> None:
        self.log, self.random, self.count = log, random.Random(seed), 0
        self._file = log.open("a")

    def close(self) -> None:
        self._file.close()

    def step(self) -> None:
        for _ in range(self.random.randrange(1, 30)):
            self._line(f"ERROR order {self.count} cannot be stored\n")
            self.count += 1
        self._line("INFO worker is alive\n")
        if not self.random.randrange(8):
            self._rotate()

    def _line(self, text: str) -> None:
        whole = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}"
        half = self.random.randrange(len(whole))
        for part in (whole[:half], whole[half:]):
            self._file.write(part)
            self._file.flush()

    def _rotate(self) -> None:
        for number in range(30, 0, -1):
            for suffix in ("", ".gz"):
                old = self.log.with_name(f"api.log.{number}{suffix}")
                if old.exists():
                    old.rename(self.log.with_name(f"api.log.{number + 1}{suffix}"))
        old = self.log.with_name("api.log.1")
        self.log.rename(old)
        self._line(f"ERROR order {self.count} cannot be stored\n")  # to the old one
        self.count += 1
        self._file.close()
        self._file = self.log.open("a")
        packed = self.log.with_name("api.log.2")
        if packed.exists():
            subprocess.run(["gzip", packed], check=True)


async def test_no_line_is_lost_or_counted_twice_by_a_monitor_that_is_killed(
    tmp_path: Path,
) -> None:
    seed = int.from_bytes(os.urandom(2), "big")
    writer = Writer(tmp_path / "api.log", seed)
    beat = {"name": "alive", "pattern": "worker is alive", "within": "1h"}
    source = {"name": "api", "files": [str(writer.log)], "heartbeats": [beat]}
    subject = {"name": "logs", "kind": "logs", "sources": [source]}
    settings = {"monitor": {"interval": "50ms"}, "subjects": [subject]}
    (tmp_path / "midwatch.yaml").write_text(json.dumps(settings))
    store = await open_store(f"sqlite:///{tmp_path / 'midwatch.db'}")

    async def counted() -> tuple[int, float]:
        """Return how many errors are counted, and when the observation was that counted them."""
        state = (await store.watch("logs")).state.get("sources", {}).get("api", {})
        shapes = state.get("shapes") or []
        assert len(shapes) <= 1, "one shape is known"
        total = sum(int(one["series"][-1][1]) for one in shapes)
        return total, float(state.get("at", 0))

    async def run(until: Callable[[], Awaitable[bool]], write: bool) -> None:
        """Run a monitor until a state is reached, and kill it."""
        with (tmp_path / "monitor.log").open("wb") as log:
            monitor = Midwatch(
                ["monitor"],
                cwd=tmp_path,
                env=environ(tmp_path),
                stdout=log,
                stderr=log,
            )
        try:
            async with asyncio.timeout(PATIENCE):
                while not await until():
                    if write:
                        writer.step()
                    await asyncio.sleep(0.005)
        finally:
            monitor.kill()
            monitor.wait(PATIENCE)

    async def begun() -> bool:
        return (await counted())[1] > 0

    await run(begun, False)
    for _ in range(3):
        before, moment = (await counted())[0], writer.random.randrange(300)

        async def anywhere() -> bool:
            total, _ = await counted()
            return total > before and writer.count > before + moment

        await run(anywhere, True)
        writer.step()  # while none runs
        assert (await counted())[0] <= writer.count
    writer.close()
    ended = time.time()

    async def all_is_read() -> bool:
        total, at = await counted()
        return total >= writer.count and at > ended + 0.2

    await run(all_is_read, False)
    assert (await counted())[0] == writer.count, f"seed {seed}"
    watch = await store.watch("logs")
    past = watch.state["sources"]["api"]
    assert past["lost"] == [0.0, ""]
    assert len(past["known"]) == 8, "one shape is known"
    assert past["beats"]["alive"][2].startswith(str(writer.log))
    tickets = await store.tickets(TicketFilter(limit=100))
    [ticket] = [one for one in tickets if one.key.invariant == "error_storm"]
    assert ticket.key.component == "api: ERROR: order # cannot be stored"
    await store.close()
