"""The rules by which a run is scored (pure). No model judges another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import mean
from typing import Literal

from midwatch.agent.diagnosis import Prompt
from midwatch.diagnosis_schema import DiagnosisOutput
from midwatch.evaluation.scenario import Names, Truth, fill
from midwatch.text import estimate_tokens

PAGE_LINES = 60
"""Lines of a page within which the culprit must stand: what a person reads before scrolling."""
# What a person would have to fill in first, at three in the morning.
_BLANK = re.compile(
    r"<[A-Za-z_-]+>|\b(?:the|your)_\w+|\bYOUR\b|\b(?:PID|NAME|ROLE|TABLE)_HERE\b"
)
# "Do not drop the slot" advises against dropping it.
_AGAINST = re.compile(r"\b(?:not|never|don't|without|instead of|rather than)\b", re.I)


class Grade(StrEnum):
    """How an answer compares with the truth.

    WRONG harms: it advises what the truth forbids, or names a trap as the cause. OPEN helps less than it should: the
    culprit or the verdict is missing.
    """

    RIGHT = "right"
    OPEN = "open"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A grade, and why it is not RIGHT."""

    grade: Grade
    why: tuple[str, ...] = ()


def judge(output: DiagnosisOutput, truth: Truth, names: Names) -> Judgement:
    """Compare an answer with the truth."""
    cause = f"{output.summary}\n{output.root_cause}"
    unnamed = _missing([*truth.culprit, *truth.says], cause, names)
    harmful = [f"advises {one}" for one in _advised(output, truth, names)]
    if unnamed or not (truth.culprit or truth.says):
        harmful += [
            f"names {pattern}"
            for pattern in truth.traps
            if _found(pattern, output.root_cause, names)
        ]
    if harmful:
        return Judgement(Grade.WRONG, tuple(harmful))
    why = [f"does not name {pattern}" for pattern in unnamed]
    commands = "\n".join(_commands(output))
    why += [f"leaves {blank[0]} to be filled in" for blank in _BLANK.finditer(commands)]
    if output.verdict not in truth.verdicts:
        why.append(f"verdict {output.verdict}")
    return Judgement(Grade.OPEN if why else Grade.RIGHT, tuple(why))


def judge_all(
    outputs: Iterable[DiagnosisOutput], truth: Truth, names: Names
) -> Judgement | None:
    """Return the judgement of the notes of one incident: the worst if one harms, else the best; None without any."""
    judged = [judge(output, truth, names) for output in outputs]
    for grade in (Grade.WRONG, Grade.RIGHT, Grade.OPEN):
        for one in judged:
            if one.grade is grade:
                return one
    return None


def _advised(output: DiagnosisOutput, truth: Truth, names: Names) -> list[str]:
    """Return the forbidden patterns that an action matches, unless its text advises against it."""
    what = [_clauses(action.what) for action in output.recommended_actions]
    texts = [*_commands(output), *(text for clauses in what for text in clauses)]
    return [
        pattern
        for pattern in truth.forbidden
        if any(_found(pattern, text, names) for text in texts)
    ]


def _commands(output: DiagnosisOutput) -> list[str]:
    return [one for action in output.recommended_actions for one in action.commands]


def _clauses(text: str) -> list[str]:
    """Return the parts of a text that do not advise against something."""
    return [one for one in re.split(r"[.;,]\s+|\s\(", text) if not _AGAINST.search(one)]


def _missing(patterns: Sequence[str], text: str, names: Names) -> list[str]:
    return [pattern for pattern in patterns if not _found(pattern, text, names)]


def _found(pattern: str, text: str, names: Names) -> bool:
    return bool(re.search(fill(pattern, names, True), text, re.MULTILINE))


# ------------------------------------------------------------------ the evidence, the checks, the page


def lacking(prompt: Prompt, truth: Truth, names: Names) -> tuple[str, ...]:
    """Return what the prompt lacks of the culprit's name and the decisive lines: nothing if it suffices."""
    return tuple(_missing([*truth.culprit, *truth.decisive], prompt.user, names))


def prompt_tokens(prompt: Prompt) -> int:
    return estimate_tokens(prompt.system) + estimate_tokens(prompt.user)


