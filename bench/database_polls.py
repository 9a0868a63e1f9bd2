"""A poll of MariaDB and of Redis beside the bare driver: connect, read the same state in one round trip, leave.

The floor reads what any watch over such a server needs, with the plainest statements that have it, and looks at none of it. Both sides are charged
for what the server does for them. A quiet server has two clients; a busy one has hundreds of connections (MariaDB) or a full slow log (Redis).
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from midwatch.model import Json
from midwatch.subjects.base import Subject

from ._meter import Cost, Meter
from ._server import reachable, running
from .report import Row, compared, sized, turns

POLLS = sized(60, 10)
ROUNDS = 9
CLIENTS = 200
AIM = 3.0
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_BARE_SQL = """
SELECT VERSION(), CONNECTION_ID(), CURRENT_USER(), @@performance_schema;
SHOW GLOBAL VARIABLES WHERE Variable_name IN ('max_connections', 'read_only', 'long_query_time', 'wsrep_on');
SHOW GLOBAL STATUS WHERE Variable_name IN ('Threads_connected', 'Connection_errors_max_connections', 'Aborted_connects',
 'Innodb_deadlocks', 'Innodb_history_list_length', 'Slow_queries', 'Questions', 'Innodb_buffer_pool_wait_free',
 'Innodb_log_waits', 'Innodb_buffer_pool_reads', 'Innodb_buffer_pool_read_requests');
SELECT * FROM information_schema.PROCESSLIST;
SELECT * FROM information_schema.INNODB_TRX;
SHOW ALL SLAVES STATUS;
SELECT User, Host, max_user_connections FROM mysql.user
"""
_BARE_REDIS: Sequence[Sequence[str | int]] = (
    ("INFO",),
    ("SLOWLOG", "GET", 128),
    *(("CONFIG", "GET", name) for name in ("save", "maxclients")),
)


async def run() -> Sequence[Row]:
    """Return the rows of the servers that this machine has."""
    rows: list[Row] = []
    for program, measure in (("mariadbd", _mariadb), ("redis-server", _redis)):
        if shutil.which(program, path=_PATH) is None:
            print(f"{program} is not on this machine", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory(prefix="midwatch-bench-") as folder:
            rows += await measure(Path(folder))
    return rows


async def _pair(
    name: str, subject: Subject, bare: Callable[[], Awaitable[object]]
) -> list[Row]:
    """Return the rows of a poll beside the bare statements, after a poll that knows what to compare with."""
    state: Json = (await subject.observe({})).state

    async def ours() -> Cost:
        nonlocal state
        with Meter() as meter:
            for _ in range(POLLS):
                seen = await subject.observe(state)
                state = seen.state
        assert not seen.unavailable and not seen.unsupported, seen
        return meter.cost

    async def floor() -> Cost:
        with Meter() as meter:
            for _ in range(POLLS):
                await bare()
        return meter.cost

    samples = await turns({"poll": ours, "bare statements": floor}, ROUNDS)
    return compared(
        name,
        samples,
        {"bare statements": AIM},
        each=POLLS,
        judged=("processor", "wall"),
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# ------------------------------------------------------------------ MariaDB


async def _mariadb(folder: Path) -> list[Row]:
    from midwatch.subjects.mysql import MysqlSettings, MysqlSubject

    with _mariadb_server(folder) as port:
        await reachable(port)
        address = {"host": "127.0.0.1", "port": port, "user": "root"}
        settings = MysqlSettings.model_validate({"name": "db", **address})
        subject = MysqlSubject(settings)

        async def bare() -> None:
            async with _client(address) as connection, connection.cursor() as cursor:
                await cursor.execute(_BARE_SQL)
                while True:
                    await cursor.fetchall()
                    if not await cursor.nextset():
                        break

        rows = await _pair("poll of MariaDB", subject, bare)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(CLIENTS):
                await stack.enter_async_context(_client(address))
            title = f"poll of MariaDB with {CLIENTS} connections"
            return [*rows, *await _pair(title, subject, bare)]


@contextlib.contextmanager
def _mariadb_server(folder: Path) -> Any:
    data, user, port = folder / "data", getpass.getuser(), _free_port()
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}"]
    install += ["--auth-root-authentication-method=normal", f"--user={user}"]
    # A server that starts removes the temporary tables of others in this folder.
    own = os.environ | {"TMPDIR": str(folder)}
    subprocess.run(install, check=True, capture_output=True, env=own, timeout=180)
    # A log that has grown for months: no poll may read all of it.
    line = "2026-01-01  0:00:00 0 [Note] InnoDB: Buffer pool(s) load completed\n"
    (folder / "error.log").write_text(line * 20_000)
    program = str(shutil.which("mariadbd", path=_PATH))
    serve = [program, "--no-defaults", f"--user={user}", f"--datadir={data}"]
    serve += [f"--socket={folder / 'db.sock'}", f"--port={port}"]
    serve += [f"--log-error={folder / 'error.log'}", f"--tmpdir={folder}"]
    serve += ["--bind-address=127.0.0.1", "--max-connections=400"]
    with running(folder, serve):
        yield port


@contextlib.asynccontextmanager
async def _client(address: dict[str, Any]) -> AsyncIterator[Any]:
    import asyncmy

    connection = await asyncmy.connect(**address)
    try:
        yield connection
    finally:
        await connection.ensure_closed()


# ------------------------------------------------------------------ Redis


async def _redis(folder: Path) -> list[Row]:
    from redis.asyncio import Redis
    from redis.asyncio.connection import Connection

    from midwatch.subjects.redis import RedisSubject
    from midwatch.subjects.redis.settings import RedisSettings

    port = _free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1"]
    with running(folder, [*command, "--save", ""]):
        await reachable(port)
        url = f"redis://127.0.0.1:{port}"
        subject = RedisSubject(RedisSettings.model_validate({"name": "c", "url": url}))

        async def bare() -> None:
            connection = Connection(port=port, protocol=2, driver_info=None)
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_packed_command(connection.pack_commands(_BARE_REDIS))
            for _ in _BARE_REDIS:
                await connection.read_response()
            await connection.disconnect()

        rows = await _pair("poll of Redis", subject, bare)
        async with Redis.from_url(url) as client:
            await client.config_set("slowlog-log-slower-than", 0)
            for number in range(128):
                await client.set(f"session:{number}", "x")
            await client.config_set("slowlog-log-slower-than", 10_000)
        title = "poll of Redis with a full slow log"
        return [*rows, *await _pair(title, subject, bare)]
