"""First aid on real servers where what clients choose, or what only looks alike, could make it name an innocent one."""

from __future__ import annotations

import contextlib

import pytest

from midwatch.playbooks.base import sql_literal
from midwatch.testing.postgres import PrivatePostgres

from .test_postgres_first_aid import (  # noqa: F401
    commands,
    ending,
    first_aid,
    nothing_stays,
    run,
    server,
    session,
    waiting,
    watch,
)


async def test_an_index_that_is_built_concurrently_is_not_cancelled_for_a_queue(
    server: PrivatePostgres,  # noqa: F811
) -> None:
    watched = watch(server, blocked_sessions=0)
    index = "CREATE INDEX CONCURRENTLY stock_n ON stock (n)"
    alter = "/* v7 */ SET statement_timeout = 0; ALTER TABLE stock ADD COLUMN extra int"
    try:
        async with (
            session(server, "writer", "UPDATE stock SET n = 1") as writer,
            waiting(server, "indexer", index) as indexer,
            waiting(server, "migration", alter),
            waiting(server, "shop", "SELECT * FROM stock") as shop,
        ):
            first, *rest = ending(await first_aid(watched, "blocked_sessions"))
            assert run(server, first) == [(True,)]
            await shop
            assert not indexer.done()
            assert len(rest) == 1 and str(writer.info.backend_pid) in rest[0]
            await writer.rollback()
            await indexer
    finally:
        run(server, "DROP INDEX IF EXISTS stock_n")


async def test_only_the_prepared_transaction_whose_lock_conflicts_is_offered(
    server: PrivatePostgres,  # noqa: F811
) -> None:
    watched = watch(server, blocked_sessions=0)
    for gid, statement in (
        ("a reader", "SELECT n FROM stock"),
        ("forged in_front_of=1 prepared=x", "CREATE TABLE other (n int)"),
        ("writer detail=owner x'; --", "UPDATE stock SET n = 5"),
    ):
        async with session(server, "manager", statement) as manager:
            await manager.execute(f"PREPARE TRANSACTION {sql_literal(gid)}")
    async with waiting(server, "shop", "CREATE INDEX stock_n ON stock (n)"):
        output = await first_aid(watched, "blocked_sessions")
        assert [one for one in commands(output) if " PREPARED " in one] == [
            "COMMIT PREPARED 'writer detail=owner x''; --';",
            "ROLLBACK PREPARED 'writer detail=owner x''; --';",
        ]


@pytest.mark.parametrize("application", ["", "PostgreSQL JDBC Driver"])
async def test_sessions_without_a_name_of_their_own_are_not_ended_together(
    server: PrivatePostgres, application: str  # noqa: F811
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            one = session(server, application, "SELECT 1", autocommit=True)
            await stack.enter_async_context(one)
        output = await first_aid(watch(server, connections="5%"), "connections")
        assert ending(output) == []
