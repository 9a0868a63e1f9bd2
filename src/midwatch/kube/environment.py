"""The contract between the operator and the runner in the pod: the variables of the runner's environment. Pure.

`RunnerEnvironment` defines each variable once. The operator writes a Job's `env` from it (`container_env`), the runner
reads it back (`RunnerEnvironment.read`), and the table in docs/kubernetes.md is generated from `RUNNER_VARIABLES`. Any other
program that starts the runner's image may set them as well.

Variables of a resource and keys of its secrets have prefixes, and `sorted_variables` sorts them by source. So none of them
is a variable of the runner, its interpreter or its loader before it was checked here, whatever the keys of a secret are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from midwatch.errors import SettingsError
from midwatch.kube.rules import MAX_SECONDS
from midwatch.model import Json
from midwatch.provider import AWS_SECRETS, CERTIFICATE_VARIABLES, PROXY_VARIABLES
from midwatch.session.options import Effort
from midwatch.workspace.environment import PASSED_ON

VARIABLE_PREFIX = "SESSION_VARIABLE_"
"""Prefix of the names of `spec.environment.variables`, which are for the session's program, not for the runner."""
SECRET_PREFIX = "SESSION_SECRET_"
"""Prefix of the keys of `spec.environment.secrets`, whose values are redacted wherever the runner writes."""

BAD_ENVIRONMENT, STATUS_NOT_WRITTEN, POD_ENDED = 2, 3, 143
"""Exit codes of the runner: its environment is invalid; the status could not be written; the pod was terminated before
the end (143, as for SIGTERM, so that the attempt counts as lost)."""

WORKSPACE_PATH = "/workspace"
STATE_PATH = "/session"
CACHE_PATH = "/cache"

# ------------------------------------------------------------------ types of variables


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is read from a variable, and written into one.

    Attributes:
        read: Parses a text that is not empty. Raises ValueError with what to write instead.
        write: The reverse.
    """

    read: Callable[[str], Any] = str
    write: Callable[[Any], str] = str


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "1", "yes", "false", "0", "no"):
        raise ValueError("write true or false")
    return text.lower() in ("true", "1", "yes")


def _whole(least: int) -> Kind:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise ValueError("write a whole number")
        if int(text) < least:
            raise ValueError(f"at least {least}")
        return int(text)

    return Kind(read)


def _positive(most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise ValueError("write a number") from None
        if not 0 < number <= most or not math.isfinite(number):
            raise ValueError(f"above 0, up to {most:g}")
        return number

    return read


def _one_of(allowed: tuple[str, ...]) -> Kind:
    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"choose from {', '.join(allowed)}")
        return text

    return Kind(read)


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts or path == Path("/"):
        raise ValueError("write the absolute path of a folder")
    return path


def _web_address(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError("write it like https://content.midwatch:8443")
    return text


Reporting = Literal["resource", "none"]
TEXT, FOLDER, ADDRESS = Kind(), Kind(_folder), Kind(_web_address)
FLAG = Kind(_flag, lambda value: "true" if value else "false")
COUNT, NUMBER = _whole(least=0), _whole(least=1)
DOLLARS = Kind(_positive(math.inf))
SECONDS = Kind(_positive(MAX_SECONDS), lambda value: f"{value:g}")
EFFORT = _one_of(get_args(Effort))
REPORTING = _one_of(get_args(Reporting))


# ------------------------------------------------------------------ the variables


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of the runner.

    Attributes:
        name: Its name in the environment.
        kind: How it is read and written.
        meaning: One sentence, for the table and for the error of a missing variable.
        set_by: Where its value comes from, for the table.
        default: Its default, for the table; None: it is required.
        secret: Whether its value comes from a secret, never from a Job.
        by_secret: Whether a secret of `spec.environment` may set it if the operator does not.
        reserved: Whether `spec.environment.variables` must not set it.
    """

    name: str
    kind: Kind
    meaning: str
    set_by: str
    default: str | None
    secret: bool
    by_secret: bool
    reserved: bool


_BY_SECRET = "a secret of `spec.environment`"
_OPERATOR = "operator"


