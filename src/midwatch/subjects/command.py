"""The subject kind `command`: a command of the user that reports what is broken.

It is started without a shell, in an environment that is built and not inherited. Any failure of it is a
failed observation: nothing is known to hold. Its standard output is parsed strictly. It is either one JSON
object::

    {"violations": [{"invariant": "queue_depth",      required, letters, digits, . _ - :
                     "component": "mail",             required
                     "message": "12,000 mails wait",  required
                     "severity": "critical",          or "warning" (the default) or "info"
                     "value": 12000,                  optional, a number
                     "facts": {"oldest": "3h"}}],     optional, flat
     "covered": ["queue_depth"],                      optional
     "evidence": [{"title": "Queues", "text": "…"}]}  optional

or one violation a line (NDJSON). `covered` has the ids of the invariants that were checked: on components
without a violation they hold, and all other invariants are unknown. Without `covered` all of them were
checked. Empty output is an error: a command that finds no violation prints ``{"violations": []}``. A field
with another name is an error, so that a misspelt ``severity`` is noticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)

from midwatch.config import explain
from midwatch.documents import DocumentError, NotJson, read_json
from midwatch.errors import ObservationFailed
from midwatch.model import Invariant, Json, Observation, Severity, Signal, Ticket
from midwatch.programs import ProcessResult, run
from midwatch.setting_group import Bytes
from midwatch.settings import SubjectSettings
from midwatch.subjects.base import EvidenceSource, configure
from midwatch.subjects.command_tools import CommandToolSettings, command_tools
from midwatch.subjects.tools import Tool
from midwatch.text import component_name, ticket_line

# ------------------------------------------------------------------ the output

MAX_VIOLATIONS = 1000
"""Violations that become tickets, the most severe first; one more ticket says how many are left out."""
_HINT = 'print {"violations": [{"invariant": …, "component": …, "message": …}]}'
_Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")]
_Integer = Annotated[int, Field(gt=-(10**40), lt=10**40)]
_Fact = Annotated[str, Field(max_length=4000)] | bool | _Integer | float | None


class _Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False
    )


class ReportedViolation(_Strict):
    """One broken invariant of one component."""

    invariant: _Id
    component: Annotated[str, Field(min_length=1, max_length=4000)]
    message: str
    severity: Literal["critical", "warning", "info"] = "warning"
    value: float | None = None
    facts: Annotated[dict[str, _Fact], Field(max_length=50)] = Field(
        default_factory=dict
    )

    @field_validator("invariant")
    @classmethod
    def _free(cls, value: str) -> str:
        if value in ("subject_unobservable", LEFT_OUT):
            raise ValueError(f"{value} is the id of a ticket of Midwatch's own")
        return value


class ReportedEvidence(_Strict):
    title: str
    text: str


class Report(_Strict):
    """The output of one run of the command."""

    violations: Annotated[list[ReportedViolation], FailFast()]
    covered: Annotated[list[_Id], Field(max_length=MAX_VIOLATIONS)] | None = None
    evidence: Annotated[list[ReportedEvidence], Field(max_length=50)] = Field(
        default_factory=list
    )


def parse(stdout: bytes) -> Report:
    """Return the parsed output. Raises ObservationFailed with a one-line reason.

    A byte order mark says in which Unicode the output is; without one it is UTF-8, in which a byte that is not
    UTF-8 is taken for Latin-1, so that one name in another encoding does not hide the rest.
    """
    text = _decoded(stdout)
    if not text.strip():
        raise _wrong("is empty")
    try:
        document = _loads(text)
    except NotJson:
        return _lines(text)
    if isinstance(document, dict) and "invariant" in document:
        document = {"violations": [document]}
    return _validated(Report, document)


_LATIN_1 = {0xDC00 + byte: byte for byte in range(0x80, 0x100)}


def _decoded(data: bytes) -> str:
    """Return the text of bytes. Raises ObservationFailed."""
    encoding = json.detect_encoding(data)
    try:
        if not encoding.startswith("utf-8"):
            return data.decode(encoding).lstrip("\ufeff")
        return data.decode(encoding, "surrogateescape").translate(_LATIN_1)
    except UnicodeDecodeError as error:
        raise _wrong(f"is not {encoding} at byte {error.start}") from None


def _lines(text: str) -> Report:
    violations = []
    problem: ObservationFailed | None = None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip("\ufeff \t\r")  # joined files have a mark each
        if not line:
            continue
        where = f" (line {number}: {ticket_line(line, 60)})"
        try:
            item = _loads(line)
            if problem is None:
                violations.append(_validated(ReportedViolation, item, where))
        except NotJson as error:
            raise _wrong(f"{error.message}{where}") from None
        except ObservationFailed as error:
            problem = problem or error
    if problem is not None:  # it was a line of JSON among others
        raise problem
    return Report(violations=violations)


def _loads(text: str) -> Any:
    """Return the JSON value. Raises NotJson, and ObservationFailed for a member given twice or too long a number."""
    try:
        return read_json(text)
    except NotJson:
        raise
    except DocumentError as error:
        raise _wrong(f"is ambiguous: {ticket_line(error.message, 200)}") from None


_M = TypeVar("_M", bound=_Strict)


def _validated(model: type[_M], value: Any, where: str = "") -> _M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problem = ticket_line(explain(error, model, what="field").message, 200)
        raise _wrong(f"is not a report: {problem}{where}") from None


def _wrong(what: str) -> ObservationFailed:
    return ObservationFailed(f"the command's output {what}", hint=_HINT)


# ------------------------------------------------------------------ the observation (pure)

VIOLATION = Invariant(
    "violation",
    "The command reports no violation",
    "Stands for all violations that the command may report, each with an id of its own. "
    "`enabled`, `for`, `severity` and `ignore` here apply to all of them.",
    about=("invariant", "component"),
)
LEFT_OUT = "violations_left_out"
_MOST_IGNORED = 20


def observation(
    report: Report, invariant: Invariant, severity: Severity | None
) -> Observation:
    """Return what a report says.

    Args:
        report: The parsed output.
        invariant: The invariant `violation`, as the settings have it.
        severity: The severity of all violations, where the settings have one.
    """
    found: dict[tuple[str, str], Signal] = {}
    ignored: dict[str, None] = {}
    for violation in report.violations:
        one = _signal(violation, invariant, severity)
        name, component = key = one.invariant, one.component
        if invariant.ignores({"invariant": name, "component": component}):
            ignored[f"{name} on {component}"] = None
        elif key not in found:
            found[key] = one
        else:  # the worse of two counts, of two alike the first
            worse, other = sorted((found[key], one), key=_urgency)
            facts = {**worse.facts, "also_reported": other.message}
            found[key] = replace(worse, facts=facts)
    kept = sorted(found.values(), key=_urgency)
    left_out, kept = kept[MAX_VIOLATIONS:], kept[:MAX_VIOLATIONS]
    covered = frozenset(["*"] if report.covered is None else report.covered)
    if left_out:  # what was left out must not resolve
        covered -= {"*", *(one.invariant for one in left_out)}
        kept.append(_left_out(left_out))
    empty = report.covered == []
    unseen = "the command covers nothing (`covered` is empty)"
    return Observation(
        signals=tuple(kept),
        # These two are seen where anything is.
        covered=covered | (set() if empty else {VIOLATION.id, LEFT_OUT}),
        unavailable={VIOLATION.id: unseen} if empty else {},
        ignored={VIOLATION.id: _some(list(ignored))} if ignored else {},
    )


def _urgency(reported: Signal) -> int:
    assert reported.severity is not None
    return int(reported.severity)


def _left_out(signals: Sequence[Signal]) -> Signal:
    """Return one violation for many."""
    return Signal(
        LEFT_OUT,
        "report",
        f"{len(signals):,} more violations than the {MAX_VIOLATIONS:,} most severe, which are tickets; "
        "until there are fewer, none that ended resolves",
        value=float(len(signals)),
        holds=False,
        severity=signals[0].severity,
        hold_for=signals[0].hold_for,
    )


def _some(names: Sequence[str]) -> tuple[str, ...]:
    more = len(names) - _MOST_IGNORED
    return (*names[:_MOST_IGNORED], *([f"and {more:,} more"] if more > 0 else []))


def _signal(
    violation: ReportedViolation, invariant: Invariant, severity: Severity | None
) -> Signal:
    component = component_name(violation.component) or repr(violation.component)
    message = ticket_line(violation.message)
    return Signal(
        invariant=violation.invariant,
        component=component,
        message=message or f"{violation.invariant} is broken on {component}",
        value=violation.value,
        holds=False,
        facts={
            ticket_line(name, 60): ticket_line(fact) if isinstance(fact, str) else fact
            for name, fact in violation.facts.items()
        },
        severity=severity or Severity.parse(violation.severity),
        hold_for=invariant.hold_for,
    )


# ------------------------------------------------------------------ the subject

_SHARE_OF_TIMEOUT = (
    0.8  # the rest is for killing it before the monitor cancels the observation
)
_BASE_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/",
    "LANG": "C.UTF-8",
}


class CommandSettings(SubjectSettings):
    """A command that prints JSON."""

    kind: str = "command"
    command: Annotated[tuple[str, ...], Field(min_length=1, max_length=200)] = Field(
        description="Program and arguments as a list; there is no shell."
    )
    cwd: Path | None = Field(None, description="Its working directory; by default /.")
    env: dict[str, str] = Field(
        default_factory=dict,
        description="Its environment, besides a plain PATH, HOME and LANG.",
    )
    secret_env: dict[str, SecretStr] = Field(
        default_factory=dict, description="Environment variables with secret values."
    )
    max_output: Bytes = Field(
        1_000_000,
        gt=0,
        le=50_000_000,
        description="It is killed above this size of output.",
    )

    tools: list[CommandToolSettings] = Field(
        default_factory=list,
        description="Commands that an investigation may run; they must only read.",
    )

    @field_validator("tools")
    @classmethod
    def _names(cls, value: list[CommandToolSettings]) -> list[CommandToolSettings]:
        if len({one.name for one in value}) < len(value):
            raise ValueError("two tools have the same name")
        return value

    @field_validator("command")
    @classmethod
    def _plain(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value[0].strip() or any("\0" in part for part in value):
            raise ValueError("give a program, and no argument with a NUL character")
        return value


INVARIANTS = (VIOLATION,)


# The command measures, and is of the settings: only what it writes to stderr is taken for a log.
_STDERR = (re.compile(r"(?s)^stderr \(its tail\):\n(.*)", re.MULTILINE),)


class CommandSubject:
    """Runs the command once for each observation, and once for evidence."""

    kind: ClassVar[str] = "command"
    settings_model: ClassVar[type[CommandSettings]] = CommandSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS

    def __init__(self, settings: CommandSettings) -> None:
        self.settings = settings
        self.name, self.timeout = settings.name, settings.timeout
        self.invariants = configure(
            INVARIANTS, settings.invariants, f"subjects.{settings.name}"
        )
        override = settings.invariants.get("violation")
        self._severity = (
            Severity.parse(override.severity)
            if override and override.severity
            else None
        )

    @property
    def secrets(self) -> Sequence[str]:
        values = self.settings.secret_env.values()
        return [text for value in values if (text := value.get_secret_value())]

    @property
    def uses(self) -> str:
        """Its command line and its environment without secrets, which may name what it asks."""
        return " ".join((*self.settings.command, *self.settings.env.values()))

    async def observe(self, previous: Json) -> Observation:
        """Run the command. Raises ObservationFailed when it fails or its output is invalid."""
        if not self.invariants:
            return Observation(signals=(), covered=frozenset())
        result = await self._run()
        if result.failure:
            tail = ticket_line(result.stderr[-600:].decode("utf-8", "replace"), 150)
            raise ObservationFailed(
                f"the command {result.failure}" + (f": {tail}" if tail else ""),
                hint="run it by hand as the same user",
            )
        report = parse(result.stdout)
        return observation(report, self.invariants[0], self._severity)

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        return [
            EvidenceSource(
                f"What {ticket_line(self.settings.command[0], 80)} reports now",
                "the command, run again",
                self._evidence,
                rank=10,
                timeout=self.settings.timeout,
                reported=_STDERR,
            )
        ]

    def tools(self) -> Sequence[Tool]:
        return command_tools(self.settings.tools, self._run, self.settings.timeout)

    async def close(self) -> None:
        """Do nothing: no process outlives a run."""

    async def _run(self, command: Sequence[str] = ()) -> ProcessResult:
        """Run the subject's command, or another one in the same way."""
        env = {
            **_BASE_ENV,
            **self.settings.env,
            **{
                name: value.get_secret_value()
                for name, value in self.settings.secret_env.items()
            },
        }
        return await run(
            command or self.settings.command,
            env=env,
            cwd=self.settings.cwd or Path("/"),
            timeout=self.settings.timeout * _SHARE_OF_TIMEOUT,
            max_output=int(self.settings.max_output),
        )

    async def _evidence(self) -> str:
        result = await self._run()
        lines = [
            f"ended: {result.failure or 'exited with status 0'}, after {result.seconds:.2f} s"
        ]
        if result.failure:
            lines += ["stdout:", result.stdout[:2000].decode("utf-8", "replace")]
        else:
            try:
                lines += _described(parse(result.stdout))
            except ObservationFailed as failure:
                lines.append(failure.one_line())
        if result.stderr:
            lines += ["stderr (its tail):", result.stderr.decode("utf-8", "replace")]
        return "\n".join(lines)


def _described(report: Report) -> list[str]:
    lines = [f"violations: {len(report.violations)}"]
    for violation in report.violations[:50]:
        lines.append(
            f"{violation.severity} {violation.invariant} {component_name(violation.component)}: "
            f"{ticket_line(violation.message)}"
        )
    for piece in report.evidence:
        lines += [f"== {ticket_line(piece.title, 100)}", piece.text]
    return lines
