"""The child of `midwatch.agent.claude_process`: it has the Anthropic SDK, and makes the calls."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import queue
import signal
import threading
import traceback
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from midwatch.agent.claude_process import frame
from midwatch.diagnosis_schema import NotSent
from midwatch.errors import SettingsError

if TYPE_CHECKING:
    from midwatch.agent.claude import Claude


def main() -> None:
    """Make the calls that come in on standard input, until it ends.

    Signals that a terminal or a supervisor sends to all processes are the daemon's: it gives calls their grace.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    worker = _Worker()
    model, timeout, access = worker.inbox.get()
    os.environ.update(access.environ)  # the SDK and the clouds' libraries read it
    gc.disable()  # the imports free nothing, and collections take a third of their time
    from midwatch.agent.claude import Claude

    gc.freeze()
    gc.enable()

    async def run() -> None:
        try:
            claude = Claude(model, timeout, access)
        except SettingsError as error:
            worker.send("refused", error.one_line())
            await asyncio.Event().wait()
        worker.send("ready")
        await worker.serve(claude)

    asyncio.run(run())


class _Worker:
    """The pipes to the daemon, and the calls in flight."""

    def __init__(self) -> None:
        # What libraries print must not come between the messages.
        self._answers = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        self._sending = threading.Lock()
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls: dict[int, asyncio.Task[None]] = {}
        requests = os.fdopen(os.dup(0), "rb")
        threading.Thread(target=self._read, args=(requests,), daemon=True).start()
        logging.getLogger().addHandler(_Forwarder(self))

    def _read(self, requests: IO[bytes]) -> None:
        """Take in messages. The end of the pipe ends the process, whatever it does: no daemon waits any more."""
        while len(head := requests.read(4)) == 4:
            data = requests.read(int.from_bytes(head, "big"))
            if len(data) != int.from_bytes(head, "big"):
                break
            self.inbox.put(pickle.loads(data))
        os._exit(0)

    def send(self, *message: object) -> None:
        data = memoryview(frame(message))
        with self._sending:
            while data:
                data = data[self._answers.write(data) or 0 :]

    async def serve(self, claude: Claude) -> None:
        while True:
            match await asyncio.to_thread(self.inbox.get):
                case ("ask", number, prompt, max_tokens):
                    work = self._call(claude, number, prompt, max_tokens)
                    self._calls[number] = task = asyncio.create_task(work)
                    task.add_done_callback(partial(self._never_begun, number))
                case ("cancel", number) if number in self._calls:
                    self._calls[number].cancel()

    async def _call(
        self, claude: Claude, number: int, prompt: Any, max_tokens: int
    ) -> None:
        try:
            self.send("answer", number, await claude.ask(prompt, max_tokens))
        except NotSent:
            self.send("not sent", number)
        except asyncio.CancelledError:
            self.send("answer", number, None)
        except Exception as error:  # the daemon stores it as the diagnosis
            text = f"{type(error).__name__}: {error}"
            self.send("failed", number, text, traceback.format_exc())
        finally:
            del self._calls[number]

    def _never_begun(self, number: int, task: asyncio.Task[None]) -> None:
        """Report a call that was cancelled before its task ran."""
        if self._calls.pop(number, None) is not None:
            self.send("not sent", number)


class _Forwarder(logging.Handler):
    """Sends what libraries log to the daemon, which redacts it."""

    def __init__(self, worker: _Worker) -> None:
        super().__init__(logging.WARNING)
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        self._worker.send("log", record.levelno, record.name, record.getMessage())


if __name__ == "__main__":
    main()
