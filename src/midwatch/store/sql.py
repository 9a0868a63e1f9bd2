"""The store on SQL, one implementation for SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

from midwatch.store import action_runs as runs_of_actions
from midwatch.store import api_tokens, cycles
from midwatch.store import deliveries as delivery_functions
from midwatch.store import feed
from midwatch.store import investigations as asked
from midwatch.store import (
    memory,
    overview,
    periods,
    pull_requests,
    queue,
    received_alerts,
    shares,
)
from midwatch.store import silences as silence_functions
from midwatch.store import system_changes as change_functions
from midwatch.store import tickets as ticket_functions
from midwatch.store import unchanged
from midwatch.store.engine import DatabaseClock, TransactionalStore, read, write
from midwatch.store.schema import database_now
from midwatch.store.upgrade import open_current


async def open_store(
    database: str,
    *,
    create: bool = True,
    renewed: Callable[[str], object] | None = None,
    clock: DatabaseClock = database_now,
) -> SqlStore:
    """Open the store at a database URL, as `midwatch.store.upgrade.open_current` does, which documents the errors.

    `clock` replaces the database's clock in tests.
    """
    transactions = await open_current(database, create=create, renewed=renewed)
    return SqlStore(transactions, clock)


class SqlStore(TransactionalStore):
    """Implements `midwatch.store.protocol.Store`, which documents the methods.

    Each method runs one function, with the same arguments, in one transaction.
    """

    @property
    def notice(self) -> str:
        """What a person has to know of the database since it was opened; empty if there is nothing."""
        return self.transactions.notice

    async def close(self) -> None:
        await self.transactions.close()

    # The monitor.
    watch = write(cycles.watch)
    revision = read(cycles.revision)
    save_look = write(cycles.save_look)
    save_cycle = write(cycles.save_cycle)
    join = write(cycles.join)
    earlier = read(cycles.earlier)
    openings = read(cycles.openings)
    save_first_aid = write(cycles.save_first_aid)
    save_unchanged = write(unchanged.save_unchanged)
    stay = write(shares.stay)
    share = write(shares.share)
    leave = write(shares.leave)

    # The agent.
    claim = write(queue.claim)
    renew = write(queue.renew)
    begin = write(queue.begin)
    finish = write(queue.finish)
    finish_and_claim = write(queue.finish_and_claim)
    claims_held = read(queue.claims_held)
    release = write(queue.release)
    pause = write(queue.pause)
    unpause = write(queue.unpause)
    pauses = read(queue.list_pauses)
    spent_today = read(queue.spent_today)
    past = read(memory.past)
    search_past = read(memory.search_past)

    # The page.
    unresolved_counts = read(overview.unresolved_counts)
    subject_states = read(overview.subject_states)
    most_urgent = read(overview.most_urgent)
    figures = read(periods.figures)

    # People.
    ticket = read(ticket_functions.ticket)
    tickets = read(ticket_functions.list_tickets)
    version = read(ticket_functions.version)
    history = read(ticket_functions.history)
    diagnosis = read(ticket_functions.diagnosis)
    briefs = read(ticket_functions.briefs)
    diagnoses = read(ticket_functions.list_diagnoses)
    sessions_of = read(ticket_functions.sessions_of)
    pull_requests_of = read(pull_requests.pull_requests_of)
    acknowledge = write(ticket_functions.acknowledge)
    hold = write(ticket_functions.hold)
    resolve = write(ticket_functions.resolve)
    retry = write(ticket_functions.retry)
    open_ticket = write(cycles.open_ticket)
    update_diagnosis = write(ticket_functions.update_diagnosis)
    stats = read(periods.stats)

    # Pushed alerts.
    receive = write(received_alerts.receive)
    pushed_alerts = read(received_alerts.pushed_alerts)
    forget_alerts = write(received_alerts.forget_alerts)

    # The feed of changes.
    changes = read(feed.changes)
    last_cursor = read(feed.last_cursor)
    save_cursor = write(feed.save_cursor)
    cursor = read(feed.cursor)

    def on_change(self, listener: Callable[[], object]) -> None:
        self.transactions.listeners.append(listener)

    # Changes of the watched systems.
    record_changes = write(change_functions.record_changes)
    system_change = read(change_functions.system_change)
    system_changes = read(change_functions.list_system_changes)
    changes_before = read(change_functions.changes_before)
    forget_changes = write(change_functions.forget_changes)
    change_reading = read(change_functions.change_reading)
    fail_reading = write(change_functions.fail_reading)

    # Silences.
    add_silence = write(silence_functions.add_silence)
    silences = read(silence_functions.list_silences)
    silence = read(silence_functions.silence)
    expire_silence = write(silence_functions.expire_silence)
    silenced = read(silence_functions.list_silenced)

    # Investigations.
    investigate = write(asked.investigate)
    investigation = read(asked.investigation)
    investigations = read(asked.list_investigations)
    cancel_investigation = write(asked.cancel_investigation)
    begin_request = write(asked.begin_request)
    end_request = write(asked.end_request)
    # Notifications.
    tickets_by_id = read(delivery_functions.tickets_by_id)
    told = read(delivery_functions.told)
    save_deliveries = write(delivery_functions.save_deliveries)
    targets_due = read(delivery_functions.targets_due)
    claim_delivery = write(delivery_functions.claim_delivery)
    finish_delivery = write(delivery_functions.finish_delivery)
    give_up_deliveries = write(delivery_functions.give_up_deliveries)
    deliveries = read(delivery_functions.list_deliveries)
    delivery_counts = read(delivery_functions.delivery_counts)
    prune_deliveries = write(delivery_functions.prune_deliveries)

    # Approved actions.
    approve_action = write(runs_of_actions.approve_action)
    start_action = write(runs_of_actions.start_action)
    finish_action = write(runs_of_actions.finish_action)
    action_runs = read(runs_of_actions.list_action_runs)
    unended_actions = read(runs_of_actions.unended_actions)
    settle_actions = write(runs_of_actions.settle_actions)

    # Daemons.
    beat = write(queue.beat)
    daemons = read(queue.list_daemons)

    # Tokens.
    add_token = write(api_tokens.add_token)
    find_token = read(api_tokens.find_token)
    use_token = write(api_tokens.use_token)
    tokens = read(api_tokens.list_tokens)
    revoke_token = write(api_tokens.revoke_token)
