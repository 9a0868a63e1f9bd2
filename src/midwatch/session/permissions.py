"""What a session may do without asking: the sandbox of Bash, which is tried before it is relied on, and the rule in words.

A sandbox is one that starts: bubblewrap on the path may still be refused by the kernel, AppArmor, the capabilities
of the process or the container around it. So `find_sandbox` starts what the claude program would start around Bash.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from midwatch.errors import MidwatchError
from midwatch.session.errors import SandboxUnavailable
from midwatch.session.events import (
    DeniedCall,
    Event,
    Failure,
    Started,
    ToolResult,
    ToolUse,
)
from midwatch.session.options import SessionOptions
from midwatch.text import one_line
from midwatch.units import format_count

TRIAL_TIMEOUT = 10.0
"""Seconds for the trial of a sandbox, which takes some 20 ms."""
TOOLS_DENIED = "ToolsDenied"
"""The condition of a session in which a tool call was denied."""
EXIT_DENIED = 3
"""The exit code of `midwatch session run` for a Completed session in which a tool call was denied."""
_PROGRAMS = {"linux": ("bwrap", "socat", "bash"), "darwin": ("sandbox-exec",)}
_KERNEL_HINT = (
    "let this user make user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0 or "
    "kernel.unprivileged_userns_clone=1), start without inherited capabilities, or set sandbox to auto or off"
)


class ToolsDenied(MidwatchError):
    """A tool call was denied in a session that completed."""

    command_exit_code = EXIT_DENIED
    hint = (
        "allow the tool with `--allow-tool`, let Bash work in a sandbox, or use "
        "`--interactive` and answer the requests"
    )


# ------------------------------------------------------------------ the sandbox


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Whether Bash runs in a sandbox, and if not, why.

    Attributes:
        enabled: Whether a sandbox is wanted and works.
        problem: Why there is none; empty if there is one.
        hint: What to do about the problem.
    """

    enabled: bool
    problem: str = ""
    hint: str = ""


def find_sandbox(options: SessionOptions, timeout: float = TRIAL_TIMEOUT) -> Sandbox:
    """Return the sandbox of a session's Bash. A trial is made once per process and `PATH`.

    Blocks for the trial, at most `timeout` seconds. Raises SandboxUnavailable if the options require a
    sandbox and none works.
    """
    if options.sandbox == "off":
        return Sandbox(False, "it is turned off", "set sandbox to auto or on")
    found = _try_sandbox(options.variables.get("PATH", options.path), timeout)
    if not found.enabled and options.sandbox == "on":
        raise SandboxUnavailable(f"no sandbox: {found.problem}", hint=found.hint)
    return found


@functools.cache
def _try_sandbox(path: str, timeout: float) -> Sandbox:
    needed = _PROGRAMS.get(sys.platform)
    if needed is None:
        return Sandbox(False, f"there is none for {sys.platform}", "set sandbox to off")
    programs = {name: shutil.which(name, path=path) for name in needed}
    missing = [name for name, found in programs.items() if found is None]
    if missing:
        problem = f"{', '.join(missing)} not found on {path}"
        return Sandbox(False, problem, SandboxUnavailable.hint)
    found = [str(program) for program in programs.values()]
    problem = _problem_of(_LAUNCHES[sys.platform](found), path, timeout)
    return Sandbox(not problem, problem, _KERNEL_HINT if problem else "")


def _bubblewrap(programs: Sequence[str]) -> list[str]:
    """Return the command of program 2.1.330 around each Bash call, without the mounts of its folders."""
    bwrap, socat, bash = programs
    return [
        *(bwrap, "--new-session", "--die-with-parent", "--unshare-net"),
        *("--ro-bind", "/", "/", "--dev", "/dev", "--unshare-pid"),
        *("--unshare-user", "--cap-drop", "ALL", "--proc", "/proc"),
        *("--", bash, "-c", '"$1" -V >/dev/null', bash, socat),
    ]


def _seatbelt(programs: Sequence[str]) -> list[str]:
    return [*programs, "-p", "(version 1)(allow default)", "/usr/bin/true"]


_LAUNCHES: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "linux": _bubblewrap,
    "darwin": _seatbelt,
}


