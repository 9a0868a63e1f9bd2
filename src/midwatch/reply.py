"""How a call to Claude ended, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from midwatch.answer import DiagnosisOutput
from midwatch.model import Usage


class Kind(StrEnum):
    """One for every row of the outcome table (docs/architecture.md)."""

    ANSWERED = "answered"
    REFUSED = "refused"
    CUT = "cut"  # by max_tokens
    INVALID = "invalid"  # does not fit the schema
    REJECTED = "rejected"  # 400, 413: this request will never be taken
    UNREACHABLE = (
        "unreachable"  # connection, time-out, 408, 409, 5xx, 529, not our API's answer
    )
    RATE_LIMITED = "rate_limited"
    SPEND_LIMIT = "spend_limit"
    UNAUTHORISED = "unauthorised"  # 401, 403, unknown model


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `output` may be partial for CUT; `usage` is known whenever a message came.

    `retry_after` is in seconds, where the API named a time. `text` is what the model wrote.
    """

    kind: Kind
    output: DiagnosisOutput | None = None
    text: str = ""
    error: str = ""
    usage: Usage = Usage()
    model: str = ""
    request_id: str | None = None
    retry_after: float | None = None
