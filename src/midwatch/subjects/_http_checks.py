"""What an answer, or the lack of one, says of the invariants of the kind `http`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from ..errors import ObservationFailed
from ..model import Facts, Severity, Signal
from ..units import format_duration
from ._http_settings import HttpSettings, parse_statuses
from ._http_target import Target
from ._web import Answer, WebFailure


@dataclass(frozen=True, slots=True)
class Found:
    """Signals, and why an invariant that should have been seen was not."""

    signals: tuple[Signal, ...]
    unavailable: Mapping[str, str] = field(default_factory=dict)


def answered(answer: Answer, settings: HttpSettings, target: Target) -> Found:
    """All that an answer says, but for its certificate."""
    facts: Facts = {
        "url": target.shown,
        "status": answer.status,
        "seconds": round(answer.seconds, 3),
    }
    signals = [
        verdict("reachable", True, target),
        _status(answer, settings, target, facts),
        Signal(
            "latency",
            target.shown,
            f"{target.shown} took {format_duration(answer.seconds)} to answer",
            value=answer.seconds,
            facts=facts,
        ),
    ]
    try:
        problem = body_problem(answer, settings)
    except ObservationFailed as error:
        return Found(tuple(signals), {"body": error.message})
    message = f"{target.shown}: {problem}"
    signals.append(verdict("body", not problem, target, message, facts))
    return Found(tuple(signals))


def failed(failure: WebFailure, target: Target) -> Found:
    """What a failure says. A refused certificate and endless redirects prove that a server is there."""
    facts: Facts = {"url": target.shown, "cause": failure.cause}
    broken = {"redirects": "status", "certificate": "certificate_valid"}
    invariant = broken.get(failure.cause)
    if invariant is None:
        message = f"{target.shown} did not answer: {failure.message}"
        return Found((verdict("reachable", False, target, message, facts),))
    message = f"{target.shown}: {failure.message}"
    signals = (
        verdict("reachable", True, target),
        verdict(invariant, False, target, message, facts),
    )
    return Found(signals)


def body_problem(answer: Answer, settings: HttpSettings) -> str:
    """What is wrong with the body, or nothing. Raises ObservationFailed where that cannot be told."""
    must, must_not = settings.body_matches, settings.body_lacks
    if must is None and must_not is None:
        return ""
    if answer.header("content-encoding") not in ("", "identity"):
        raise ObservationFailed("the body is compressed, though we asked for it plain")
    text = answer.body.decode("utf-8", "replace")
    if must_not is not None and re.search(must_not, text):
        return "the body contains what `body_lacks` forbids"
    lacking = must is not None and not re.search(must, text)
    if answer.cut and (lacking or must_not is not None):
        raise ObservationFailed(
            f"the body is longer than {len(answer.body)} bytes; raise `body_limit`"
        )
    return "the body lacks what `body_matches` demands" if lacking else ""


def expiry(end: datetime, now: datetime, target: Target) -> Signal:
    """How long the certificate lasts."""
    left = (end - now).total_seconds()
    when = (
        f"ends in {format_duration(left)}"
        if left > 0
        else f"ended {format_duration(-left)} ago"
    )
    return Signal(
        "certificate_expiry",
        target.shown,
        f"the certificate of {target.host} {when} ({end:%Y-%m-%d %H:%M} UTC)",
        value=left,
        facts={"host": target.host, "not_after": end.isoformat()},
        severity=Severity.CRITICAL if left <= 0 else None,
    )


def verdict(
    invariant: str,
    holds: bool,
    target: Target,
    message: str = "",
    facts: Facts | None = None,
) -> Signal:
    return Signal(invariant, target.shown, message, holds=holds, facts=facts or {})


def _status(
    answer: Answer, settings: HttpSettings, target: Target, facts: Facts
) -> Signal:
    ranges = [parse_statuses(text) for text in settings.expect_status]
    expected = any(first <= answer.status <= last for first, last in ranges)
    said = f"{answer.status} {answer.reason}".strip()
    wanted = ", ".join(settings.expect_status)
    message = f"{target.shown} answered {said}, expected {wanted}"
    return verdict("status", expected, target, message, facts)
