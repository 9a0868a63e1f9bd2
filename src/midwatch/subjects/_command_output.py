"""What a command says on its standard output, read strictly.

Either one JSON object::

    {"violations": [{"invariant": "queue_depth",      required, letters, digits, . _ - :
                     "component": "mail",             required
                     "message": "12,000 mails wait",  required
                     "severity": "critical",          or "warning" (the default) or "info"
                     "value": 12000,                  optional, a number
                     "facts": {"oldest": "3h"}}],     optional, flat
     "covered": ["queue_depth"],                      optional
     "evidence": [{"title": "Queues", "text": "…"}]}  optional

or one violation a line (NDJSON). `covered` names the invariants that were looked at: what is not
among the violations is known to be well there, and the rest is unknown. Without it all of
them were looked at. No output at all is no answer: a command that found nothing to complain about
prints ``{"violations": []}``. A field with another name is an error, so that a misspelt
``severity`` is noticed.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ObservationFailed
from ._text import one_line

MAX_VIOLATIONS = 1000
_HINT = 'print {"violations": [{"invariant": …, "component": …, "message": …}]}'
_Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")]
_Fact = Annotated[str, Field(max_length=4000)] | bool | int | float | None


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


class ReportedEvidence(_Strict):
    title: str
    text: str


class Report(_Strict):
    """All that one run of the command said."""

    violations: Annotated[list[ReportedViolation], Field(max_length=MAX_VIOLATIONS)]
    covered: Annotated[list[_Id], Field(max_length=MAX_VIOLATIONS)] | None = None
    evidence: Annotated[list[ReportedEvidence], Field(max_length=50)] = Field(
        default_factory=list
    )


def parse(stdout: bytes) -> Report:
    """Raises ObservationFailed with a one-line reason."""
    try:
        text = stdout.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _wrong(f"is not UTF-8 at byte {error.start}") from None
    if not text.strip():
        raise _wrong("is empty")
    whole = _loads(text)
    if whole is None:
        return _lines(text)
    if isinstance(whole, dict) and "invariant" in whole:
        whole = {"violations": [whole]}
    return _report(whole)


def _lines(text: str) -> Report:
    violations = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            item = _loads(line)
            if not isinstance(item, dict):
                raise _wrong(f"is not JSON (line {number}: {one_line(line, 60)})")
            violations.append(item)
    return _report({"violations": violations})


def _loads(text: str) -> Any:
    """The JSON value, or None where there is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _report(value: Any) -> Report:
    try:
        return Report.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = {"extra_forbidden": "there is no such field"}.get(
            first["type"], first["msg"]
        )
        raise _wrong(
            f"does not have the right form: {one_line(where, 100)}: {what}"
        ) from None


def _wrong(what: str) -> ObservationFailed:
    return ObservationFailed(f"the command's output {what}", hint=_HINT)
