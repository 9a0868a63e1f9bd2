"""The options of a session: model, tools, permissions and limits.

`session_options` makes the `SessionOptions` of a run from the settings and the session's `OptionOverrides`, which
come from a command line and are kept in the session's record.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

from pydantic import TypeAdapter, ValidationError

from midwatch.errors import SettingsError
from midwatch.model import Json
from midwatch.provider import ApiAccess as ApiAccess
from midwatch.provider import access_of
from midwatch.session.errors import KeyRefused, SessionRefused
from midwatch.settings import DEFAULT_MODEL, GitCredentialSettings, SessionSettings
from midwatch.units import check_url
from midwatch.workspace.environment import Credential, GitEnvironment

PermissionMode = Literal[
    "default", "acceptEdits", "plan", "dontAsk", "bypassPermissions", "auto"
]
Effort = Literal["low", "medium", "high", "xhigh", "max"]
SandboxMode = Literal["auto", "on", "off"]
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Client(Protocol):
    """How the API is reached: `ApiAccess`, or a client of the Anthropic SDK.

    Clients are `anthropic.Anthropic`, `AnthropicBedrock`, `AnthropicVertex` and their asynchronous forms.
    """

    @property
    def base_url(self) -> object: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a session. None is no limit.

    Attributes:
        wall: Seconds of one run.
        idle: Seconds without any event during a turn.
        mail_idle: Seconds without a message between turns; then an interactive session stops (reason `idle`).
        max_turns: Calls of the API in one turn.
        max_usd: US dollars of the whole session.
        retries: Retries of a failed call of the API.
        permission_wait: Seconds to wait for the answer to a permission request; then it is denied.
        grace: Seconds that a turn gets to end after a stop.
        line_bytes: The longest line of the program's output, in bytes.
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
    """A subagent that Claude may delegate work to.

    Attributes:
        description: When Claude should use it.
        prompt: Its instructions.
        tools: Its tools; None is all of them.
        model: Its model; None is that of the session.
    """

    description: str
    prompt: str
    tools: tuple[str, ...] | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How Claude works in a session.

    Attributes:
        fallback_model: The model to use while `model` is overloaded.
        effort: The effort of the model; None is its default.
        permission_mode: The permission mode of Claude Code.
        allowed_tools: Tools that need no permission, such as `Bash(git log:*)`.
        denied_tools: Tools that Claude cannot use.
        mcp_servers: MCP servers by name, as the Agent SDK defines them.
        system_prompt_addition: Text appended to the system prompt of Claude Code.
        trust_repository: Load the repository's own `.claude` settings, hooks, CLAUDE.md and `.mcp.json`.
            They can run any command.
        sandbox: "auto" runs Bash in a sandbox where one works (`permissions.find_sandbox` tries it); "on" fails
            where none does; "off" uses none.
        verbatim: Deliver prompts unchanged: `@file` and slash commands in them have no effect.
        path: The `PATH` of the program.
        home: The home folder of the program; None is an empty folder of the session.
        variables: Additional environment variables of the program.
        program: The claude program; None is the one of the Agent SDK.
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


# ------------------------------------------------------------------ from settings and overrides


@dataclass(frozen=True, slots=True)
class OptionOverrides:
    """Options of one session that override the settings. None and an empty tuple override nothing.

    The session's record has the same field names.

    Attributes:
        trust: Overrides `trust_repository`.
        wall: Seconds; overrides the limit of one run. `idle` likewise.
        allow: Tools that need no permission, in addition to those of the settings.
        deny: Tools that Claude cannot use, in addition to those of the settings.
    """

    model: str | None = None
    trust: bool | None = None
    sandbox: SandboxMode | None = None
    max_turns: int | None = None
    max_usd: float | None = None
    wall: float | None = None
    idle: float | None = None
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def over(self, earlier: OptionOverrides) -> OptionOverrides:
        """Return these overrides on top of those of an earlier run."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        changes = {n: v for n, v in given.items() if v is not None and v != ()}
        return replace(earlier, **changes)

    def to_json(self) -> Json:
        """Return the fields that are not None."""
        return {
            name: value for name, value in asdict(self).items() if value is not None
        }

    @classmethod
    def from_json(cls, document: object) -> OptionOverrides:
        """Return the overrides in a record; no overrides if it is not valid."""
        try:
            return _OVERRIDES.validate_python(document or {})
        except ValidationError:
            return cls()


