"""First aid for PostgreSQL. The first playbook that knows something speaks for the batch."""

from ..base import Playbook
from .capacity import ConnectionsExhausted, Growth, Replication
from .locks import Deadlocks, IdleInTransaction, LockPileUp, LongQuery
from .outage import LogDisaster, ServerDown
from .vacuum import DeadRows, TransactionIds

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
