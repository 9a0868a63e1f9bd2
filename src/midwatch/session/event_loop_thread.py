"""An event loop in a thread, for code without an event loop. It ends with the process and never holds it up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from midwatch.lifecycle import cancel

_T = TypeVar("_T")
_P = ParamSpec("_P")


class _Workers(ThreadPoolExecutor):
    """Threads for blocking calls; a call runs at once while the interpreter ends and starts no thread."""

    def submit(
        self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Future[_T]:
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            done: Future[_T] = Future()
            try:
                done.set_result(fn(*args, **kwargs))
            except BaseException as error:  # raised where the result is awaited
                done.set_exception(error)
            return done


class LoopEnded(Exception):
    """The loop takes no more calls."""


class EventLoopThread:
    """An event loop in a thread of its own, which does not keep the process alive.

    Every method may be called from any thread. The garbage collector may call one in the loop's own thread:
    it does not wait there.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(_Workers(thread_name_prefix="session"))
        # Reentrant: the garbage collector may run while it is held.
        self._lock = threading.RLock()
        self._ending: Future[None] | None = None
        self._thread = threading.Thread(target=self._serve, name="session", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the loop takes no more calls. In a forked process, its thread does not exist."""
        return self._ending is not None or not self._thread.is_alive()

    def call(self, function: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Return the result of a coroutine function that runs in the loop. Raises LoopEnded."""
        return self._submit(function).result()

    def finish(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine function to its end, unless the loop has ended."""
        with contextlib.suppress(LoopEnded):
            ending = self._submit(function)
            if threading.current_thread() is not self._thread:
                ending.result()

    def run_soon(self, function: Callable[[], None]) -> None:
        """Run a function in the loop, unless the loop has ended."""
        with self._lock:
            if not self.ended:
                self._loop.call_soon_threadsafe(function)

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `last`, cancel what still runs, and end the thread. A second call waits for the same end."""
        with self._lock:
            if not self.ended:
                self._ending = asyncio.run_coroutine_threadsafe(
                    self._end(last), self._loop
                )
                self._ending.add_done_callback(self._stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()
            if self._ending is not None:
                self._ending.result()

    def _submit(self, function: Callable[[], Coroutine[Any, Any, _T]]) -> Future[_T]:
        with self._lock:
            if self.ended:
                raise LoopEnded
            return asyncio.run_coroutine_threadsafe(function(), self._loop)

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _end(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await last()
        finally:
            await cancel(*asyncio.all_tasks() - {asyncio.current_task()})

    def _stop(self, ended: Future[None]) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
