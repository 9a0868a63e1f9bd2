"""Scenarios: a folder each, with a `scenario.yaml` that says what runs, what breaks, and what is true.

A text in it may contain placeholders: ``@{web.port}`` is the port of the part `web`, ``@{checkout.pid}``
the server process of the session `checkout`, ``@{dir}`` the folder of this run, ``@{here}`` that of the
scenario. The values are bound while it runs, so that the truth can name a process id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from midwatch.config import explain
from midwatch.diagnosis_schema import (
    Action,
    Citation,
    DiagnosisOutput,
    Finding,
    MetricReading,
    SeverityLabel,
    Verdict,
)
from midwatch.documents import DocumentError, read_yaml
from midwatch.errors import NotFound, SettingsError
from midwatch.model import Context
from midwatch.setting_group import Seconds

LIBRARY = Path(__file__).parent / "scenarios"
FILE = "scenario.yaml"
EXCHANGE = "exchange.json"
_PLACEHOLDER = re.compile(r"@\{([\w.-]+)\}")
_T = TypeVar("_T", bound=BaseModel)


def _checked(pattern: str) -> str:
    try:
        re.compile(_PLACEHOLDER.sub("x", pattern))
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_checked)]
"""A regular expression, in which a placeholder stands for itself."""
Names = Mapping[str, str]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Strict):
    """A server or program that the scenario runs: PostgreSQL, or a command.

    `uses` takes the rest from `parts.yaml` of the library. `needs` are programs without which the scenario is skipped.
    """

    uses: str = ""
    postgres: int | None = Field(None, description="Its major version.")
    settings: dict[str, str | int | float | bool] = Field(default_factory=dict)
    tcp: bool = False
    init: list[str] = Field(default_factory=list, description="SQL, once it serves.")
    standby_of: str = ""
    needs: list[str] = Field(default_factory=list)
    files: dict[str, str] = Field(default_factory=dict)
    prepare: str = Field(
        "",
        description="A shell command that runs once before, behind that of the part it uses.",
    )
    command: list[str] = Field(default_factory=list)
    args: list[str] = Field(default_factory=list, description="More arguments.")
    ready: str = Field("", description="A shell command that succeeds once it serves.")


class Step(_Strict):
    """One act: SQL, a shell command, a file, or the stop or start of a part.

    With `until` it is repeated until its answer is true or its status 0. With `every` (seconds) it is repeated to
    the end of the scenario; `background` does not wait for it. `session` names the connection that runs the SQL, or the
    shell command, and binds its process id; `times` makes that many. `bind` is a name for the first value of SQL.
    """

    sql: str | list[str] = ""
    sh: str = ""
    write: dict[str, str] = Field(default_factory=dict)
    stop: str = Field("", description="A part, or a session that repeats its SQL.")
    start: str = ""
    kill: str = Field("", description="A part, or a session of a shell command.")
    signal: str = "KILL"
    pause: Seconds = 0.0
    server: str = "pg"
    database: str = "postgres"
    user: str = "postgres"
    password: str = ""
    session: str = ""
    times: int = Field(1, ge=1)
    background: bool = False
    every: Seconds = 0.0
    until: bool = False
    bind: str = ""
    fails: bool = Field(False, description="Whether an error is what it is for.")
    limit: Seconds = 30.0


class Truth(_Strict):
    """What is right, as regular expressions.

    All names of `culprit` and words of `says` stand in a right root cause or summary; `culprit` and `decisive` stand in a
    sufficient prompt. A cause that matches one of `traps` and does not name the culprit is wrong, and so is an action
    that matches one of `forbidden`.
    """

    culprit: list[Pattern] = Field(default_factory=list)
    says: list[Pattern] = Field(default_factory=list)
    decisive: list[Pattern] = Field(default_factory=list)
    verdicts: list[Verdict] = Field(min_length=1)
    traps: list[Pattern] = Field(default_factory=list)
    forbidden: list[Pattern] = Field(default_factory=list)


class HandFinding(_Strict):
    statement: str
    cites: list[Pattern]

    def output(self, context: Context, names: Names) -> Finding:
        return Finding(
            statement=fill(self.statement, names),
            citations=[_cite(cite, context, names) for cite in self.cites],
        )


class HandReading(_Strict):
    """A value, as a regular expression that finds it in the line that is cited."""

    name: str
    value: Pattern
    cite: Pattern

    def output(self, context: Context, names: Names) -> MetricReading:
        citation = _cite(self.cite, context, names)
        found = re.search(fill(self.value, names, True), citation.quote)
        return MetricReading(
            name=self.name,
            value=found[0] if found else self.value,
            citation=citation,
        )


class HandAnswer(_Strict):
    """An answer that a person wrote, whose quotes are found by regular expressions in the evidence of the run."""

    summary: str
    verdict: Verdict
    cause: str = ""
    cites: list[Pattern]
    findings: list[HandFinding] = Field(default_factory=list)
    readings: list[HandReading] = Field(default_factory=list)
    actions: list[Action] = Field(default_factory=list)
    contradicts: list[HandFinding] = Field(
        default_factory=list, description="Where a runbook does not fit."
    )
    severity: SeverityLabel = "warning"

    def output(self, context: Context, names: Names) -> DiagnosisOutput:
        """Return the answer for a context. What is not found is quoted as it stands here, so that its check fails."""
        filled = fill(self.model_dump(), names)
        cited = [_cite(one, context, names) for one in self.cites]
        findings = [one.output(context, names) for one in self.findings]
        if not self.cause:
            findings.append(Finding(statement=filled["summary"], citations=cited))
        return DiagnosisOutput(
            summary=filled["summary"],
            verdict=self.verdict,
            root_cause=filled["cause"],
            root_cause_citations=cited if self.cause else [],
            confidence="high",
            confidence_reason="written by hand from the evidence",
            explained_tickets=[ticket.id for ticket in context.tickets],
            timeline=[],
            affected_components=[one.key.component for one in context.tickets],
            metric_readings=[one.output(context, names) for one in self.readings],
            supporting_evidence=findings,
            alternatives_considered=[],
            recommended_actions=[Action(**one) for one in filled["actions"]],
            severity=self.severity,
            risks=[],
            missing=[],
            runbook_contradictions=[
                one.output(context, names) for one in self.contradicts
            ],
        )


class Scenario(_Strict):
    """A scenario. `kind` says whether something is broken: `misleading` opens a ticket though the cause is not what it
    seems, or nothing is to be done; `healthy` must open none."""

    title: str
    kind: Literal["fault", "misleading", "healthy"] = "fault"
    parts: dict[str, Part] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    subjects: list[dict[str, Any]] = Field(default_factory=list)
    setup: list[Step] = Field(default_factory=list)
    background: list[Step] = Field(default_factory=list)
    fault: list[Step] = Field(default_factory=list)
    expect: list[str] = Field(
        default_factory=list,
        description="Invariants that must have tickets, as ID or SUBJECT/ID.",
    )
    within: Seconds = Field(45.0, description="Until these tickets must be there.")
    then: list[Step] = Field(
        default_factory=list,
        description="What happens between the ticket and the diagnosis.",
    )
    repair: list[Step] = Field(
        default_factory=list,
        description="How a person ends the fault; `midwatch demo` plays the scenarios that have it.",
    )
    end: list[Step] = Field(
        default_factory=list, description="What removes it, such as a mount."
    )
    requires: dict[str, str] = Field(
        default_factory=dict,
        description="Shell commands by what they show; where one fails, the scenario is skipped.",
    )
    truth: Truth
    answer: HandAnswer | None = None
    folder: Annotated[Path, Field(exclude=True)] = Path()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def live(self) -> bool:
        """Whether it can be run; what `eval add` writes can only be replayed."""
        return bool(self.subjects)


def _cite(pattern: str, context: Context, names: Names) -> Citation:
    """Return the first line of evidence that matches, as a citation."""
    wanted = re.compile(fill(pattern, names, True))
    for evidence in context.evidence:
        for line in evidence.text.splitlines() if evidence.available else ():
            if found := wanted.search(line):
                return Citation(evidence_id=evidence.id, quote=found[0].strip())
    return Citation(evidence_id="E1", quote=pattern)


# ------------------------------------------------------------------ placeholders


def fill(value: Any, names: Names, escape: bool = False) -> Any:
    """Return a value with its placeholders filled in, also in lists and mappings.

    Args:
        value: A text, or lists and mappings of texts.
        names: The bound names.
        escape: Whether `value` is a regular expression, in which a name stands for itself.

    Raises:
        SettingsError: A name is not bound.
    """
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda found: _bound(found[1], names, escape), value)
    if isinstance(value, list):
        return [fill(item, names, escape) for item in value]
    if isinstance(value, dict):
        return {
            fill(key, names): fill(item, names, escape) for key, item in value.items()
        }
    return value


def _bound(name: str, names: Names, escape: bool) -> str:
    if name not in names:
        raise SettingsError(
            f"@{{{name}}} is not bound", hint=f"known: {', '.join(sorted(names))}"
        )
    return re.escape(names[name]) if escape else names[name]


# ------------------------------------------------------------------ the library


def load(folder: Path) -> Scenario:
    """Return the scenario in a folder. Raises SettingsError."""
    found = validated(Scenario, _document(folder / FILE), folder / FILE)
    _check_parts(found, folder / FILE)
    return found.model_copy(update={"folder": folder})


def _check_parts(scenario: Scenario, file: Path) -> None:
    """Raise SettingsError for a name of a part that there is not."""
    library = load_parts() if any(one.uses for one in scenario.parts.values()) else {}
    known = set(scenario.parts)
    wanted = [(one.uses, set(library)) for one in scenario.parts.values()]
    wanted += [(one.standby_of, known) for one in scenario.parts.values()]
    steps = [*scenario.setup, *scenario.background, *scenario.fault]
    steps += [*scenario.then, *scenario.repair, *scenario.end]
    for step in steps:
        running = known | {step.session for step in steps}
        wanted += [(one, running) for one in (step.start, step.stop, step.kill)]
        wanted += [(step.server, known)] if step.sql else []
    for name, there in wanted:
        if name and name not in there:
            hint = f"known: {', '.join(sorted(there)) or 'none'}"
            raise SettingsError(f"{file}: there is no part {name!r}", hint=hint)


def load_parts() -> dict[str, Part]:
    """Return the parts that `uses` can name."""
    file = LIBRARY / "parts.yaml"
    return {name: validated(Part, one, file) for name, one in _document(file).items()}


def validated(model: type[_T], document: Any, file: Path) -> _T:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise SettingsError(f"{file}: {explain(error, model).one_line()}") from None


def _document(file: Path) -> dict[str, Any]:
    try:
        document = read_yaml(file.read_bytes())
    except (OSError, DocumentError) as error:
        raise SettingsError(f"cannot read {file}: {error}") from error
    if not isinstance(document, dict):
        raise SettingsError(f"{file} is not a mapping")
    return document


def find(names: Sequence[str], folders: Sequence[Path]) -> list[Scenario]:
    """Return the scenarios with these names, or all of them, in the order of their names.

    A folder that comes later replaces a scenario of an earlier one. Raises NotFound for an unknown name.
    """
    known = {file.name: file for folder in folders for file in _folders(folder)}
    for name in names:
        if name not in known:
            raise NotFound(
                f"there is no scenario {name}",
                hint="`midwatch eval list` lists them",
            )
    return [load(known[name]) for name in sorted(set(names) or known)]


def _folders(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}")
    yield from sorted(file.parent for file in folder.glob(f"*/{FILE}"))