def _problem_of(command: Sequence[str], path: str, timeout: float) -> str:
    """Run a trial. Return why it failed, empty if it did not."""
    name = os.path.basename(command[0])
    try:
        done = subprocess.run(
            command,
            env={"PATH": path, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return f"{name} did not start within {timeout:g} s"
    except OSError as error:
        return f"{name} cannot be run: {error.strerror}"
    if done.returncode == 0:
        return ""
    said = one_line(done.stderr, 300)
    return said or f"{name} ended with exit code {done.returncode}"


_SAID_BY_SANDBOX = ("bwrap:", "apply-seccomp:", "sandbox-exec:")
_GIVEN_UP = "Sandbox is required (sandbox.failIfUnavailable)"
_AT_ONCE = 2


class SandboxWatch:
    """Detects a sandbox that stops to work while a session runs: no Bash call has run, each failed before its command.

    A trial cannot see everything: the mounts of a workspace may fail too. A command that uses bubblewrap itself
    is not counted.
    """

    def __init__(self) -> None:
        self._active = False
        self._commands: dict[str, str] = {}
        self._failures = 0
        self._worked = False
        self._problem = ""

    def observe(self, event: Event) -> None:
        """Take note of a Bash call or its result."""
        match event:
            case Started():
                self._active = event.sandbox
            case ToolUse(name="Bash") if self._active and not self._worked:
                self._commands[event.id] = str(event.input.get("command", ""))
            case ToolResult():
                command = self._commands.pop(event.tool_use_id, None)
                if command is not None and not _uses_sandbox(command):
                    self._result(event)

    def _result(self, result: ToolResult) -> None:
        if not result.is_error:
            self._worked = True
        elif problem := _sandbox_problem(result.text):
            self._failures += 1
            self._problem = problem
        elif result.text.startswith("Exit code"):
            self._worked = True  # the command ran, and failed

    def check(self, *, turn_ended: bool = False) -> None:
        """Raise SandboxUnavailable if Bash cannot work: after some failures in a row, or one in a turn that ended."""
        at_least = 1 if turn_ended else _AT_ONCE
        if not self._worked and self._failures >= at_least:
            raise SandboxUnavailable(
                f"the sandbox does not start, so no Bash call ran: {self._problem}",
                hint=_KERNEL_HINT,
            )


def _uses_sandbox(command: str) -> bool:
    return any(name in command for name in ("bwrap", "bubblewrap", "sandbox-exec"))


def _sandbox_problem(text: str) -> str:
    """Return why the sandbox did not start, if that is all that a result says; else an empty text."""
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and lines[0].startswith("Exit code"):
        lines = lines[1:]
    own = all(line.startswith(_SAID_BY_SANDBOX) for line in lines)
    if (lines and own) or _GIVEN_UP in text:
        return one_line(" ".join(lines), 300)
    return ""


# ------------------------------------------------------------------ the rule in words


def program_rules(options: SessionOptions, sandbox: bool) -> list[str]:
    """Return the tools that need no permission: those of the options, and Bash in a sandbox.

    In the mode `plan` nothing is to be changed, so Bash is not added there.
    """
    allowed = list(options.allowed_tools)
    if sandbox and options.permission_mode != "plan" and "Bash" not in allowed:
        allowed.append("Bash")
    return allowed


def describe_permissions(
    options: SessionOptions, sandbox: Sandbox, *, interactive: bool
) -> str:
    """Return one line that says what the session may do, and what becomes of the rest."""
    mode = options.permission_mode
    if mode == "bypassPermissions":
        return f"allowed: every tool, without a question{_where(sandbox)}{_forbidden(options)}"
    allowed = ["reading the workspace"]
    if mode == "acceptEdits":
        allowed.append("edits in the workspace")
    rules = program_rules(options, sandbox.enabled)
    forbidden = "Bash" in options.denied_tools
    rules = [rule for rule in rules if not forbidden or rule != "Bash"]
    bash = "Bash" in rules
    if bash:
        allowed.append(f"Bash{_where(sandbox)}")
    allowed += [one_line(rule, 80) for rule in rules if rule != "Bash"]
    rest = "asked for" if interactive and mode != "dontAsk" else "denied"
    others = "every other tool"
    if not bash and not forbidden:
        why = f" (no sandbox: {sandbox.problem})" if sandbox.problem else ""
        others = f"Bash that does more{why} and {others}"
    text = f"allowed: {', '.join(allowed)}; {rest}: {others}{_forbidden(options)}"
    return text + ("" if interactive else f"; {_more(bash or forbidden)}")


def _where(sandbox: Sandbox) -> str:
    return " in a sandbox" if sandbox.enabled else " without a sandbox"


def _forbidden(options: SessionOptions) -> str:
    tools = ", ".join(one_line(tool, 80) for tool in options.denied_tools)
    return f"; forbidden: {tools}" if tools else ""


def _more(bash: bool) -> str:
    return f"more with --allow-tool {'TOOL' if bash else 'Bash'}, or the setting `allowed_tools`"


def denied_line(denied: Sequence[DeniedCall], limit: int = 500) -> str:
    """Return denied calls on one line: `2 tool calls denied: Bash `pytest`, WebFetch`; empty without any."""
    if not denied:
        return ""
    calls = ", ".join(dict.fromkeys(one.one_line() for one in denied))
    count = format_count(len(denied), "tool call")
    return one_line(f"{count} denied: {calls}", limit)


def last_error(events: Sequence[Event]) -> str:
    """Return the last error in a session's events: of the session, or of a tool; empty without any."""
    for event in reversed(events):
        match event:
            case Failure():
                return event.message
            case ToolResult(is_error=True):
                return f"a tool failed: {one_line(event.text, 1000)}"
    return ""
