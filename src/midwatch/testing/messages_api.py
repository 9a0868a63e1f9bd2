"""A scripted Messages API on loopback, for tests of clients and settings.

In a program::

    async with ScriptedMessagesAPI(
        Rule([rate_limited(retry_after=2), Answer("It is the lock.")], contains="orders-db"),
    ) as api:
        client = AsyncAnthropic(api_key="sk-ant-test", base_url=api.base_url)
        ...
        assert len(api.calls) == 2

A rule without conditions may be written as its answer: `ScriptedMessagesAPI(overloaded())`.
Calls that no rule fits get `Answer()`: a minimal instance of the schema that was asked for, or a
short text. Of several answers each call takes the next, and the last one repeats.

As a process::

    python -m midwatch.testing.messages_api --port 0 --script FILE.json --record FILE.jsonl

prints its base URL as its first line and serves until SIGTERM or SIGINT. It appends one JSON
line to the record for every request when that arrives (`number`, `received_at`, `method`,
`path`, `query`, `headers`, `body`), before it answers. Without `--script`, every call gets the
default answer. A script that cannot be used ends it with one line and exit code 2.

The script file::

    {
      "rules": [
        {"contains": "orders-db", "answers": [
          {"fault": "rate_limited", "retry_after": 2},
          {"structured": {"verdict": "identified"}, "usage": {"output_tokens": 400}}
        ]},
        {"tools": true, "answer": {"tool_uses": [{"name": "Bash", "input": {"command": "ls"}}]}},
        {"stream": true, "answer": {"fault": "cut", "answer": "Half of this.", "keep": 0.5}},
        {"matches": "disk +full", "answer": {"fault": "hold", "name": "gate", "then": "Go on."}}
      ],
      "default": "Nothing in particular."
    }

- A rule has `answer` or `answers`, and any of the conditions `model`, `contains`, `matches` (a
  regular expression), `tools`, `stream`, `structured` (true or false), `path` and `method` (by
  default POST /v1/messages). The first rule that fits answers.
- An answer is a text, or an object with the fields of `Answer`: `text`, `structured`,
  `tool_uses`, `thinking`, `blocks`, `stop_reason`, `stop_sequence`, `usage`, `model`, `id`,
  `keep`.
- A fault is an object with `fault` and the arguments of the fault, by the names they have
  in this module: `error` (status, type, message, error_code, details, headers),
  `rate_limited` (retry_after, error_code), `spend_limit_reached`, `overloaded`, `server_error`
  (status), `unauthorized`, `forbidden`, `unknown_model` (model), `request_too_large`,
  `bad_request` (message), `prompt_too_long`, `raw` (status, body, content_type, headers),
  `html_page` (status), `empty_body`, `truncated` (answer, keep), `cut` (answer, keep, reset),
  `reset`, `drip` (answer, size, interval), `hang` (after_head), `pings` (interval),
  `stream_error` (error, answer, after), `garbled` (garbage, answer, after), `delay` (seconds,
  then), `refusal` (text, usage), `cut_by_max_tokens` and `context_window_exceeded` (answer,
  keep), and `hold` (name, then), which `POST /holds/NAME/release` opens. Times are in seconds,
  sizes in bytes; `keep` is a share from 0 to 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import h11

from midwatch.errors import SettingsError
from midwatch.lifecycle import Clock, SystemClock, cancel, first
from midwatch.testing.messages_script import (
    Answer,
    Answers,
    Cut,
    Delay,
    Drip,
    Error,
    Garbled,
    Hang,
    Hold,
    Pings,
    Raw,
    Reset,
    Rule,
    Script,
    StreamError,
    ToolUse,
    Truncated,
    Usage,
    bad_request,
    context_window_exceeded,
    cut_by_max_tokens,
    empty_body,
    forbidden,
    html_page,
    overloaded,
    prompt_too_long,
    rate_limited,
    refusal,
    request_too_large,
    server_error,
    spend_limit_reached,
    unauthorized,
    unknown_model,
)
from midwatch.testing.messages_wire import (
    Connection,
    Exchange,
    Incoming,
    Journal,
    Reply,
    Request,
    fingerprint,
    parse_body,
    without_secrets,
)

__all__ = [
    "Answer",
    "Cut",
    "Delay",
    "Drip",
    "Error",
    "Exchange",
    "Garbled",
    "Hang",
    "Hold",
    "Pings",
    "Raw",
    "Reply",
    "Request",
    "Reset",
    "Rule",
    "ScriptedMessagesAPI",
    "StreamError",
    "ToolUse",
    "Truncated",
    "Usage",
    "bad_request",
    "context_window_exceeded",
    "cut_by_max_tokens",
    "empty_body",
    "fingerprint",
    "forbidden",
    "html_page",
    "overloaded",
    "prompt_too_long",
    "rate_limited",
    "refusal",
    "request_too_large",
    "server_error",
    "spend_limit_reached",
    "unauthorized",
    "unknown_model",
]

MAX_BODY = 32 * 1024 * 1024
"""Bytes of a request; the API answers 413 to more (its documented limit is 32 MB)."""
_STOP_WITHIN = 5.0
"""Seconds that the server's thread may take to end; more means that a function of the script blocks it."""
_KEYS = ("x-api-key", "authorization")


