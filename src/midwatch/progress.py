"""Whether the loops of a process still come round: what a liveness probe has to know, and no more.

A service that is away does not count. A loop that tries it again and again comes round; to start the
process anew would not bring the service back.
"""

from __future__ import annotations

from collections.abc import Callable

from midwatch.lifecycle import Clock, SystemClock

Alive = Callable[[float], None]
"""A sign of life, with the seconds until the next one at the latest."""


class Progress:
    """A dead man's switch for each loop: it says by when it will be heard of again."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._due: dict[str, float] = {}

    def expect(self, loop: str, within: float) -> None:
        """The loop lives; the next word from it comes within so many seconds."""
        self._due[loop] = self._clock.monotonic() + within

    def rest(self, loop: str) -> None:
        """The loop waits for work, for as long as that takes."""
        self._due.pop(loop, None)

    def late(self) -> dict[str, float]:
        """Loops that should have been heard of, and for how many seconds; empty if all is well."""
        now = self._clock.monotonic()
        return {loop: now - due for loop, due in self._due.items() if due < now}
