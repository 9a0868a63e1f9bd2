"""The scripted Messages API itself: a server on loopback, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from midwatch.lifecycle import Clock, SystemClock

from .answers import Answer
from .exchange import Reply
from .hold import Hold
from .journal import Journal
from .requests import Request
from .rules import Answers, Rule, Script
from .service import Service

MAX_BODY = 32 * 1024 * 1024
"""Bytes of a request; the API answers 413 to more (its documented limit is 32 MB)."""
_STOP_WITHIN = 5.0
"""Seconds the server's thread may take to end; more means that a script's function blocks it."""


class ScriptedMessagesAPI:
    """A Messages API on 127.0.0.1 that answers by script and records what it was asked.

    Use it as an asynchronous or a plain context manager, or with `start` and `stop`. It runs in
    a thread of its own, so the code under test may be of any kind, in this process or in
    another. Started again after `stop`, it listens on the same port and keeps its record: that
    is an outage.

    A function of the script (or the observer) that raises is answered with 500, and its exception is raised again
    on leaving the context.
    """

    def __init__(
        self,
        *rules: Rule | Answers,
        default: Reply = Answer(),
        port: int = 0,
        max_body: int = MAX_BODY,
        holds: Mapping[str, Hold] | None = None,
        observer: Callable[[Request], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`default` answers the calls that no rule fits. With `port` 0 the system chooses one.

        `holds` can be released by `POST /holds/NAME/release`. `observer` sees each request as it
        arrives, in the server's thread. Raises ValueError for a rule without an answer.
        """
        self._port = port
        self._journal = Journal()
        self._service = Service(
            script=Script(rules),
            default=default,
            journal=self._journal,
            observer=observer,
            holds=dict(holds or {}),
            max_body=max_body,
            clock=clock or SystemClock(),
        )
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    @property
    def base_url(self) -> str:
        """Such as http://127.0.0.1:40123; known once started, and kept after a stop."""
        if not self._port:
            raise RuntimeError("the scripted API has not been started")
        return f"http://127.0.0.1:{self._port}"

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in order of arrival."""
        return self._journal.requests

    @property
    def calls(self) -> list[Request]:
        """The requests that asked for a message."""
        return [request for request in self.requests if request.is_call]

    @property
    def failures(self) -> list[Exception]:
        """What functions of the script raised."""
        return self._service.failures

    def script(self, *rules: Rule | Answers) -> None:
        """Replace the rules; requests that already have their reply keep it."""
        self._service.script = Script(rules)

    async def wait_for_requests(
        self, count: int, timeout: float = 10.0, *, answered: bool = False
    ) -> list[Request]:
        """The requests once there are `count`; with `answered`, those whose reply has ended.

        Raises TimeoutError after `timeout` seconds.
        """
        return await self._journal.wait(count, timeout, answered=answered)

    def wait_for_requests_sync(
        self, count: int, timeout: float = 10.0, *, answered: bool = False
    ) -> list[Request]:
        """As `wait_for_requests`, blocking the calling thread."""
        return self._journal.wait_sync(count, timeout, answered=answered)

    def start(self) -> None:
        """Listen. Takes some milliseconds. Raises OSError if the port is taken."""
        if self._thread:
            raise RuntimeError("the scripted API is already running")
        listening: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(listening)),
            name="scripted-messages-api",
            daemon=True,
        )
        self._thread.start()
        try:
            listening.result()
        except (OSError, OverflowError):
            self._thread.join()
            self._thread = None
            raise

    def stop(self) -> None:
        """Close every connection and the port; hanging requests end too. May be called twice.

        Raises TimeoutError if a function of the script blocks.
        """
        thread, loop, stopping = self._thread, self._loop, self._stopping
        if not (thread and loop and stopping):
            return
        loop.call_soon_threadsafe(stopping.set)
        thread.join(_STOP_WITHIN)
        if thread.is_alive():
            raise TimeoutError("a function of the script blocks the scripted API")
        self._thread = self._loop = self._stopping = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if error is None and self.failures:
            raise self.failures[0]

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.stop)
        self.__exit__(kind, error, trace)

    async def _run(self, listening: Future[None]) -> None:
        """The server's thread, from the open port to the closed one."""
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        try:
            server = await asyncio.start_server(
                self._service.accept, "127.0.0.1", self._port, backlog=512
            )
        except (OSError, OverflowError) as error:
            listening.set_exception(error)
            return
        self._port = server.sockets[0].getsockname()[1]
        listening.set_result(None)
        await self._stopping.wait()
        server.close()
        await self._service.end_all()
