"""The environment of git: a value that is passed in, never inherited."""

from __future__ import annotations

import base64
import os
import pwd
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from midwatch.workspace.errors import WorkspaceRefused
from midwatch.workspace.urls import Remote, parse_remote

_PASSED_ON = (
    "SSH_AUTH_SOCK",
    "GIT_SSL_CAINFO",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "no_proxy",
    "NO_PROXY",
)
# The helper has no secret in its text: the shell that git starts reads the environment. `printf` is a
# builtin of that shell, so the token is not on a command line either.
_HELPER = (
    '!f() { test "$1" = get && '
    'printf "username=%s\\npassword=%s\\n" "$MIDWATCH_GIT_USER" "$MIDWATCH_GIT_TOKEN"; }; f'
)
_SSH = "ssh -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15"


@dataclass(frozen=True, slots=True)
class Credential:
    """A token for one host.

    Attributes:
        scope: Scheme and host, such as `https://github.com`.
        token: The token.
        username: The user name beside the token. Most hosts accept any; a deploy token of GitLab
            needs its own.

    Raises:
        WorkspaceRefused: The scope or the token is not valid.
    """

    scope: str
    token: str = field(repr=False)
    username: str = "x-access-token"

    def __post_init__(self) -> None:
        remote = parse_remote(self.scope)
        if remote.scheme not in ("https", "http") or remote.path:
            raise WorkspaceRefused(
                f"the scope {remote.url!r} of a token is not a scheme and a host",
                hint="use a scope such as https://github.com",
            )
        if not self.token or not (self.token + self.username).isprintable():
            raise WorkspaceRefused(
                f"the token for {self.scope} is empty or has control characters",
                hint="check the variable or file that the token comes from",
            )

    def covers(self, remote: Remote) -> bool:
        """Return whether the token is for the host of a remote."""
        scope = parse_remote(self.scope)
        return (scope.scheme, scope.host) == (remote.scheme, remote.host)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The token in all encodings in which git could print it."""
        basic = base64.b64encode(f"{self.username}:{self.token}".encode()).decode()
        return (self.token, quote(self.token, safe=""), basic)


@dataclass(frozen=True, slots=True)
class GitEnvironment:
    """The part of the environment that git processes get.

    Attributes:
        path: PATH.
        home: The home folder for SSH, with its keys and known hosts; the user's by default.
        variables: More variables for remotes: the socket of an SSH agent, a proxy, a certificate file.
        credentials: Tokens.
    """

    path: str = "/usr/local/bin:/usr/bin:/bin"
    home: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    credentials: tuple[Credential, ...] = ()

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str], credentials: Sequence[Credential] = ()
    ) -> GitEnvironment:
        """Return the part of a process's environment that git may see.

        Args:
            environ: The environment of the process.
            credentials: Tokens.
        """
        home = environ.get("HOME") or _home_in_user_database()
        return cls(
            path=environ.get("PATH") or cls().path,
            home=Path(home) if home else None,
            variables={k: environ[k] for k in _PASSED_ON if environ.get(k)},
            credentials=tuple(credentials),
        )

    def credential_for(self, remote: Remote | None) -> Credential | None:
        """Return the first token for the host of a remote, or None."""
        if remote is None:
            return None
        return next((c for c in self.credentials if c.covers(remote)), None)

    def redact(self, text: str) -> str:
        """Return `text` without the tokens of this environment."""
        for credential in self.credentials:
            for secret in credential.secrets:
                text = text.replace(secret, "***")
        return text


def process_environ() -> Mapping[str, str]:
    """Return the environment of the process: what a library user's call is read from, as by `anthropic.Anthropic()`."""
    return os.environ


def default_home(environ: Mapping[str, str] | None = None) -> Path:
    """Return the home folder: HOME, or that of the user database if HOME is not an absolute path."""
    named = (process_environ() if environ is None else environ).get("HOME", "")
    return Path(named if os.path.isabs(named) else _home_in_user_database() or "/")


def state_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder for state by default: that of XDG_STATE_HOME, else `~/.local/state/midwatch`."""
    return _xdg_folder("XDG_STATE_HOME", ".local/state", environ)


def cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder for caches by default: that of XDG_CACHE_HOME, else `~/.cache/midwatch`."""
    return _xdg_folder("XDG_CACHE_HOME", ".cache", environ)


def _xdg_folder(name: str, default: str, environ: Mapping[str, str] | None) -> Path:
    """Return a folder by the XDG Base Directory Specification, which ignores relative paths."""
    named = (process_environ() if environ is None else environ).get(name, "")
    above = Path(named) if os.path.isabs(named) else default_home(environ) / default
    return above / "midwatch"


def git_variables(
    environment: GitEnvironment,
    remote: Remote | None,
    protocols: str,
    low_speed_bytes: int,
    low_speed_seconds: float,
) -> dict[str, str]:
    """Return the environment of a git process.

    Args:
        environment: What git sees of the environment.
        remote: The remote that git talks to, or None.
        protocols: The value of GIT_ALLOW_PROTOCOL.
        low_speed_bytes: See `midwatch.workspace.git.GitLimits`.
        low_speed_seconds: See `midwatch.workspace.git.GitLimits`.
    """
    settings = dict(_SETTINGS)
    settings["http.lowSpeedLimit"] = str(low_speed_bytes)
    settings["http.lowSpeedTime"] = str(max(1, round(low_speed_seconds)))
    variables = {
        "PATH": environment.path,
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": protocols,
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_CEILING_DIRECTORIES": "/",
    }
    if remote is not None and remote.scheme != "file":
        variables |= environment.variables
    if remote is not None and remote.scheme == "ssh":
        variables["GIT_SSH_COMMAND"] = _SSH
        variables["HOME"] = str(environment.home or default_home())
    pairs = list(settings.items()) + _credential_settings(
        variables, environment.credential_for(remote)
    )
    variables["GIT_CONFIG_COUNT"] = str(len(pairs))
    for index, (key, value) in enumerate(pairs):
        variables[f"GIT_CONFIG_KEY_{index}"] = key
        variables[f"GIT_CONFIG_VALUE_{index}"] = value
    return variables


def _credential_settings(
    variables: dict[str, str], credential: Credential | None
) -> list[tuple[str, str]]:
    if credential is None:
        return []
    variables["MIDWATCH_GIT_USER"] = credential.username
    variables["MIDWATCH_GIT_TOKEN"] = credential.token
    # Scoped by URL: there is no helper for the host of a redirect.
    scope = parse_remote(credential.scope).url
    return [(f"credential.{scope}.helper", _HELPER)]


def _home_in_user_database() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a container may run as a user without an entry
        return ""


# The configuration of every git process: no setting of a repository runs a program.
_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "core.excludesFile": "/dev/null",
    "core.askPass": "",
    "credential.helper": "",
    "diff.ignoreSubmodules": "all",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "push.recurseSubmodules": "no",
    "transfer.credentialsInUrl": "die",
    "transfer.unpackLimit": "1",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "advice.detachedHead": "false",
    "init.defaultBranch": "main",
    "log.showSignature": "false",
}
