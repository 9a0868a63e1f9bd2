"""Replication of two real MariaDB servers: each way to stop, its ticket, its evidence and its first aid, and whole again."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.first_aid import preliminary
from midwatch.agent.grounding import ground
from midwatch.diagnosis_schema import DiagnosisOutput
from midwatch.lifecycle import SystemClock
from midwatch.model import Observation
from midwatch.playbooks.mysql import PLAYBOOKS
from midwatch.redaction import Redactor
from midwatch.subjects.mysql import MysqlSettings, MysqlSubject
from midwatch.testing.subject_conformance import tickets_for

from ..mariadb_server import PrivateMariadb, needs_mariadb, sql
from ..snippets import blocks
from ..waiting import PATIENCE, PATIENT

pytestmark = [pytest.mark.integration, needs_mariadb]
ACCOUNT = blocks("docs/mysql.md", "sql")[0].replace("'%'", "localhost")
SHOP = "CREATE DATABASE shop; CREATE TABLE shop.orders (id int PRIMARY KEY, state text)"
RUNNING, LAG = "replication_running", "replication_lag"
REPORTS = "'reports'"


@pytest.fixture(scope="module")
def source() -> Iterator[PrivateMariadb]:
    with PrivateMariadb("--server-id=1", "--log-bin=log") as server:
        server.run("CREATE USER repl@localhost IDENTIFIED BY 'of-the-replica'")
        server.run("GRANT REPLICATION SLAVE ON *.* TO repl@localhost")
        yield server


@pytest.fixture(scope="module")
def replica(source: PrivateMariadb) -> Iterator[PrivateMariadb]:
    with PrivateMariadb("--server-id=2", "--read-only=1") as server:
        server.run(ACCOUNT)
        server.run(f"{follow(source, '')} START SLAVE")
        source.run(SHOP)
        yield server


@pytest.fixture
def watched(replica: PrivateMariadb) -> MysqlSubject:
    given = {"name": "db", "socket": replica.socket, "user": "midwatch", **PATIENT}
    # The password of the documentation, which is not one of ASCII.
    given |= {"password": "…", "invariants": {LAG: {"limit": "1ms", "for": "0s"}}}
    return MysqlSubject(MysqlSettings.model_validate(given))


def follow(source: PrivateMariadb, channel: str) -> str:
    """Return the statement that makes a server a replica, from the present position of the source on."""
    host = "localhost" if channel else "127.0.0.1"  # two of one name are refused
    log, position = source.run("SHOW MASTER STATUS").split()[:2]
    return (
        f"CHANGE MASTER {channel} TO MASTER_HOST='{host}', MASTER_PORT={source.port}, MASTER_USER='repl', "
        f"MASTER_PASSWORD='of-the-replica', MASTER_LOG_FILE='{log}', MASTER_LOG_POS={position}, MASTER_CONNECT_RETRY=1;"
    )


async def message(
    watched: MysqlSubject, invariant: str, says: str, component: str = "replica"
) -> Observation:
    """Observe until a signal says this, a regular expression."""
    async with asyncio.timeout(PATIENCE):
        while True:
            seen = await watched.observe({})
            for one in seen.signals:
                if (one.invariant, one.component) == (invariant, component):
                    if re.search(says, one.message):
                        return seen
            await asyncio.sleep(0.05)


async def first_aid(
    watched: MysqlSubject, seen: Observation, invariant: str, component: str = "replica"
) -> tuple[DiagnosisOutput, str]:
    """Return the note about a ticket, whose claims are all in the evidence, and that evidence."""
    wanted = (invariant, component)
    [ticket] = [
        one
        for one in tickets_for(watched, seen)
        if (one.key.invariant, one.key.component) == wanted
    ]
    gatherer = ContextGatherer({"db": watched}, Redactor(), SystemClock())
    context = await gatherer.gather([ticket], timeout=PATIENCE, tokens=8000)
    [(_, note)] = preliminary(PLAYBOOKS, "mysql", [ticket], context)
    grounding = ground(note, context.evidence)
    assert grounding.verified == grounding.total > 0, grounding
    return note, "\n".join(one.text for one in context.evidence)


def commands(note: DiagnosisOutput) -> str:
    return "\n".join(text for one in note.recommended_actions for text in one.commands)


async def test_a_row_that_differs_stops_the_sql_thread(
    source: PrivateMariadb, replica: PrivateMariadb, watched: MysqlSubject
) -> None:
    await message(watched, RUNNING, "both threads run")
    replica.run("INSERT INTO shop.orders VALUES (7, 'written here')")
    source.run("INSERT INTO shop.orders VALUES (7, 'new')")
    seen = await message(watched, RUNNING, "the SQL thread is stopped: error 1062")
    note, evidence = await first_aid(watched, seen, RUNNING)
    assert "Duplicate entry '7'" in note.root_cause and note.verdict == "identified"
    assert "START SLAVE SQL_THREAD" in commands(note)
    assert "SQL_SLAVE_SKIP_COUNTER" not in commands(note)
    # What nothing is known of is not said to be well.
    assert f"{RUNNING} on replica: still broken" in evidence
    _, evidence = await first_aid(watched, seen, LAG)
    assert f"{LAG} on replica: not known now: this replica is an unknown" in evidence
    replica.run("DELETE FROM shop.orders WHERE id = 7; START SLAVE SQL_THREAD")
    await message(watched, RUNNING, "both threads run")


async def test_a_thread_that_somebody_stopped_of_one_channel_of_two(
    source: PrivateMariadb, replica: PrivateMariadb, watched: MysqlSubject
) -> None:
    replica.run(f"{follow(source, REPORTS)} STOP SLAVE IO_THREAD")
    try:
        seen = await message(watched, RUNNING, "the IO thread is stopped")
        note, _ = await first_aid(watched, seen, RUNNING)
        assert "IO thread stopped without an error" in note.root_cause
        quotes = [one.quote for one in note.root_cause_citations]
        assert quotes == ["replica_io_running: No"]
        assert "START SLAVE" in commands(note)
        note, _ = await first_aid(watched, seen, RUNNING, "channel reports")
        assert "SQL thread stopped without an error" in note.root_cause
        quotes = [one.quote for one in note.root_cause_citations]
        assert quotes == ["replica_sql_running: No"]
    finally:
        replica.run(f"RESET SLAVE {REPORTS} ALL; START SLAVE")
    await message(watched, RUNNING, "both threads run")


@asynccontextmanager
async def transactions_read_all_the_time(server: PrivateMariadb) -> AsyncIterator[None]:
    """While it is so, InnoDB shows the transactions of the first reading."""
    connection = await server.connect("root")

    async def read() -> None:
        while True:
            await sql(connection, "SELECT * FROM information_schema.INNODB_TRX")
            await asyncio.sleep(0.01)

    reading = asyncio.create_task(read())
    try:
        yield
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        connection.close()


@pytest.mark.parametrize("by", ["a transaction", "LOCK TABLES"])
async def test_a_replay_that_waits_for_a_lock(
    source: PrivateMariadb, replica: PrivateMariadb, watched: MysqlSubject, by: str
) -> None:
    holder = await replica.connect("root", database="shop")
    try:
        async with transactions_read_all_the_time(replica):
            if by == "a transaction":
                await sql(holder, "BEGIN")
                await sql(holder, "SELECT * FROM orders")
                change = "ALTER TABLE shop.orders COMMENT = 'by a migration'"
            else:
                await sql(holder, "LOCK TABLES orders READ")
                change = "REPLACE INTO shop.orders VALUES (8, 'new')"
            await asyncio.to_thread(source.run, change)
            seen = await message(watched, LAG, r"this replica is [1-9].* behind")
        note, evidence = await first_aid(watched, seen, LAG)
        assert "waits for a table metadata lock" in note.root_cause
        assert "replica_sql_running_state: Waiting for table metadata lock" in evidence
        if by == "a transaction":
            assert f"connection {holder.thread_id()} (user root" in note.root_cause
            assert f"KILL {holder.thread_id()};" in commands(note)
        else:
            assert "KILL" not in commands(note) and note.verdict == "suspected"
    finally:
        await holder.ensure_closed()
    await message(watched, LAG, "this replica is 0ms behind")


async def test_a_source_that_is_away_and_back(
    source: PrivateMariadb, watched: MysqlSubject
) -> None:
    source.stop(signal.SIGKILL)
    says = "the IO thread tries to connect: error 2003"
    seen = await message(watched, RUNNING, says)
    [away] = [one for one in seen.signals if one.invariant == RUNNING]
    assert away.holds is False and away.hold_for == 60  # a restart is no ticket
    note, _ = await first_aid(watched, seen, RUNNING)
    assert "the IO thread cannot connect: error 2003" in note.root_cause
    assert f"127.0.0.1:{source.port} runs" in note.recommended_actions[1].what
    source.start()
    await message(watched, RUNNING, "both threads run")
