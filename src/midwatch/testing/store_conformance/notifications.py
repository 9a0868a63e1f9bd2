"""Checks of deliveries: written with the cursor, claimed with what is due in the thread, and ended once."""

from __future__ import annotations

from dataclasses import replace

from midwatch.model import Ticket
from midwatch.store.on_call import Cursor, DeliveryEnd, NewDelivery
from midwatch.testing.store_conformance.fixture import LEASE, Check, StoreFixture

NAME = "reader"


def of(
    ticket: Ticket, event: str = "opened", target: str = "ops", due_in: float = 0.0
) -> NewDelivery:
    key = f"{ticket.id}/{target}/{event}"
    thread = f"incident-{ticket.batch}"
    return NewDelivery(
        key, "all", target, event, thread, ticket.id, {"by": "x"}, due_in
    )


async def saved(on: StoreFixture, *new: NewDelivery) -> None:
    before = await on.store.cursor(NAME)
    after = Cursor(before.audit_id + 1 if before else 1)
    assert await on.store.save_deliveries(NAME, before, after, new)


async def check_deliveries_and_cursor_move_together(on: StoreFixture) -> None:
    """A reader whose cursor another one has moved writes nothing."""
    [ticket] = await on.open("a")
    first, second = Cursor(1), Cursor(2)
    assert await on.store.save_deliveries(NAME, None, first, [of(ticket)])
    assert not await on.store.save_deliveries(NAME, None, second, [of(ticket, "b")])
    assert not await on.store.save_deliveries(NAME, second, first, [of(ticket, "b")])
    assert await on.store.save_deliveries(NAME, first, second, [of(ticket)])
    assert await on.store.cursor(NAME) == second
    [only] = await on.store.deliveries(ticket.id)
    assert (only.event, only.state, only.content) == ("opened", "due", {"by": "x"})


async def check_what_is_due_in_a_thread_is_claimed_together(on: StoreFixture) -> None:
    """A claim has all that is due in one thread, and nothing else of it can be claimed meanwhile."""
    [ticket] = await on.open("a")
    await saved(on, of(ticket), of(ticket, "first_aid"), of(ticket, "later", due_in=9))
    assert await on.store.targets_due() == ["ops"]
    claim = await on.store.claim_delivery("ops", lease=LEASE)
    assert claim is not None
    assert [one.event for one in claim.deliveries] == ["opened", "first_aid"]
    assert [one.id for one in claim.tickets] == [ticket.id]
    assert claim.deliveries[0].attempts == 1
    on.clock.move(10)
    assert await on.store.claim_delivery("ops", lease=LEASE) is None
    assert await on.store.finish_delivery(
        claim, DeliveryEnd(sent=tuple(one.id for one in claim.deliveries))
    )
    rest = await on.store.claim_delivery("ops", lease=LEASE)
    assert rest is not None and [one.event for one in rest.deliveries] == ["later"]


async def check_a_failed_delivery_holds_its_thread(on: StoreFixture) -> None:
    """What comes later in a thread waits for the next attempt at what failed; other threads do not."""
    [ticket] = await on.open("a")
    [other] = await on.open("b")
    await saved(on, of(ticket))
    claim = await on.store.claim_delivery("ops", lease=LEASE)
    assert claim is not None
    assert await on.store.finish_delivery(claim, DeliveryEnd(error="no", retry_in=60))
    await saved(on, of(ticket, "resolved"), of(other))
    following = await on.store.claim_delivery("ops", lease=LEASE)
    assert following is not None and following.tickets[0].id == other.id
    assert await on.store.claim_delivery("ops", lease=LEASE) is None
    on.clock.move(60)
    again = await on.store.claim_delivery("ops", lease=LEASE)
    assert again is not None
    assert [one.event for one in again.deliveries] == ["opened", "resolved"]


async def check_a_delivery_whose_sender_died_is_claimed_again(on: StoreFixture) -> None:
    """After its lease a claim is another's, and the first one can end nothing."""
    [ticket] = await on.open("a")
    await saved(on, of(ticket))
    dead = await on.store.claim_delivery("ops", lease=LEASE)
    assert dead is not None
    assert await on.store.claim_delivery("ops", lease=LEASE) is None
    on.clock.move(LEASE)
    claim = await on.store.claim_delivery("ops", lease=LEASE)
    assert claim is not None and claim.deliveries[0].attempts == 2
    ids = (claim.deliveries[0].id,)
    assert not await on.store.finish_delivery(dead, DeliveryEnd(sent=ids))
    assert await on.store.finish_delivery(
        claim, DeliveryEnd(sent=ids, reference={"ts": "1"})
    )
    assert not await on.store.finish_delivery(claim, DeliveryEnd(error="late"))
    await saved(on, of(ticket, "resolved"))
    following = await on.store.claim_delivery("ops", lease=LEASE)
    assert following is not None and following.reference == {"ts": "1"}


