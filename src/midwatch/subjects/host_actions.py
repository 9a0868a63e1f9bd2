"""Actions on a machine that a person approved: restart a unit of systemd that the settings name, while its process is down."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from midwatch.errors import ObservationFailed
from midwatch.model import Observation
from midwatch.programs import run
from midwatch.subjects.actionable import (
    ActionCheck,
    ActionKind,
    ActionResult,
    Findings,
    ProposedAction,
)
from midwatch.subjects.host_settings import HostActionSettings
from midwatch.subjects.host_units import UNIT_ENVIRONMENT
from midwatch.text import ticket_line

RESTART = "restart_unit"
KINDS = (ActionKind(RESTART, "Restart a unit of systemd"),)
_MOST_OUTPUT = 100_000  # bytes
_SHARE_OF_SHOW = 0.2  # of the time of a run


def propose(
    findings: Findings, settings: HostActionSettings
) -> Iterator[ProposedAction]:
    """Yield the restart of the unit of the process that is down, if the settings name it and the diagnosis recommends it."""
    ticket = findings.ticket
    unit = ticket.facts.get("unit")
    if ticket.key.invariant != "process" or unit not in settings.units:
        return
    name = re.escape(str(unit).removesuffix(".service"))
    restart = re.compile(
        rf"(?:^|[\s;&|])systemctl\s+(?:-\S+\s+)*restart\s+(?:-\S+\s+)*{name}(?:\.service)?(?=$|[\s;&|])"
    )
    if any(restart.search(command) for command in findings.commands):
        yield ProposedAction(
            RESTART,
            {"unit": str(unit), "component": ticket.key.component},
            f"restart the unit {ticket_line(str(unit), 200)}",
        )


class HostActions:
    """The actions of this machine.

    Args:
        settings: What is allowed.
        observe: Observes the machine once.
    """

    def __init__(
        self,
        settings: HostActionSettings,
        observe: Callable[[], Awaitable[Observation]],
    ) -> None:
        self._settings = settings
        self._observe = observe

    async def check(self, action: ProposedAction) -> ActionCheck:
        """See `Actionable.check_action`."""
        command = self._command("restart", "--", str(action.target["unit"]))
        reason = await self._reason(action)
        seen = f"{action.target['component']} is still down"
        return ActionCheck(not reason, reason or seen, " ".join(command))

    async def probe(self) -> str:
        """See `ProbesActions.probe_actions`."""
        for unit in self._settings.units:
            if reason := await self._not_loaded(unit):
                raise ObservationFailed(
                    f"{unit} could not be restarted: {reason}",
                    hint="check actions.units, actions.systemctl and what sudo permits",
                )
        return f"systemd has {', '.join(self._settings.units)}"

    async def run(self, action: ProposedAction) -> ActionResult:
        """See `Actionable.run_action`."""
        if reason := await self._reason(action):
            return ActionResult("not_run", reason)
        unit = str(action.target["unit"])
        limit = self._settings.timeout * (1 - 2 * _SHARE_OF_SHOW)
        try:
            result = await run(
                self._command("restart", "--", unit),
                env=UNIT_ENVIRONMENT,
                cwd=Path("/"),
                timeout=limit,
                max_output=_MOST_OUTPUT,
            )
        except ObservationFailed as error:
            return ActionResult("failed", f"nothing was done: {error.one_line()}")
        said = result.stderr.decode("utf-8", "replace").strip()
        said = said and f": {ticket_line(said, 1000)}"
        if result.code == 0:
            return ActionResult("done", f"{unit} was restarted{said}")
        if result.code is None or result.too_large:
            text = f"systemctl {result.failure}; systemd may go on with it"
            return ActionResult("unknown", text + said)
        return ActionResult("failed", f"systemctl {result.failure}{said}")

    async def _reason(self, action: ProposedAction) -> str:
        """Return why the unit is not to be restarted, or ""."""
        unit, component = str(action.target["unit"]), action.target["component"]
        if unit not in self._settings.units:
            return f"{ticket_line(unit, 200)} is not among actions.units"
        seen = await self._observe()
        signals = [
            one
            for one in seen.signals
            if (one.invariant, one.component) == ("process", component)
        ]
        if not signals:
            why = seen.unavailable.get("process") or seen.unsupported.get("process")
            return f"whether {component} runs is not known{why and f': {why}' or ''}"
        if signals[0].holds:
            return f"{component} runs again"
        if signals[0].facts.get("unit") not in (None, unit):
            return f"{component} is of another unit now"
        return await self._not_loaded(unit)

    async def _not_loaded(self, unit: str) -> str:
        command = self._command("show", "--property=LoadState", "--value", "--", unit)
        try:
            result = await run(
                command,
                env=UNIT_ENVIRONMENT,
                cwd=Path("/"),
                timeout=self._settings.timeout * _SHARE_OF_SHOW,
                max_output=_MOST_OUTPUT,
            )
        except ObservationFailed as error:
            return error.one_line()
        state = result.stdout.decode("utf-8", "replace").strip()
        if result.failure:
            return f"systemctl {result.failure}"
        return "" if state == "loaded" else f"{unit} is {ticket_line(state, 40)}"

    def _command(self, *arguments: str) -> Sequence[str]:
        return (*self._settings.systemctl, *arguments)
