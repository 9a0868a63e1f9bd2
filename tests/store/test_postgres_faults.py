"""PostgreSQL killed, stopped or refusing: a clear error within the timeout, and recovery."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
from sqlalchemy import Connection, func, select

from midwatch.errors import StoreBusy, StoreRejected, StoreUnavailable
from midwatch.store import engine
from midwatch.store.sql import SqlStore, open_store
from midwatch.store.upgrade import upgrade_database
from midwatch.testing.postgres import PrivatePostgres
from midwatch.testing.store_conformance import MovableClock, StoreFixture

from ..waiting import PATIENCE


@pytest.fixture(scope="module")
def fragile() -> Iterator[PrivatePostgres]:
    """Start a server that the tests of this file may kill."""
    with PrivatePostgres(tcp=True) as server:
        yield server


@pytest.fixture
async def store(fragile: PrivatePostgres) -> AsyncIterator[SqlStore]:
    await upgrade_database(fragile.dsn(tcp=True))
    store = await open_store(fragile.dsn(tcp=True))
    yield store
    await store.close()


async def test_killed_and_restarted(fragile: PrivatePostgres, store: SqlStore) -> None:
    fixture = StoreFixture(store, MovableClock())
    (ticket,) = await fixture.open("a")
    claim = await fixture.claim()
    fragile.kill()
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            await store.renew(claim, lease=30)
        assert time.monotonic() - start < PATIENCE
        assert "check that it runs" in caught.value.one_line()
    fragile.restart()
    assert await store.renew(claim, lease=30)
    assert (await store.ticket(ticket.id)).key == ticket.key


async def test_a_restart_between_two_calls_causes_no_error(
    fragile: PrivatePostgres, store: SqlStore
) -> None:
    await store.watch("db")
    fragile.restart()
    await store.watch("db")


async def test_a_stopped_server_fails_within_the_timeout(
    fragile: PrivatePostgres, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.watch("db")
    monkeypatch.setattr(engine, "POSTGRES_SECONDS", 0.3)
    family = [psutil.Process(fragile.pid)]
    family += family[0].children()
    for process in family:
        process.suspend()
    try:
        start = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.watch("db")
        assert time.monotonic() - start < PATIENCE
    finally:
        for process in family:
            process.resume()
    monkeypatch.undo()
    await store.watch("db")


async def test_only_silence_ends_a_transaction(fragile: PrivatePostgres) -> None:
    """Of many statements all may be slow, as long as each is answered."""
    transactions = engine.PostgresTransactions(
        engine.parse_database(fragile.dsn(tcp=True)), silence=3
    )

    def sleep(connection: Connection, seconds: float, times: int) -> int:
        for _ in range(times):
            connection.execute(select(func.pg_sleep(seconds)))
        return times

    assert await transactions.run(sleep, 0.6, 6) == 6
    with pytest.raises(StoreUnavailable, match="did not answer within 3 s"):
        await transactions.run(sleep, 60, 1)
    await transactions.close()


async def test_a_lock_held_for_too_long(
    fragile: PrivatePostgres, monkeypatch: pytest.MonkeyPatch, store: SqlStore
) -> None:
    import psycopg

    await store.watch("db")
    monkeypatch.setattr(engine, "POSTGRES_SECONDS", 2.0)
    hasty = await open_store(fragile.dsn(tcp=True))
    with psycopg.connect(fragile.dsn(tcp=True)) as connection:
        connection.execute("LOCK subjects IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreBusy):
            await hasty.watch("db")
    await hasty.watch("db")
    await hasty.close()


@pytest.mark.parametrize(
    ("who", "hint"),
    [
        ({"password": "hunter2"}, "check the user and the password"),
        ({"user": "nobody-here", "password": "hunter2"}, "check the user"),
        ({"database": "nowhere"}, "create the database"),
    ],
)
async def test_a_refused_login(
    fragile: PrivatePostgres, who: dict[str, str], hint: str
) -> None:
    with pytest.raises(StoreRejected) as caught:
        await open_store(fragile.dsn(tcp=True, **who))
    assert hint in caught.value.one_line()
    for secret in ("hunter2", fragile.password):
        assert secret not in caught.value.one_line()


async def test_no_server_at_all() -> None:
    for place in ("127.0.0.1:1", "no-such-host.invalid", "/?host=/no/such/folder"):
        url = f"postgresql://u:hunter2@{place}" + ("" if "?" in place else "/db")
        with pytest.raises(StoreUnavailable) as caught:
            await open_store(url)
        assert "hunter2" not in caught.value.one_line()
