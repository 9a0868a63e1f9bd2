"""The environment of git: a value that is passed in, never inherited."""

from __future__ import annotations

import base64
import os
import pwd
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from midwatch.workspace.errors import WorkspaceRefused
from midwatch.workspace.urls import Remote, parse_remote

PASSED_ON = (
    "GIT_SSH_COMMAND",
    "SSH_AUTH_SOCK",
    "GIT_SSL_CAINFO",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "no_proxy",
    "NO_PROXY",
)
"""Variables of a process that git needs for remotes. Each decides where git connects, or what it trusts."""
# The helper has no secret in its text: the shell that git starts reads the environment. `printf` is a
# builtin of that shell, so the token is not on a command line either.
_HELPER = (
    '!f() { r="${MIDWATCH_GIT_REFUSED:-}"; case "$1" in '
    'erase) test -z "$r" || : > "$r";; '
    'get) if test -n "$r" && test -e "$r"; then echo quit=1; else '
    'printf "username=%s\\npassword=%s\\n" "$MIDWATCH_GIT_USER{0}" "$MIDWATCH_GIT_TOKEN{0}"; fi;; '
    "esac; }; f"
)
REFUSED_FILE = "MIDWATCH_GIT_REFUSED"
"""Variable with the path of a file that marks a refused token. git-lfs asks for the token again for as long as it
gets one, without end; git asks once."""
# No prompts: an unknown host or a key with a passphrase is an error. A host key is never accepted unseen.
_SSH_OPTIONS = " -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15"
_SSH_KEYS = ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk")


@dataclass(frozen=True, slots=True)
class Credential:
    """A token for one host, or for the repositories below one path of it.

    Attributes:
        scope: Scheme and host, such as `https://github.com`, and a path, as in `https://github.com/my-org`.
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
        if remote.scheme not in ("https", "http") or "@" in self.scope:
            raise WorkspaceRefused(
                f"the scope {remote.url!r} of a token is not a scheme and a host",
                hint="use a scope such as https://github.com or https://github.com/my-org",
            )
        if not self.token or not (self.token + self.username).isprintable():
            raise WorkspaceRefused(
                f"the token for {self.scope} is empty or has control characters",
                hint="check the variable or file that the token comes from",
            )

    def covers(self, remote: Remote) -> bool:
        """Return whether the token is for the host and the path of a remote."""
        scope = parse_remote(self.scope)
        below = remote.path[: len(scope.path)] == scope.path
        return (scope.scheme, scope.host) == (remote.scheme, remote.host) and below

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
        home: The home folder for SSH, with its keys, known hosts and configuration; the user's by default.
        variables: More variables for remotes: the socket of an SSH agent, GIT_SSH_COMMAND, a proxy, a
            certificate file.
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
            variables={k: environ[k] for k in PASSED_ON if environ.get(k)},
            credentials=tuple(credentials),
        )

    def credential_for(self, remote: Remote | None) -> Credential | None:
        """Return the token for a remote, or None: of several the one with the longest path, then the first."""
        if remote is None:
            return None
        covering = [c for c in self.credentials if c.covers(remote)]
        return max(
            covering, key=lambda c: len(parse_remote(c.scope).path), default=None
        )

    def redact(self, text: str) -> str:
        """Return `text` without the tokens of this environment."""
        for credential in self.credentials:
            for secret in credential.secrets:
                text = text.replace(secret, "***")
        return text


def default_home() -> Path:
    """Return the home folder of the present user, from the user database."""
    return Path(_home_in_user_database() or "/")


def git_variables(
    environment: GitEnvironment,
    remote: Remote | None,
    protocols: str,
    low_speed_bytes: int,
    low_speed_seconds: float,
    *,
    all_credentials: bool = False,
) -> dict[str, str]:
    """Return the environment of a git process.

    Args:
        environment: What git sees of the environment.
        remote: The remote that git talks to, or None.
        protocols: The value of GIT_ALLOW_PROTOCOL.
        low_speed_bytes: See `midwatch.workspace.git.GitLimits`.
        low_speed_seconds: See `midwatch.workspace.git.GitLimits`.
        all_credentials: Give git every token, each for its own host and path, and not only that of `remote`.
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
    # git-lfs connects by itself, and by ssh as well where a repository asks for that.
    allowed = remote is not None and "ssh" in protocols.split(":")
    variables["GIT_SSH_COMMAND"] = _ssh_command(environment) if allowed else "false"
    if remote is not None and remote.scheme == "ssh":
        variables["HOME"] = str(environment.home or default_home())
    found = environment.credential_for(remote)
    credentials = list(environment.credentials) if all_credentials else [found]
    pairs = list(settings.items()) + _credential_settings(
        variables, [one for one in credentials if one is not None]
    )
    variables["GIT_CONFIG_COUNT"] = str(len(pairs))
    for index, (key, value) in enumerate(pairs):
        variables[f"GIT_CONFIG_KEY_{index}"] = key
        variables[f"GIT_CONFIG_VALUE_{index}"] = value
    return variables


def _credential_settings(
    variables: dict[str, str], credentials: Sequence[Credential]
) -> list[tuple[str, str]]:
    """Return the settings of git for tokens, the one with the longest path first, and set their variables."""
    scoped = [(parse_remote(one.scope), one) for one in credentials]
    scoped.sort(key=lambda pair: -len(pair[0].path))
    pairs = []
    for index, (scope, one) in enumerate(scoped):
        number = str(index) if index else ""
        variables[f"MIDWATCH_GIT_USER{number}"] = one.username
        variables[f"MIDWATCH_GIT_TOKEN{number}"] = one.token
        # Scoped by URL: there is no helper for the host of a redirect, of a submodule or of Git LFS elsewhere.
        pairs.append((f"credential.{scope.url}.helper", _helper(number)))
        # git-lfs tells its path, by which the scope is found, only then.
        pairs.append((f"credential.{scope.url}.useHttpPath", "true"))
    return pairs


def _helper(number: str) -> str:
    return _HELPER.replace("{0}", number)


def _ssh_command(environment: GitEnvironment) -> str:
    """Return the value of GIT_SSH_COMMAND: that of the environment, or ssh with the keys of `home`.

    ssh finds its files by the user database and not by HOME.
    """
    given = environment.variables.get("GIT_SSH_COMMAND", "").strip()
    if given:
        program = os.path.basename(given.split()[0])
        return given + _SSH_OPTIONS if program == "ssh" else given
    home, of_ssh = environment.home, Path(_home_in_user_database() or "/")
    files = [] if home is None or home == of_ssh else _ssh_files(home / ".ssh")
    return shlex.join(["ssh", *files]) + _SSH_OPTIONS


def _ssh_files(folder: Path) -> list[str]:
    """Return the options of ssh for the configuration, the known hosts and the keys of a folder."""
    options = []
    if (folder / "config").is_file():
        options += ["-F", str(folder / "config")]
    files = {"UserKnownHostsFile": [folder / "known_hosts"]}
    files["IdentityFile"] = [p for n in _SSH_KEYS if (p := folder / n).is_file()]
    for name, paths in files.items():
        for path in paths:  # ssh expands % and splits at spaces
            options += ["-o", f'{name}="{str(path).replace("%", "%%")}"']
    return options


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
    "lfs.transfer.maxRetries": "3",  # 8 by default, also for a refused login
}