async def check_giving_up_is_in_the_history(on: StoreFixture) -> None:
    """A delivery that is given up leaves an audit row on its ticket."""
    [ticket] = await on.open("a")
    [other] = await on.open("b")
    await saved(on, of(ticket), of(other))
    claim = await on.store.claim_delivery("ops", lease=LEASE)
    assert claim is not None
    end = DeliveryEnd(error="refused", given_up=True, actor="notifier 1")
    assert await on.store.finish_delivery(claim, end)
    row = (await on.store.history(claim.tickets[0].id))[-1]
    assert (row.actor, row.action) == ("notifier 1", "notify")
    assert "ops" in row.why and "refused" in row.why
    address = "https://ci.test/done?key=hunter2"
    called = replace(of(ticket, target=address), route="callback", thread="callback 1")
    await saved(on, called)
    claim = await on.store.claim_delivery(address, lease=LEASE)
    assert claim is not None and await on.store.finish_delivery(claim, end)
    why = (await on.store.history(ticket.id))[-1].why
    assert why == "given up: callback could not be notified: refused"
    on.clock.move(100)
    again = await on.store.claim_delivery("ops", lease=LEASE)
    assert again is not None
    assert await on.store.finish_delivery(again, DeliveryEnd(error="no", retry_in=60))
    assert await on.store.give_up_deliveries("ops", 200, "down", "n") == 0
    assert await on.store.give_up_deliveries("ops", 99, "down", "n") == 1
    assert await on.store.delivery_counts(1000) == {"given_up": 3}


async def check_only_what_failed_for_long_is_given_up(on: StoreFixture) -> None:
    """What waited for its digest or for the end of a silence did not fail; an escalation that failed did."""
    [quiet] = await on.open("quiet")
    [late] = await on.open("late")
    await saved(on, of(quiet), of(late, target="boss", event="escalated", due_in=50))
    on.clock.move(1000)
    claim = await on.store.claim_delivery("ops", lease=LEASE)
    assert claim is not None
    silent = DeliveryEnd(postponed=(claim.deliveries[0].id,), postpone_for=60)
    assert await on.store.finish_delivery(claim, silent)
    await saved(on, of(late, due_in=1000))
    on.clock.move(1000)
    for target in ("ops", "ops", "boss"):
        claim = await on.store.claim_delivery(target, lease=LEASE)
        assert claim is not None
        failed = DeliveryEnd(error="down", retry_in=10)
        assert await on.store.finish_delivery(claim, failed)
    assert await on.store.give_up_deliveries("ops", 999, "down", "n") == 0
    assert await on.store.give_up_deliveries("boss", 999, "down", "n") == 1


async def check_what_was_told_is_known(on: StoreFixture) -> None:
    """A target is notified of a ticket from the moment a delivery is due, and not by one that may never come true."""
    [ticket] = await on.open("a")
    await saved(on, of(ticket), of(ticket, "escalated", "boss", 60))
    told = await on.store.told([ticket.id])
    assert [(one.target, one.route) for one in told] == [("ops", "all")]
    assert await on.store.delivery_counts(10) == {"due": 1, "planned": 1}
    on.clock.move(60)
    claim = await on.store.claim_delivery("boss", lease=LEASE)
    assert claim is not None
    ids = (claim.deliveries[0].id,)
    assert await on.store.finish_delivery(claim, DeliveryEnd(sent=ids))
    assert len(await on.store.told([ticket.id])) == 2


async def check_old_deliveries_of_resolved_tickets_are_removed(
    on: StoreFixture,
) -> None:
    """Those of a ticket that is not resolved stay: its later events belong to their thread."""
    for ticket in await on.open("a", "b"):
        await saved(on, of(ticket))
        claim = await on.store.claim_delivery("ops", lease=LEASE)
        assert claim is not None
        ids = (claim.deliveries[0].id,)
        end = DeliveryEnd(sent=ids, reference={})
        assert await on.store.finish_delivery(claim, end)
    await on.store.resolve(ticket.id, "ann", "done")
    on.clock.move(100)
    assert await on.store.prune_deliveries(200) == 0
    assert await on.store.prune_deliveries(50) == 1
    assert [one.ticket_id for one in await on.store.deliveries()] != [ticket.id]


async def check_what_joined_another_incident_leaves_its_thread(
    on: StoreFixture,
) -> None:
    """It is shown in the message that says so, and not in later ones of the thread."""
    first, second = await on.open("a", "b")
    await saved(on, of(first), of(second), of(first, "joined"))
    claim = await on.store.claim_delivery("ops", lease=LEASE)
    assert claim is not None and len(claim.tickets) == 2
    ids = tuple(one.id for one in claim.deliveries)
    assert await on.store.finish_delivery(claim, DeliveryEnd(sent=ids))
    await saved(on, of(second, "resolved"))
    claim = await on.store.claim_delivery("ops", lease=LEASE)
    assert claim is not None
    assert [one.id for one in claim.tickets] == [second.id]


CHECKS: tuple[Check, ...] = (
    check_what_joined_another_incident_leaves_its_thread,
    check_deliveries_and_cursor_move_together,
    check_what_is_due_in_a_thread_is_claimed_together,
    check_a_failed_delivery_holds_its_thread,
    check_a_delivery_whose_sender_died_is_claimed_again,
    check_giving_up_is_in_the_history,
    check_only_what_failed_for_long_is_given_up,
    check_what_was_told_is_known,
    check_old_deliveries_of_resolved_tickets_are_removed,
)
