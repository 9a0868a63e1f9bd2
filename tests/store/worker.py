"""A process that works on a store: `python worker.py DATABASE STEP NAME`.

The steps print one line when they are where the test wants them.
"""

from __future__ import annotations

import asyncio
import sys
import time

from sqlalchemy import Connection, update

from midwatch.errors import TemporaryError
from midwatch.store.engine import Transaction, audit_row
from midwatch.store.protocol import Budget, Claim, Finish
from midwatch.store.schema import batches, database_now
from midwatch.store.sql import SqlStore, open_store


async def drain(store: SqlStore, name: str) -> None:
    """Claim, wait for the other workers, diagnose until no batch is due; print the tickets."""
    done: list[int] = []
    claims = await _claim(store, name)
    print("claimed", flush=True)
    sys.stdin.readline()
    while claims:
        for claim in claims:
            done += await _diagnose(store, claim)
        claims = await _claim(store, name)
    print(*done, flush=True)


async def _claim(store: SqlStore, name: str) -> list[Claim]:
    while True:
        try:
            return await store.claim(name, lease=600, limit=7)
        except TemporaryError as error:
            print(error.one_line(), file=sys.stderr)


async def _diagnose(store: SqlStore, claim: Claim) -> list[int]:
    call = await store.begin(
        claim, model="m", prompt_version="1", reserve_usd=0.01, budget=Budget(None)
    )
    assert call is not None
    assert await store.finish(claim, call, Finish("answered", cost_usd=0.01))
    return [ticket.id for ticket in claim.tickets]


async def hang(store: SqlStore, name: str) -> None:
    """Write, and do not end the transaction."""

    def write(connection: Connection) -> None:
        connection.execute(update(batches).values(queued=False, claim_token=name))
        print("writing", flush=True)
        time.sleep(600)

    await store.transactions.run(write)


async def note(store: SqlStore, name: str) -> None:
    """Write an audit row, and do not end the transaction."""

    def write(connection: Connection) -> None:
        row = audit_row(1, name, "note", "open", "open")
        Transaction(connection, database_now).note([row])
        print("writing", flush=True)
        time.sleep(600)

    await store.transactions.run(write)


async def main(database: str, step: str, name: str) -> None:
    store = await open_store(database)
    try:
        await {"drain": drain, "hang": hang, "note": note}[step](store, name)
    finally:
        await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
