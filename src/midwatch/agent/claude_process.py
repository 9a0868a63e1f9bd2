"""Ask Claude from a child process, so that neither the memory nor the import of the SDK is the daemon's.

The import of the Anthropic SDK takes over a second of processor time and 50 MB. The child has it, and lives while
calls are in flight and a while after. It gets key, settings and environment through a pipe. When the pipe ends,
however the daemon ended, the child exits at once, in the middle of a call as well.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from typing import Any

from midwatch.agent.diagnosis import Prompt
from midwatch.diagnosis_schema import Kind, NotSent, Reply
from midwatch.errors import TemporaryError
from midwatch.lifecycle import cancel
from midwatch.provider import ApiAccess, check_access
from midwatch.text import clean, one_line

_PROGRAM = ("-P", "-m", "midwatch.agent.claude_worker")  # -P: not from this folder
_PYTHON_VARIABLES = ("LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH")
_START_SECONDS = 60.0
_SLACK_SECONDS = 30.0
"""Seconds beyond the limit of a call until the child counts as stuck: it keeps that limit itself."""
_CANCEL_SECONDS = 0.5
_IDLE_SECONDS = 30.0
_END_SECONDS = 1.0
_LENGTH_BYTES = 4
_STDERR_BYTES = 2000

_library_log = logging.getLogger(__name__)


class CallFailed(Exception):
    """A call ended with an error that nothing foresees; its notes have the traceback of the child."""


class ChildEnded(TemporaryError):
    """The process that calls the API ended."""


class ClaudeProcess:
    """Asks one model, as `midwatch.agent.claude.Claude` does, from a child process.

    Args:
        model: The model's id, such as "claude-sonnet-5-5".
        timeout: Seconds that a whole call may take.
        access: How the API is reached. Its `environ` becomes the environment that the SDK reads.
        idle: Seconds that the child lives after the last call.

    Raises:
        SettingsError: An address, a proxy or a certificate cannot be used, or a cloud lacks what it needs.
    """

    def __init__(
        self,
        model: str,
        timeout: float,
        access: ApiAccess,
        *,
        idle: float = _IDLE_SECONDS,
    ) -> None:
        check_access(access)
        self.model = model
        self.provider = access.provider
        self._timeout = timeout
        self._access = access
        self._idle = idle
        self._child: _Child | None = None
        self._starting = asyncio.Lock()
        self._in_use = 0
        self._retiring: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the child; None while there is none."""
        child = self._child
        return None if child is None or child.ended else child.process.pid

    @property
    def in_use(self) -> bool:
        """Whether a call is in flight, or a child has not ended yet."""
        return bool(self._in_use) or (
            self._child is not None and not self._child.is_done
        )

    async def ask(self, prompt: Prompt, max_tokens: int) -> Reply:
        """Make one call. Errors of the API, of the network and the end of the child are returned, never raised.

        Raises:
            NotSent: It was cancelled before any part of it was sent.
            CallFailed: It ended with any other error.
        """
        self._in_use += 1
        if self._retiring is not None:
            self._retiring.cancel()
        try:
            return await self._ask(prompt, max_tokens)
        finally:
            self._in_use -= 1
            if not self._in_use:
                loop = asyncio.get_running_loop()
                self._retiring = loop.call_later(self._idle, self._retire)

    async def _ask(self, prompt: Prompt, max_tokens: int) -> Reply:
        try:
            child = await self._started()
        except asyncio.CancelledError:
            raise NotSent from None
        except ChildEnded as error:
            return Reply(Kind.UNREACHABLE, error=error.one_line())
        if child.refusal:
            return Reply(Kind.UNAUTHORISED, error=child.refusal)
        try:
            async with asyncio.timeout(self._timeout + _SLACK_SECONDS):
                return await child.call(prompt, max_tokens)
        except TimeoutError:
            child.kill()
            why = "the process that calls the API hangs"
        except ChildEnded as error:
            why = error.one_line()
        return Reply(Kind.UNREACHABLE, error=why, lost=True)

    async def _started(self) -> _Child:
        """Return a child that can be asked. Raises ChildEnded."""
        async with self._starting:
            if self._child is None or self._child.ended:
                setup = (self.model, self._timeout, self._access)
                self._child = await _Child.start(setup, self._access.environ)
            child = self._child
        try:
            async with asyncio.timeout(_START_SECONDS):
                await asyncio.shield(child.ready)
        except TimeoutError:
            child.kill()
            raise ChildEnded(
                f"the process that calls the API did not start within {_START_SECONDS:g} s"
            ) from None
        return child

    def _retire(self) -> None:
        if self._child is not None:
            self._child.release()

    async def close(self) -> None:
        """End the child."""
        if self._retiring is not None:
            self._retiring.cancel()
        if self._child is not None:
            await self._child.close()


