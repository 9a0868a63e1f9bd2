"""The kind mysql on a real MariaDB: each invariant broken and whole again, with the account that the documentation makes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from midwatch.model import Json, Key, Observation, Signal
from midwatch.monitor.rules import check
from midwatch.subjects.mysql import INVARIANTS, MysqlSettings, MysqlSubject
from midwatch.testing.fakes import ManualClock
from midwatch.testing.subject_conformance import check_kind, check_subject

from ..mariadb_server import PrivateMariadb, needs_mariadb, sql
from ..snippets import blocks
from ..waiting import PATIENCE, PATIENT

pytestmark = [pytest.mark.integration, needs_mariadb]

ROLE = blocks("docs/mysql.md", "sql")[0].replace("'%'", "localhost")
SET_UP = """
CREATE DATABASE shop;
CREATE TABLE shop.orders (id int PRIMARY KEY, state text);
INSERT INTO shop.orders VALUES (1, 'new'), (2, 'new');
CREATE TABLE shop.codes (id tinyint AUTO_INCREMENT PRIMARY KEY);
CREATE TABLE shop.old (id int PRIMARY KEY) ENGINE=MyISAM;
CREATE USER checkout@localhost; GRANT ALL ON shop.* TO checkout@localhost;
CREATE USER web@localhost WITH MAX_USER_CONNECTIONS 4; GRANT ALL ON shop.* TO web@localhost;
"""
PASSWORD = "hunter-2-secret"


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateMariadb]:
    with PrivateMariadb("--max-connections=12", "--long-query-time=0.001") as one:
        one.run(ROLE.replace("…", PASSWORD) + SET_UP)
        yield one


def subject(server: PrivateMariadb, **settings: Any) -> MysqlSubject:
    clock = settings.pop("clock", None)
    given = {"name": "db", "socket": server.socket, "user": "midwatch"}
    given |= {**PATIENT, **settings}
    given.setdefault("password", PASSWORD)
    return MysqlSubject(MysqlSettings.model_validate(given), clock)


def fate(
    watched: MysqlSubject, seen: Observation, invariant: str, component: str
) -> str:
    """Return what the monitor does with a ticket of this key: it is broken, resolved or unknown."""
    checked = check("db", {i.id: i for i in watched.invariants}, seen, {}, 1e9)
    key = Key("db", invariant, component)
    if key in checked.broken:
        return "broken"
    return "resolved" if checked.known(key) else "unknown"


def signal_of(seen: Observation, invariant: str, component: str) -> Signal:
    [found] = [
        s for s in seen.signals if (s.invariant, s.component) == (invariant, component)
    ]
    return found


async def polled(watched: MysqlSubject, state: Json | None = None) -> Observation:
    """Return the second of two observations, which knows what has to be compared."""
    first = await watched.observe(state or {})
    return await watched.observe(first.state)


@contextlib.asynccontextmanager
async def client(
    server: PrivateMariadb, user: str = "checkout", **options: Any
) -> AsyncIterator[Any]:
    connection = await server.connect(user, **{"database": "shop", **options})
    try:
        yield connection
    finally:
        await connection.ensure_closed()


async def until(
    watched: MysqlSubject, invariant: str, component: str, wanted: str
) -> Observation:
    """Observe until the monitor would do what is wanted with this ticket."""
    async with asyncio.timeout(PATIENCE):
        while True:
            seen = await polled(watched)
            if fate(watched, seen, invariant, component) == wanted:
                return seen
            await asyncio.sleep(0.1)


async def connected(connection: Any, count: int) -> None:
    """Wait until the server has as many connections: one that its client closed is counted for a while."""
    async with asyncio.timeout(PATIENCE):
        while True:
            [row] = await sql(connection, "SHOW GLOBAL STATUS LIKE 'Threads_connected'")
            if int(row["Value"]) == count:
                return
            await asyncio.sleep(0.01)


# ------------------------------------------------------------------ the account of the documentation


async def test_the_documented_account_sees_every_invariant(
    server: PrivateMariadb,
) -> None:
    watched = subject(server)
    seen = await polled(watched)
    assert seen.covered == {one.id for one in INVARIANTS}
    assert not seen.unsupported and not seen.unavailable
    assert (
        seen.background["version"]
        == "MariaDB " + server.run("SELECT SUBSTRING_INDEX(VERSION(), '-', 1)").strip()
    )
    assert "setting max_connections" in seen.background


async def test_it_conforms_and_keeps_the_password(server: PrivateMariadb) -> None:
    check_kind(MysqlSubject)
    watched = subject(server)
    assert watched.secrets == (PASSWORD,)
    async with client(server) as holder:
        await sql(holder, "BEGIN")
        await sql(holder, "UPDATE orders SET state = 'paying' WHERE id = 1")
        assert await check_subject(watched) is not None


PRIVILEGES = {
    "PROCESS": "blocked_sessions idle_in_transaction long_queries long_transactions auto_increment connections",
    "SLAVE MONITOR": "replication_running replication_lag replica_read_only",
    "REFERENCES": "auto_increment crashed_tables",
}


@pytest.mark.parametrize("privilege", PRIVILEGES)
async def test_a_privilege_that_is_missing_is_unknown_with_its_grant(
    server: PrivateMariadb, privilege: str
) -> None:
    watched = subject(server)
    server.run(f"REVOKE {privilege} ON *.* FROM midwatch@localhost")
    try:
        async with client(server) as holder:  # what cannot be seen is not healthy
            await sql(holder, "BEGIN")
            await sql(holder, "UPDATE orders SET state = 'x' WHERE id = 2")
            seen = await polled(watched)
            again = await watched.observe(seen.state)
    finally:
        server.run(f"GRANT {privilege} ON *.* TO midwatch@localhost")
    for one in PRIVILEGES[privilege].split():
        if one == "connections":
            continue
        for each in (seen, again):
            assert fate(watched, each, one, "shop") == "unknown", one
            assert f"GRANT {privilege} ON *.*" in each.unsupported[one]
    assert "reachable" in seen.covered
    assert (await watched.observe(again.state)).covered == {i.id for i in INVARIANTS}


async def test_limits_of_accounts_need_their_grant(server: PrivateMariadb) -> None:
    columns = "SELECT (User, Host, max_user_connections) ON mysql.user"
    watched = subject(server)
    server.run(f"REVOKE {columns} FROM midwatch@localhost")
    try:
        seen = await polled(watched)
    finally:
        server.run(f"GRANT {columns} TO midwatch@localhost")
    assert f"GRANT {columns}" in seen.unsupported["connections"]
    assert fate(watched, seen, "connections", "user web") == "unknown"
    assert signal_of(seen, "connections", "server").value is not None


# ------------------------------------------------------------------ connections


async def test_connections_of_the_server_and_of_a_user(server: PrivateMariadb) -> None:
    watched = subject(server)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(client(server, "web"))
        seen = await until(watched, "connections", "user web", "broken")
        assert (
            "4 of the 4 connections of user web"
            in signal_of(seen, "connections", "user web").message
        )
        assert fate(watched, seen, "connections", "server") == "resolved"
        for _ in range(7):
            one = await stack.enter_async_context(client(server, "checkout"))
        await connected(one, 11)
        seen = await watched.observe(seen.state)
        assert fate(watched, seen, "connections", "server") == "broken"
        facts = signal_of(seen, "connections", "server").facts
        await connected(one, 11)
        assert (facts["holder_user"], facts["holder_count"]) == ("checkout", 7)
        async with client(server, "root"), client(server, "root"):
            full = await watched.observe(seen.state)
            assert fate(watched, full, "connections", "server") == "broken"
            assert (
                "Too many connections"
                in signal_of(full, "connections", "server").message
            )
            assert fate(watched, full, "reachable", "server") == "resolved"
            for name in ("blocked_sessions", "deadlocks", "replication_running"):
                assert fate(watched, full, name, "shop") == "unknown"
        await connected(one, 11)
        seen = await watched.observe(full.state)
    assert "refused within" in signal_of(seen, "connections", "server").message
    await until(subject(server, event_window=0), "connections", "server", "resolved")


# ------------------------------------------------------------------ locks


async def test_the_root_of_a_queue_of_rows_is_named(server: PrivateMariadb) -> None:
    limit = {"invariants": {"blocked_sessions": {"limit": 0}}}
    watched = subject(server, **limit)
    async with (
        client(server) as holder,
        client(server) as second,
        client(server) as third,
    ):
        await sql(holder, "BEGIN")
        await sql(holder, "UPDATE orders SET state = 'paying' WHERE id = 1")
        await sql(second, "BEGIN")
        await sql(second, "UPDATE orders SET state = 'mine' WHERE id = 2")
        waits = [
            asyncio.ensure_future(
                sql(second, "UPDATE orders SET state = 'sent' WHERE id = 1")
            ),
            asyncio.ensure_future(
                sql(third, "UPDATE orders SET state = 'sent' WHERE id = 2")
            ),
        ]
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    seen = await until(watched, "blocked_sessions", "shop", "broken")
                    facts = signal_of(seen, "blocked_sessions", "shop").facts
                    if facts["blocked_count"] == 2:
                        break
                    # INNODB_TRX stays as it is while it is read more often than every 0.1 s.
                    await asyncio.sleep(0.2)
        finally:
            await sql(holder, "ROLLBACK")
            await waits[0]
            await sql(second, "ROLLBACK")
            await waits[1]
        assert facts["blocker_id"] == holder.thread_id()
        assert facts["blocker_user"] == "checkout" and facts["blocker_certain"] is True
        assert facts["table"] == "shop.orders" and facts["lock_type"] == "row lock"
    await until(watched, "blocked_sessions", "shop", "resolved")


@pytest.mark.parametrize("exact", [False, True])
async def test_a_queue_behind_a_migration(server: PrivateMariadb, exact: bool) -> None:
    if exact:
        try:
            server.run("INSTALL SONAME 'metadata_lock_info'")
        except AssertionError:
            pytest.skip("the plugin metadata_lock_info is not installed")
    watched = subject(server, invariants={"blocked_sessions": {"limit": 0}})
    try:
        async with (
            client(server) as reader,
            client(server) as ddl,
            client(server) as web,
        ):
            await sql(reader, "BEGIN")
            await sql(reader, "SELECT * FROM orders")
            alter = asyncio.ensure_future(
                sql(ddl, "ALTER TABLE orders ADD COLUMN note text")
            )
            await until(watched, "blocked_sessions", "shop", "broken")
            await asyncio.sleep(0.2)  # as below
            query = asyncio.ensure_future(sql(web, "SELECT * FROM orders"))
            async with asyncio.timeout(PATIENCE):
                while True:
                    seen = await until(watched, "blocked_sessions", "shop", "broken")
                    facts = signal_of(seen, "blocked_sessions", "shop").facts
                    if facts["blocked_count"] == 2:
                        break
            assert facts["blocker_id"] == reader.thread_id()
            assert facts["lock_type"] == "table metadata lock"
            assert facts["blocker_certain"] is exact
            await sql(reader, "COMMIT")
            await alter
            await query
            await sql(ddl, "ALTER TABLE orders DROP COLUMN note")
    finally:
        if exact:
            server.run("UNINSTALL SONAME 'metadata_lock_info'")


async def test_who_locked_a_table_without_a_transaction_is_unknown_but_the_queue_is_not(
    server: PrivateMariadb,
) -> None:
    watched = subject(server, invariants={"blocked_sessions": {"limit": 0}})
    async with client(server) as holder, client(server) as waiter:
        await sql(holder, "LOCK TABLES old WRITE")
        read = asyncio.ensure_future(sql(waiter, "SELECT * FROM old"))
        seen = await until(watched, "blocked_sessions", "shop", "broken")
        found = signal_of(seen, "blocked_sessions", "shop")
        assert found.facts["blocker_id"] is None and "does not show" in found.message
        await sql(holder, "UNLOCK TABLES")
        await read


async def test_a_user_lock_is_a_warning_of_its_own(server: PrivateMariadb) -> None:
    watched = subject(server, invariants={"blocked_sessions": {"limit": 0}})
    async with client(server) as holder, client(server) as waiter:
        await sql(holder, "SELECT GET_LOCK('leader', 0)")
        wait = asyncio.ensure_future(sql(waiter, "SELECT GET_LOCK('leader', 600)"))
        seen = await until(watched, "blocked_sessions", "shop user locks", "broken")
        assert signal_of(seen, "blocked_sessions", "shop user locks").severity == 1
        assert fate(watched, seen, "long_queries", "shop") == "resolved"
        await sql(holder, "SELECT RELEASE_LOCK('leader')")
        await wait


async def test_a_deadlock_is_counted_since_it_was_seen(server: PrivateMariadb) -> None:
    clock = ManualClock()
    watched = subject(server, clock=clock)
    first = await watched.observe({})
    assert fate(watched, first, "deadlocks", "server") == "unknown"
    async with client(server) as one, client(server) as two:
        for connection, row in ((one, 1), (two, 2)):
            await sql(connection, "BEGIN")
            await sql(connection, f"UPDATE orders SET state = 'a' WHERE id = {row}")
        crossed = [
            asyncio.ensure_future(
                sql(one, "UPDATE orders SET state = 'b' WHERE id = 2")
            ),
            asyncio.ensure_future(
                sql(two, "UPDATE orders SET state = 'b' WHERE id = 1")
            ),
        ]
        done = await asyncio.gather(*crossed, return_exceptions=True)
        assert sum(isinstance(result, Exception) for result in done) == 1
    seen = await watched.observe(first.state)
    assert signal_of(seen, "deadlocks", "server").value == 1
    await clock.advance(400)
    seen = await watched.observe(seen.state)
    assert fate(watched, seen, "deadlocks", "server") == "resolved"


# ------------------------------------------------------------------ transactions, statements


async def test_an_idle_transaction_and_a_long_statement(server: PrivateMariadb) -> None:
    limits = {
        name: {"limit": 0}
        for name in ("idle_in_transaction", "long_queries", "long_transactions")
    }
    watched = subject(server, invariants=limits)
    async with client(server) as idle, client(server) as busy:
        await sql(idle, "BEGIN")
        await sql(idle, "UPDATE orders SET state = 'x' WHERE id = 1")
        seen = await until(watched, "idle_in_transaction", "shop", "broken")
        assert (
            signal_of(seen, "idle_in_transaction", "shop").facts["id"]
            == idle.thread_id()
        )
        await until(watched, "long_transactions", "shop", "broken")
        running = asyncio.ensure_future(sql(busy, "SELECT SLEEP(600)"))
        seen = await until(watched, "long_queries", "shop", "broken")
        facts = signal_of(seen, "long_queries", "shop").facts
        assert facts["query"] == "SELECT SLEEP(600)" and facts["user"] == "checkout"
        ignored = subject(
            server,
            invariants={"long_queries": {"limit": 0, "ignore": [{"user": "check*"}]}},
        )
        seen = await polled(ignored)
        assert fate(ignored, seen, "long_queries", "shop") == "resolved"
        assert seen.ignored["long_queries"] == ("user checkout",)
        server.run(f"KILL QUERY {busy.thread_id()}")
        await asyncio.wait([running])
        assert running.exception() is not None
        await sql(idle, "ROLLBACK")
    await until(watched, "idle_in_transaction", "shop", "resolved")
    await until(watched, "long_queries", "shop", "resolved")


# ------------------------------------------------------------------ tables, counters


async def test_numbers_that_run_out_and_a_crashed_table(server: PrivateMariadb) -> None:
    watched = subject(server, tables_interval=0)
    server.run("INSERT INTO shop.codes VALUES (126); FLUSH TABLES shop.old;")
    index = server.folder / "data/shop/old.MYI"
    whole = index.read_bytes()
    try:
        index.write_bytes(b"\0" * len(whole))
        seen = await polled(watched)
        assert fate(watched, seen, "auto_increment", "shop.codes") == "broken"
        facts = signal_of(seen, "auto_increment", "shop.codes").facts
        assert (facts["next"], facts["highest"]) == ("127", "127")
        assert fate(watched, seen, "crashed_tables", "shop.old") == "broken"
        kept = await subject(server).observe(seen.state)  # not looked at again yet
        assert fate(watched, kept, "crashed_tables", "shop.old") == "broken"
    finally:
        index.write_bytes(whole)
        server.run(
            "FLUSH TABLES shop.old; ALTER TABLE shop.codes MODIFY id bigint AUTO_INCREMENT"
        )
    seen = await polled(watched)
    assert fate(watched, seen, "crashed_tables", "shop.old") == "resolved"
    assert fate(watched, seen, "auto_increment", "shop.codes") == "resolved"


async def test_slow_statements_and_refused_logins(server: PrivateMariadb) -> None:
    limits = {"slow_queries": {"limit": 0.5}, "refused_logins": {"limit": 2}}
    watched = subject(server, invariants=limits, event_window=3600)
    first = await watched.observe({})
    async with client(server) as busy:
        for _ in range(60):
            await sql(busy, "SELECT SLEEP(0.002)")
    for _ in range(3):
        with pytest.raises(Exception, match="Access denied"):
            await server.connect("checkout", password="wrong")
    seen = await watched.observe(first.state)
    assert fate(watched, seen, "slow_queries", "server") == "broken"
    assert fate(watched, seen, "refused_logins", "server") == "broken"
    server.run("FLUSH STATUS")
    seen = await watched.observe(
        seen.state
    )  # the counters begin at 0: nothing is lost, nothing is negative
    assert fate(watched, seen, "slow_queries", "server") == "broken"
