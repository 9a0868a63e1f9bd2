"""The server's side of every connection: read, record, choose a reply, send it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from midwatch.lifecycle import Clock

from .endpoints import Json, objection, standard
from .errors import Error
from .exchange import Exchange, Reply
from .hold import Hold
from .http1 import Connection, Incoming, ProtocolError
from .journal import Journal
from .requests import Request, parse_body, without_secrets
from .rules import Script


class Service:
    """Serves connections until they end or `end_all` ends them. Lives in one event loop."""

    def __init__(
        self,
        *,
        script: Script,
        default: Reply,
        journal: Journal,
        observer: Callable[[Request], None] | None,
        holds: Mapping[str, Hold],
        max_body: int,
        clock: Clock,
    ) -> None:
        self.script = script
        self.failures: list[Exception] = []
        self._default = default
        self._journal = journal
        self._observer = observer
        self._holds = holds
        self._max_body = max_body
        self._clock = clock
        self._connections: set[asyncio.Task[None]] = set()

    def accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        connection = Connection(reader, writer, self._max_body)
        task = asyncio.create_task(self._serve(connection))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def end_all(self) -> None:
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, connection: Connection) -> None:
        """One connection, request after request."""
        try:
            while incoming := await connection.read():
                if not await self._answer(connection, incoming):
                    break
        except ProtocolError as error:
            await self._complain(connection, error)
        except ConnectionError:
            pass
        finally:
            await connection.abort()

    async def _complain(self, connection: Connection, error: ProtocolError) -> None:
        """Answer what could not be read as a request; it is not recorded as one."""
        nothing = Request(0, "", "", "", {}, {}, 0, self._clock.now())
        closing = {"connection": "close"}
        kind = "request_too_large" if error.status == 413 else "invalid_request_error"
        reply = Error(error.status, kind, str(error), headers=closing)
        with contextlib.suppress(ConnectionError):
            await reply.send(Exchange(connection, nothing, self._clock))
            await connection.linger()

    async def _answer(self, connection: Connection, incoming: Incoming) -> bool:
        """Record and answer; whether the connection can take another request."""
        request = self._request(incoming)
        self._journal.arrived(request)
        exchange = Exchange(connection, request, self._clock)
        replying = asyncio.create_task(self._reply(exchange, incoming.too_large))
        leaving = asyncio.create_task(connection.gone())
        complete = False
        try:
            await asyncio.wait({replying, leaving}, return_when=asyncio.FIRST_COMPLETED)
            complete = replying.done() and not exchange.broken
        finally:
            replying.cancel()
            leaving.cancel()
            await asyncio.gather(replying, leaving, return_exceptions=True)
            self._journal.finished(request.number, "complete" if complete else "broken")
        return complete and incoming.keep_alive

    async def _reply(self, exchange: Exchange, too_large: bool) -> None:
        try:
            if self._observer:
                self._observer(exchange.request)
            reply = await self._choose(exchange, too_large)
            await reply.send(exchange)
        except ConnectionError:
            exchange.broken = True
        except Exception as error:  # the outermost guard around a script's functions
            self.failures.append(error)
            await self._admit(exchange, error)

    async def _choose(self, exchange: Exchange, too_large: bool) -> Reply:
        path = exchange.request.path
        if path.startswith("/holds/") and path.endswith("/release"):
            return self._release(path.split("/")[2])
        refused = objection(exchange.request, too_large=too_large)
        if refused:
            return refused
        scripted = await self.script.reply_to(exchange.request)
        return scripted or standard(exchange.request, self._default)

    def _release(self, name: str) -> Reply:
        hold = self._holds.get(name)
        if hold is None:
            return Error(404, "not_found_error", f"no hold {name}")
        hold.release()
        return Json({"released": name})

    async def _admit(self, exchange: Exchange, error: Exception) -> None:
        """Tell the client that the script, not the code under test, is at fault."""
        if exchange.started:
            await exchange.break_off()
            return
        said = f"the script failed: {type(error).__name__}: {error}"
        with contextlib.suppress(ConnectionError):
            await Error(500, "api_error", said).send(exchange)

    def _request(self, incoming: Incoming) -> Request:
        path, _, query = incoming.target.partition("?")
        return Request(
            number=self._journal.next_number(),
            method=incoming.method,
            path=path,
            query=query,
            headers=without_secrets(incoming.headers),
            body=parse_body(incoming.body) or {},
            size=len(incoming.body),
            received_at=self._clock.now(),
        )
