"""Where a diagnosis contradicts the first aid that came before it (pure).

First aid is written at once; it stays on the page when a diagnosis knows more. What the diagnosis does not
bear out is marked, so that it is not acted on: another verdict, another culprit, a step that it warns
against, and a step that cannot be undone and that it does not advise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from midwatch.diagnosis_schema import Action, DiagnosisOutput

_NAME = re.compile(
    # numbers of processes and the like, but no measured values
    r"\b(?:pid|process|session|backend|port|kill)\s+(?:-\S+\s+)?(?P<numbered>\d+)|[(=]\s*(?P<given>\d+)\b"
    r"|(?<![\w.:-])(?P<number>\d{3,})(?!\.?[\w%]|[:-]\d|,\d|\s?(?:%|[kMGT]i?B\b|bytes|ms\b|s\b|min|h\b|sec|hour|day))"
    # what is quoted, paths, and words that are joined as names are
    r"|(?P<mark>['\"`“])(?P<quoted>[^\s'\"`”]{2,})['\"`”]"
    r"|(?P<path>/[\w./-]*\w)|(?P<joined>[^\W\d]\w*_\w+(?:[.@-]\w+)*|[^\W\d]\w+(?:[.@]\w{2,})+|[^\W\d]\w*-\d+|\d+(?:\.\d+){3})"
)
_WARNING = re.compile(
    r"(?i)\b(?:do not|don['’]t|must not|never|avoid|rather than|instead of)\b"
)
_CALL = re.compile(r"(?i)\bselect\s+(?:\w+\.)?(\w+)\s*\(")


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A point of first aid that the diagnosis contradicts: the number of the step, or 0 for the cause.

    `text` says what the diagnosis does instead: "names another cause"; of a step, "warns against".
    """

    step: int
    text: str

    def __str__(self) -> str:
        return f"{self.text} step {self.step}" if self.step else self.text


def contradictions(
    first_aid: DiagnosisOutput, diagnosis: DiagnosisOutput
) -> list[Contradiction]:
    """Return in which points a diagnosis contradicts first aid; empty if it bears it out."""
    cause = _of_cause(first_aid, diagnosis)
    steps = enumerate(first_aid.recommended_actions, 1)
    found = [(0, cause), *((n, _of_step(step, diagnosis)) for n, step in steps)]
    return [Contradiction(step, text) for step, text in found if text]


def marked(page: str, points: list[Contradiction]) -> str:
    """Return the page of first aid with a mark at each point that the diagnosis contradicts."""
    for point in points:
        place = rf"\*\*{point.step}\.\*\* .*" if point.step else "### Root cause"
        mark = f" (**the diagnosis {point.text}{' it' if point.step else ''}**)"
        page = re.sub(rf"(?m)^{place}$", lambda line: line[0] + mark, page, count=1)
    return page


def _of_cause(aid: DiagnosisOutput, diagnosis: DiagnosisOutput) -> str:
    if aid.verdict not in ("identified", "suspected"):
        return ""
    if diagnosis.verdict == "no_fault":
        return "finds no fault"
    if diagnosis.verdict == "insufficient_data":
        return "finds no proof of a cause"
    blamed = _names(aid.root_cause)
    known = _names(f"{diagnosis.summary} {diagnosis.root_cause}")
    alike = any(_alike(one, other) for one in blamed for other in known)
    return "names another cause" if blamed and known and not alike else ""


def _of_step(step: Action, diagnosis: DiagnosisOutput) -> str:
    targets = set().union(*map(_names, step.commands)) or _names(step.what)
    for warning in _warnings(diagnosis):
        if targets & _names(warning):
            return "warns against"
    if step.reversible or not step.commands:
        return ""
    advised = [
        one for action in diagnosis.recommended_actions for one in action.commands
    ]
    for command in step.commands:
        verb, names = _verb(command), _names(command)
        if not any(_verb(one) == verb and names <= _names(one) for one in advised):
            return "does not advise"
    return ""


def _warnings(diagnosis: DiagnosisOutput) -> Iterator[str]:
    """Yield the sentences of a diagnosis that advise against something."""
    texts = [*diagnosis.risks, diagnosis.summary]
    texts += [f"{one.what}. {one.risk}" for one in diagnosis.recommended_actions]
    for text in texts:
        for sentence in re.split(r"(?<=[.;!?])\s+", text):
            if found := _WARNING.search(sentence):
                yield sentence[found.end() :]


def _verb(command: str) -> str:
    """Return what a command does: the function that it calls, or its first two words."""
    if call := _CALL.search(command):
        return call[1].casefold()
    words = re.findall(r"[a-z_]+", command.casefold().replace("sudo ", ""))
    return " ".join(words[:2])


def _names(text: str) -> set[str]:
    """Return what a text names: numbers of processes, quoted names, paths, identifiers. Catalogues do not count."""
    found = set()
    for match in _NAME.finditer(text):
        groups = match.groupdict()
        name = next(v for k, v in groups.items() if v and k != "mark").casefold()
        if match["quoted"] or not name.startswith(("pg_", "information_schema")):
            found.add(name)
    return found


def _alike(one: str, other: str) -> bool:
    """Return whether two names can mean the same: equal, a part of a dotted name, or a path within the other."""
    if one == other or one in other.split(".") or other in one.split("."):
        return True
    paths = one.startswith("/") and other.startswith("/")
    return paths and (other.startswith(f"{one}/") or one.startswith(f"{other}/"))
