"""What a session may do, and for how long."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from midwatch.session.errors import KeyRefused, SessionRefused
from midwatch.settings import DEFAULT_MODEL

PermissionMode = Literal[
    "default", "acceptEdits", "plan", "dontAsk", "bypassPermissions", "auto"
]
Effort = Literal["low", "medium", "high", "xhigh", "max"]
SandboxMode = Literal["auto", "on", "off"]
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Client(Protocol):
    """Where Claude is and with which key: `anthropic.Anthropic` and `AsyncAnthropic` are such."""

    @property
    def api_key(self) -> str | None: ...
    @property
    def base_url(self) -> object: ...


@dataclass(frozen=True, slots=True)
class ApiAccess:
    """A key and an address without the Anthropic SDK; without a `base_url`, Anthropic's own."""

    api_key: str = field(repr=False)
    base_url: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Each one ends the session with its reason; None is no limit.

    `wall` and `idle` are seconds: of one run, and without any sign of life during a turn. `mail_idle`
    seconds without a message, between turns, stop an interactive session with the reason `idle`.
    `max_turns` counts calls of the API in one turn, `max_usd` dollars of the whole session.
    `retries` is how often the program tries a failed API call again. `permission_wait` seconds
    without an answer are a no. `grace` seconds are what a stop leaves to a turn. `line_bytes`
    bounds one line of the program's output.
    """

    wall: float | None = 3600.0
    idle: float | None = 900.0
    mail_idle: float | None = None
    max_turns: int | None = None
    max_usd: float | None = None
    retries: int = 6
    permission_wait: float = 300.0
    grace: float = 10.0
    line_bytes: int = 32_000_000


@dataclass(frozen=True, slots=True)
class SubagentSpec:
    """A subagent that Claude may give work to."""

    description: str
    prompt: str
    tools: tuple[str, ...] | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How Claude works in a session.

    `trust_repository` loads the repository's own `.claude` settings, hooks, CLAUDE.md and `.mcp.json`:
    they run what they say. `sandbox`: "auto" puts Bash in one where bubblewrap and socat are, "on"
    fails where they are not. `variables` are added to the environment that is built for the program;
    `home` is its home folder, by default an empty one of the session's own. `mcp_servers` are as
    the Agent SDK has them. `verbatim` delivers prompts as they are: no `@file` and no slash command
    in them has an effect. `program` is the claude program, by default the Agent SDK's own.
    """

    model: str = DEFAULT_MODEL
    fallback_model: str | None = None
    effort: Effort | None = None
    permission_mode: PermissionMode = "acceptEdits"
    allowed_tools: tuple[str, ...] = ()
    denied_tools: tuple[str, ...] = ()
    mcp_servers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    subagents: Mapping[str, SubagentSpec] = field(default_factory=dict)
    system_prompt_addition: str | None = None
    trust_repository: bool = False
    sandbox: SandboxMode = "auto"
    verbatim: bool = True
    limits: Limits = field(default_factory=Limits)
    path: str = DEFAULT_PATH
    home: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    program: Path | None = None


# ------------------------------------------------------------ checks
# What a session is asked for, refused before anything begins where it cannot be meant.

MAX_PROMPT = 500_000
"""Bytes of a prompt, as of a message of the inbox: a longer one would not be whole in the outbox."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MODEL = re.compile(r"[^\W_][!-~]{0,199}")
_KEY = re.compile(r"[!-~]{1,4000}")


def check_id(id: str) -> str:
    """A session's id, which is a name of a folder too. Raises SessionRefused."""
    if not _ID.fullmatch(id):
        raise SessionRefused(
            f"{id[:100]!r} cannot be the id of a session",
            hint="up to 100 letters, digits, dots, dashes and underscores",
        )
    return id


def check_access(client: Client) -> ApiAccess:
    """The key and the address of a client. Raises KeyRefused; it never repeats the key."""
    key = client.api_key
    if not key:
        raise KeyRefused("there is no API key", hint="set ANTHROPIC_API_KEY")
    if not _KEY.fullmatch(key):
        raise KeyRefused(
            "what was given as API key is none: it has blanks, line breaks or other odd characters",
            hint="check ANTHROPIC_API_KEY; it is one word, as the Anthropic console shows it",
        )
    base_url = str(client.base_url).rstrip("/") if client.base_url else None
    return ApiAccess(key, base_url)


def check_prompt(text: str) -> None:
    """Raises SessionRefused for a prompt that says nothing, or too much to be kept whole."""
    if not text.strip():
        raise SessionRefused("the prompt is empty", hint="say what Claude should do")
    if len(text.encode("utf-8", "replace")) > MAX_PROMPT:
        raise SessionRefused(
            f"the prompt is longer than {MAX_PROMPT} bytes",
            hint="put the long part into a file of the workspace, and name it in the prompt",
        )


def check_main(paths: Sequence[Path], main: int) -> None:
    """Raises SessionRefused where the workspace has no such repository."""
    if not paths:
        raise SessionRefused(
            "the workspace has no folder", hint="name at least one folder"
        )
    if not 0 <= main < len(paths):
        raise SessionRefused(
            f"main repository {main} does not exist",
            hint=f"choose from 0 to {len(paths) - 1}",
        )


def check_folders(paths: Sequence[Path]) -> None:
    """Whether Claude can work there; looks at the disk. Raises SessionRefused."""
    for path in paths:
        try:
            next(path.iterdir(), None)
        except OSError as error:
            raise SessionRefused(
                f"the workspace {path} cannot be used: {error.strerror}",
                hint="name a folder that exists and may be read, or make it with setup_workspace",
            ) from error


def check_options(options: SessionOptions) -> None:
    """Refuses what the program would pass over in silence. Raises SessionRefused."""
    _one_of("sandbox", options.sandbox, get_args(SandboxMode))
    if options.effort is not None:
        _one_of("effort", options.effort, get_args(Effort))
    for name in ("model", "fallback_model"):
        value = getattr(options, name)
        if value is not None and not _MODEL.fullmatch(value):
            raise SessionRefused(f"{name} {value!r} is no name of a model")
    for name, server in options.mcp_servers.items():
        _check_server(name, server)
    _check_limits(options.limits)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise SessionRefused(
            f"{name} {value!r} does not exist", hint=f"choose from {', '.join(allowed)}"
        )


def _check_server(name: str, server: Mapping[str, Any]) -> None:
    hint = "give it a `command`, or a `type` and a `url`, with plain values"
    if not any(isinstance(server.get(way), str) for way in ("command", "url")):
        raise SessionRefused(f"no way to reach the MCP server {name!r}", hint=hint)
    try:
        json.dumps(dict(server))
    except (TypeError, ValueError) as error:
        raise SessionRefused(f"MCP server {name!r}: {error}", hint=hint) from error


def _check_limits(limits: Limits) -> None:
    least = {
        "wall": 0.0,
        "idle": 0.0,
        "mail_idle": 0.0,
        "max_turns": 1,
        "max_usd": 0.0,
        "retries": 0,
        "permission_wait": 0.0,
        "grace": 0.0,
        "line_bytes": 1,
    }
    for name, minimum in least.items():
        value = getattr(limits, name)
        if value is not None and not minimum <= value < math.inf:
            raise SessionRefused(
                f"the limit `{name}` cannot be {value}",
                hint=f"give a number from {minimum:g} on",
            )
