"""Run a scenario: start its system, watch it, break it, and gather or ask what the agent would."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from midwatch.agent.attempt import Model
from midwatch.agent.evidence import ContextGatherer
from midwatch.agent.runner import AgentRunner, Blocked, ModelSource
from midwatch.diagnosis_schema import DiagnosisOutput, Reply
from midwatch.errors import MidwatchError, TemporaryError
from midwatch.evaluation.exchange import HAND, Exchange
from midwatch.evaluation.scenario import Scenario, fill
from midwatch.evaluation.system import System
from midwatch.lifecycle import StopEvent
from midwatch.model import UNRESOLVED, Context, Ticket, Usage
from midwatch.monitor.loop import MonitorLoop
from midwatch.settings import Settings
from midwatch.store.protocol import Store, TicketFilter

_CYCLE_SECONDS = 0.5
_GATHER_SECONDS = 60.0
"""Longer than the agent gathers: on a busy machine what the evidence says counts, not when."""
_BEFORE = 2
"""Cycles before the fault: the first one has nothing to compare with."""


class App(Protocol):
    """What `midwatch.cli.app.open_app` gives: the daemons of one settings file."""

    @property
    def settings(self) -> Settings: ...
    @property
    def store(self) -> Store: ...
    @property
    def gatherer(self) -> ContextGatherer: ...
    @property
    def model(self) -> ModelSource: ...
    def monitor(self) -> MonitorLoop: ...
    def agent(self) -> AgentRunner: ...


Opener = Callable[[Path], AbstractAsyncContextManager[App]]


async def run(scenario: Scenario, folder: Path, opener: Opener, ask: bool) -> Exchange:
    """Run a scenario once.

    Args:
        scenario: One that can be run.
        folder: An empty folder for all its files.
        opener: Opens the daemons of a settings file.
        ask: Whether Claude is asked; otherwise the answer is the one written by hand, if there is one.

    Raises:
        PartMissing: A program is not on this machine.
        MidwatchError: It could not be run.
    """
    system = await asyncio.to_thread(System(scenario, folder).start)
    try:
        async with opener(write_settings(system)) as app:
            monitor = app.monitor()
            try:
                return await _Run(scenario, system, app, monitor, ask).exchange()
            finally:
                await monitor.close()
    finally:
        await asyncio.to_thread(system.close)


def write_settings(system: System, **groups: Mapping[str, Any]) -> Path:
    """Write the settings file of a scenario that runs into its folder, and return its path.

    An incident's tickets are waited for two seconds, not ten; first aid may take longer than on call, as several
    systems share the machine and what it says counts here, not when.

    Args:
        system: The running scenario.
        groups: Groups of settings that the scenario may replace value by value.
    """
    patience = {"group_wait": "2s", "first_aid_timeout": "5s"}
    settings: dict[str, Any] = {
        "database": f"sqlite:///{system.folder / 'midwatch.db'}",
        "log": {"format": "json"},
        **groups,
        "monitor": {**patience, **groups.get("monitor", {})},
    }
    for name, value in fill(system.scenario.settings, system.names).items():
        known = settings.get(name)
        settings[name] = {**known, **value} if isinstance(known, Mapping) else value
    settings["subjects"] = fill(system.scenario.subjects, system.names)
    file = system.folder / "midwatch.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return file


@dataclass(slots=True)
class _Run:
    scenario: Scenario
    system: System
    app: App
    monitor: MonitorLoop
    ask: bool

    async def exchange(self) -> Exchange:
        for _ in range(_BEFORE if self.scenario.fault else 0):
            await self._cycle()
        if early := await self._tickets():
            raise TemporaryError(f"broken before the fault: {early[0].message}")
        await asyncio.to_thread(self.system.run, self.scenario.fault)
        tickets = await self._wait()
        await asyncio.to_thread(self.system.run, self.scenario.then)
        began = time.monotonic()
        kinds = {str(one["name"]): str(one["kind"]) for one in self.scenario.subjects}
        common: dict[str, Any] = {
            "scenario": self.scenario.name,
            "names": self.system.names,
            "kinds": kinds,
            "tickets": tuple(sorted({_label(ticket) for ticket in tickets})),
        }
        if not tickets or self._awaited(tickets):
            return Exchange(**common)
        batch = await self._incident(tickets)
        aid = [one.first_aid["answer"] for one in batch if one.first_aid]
        common["first_aid"] = tuple(map(DiagnosisOutput.model_validate, aid))
        if self.ask and self.app.model() is not None:
            common |= await self._asked(batch)
        else:
            common |= await self._by_hand(batch)
        return Exchange(seconds=round(time.monotonic() - began, 2), **common)

    async def _cycle(self) -> None:
        cycle = await self.monitor.once()
        if not cycle.opened:
            await asyncio.sleep(_CYCLE_SECONDS)

    async def _wait(self) -> list[Ticket]:
        """Watch until the expected tickets are there; a healthy system for the whole time."""
        deadline = time.monotonic() + self.scenario.within
        tickets: list[Ticket] = []
        while time.monotonic() < deadline:
            await self._cycle()
            tickets = await self._tickets()
            if self.scenario.expect and not self._awaited(tickets):
                break
        return tickets

    def _awaited(self, tickets: Sequence[Ticket]) -> list[str]:
        """Return what is expected and has no ticket yet."""
        known = {ticket.key.invariant for ticket in tickets} | set(map(_label, tickets))
        return [one for one in self.scenario.expect if one not in known]

    async def _tickets(self) -> list[Ticket]:
        return await self.app.store.tickets(TicketFilter(UNRESOLVED))

    async def _incident(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Return the tickets of the first expected one's batch, the most urgent first."""
        wanted = self.scenario.expect[0] if self.scenario.expect else ""
        main = next(
            (one for one in tickets if wanted in (one.key.invariant, _label(one))),
            tickets[0],
        )
        found = [one for one in tickets if one.batch == main.batch]
        return sorted(found, key=lambda one: (one.severity, one.id))

    async def _by_hand(self, tickets: Sequence[Ticket]) -> dict[str, Any]:
        context = await self.app.gatherer.gather(
            tickets,
            timeout=_GATHER_SECONDS,
            tokens=self.app.settings.agent.context_tokens,
        )
        if (hand := self.scenario.answer) is None:
            return {"context": context}
        output = hand.output(context, self.system.names)
        return {"context": context, "answer": output, "answered_by": HAND}

    async def _asked(self, tickets: Sequence[Ticket]) -> dict[str, Any]:
        """Diagnose the incident as the agent does; return the answer as the model gave it, before its checks."""
        agent = self.app.agent()
        tap = _Tap(agent.model)
        agent.model = tap
        outcome = await agent.diagnose(tickets[0].batch, StopEvent())
        if outcome is None or isinstance(outcome, Blocked):
            reason = outcome.reason if outcome else "the incident is not in the queue"
            raise TemporaryError(f"Claude was not asked: {reason}")
        made = await self.app.store.diagnoses(tickets[0].id)
        answers = [reply for reply in tap.replies if reply.output is not None]
        if not answers or not made:
            error = made[-1].error if made else outcome.outcome
            raise MidwatchError(f"no answer: {error}")
        evidence = made[-1].evidence
        return {
            "context": Context(tuple(tickets), evidence, made[-1].started_at),
            "answer": answers[-1].output,
            "answered_by": made[-1].model,
            "usage": sum((reply.usage for reply in tap.replies), Usage()),
            "calls": len(tap.replies),
            "cost_usd": sum(one.cost_usd for one in made),
        }


def _label(ticket: Ticket) -> str:
    return f"{ticket.key.subject}/{ticket.key.invariant}"


@dataclass(slots=True)
class _Tap:
    """A source of models whose replies it keeps."""

    source: ModelSource
    replies: list[Reply] = field(default_factory=list)

    def __call__(self) -> Model | None:
        model = self.source()
        return None if model is None else _Tapped(model, self.replies)


class _Tapped:
    def __init__(self, model: Model, replies: list[Reply]) -> None:
        self._model = model
        self._replies = replies
        self.model = model.model

    async def ask(self, *request: Any, **options: Any) -> Reply:
        reply = await self._model.ask(*request, **options)
        self._replies.append(reply)
        return reply
