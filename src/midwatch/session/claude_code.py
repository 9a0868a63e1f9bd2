"""The claude program: its launcher and environment, its options, and one run of it in a conversation.

The Agent SDK passes all of the runner's environment on to the program that it starts. So it starts a small
script instead, which drops that environment and runs `supervisor.py`; that one starts the program with the
variables of a plan, and passes the API key through a pipe. Bash in the session sees no key: the program
reads the pipe once, and neither an environment, an argument nor a file has the key. What else is secret stays in
this process, behind `relay.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import shlex
import shutil
import signal
import stat
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from midwatch.session.errors import (
    ProgramCrashed,
    ProgramMissing,
    ProgramRefused,
)

try:
    import claude_agent_sdk
except ImportError as error:
    raise ProgramMissing("the Claude Agent SDK is not installed") from error

from claude_agent_sdk import (
    AgentDefinition,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    PermissionResultAllow,
    PermissionResultDeny,
    ToolPermissionContext,
    project_key_for_directory,
)
from claude_agent_sdk.types import CanUseTool, SessionStore

from midwatch.files import UnusableFile, read_regular, write_new
from midwatch.lifecycle import cancel, set_nondumpable
from midwatch.provider import ApiAccess
from midwatch.session.events import ModelUsage
from midwatch.session.log import map_disk_error
from midwatch.session.options import SessionOptions
from midwatch.session.permissions import program_rules
from midwatch.session.supervisor import start_time
from midwatch.session.transcripts import Mirror, RequestCounter
from midwatch.session.translate import (
    PermissionDecision,
    PermissionRequested,
    ProgramEnded,
    Signal,
    Translator,
    TurnEnded,
    map_program_error,
)
from midwatch.session_ancestry import MARK
from midwatch.workspace.mount_points import hide_mount_points

# The SDK's logs are reported as events and errors; without a handler they would go to stderr.
logging.getLogger("claude_agent_sdk").addHandler(logging.NullHandler())

GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL for the program; it takes some 20 ms where nothing hangs."""
_MAX_RECORD = 10_000  # bytes
_SUPERVISOR = Path(__file__).with_name("supervisor.py")


