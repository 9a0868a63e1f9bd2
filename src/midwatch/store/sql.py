"""The store on SQL: one implementation for SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from midwatch.model import AuditRow, Diagnosis, Json, Key, Severity, Ticket
from midwatch.store import cycles
from midwatch.store import queue
from midwatch.store import queue as pauses
from midwatch.store import tickets as people
from midwatch.store import tickets as reading
from midwatch.store.engine import (
    DatabaseClock,
    TransactionalStore,
    open_transactions,
    parse_database,
)
from midwatch.store.protocol import (
    Brief,
    Budget,
    Changes,
    Claim,
    Daemon,
    Earlier,
    Finish,
    Past,
    Pause,
    PauseKind,
    Saved,
    Stats,
    TicketFilter,
    TicketSession,
    Watch,
)
from midwatch.store.schema import database_now
from midwatch.store.upgrade import require_schema


async def open_store(database: str, *, clock: DatabaseClock = database_now) -> SqlStore:
    """The store at a database URL, with its schema checked.

    A SQLite file is made or migrated; on PostgreSQL that is left to `midwatch db upgrade`,
    and SchemaMismatch says so. `clock` stands in for the database's clock in tests.
    """
    transactions = open_transactions(parse_database(database))
    try:
        await require_schema(transactions)
    except BaseException:
        await transactions.close()
        raise
    return SqlStore(transactions, clock)


class SqlStore(TransactionalStore):
    """Satisfies `Store`; see there for what each method promises."""

    async def close(self) -> None:
        await self.transactions.close()

    # -------------------------------------------------- the monitor
    async def watch(self, subject: str) -> Watch:
        return await self._run(cycles.watch, subject)

    async def revision(self, subject: str) -> int:
        return await self._read(cycles.revision, subject)

    async def save_cycle(
        self,
        subject: str,
        revision: int,
        changes: Changes,
        *,
        state: Json | None = None,
        error: str | None = None,
        group_wait: float = 0.0,
    ) -> Saved:
        return await self._run(
            cycles.save_cycle, subject, revision, changes, state, error, group_wait
        )

    async def earlier(
        self, subject: str, keys: Sequence[Key], within: float
    ) -> Mapping[Key, Earlier]:
        return await self._read(cycles.earlier, subject, keys, within)

    async def openings(self, key: Key, within: float) -> list[Ticket]:
        return await self._read(cycles.openings, key, within)

    async def save_first_aid(self, ticket_ids: Sequence[int], first_aid: Json) -> None:
        await self._run(cycles.save_first_aid, ticket_ids, first_aid)

    # -------------------------------------------------- the agent
    async def claim(
        self,
        holder: str,
        *,
        lease: float,
        limit: int = 1,
        least: Severity = Severity.INFO,
        batch: int | None = None,
    ) -> list[Claim]:
        return await self._run(queue.claim, holder, lease, limit, least, batch)

    async def renew(self, claim: Claim, *, lease: float) -> bool:
        return await self._run(queue.renew, claim, lease)

    async def begin(
        self,
        claim: Claim,
        *,
        model: str,
        prompt_version: str,
        reserve_usd: float,
        budget: Budget,
    ) -> int | None:
        return await self._run(
            queue.begin, claim, model, prompt_version, reserve_usd, budget
        )

    async def finish(self, claim: Claim, diagnosis_id: int, finish: Finish) -> bool:
        return await self._run(queue.finish, claim, diagnosis_id, finish)

    async def release(
        self,
        claim: Claim,
        *,
        retry_in: float = 0.0,
        error: str | None = None,
        counted: bool = False,
    ) -> bool:
        return await self._run(queue.release, claim, retry_in, error, counted)

    async def pause(
        self, kind: PauseKind, seconds: float, reason: str, actor: str
    ) -> None:
        await self._run(pauses.pause, kind, seconds, reason, actor)

    async def unpause(self, kind: PauseKind) -> None:
        await self._run(pauses.unpause, kind)

    async def pauses(self) -> list[Pause]:
        return await self._read(pauses.in_force)

    async def spent_today(self) -> float:
        return await self._read(queue.spent_today)

    async def past(self, tickets: Sequence[Ticket], limit: int = 5) -> list[Past]:
        return await self._read(reading.past, tickets, limit)

    # -------------------------------------------------- people
    async def ticket(self, ticket_id: int) -> Ticket:
        return await self._read(reading.ticket, ticket_id)

    async def tickets(self, query: TicketFilter) -> list[Ticket]:
        return await self._read(reading.list_tickets, query)

    async def history(self, ticket_id: int) -> list[AuditRow]:
        return await self._read(reading.history, ticket_id)

    async def diagnosis(self, diagnosis_id: int) -> Diagnosis:
        return await self._read(reading.diagnosis, diagnosis_id)

    async def briefs(self, diagnosis_ids: Sequence[int]) -> Mapping[int, Brief]:
        return await self._read(reading.briefs, diagnosis_ids)

    async def diagnoses(self, ticket_id: int) -> list[Diagnosis]:
        return await self._read(reading.list_diagnoses, ticket_id)

    async def sessions_of(self, ticket_id: int) -> list[TicketSession]:
        return await self._read(reading.sessions_of, ticket_id)

    async def acknowledge(self, ticket_id: int, actor: str, why: str = "") -> Ticket:
        return await self._run(people.acknowledge, ticket_id, actor, why)

    async def hold(
        self, ticket_id: int, held: bool, actor: str, why: str = ""
    ) -> Ticket:
        return await self._run(people.hold, ticket_id, held, actor, why)

    async def resolve(self, ticket_id: int, actor: str, why: str) -> Ticket:
        return await self._run(people.resolve, ticket_id, actor, why)

    async def retry(self, ticket_id: int, actor: str, why: str = "") -> Ticket:
        return await self._run(people.retry, ticket_id, actor, why)

    async def stats(self, within: float) -> Stats:
        return await self._read(reading.stats, within)

    # -------------------------------------------------- daemons
    async def beat(self, name: str, kind: str, info: Json) -> None:
        await self._run(pauses.beat, name, kind, info)

    async def daemons(self, within: float) -> list[Daemon]:
        return await self._read(pauses.alive, within)
