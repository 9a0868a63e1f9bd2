"""Start sessions, each as a process of its own: it outlives the server or the daemon that starts it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO

from midwatch.errors import Conflict, NotFound, TemporaryError
from midwatch.lifecycle import Clock
from midwatch.logs import Log
from midwatch.redaction import Redactor
from midwatch.session.records import SessionStore, new_session_id
from midwatch.text import one_line

START_SECONDS = 60.0
"""The longest time until a session that was started is in the store."""
APPROVAL_SECONDS = 25.0
"""The longest wait for a push and the pull requests after it, within what a request may take."""
_POLL = 0.1
_MOST_AT_ONCE = 8
"""Sessions of this process that run at the same time: each is a program with hundreds of megabytes."""


class SessionNotStarted(Conflict):
    """The session did not start."""


class PullRequestsNotOpened(Conflict):
    """A pull request was not opened."""


class FixProcesses:
    """Runs `midwatch session fix`, `session pr` and `schedules run`. Satisfies `midwatch.server.actions.StartsSessions`.

    Args:
        command: The program and its arguments before `session`.
        environ: The environment of the processes.
        sessions: The records, where a session that has started is found.
        redactor: Removes secrets from what the process says.
        log: Gets one line when a session ends badly.
        clock: Measures the wait.
    """

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        sessions: SessionStore,
        redactor: Redactor,
        log: Log,
        clock: Clock,
    ) -> None:
        self._command = tuple(command)
        self._environ = dict(environ)
        self._sessions = sessions
        self._redactor = redactor
        self._log = log
        self._clock = clock
        self._watchers: set[asyncio.Task[str]] = set()

    async def fix(
        self,
        ticket_id: int,
        *,
        by: str,
        prompt: str,
        interactive: bool,
        session_id: str | None = None,
        pull_request: bool = False,
    ) -> str:
        """Start a session for a ticket and return its id once it is in the store; one with `session_id` may be there already.

        Raises:
            Conflict: As many sessions run as this process starts at most.
            SessionNotStarted: The process ended; the message is what it output.
            TemporaryError: It did not start in time.
        """
        if session_id is not None and await self._is_there(session_id):
            return session_id  # the server that started it has died since
        session_id = session_id or new_session_id()
        arguments = ["session", "fix", str(ticket_id), "--yes", "--json"]
        arguments += ["--id", session_id, "--by", by]
        arguments += ["--interactive"] if interactive else []
        arguments += ["--pr"] if pull_request else []
        arguments += ["--prompt", "-"] if prompt else []
        process, ended = await self._start(arguments, prompt, session_id)
        await self._started(session_id, process, ended)
        return session_id

    async def run_schedule(self, name: str, session_id: str) -> None:
        """Start the session of a schedule, and return once it is in the store. Raises the same as `fix`."""
        arguments = ["schedules", "run", name, "--json", "--id", session_id]
        process, ended = await self._start(arguments, "", session_id)
        await self._started(session_id, process, ended)

    async def approve_pull_requests(self, session_id: str, *, by: str) -> None:
        """Run `midwatch session pr --approve`. It goes on by itself if it takes longer than a request may.

        Raises:
            Conflict: As many sessions run as this process starts at most.
            PullRequestsNotOpened: It failed; the message is what it output.
        """
        arguments = ["session", "pr", session_id, "--approve", "--by", by, "--json"]
        _, ended = await self._start(arguments, "", session_id)
        await asyncio.wait({ended}, timeout=APPROVAL_SECONDS)
        if ended.done() and (reason := ended.result()):
            raise PullRequestsNotOpened(reason)

    async def _start(
        self, arguments: Sequence[str], prompt: str, session_id: str
    ) -> tuple[asyncio.subprocess.Process, asyncio.Task[str]]:
        """Start a process that outlives this one. Return it, and what waits for its end and returns why that was bad."""
        if len(self._watchers) >= _MOST_AT_ONCE:
            raise Conflict(
                f"{_MOST_AT_ONCE} sessions that were started here are running",
                hint="wait for the end of one, or end it",
            )
        # A pipe would break with the end of the server.
        output = tempfile.TemporaryFile()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *arguments,
                stdin=asyncio.subprocess.PIPE if prompt else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=output,
                env=self._environ,
                start_new_session=True,
            )
        except OSError as error:
            output.close()
            reason = os.strerror(error.errno or 0)
            raise SessionNotStarted(
                f"the session did not start: {reason}: {self._command[0]}"
            ) from error
        ended = asyncio.create_task(
            self._watch(process, prompt, session_id, output),
            name=f"session {session_id}",
        )
        self._watchers.add(ended)
        ended.add_done_callback(self._watchers.discard)
        return process, ended

    async def _started(
        self,
        session_id: str,
        process: asyncio.subprocess.Process,
        ended: asyncio.Task[str],
    ) -> None:
        limit = self._clock.monotonic() + START_SECONDS
        while self._clock.monotonic() < limit:
            over = ended.done()  # asked first: the session is stored before the end
            if await self._is_there(session_id):
                return
            if over:
                raise SessionNotStarted(f"the session did not start: {ended.result()}")
            await asyncio.wait({ended}, timeout=_POLL)
        process.terminate()
        raise TemporaryError(f"the session did not start within {START_SECONDS:g} s")

    async def _is_there(self, session_id: str) -> bool:
        try:
            await self._sessions.get(session_id)
        except NotFound:
            return False
        return True

    async def _watch(
        self,
        process: asyncio.subprocess.Process,
        prompt: str,
        session_id: str,
        output: IO[bytes],
    ) -> str:
        """Wait for the end of a process. Return why it ended badly, or nothing."""
        with output:
            await process.communicate(prompt.encode() if prompt else None)
            if process.returncode == 0:
                return ""
            reason = self._last_line(output) or f"exit code {process.returncode}"
        self._log.warning("session ended badly", session=session_id, reason=reason)
        return reason

    def _last_line(self, output: IO[bytes]) -> str:
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - 4000))
        text = output.read().decode(errors="replace").strip()
        last = text.rpartition("\n")[2].removeprefix("midwatch: ")
        return one_line(self._redactor.text(last), 500)