@dataclass(frozen=True, slots=True)
class Launcher:
    """The files of one start. The Agent SDK runs `script` in place of the program."""

    script: Path
    plan: Path
    key_pipe: Path
    record: Path
    mcp_servers: Path

    @classmethod
    def in_folder(cls, folder: Path) -> Launcher:
        return cls(
            folder / "claude",
            folder / "plan",
            folder / "key",
            folder / "processes",
            folder / "mcp.json",
        )

    @contextlib.contextmanager
    def ready(
        self,
        program: Path,
        env: Mapping[str, str],
        key: str,
        servers: Mapping[str, Any],
    ) -> Iterator[None]:
        """Let `script` be started, once, while the block runs. Raises DiskFull and FolderUnusable.

        The MCP servers' settings may hold tokens: they are in a file, not among the arguments. This process has
        the key: from now on its memory and environment are closed to the program, which runs as the same user.
        """
        set_nondumpable()
        try:
            self._write(program, env)
            settings = json.dumps({"mcpServers": dict(servers)})
            write_new(self.mcp_servers, settings.encode())
            pipe = self._open_pipe(key)
        except OSError as error:
            raise map_disk_error(error, self.plan) from error
        try:
            yield
        finally:
            os.close(pipe)
            self.key_pipe.unlink(missing_ok=True)
            self.mcp_servers.unlink(missing_ok=True)

    def _write(self, program: Path, env: Mapping[str, str]) -> None:
        self.record.unlink(missing_ok=True)
        texts = [
            str(program),
            str(self.record),
            str(self.key_pipe),
            str(os.getpid()),
            str(GRACE),
            *(f"{name}={value}" for name, value in env.items()),
        ]
        plan = "".join(f"{text}\0" for text in texts)
        write_new(self.plan, plan.encode("utf-8", "surrogateescape"))
        words = [sys.executable, "-I", "-S", str(_SUPERVISOR), str(self.plan)]
        command = " ".join(shlex.quote(word) for word in words)
        script = f'#!/bin/sh\nexec /usr/bin/env -i {command} "$@"\n'
        write_new(self.script, script.encode(), 0o700)

    def _open_pipe(self, key: str) -> int:
        """Return the pipe with the key in it. The key stays there until it is read or the pipe is closed."""
        self.key_pipe.unlink(missing_ok=True)
        os.mkfifo(self.key_pipe, 0o600)
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        pipe = os.open(self.key_pipe, flags)
        line = bytearray(key.encode() + b"\n")
        try:
            if not stat.S_ISFIFO(os.fstat(pipe).st_mode):
                raise OSError(errno.EINVAL, "the pipe for the key was replaced")
            os.write(pipe, line)
        except OSError:
            os.close(pipe)
            raise
        finally:
            line[:] = bytes(len(line))
        return pipe

    def processes(self) -> list[int]:
        """Return the pids of the program and of its supervisor, of those that still run."""
        try:
            lines = read_regular(self.record, _MAX_RECORD).decode().splitlines()
        except (FileNotFoundError, UnusableFile, UnicodeDecodeError):
            return []
        listed = [line.partition(" ") for line in lines]
        return [
            int(pid)
            for pid, _, at in listed
            if pid.isdigit() and at and start_time(int(pid)) == at
        ]

    def terminate(self) -> None:
        """Ask the supervisor to end the program now."""
        for pid in self.processes()[-1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def reap(self, timeout: float = GRACE + 2) -> int:
        """End the processes that an earlier run left behind. Return how many there were.

        Only a process whose pid and start time are those in the record is touched. Blocks up to `timeout` seconds.
        """
        left = self.processes()
        self.terminate()
        until = time.monotonic() + timeout
        while self.processes() and time.monotonic() < until:
            time.sleep(0.02)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(left)


# ------------------------------------------------------------------ the environment

_FIXED = {
    "LANG": "C.UTF-8",
    "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
    "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS": "1",
    # The program connects to the Messages API only, and installs and updates nothing.
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
}


def program_environment(
    options: SessionOptions,
    *,
    config: Path,
    home: Path,
    cwd: Path,
    network: Mapping[str, str],
    resume_turn: bool,
) -> dict[str, str]:
    """Return all variables of the program. The caller's own come last, so they may replace any but the mark of a session.

    `network` has those of the API, of proxies and of certificates.

    Raises ProgramRefused for a variable that no environment can hold.
    """
    env = {
        **_FIXED,
        "PATH": options.path,
        "HOME": str(options.home or home),
        "PWD": str(cwd),
        "CLAUDE_CONFIG_DIR": str(config),
        "CLAUDE_CODE_MAX_RETRIES": str(options.limits.retries),
    }
    env |= network
    if (
        options.mcp_servers
    ):  # wait for them, or the first turn does not have their tools
        env["MCP_CONNECTION_NONBLOCKING"] = "0"
    if resume_turn:
        env["CLAUDE_CODE_RESUME_INTERRUPTED_TURN"] = "1"
    env |= {**options.variables, MARK: "1"}
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value or not _encodable(value):
            raise ProgramRefused(f"{name!r} cannot be a variable with its value")
    return env


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


# ------------------------------------------------------------------ the program


@dataclass(frozen=True, slots=True)
class Conversation:
    """Which conversation of the program a run continues.

    Attributes:
        id: A UUID.
        resumed: Whether the transcript is in the program's folder.
        spent: The usage that the transcript records. The program adds to it.
        resume_turn: Whether the last turn was cut off. The program then continues it without a prompt.
        fork_of: The conversation that this one starts as a copy of.
    """

    id: str
    resumed: bool = False
    spent: Mapping[str, ModelUsage] = field(default_factory=dict)
    resume_turn: bool = False
    fork_of: str | None = None


def sdk_options(
    options: SessionOptions,
    conversation: Conversation,
    *,
    script: Path,
    cwd: Path,
    directories: Sequence[Path],
    sandbox: bool,
    config: Path,
    mcp_file: Path,
    max_usd: float | None,
    ask: CanUseTool,
    store: Mirror | None,
    on_stderr: Callable[[str], None],
) -> ClaudeAgentOptions:
    """Return the options of the Agent SDK for a session, without the environment, which the launcher sets."""
    trusted = options.trust_repository
    return ClaudeAgentOptions(
        cli_path=script,
        cwd=cwd,
        add_dirs=list(directories),
        # The SDK computes from this where transcripts are; the program gets it from the plan.
        env={"CLAUDE_CONFIG_DIR": str(config)},
        system_prompt=_system_prompt(options),
        model=options.model,
        fallback_model=options.fallback_model,
        effort=options.effort,
        permission_mode=options.permission_mode,
        disallowed_tools=list(options.denied_tools),
        mcp_servers=mcp_file if options.mcp_servers else {},
        strict_mcp_config=not trusted,
        setting_sources=["project", "local"] if trusted else [],
        settings=json.dumps(_settings(options, sandbox)),
        agents=_agents(options),
        max_turns=options.limits.max_turns,
        max_budget_usd=max_usd,
        max_buffer_size=options.limits.line_bytes,
        can_use_tool=None if options.permission_mode == "bypassPermissions" else ask,
        stderr=on_stderr,
        verbatim_prompts=options.verbatim,
        forward_subagent_text=True,
        resume=conversation.id if conversation.resumed else conversation.fork_of,
        fork_session=conversation.fork_of is not None,
        session_id=None if conversation.resumed else conversation.id,
        session_store=cast(SessionStore | None, store),
        session_store_flush="eager",
    )


def _system_prompt(options: SessionOptions) -> Any:
    preset: dict[str, Any] = {"type": "preset", "preset": "claude_code"}
    if options.system_prompt_addition:
        preset["append"] = options.system_prompt_addition
    return preset


def _settings(options: SessionOptions, sandbox: bool) -> dict[str, Any]:
    """Return the settings of the program.

    The SDK's own sandbox option would drop `failIfUnavailable`, and its `allowed_tools` prints a warning
    in a session that can ask for permissions.
    """
    settings: dict[str, Any] = {}
    if allowed := program_rules(options, sandbox):
        settings["permissions"] = {"allow": allowed}
    if sandbox:
        settings["sandbox"] = {
            "enabled": True,
            "failIfUnavailable": True,
            "allowUnsandboxedCommands": False,
        }
    return settings


def _agents(options: SessionOptions) -> dict[str, AgentDefinition] | None:
    if not options.subagents:
        return None
    return {
        name: AgentDefinition(
            description=spec.description,
            prompt=spec.prompt,
            tools=list(spec.tools) if spec.tools is not None else None,
            model=spec.model,
        )
        for name, spec in options.subagents.items()
    }


_STDERR_LINES = 20
_INTERRUPT_TIMEOUT = 5.0  # seconds to wait for the answer to an interrupt


@dataclass(frozen=True, slots=True)
class ProgramPaths:
    """The folders of the program. `folder` is private to the session, outside of the agent's workspace."""

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
    """The program in one conversation. Its messages are passed to `put`, as signals.

    It is started once and closed once. `start`, `send` and `interrupt` raise the errors of a session.
    """

    def __init__(
        self,
        options: SessionOptions,
        paths: ProgramPaths,
        conversation: Conversation,
        put: Callable[[Signal], None],
        *,
        sandbox: bool,
        permissions: str = "",
        max_usd: float | None = None,
        store: Mirror | None = None,
    ) -> None:
        self._options = options
        self._paths = paths
        self._conversation = conversation
        self._put = put
        self._sandbox = sandbox
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._translator = Translator(conversation.spent, sandbox, permissions, max_usd)
        self._requests = RequestCounter(
            transcript_file(paths.config, paths.cwd, conversation.id)
        )
        self._reader: asyncio.Task[None] | None = None
        self._stack = contextlib.AsyncExitStack()
        self._closing = False
        self._client = ClaudeSDKClient(
            sdk_options(
                options,
                conversation,
                script=paths.launcher.script,
                cwd=paths.cwd,
                directories=paths.directories,
                sandbox=sandbox,
                config=paths.config,
                mcp_file=paths.launcher.mcp_servers,
                max_usd=max_usd,
                ask=self._ask,
                store=store,
                on_stderr=self._stderr.append,
            )
        )

    async def start(self, access: ApiAccess) -> None:
        """Start the program and wait until it answers."""
        program = find_program(self._options)
        key, network = access.api_key or "", access.plain_variables()
        if access.needs_relay:
            from midwatch.session.relay import Relay  # its client is slow to import

            relay = await self._stack.enter_async_context(Relay(access))
            network = relay.variables()
            key = relay.token if access.has_secrets else key
        env = program_environment(
            self._options,
            config=self._paths.config,
            home=self._paths.home,
            cwd=self._paths.cwd,
            network=network,
            resume_turn=self._conversation.resume_turn,
        )
        if self._sandbox:
            env = self._without_mount_points(env)
        servers = self._options.mcp_servers
        with self._paths.launcher.ready(program, env, key, servers):
            try:
                await self._client.connect()
            # The SDK raises a bare Exception where the program does not answer its first request.
            except Exception as error:
                raise map_program_error(error, self._stderr, running=False) from error
        self._reader = asyncio.create_task(self._listen(), name="claude program")

    def _without_mount_points(self, env: dict[str, str]) -> dict[str, str]:
        """Return `env` so that git in the session does not see the mount points of the sandbox."""
        paths, folder = self._paths, self._paths.launcher.plan.parent
        try:
            return hide_mount_points(folder, paths.cwd, paths.directories, env)
        except OSError as error:
            raise map_disk_error(error, folder) from error

    async def send(self, text: str, uuid: str) -> None:
        """Begin a turn. The program takes a uuid once, also over a resume."""
        try:
            await self._client.query(_user_message(text, uuid))
        except claude_agent_sdk.ClaudeSDKError as error:
            raise map_program_error(error, self._stderr, running=True) from error

    async def interrupt(self) -> None:
        """Ask the program to end the turn. An error or a timeout is ignored."""
        self._translator.interrupting = True
        # The SDK reports a refused or lost control request as a bare Exception.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_INTERRUPT_TIMEOUT):
                await self._client.interrupt()

    async def close(self, *, now: bool = False) -> None:
        """End the program and all its processes. With `now`, do not wait for it to finish by itself."""
        self._closing = True
        if now:
            self._paths.launcher.terminate()
        # Shielded: a cancelled clean-up of the SDK would leave processes behind.
        closing = asyncio.ensure_future(self._client.disconnect())
        try:
            await asyncio.shield(closing)
        finally:
            if self._reader is not None:
                await cancel(self._reader)
            await self._stack.aclose()

    async def _listen(self) -> None:
        try:
            async for message in self._client.receive_messages():
                for one in self._translator.signals(message):
                    self._put(self._counted(one))
            error: Exception = ProgramCrashed("the claude program ended by itself")
        # How the program ended decides what the SDK raises, also errors that are not its own.
        except Exception as raised:
            error = map_program_error(raised, self._stderr, running=True)
        for one in self._translator.held():
            self._put(one)
        if not self._closing:
            if isinstance(error, ProgramCrashed) and self._stderr:
                error = ProgramCrashed(f"{error.message}: {' '.join(self._stderr)}")
            self._put(ProgramEnded(error))  # type: ignore[arg-type]

    def _counted(self, one: Signal) -> Signal:
        if not isinstance(one, TurnEnded):
            return one
        result = replace(one.result, requests=self._requests.new())
        return replace(one, result=result)

    async def _ask(
        self, tool: str, arguments: dict[str, Any], context: ToolPermissionContext
    ) -> PermissionResultAllow | PermissionResultDeny:
        answer: asyncio.Future[PermissionDecision] = (
            asyncio.get_running_loop().create_future()
        )
        request_id = context.tool_use_id or f"ask-{id(answer):x}"
        self._put(PermissionRequested(request_id, tool, arguments, answer))
        decision = await answer
        if decision.allowed:
            return PermissionResultAllow()
        return PermissionResultDeny(message=decision.message or "Permission denied.")


def find_program(options: SessionOptions) -> Path:
    """Return the path of the claude program: the configured one, the Agent SDK's own, or one on the path.

    Raises ProgramMissing.
    """
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


def transcript_file(config: Path, cwd: Path, conversation: str) -> Path:
    """Return the file in which the program keeps the transcript of a conversation."""
    return (
        config / "projects" / project_key_for_directory(cwd) / f"{conversation}.jsonl"
    )
