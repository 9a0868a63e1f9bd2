"""First aid for MariaDB and MySQL. The first playbook with a note for a ticket is used."""

from midwatch.playbooks.base import Playbook
from midwatch.playbooks.mysql import locks, replication, server

PLAYBOOKS: tuple[Playbook, ...] = (
    server.server_down,
    locks.lock_pile_up,
    server.connections,
    replication.replication_stopped,
    replication.replication_late,
    locks.open_transaction,
    locks.long_query,
    locks.deadlocks,
    server.numbers_run_out,
    server.crashed,
)
