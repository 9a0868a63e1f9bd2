"""One run of the claude program: started, spoken to, listened to, and ended for certain."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import claude_agent_sdk
from claude_agent_sdk import (
    ClaudeSDKClient,
    PermissionResultAllow,
    PermissionResultDeny,
    ToolPermissionContext,
)

from midwatch.session.driver.arguments import sdk_options
from midwatch.session.driver.conversation import Conversation
from midwatch.session.driver.faults import program_error
from midwatch.session.driver.translate import Translator
from midwatch.session.environment import program_environment
from midwatch.session.errors import ProgramCrashed, ProgramMissing
from midwatch.session.launch import Launcher
from midwatch.session.options import SessionOptions
from midwatch.session.signals import PermissionAsked, ProgramEnded, Signal, Verdict
from midwatch.session.transcripts import Mirror

_STDERR_LINES = 20
_INTERRUPT_PATIENCE = 5.0  # seconds until an interrupt must have been taken


@dataclass(frozen=True, slots=True)
class Place:
    """Where the program works. `folder` is private to the session; the agent has no business there."""

    cwd: Path
    directories: tuple[Path, ...]
    folder: Path

    @property
    def config(self) -> Path:
        """The program's own folder, with the transcript."""
        return self.folder / "claude"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def launcher(self) -> Launcher:
        return Launcher.in_folder(self.folder / "run")


class Program:
    """The program in one conversation. What it says goes to `put`, as signals.

    It is started once and closed once. `start`, `send` and `interrupt` raise the errors of a session.
    """

    def __init__(
        self,
        options: SessionOptions,
        place: Place,
        conversation: Conversation,
        put: Callable[[Signal], None],
        *,
        sandbox: bool,
        max_usd: float | None = None,
        store: Mirror | None = None,
    ) -> None:
        self._options = options
        self._place = place
        self._conversation = conversation
        self._put = put
        self._sandbox = sandbox
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._translator = Translator(conversation.spent, sandbox)
        self._pump: asyncio.Task[None] | None = None
        self._closing = False
        self._client = ClaudeSDKClient(
            sdk_options(
                options,
                conversation,
                script=place.launcher.script,
                cwd=place.cwd,
                directories=place.directories,
                sandbox=sandbox,
                config=place.config,
                mcp_file=place.launcher.mcp_servers,
                max_usd=max_usd,
                ask=self._ask,
                store=store,
                on_stderr=self._stderr.append,
            )
        )

    async def start(self, key: str, base_url: str | None) -> None:
        """Start the program and wait until it answers."""
        program = find_program(self._options)
        env = program_environment(
            self._options,
            config=self._place.config,
            home=self._place.home,
            cwd=self._place.cwd,
            base_url=base_url,
            resume_turn=self._conversation.resume_turn,
        )
        servers = self._options.mcp_servers
        with self._place.launcher.ready(program, env, key, servers):
            try:
                await self._client.connect()
            # The SDK raises a bare Exception where the program does not answer its first request.
            except Exception as error:
                raise program_error(error, self._stderr, running=False) from error
        self._pump = asyncio.create_task(self._listen(), name="claude program")

    async def send(self, text: str, uuid: str) -> None:
        """Begin a turn. The program takes a uuid once, also over a resume."""
        try:
            await self._client.query(_user_message(text, uuid))
        except claude_agent_sdk.ClaudeSDKError as error:
            raise program_error(error, self._stderr, running=True) from error

    async def interrupt(self) -> None:
        """Ask the program to end the turn; one that does not even take the question is left alone."""
        # The SDK reports a refused or lost control request as a bare Exception.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_INTERRUPT_PATIENCE):
                await self._client.interrupt()

    async def close(self, *, now: bool = False) -> None:
        """End the program and all it started; `now` without waiting for it to finish by itself."""
        self._closing = True
        if now:
            self._place.launcher.terminate()
        # Not a task of ours: the SDK's own clean-up must not be cancelled half way.
        closing = asyncio.ensure_future(self._client.disconnect())
        try:
            await asyncio.shield(closing)
        finally:
            if self._pump is not None:
                self._pump.cancel()
                await asyncio.gather(self._pump, return_exceptions=True)

    async def _listen(self) -> None:
        try:
            async for message in self._client.receive_messages():
                for signal in self._translator.signals(message):
                    self._put(signal)
            error: Exception = ProgramCrashed("the claude program ended by itself")
        # What it raises is what the program's end made of it; all of it is mapped.
        except Exception as raised:
            error = program_error(raised, self._stderr, running=True)
        if not self._closing:
            if isinstance(error, ProgramCrashed) and self._stderr:
                error = ProgramCrashed(f"{error.message}: {' '.join(self._stderr)}")
            self._put(ProgramEnded(error))  # type: ignore[arg-type]

    async def _ask(
        self, tool: str, arguments: dict[str, Any], context: ToolPermissionContext
    ) -> PermissionResultAllow | PermissionResultDeny:
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        request_id = context.tool_use_id or f"ask-{id(answer):x}"
        self._put(PermissionAsked(request_id, tool, arguments, answer))
        verdict = await answer
        if verdict.allowed:
            return PermissionResultAllow()
        return PermissionResultDeny(message=verdict.message or "Permission denied.")


def find_program(options: SessionOptions) -> Path:
    """The claude program: the one that is set, the Agent SDK's own, or one on the path."""
    if options.program is not None:
        if not options.program.is_file():
            raise ProgramMissing(
                f"there is no claude program at {options.program}",
                hint="correct the option `program`, or leave it out",
            )
        return options.program.absolute()
    own = Path(claude_agent_sdk.__file__).with_name("_bundled") / "claude"
    found = str(own) if own.is_file() else shutil.which("claude", path=options.path)
    if found is None:
        raise ProgramMissing()
    return Path(found)


async def _user_message(text: str, uuid: str) -> AsyncIterator[dict[str, Any]]:
    yield {
        "type": "user",
        "message": {"role": "user", "content": text},
        "parent_tool_use_id": None,
        "uuid": uuid,
    }
