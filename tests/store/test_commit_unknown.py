"""A commit that succeeds although the client sees an error: a second try changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import event

from midwatch.errors import StoreUnavailable
from midwatch.model import TicketStatus
from midwatch.store.protocol import Claim, Finish
from midwatch.store.sql import SqlStore, open_store
from midwatch.store.sqlite import SqliteTransactions
from midwatch.testing.postgres import PrivatePostgres
from midwatch.testing.store_conformance import MovableClock, StoreFixture

FINISH = Finish("answered", cost_usd=0.5, answer={"summary": "x"})


class CutProxy:
    """Forwards bytes to the socket of a server. Once armed, it drops the answer to COMMIT."""

    def __init__(self, server: PrivatePostgres) -> None:
        self._path = server.socket_folder / f".s.PGSQL.{server.port}"
        self.armed = False

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"

    async def _serve(
        self, client: asyncio.StreamReader, answer: asyncio.StreamWriter
    ) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        cut = asyncio.Event()
        both = (self._requests(client, writer, cut), self._answers(reader, answer, cut))
        try:
            await asyncio.gather(*both)
        except ConnectionError:
            pass
        finally:
            for end in (writer, answer):
                end.close()

    async def _requests(
        self,
        client: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        cut: asyncio.Event,
    ) -> None:
        while data := await client.read(1 << 16):
            if self.armed and b"COMMIT" in data:
                self.armed = False
                cut.set()
            server.write(data)
            await server.drain()
        server.close()

    async def _answers(
        self,
        server: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        cut: asyncio.Event,
    ) -> None:
        while data := await server.read(1 << 16):
            if cut.is_set():  # the server has answered, so it has committed
                break
            client.write(data)
            await client.drain()
        client.close()


async def finish_through_a_cut(store: SqlStore, cut: Callable[[], None]) -> None:
    fixture = StoreFixture(store, MovableClock())
    (ticket,) = await fixture.open("a")
    claim = await fixture.claim()
    call = await fixture.begin(claim, usd=1.0)
    cut()
    with pytest.raises(StoreUnavailable):
        await store.finish(claim, call, FINISH)
    committed = await store.ticket(ticket.id)
    assert committed.status is TicketStatus.DIAGNOSED, "the commit has happened"
    assert await store.finish(claim, call, FINISH)
    assert await store.ticket(ticket.id) == committed
    assert await store.spent_today() == 0.5
    assert await fixture.actions(ticket) == ["open", "diagnose"]
    assert await _nothing_left(store, claim)


async def _nothing_left(store: SqlStore, claim: Claim) -> bool:
    return not await store.renew(claim, lease=30) and not await store.claim(
        "b", lease=9
    )


async def test_postgres(postgres: PrivatePostgres, postgres_database: str) -> None:
    proxy = CutProxy(postgres)

    def cut() -> None:
        proxy.armed = True

    async with proxy.listening() as database:
        store = await open_store(database, clock=MovableClock())
        try:
            await finish_through_a_cut(store, cut)
        finally:
            await store.close()


async def test_sqlite(sqlite_file: object) -> None:
    store = await open_store(f"sqlite:///{sqlite_file}", clock=MovableClock())
    transactions = store.transactions
    assert isinstance(transactions, SqliteTransactions)

    def cut() -> None:
        @event.listens_for(transactions.engine, "checkin", once=True)
        def lose(connection: Any, record: Any) -> None:
            connection.close()  # lost like its answer; the pool drops it
            raise StoreUnavailable("the answer to the commit was lost")

    try:
        await finish_through_a_cut(store, cut)
    finally:
        await store.close()
