"""Write a scenario from a past ticket: its evidence and its diagnosis, to be replayed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from midwatch.diagnosis_schema import DiagnosisOutput
from midwatch.errors import Conflict, NotFound
from midwatch.evaluation.exchange import Exchange, redacted, write
from midwatch.evaluation.scenario import EXCHANGE, FILE
from midwatch.files import replace_file
from midwatch.model import Context, Diagnosis, Ticket
from midwatch.redaction import Redactor

# A word with a digit, a dash, an underscore or a dot in it is a name rather than prose.
_NAME = re.compile(r"(?<![\w.-])(?=[\w.-]*[\d_-])\w(?:[\w.-]*\w)?")
_HEAD = """\
# From ticket {id}. Check `truth`: these are regular expressions. `culprit` must be named by a right answer, `decisive`
# lines must be in the prompt. Add `traps` (a wrong cause) and `forbidden` (advice that would harm).
"""


def write_scenario(
    folder: Path,
    tickets: Sequence[Ticket],
    diagnosis: Diagnosis,
    kinds: Mapping[str, str],
    redactor: Redactor,
) -> None:
    """Write `scenario.yaml` and the exchange of a diagnosis to a new folder.

    Args:
        folder: A folder that does not exist yet.
        tickets: The tickets of the diagnosis, at least one.
        diagnosis: One with an answer.
        kinds: The kind of each subject.
        redactor: Removes secrets that became known since the evidence was stored.

    Raises:
        Conflict: The folder exists.
        NotFound: The diagnosis has no answer or no evidence.
    """
    if diagnosis.answer is None or not diagnosis.evidence:
        raise NotFound(f"diagnosis {diagnosis.id} has no answer or no evidence")
    if folder.exists():
        raise Conflict(f"{folder} exists already", hint="use --name")
    answer = DiagnosisOutput.model_validate(diagnosis.answer)
    ended = diagnosis.finished_at or diagnosis.started_at
    labels = {f"{one.key.subject}/{one.key.invariant}" for one in tickets}
    subjects = {ticket.key.subject for ticket in tickets}
    exchange = redacted(
        Exchange(
            scenario=folder.name,
            names={},
            kinds={name: kinds.get(name, "") for name in subjects},
            tickets=tuple(sorted(labels)),
            context=Context(tuple(tickets), diagnosis.evidence, diagnosis.started_at),
            answer=answer,
            answered_by=diagnosis.model,
            usage=diagnosis.usage,
            calls=1,
            seconds=(ended - diagnosis.started_at).total_seconds(),
            cost_usd=diagnosis.cost_usd,
        ),
        redactor,
    )
    assert exchange.answer is not None
    write(exchange, folder / EXCHANGE)
    quotes = [one.quote for one in exchange.answer.root_cause_citations]
    document = {
        "title": exchange.answer.summary,
        "kind": "fault" if answer.verdict != "no_fault" else "misleading",
        "expect": list(exchange.tickets),
        "truth": {
            "culprit": _culprit(exchange.answer.root_cause, "\n".join(quotes)),
            "decisive": [re.escape(quote.strip()) for quote in quotes],
            "verdicts": [answer.verdict],
        },
    }
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    replace_file(folder / FILE, (_HEAD.format(id=tickets[0].id) + text).encode())


def _culprit(cause: str, quotes: str) -> list[str]:
    """Return the names of a root cause that its quotes have too."""
    names = dict.fromkeys(_NAME.findall(cause))
    return [re.escape(name) for name in names if len(name) > 2 and name in quotes]
