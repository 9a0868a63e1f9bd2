"""What an observation has seen so far."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from ...errors import ObservationFailed
from ...model import Fact, Invariant, Json, Observation, Signal
from .round import NothingToSee


class Findings:
    """What an observation has seen so far, of the enabled invariants only."""

    def __init__(self, invariants: Sequence[Invariant], state: Json) -> None:
        self.enabled = {invariant.id for invariant in invariants}
        self.state = state
        self._signals: dict[str, Sequence[Signal]] = {}
        self._glimpses: list[Signal] = []
        self._unavailable: dict[str, str] = {}
        self.background: dict[str, Fact] = {}

    def saw(self, invariant: str, signals: Sequence[Signal]) -> None:
        if invariant in self.enabled:
            self._signals[invariant] = signals

    def failed(self, invariant: str, why: str) -> None:
        if invariant in self.enabled:
            self._unavailable[invariant] = why

    def glimpsed(self, invariant: str, signal: Signal) -> None:
        """Seen to be broken, while its other components stay unknown."""
        if invariant in self.enabled:
            self._glimpses.append(signal)

    async def look(
        self, invariant: str, see: Callable[[], Awaitable[Sequence[Signal]]]
    ) -> None:
        if invariant in self.enabled:
            try:
                self.saw(invariant, await see())
            except NothingToSee:
                pass
            except ObservationFailed as error:
                self.failed(invariant, error.line())

    def rest(self, why: str) -> None:
        """Of everything not yet seen: it is unknown, and why."""
        for invariant in self.enabled - set(self._signals) - set(self._unavailable):
            self._unavailable[invariant] = why

    def observation(self) -> Observation:
        """Raises ObservationFailed when nothing at all was seen."""
        signals = [one for found in self._signals.values() for one in found]
        signals += self._glimpses
        if not signals and not self._signals:
            why = next(iter(self._unavailable.values()), "the server does not answer")
            raise ObservationFailed(why)
        return Observation(
            tuple(signals),
            frozenset(self._signals),
            self._unavailable,
            self.state,
            self.background,
        )
