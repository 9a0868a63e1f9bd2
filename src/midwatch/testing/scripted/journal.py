"""The record of what was asked, shared by the server's thread and those who look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .requests import Delivery, Request
from .waiting import Waiting


class Journal:
    """Requests in order of arrival, and the waits for them."""

    def __init__(self) -> None:
        self._waiting = Waiting()
        self._requests: list[Request] = []

    @property
    def requests(self) -> list[Request]:
        with self._waiting.lock:
            return list(self._requests)

    def next_number(self) -> int:
        return len(self._requests) + 1

    def arrived(self, request: Request) -> None:
        with self._waiting.lock:
            self._requests.append(request)
        self._waiting.changed()

    def finished(self, number: int, delivery: Delivery) -> None:
        with self._waiting.lock:
            before = self._requests[number - 1]
            self._requests[number - 1] = replace(before, delivery=delivery)
        self._waiting.changed()

    async def wait(
        self, count: int, timeout: float, *, answered: bool
    ) -> list[Request]:
        """`count` requests or more; only those whose reply has ended if `answered`."""
        enough = self._enough(count, answered)
        if not await self._waiting.until(enough, timeout):
            raise self._too_late(count, timeout, answered)
        return self._found(answered)

    def wait_sync(self, count: int, timeout: float, *, answered: bool) -> list[Request]:
        """As `wait`, blocking the calling thread."""
        enough = self._enough(count, answered)
        if not self._waiting.until_sync(enough, timeout):
            raise self._too_late(count, timeout, answered)
        return self._found(answered)

    def _found(self, answered: bool) -> list[Request]:
        everything = self.requests
        if not answered:
            return everything
        return [request for request in everything if request.delivery != "pending"]

    def _enough(self, count: int, answered: bool) -> Callable[[], bool]:
        return lambda: len(self._found(answered)) >= count

    def _too_late(self, count: int, timeout: float, answered: bool) -> TimeoutError:
        verb = "were answered" if answered else "came"
        found = len(self._found(answered))
        return TimeoutError(f"{found} of {count} requests {verb} in {timeout:g} s")
