"""The store fails under running daemons: they say so, go on, and lose nothing that was paid for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from midwatch.agent.claude import Claude
from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.runner import AgentRunner
from midwatch.errors import StoreFull
from midwatch.lifecycle import StopEvent
from midwatch.redaction import Redactor
from midwatch.store.engine import open_transactions, parse_database
from midwatch.store.sql import SqlStore, open_store
from midwatch.store.upgrade import upgrade
from midwatch.testing.fakes import ManualClock, open_tickets
from midwatch.testing.messages_api import (
    Answer,
    Hold,
    Request,
    Rule,
    ScriptedMessagesAPI,
)
from midwatch.testing.postgres import PrivatePostgres

from ..acceptance.alert_bodies import alertmanager_alert, alertmanager_body
from ..acceptance.cli import said, said_json
from ..acceptance.server_process import server_process
from ..waiting import PATIENCE
from .support import (
    KEY,
    Board,
    Running,
    asking,
    blaming,
    daemon,
    healthy_board,
    run,
    tickets,
    until,
    write_settings,
)

LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""
READS = blaming("broken", cause="The board says: {line}")


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return healthy_board(tmp_path)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """While inside, another process holds the whole file."""
    command = [sys.executable, "-c", LOCK, str(file)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == b"locked\n"
        try:
            yield
        finally:
            process.stdin.close()
            process.wait(PATIENCE)


def alive(process: Running) -> bool:
    return process.process.poll() is None


# ------------------------------------------------------------------ SQLite


async def test_sqlite_locked_for_longer_than_the_busy_time_out(
    board: Board, tmp_path: Path
) -> None:
    """The daemons go on afterwards; and a stop does not wait for the lock."""
    config = write_settings(tmp_path, board.subject())
    file = tmp_path / "midwatch.db"
    hold = Hold()

    def read(request: Request) -> Answer | Hold:
        return hold if "second-db" in request.prompt else READS(request)

    with (
        ScriptedMessagesAPI(Rule(read)) as api,
        daemon(config, "up", **asking(api.base_url)) as up,
    ):
        await up.said("cycle")
        with locked(file):
            board.show("first-db")
            assert "locked" in (await up.said("cycle not saved"))["error"]
        await up.said("ticket opened", component="first-db")
        assert (await up.said("diagnosed"))["attempt"] == 1
        board.show("first-db", "second-db")
        await hold.arrived(timeout=PATIENCE)
        with locked(file):
            code, seconds = await asyncio.to_thread(up.end, signal.SIGINT)
            assert (code, seconds < PATIENCE) == (0, True), seconds
        assert up.lines(), "and nothing but JSON was written"


@pytest.mark.parametrize("commands", [("up",), ("monitor", "agent")])
async def test_a_deleted_database_is_told_and_made_again_by_the_daemon_alone(
    board: Board, tmp_path: Path, commands: tuple[str, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = write_settings(tmp_path, board.subject(), metrics={"port": port})
    board.show("first-db")
    with contextlib.ExitStack() as stack:
        daemons = []
        for name in commands:
            own = {"MIDWATCH_METRICS__PORT": "null"} if daemons else {}
            daemons.append(stack.enter_context(daemon(config, name, **own)))
        await daemons[0].said("ticket opened", component="first-db")
        daemons[0].process.send_signal(signal.SIGSTOP)
        for other in daemons[1:]:
            other.end(signal.SIGTERM)
        for part in tmp_path.glob("midwatch.db*"):
            part.unlink()
        line = run(config, "tickets", "list")
        assert line.returncode == 1 and "there is no database" in line.stderr
        assert not list(tmp_path.glob("midwatch.db*")), "reading made it"
        daemons[0].process.send_signal(signal.SIGCONT)
        told = await daemons[0].said("database made again")
        assert "midwatch.db was deleted while it was in use" in told["reason"]
        await until("reopened", lambda: len(daemons[0].lines("ticket opened")) == 2)
        listed = json.loads(run(config, "tickets", "list", "--json").stdout)
        assert [one["component"] for one in listed] == ["first-db"]
        await daemons[0].said("cycle", open=1)
        health = run(config, "health", commands[0])
        assert health.returncode == 0 and "was deleted while" in health.stdout
        await until(
            "the heartbeat", lambda: "was deleted while" in run(config, "check").stdout
        )


# ------------------------------------------------------------------ a full disk


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "midwatch-test", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """While inside, not a byte is left, nor any that SQLite had at hand."""
    connection = sqlite3.connect(disk / "midwatch.db")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    try:
        yield
    finally:
        ballast.unlink()


@pytest.mark.needs_root
async def test_a_full_disk_loses_no_ticket_and_no_paid_answer(
    board: Board, tiny_disk: Path, tmp_path: Path
) -> None:
    file = tiny_disk / "midwatch.db"
    config = write_settings(tmp_path, board.subject(), database=f"sqlite:///{file}")
    names = [f"c{number}" for number in range(30)]
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()
    hold = Hold()

    def wordy(request: Request) -> Hold:
        made = READS(request)
        made.structured["risks"] = ["r" * 1000] * 50
        hold.then = made
        loop.call_soon_threadsafe(gate.set)
        return hold

    with (
        ScriptedMessagesAPI(Rule(wordy)) as api,
        daemon(config, "up", **asking(api.base_url)) as up,
    ):
        await up.said("cycle")
        with full(tiny_disk):
            board.show(*names, message="it is broken " + "m" * 400)
            assert "free some disk" in (await up.said("cycle not saved"))["error"]
        await up.said("cycle", opened=len(names))
        await asyncio.wait_for(gate.wait(), PATIENCE)
        with full(tiny_disk):
            hold.release()
            assert "free some disk" in (await up.said("answer not stored yet"))["error"]
        line = await up.said("diagnosed")
        assert (line["attempt"], line["outcome"]) == (1, "answered")
        assert len(line["tickets"]) == len(names) and alive(up)
    assert len(api.calls) == 1
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


@pytest.mark.needs_root
def test_a_full_disk_is_503_and_says_when_to_try_again(
    tiny_disk: Path, tmp_path: Path
) -> None:
    """A sign-in is a row; nothing of one that was not stored is left."""
    settings = {
        "database": f"sqlite:///{tiny_disk / 'midwatch.db'}",
        "server": {"url": "https://midwatch.example.org"},
    }
    with server_process(tmp_path, settings) as server:
        form = {"token": said(tmp_path, "tokens", "create", "ci").strip()}
        with full(tiny_disk):
            while (answer := server.http.post("/sign-in", data=form)).is_redirect:
                pass  # what SQLite still had at hand
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) > 0
            assert "free some disk space" in answer.json()["hint"]
            assert server.http.get("/readyz").status_code == 200  # it can be read
        before = len(said_json(tmp_path, "tokens", "list"))
        assert server.http.post("/sign-in", data=form).is_redirect
        assert len(said_json(tmp_path, "tokens", "list")) == before + 1


@pytest.mark.needs_root
def test_alerts_on_a_full_disk_are_all_or_nothing_until_they_are_sent_again(
    tiny_disk: Path, tmp_path: Path
) -> None:
    """Several senders at once, with more than fits into what SQLite had at hand."""
    file = tiny_disk / "midwatch.db"
    subject = {"name": "team", "kind": "alerts", "sender": "alertmanager"}
    settings = {"database": f"sqlite:///{file}", "subjects": [subject]}
    bodies = [
        alertmanager_body(
            *(alertmanager_alert(f"h{sender}-{n}", note="s" * 400) for n in range(20))
        )
        for sender in range(6)
    ]

    def rows() -> tuple[int, int]:
        with contextlib.closing(sqlite3.connect(file)) as connection:
            [counts] = connection.execute(
                "SELECT (SELECT count(*) FROM alerts), (SELECT count(*) FROM tickets)"
            )
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            return int(counts[0]), int(counts[1])

    with (
        server_process(tmp_path, settings) as server,
        ThreadPoolExecutor(len(bodies)) as senders,
    ):

        def send(body: dict[str, Any]) -> httpx2.Response:
            return server.http.post("/hooks/alertmanager", json=body)

        with full(tiny_disk):
            answers = list(senders.map(send, bodies))
            refused = [one for one in answers if one.status_code == 503]
            taken = len(answers) - len(refused)
            assert refused, "120 alerts do not fit"
            for answer in refused:
                assert int(answer.headers["retry-after"]) > 0
                assert "free some disk space" in answer.json()["hint"]
            assert {one.status_code for one in answers} <= {200, 503}
        assert rows() == (20 * taken, 20 * taken)
        assert [one.status_code for one in senders.map(send, bodies)] == [200] * 6
        assert rows() == (120, 120)
        failures = [one for one in server.log() if one["event"] == "alerts not saved"]
        assert failures and not any("exception" in one for one in server.log())


# ------------------------------------------------------------------ PostgreSQL


async def test_postgres_killed_and_restarted_under_the_daemons(
    board: Board, tmp_path: Path
) -> None:
    hold = Hold()

    def held(request: Request) -> Hold:
        hold.then = READS(request)
        return hold

    with PrivatePostgres() as server, ScriptedMessagesAPI(Rule(held)) as api:
        transactions = open_transactions(parse_database(server.dsn()))
        await upgrade(transactions)
        await transactions.close()
        config = write_settings(tmp_path, board.subject(), database=server.dsn())
        with (
            daemon(config, "monitor") as monitor,
            daemon(config, "agent", **asking(api.base_url)) as agent,
        ):
            await monitor.said("cycle")
            await agent.said("agent started")
            server.kill()
            board.show("db")
            await monitor.said("cycle not saved")
            await agent.said("not diagnosing")
            server.restart()
            await monitor.said("ticket opened", component="db")
            await hold.arrived(timeout=PATIENCE)
            server.kill()
            hold.release()
            await agent.said("answer not stored yet")
            server.restart()
            line = await agent.said("diagnosed")
            assert (line["attempt"], line["outcome"]) == (1, "answered")
            board.show()
            await monitor.said("ticket resolved")
            store = await open_store(server.dsn())
            [ticket] = await tickets(store)
            assert ticket.resolved and ticket.diagnosis_id
            await store.close()
    assert len(api.calls) == 1


# ------------------------------------------------------------------ a stop meanwhile


async def test_a_stop_stores_the_answer_that_only_lacks_its_write(
    store: SqlStore, clock: ManualClock
) -> None:
    [ticket] = await open_tickets(store, "db")
    tries = list[float]()

    def full_until_the_stop(write: Callable[..., Awaitable[Any]]) -> Any:
        async def tried(*args: Any, **more: Any) -> Any:
            tries.append(clock.monotonic())
            if not stop:
                raise StoreFull()
            return await write(*args, **more)

        return tried

    for name in ("finish", "finish_and_claim"):
        setattr(store, name, full_until_the_stop(getattr(store, name)))
    stop = StopEvent(clock)
    with ScriptedMessagesAPI(Rule(READS)) as api:
        model = Claude("claude-sonnet-5-5", 20, KEY, api.base_url)
        gatherer = ContextGatherer({}, Redactor(), clock)
        runner = AgentRunner(store, gatherer, lambda: model, clock=clock)
        running = asyncio.create_task(runner.run(stop))
        await until("the answer", lambda: tries)
        while len(tries) < 4:  # then the next try is further away than the grace
            await clock.advance(0.1)
            await asyncio.sleep(0.01)
        stop.set("test")
        while not running.done():
            await clock.advance(0.1)
            await asyncio.sleep(0.01)
        await running
        await model.close()
    [stored] = await store.diagnoses(ticket.id)
    assert (stored.outcome, len(api.calls), len(tries)) == ("answered", 1, 5)
    assert tries[4] - tries[3] < 4, "it did not wait for the next try"