def _variable(
    kind: Kind,
    meaning: str,
    set_by: str,
    default: Any = "",
    *,
    unset: str | None = None,
    required: bool = False,
    secret: bool = False,
    by_secret: bool = False,
    reserved: bool = True,
) -> Any:
    """Return a field of `RunnerEnvironment`. `unset` is the table's text for a `default` of None."""
    shown = unset if default is None else kind.write(default)
    about = {
        "kind": kind,
        "meaning": meaning,
        "set_by": set_by,
        "default": None if required else shown,
        "secret": secret,
        "by_secret": by_secret,
        "reserved": reserved,
    }
    return field(default=default, repr=not secret, metadata=about)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerEnvironment:
    """The runner's variables as values: each field is the variable of its name in capitals.

    The operator omits a variable whose value is None, so that its setting `variables` may set it; it writes all others,
    also empty ones. An empty variable counts as not set.
    """

    anthropic_api_key: str = _variable(
        TEXT,
        "Key of the Claude API; needed unless there is a gateway's token, or another provider.",
        f"`spec.apiKeySecret`, `operator.api_key_secret` or {_BY_SECRET}",
        secret=True,
        by_secret=True,
    )
    anthropic_auth_token: str = _variable(
        TEXT,
        "Token of a gateway, in place of a key.",
        _BY_SECRET,
        secret=True,
        by_secret=True,
    )
    anthropic_custom_headers: str = _variable(
        TEXT,
        "Headers added to every request to the API, one `Name: value` a line.",
        _BY_SECRET,
        secret=True,
        by_secret=True,
    )
    anthropic_base_url: str | None = _variable(
        TEXT,
        "URL of the Claude API.",
        "`operator.base_url`",
        None,
        unset="Anthropic's API",
    )
    workspace_path: Path = _variable(
        FOLDER, "Folder of the clones.", _OPERATOR, Path(WORKSPACE_PATH)
    )
    state_path: Path = _variable(
        FOLDER,
        "Folder of the session's state and mailbox.",
        _OPERATOR,
        Path(STATE_PATH),
    )
    cache_path: Path = _variable(
        FOLDER, "Folder of the mirrors of repositories.", _OPERATOR, Path(CACHE_PATH)
    )
    session_name: str = _variable(
        TEXT,
        "Name of the resource, and id of the session.",
        "`metadata.name`",
        required=True,
    )
    session_namespace: str = _variable(
        TEXT, "Namespace of the resource.", "`metadata.namespace`"
    )
    session_uid: str = _variable(
        TEXT,
        "Uid of the resource, so that a later resource of the same name is not written to.",
        "`metadata.uid`",
    )
    session_generation: int = _variable(
        COUNT,
        "Generation of the spec that this attempt runs.",
        "`metadata.generation`",
        0,
    )
    session_attempt: int = _variable(
        NUMBER, "Number of the attempt; above 1 it resumes.", _OPERATOR, 1
    )
    job_name: str = _variable(TEXT, "Name of the Job, for the status.", _OPERATOR)
    pod_name: str = _variable(TEXT, "Name of the pod, for the status.", "Kubernetes")
    status: Reporting = _variable(
        REPORTING,
        "`resource`: write the resource's status; `none`: do not.",
        _OPERATOR,
        "resource",
    )
    prompt: str = _variable(
        TEXT, "Task for Claude; may be empty if interactive.", "`spec.prompt`"
    )
    interactive: bool = _variable(
        FLAG,
        "`true`: read messages from the mailbox until a message ends the session.",
        "`spec.interactive`",
        False,
    )
    repos_json: str = _variable(
        TEXT,
        "`[{name, input{url, branch}, output{url, branch}}]`, as in the resource.",
        "`spec.repos`",
        required=True,
    )
    main_repo_index: int = _variable(
        COUNT,
        "Index of the main repository, which is the working directory (0 is the first).",
        "`spec.mainRepoIndex`",
        0,
    )
    model: str | None = _variable(
        TEXT,
        "Model to use.",
        "`spec.llmSettings.model` or `operator.model`",
        None,
        unset="the setting `sessions.model`",
    )
    max_turns: int | None = _variable(
        NUMBER,
        "Most calls to the Claude API in one turn.",
        "`spec.llmSettings.maxTurns`",
        None,
        unset="no limit",
    )
    max_budget_usd: float | None = _variable(
        DOLLARS,
        "Most US dollars for the whole session.",
        "`spec.llmSettings.maxBudgetUsd`",
        None,
        unset="no limit",
    )
    effort: Effort | None = _variable(
        EFFORT,
        "`low`, `medium`, `high`, `xhigh` or `max`.",
        "`spec.llmSettings.effort`",
        None,
        unset="the model's default",
    )
    timeout: float = _variable(
        SECONDS,
        "Timeout of this attempt, in seconds.",
        "the rest of `spec.timeout`",
        3600,
    )
    idle_timeout: float = _variable(
        SECONDS,
        "Longest time without activity in a turn, or without a message in interactive mode, in seconds.",
        "`spec.idleTimeout`",
        900,
    )
    auto_push_on_complete: bool = _variable(
        FLAG,
        "`true`: push the commits when the session completes.",
        "`spec.autoPushOnComplete`",
        False,
    )
    trust_repositories: bool = _variable(
        FLAG,
        "`true`: load the repositories' own `.claude` settings, hooks and `.mcp.json`.",
        "`spec.trustRepositories`",
        False,
    )
    resume_from: str = _variable(
        TEXT,
        "Session whose workspace and conversation this one continues.",
        "`spec.resumeFrom`",
    )
    resume_from_folder: str = _variable(
        TEXT, "Folder of that session behind the content proxy.", _OPERATOR
    )
    content_url: str = _variable(
        ADDRESS,
        "URL of the content proxy; empty: the workspace is only on the volume.",
        "`operator.content_url`",
    )
    content_token: str = _variable(
        TEXT,
        "Token for the session's folder behind the content proxy.",
        "the session's own secret",
        secret=True,
    )
    content_folder: str = _variable(
        TEXT,
        "Folder of the session behind the content proxy, `NAMESPACE/NAME.UID`.",
        _OPERATOR,
    )
    sync_interval: float = _variable(
        SECONDS,
        "Seconds between two pushes of the workspace.",
        "`operator.sync_interval`",
        5,
    )
    status_interval: float = _variable(
        SECONDS,
        "Seconds between two writes of an unchanged phase.",
        "`operator.status_interval`",
        5,
    )
    termination_grace: float = _variable(
        SECONDS,
        "Seconds between SIGTERM and SIGKILL when the pod is terminated.",
        "`operator.termination_grace`",
        60,
    )
    git_token: str = _variable(
        TEXT,
        "Token for `GIT_HOST`; without that, for the https host of the repositories, which must be one.",
        _BY_SECRET,
        secret=True,
        by_secret=True,
    )
    git_host: str = _variable(
        TEXT,
        "What `GIT_TOKEN` is for, such as https://github.com or https://github.com/my-org. No other host or path gets it.",
        _BY_SECRET,
        by_secret=True,
    )
    git_username: str = _variable(
        TEXT,
        "User name for `GIT_TOKEN`.",
        _BY_SECRET,
        "x-access-token",
        by_secret=True,
        reserved=False,
    )

    @classmethod
    def read(
        cls, environ: Mapping[str, str], only: Collection[str] | None = None
    ) -> Self:
        """Return the values of an environment.

        Args:
            environ: The environment.
            only: Names of the variables to read; others keep their default. None reads all.

        Raises:
            SettingsError: A variable is missing or wrong. The error names it and never contains a secret.
        """
        values = {}
        for variable in RUNNER_VARIABLES:
            if only is not None and variable.name not in only:
                continue
            text = environ.get(variable.name, "").strip()
            if text:
                values[variable.name.lower()] = _value(variable, text)
            elif variable.default is None:
                raise not_set(variable.name)
        return cls(**values)

    def written(self) -> dict[str, str]:
        """Return the variables as strings, without those that come from secrets."""
        values = {v: getattr(self, v.name.lower()) for v in RUNNER_VARIABLES}
        return {
            variable.name: variable.kind.write(value)
            for variable, value in values.items()
            if not (value is None or variable.secret or variable.by_secret)
        }


