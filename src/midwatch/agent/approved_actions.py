"""Actions that a person approves and Midwatch runs: which there are, a dry run, and one run for an approval.

Code derives the proposals from the evidence of a verified diagnosis (`midwatch.subjects.actionable`); nothing of the model's text
is run. The process that approves runs the action. Its claim is stored before, and how it ended after: a run whose process
ended in between is unknown, and is never run again by itself. Whether the ticket resolves is for the monitor to observe.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from midwatch.agent.grounding import Grounding, ground
from midwatch.diagnosis_schema import DiagnosisOutput
from midwatch.errors import Conflict, MidwatchError, NotFound
from midwatch.json_shapes import action_run_document
from midwatch.lifecycle import StopEvent
from midwatch.logs import Log
from midwatch.model import Diagnosis, Json, Origin, Ticket
from midwatch.process_identity import has_ended, process_name
from midwatch.redaction import Redactor
from midwatch.store.action_runs_protocol import ActionRun, Approval, RunState
from midwatch.store.protocol import Store
from midwatch.subjects.actionable import (
    Actionable,
    ActionCheck,
    ActionResult,
    Findings,
    ProposedAction,
    Quote,
)
from midwatch.subjects.base import Subject
from midwatch.text import clean

_MARGIN = 15.0
"""Seconds beyond the time limit after which a run that has not ended is unknown."""
_LONGEST_OUTPUT = 4000
_SETTLE_EVERY = 15.0  # seconds
_STATES = {
    "done": RunState.DONE,
    "not_run": RunState.NOT_RUN,
    "failed": RunState.FAILED,
    "unknown": RunState.UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposed action of a ticket. `id` is new after each run; `problem` is why it cannot be approved, or empty."""

    id: str
    action: ProposedAction
    diagnosis_id: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class TicketActions:
    """What can be approved on a ticket, and what was; `reason` says why there are no proposals."""

    proposals: tuple[Proposal, ...]
    runs: tuple[ActionRun, ...]
    reason: str = ""