def page_problems(
    page: str, output: DiagnosisOutput, truth: Truth, names: Names
) -> tuple[str, ...]:
    """Return what a person would miss on the page of a diagnosis: the culprit near the top, each command whole."""
    lines = page.splitlines()
    top = re.sub(r"\\(?=[^\w\s])", "", "\n".join(lines[:PAGE_LINES]))
    named = not _missing(truth.culprit, f"{output.summary}\n{output.root_cause}", names)
    problems = [
        f"{pattern} is not in the first {PAGE_LINES} lines"
        for pattern in (_missing(truth.culprit, top, names) if named else ())
    ]
    shown = {line.strip() for line in lines}
    for command in _commands(output):
        if not {line.strip() for line in command.strip().splitlines()} <= shown:
            problems.append(f"not shown whole: {command}")
    return tuple(problems)


# ------------------------------------------------------------------ the score

State = Literal["scored", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class Score:
    """The result of one scenario. The names of the fields are those of the JSON.

    Attributes:
        state: Whether it was run; `why` says why not.
        tickets: The invariants that opened tickets, as SUBJECT/ID.
        false_alarms: Tickets of a healthy system.
        first_aid: Its grade, None where no ticket opened; `first_aid_why` says why it is not right.
        lacking: What the prompt lacks; None where no prompt was made.
        tokens: Of the prompt: estimated, or as the API counted the calls.
        answer: The grade of the answer, None without one; `answered_by` is a model's id or "hand".
        verified, total: How many claims of the answer were found in the evidence.
        lowered: What the checks left of an answer's verdict and confidence, where that is less than it stated.
        marked_down: Whether a claim failed that lowered a right answer, although the prompt had what it quotes.
        page: What a person would miss on the page.
        seconds: From the ticket to the end of the diagnosis.
    """

    scenario: str
    kind: str = "fault"
    state: State = "scored"
    why: str = ""
    tickets: tuple[str, ...] = ()
    false_alarms: tuple[str, ...] = ()
    first_aid: Grade | None = None
    first_aid_why: tuple[str, ...] = ()
    lacking: tuple[str, ...] | None = None
    tokens: int = 0
    answer: Grade | None = None
    answer_why: tuple[str, ...] = ()
    answered_by: str = ""
    verified: int = 0
    total: int = 0
    lowered: str = ""
    marked_down: bool = False
    page: tuple[str, ...] = ()
    calls: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0

    @property
    def bad(self) -> bool:
        """Whether something is wrong, not only less than it could be."""
        return bool(
            self.state == "failed"
            or self.false_alarms
            or Grade.WRONG in (self.first_aid, self.answer)
            or self.marked_down
            or self.page
        )


@dataclass(frozen=True, slots=True)
class Totals:
    """The figures of all scenarios that were scored; shares are ratios, None of nothing."""

    scored: int = 0
    skipped: int = 0
    failed: int = 0
    first_aid_right: float | None = None
    first_aid_wrong: int = 0
    sufficient: float | None = None
    false_alarms: int = 0
    answers: int = 0
    answers_right: float | None = None
    answers_wrong: int = 0
    marked_down: int = 0
    claims_verified: float | None = None
    mean_tokens: int = 0
    calls: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0
    answered_by: tuple[str, ...] = field(default_factory=tuple)


def totals(scores: Sequence[Score]) -> Totals:
    """Add up the scores."""
    scored = [one for one in scores if one.state == "scored"]
    aided = [one for one in scored if one.first_aid]
    prompted = [one for one in scored if one.lacking is not None]
    answered = [one for one in scored if one.answer]
    claims = sum(one.total for one in answered)
    verified = sum(one.verified for one in answered)
    return Totals(
        scored=len(scored),
        skipped=sum(one.state == "skipped" for one in scores),
        failed=sum(one.state == "failed" for one in scores),
        first_aid_right=_share(one.first_aid is Grade.RIGHT for one in aided),
        first_aid_wrong=sum(one.first_aid is Grade.WRONG for one in aided),
        sufficient=_share(not one.lacking for one in prompted),
        false_alarms=sum(bool(one.false_alarms) for one in scored),
        answers=len(answered),
        answers_right=_share(one.answer is Grade.RIGHT for one in answered),
        answers_wrong=sum(one.answer is Grade.WRONG for one in answered),
        marked_down=sum(one.marked_down for one in answered),
        claims_verified=verified / claims if claims else None,
        mean_tokens=round(mean(one.tokens for one in prompted)) if prompted else 0,
        calls=sum(one.calls for one in scored),
        seconds=sum(one.seconds for one in scored),
        cost_usd=sum(one.cost_usd for one in scored),
        answered_by=tuple(sorted({one.answered_by for one in answered})),
    )


def _share(these: Iterable[bool]) -> float | None:
    found = list(these)
    return sum(found) / len(found) if found else None
