"""Blocking calls away from the event loop, where one that never returns does no harm."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ..errors import ObservationFailed

T = TypeVar("T")


class OffLoop:
    """One blocking call at a time, each in a daemon thread.

    A call to a dead network file system cannot be interrupted. The event loop's own threads are
    waited for when the process stops; a daemon thread is not. While one hangs no other is begun.
    """

    def __init__(self) -> None:
        self._running: Future[Any] | None = None

    async def run(self, call: Callable[[], T], timeout: float, what: str) -> T:
        """The result of `call`, or what it raised. Raises ObservationFailed after `timeout` seconds."""
        if self._running is not None and not self._running.done():
            raise ObservationFailed(f"{what}: an earlier look still hangs")
        future: Future[T] = Future()
        self._running = future
        threading.Thread(
            target=_fulfil, args=(future, call), name=what, daemon=True
        ).start()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout)
        except TimeoutError:
            raise ObservationFailed(
                f"{what}: no result within {timeout:.3g} s"
            ) from None


def _fulfil(future: Future[T], call: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # handed on to the waiter, not swallowed
        future.set_exception(error)
    else:
        future.set_result(result)
