"""How long tests wait, and how: for a state, with one generous deadline."""

from __future__ import annotations

from midwatch.lifecycle import SystemClock

PATIENCE = 90.0
"""Seconds that anything awaited may take on a machine that is busy with other work.

Nothing right comes near it, and what a fault would take is longer: where a test shows that
something ends early, what it would otherwise wait for takes ten minutes or has no end.
"""


class LeapingClock(SystemClock):
    """The machine's clock, which a test sets ahead instead of waiting."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self._ahead

    def leap(self, seconds: float) -> None:
        self._ahead += seconds