class ApprovedActions:
    """The actions of all subjects. Its methods raise NotFound for a ticket or proposal that is not there."""

    def __init__(
        self, store: Store, subjects: Sequence[Subject], redactor: Redactor
    ) -> None:
        self._store = store
        self._subjects = {subject.name: subject for subject in subjects}
        self._redactor = redactor

    async def of_ticket(self, ticket_id: int) -> TicketActions:
        """Return what can be approved on a ticket, and what was."""
        ticket = await self._store.ticket(ticket_id)
        runs = await self._runs(ticket_id)
        subject = self._subjects.get(ticket.key.subject)
        if not isinstance(subject, Actionable):
            return TicketActions(
                (), runs, "no action is known for this kind of subject"
            )
        if ticket.resolved:
            return TicketActions((), runs, "the ticket is resolved")
        if ticket.diagnosis_id is None:
            return TicketActions((), runs, "there is no diagnosis yet")
        diagnosis = await self._store.diagnosis(ticket.diagnosis_id)
        findings, reason = findings_of(ticket, diagnosis)
        if findings is None:
            return TicketActions((), runs, reason)
        proposed = _distinct(subject.propose_actions(findings))
        found = tuple(
            _proposal(one, diagnosis.id, subject, ticket, runs) for one in proposed
        )
        none = "it recommends no action that the evidence proves and Midwatch can take"
        return TicketActions(found, runs, "" if found else none)

    async def dry_run(self, ticket_id: int, proposal_id: str) -> ActionCheck:
        """Return what an action would do, and what its check says now. Raises Conflict where the settings forbid it."""
        proposal, subject = await self._allowed(ticket_id, proposal_id)
        try:
            async with asyncio.timeout(subject.action_settings.timeout):
                return await subject.check_action(proposal.action)
        except TimeoutError:
            return ActionCheck(False, "the check did not end in time")

    async def approve(
        self, ticket_id: int, proposal_id: str, *, by: str, channel: str
    ) -> ActionRun:
        """Approve an action and run it, once.

        Args:
            ticket_id: The ticket.
            proposal_id: The id of the proposal, as it was listed.
            by: Who approves it.
            channel: Where: cli, page, api or mcp.

        Returns:
            How it ended.

        Raises:
            Conflict: It is not allowed by the settings, or somebody else approved it before.
        """
        proposal, subject = await self._allowed(ticket_id, proposal_id)
        limits = subject.action_settings
        action = proposal.action
        run = await self._store.approve_action(
            Approval(
                ticket_id=ticket_id,
                proposal=proposal.id,
                diagnosis_id=proposal.diagnosis_id,
                kind=action.kind,
                target=dict(action.target),
                what=action.what,
                by=by,
                channel=channel,
                expires_in=limits.expires,
            )
        )
        # Whatever happens to who asked, what has begun is recorded.
        task = asyncio.create_task(self._run(subject, action, run, by))
        return await asyncio.shield(task)

    async def _run(
        self, subject: Actionable, action: ProposedAction, run: ActionRun, by: str
    ) -> ActionRun:
        limit = subject.action_settings.timeout
        process = process_name(os.getpid())
        if not await self._store.start_action(run.id, by, process, limit + _MARGIN):
            raise Conflict(
                f"{run.proposal} is not run: another process runs it, its approval has expired or the ticket is resolved",
                hint="list the actions again",
            )
        result = await _bounded(subject, action, limit)
        return await self._store.finish_action(
            run.id, _STATES[result.outcome], self._text(result.text)
        )

    async def _allowed(
        self, ticket_id: int, proposal_id: str
    ) -> tuple[Proposal, Actionable]:
        ticket = await self._store.ticket(ticket_id)
        found = await self.of_ticket(ticket_id)
        subject = self._subjects.get(ticket.key.subject)
        proposal = next((one for one in found.proposals if one.id == proposal_id), None)
        if proposal is None or not isinstance(subject, Actionable):
            earlier = next(
                (one for one in found.runs if one.proposal == proposal_id), None
            )
            if earlier is not None:
                state = earlier.state.value.replace("_", " ")
                raise Conflict(
                    f"{earlier.approved_by} approved {proposal_id} already: {state}",
                    hint="list the actions again, then decide",
                )
            raise NotFound(
                f"ticket {ticket_id} has no action {ascii(proposal_id[:60])}",
                hint=found.reason or "list the actions of the ticket",
            )
        if proposal.problem:
            raise Conflict(proposal.problem)
        return proposal, subject

    async def _runs(self, ticket_id: int) -> tuple[ActionRun, ...]:
        runs = await self._store.action_runs(ticket_id)
        unended = [one for one in runs if not one.ended]
        return tuple(await _settled(self._store, unended) if unended else runs)

    def _text(self, output: str) -> str:
        """Return output as it is stored: printable, without secrets, of bounded length."""
        return self._redactor.text(clean(output, longest=None))[:_LONGEST_OUTPUT]


async def _bounded(
    subject: Actionable, action: ProposedAction, limit: float
) -> ActionResult:
    try:
        async with asyncio.timeout(limit):
            return await subject.run_action(action)
    except TimeoutError:
        return ActionResult("unknown", f"it did not end within {limit:g}s")
    except MidwatchError as error:
        return ActionResult("unknown", f"it ended with an error: {error.one_line()}")


async def _settled(store: Store, unended: Sequence[ActionRun]) -> list[ActionRun]:
    """End what no process will end of one ticket's runs that have not ended, and return all of its runs."""
    names = {one.process for one in unended if one.process}
    ended = [name for name in names if has_ended(name)]
    return await store.settle_actions(unended[0].ticket_id, ended)


