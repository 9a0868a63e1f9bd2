"""The store on SQL: one implementation for SQLite and PostgreSQL."""

from __future__ import annotations

from midwatch.store import cycles, queue
from midwatch.store import tickets as ticket_functions
from midwatch.store.engine import (
    DatabaseClock,
    TransactionalStore,
    open_transactions,
    parse_database,
    read,
    write,
)
from midwatch.store.schema import database_now
from midwatch.store.upgrade import require_schema


async def open_store(database: str, *, clock: DatabaseClock = database_now) -> SqlStore:
    """Open the store at a database URL and check its schema.

    A SQLite file is created or migrated. A PostgreSQL database is migrated by
    `midwatch db upgrade` alone.

    Args:
        database: `sqlite:///FILE` or `postgresql://USER@HOST/DATABASE`.
        clock: Replaces the database's clock in tests.

    Raises:
        SettingsError: `database` is not the URL of a supported database.
        SchemaMismatch: A PostgreSQL database was not migrated, or a later version made it.
        StoreUnavailable: The database does not answer.
    """
    transactions = open_transactions(parse_database(database))
    try:
        await require_schema(transactions)
    except BaseException:
        await transactions.close()
        raise
    return SqlStore(transactions, clock)


class SqlStore(TransactionalStore):
    """Implements `midwatch.store.protocol.Store`, which documents the methods.

    Each method runs one function, with the same arguments, in one transaction.
    """

    async def close(self) -> None:
        await self.transactions.close()

    # The monitor.
    watch = write(cycles.watch)
    revision = read(cycles.revision)
    save_cycle = write(cycles.save_cycle)
    earlier = read(cycles.earlier)
    openings = read(cycles.openings)
    save_first_aid = write(cycles.save_first_aid)

    # The agent.
    claim = write(queue.claim)
    renew = write(queue.renew)
    begin = write(queue.begin)
    finish = write(queue.finish)
    release = write(queue.release)
    pause = write(queue.pause)
    unpause = write(queue.unpause)
    pauses = read(queue.list_pauses)
    spent_today = read(queue.spent_today)
    past = read(ticket_functions.past)

    # People.
    ticket = read(ticket_functions.ticket)
    tickets = read(ticket_functions.list_tickets)
    history = read(ticket_functions.history)
    diagnosis = read(ticket_functions.diagnosis)
    briefs = read(ticket_functions.briefs)
    diagnoses = read(ticket_functions.list_diagnoses)
    sessions_of = read(ticket_functions.sessions_of)
    acknowledge = write(ticket_functions.acknowledge)
    hold = write(ticket_functions.hold)
    resolve = write(ticket_functions.resolve)
    retry = write(ticket_functions.retry)
    stats = read(ticket_functions.stats)

    # Daemons.
    beat = write(queue.beat)
    daemons = read(queue.list_daemons)
