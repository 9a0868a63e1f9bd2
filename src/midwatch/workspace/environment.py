"""What git may know of its surroundings: handed in as a value, never inherited."""

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
# The helper's text has no secret in it: a shell that git starts reads the environment. `printf` is
# built into that shell, so the token is on no command line either.
_HELPER = (
    '!f() { test "$1" = get && '
    'printf "username=%s\\npassword=%s\\n" "$MIDWATCH_GIT_USER" "$MIDWATCH_GIT_TOKEN"; }; f'
)
_SSH = "ssh -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15"


@dataclass(frozen=True, slots=True)
class Credential:
    """A token for one host. `scope` is scheme and host, such as `https://github.com`.

    Hosts take any user name beside a token; GitLab's deploy tokens want their own.
    """

    scope: str
    token: str = field(repr=False)
    username: str = "x-access-token"

    def __post_init__(self) -> None:
        remote = parse_remote(self.scope)
        if remote.scheme not in ("https", "http") or remote.path:
            raise WorkspaceRefused(
                "a token needs a scope of scheme and host",
                hint="write it like https://github.com",
            )
        if not self.token or not (self.token + self.username).isprintable():
            raise WorkspaceRefused(f"the token for {self.scope} is not a token")

    def covers(self, remote: Remote) -> bool:
        scope = parse_remote(self.scope)
        return (scope.scheme, scope.host) == (remote.scheme, remote.host)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The token in every spelling in which git could print it."""
        basic = base64.b64encode(f"{self.username}:{self.token}".encode()).decode()
        return (self.token, quote(self.token, safe=""), basic)


@dataclass(frozen=True, slots=True)
class GitEnvironment:
    """Everything that git gets from outside: where programs are, keys, tokens, proxies.

    `home` is given to SSH alone, for its keys and known hosts. `variables` are passed on as they
    are (an agent's socket, a proxy, a certificate file).
    """

    path: str = "/usr/local/bin:/usr/bin:/bin"
    home: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    credentials: tuple[Credential, ...] = ()

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str], credentials: Sequence[Credential] = ()
    ) -> GitEnvironment:
        """The part of a process's environment that git may see."""
        home = environ.get("HOME") or _home_of_user()
        return cls(
            path=environ.get("PATH") or cls().path,
            home=Path(home) if home else None,
            variables={k: environ[k] for k in _PASSED_ON if environ.get(k)},
            credentials=tuple(credentials),
        )

    def credential_for(self, remote: Remote | None) -> Credential | None:
        if remote is None:
            return None
        return next((c for c in self.credentials if c.covers(remote)), None)

    def conceal(self, text: str) -> str:
        """`text` without any token of this environment."""
        for credential in self.credentials:
            for secret in credential.secrets:
                text = text.replace(secret, "***")
        return text


def default_home() -> Path:
    """The home folder of the user who runs this, from the user database."""
    return Path(_home_of_user() or "/")


def git_variables(
    environment: GitEnvironment,
    remote: Remote | None,
    protocols: str,
    low_speed_bytes: int,
    low_speed_seconds: float,
) -> dict[str, str]:
    """The whole environment of one git process that talks to `remote`, or to none."""
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
    # Scoped by URL: a redirect to another host finds no helper.
    scope = parse_remote(credential.scope).url
    return [(f"credential.{scope}.helper", _HELPER)]


def _home_of_user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a container may run as a user that no database knows
        return ""


# Settings that every git process gets: nothing of a repository's own that runs a program.
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
