"""What a session may do, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from midwatch.settings import DEFAULT_MODEL

PermissionMode = Literal[
    "default", "acceptEdits", "plan", "dontAsk", "bypassPermissions", "auto"
]
Effort = Literal["low", "medium", "high", "xhigh", "max"]
SandboxWish = Literal["auto", "on", "off"]
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
    sandbox: SandboxWish = "auto"
    verbatim: bool = True
    limits: Limits = field(default_factory=Limits)
    path: str = DEFAULT_PATH
    home: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    program: Path | None = None
