"""First aid for PostgreSQL. The first playbook with a note for a ticket is used."""

from midwatch.playbooks.base import Playbook
from midwatch.playbooks.postgres.locks import (
    Deadlocks,
    IdleInTransaction,
    LockPileUp,
    LongQuery,
)
from midwatch.playbooks.postgres.outage import LogDisaster, ServerDown
from midwatch.playbooks.postgres.resources import (
    ConnectionsExhausted,
    DeadRows,
    Growth,
    Replication,
    TransactionIds,
)

PLAYBOOKS: tuple[Playbook, ...] = (
    ServerDown(),
    LogDisaster(),
    LockPileUp(),
    ConnectionsExhausted(),
    IdleInTransaction(),
    LongQuery(),
    Deadlocks(),
    TransactionIds(),
    DeadRows(),
    Replication(),
    Growth(),
)

__all__ = ["PLAYBOOKS"]
