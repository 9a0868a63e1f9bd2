"""Checks of approved actions: each is claimed once, and one that no process will end is ended."""

from __future__ import annotations

import asyncio

from midwatch.errors import Conflict, NotFound
from midwatch.model import Ticket
from midwatch.store.action_runs_protocol import ActionRun, Approval, RunState
from midwatch.testing.store_conformance.fixture import StoreFixture, raises


def _approval(ticket: Ticket, by: str = "ann", proposal: str = "p-1") -> Approval:
    return Approval(
        ticket_id=ticket.id,
        proposal=proposal,
        diagnosis_id=1,
        kind="terminate_backend",
        target={"pid": 7, "backend_start": "2026-11-29T13:53:45Z"},
        what="end the session pid 7",
        by=by,
        channel="cli",
        expires_in=600.0,
    )


async def _approved(fixture: StoreFixture) -> tuple[Ticket, ActionRun]:
    [ticket] = await fixture.open("c")
    return ticket, await fixture.store.approve_action(_approval(ticket))


async def an_approved_action_runs_once_and_is_in_the_history(
    fixture: StoreFixture,
) -> None:
    ticket, run = await _approved(fixture)
    assert run.state is RunState.APPROVED
    assert run.expires_at == fixture.clock.after(600)
    assert await fixture.store.start_action(run.id, "ann", "host 1", 30)
    assert not await fixture.store.start_action(run.id, "bob", "host 2", 30)
    ended = await fixture.store.finish_action(run.id, RunState.DONE, "it has ended")
    assert (ended.state, ended.output) == (RunState.DONE, "it has ended")
    assert not await fixture.store.start_action(run.id, "bob", "host 2", 30)
    assert await fixture.store.action_runs(ticket.id) == [ended]
    assert (await fixture.actions(ticket))[1:] == [
        "approve_action",
        "run_action",
        "action_done",
    ]


async def a_proposal_is_approved_once(fixture: StoreFixture) -> None:
    """Who approves what waits to be run may run it; who approves what was run is refused."""
    ticket, run = await _approved(fixture)
    again = await fixture.store.approve_action(_approval(ticket, "bob"))
    assert again == run
    assert await fixture.store.start_action(run.id, "bob", None, 30)
    await raises(Conflict, fixture.store.approve_action(_approval(ticket, "cid")))
    await fixture.store.finish_action(run.id, RunState.NOT_RUN, "it is gone")
    await raises(Conflict, fixture.store.approve_action(_approval(ticket, "cid")))


async def of_many_who_approve_at_once_one_runs_it(fixture: StoreFixture) -> None:
    [ticket] = await fixture.open("c")

    async def act(name: str) -> bool:
        try:
            run = await fixture.store.approve_action(_approval(ticket, name))
        except Conflict:
            return False
        return await fixture.store.start_action(run.id, name, None, 30)

    ran = await asyncio.gather(*(act(name) for name in "abcdef"))
    assert sum(ran) == 1


async def an_approval_expires(fixture: StoreFixture) -> None:
    ticket, run = await _approved(fixture)
    fixture.clock.move(601)
    assert not await fixture.store.start_action(run.id, "ann", None, 30)
    [ended] = await fixture.store.settle_actions(ticket.id)
    assert ended.state is RunState.EXPIRED
    await raises(Conflict, fixture.store.approve_action(_approval(ticket)))


async def a_run_whose_process_ended_is_unknown(fixture: StoreFixture) -> None:
    ticket, run = await _approved(fixture)
    assert await fixture.store.start_action(run.id, "ann", "host 1", 30)
    [same] = await fixture.store.settle_actions(ticket.id, ["host 2"])
    assert same.state is RunState.RUNNING
    assert await fixture.store.unended_actions() == [same]
    [lost] = await fixture.store.settle_actions(ticket.id, ["host 1"])
    assert lost.state is RunState.UNKNOWN
    assert await fixture.store.unended_actions() == []
    assert not await fixture.store.start_action(run.id, "ann", "host 3", 30)
    assert (await fixture.actions(ticket))[-1] == "action_unknown"


async def a_run_whose_time_is_over_is_unknown_until_it_ends(
    fixture: StoreFixture,
) -> None:
    ticket, run = await _approved(fixture)
    assert await fixture.store.start_action(run.id, "ann", None, 30)
    fixture.clock.move(31)
    [lost] = await fixture.store.settle_actions(ticket.id)
    assert lost.state is RunState.UNKNOWN
    ended = await fixture.store.finish_action(run.id, RunState.DONE, "it has ended")
    assert ended.state is RunState.DONE
    again = await fixture.store.finish_action(run.id, RunState.FAILED, "no")
    assert again == ended


async def no_action_is_approved_or_run_on_a_resolved_ticket(
    fixture: StoreFixture,
) -> None:
    ticket, run = await _approved(fixture)
    await fixture.store.resolve(ticket.id, "ann", "restarted")
    assert not await fixture.store.start_action(run.id, "ann", None, 30)
    other = _approval(ticket, proposal="p-2")
    await raises(Conflict, fixture.store.approve_action(other))
    await raises(NotFound, fixture.store.action_runs(ticket.id + 99))


CHECKS = (
    an_approved_action_runs_once_and_is_in_the_history,
    a_proposal_is_approved_once,
    of_many_who_approve_at_once_one_runs_it,
    an_approval_expires,
    a_run_whose_process_ended_is_unknown,
    a_run_whose_time_is_over_is_unknown_until_it_ends,
    no_action_is_approved_or_run_on_a_resolved_ticket,
)
