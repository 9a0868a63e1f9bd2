"""The shared options of `midwatch session`, and the parsing of their values."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from midwatch.errors import SettingsError
from midwatch.units import parse_duration

if TYPE_CHECKING:
    from midwatch.session.options import OptionOverrides
    from midwatch.workspace.plan import RepoSpec

MAX_PROMPT = 400_000
"""Characters; a line of the outbox has room for them."""

Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a session.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
PromptText = Annotated[
    str | None,
    typer.Option("--prompt", "-p", help="The task: TEXT, @FILE, or - for stdin."),
]
PushBranch = Annotated[
    str | None,
    typer.Option(
        "--push-branch", help="Branch to push to (default: the session's own)."
    ),
]


class SandboxName(StrEnum):
    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True)
class RunOptions:
    """The options of `run`, `resume`, `fork` and `fix`; `with_run_options` adds them to a command."""

    interactive: Annotated[
        bool,
        typer.Option("--interactive", "-i", help="Stay open and read the mailbox."),
    ] = False
    push: Annotated[
        bool,
        typer.Option("--push", help="Push the changes once the session is Completed."),
    ] = False
    push_branch: PushBranch = None
    model: Annotated[str | None, typer.Option(help="The model to use.")] = None
    trust: Annotated[
        bool | None,
        typer.Option(
            "--trust-repo/--no-trust-repo",
            help="Load the repositories' own .claude settings, hooks and .mcp.json.",
            show_default=False,
        ),
    ] = None
    sandbox: Annotated[
        SandboxName | None,
        typer.Option(help="Run Bash in a sandbox; auto: where one is available."),
    ] = None
    max_turns: Annotated[
        int | None, typer.Option(min=1, help="Limit of API calls in one turn.")
    ] = None
    max_usd: Annotated[
        float | None,
        typer.Option(min=0.0001, help="Limit of US dollars for the whole session."),
    ] = None
    timeout: Annotated[
        str | None,
        typer.Option("--timeout", help="Time limit of the run, such as 30m."),
    ] = None
    idle_timeout: Annotated[
        str | None,
        typer.Option("--idle-timeout", help="Time limit without any event in a turn."),
    ] = None
    allow_tool: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-tool", help="A tool that needs no permission; repeatable."
        ),
    ] = None
    deny_tool: Annotated[
        list[str] | None,
        typer.Option("--deny-tool", help="A tool that Claude cannot use; repeatable."),
    ] = None
    as_json: AsJson = False

    def overrides(self) -> OptionOverrides:
        """Return the options that override settings. Raises SettingsError for an invalid duration."""
        from midwatch.session.options import OptionOverrides

        return OptionOverrides(
            model=self.model,
            trust=self.trust,
            sandbox=None if self.sandbox is None else self.sandbox.value,
            max_turns=self.max_turns,
            max_usd=self.max_usd,
            wall=_duration(self.timeout, "--timeout"),
            idle=_duration(self.idle_timeout, "--idle-timeout"),
            allow=tuple(self.allow_tool or ()),
            deny=tuple(self.deny_tool or ()),
        )


def with_run_options(
    *left_out: str,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's parameter `options` by one option for each field of RunOptions.

    Args:
        left_out: Fields that are not options of the command; they have their defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        offered = [one for one in fields(RunOptions) if one.name not in left_out]
        group = get_type_hints(RunOptions, include_extras=True)
        own = get_type_hints(command, include_extras=True)
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            parameter.replace(annotation=own[parameter.name], kind=keyword)
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name != "options"
        ]
        parameters += [
            inspect.Parameter(
                one.name, keyword, default=one.default, annotation=group[one.name]
            )
            for one in offered
        ]

        @functools.wraps(command)
        def wrapped(**given: Any) -> None:
            chosen = {one.name: given.pop(one.name) for one in offered}
            command(options=RunOptions(**chosen), **given)

        # What Typer reads; `wraps` points it at the command itself.
        described: Any = wrapped
        del described.__wrapped__
        described.__signature__ = inspect.Signature(parameters)
        described.__annotations__ = {one.name: one.annotation for one in parameters}
        return wrapped

    return decorate


# ------------------------------------------------------------------ texts


def parse_option(
    text: str | None, parse: Callable[[str], float], option: str
) -> float | None:
    """Return the value of an option, None if it is not given. Raises SettingsError."""
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise SettingsError(str(error), path=option) from None


def _duration(text: str | None, option: str) -> float | None:
    seconds = parse_option(text, parse_duration, option)
    if seconds is not None and seconds <= 0:
        raise SettingsError("must be longer than 0 seconds", path=option)
    return seconds


def parse_repository(text: str, push_branch: str | None = None) -> RepoSpec:
    """Return the repository in `URL[@BRANCH]`; see `RepoSpec.parse`.

    Raises WorkspaceRefused for a URL that is not valid, before anything is recorded: it may contain a password.
    """
    from midwatch.workspace.plan import RepoSpec

    spec = RepoSpec.parse(text)
    return replace(spec, url=spec.remote.url, push_branch=push_branch)


def parse_repositories(
    texts: Sequence[str], push_branch: str | None
) -> tuple[RepoSpec, ...]:
    """Return the repositories of `--repo`, all with the same push branch."""
    return tuple(parse_repository(one, push_branch) for one in texts)


def read_prompt(text: str) -> str:
    """Return a prompt: TEXT, the content of `@FILE`, or standard input for `-`. Raises SettingsError."""
    if text == "-":
        prompt = sys.stdin.read(MAX_PROMPT + 1)
    elif text.startswith("@"):
        prompt = _read(Path(text[1:]))
    else:
        prompt = text
    if not prompt.strip():
        raise SettingsError("is empty", path="--prompt", hint="describe the task")
    if len(prompt) > MAX_PROMPT:
        raise SettingsError(
            f"is longer than {MAX_PROMPT} characters",
            path="--prompt",
            hint="put the text into a file of a repository and name the file in the prompt",
        )
    return prompt


def read_first_prompt(text: str | None, interactive: bool) -> str | None:
    """Return the prompt of a new session. Only an interactive session needs none."""
    if text is None and not interactive:
        raise SettingsError("is missing", path="--prompt", hint="describe the task")
    return None if text is None else read_prompt(text)


def _read(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as opened:
            return opened.read(MAX_PROMPT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {file}: {error}", path="--prompt") from None
