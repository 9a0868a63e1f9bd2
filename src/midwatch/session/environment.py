"""The environment of the claude program, built from a list; and whether a sandbox can be."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from midwatch.session.errors import ProgramRefused, SandboxUnavailable
from midwatch.session.options import SessionOptions

_FIXED = {
    "LANG": "C.UTF-8",
    "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
    "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS": "1",
    # Nothing but the Messages API is talked to, and nothing is installed or updated.
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
}


def program_environment(
    options: SessionOptions,
    *,
    config: Path,
    home: Path,
    cwd: Path,
    base_url: str | None,
    resume_turn: bool,
) -> dict[str, str]:
    """All variables of the program. The caller's own come last, so they may replace any.

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
    if base_url:
        env["ANTHROPIC_BASE_URL"] = base_url
    if (
        options.mcp_servers
    ):  # wait for them, or the first turn does not have their tools
        env["MCP_CONNECTION_NONBLOCKING"] = "0"
    if resume_turn:
        env["CLAUDE_CODE_RESUME_INTERRUPTED_TURN"] = "1"
    env |= options.variables
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


def sandbox_wanted(options: SessionOptions) -> bool:
    """Whether Bash will run in a sandbox. Raises SandboxUnavailable where one was asked for in vain."""
    if options.sandbox == "off":
        return False
    missing = _missing(options.path)
    if missing and options.sandbox == "on":
        raise SandboxUnavailable(f"no sandbox: {', '.join(missing)} not found")
    return not missing


def _missing(path: str) -> list[str]:
    needed = {"linux": ("bwrap", "socat"), "darwin": ("sandbox-exec",)}
    programs = needed.get(sys.platform)
    if programs is None:
        return [f"support for {sys.platform}"]
    return [name for name in programs if shutil.which(name, path=path) is None]
