"""Faults that a test injects: refusals, hangs, cut connections, broken and half-open watches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from .journal import Predicate, Request
from .refusals import Refused

Drop = Literal["before", "middle", "after"]
"""Cut before anything is done; in the middle of the answer; after it is done, without an answer."""


def always(request: Request) -> bool:
    return True


@dataclass(eq=False)
class Fault:
    """One fault; `left` is how often it still strikes (None: until it is lifted)."""

    when: Predicate
    left: int | None
    refusal: Refused | None = None
    drop: Drop | None = None
    held: asyncio.Event | None = None

    def takes(self, request: Request) -> bool:
        if self.left == 0 or not self.when(request):
            return False
        self.left = None if self.left is None else self.left - 1
        return True


@dataclass(eq=False)
class LiveWatch:
    """A watch that is being served."""

    request: Request
    cut: Callable[[], None]
    frozen: bool = field(default=False)


class Faults:
    """Injected from any thread, `call` runs a function in the server's loop."""

    def __init__(self, call: Callable[[Callable[[], object]], object]) -> None:
        self._call = call
        self._faults: list[Fault] = []
        self.watches: set[LiveWatch] = set()

    def refuse(
        self,
        when: Predicate = always,
        *,
        status: int = 503,
        reason: str | None = None,
        retry_after: int | None = None,
        message: str = "the server is currently unable to handle the request",
        times: int | None = None,
    ) -> Fault:
        """Answer with this status instead; `retry_after` in seconds."""
        refusal = Refused(status, message, reason=reason, retry_after=retry_after)
        return self._add(Fault(when, times, refusal=refusal))

    def hang(self, when: Predicate = always, *, times: int | None = None) -> Fault:
        """Say nothing until the fault is lifted; then go on as if nothing had been."""
        return self._add(Fault(when, times, held=asyncio.Event()))

    def drop(
        self, when: Predicate = always, *, at: Drop = "before", times: int | None = None
    ) -> Fault:
        """Cut the connection."""
        return self._add(Fault(when, times, drop=at))

    def lift(self, fault: Fault) -> None:
        fault.left = 0
        if fault.held is not None:
            self._call(fault.held.set)

    def clear(self) -> None:
        """Lift all; watches that were frozen stay so."""
        for fault in tuple(self._faults):
            self.lift(fault)
        self._faults.clear()

    def break_watches(self, when: Predicate = always) -> int:
        """Cut the watches that are being served; how many there were."""
        return self._each(when, lambda watch: watch.cut())

    def freeze_watches(self, when: Predicate = always) -> int:
        """Make them half-open: the connection stays, no byte comes any more."""
        return self._each(when, lambda watch: setattr(watch, "frozen", True))

    def striking(self, request: Request) -> Fault | None:
        return next((f for f in tuple(self._faults) if f.takes(request)), None)

    def _add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault

    def _each(self, when: Predicate, act: Callable[[LiveWatch], object]) -> int:
        def run() -> int:
            hit = [watch for watch in tuple(self.watches) if when(watch.request)]
            for watch in hit:
                act(watch)
            return len(hit)

        count = self._call(run)
        assert isinstance(count, int)
        return count
