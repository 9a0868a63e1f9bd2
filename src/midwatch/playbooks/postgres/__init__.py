"""First aid for PostgreSQL. The first playbook with a note for a ticket is used."""

from midwatch.playbooks.base import Playbook
from midwatch.playbooks.postgres import (
    error_storms,
    locks,
    outage,
    resources,
    slot_readers,
    standby_lag,
    vacuum_holders,
)

PLAYBOOKS: tuple[Playbook, ...] = (
    outage.server_down,
    outage.log_disaster,
    outage.damaged_pages,
    locks.lock_pile_up,
    resources.connections_exhausted,
    locks.idle_in_transaction,
    locks.long_query,
    locks.deadlocks,
    vacuum_holders.transaction_ids,
    vacuum_holders.dead_rows,
    slot_readers.inactive_slots,
    standby_lag.replication_lag,
    resources.growth,
    error_storms.error_storm,
)

__all__ = ["PLAYBOOKS"]