RUNNER_VARIABLES = tuple(
    Variable(name=one.name.upper(), **one.metadata) for one in fields(RunnerEnvironment)
)
VARIABLES = {variable.name: variable for variable in RUNNER_VARIABLES}


def _value(variable: Variable, text: str) -> Any:
    try:
        return variable.kind.read(text)
    except ValueError as error:
        raise SettingsError(
            f"{text[:60]!r} is not valid", path=variable.name, hint=str(error)
        ) from None


def not_set(name: str) -> SettingsError:
    """Return the error of a required variable that is not set."""
    return SettingsError("is not set", path=name, hint=VARIABLES[name].meaning)


# ------------------------------------------------------------------ what others may set

_ALLOWED_AS_SECRET = frozenset(v.name for v in RUNNER_VARIABLES if v.by_secret)
PROVIDER_VARIABLE = "MIDWATCH_ANTHROPIC__PROVIDER"
"""The variable of `operator.variables` that gives sessions another provider, whose credentials the pod may have itself."""


def _api_secrets(own: Mapping[str, str]) -> frozenset[str]:
    """Return the names of secrets that are the runner's, for its requests to the API, and not the program's."""
    cloud = own.get(PROVIDER_VARIABLE) == "bedrock"
    return _ALLOWED_AS_SECRET | frozenset(AWS_SECRETS if cloud else ())


