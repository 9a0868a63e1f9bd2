"""The conformance suite for kinds of subjects.

::

    async def test_it_conforms():
        check_kind(MySubject)
        await check_subject(MySubject(settings))
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from midwatch.errors import MidwatchError, ObservationFailed
from midwatch.model import (
    Invariant,
    Key,
    Observation,
    Severity,
    Signal,
    Ticket,
    TicketStatus,
    Unit,
)
from midwatch.settings import SubjectSettings
from midwatch.subjects.base import Subject, SubjectKind

STATE_LIMIT = 256_000  # bytes of JSON
TEXT_LIMIT = 1000  # characters of a message, 300 of a component
_ID = re.compile(r"[A-Za-z0-9][^\x00-\x1f\x7f]*")


def check_kind(kind: SubjectKind) -> None:
    """Raise AssertionError if a class or factory breaks the protocol `SubjectKind`."""
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", kind.kind), "kind is not a name"
    assert issubclass(
        kind.settings_model, SubjectSettings
    ), "settings_model is not a subclass of SubjectSettings"
    _check_invariants(kind.default_invariants)
    assert kind.default_invariants, f"{kind.kind} documents no invariant"


async def check_subject(
    subject: Subject, tickets: Sequence[Ticket] = (), *, observable: bool = True
) -> Observation | None:
    """Observe twice, fetch all evidence, close twice; return the second observation.

    `tickets` are those that evidence is requested for; by default they are made from the signals that
    do not hold. With `observable` false the subject must raise ObservationFailed. Raises AssertionError
    for the first rule that is broken.
    """
    assert subject.name and subject.kind, "a subject has a name and a kind"
    assert subject.timeout > 0, "an observation needs time"
    _check_invariants(subject.invariants)
    observation = None
    try:
        if observable:
            first = await _observe(subject, {})
            observation = await _observe(subject, json.loads(json.dumps(first.state)))
        else:
            await _check_failure(subject)
        made = tickets or tickets_for(subject, observation)
        await _check_sources(subject, made)
        for source in subject.sources(()):  # asked for where another one depends on it
            assert source.title and source.source and source.timeout > 0, source
    finally:
        await subject.close()
        await subject.close()
    return observation


def tickets_for(subject: Subject, observation: Observation | None) -> list[Ticket]:
    """Return tickets to request evidence for: one for each signal that does not report `holds`,
    or, without such a signal, one for each invariant.
    """
    keys: list[tuple[Key, Signal | None]] = [
        (Key(subject.name, signal.invariant, signal.component), signal)
        for signal in (observation.signals if observation else ())
        if signal.holds is not True
    ]
    if not keys:
        keys = [
            (Key(subject.name, i.id, "component"), None) for i in subject.invariants
        ]
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        Ticket(
            id=number,
            key=key,
            severity=Severity.WARNING,
            status=TicketStatus.OPEN,
            held=False,
            message=signal.message if signal else "made by the conformance check",
            facts=signal.facts if signal else {},
            opened_at=at,
            first_seen_at=at,
            last_seen_at=at,
            occurrence_count=1,
            batch=1,
        )
        for number, (key, signal) in enumerate(keys[:20], 1)
    ]


def _check_invariants(invariants: Sequence[Invariant]) -> None:
    ids = [invariant.id for invariant in invariants]
    assert len(set(ids)) == len(ids), f"invariants share an id: {sorted(ids)}"
    for invariant in invariants:
        where = f"invariant {invariant.id!r}"
        assert _ID.fullmatch(invariant.id) and invariant.id != "*", f"{where}: bad id"
        assert invariant.title and invariant.description, f"{where}: not documented"
        assert invariant.hold_for >= 0, f"{where}: hold_for is negative"
        measured = invariant.unit is not Unit.NONE
        assert measured == (invariant.limit is not None), f"{where}: limit without unit"
        assert invariant.limit is None or math.isfinite(invariant.limit), where


async def _observe(subject: Subject, previous: dict[str, object]) -> Observation:
    try:
        observation = await asyncio.wait_for(subject.observe(previous), subject.timeout)
    except TimeoutError:
        raise AssertionError(
            f"an observation took longer than the subject's timeout of {subject.timeout:g} s"
        ) from None
    known = {invariant.id: invariant for invariant in subject.invariants}
    for signal in observation.signals:
        _check_signal(signal, known, subject.secrets)
    _check_coverage(observation, known)
    state = json.dumps(observation.state, allow_nan=False)
    assert len(state) <= STATE_LIMIT, f"the state has {len(state)} bytes"
    _check_clean(state, subject.secrets, "the state")
    return observation


def _check_signal(
    signal: Signal, known: dict[str, Invariant], secrets: Sequence[str]
) -> None:
    where = f"signal {signal.invariant}/{signal.component}"
    assert signal.component and len(signal.component) <= 300, f"{where}: component"
    assert (
        len(signal.message) <= TEXT_LIMIT
    ), f"{where}: the message is longer than {TEXT_LIMIT} characters"
    assert "\n" not in signal.message + signal.component, f"{where}: more than one line"
    assert signal.message or signal.holds is True, f"{where}: no message"
    assert signal.value is None or math.isfinite(signal.value), f"{where}: not finite"
    _check_clean(
        f"{signal.component} {signal.message} {json.dumps(dict(signal.facts), allow_nan=False)}",
        secrets,
        where,
    )
    invariant = known.get(signal.invariant)
    if invariant is None:  # a dynamic invariant, which has no limit
        assert _ID.fullmatch(signal.invariant), f"{where}: bad id"
        assert signal.holds is not None, f"{where}: dynamic, so it needs `holds`"
        assert signal.severity is not None, f"{where}: dynamic, so it needs a severity"
    elif signal.holds is None and signal.value is not None:
        assert invariant.limit is not None, f"{where}: a value without a limit"


def _check_coverage(observation: Observation, known: dict[str, Invariant]) -> None:
    dynamic = {signal.invariant for signal in observation.signals}
    for name in observation.covered:
        assert _ID.fullmatch(name) or name == "*", f"covered: bad id {name!r}"
    for name, why in observation.unavailable.items():
        assert (
            why and "\n" not in why
        ), f"unavailable {name}: give the reason on one line"
        assert name not in observation.covered, f"{name} is covered and unavailable"
    for name in known.keys() | dynamic:
        unavailable = name in observation.unavailable
        assert not (
            unavailable and observation.covers(name)
        ), f"{name}: unknown and covered"


async def _check_sources(subject: Subject, tickets: Sequence[Ticket]) -> None:
    for source in subject.sources(tickets):
        assert source.title and source.source and source.timeout > 0, source
        try:
            text = await asyncio.wait_for(source.fetch(), source.timeout)
        except MidwatchError as error:
            text = error.one_line()
        except TimeoutError:
            raise AssertionError(
                f"{source.title}: took longer than its timeout of {source.timeout:g} s"
            ) from None
        assert isinstance(text, str) and text, f"{source.title}: no text"
        whole = f"{source.title}\n{source.source}\n{text}"
        _check_clean(whole, subject.secrets, f"evidence {source.title}")


async def _check_failure(subject: Subject) -> None:
    try:
        await subject.observe({})
    except ObservationFailed as error:
        assert "\n" not in error.one_line(), "a failure is one line"
        _check_clean(error.one_line(), subject.secrets, "the failure")
    else:
        raise AssertionError(
            "observe() succeeded although the subject cannot be observed"
        )


def _check_clean(text: str, secrets: Sequence[str], where: str) -> None:
    for secret in secrets:
        assert secret, "a secret is an empty string"
        assert secret not in text, f"{where} shows a secret"