class _Child:
    """A running child process, and the calls that it makes."""

    def __init__(self, process: Process) -> None:
        loop = asyncio.get_running_loop()
        self.process = process
        self.ready: asyncio.Future[None] = loop.create_future()
        self.refusal = ""
        self.ended = False
        self._stderr = b""
        self._calls: dict[int, asyncio.Future[Reply | None]] = {}
        self._numbers = itertools.count(1)
        self._reading = asyncio.create_task(self._read(), name="calls of the API")

    @property
    def is_done(self) -> bool:
        """Whether the process has ended, and its last words were read."""
        return self._reading.done()

    @classmethod
    async def start(cls, setup: object, environ: Mapping[str, str]) -> _Child:
        """Start a child, and hand it what it needs. Raises ChildEnded."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *_PROGRAM,
                env={
                    name: value
                    for name, value in environ.items()
                    if name in _PYTHON_VARIABLES or name.startswith("PYTHON")
                },
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
            )
        except OSError as error:
            why = f"cannot start the process that calls the API: {error.strerror}"
            raise ChildEnded(why) from error
        child = cls(process)
        child._send(setup)
        return child

    async def call(self, prompt: Prompt, max_tokens: int) -> Reply:
        """Make one call. Raises ChildEnded, CallFailed, NotSent."""
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        self._send(("ask", number, prompt, max_tokens))
        try:
            reply: Reply | None = await asyncio.shield(answer)
            if reply is None:  # cancelled, though no one asked for that
                raise ChildEnded
            return reply
        except asyncio.CancelledError:
            self._send(("cancel", number))
            await asyncio.wait({answer}, timeout=_CANCEL_SECONDS)
            if answer.done() and isinstance(answer.exception(), NotSent):
                raise NotSent from None
            raise
        finally:
            del self._calls[number]
            answer.cancel()

    def _send(self, message: object) -> None:
        """Write a message. A child that has ended is seen by the reader."""
        assert self.process.stdin is not None
        if not self.process.stdin.is_closing():
            self.process.stdin.write(frame(message))

    # ------------------------------------------------------------------ what comes back

    async def _read(self) -> None:
        assert self.process.stdout is not None
        errors = asyncio.create_task(self._read_errors())
        try:
            while True:
                head = await self.process.stdout.readexactly(_LENGTH_BYTES)
                size = int.from_bytes(head, "big")
                self._take(pickle.loads(await self.process.stdout.readexactly(size)))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.ended = True
            await asyncio.wait({errors}, timeout=_END_SECONDS)
            await cancel(errors)
            self._fail(await self._why())

    def _take(self, message: Any) -> None:
        match message:
            case ("ready",) if not self.ready.done():
                self.ready.set_result(None)
            case ("refused", refusal) if not self.ready.done():
                self.refusal = refusal
                self.ready.set_result(None)
            case ("log", level, name, text):
                logging.getLogger(name).log(level, "%s", text)
            case ("answer", number, reply):
                self._end(number, reply)
            case ("not sent", number):
                self._end(number, NotSent())
            case ("failed", number, text, traceback):
                failed = CallFailed(text)
                failed.add_note(traceback)
                self._end(number, failed)

    def _end(self, number: int, end: Reply | BaseException | None) -> None:
        answer = self._calls.get(number)
        if answer is None or answer.done():
            return
        if isinstance(end, BaseException):
            answer.set_exception(end)
            answer.exception()  # marks it as retrieved: the caller may have gone
        else:
            answer.set_result(end)

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        while data := await self.process.stderr.read(_STDERR_BYTES):
            self._stderr = (self._stderr + data)[-_STDERR_BYTES:]

    async def _why(self) -> str:
        try:
            async with asyncio.timeout(_END_SECONDS):
                code = await self.process.wait()
        except TimeoutError:
            self.kill()
            code = None
        how = {None: "closed its pipe", 0: "ended"}.get(code, f"ended with {code}")
        if code is not None and code < 0:
            how = f"was killed by signal {-code}"
        last = self._stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        why = f"the process that calls the API {how}"
        return f"{why}: {one_line(clean(last), 300)}" if last else why

    def _fail(self, why: str) -> None:
        ended = ChildEnded(why)
        waiting: list[asyncio.Future[Any]] = [*self._calls.values(), self.ready]
        for one in waiting:
            if not one.done():
                one.set_exception(ended)
                one.exception()  # marks it as retrieved
        if self._stderr and self._calls:
            text = clean(self._stderr.decode("utf-8", "replace"))
            _library_log.warning("%s: %s", why, text)

    # ------------------------------------------------------------------ the end

    def kill(self) -> None:
        """End the child at once."""
        self.ended = True
        if self.process.returncode is None:
            self.process.kill()

    def release(self) -> None:
        """Let the child end: nothing more is asked."""
        self.ended = True
        if self.process.stdin is not None:
            self.process.stdin.close()

    async def close(self) -> None:
        """End the child, and wait for that."""
        self.release()
        await asyncio.wait({self._reading}, timeout=_END_SECONDS)
        self.kill()
        await cancel(self._reading)


def frame(message: object) -> bytes:
    """Return a message as it goes through the pipe: its length, then the pickled value."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data
