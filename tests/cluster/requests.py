"""What the server was asked, in order; and the faults that a test injects into its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from .errors import Refused


@dataclass(frozen=True, slots=True)
class Request:
    """`status` is None while it is under way, 0 if it was cut. `resource` may be `pods/log`."""

    number: int
    method: str
    path: str
    query: Mapping[str, str]
    agent: str
    at: datetime
    user: str = ""
    verb: str = ""
    group: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    status: int | None = None
    content_type: str = ""
    body: bytes = field(default=b"", repr=False)


Predicate = Callable[[Request], bool]


def asking(
    verb: str | None = None,
    resource: str | None = None,
    *,
    user: str | None = None,
    name: str | None = None,
    namespace: str | None = None,
) -> Predicate:
    """A predicate over requests: all that is given has to be so. `user` is a part of the name."""

    def test(request: Request) -> bool:
        return (
            (verb is None or request.verb == verb)
            and (resource is None or request.resource == resource)
            and (user is None or user in request.user)
            and (name is None or request.name == name)
            and (namespace is None or request.namespace == namespace)
        )

    return test


class Journal:
    """All requests since the start, or since `clear`. To be read from any thread."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._count = 0

    def __iter__(self) -> Iterator[Request]:
        return iter(tuple(self._requests.values()))

    def __len__(self) -> int:
        return len(self._requests)

    def where(self, predicate: Predicate) -> list[Request]:
        return [request for request in self if predicate(request)]

    def clear(self) -> None:
        self._requests.clear()

    def next_number(self) -> int:
        self._count += 1
        return self._count

    def note(self, request: Request) -> None:
        self._requests[request.number] = request

    def finished(self, number: int, status: int) -> None:
        if number in self._requests:
            self._requests[number] = replace(self._requests[number], status=status)


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