@dataclass(frozen=True, slots=True)
class PullRequestsAsked:
    """That a session's changes are to become pull requests once it is Completed. Its record has it until that is done.

    Attributes:
        by: Who asked for it.
        new: Whether another one is opened where the ticket's last one was merged or closed.
        retry_at: When a daemon tries again; None before its first try.
    """

    KEY: ClassVar[str] = "pull_requests"

    by: str
    new: bool = False
    retry_at: datetime | None = None

    def to_json(self) -> Json:
        """Return it as plain data."""
        document: Json = _ASKED.dump_python(self, mode="json")
        return document

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> PullRequestsAsked | None:
        """Return what the options of a session's record say; None where nothing is left to do, or it is not valid."""
        try:
            document = options.get(cls.KEY)
            return None if document is None else _ASKED.validate_python(document)
        except ValidationError:
            return None


_ASKED: TypeAdapter[PullRequestsAsked] = TypeAdapter(PullRequestsAsked)
_OVERRIDES: TypeAdapter[OptionOverrides] = TypeAdapter(OptionOverrides)


def session_options(
    settings: SessionSettings,
    overrides: OptionOverrides | None = None,
    spent: float = 0.0,
) -> SessionOptions:
    """Return the options of a run.

    Args:
        settings: The settings of all sessions.
        overrides: The overrides of this session.
        spent: US dollars that the session has spent on other machines.
    """
    chosen = overrides or OptionOverrides()
    max_usd = chosen.max_usd or settings.max_usd
    trust = settings.trust_repository if chosen.trust is None else chosen.trust
    return SessionOptions(
        model=chosen.model or settings.model,
        fallback_model=settings.fallback_model,
        effort=settings.effort,
        permission_mode=settings.permission_mode,
        allowed_tools=(*settings.allowed_tools, *chosen.allow),
        denied_tools=(*settings.denied_tools, *chosen.deny),
        mcp_servers=settings.mcp_servers,
        subagents={
            name: SubagentSpec(
                one.description,
                one.prompt,
                None if one.tools is None else tuple(one.tools),
                one.model,
            )
            for name, one in settings.subagents.items()
        },
        trust_repository=trust,
        sandbox=chosen.sandbox or settings.sandbox,
        limits=Limits(
            wall=chosen.wall or settings.wall,
            idle=chosen.idle or settings.idle,
            max_turns=chosen.max_turns or settings.max_turns,
            max_usd=None if max_usd is None else max(max_usd - spent, 0.0),
            retries=settings.retries,
            permission_wait=settings.permission_wait,
        ),
        variables=settings.variables,
    )


def git_environment(
    settings: SessionSettings, environ: Mapping[str, str]
) -> GitEnvironment:
    """Return the environment of git: variables of `environ` and the tokens that the settings name.

    Raises SettingsError for a missing token.
    """
    tokens = [
        Credential(
            one.host, _token(one, environ, f"sessions.git[{number}]"), one.username
        )
        for number, one in enumerate(settings.git)
    ]
    return GitEnvironment.from_environ(environ, tokens)


def _token(one: GitCredentialSettings, environ: Mapping[str, str], path: str) -> str:
    if (one.token_variable is None) == (one.token_file is None):
        raise SettingsError(
            "needs either token_variable or token_file",
            path=path,
            hint="name a variable or a file that holds the token",
        )
    if one.token_variable is not None:
        token = environ.get(one.token_variable, "").strip()
        problem = f"the environment has no {one.token_variable}"
    else:
        assert one.token_file is not None
        try:
            token = one.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"cannot read {one.token_file}: {error}", path=f"{path}.token_file"
            ) from error
        problem = f"{one.token_file} is empty"
    if not token:
        raise SettingsError(
            problem, path=path, hint=f"set it to the token for {one.host}"
        )
    return token


# ------------------------------------------------------------------ checks before a start

