"""The subject kind `command`: a command that the user names looks, and says what is broken.

It is started without a shell, in an environment that is built and not inherited, and read as
`midwatch.subjects._command_output` describes. Whatever goes wrong with it is a failed
observation: nothing is known to be well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, SecretStr, field_validator

from ..errors import ObservationFailed
from ..model import Invariant, Json, Observation, Severity, Signal, Ticket
from ..settings import SubjectSettings
from ..units import Bytes
from . import _child
from ._child import Ended
from ._command_output import Report, ReportedViolation, parse
from ._text import component_name, one_line
from .base import EvidenceSource
from .configure import configure

_SHARE_OF_TIMEOUT = 0.8  # the rest is for ending it before the monitor cancels us
_BASE_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/",
    "LANG": "C.UTF-8",
}


class CommandSettings(SubjectSettings):
    """A command that prints JSON."""

    kind: str = "command"
    command: Annotated[tuple[str, ...], Field(min_length=1, max_length=200)] = Field(
        description="Program and arguments, one by one; there is no shell."
    )
    cwd: Path | None = Field(None, description="Where it runs; / when not given.")
    env: dict[str, str] = Field(
        default_factory=dict,
        description="Its environment, besides a plain PATH, HOME and LANG.",
    )
    secret_env: dict[str, SecretStr] = Field(
        default_factory=dict, description="The same, for values that are never shown."
    )
    max_output: Bytes = Field(
        1_000_000, gt=0, le=50_000_000, description="It is stopped past so much output."
    )

    @field_validator("command")
    @classmethod
    def _plain(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value[0].strip() or any("\0" in part for part in value):
            raise ValueError("name a program, and no argument with a NUL character")
        return value


INVARIANTS = (
    Invariant(
        "violation",
        "The command reports no violation",
        "Stands for all that the command may report: each violation carries the id that the command "
        "gives it. `enabled`, `for` and `severity` here apply to all of them.",
    ),
)


class CommandSubject:
    """Runs the command once for each look, and once for evidence."""

    kind: ClassVar[str] = "command"
    settings_model: ClassVar[type[CommandSettings]] = CommandSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS

    def __init__(self, settings: CommandSettings) -> None:
        self.settings = settings
        self._invariants = configure(
            INVARIANTS, settings.invariants, f"subjects.{settings.name}"
        )
        override = settings.invariants.get("violation")
        self._severity = (
            Severity.parse(override.severity)
            if override and override.severity
            else None
        )

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def timeout(self) -> float:
        return self.settings.timeout

    @property
    def invariants(self) -> Sequence[Invariant]:
        return self._invariants

    @property
    def secrets(self) -> Sequence[str]:
        values = self.settings.secret_env.values()
        return [text for value in values if (text := value.get_secret_value())]

    async def observe(self, previous: Json) -> Observation:
        """Raises ObservationFailed when the command did not end well or said nothing valid."""
        if not self._invariants:
            return Observation(signals=(), covered=frozenset())
        ended = await self._run()
        if ended.trouble:
            said = one_line(ended.stderr[-600:].decode("utf-8", "replace"), 150)
            raise ObservationFailed(
                f"the command {ended.trouble}" + (f": {said}" if said else ""),
                hint="run it by hand as the same user",
            )
        report = parse(ended.stdout)
        signals = tuple(self._signal(violation) for violation in report.violations)
        covered = frozenset(["*"] if report.covered is None else report.covered)
        return Observation(signals=signals, covered=covered)

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        return [
            EvidenceSource(
                f"What {one_line(self.settings.command[0], 80)} says now",
                "the command, run again",
                self._evidence,
                rank=10,
                timeout=self.settings.timeout,
            )
        ]

    async def close(self) -> None:
        """Nothing outlives a run."""

    async def _run(self) -> Ended:
        env = {
            **_BASE_ENV,
            **self.settings.env,
            **{
                name: value.get_secret_value()
                for name, value in self.settings.secret_env.items()
            },
        }
        return await _child.run(
            self.settings.command,
            env=env,
            cwd=self.settings.cwd or Path("/"),
            timeout=self.settings.timeout * _SHARE_OF_TIMEOUT,
            max_output=int(self.settings.max_output),
        )

    def _signal(self, violation: ReportedViolation) -> Signal:
        return Signal(
            invariant=violation.invariant,
            component=component_name(violation.component),
            message=one_line(violation.message),
            value=violation.value,
            holds=False,
            facts={
                one_line(name, 60): one_line(fact) if isinstance(fact, str) else fact
                for name, fact in violation.facts.items()
            },
            severity=self._severity or Severity.parse(violation.severity),
            hold_for=self._invariants[0].hold_for,
        )

    async def _evidence(self) -> str:
        ended = await self._run()
        lines = [
            f"ended: {ended.trouble or 'exited with status 0'}, after {ended.seconds:.2f} s"
        ]
        if ended.trouble:
            lines += ["stdout:", ended.stdout[:2000].decode("utf-8", "replace")]
        else:
            try:
                lines += _described(parse(ended.stdout))
            except ObservationFailed as failure:
                lines.append(failure.line())
        if ended.stderr:
            lines += ["stderr (its tail):", ended.stderr.decode("utf-8", "replace")]
        return "\n".join(lines)


def _described(report: Report) -> list[str]:
    lines = [f"violations: {len(report.violations)}"]
    for violation in report.violations[:50]:
        lines.append(
            f"{violation.severity} {violation.invariant} {component_name(violation.component)}: "
            f"{one_line(violation.message)}"
        )
    for piece in report.evidence:
        lines += [f"== {one_line(piece.title, 100)}", piece.text]
    return lines
