"""The protocol of actions: what Midwatch may do to a subject once a person has approved it.

A subject that offers some satisfies `Actionable`. It derives typed proposals from the evidence of a diagnosis; the text of the
model is compared with them, and never run. Off unless the settings of the subject allow a kind of action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from pydantic import Field

from midwatch.model import Evidence, Ticket
from midwatch.setting_group import Group, Seconds

Target = Mapping[str, str | int | float | None]
"""What an action acts on, as the evidence names it."""


class ActionSettings(Group):
    """What Midwatch may do to a subject once a person has approved it. Nothing without a name in `allow`."""

    timeout: Seconds = Field(
        15.0,
        gt=0,
        le=600,
        description="Timeout of a run with its check. A run that has not ended then is unknown.",
    )
    expires: Seconds = Field(
        600.0,
        gt=0,
        le=86400,
        description="How long after the approval it can be started.",
    )


@dataclass(frozen=True, slots=True)
class ActionKind:
    """A kind of action that a subject can take. `name` is the one in the settings; `title` is an imperative."""

    name: str
    title: str


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote of the root cause or of a finding that was found in evidence which the system itself measured."""

    evidence_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What a verified diagnosis says, as far as code has checked it.

    Attributes:
        ticket: The ticket.
        evidence: The evidence of the diagnosis.
        quotes: The quotes that were found.
        commands: The commands of the recommended actions. They are compared with a proposal, and never run.
        since: When the evidence was gathered, in seconds since 1970.
    """

    ticket: Ticket
    evidence: Sequence[Evidence]
    quotes: Sequence[Quote]
    commands: Sequence[str]
    since: float


@dataclass(frozen=True, slots=True)
class ProposedAction:
    """An action that code derived: its kind, what it acts on, one line for a person, and the evidence that names it."""

    kind: str
    target: Target
    what: str
    evidence_ids: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class ActionCheck:
    """Whether an action would be run now. `text` says what was seen, or why not; `command` is what would be done."""

    ready: bool
    text: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class ActionResult:
    """How a run ended. With "not_run" nothing was changed; with "unknown" it is not known whether something was."""

    outcome: Literal["done", "not_run", "failed", "unknown"]
    text: str


@runtime_checkable
class Actionable(Protocol):
    """A subject that offers actions."""

    @property
    def action_kinds(self) -> Sequence[ActionKind]:
        """Every kind of action that it can take."""
        ...

    @property
    def allowed_actions(self) -> Sequence[str]:
        """The names of the kinds that its settings allow."""
        ...

    @property
    def action_settings(self) -> ActionSettings:
        """Time limits."""
        ...

    def propose_actions(self, findings: Findings) -> Sequence[ProposedAction]:
        """Return the actions that a verified diagnosis recommends, derived from what was measured.

        Also those whose kind is not allowed, so that a person sees what the settings would have to say.
        """
        ...

    async def check_action(self, action: ProposedAction) -> ActionCheck:
        """Say whether the target is still what the evidence names, and change nothing. Raises MidwatchError."""
        ...

    async def run_action(self, action: ProposedAction) -> ActionResult:
        """Take an action, if the target is still what the evidence names.

        It is called once for an approval, and cancelled after the time limit. An error before anything was done is
        "failed", and what may have been done is "unknown".
        """
        ...


@runtime_checkable
class ProbesActions(Actionable, Protocol):
    """A subject that can say beforehand whether its allowed actions could be run; `midwatch check` asks it."""

    async def probe_actions(self) -> str:
        """Look whether login and permissions are there, and change nothing.

        Returns:
            What was found, in a few words.

        Raises:
            MidwatchError: Something is missing; the hint says how to give it.
        """
        ...