MAX_PROMPT = 500_000
"""Bytes of a prompt. The outbox would cut a longer one."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MODEL = re.compile(r"[^\W_][!-~]{0,199}")
_KEY = re.compile(r"[!-~]{1,4000}")


def check_id(id: str) -> str:
    """Return the id if it can name a session and its folder. Raises SessionRefused."""
    if not _ID.fullmatch(id):
        raise SessionRefused(
            f"{id[:100]!r} cannot be the id of a session",
            hint="use up to 100 letters, digits, dots, dashes and underscores, a letter or digit first",
        )
    return id


def _is_url(text: str) -> bool:
    try:
        return bool(check_url(text))
    except ValueError:
        return False


def check_access(client: Client) -> ApiAccess:
    """Return how a client reaches the API. Raises KeyRefused, without the key in its text."""
    if isinstance(client, type) or not hasattr(client, "base_url"):
        raise SessionRefused(
            f"the client is of the type {type(client).__name__}",
            hint="give a client such as anthropic.Anthropic(api_key=…), or ApiAccess",
        )
    access = access_of(client)
    if access.base_url and not _is_url(access.base_url):
        raise SessionRefused(
            "the address of the API is not a URL of http or https",
            hint="set ANTHROPIC_BASE_URL, or the `base_url` of the client, to one such as https://gateway.example",
        )
    if not access.has_credentials:
        raise KeyRefused("there is no API key", hint="set ANTHROPIC_API_KEY")
    invalid = "contains spaces, line breaks or other invalid characters"
    if access.api_key and not _KEY.fullmatch(access.api_key):
        raise KeyRefused(
            f"the API key {invalid}",
            hint="set ANTHROPIC_API_KEY to the key as the Anthropic console shows it",
        )
    if access.auth_token and not _KEY.fullmatch(access.auth_token):
        raise KeyRefused(
            f"the token of the gateway {invalid}",
            hint="set ANTHROPIC_AUTH_TOKEN to the token as the gateway shows it",
        )
    return replace(access, base_url=(access.base_url or "").rstrip("/") or None)


def check_prompt(text: str) -> None:
    """Raise SessionRefused for a prompt that is empty or too long."""
    if not isinstance(text, str):
        raise SessionRefused(
            f"the prompt is of the type {type(text).__name__}", hint="give a text"
        )
    if not text.strip():
        raise SessionRefused("the prompt is empty", hint="describe the task")
    if len(text.encode("utf-8", "replace")) > MAX_PROMPT:
        raise SessionRefused(
            f"the prompt is longer than {MAX_PROMPT} bytes",
            hint="put the long part into a file of the workspace and name the file in the prompt",
        )


def check_main(paths: Sequence[Path], main: int) -> None:
    """Raise SessionRefused if the workspace has no repository of this index."""
    if not paths:
        raise SessionRefused(
            "the workspace has no folder", hint="name at least one folder"
        )
    if type(main) is not int or not 0 <= main < len(paths):
        raise SessionRefused(
            f"main repository {main!r} does not exist",
            hint=f"choose from 0 to {len(paths) - 1}",
        )


def check_folders(paths: Sequence[Path]) -> None:
    """Raise SessionRefused for a folder that does not exist or cannot be read."""
    for path in paths:
        try:
            next(path.iterdir(), None)
        except OSError as error:
            raise SessionRefused(
                f"the workspace {path} cannot be used: {error.strerror}",
                hint="name a folder that exists and is readable, or create it with setup_workspace",
            ) from error


def check_options(options: SessionOptions) -> None:
    """Raise SessionRefused for a value that the program would silently ignore."""
    _one_of("sandbox", options.sandbox, get_args(SandboxMode))
    if options.effort is not None:
        _one_of("effort", options.effort, get_args(Effort))
    _one_of("permission_mode", options.permission_mode, get_args(PermissionMode))
    for name in ("model", "fallback_model"):
        value = getattr(options, name)
        if value is not None and not (
            isinstance(value, str) and _MODEL.fullmatch(value)
        ):
            raise SessionRefused(
                f"{name} {value!r} is not the name of a model",
                hint="use one such as claude-sonnet-5-5",
            )
    for name in ("allowed_tools", "denied_tools"):
        _check_tools(name, getattr(options, name))
    for name, server in options.mcp_servers.items():
        _check_server(name, server)
    _check_limits(options.limits)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise SessionRefused(
            f"{name} {value!r} does not exist", hint=f"choose from {', '.join(allowed)}"
        )


def _check_tools(name: str, tools: object) -> None:
    """Raise SessionRefused for a text in place of a list: its letters would be tools."""
    if not isinstance(tools, (tuple, list)) or not all(
        isinstance(tool, str) and tool.strip() for tool in tools
    ):
        raise SessionRefused(
            f"{name} is {tools!r:.100}", hint='give a tuple of tools, such as ("Bash",)'
        )


def _check_server(name: str, server: Mapping[str, Any]) -> None:
    hint = "give it a `command`, or a `type` and a `url`, as JSON values"
    if not any(isinstance(server.get(way), str) for way in ("command", "url")):
        raise SessionRefused(
            f"MCP server {name!r} has neither a command nor a URL", hint=hint
        )
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
                f"{value} is not valid for the limit `{name}`",
                hint=f"use a number of at least {minimum:g}",
            )
