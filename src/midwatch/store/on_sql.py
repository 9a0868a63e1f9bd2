"""Where async methods hand their statements to a transaction: shared by all that is on SQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from midwatch.store.engine import Transactions
from midwatch.store.schema import database_now
from midwatch.store.work import DatabaseClock, Work

P = ParamSpec("P")
T = TypeVar("T")


class OnSql:
    """Runs functions of `Work`, each in one transaction. `clock` stands in for the
    database's clock in tests."""

    def __init__(
        self, transactions: Transactions, clock: DatabaseClock = database_now
    ) -> None:
        self.transactions = transactions
        self._clock = clock

    async def _run(
        self,
        function: Callable[Concatenate[Work, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        def transaction(connection: Connection) -> T:
            return function(Work(connection, self._clock), *args, **kwargs)

        return await self.transactions.run(transaction)

    async def _read(
        self,
        function: Callable[Concatenate[Work, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Like `_run`, for a function that writes nothing: it waits for no writer."""

        def transaction(connection: Connection) -> T:
            return function(Work(connection, self._clock), *args, **kwargs)

        return await self.transactions.read(transaction)
