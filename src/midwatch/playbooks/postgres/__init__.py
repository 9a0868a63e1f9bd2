"""First aid for PostgreSQL. The first playbook with a note for a ticket is used."""

from midwatch.playbooks.base import Playbook
from midwatch.playbooks.postgres.locks import (
    deadlocks,
    idle_in_transaction,
    lock_pile_up,
    long_query,
)
from midwatch.playbooks.postgres.outage import log_disaster, server_down
from midwatch.playbooks.postgres.resources import (
    connections_exhausted,
    dead_rows,
    growth,
    inactive_slots,
    replication_lag,
    transaction_ids,
)

PLAYBOOKS: tuple[Playbook, ...] = (
    server_down,
    log_disaster,
    lock_pile_up,
    connections_exhausted,
    idle_in_transaction,
    long_query,
    deadlocks,
    transaction_ids,
    dead_rows,
    inactive_slots,
    replication_lag,
    growth,
)

__all__ = ["PLAYBOOKS"]