async def settle_lost_actions(store: Store) -> None:
    """End the runs of all tickets that no process will end, also where no one looks at them. Raises StoreError."""
    by_ticket: dict[int, list[ActionRun]] = {}
    for run in await store.unended_actions():
        by_ticket.setdefault(run.ticket_id, []).append(run)
    for unended in by_ticket.values():
        await _settled(store, unended)


async def keep_settling(store: Store, log: Log, stop: StopEvent) -> None:
    """Do that every 15 seconds until the stop. A database that is away is logged once."""
    away = False
    while not stop:
        try:
            await settle_lost_actions(store)
            away = False
        except MidwatchError as error:
            if not away:
                log.warning("lost actions are not settled", reason=error.one_line())
            away = True
        if await stop.pause(_SETTLE_EVERY):
            return


def actions_document(found: TicketActions) -> Json:
    """Return what can be approved on a ticket, and what was."""
    return {
        "proposals": [
            {
                "id": one.id,
                "kind": one.action.kind,
                "what": one.action.what,
                "target": dict(one.action.target),
                "evidence": list(one.action.evidence_ids),
                "diagnosis": one.diagnosis_id,
                "problem": one.problem or None,
            }
            for one in found.proposals
        ],
        "runs": [action_run_document(one) for one in found.runs],
        "reason": found.reason or None,
    }


# ------------------------------------------------------------------ what a diagnosis proves (pure)


def findings_of(ticket: Ticket, diagnosis: Diagnosis) -> tuple[Findings | None, str]:
    """Return what a diagnosis says that code has checked; None, and why, where nothing may follow from it."""
    if diagnosis.outcome != "answered" or diagnosis.answer is None:
        return None, "the diagnosis has no answer"
    if ticket.id not in diagnosis.explains:
        return None, "the diagnosis does not name this ticket"
    output = DiagnosisOutput.model_validate(diagnosis.answer)
    grounding = ground(output, diagnosis.evidence)
    root = grounding.claim("root_cause")
    if root is None or not root.verified:
        return None, "the root cause could not be found in the evidence"
    if root.origin is not Origin.SYSTEM:
        return None, "the root cause rests on nothing that the system itself measured"
    commands = [one for step in output.recommended_actions for one in step.commands]
    times = [one.at.timestamp() for one in diagnosis.evidence]
    since = max([*times, diagnosis.started_at.timestamp()])
    quotes = _quotes(grounding)
    return Findings(ticket, diagnosis.evidence, quotes, commands, since), ""


def _quotes(grounding: Grounding) -> tuple[Quote, ...]:
    """Return the quotes of the cause and of findings that were found in what the system itself measured."""
    return tuple(
        Quote(check.evidence_id, check.quote)
        for claim in grounding.claims
        if claim.verified and claim.path.startswith(("root_cause", "supporting"))
        for check in claim.citations
        if check.verified and check.origin is Origin.SYSTEM
    )


def _distinct(proposed: Sequence[ProposedAction]) -> list[ProposedAction]:
    return list({_digest(one.kind, one.target): one for one in proposed}.values())


def _digest(kind: str, target: Mapping[str, object]) -> str:
    text = json.dumps([kind, dict(target)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _proposal(
    action: ProposedAction,
    diagnosis_id: int,
    subject: Actionable,
    ticket: Ticket,
    runs: Sequence[ActionRun],
) -> Proposal:
    """Return a proposal. Its number is one more than the runs of it that have ended: so each run is a decision of its own."""
    name = _digest(action.kind, {**action.target, "diagnosis": diagnosis_id})
    earlier = [one for one in runs if one.proposal.startswith(f"{name}-")]
    number = sum(one.ended for one in earlier) + 1
    problem = ""
    if action.kind not in subject.allowed_actions:
        problem = (
            f"{action.kind} is not allowed on {ticket.key.subject}: "
            f"add it to actions.allow of the subject, if you want that"
        )
    elif any(one.state is RunState.RUNNING for one in earlier):
        problem = "it is being run"
    return Proposal(f"{name}-{number}", action, diagnosis_id, problem)