_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "NO_PROXY")
STEERING_VARIABLES = (
    # The pod's own, and folders of configuration.
    ("PATH", "HOME", "TMPDIR", "CURL_HOME", "NETRC")
    # TLS and its keys, proxies, and the resolver.
    + ("NODE_TLS_REJECT_UNAUTHORIZED", "NODE_EXTRA_CA_CERTS", "NODE_USE_ENV_PROXY")
    + ("NODE_USE_SYSTEM_CA", "SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
    + ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "HOSTALIASES", "RES_OPTIONS")
    + ("LOCALDOMAIN", "GNUTLS_SYSTEM_PRIORITY_FILE")
    + (*_PROXIES, *(name.lower() for name in _PROXIES))
    # Start-up files, and what a shell runs or reads before a command.
    + ("BASH_ENV", "ENV", "SHELL", "SHELLOPTS", "BASHOPTS", "ZDOTDIR", "CDPATH")
    + ("PROMPT_COMMAND", "PS4", "IFS")
    # Loaders, interpreters, and the programs that git and ssh start.
    + ("NODE_OPTIONS", "NODE_PATH", "GCONV_PATH", "GLIBC_TUNABLES")
    + ("OPENSSL_CONF", "OPENSSL_ENGINES", "OPENSSL_MODULES", "PERL5LIB", "PERL5OPT")
    + ("SSH_ASKPASS", "SSH_ASKPASS_REQUIRE", "SSH_AUTH_SOCK", "SSH_SK_PROVIDER")
    + ("SSH_SK_HELPER", "SSH_PKCS11_HELPER", "RIPGREP_CONFIG_PATH")
    # The provider's credentials and region, which the operator sets.
    + ("AWS_BEARER_TOKEN_BEDROCK", "AWS_ENDPOINT_URL_BEDROCK")
    + ("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "CLOUD_ML_REGION")
)
"""Variables that steer the session's program, or whom it trusts, from whatever source."""
RESERVED_VARIABLES = tuple(
    sorted({v.name for v in RUNNER_VARIABLES if v.reserved} | {*STEERING_VARIABLES})
)
"""Names that `spec.environment` must not use. This list, `RESERVED_PREFIXES` and `ALLOWED_VARIABLES` are the one rule: the
schema (the API server), the operator and the runner apply it."""
RESERVED_PREFIXES = (
    "ANTHROPIC_",
    "BUN_",
    "CLAUDE_",
    "DYLD_",
    "GIT_",
    "KUBERNETES_",
    "LD_",
) + ("MIDWATCH_", "PYTHON", "VERTEX_REGION_", "XDG_")
"""Prefixes of the provider, the program and its runtime, the loader, git, the cluster's address, settings and the interpreter."""
ALLOWED_VARIABLES = (
    "CLAUDE_CODE_MAX_OUTPUT_TOKENS",
    "GIT_AUTHOR_EMAIL",
    "GIT_AUTHOR_NAME",
    "GIT_COMMITTER_EMAIL",
    "GIT_COMMITTER_NAME",
    "GIT_USERNAME",
)
"""Names with a reserved prefix that `spec.environment` may use: the length of answers, whom commits name, and the user of
a Git token."""
# Variables that the container runtime or the image sets.
_SET_BY_THE_POD = frozenset(
    "PATH HOME HOSTNAME PWD OLDPWD SHLVL TERM LANG USER LOGNAME TMPDIR _".split()
)
_POD_PREFIXES = (
    "CLAUDE_CODE_",
    "GPG_KEY",
    "KUBERNETES_",
    "LC_",
    "LD_",
    "MIDWATCH_",
    "PYTHON",
)


def is_reserved(name: str) -> bool:
    """Return whether a resource must not set the variable of that name."""
    if name in ALLOWED_VARIABLES:
        return False
    return name in RESERVED_VARIABLES or name.startswith(RESERVED_PREFIXES)


# ------------------------------------------------------------------ the operator writes


def container_env(
    own: RunnerEnvironment,
    sources: Mapping[str, Json],
    *,
    settings: Mapping[str, str],
    resource: Mapping[str, str],
) -> list[Json]:
    """Return a container's `env`.

    Args:
        own: The runner's variables, which override all others of the same name.
        sources: Sources of values by name (`valueFrom`): secrets, and the pod's name.
        settings: Literal variables of the operator's settings.
        resource: Literal variables of `spec.environment`.
    """
    asked = {VARIABLE_PREFIX + name: value for name, value in resource.items()}
    literal = {**settings, **asked, **own.written()}
    return [
        *(
            {"name": name, "value": _escaped(value)}
            for name, value in literal.items()
            if name not in sources
        ),
        *({"name": name, "valueFrom": source} for name, source in sources.items()),
    ]


def _escaped(value: str) -> str:
    """Return a value escaped for Kubernetes, which expands $(NAME), also of secrets, and turns $$ into $."""
    return value.replace("$", "$$")


# ------------------------------------------------------------------ the runner sorts


@dataclass(frozen=True, slots=True)
class PodVariables:
    """The variables of a pod by source.

    Attributes:
        own: Those of the runner, its settings and the image.
        literal: Those of `spec.environment.variables`, without the prefix, for the session's program.
        secret: Those of `spec.environment.secrets`, without the prefix, for the session's program.
        left_out: Reserved names, which are ignored.
        hidden: All values of secrets, also of ignored ones, for redaction.
    """

    own: Mapping[str, str] = field(repr=False)
    literal: Mapping[str, str] = field(repr=False)
    secret: Mapping[str, str] = field(repr=False)
    left_out: tuple[str, ...] = ()
    hidden: tuple[str, ...] = field(default=(), repr=False)

    @property
    def of_the_program(self) -> dict[str, str]:
        """The environment of the session's program, without the network, which it gets with how the API is reached.

        A literal of the resource overrides all others of its name.
        """
        kept = {*_api_secrets(self.own), *PROXY_VARIABLES, *CERTIFICATE_VARIABLES}
        plain = {
            name: value
            for name, value in self.own.items()
            if name not in kept and not _is_internal(name)
        }
        return {**plain, **self.secret, **self.literal}

    @property
    def of_git(self) -> dict[str, str]:
        """The environment of git: proxies, certificates and tokens; HOME and PATH are the pod's.

        A resource has no say in where git connects, or what it trusts: a token could go elsewhere.
        """
        given = {**self.secret, **self.literal}
        return {**self.own, **{k: v for k, v in given.items() if k not in PASSED_ON}}


def sorted_variables(environ: Mapping[str, str]) -> PodVariables:
    """Return the variables of a pod by source: the operator and the image, the resource, or a secret."""
    literal = _with_prefix(environ, VARIABLE_PREFIX)
    secret = _with_prefix(environ, SECRET_PREFIX)
    own = {
        name: value
        for name, value in environ.items()
        if not name.startswith((VARIABLE_PREFIX, SECRET_PREFIX))
    }
    kept = _api_secrets(own)
    for name in kept & set(secret):
        own[name] = own.get(name, "").strip() or secret[name]
    left_out = (set(secret) | set(literal)) - kept
    return PodVariables(
        own=own,
        literal={k: v for k, v in literal.items() if not is_reserved(k)},
        secret={
            name: value
            for name, value in secret.items()
            if name not in kept and not is_reserved(name)
        },
        left_out=tuple(sorted(name for name in left_out if is_reserved(name))),
        hidden=tuple(secret.values()),
    )


def _with_prefix(environ: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {
        name.removeprefix(prefix): value
        for name, value in environ.items()
        if name.startswith(prefix) and len(name) > len(prefix)
    }


def _is_internal(name: str) -> bool:
    """Return whether a variable is the runner's or the pod's, and so not for the session's program.

    The operator's proxies, certificates and headers are for it, though a resource must not set them.
    """
    if name in VARIABLES or name in _SET_BY_THE_POD:
        return True
    return name.startswith(_POD_PREFIXES)
