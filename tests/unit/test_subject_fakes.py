"""Fake subjects do as scripted, and the conformance check finds what is wrong with a subject."""

from __future__ import annotations

import asyncio
import math

import pytest

from midwatch.errors import ObservationFailed
from midwatch.model import Invariant, Observation, Signal, Unit
from midwatch.testing.fakes import (
    DISK,
    FakeKind,
    FakeSettings,
    FakeSubject,
    Hang,
    broken,
    healthy,
    partly,
)
from midwatch.testing.subject_conformance import check_kind, check_subject


async def test_a_script_is_played_step_by_step() -> None:
    subject = FakeSubject(
        "orders",
        [
            broken("alive", "a", "b"),
            ObservationFailed("no"),
            Hang(),
            healthy({"n": 1}),
        ],
    )
    assert [s.component for s in (await subject.observe({})).signals] == ["a", "b"]
    with pytest.raises(ObservationFailed):
        await subject.observe({})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(subject.observe({}), 0.01)
    assert (await subject.observe({"n": 0})).state == {"n": 1}
    assert (await subject.observe({"n": 1})).covers("alive")  # the last is repeated
    assert subject.looks[-2:] == [{"n": 0}, {"n": 1}]
    subject.then(partly({"disk": "no answer"}))
    half = await subject.observe({})
    assert half.covers("alive") and not half.covers("disk")


async def test_fakes_conform() -> None:
    subject = FakeSubject(
        script=[broken("alive", "a")],
        evidence={"Log": "a line", "Gone": ObservationFailed("not there")},
        secrets=["hunter2"],
    )
    kind = FakeKind(subject)
    check_kind(kind)
    assert kind(FakeSettings(name="fake")) is subject
    await check_subject(subject)
    assert subject.closed == 2
    await check_subject(kind(FakeSettings(name="other")))
    await check_subject(FakeSubject(script=[ObservationFailed("no")]), observable=False)


def seen(*signals: Signal, **fields: object) -> Observation:
    return Observation(signals, frozenset({"*"}), **fields)  # type: ignore[arg-type]


WELL = Signal("alive", "a", "fine", holds=True)


@pytest.mark.parametrize(
    ("subject", "complaint"),
    [
        (FakeSubject(invariants=[DISK, DISK]), "share an id"),
        (FakeSubject(script=[Hang()], timeout=0.05), "an observation took longer than"),
        (FakeSubject(invariants=[Invariant("x", "x", "")]), "not documented"),
        (
            FakeSubject(invariants=[Invariant("x", "x", "y", unit=Unit.RATIO)]),
            "limit without unit",
        ),
        (FakeSubject(script=[seen(Signal("new", "a", "m", value=1.0))]), "dynamic"),
        (
            FakeSubject(script=[seen(Signal("alive", "", "m", holds=False))]),
            "component",
        ),
        (
            FakeSubject(script=[seen(Signal("disk", "a", "m", value=math.inf))]),
            "not finite",
        ),
        (
            FakeSubject(script=[seen(Signal("alive", "a", "m", value=1.0))]),
            "without a limit",
        ),
        (
            FakeSubject(
                script=[
                    Observation((WELL,), frozenset({"alive"}), {"alive": "but why"})
                ]
            ),
            "covered and unavailable",
        ),
        (FakeSubject(script=[seen(state={"all": "x" * 300_000})]), "the state has"),
        (
            FakeSubject(
                script=[broken("alive", "a", message="hunter2")], secrets=["hunter2"]
            ),
            "shows a secret",
        ),
        (
            FakeSubject(
                evidence={"Log": ObservationFailed("hunter2")}, secrets=["hunter2"]
            ),
            "evidence Log shows a secret",
        ),
    ],
)
async def test_the_check_finds_what_is_wrong(
    subject: FakeSubject, complaint: str
) -> None:
    with pytest.raises(AssertionError, match=complaint):
        await check_subject(subject)


async def test_a_subject_that_should_not_be_observable_is_caught() -> None:
    with pytest.raises(AssertionError, match="although the subject cannot be observed"):
        await check_subject(FakeSubject(), observable=False)
