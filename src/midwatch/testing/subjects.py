"""Fake subjects: observations as a test scripts them, one for each look.

::

    subject = FakeSubject("orders", [broken("disk", "/var"), Hang(), healthy()])
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import MidwatchError
from ..model import Invariant, Json, Observation, Severity, Signal, Ticket, Unit
from ..settings import SubjectSettings
from ..subjects.base import EvidenceSource

DISK = Invariant(
    "disk",
    "File systems have space left",
    "The used share of a file system.",
    unit=Unit.RATIO,
    limit=0.9,
)
ALIVE = Invariant(
    "alive",
    "The component answers",
    "The component says itself whether it is well.",
    severity=Severity.CRITICAL,
)


@dataclass(frozen=True, slots=True)
class Hang:
    """A look that never ends by itself."""


Step = Observation | MidwatchError | Hang


def healthy(state: Json | None = None) -> Observation:
    """All was seen, and all is well."""
    return Observation((), frozenset({"*"}), state=state or {})


def broken(
    invariant: str,
    *components: str,
    message: str = "it is broken",
    severity: Severity | None = None,
) -> Observation:
    """All was seen; `invariant` is broken on these components."""
    signals = tuple(
        Signal(
            invariant,
            component,
            f"{component}: {message}",
            holds=False,
            severity=severity,
        )
        for component in components
    )
    return Observation(signals, frozenset({"*"}))


def partly(unseen: Mapping[str, str], *signals: Signal) -> Observation:
    """All was seen but the invariants in `unseen`, which says why."""
    return Observation(signals, frozenset({"*"}), dict(unseen))


class FakeSubject:
    """Each look takes the next step of the script; the last one is repeated.

    `looks` are the states that the looks were given, in order. `evidence` maps titles to a text
    or to the error that fetching it raises.
    """

    def __init__(
        self,
        name: str = "fake",
        script: Sequence[Step] = (),
        *,
        kind: str = "fake",
        invariants: Sequence[Invariant] = (DISK, ALIVE),
        secrets: Sequence[str] = (),
        evidence: Mapping[str, str | MidwatchError] | None = None,
        timeout: float = 5.0,
    ) -> None:
        self._name, self._kind = name, kind
        self._script: list[Step] = list(script) or [healthy()]
        self._invariants = tuple(invariants)
        self._secrets = tuple(secrets)
        self._evidence = dict(evidence or {})
        self.timeout = timeout
        self.looks: list[Json] = []
        self.closed = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def kind(self) -> str:
        return self._kind

    @property
    def invariants(self) -> Sequence[Invariant]:
        return self._invariants

    @property
    def secrets(self) -> Sequence[str]:
        return self._secrets

    def then(self, *steps: Step) -> None:
        """From the next look on, these steps."""
        self._script = list(steps)

    async def observe(self, previous: Json) -> Observation:
        self.looks.append(previous)
        step = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(step, MidwatchError):
            raise step
        if isinstance(step, Hang):
            await asyncio.Event().wait()
            raise AssertionError("nobody sets this event")
        return step

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        return [self._source(title) for title in self._evidence]

    async def close(self) -> None:
        self.closed += 1

    def _source(self, title: str) -> EvidenceSource:
        async def fetch() -> str:
            text = self._evidence[title]
            if isinstance(text, MidwatchError):
                raise text
            return text

        return EvidenceSource(title, "script", fetch)


class FakeSettings(SubjectSettings):
    """A subject that only exists in a test."""

    kind: str = "fake"


class FakeKind:
    """A kind whose subjects are those prepared here, by name; others are healthy ones."""

    kind = "fake"
    settings_model = FakeSettings
    default_invariants: Sequence[Invariant] = (DISK, ALIVE)

    def __init__(self, *prepared: FakeSubject) -> None:
        self.subjects = {subject.name: subject for subject in prepared}

    def __call__(self, settings: FakeSettings) -> FakeSubject:
        return self.subjects.setdefault(
            settings.name, FakeSubject(settings.name, timeout=settings.timeout)
        )
