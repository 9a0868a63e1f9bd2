"""What a MariaDB server does not show is unknown: silent, away, back again, full but for its extra_port; and its tools."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from midwatch.errors import MidwatchError
from midwatch.subjects.mysql import INVARIANTS, MysqlSettings, MysqlSubject
from midwatch.subjects.tools import Answer
from midwatch.testing.tool_conformance import check_tools

from ..mariadb_server import PrivateMariadb, free_port, needs_mariadb
from ..waiting import PATIENT

pytestmark = [pytest.mark.integration, needs_mariadb]


@pytest.fixture
def server() -> Iterator[PrivateMariadb]:
    with PrivateMariadb("--max-connections=10") as one:
        yield one


def subject(server: PrivateMariadb, **settings: object) -> MysqlSubject:
    given = {"name": "db", "socket": str(server.socket), "user": "root"}
    given |= {**PATIENT, **settings}
    return MysqlSubject(MysqlSettings.model_validate(given))


async def test_a_server_that_is_silent_away_and_back(server: PrivateMariadb) -> None:
    watched = subject(server, connect_timeout=1)
    seen = await watched.observe({})
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        silent = await watched.observe(seen.state)
    finally:
        server.process.send_signal(signal.SIGCONT)
    # Without a change that is not written to its table yet there is nothing to recover.
    server.run("CREATE OR REPLACE TABLE mysql.left_behind (id INT) ENGINE=InnoDB")
    server.run("INSERT INTO mysql.left_behind VALUES (1)")
    server.stop(signal.SIGKILL)
    away = await watched.observe(silent.state)
    for one in (silent, away):
        [found] = [s for s in one.signals if s.invariant == "reachable"]
        assert found.holds is False
        assert one.covered <= {"reachable", "log_errors"}
    server.start()
    back = await watched.observe(away.state)
    assert back.covered == {one.id for one in INVARIANTS}
    crash = [
        s for s in back.signals if (s.invariant, s.component) == ("log_errors", "crash")
    ]
    assert crash[0].value and "crash recovery" in crash[0].message


async def call(watched: MysqlSubject, name: str, **arguments: object) -> Answer:
    [tool] = [one for one in watched.tools() if one.name == name]
    return await tool.run(tool.arguments(**arguments))


async def test_the_tools_conform_and_write_nothing(server: PrivateMariadb) -> None:
    server.run(
        "CREATE DATABASE shop; CREATE TABLE shop.orders (id int PRIMARY KEY, note text);"
        "INSERT INTO shop.orders VALUES (1, 'hello there');"
        "CREATE VIEW shop.trap AS SELECT SLEEP(60) AS x;"
    )
    server.run("CREATE USER watch@localhost IDENTIFIED BY 'hunter-2-secret'")
    server.run("GRANT SELECT, PROCESS ON *.* TO watch@localhost")
    watched = subject(server, user="watch", password="hunter-2-secret")
    query = "SELECT id, note FROM shop.orders"
    answers = await check_tools(
        watched,
        {
            "select": {"query": query},
            "explain": {"query": query},
            "table": {"table": "shop.orders"},
            "variables": {"names": ["max_connections*", "report_password"]},
            "innodb_status": {},
            "processlist": {},
            "log_window": {"contains": "ready for connections"},
        },
    )
    select = answers["select"]
    assert select.text == 'id=1 note="hello there"' and select.origin == "reported"
    assert "type=ALL" in answers["explain"].text
    assert "PRIMARY" in answers["table"].text
    assert answers["variables"].text == "max_connections: 10"
    assert "Trx id counter" in answers["innodb_status"].text
    assert answers["processlist"].text and answers["log_window"].text
    for query in (
        "SELECT x FROM shop.trap",
        "SELECT * FROM mysql.user",
        "SELECT /*! SLEEP(9) */ 1 AS x",
    ):
        with pytest.raises(MidwatchError):
            await call(watched, "select", query=query)


async def test_the_extra_port_sees_who_fills_the_server(server: PrivateMariadb) -> None:
    server.stop()
    extra = free_port()
    server.options = (*server.options, f"--extra-port={extra}")
    server.start()
    server.run("CREATE USER web@localhost")
    watched = subject(server, extra_port=extra)
    async with contextlib.AsyncExitStack() as stack:
        for user in ("web",) * 10 + ("root",):
            connection = await server.connect(user)
            stack.push_async_callback(connection.ensure_closed)
        seen = await watched.observe({})
    [found] = [
        s
        for s in seen.signals
        if (s.invariant, s.component) == ("connections", "server")
    ]
    assert found.facts["holder_user"] == "web" and found.facts["holder_count"] == 10
