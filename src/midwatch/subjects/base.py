"""The seam where a watched system meets Midwatch: the Subject protocol.

A kind of subject is a class that satisfies `SubjectKind`, named in the entry-point group
``midwatch.subjects``. `midwatch.testing.subject_conformance` checks one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..model import Invariant, Json, Observation, Ticket


@dataclass(frozen=True, slots=True)
class EvidenceSource:
    """A piece of evidence that can be fetched now.

    `fetch` returns plain text (it is cleaned, redacted, shortened and numbered by the
    gatherer) and may raise any `MidwatchError`; it is given `timeout` seconds at most.
    A lower `rank` matters more: when the token budget is short, the highest ranks go first.
    """

    title: str
    source: str
    fetch: Callable[[], Awaitable[str]]
    rank: int = 50
    timeout: float = 5.0


class Subject(Protocol):
    """A watched system."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def timeout(self) -> float:
        """Seconds that one observation may take."""
        ...

    @property
    def invariants(self) -> Sequence[Invariant]:
        """The enabled invariants, with the limits that this subject's settings give them."""
        ...

    @property
    def secrets(self) -> Sequence[str]:
        """Secret values that must never leave the process (passwords of a DSN, tokens)."""
        ...

    async def observe(self, previous: Json) -> Observation:
        """Look once. `previous` is the `state` of the last good observation, or empty.

        Raises ObservationFailed when nothing could be seen. Must end by itself within the
        subject's own time limits; the monitor cancels it at `timeout` all the same.
        """
        ...

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        """The evidence that matters to these tickets, which are all of this subject."""
        ...

    async def close(self) -> None:
        """Let go of connections. Never raises."""
        ...


class SubjectKind(Protocol):
    """What an entry point of the group ``midwatch.subjects`` names: a class with these.

    `settings_model` is a subclass of `midwatch.settings.SubjectSettings`; `invariants` are the kind's own
    with their defaults (for `midwatch invariants`).
    """

    kind: str
    settings_model: type[Any]
    default_invariants: Sequence[Invariant]

    def __call__(self, settings: Any) -> Subject: ...
