"""An exchange: what a run of a scenario showed and what was answered. It is recorded, replayed and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from midwatch.agent.diagnosis import Step, compose, conclude
from midwatch.agent.first_aid import preliminary
from midwatch.diagnosis_schema import DiagnosisOutput, Kind, Reply
from midwatch.errors import NotFound, SettingsError
from midwatch.evaluation.scenario import Scenario
from midwatch.evaluation.score import (
    Grade,
    Score,
    judge,
    judge_all,
    lacking,
    page_problems,
    prompt_tokens,
)
from midwatch.files import replace_file
from midwatch.model import Context, Evidence, Usage
from midwatch.playbooks.base import playbooks
from midwatch.redaction import Redactor
from midwatch.text import put_marks, take_marks

HAND = "hand"
"""The name of a person who wrote an answer, in `answered_by`."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A run of a scenario up to its diagnosis.

    Attributes:
        names: The values of placeholders, by which the truth finds process ids and ports in this run.
        kinds: The kind of each subject.
        tickets: The invariants of all tickets, as SUBJECT/ID.
        context: Tickets and evidence of the diagnosis; None where no ticket opened.
        first_aid: What the playbooks wrote on the tickets of the context.
        answer: The answer; None where no one was asked. `answered_by` is a model's id or "hand".
        seconds: From the ticket to the end of the diagnosis.
    """

    scenario: str
    names: dict[str, str]
    kinds: dict[str, str] = field(default_factory=dict)
    tickets: tuple[str, ...] = ()
    context: Context | None = None
    first_aid: tuple[DiagnosisOutput, ...] = ()
    answer: DiagnosisOutput | None = None
    answered_by: str = ""
    usage: Usage = Usage()
    calls: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0


_JSON = TypeAdapter(Exchange)


def write(exchange: Exchange, file: Path) -> None:
    """Write a recording. First aid on the tickets is left out, as it stands beside them, and so are this machine's paths."""
    paths = {
        path: f"/{name}"
        for name in ("dir", "here", "library", "python")
        if (path := exchange.names.get(name))
    }
    if (context := exchange.context) is not None:
        bare = tuple(replace(ticket, first_aid=None) for ticket in context.tickets)
        moved = tuple(_with_paths(one, paths) for one in context.evidence)
        context = replace(context, tickets=bare, evidence=moved)
        exchange = replace(exchange, context=context)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = _JSON.dump_json(exchange, indent=1).decode()
    for path, name in paths.items():
        text = text.replace(path, name)
    replace_file(file, f"{text}\n".encode())


def _with_paths(evidence: Evidence, paths: Mapping[str, str]) -> Evidence:
    """Return evidence with other paths; what in it others wrote stays marked where it is."""
    text = put_marks(evidence.text, evidence.reported)
    for path, name in paths.items():
        text = text.replace(path, name)
    plain, reported = take_marks(text)
    return replace(evidence, text=plain, reported=reported)


def read(file: Path) -> Exchange:
    """Read a recording. Raises NotFound, SettingsError."""
    try:
        return _JSON.validate_json(file.read_bytes())
    except FileNotFoundError:
        raise NotFound(
            f"there is no recording {file}",
            hint="`midwatch eval --record DIR` makes it",
        ) from None
    except (OSError, ValidationError) as error:
        why = str(error)
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_input=False)[0]
            why = f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()
        raise SettingsError(f"cannot read the recording {file}: {why}") from error


def redacted(exchange: Exchange, redactor: Redactor) -> Exchange:
    """Return an exchange without the secrets that a redactor knows."""
    return _JSON.validate_python(
        redactor.value(_JSON.dump_python(exchange, mode="json"))
    )


def aid_again(exchange: Exchange) -> Exchange:
    """Return a recorded exchange with what today's playbooks write about its evidence."""
    if (context := exchange.context) is None:
        return exchange
    notes = []
    for subject in dict.fromkeys(ticket.key.subject for ticket in context.tickets):
        tickets = [one for one in context.tickets if one.key.subject == subject]
        kind = exchange.kinds.get(subject, "")
        notes += [note for _, note in preliminary(playbooks(), kind, tickets, context)]
    return replace(exchange, first_aid=tuple(notes))


def score(scenario: Scenario, exchange: Exchange) -> Score:
    """Score an exchange by the scenario's truth."""
    found = Score(
        exchange.scenario,
        scenario.kind,
        tickets=exchange.tickets,
        false_alarms=exchange.tickets if scenario.kind == "healthy" else (),
        calls=exchange.calls,
        seconds=exchange.seconds,
        cost_usd=exchange.cost_usd,
    )
    if (context := exchange.context) is None:
        if scenario.expect:
            why = f"no ticket for {', '.join(scenario.expect)}"
            return replace(found, state="failed", why=why)
        return found
    truth, names = scenario.truth, exchange.names
    prompt, usage = compose(context), exchange.usage
    asked = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    aid = judge_all(exchange.first_aid, truth, names)
    found = replace(
        found,
        first_aid=aid.grade if aid else None,
        first_aid_why=aid.why if aid else (),
        lacking=lacking(prompt, truth, names),
        tokens=asked or prompt_tokens(prompt),
    )
    return _with_answer(found, scenario, exchange, context)


def _with_answer(
    found: Score, scenario: Scenario, exchange: Exchange, context: Context
) -> Score:
    """Check the answer as the agent does before it stores one, and score what is left of it."""
    if (output := exchange.answer) is None:
        return found
    truth, names = scenario.truth, exchange.names
    finish = conclude(
        Reply(Kind.ANSWERED, output, usage=exchange.usage),
        Step(context, max_tokens=8000),
        Redactor(),
    )
    assert finish.answer is not None and finish.grounded is not None
    stated = f"{output.verdict}/{output.confidence}"
    held = f"{finish.answer['verdict']}/{finish.answer['confidence']}"
    verified, total = finish.grounded.verified, finish.grounded.total
    judged = judge(output, truth, names)
    return replace(
        found,
        answer=judged.grade,
        answer_why=judged.why,
        answered_by=exchange.answered_by,
        verified=verified,
        total=total,
        lowered=f"{stated} to {held}" if held != stated else "",
        marked_down=held != stated
        and verified < total
        and judged.grade is Grade.RIGHT
        and not found.lacking,
        page=page_problems(finish.markdown or "", output, truth, names),
    )