class _Json:
    """A JSON value with status 200."""

    def __init__(self, value: dict[str, Any]) -> None:
        self._value = value

    async def send(self, exchange: Exchange) -> None:
        await exchange.send_json(200, self._value)


def _invalid_request(request: Request, *, too_large: bool) -> Reply | None:
    """Return the error of the real API for an invalid request, which no script overrides; None if it is valid."""
    if not request.path.startswith("/v1/"):
        return None
    if not any(name in request.headers for name in _KEYS):
        return Error(401, "authentication_error", "x-api-key header is required")
    if too_large:
        return request_too_large()
    if request.path not in ("/v1/messages", "/v1/messages/count_tokens"):
        return None
    if request.method != "POST":
        return Error(405, "invalid_request_error", "Method Not Allowed")
    return _invalid_body(request.body, whole=request.is_call)


def _invalid_body(body: Any, *, whole: bool) -> Error | None:
    if not body:
        return bad_request("The request body is not valid JSON")
    for name in ("model", "max_tokens", "messages"):
        if name not in body and (whole or name != "max_tokens"):
            return bad_request(f"{name}: Field required")
    messages = body["messages"]
    if not isinstance(messages, list) or not messages:
        return bad_request("messages: at least one message is required")
    return None


def _default_reply(request: Request, default: Reply) -> Reply:
    """Return the reply to a request that no rule fits."""
    if request.is_call:
        return default
    if request.path == "/v1/messages/count_tokens":
        return _Json({"input_tokens": len(request.prompt) // 4 + 1})
    if request.method in ("GET", "HEAD"):
        if request.path == "/":
            return _Json({})
        if request.path == "/v1/models":
            return _Json({"data": [], "has_more": False})
        if request.path.startswith("/v1/models/"):
            return _Json(_model(request.path.removeprefix("/v1/models/")))
    return Error(404, "not_found_error", "Not found")


def _model(name: str) -> dict[str, Any]:
    created = "2026-01-01T00:00:00Z"
    return {"type": "model", "id": name, "display_name": name, "created_at": created}


class _Service:
    """Serves connections, in one event loop, until they end or `end_all` ends them."""

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
        await cancel(*self._connections)

    async def _serve(self, connection: Connection) -> None:
        """Serve the requests of one connection, in order."""
        try:
            while incoming := await connection.read():
                if not await self._answer(connection, incoming):
                    break
        except h11.RemoteProtocolError as error:
            await self._refuse(connection, error)
        except ConnectionError:
            pass
        finally:
            await connection.abort()

    async def _refuse(
        self, connection: Connection, error: h11.RemoteProtocolError
    ) -> None:
        """Answer data that is not a valid request; it is not recorded."""
        unknown = Request(0, "", "", "", {}, {}, 0, self._clock.now())
        closing = {"connection": "close"}
        status = error.error_status_hint
        kind = "request_too_large" if status == 413 else "invalid_request_error"
        reply = Error(status, kind, str(error), headers=closing)
        with contextlib.suppress(ConnectionError):
            await reply.send(Exchange(connection, unknown, self._clock))
            await connection.linger()

    async def _answer(self, connection: Connection, incoming: Incoming) -> bool:
        """Record a request and answer it. Return whether the connection can take another one."""
        request = self._request(incoming)
        self._journal.arrived(request)
        exchange = Exchange(connection, request, self._clock)
        complete = False
        try:
            reply = self._reply(exchange, incoming.too_large)
            complete = bool(await first(reply, connection.gone()))
        finally:
            self._journal.finished(request.number, "complete" if complete else "broken")
        return complete and connection.next_cycle()

    async def _reply(self, exchange: Exchange, too_large: bool) -> bool:
        """Send the reply. Return whether the connection is still usable afterwards."""
        try:
            if self._observer:
                self._observer(exchange.request)
            reply = await self._choose(exchange, too_large)
            await reply.send(exchange)
            if exchange.started and not exchange.broken:
                await exchange.finish()
        except ConnectionError:
            exchange.broken = True
        except Exception as error:  # the outermost guard around a script's functions
            self.failures.append(error)
            await self._report_failure(exchange, error)
        return not exchange.broken

    async def _choose(self, exchange: Exchange, too_large: bool) -> Reply:
        path = exchange.request.path
        if path.startswith("/holds/") and path.endswith("/release"):
            return self._release(path.split("/")[2])
        invalid = _invalid_request(exchange.request, too_large=too_large)
        if invalid:
            return invalid
        scripted = await self.script.reply_to(exchange.request)
        return scripted or _default_reply(exchange.request, self._default)

    def _release(self, name: str) -> Reply:
        hold = self._holds.get(name)
        if hold is None:
            return Error(404, "not_found_error", f"no hold {name}")
        hold.release()
        return _Json({"released": name})

    async def _report_failure(self, exchange: Exchange, error: Exception) -> None:
        """Answer that the script has failed, not the code under test."""
        if exchange.started:
            await exchange.break_off()
            return
        message = f"the script failed: {type(error).__name__}: {error}"
        with contextlib.suppress(ConnectionError):
            await Error(500, "api_error", message).send(exchange)

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
        """`default` answers the calls that no rule fits. With `port` 0 the system chooses a port.

        `holds` can be released by `POST /holds/NAME/release`. `observer` sees each request as it
        arrives, in the server's thread. Raises ValueError for a rule without an answer.
        """
        self._port = port
        self._journal = Journal()
        self._service = _Service(
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
        """All requests until now, in order of arrival."""
        return self._journal.requests

    @property
    def calls(self) -> list[Request]:
        """The requests that asked for a message."""
        return [request for request in self.requests if request.is_call]

    @property
    def failures(self) -> list[Exception]:
        """The exceptions that functions of the script have raised."""
        return self._service.failures

    def script(self, *rules: Rule | Answers) -> None:
        """Replace the rules; requests that already have their reply keep it."""
        self._service.script = Script(rules)

    async def wait_for_requests(
        self, count: int, timeout: float = 60.0, *, answered: bool = False
    ) -> list[Request]:
        """Return the requests once there are `count`; with `answered`, those whose reply has ended.

        Raises TimeoutError after `timeout` seconds.
        """
        return await self._journal.wait(count, timeout, answered=answered)

    def wait_for_requests_sync(
        self, count: int, timeout: float = 60.0, *, answered: bool = False
    ) -> list[Request]:
        """Do as `wait_for_requests`, and block the calling thread."""
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
        """Serve in the thread of the server until `stop`."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal. Return the exit code: 0 after a signal, 1 if a request could not be recorded
    or answered, 2 if the server cannot start."""
    options = _parser().parse_args(arguments)
    try:
        api, record = _build(options.port, options.script, options.record)
        api.start()
    except SettingsError as error:
        return _print_error(error.one_line())
    except (OSError, OverflowError) as error:
        return _print_error(f"cannot listen on 127.0.0.1:{options.port}: {error}")
    try:
        _serve_until_signal(api)
    finally:
        api.stop()
        if record:
            record.close()
    if api.failures:
        print(f"midwatch.testing.messages_api: {api.failures[0]}", file=sys.stderr)
    return 1 if api.failures else 0


def _build(
    port: int, script: Path | None, record: Path | None
) -> tuple[ScriptedMessagesAPI, TextIO | None]:
    # Loading brings pydantic in, which those who only import the server do not need.
    from midwatch.testing.messages_script_file import load_script, read_script

    loaded = load_script(script) if script else read_script({})
    log = _open(record) if record else None
    api = ScriptedMessagesAPI(
        *loaded.rules,
        default=loaded.default,
        holds=loaded.holds,
        port=port,
        observer=_appender(log) if log else None,
    )
    return api, log


def _open(record: Path) -> TextIO:
    try:
        return record.open("a", encoding="utf-8")
    except OSError as error:
        raise SettingsError(error.strerror or str(error), path=str(record)) from None


def _appender(log: TextIO) -> Callable[[Request], None]:
    def append(request: Request) -> None:
        log.write(json.dumps(request.to_json()) + "\n")
        log.flush()

    return append


def _serve_until_signal(api: ScriptedMessagesAPI) -> None:
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    print(api.base_url, flush=True)
    ended.wait()


def _print_error(line: str) -> int:
    print(f"midwatch.testing.messages_api: {line}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m midwatch.testing.messages_api",
        description="A scripted Messages API on 127.0.0.1, for tests.",
    )
    parser.add_argument("--port", type=int, default=0, help="0: the system chooses")
    parser.add_argument("--script", type=Path, help="a JSON file with rules")
    parser.add_argument("--record", type=Path, help="one JSON line a request")
    return parser


if __name__ == "__main__":
    sys.exit(main())
