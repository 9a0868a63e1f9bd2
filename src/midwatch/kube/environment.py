"""The contract between the operator and the runner in the pod: the variables of the runner's environment. Pure.

`RunnerEnvironment` has each of them once. The operator writes a Job's `env` from it (`container_env`), the runner
reads it back (`RunnerEnvironment.read`), and the table in docs/kubernetes.md is made of `RUNNER_VARIABLES`. Anything
else that starts the runner's image may pass them as well.

What a resource and its secrets bring comes under prefixes, and `sorted_variables` tells who wrote what. So nothing of
it is a variable of the runner, its interpreter or its loader before it was checked here, whatever somebody called
the keys of a secret.
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
from midwatch.session.options import Effort

VARIABLE_PREFIX = "SESSION_VARIABLE_"
"""Before the names of `spec.environment.variables`: the session's program gets them, and the runner does not."""
SECRET_PREFIX = "SESSION_SECRET_"
"""Before the keys of `spec.environment.secrets`, whose values are kept out of what is written down as well."""

BAD_ENVIRONMENT, UNTOLD, POD_ENDED = 2, 3, 143
"""Exit codes of the runner: its environment is wrong; the status could not be written; the pod was taken away in
the middle of the work, which is what SIGTERM's default is, so that it counts as lost."""

WORKSPACE_PATH = "/workspace"
STATE_PATH = "/session"
CACHE_PATH = "/cache"

# ------------------------------------------------------------------ types of variables


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is read from a variable, and written into one.

    Attributes:
        read: Takes a text that is not empty. Raises ValueError, whose message says what to write instead.
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
    """What is known of one variable.

    Attributes:
        name: In the environment.
        kind: How it is read and written.
        meaning: One sentence, for the table and for whoever left it out.
        set_by: Where its value comes from, for the table.
        default: What it is when it is not set, for the table; None: it has to be set.
        secret: Its value stands in a secret, never in a Job.
        by_secret: A secret of `spec.environment` may bring it where the operator sets none.
        reserved: `spec.environment.variables` may not set it.
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
    """A field of `RunnerEnvironment`. `unset` says for the table what holds where `default` is None."""
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

    The operator leaves a variable out where the value is None, so that its setting `variables` may have it; all others
    it writes, also empty ones. An empty variable counts as not set.
    """

    anthropic_api_key: str = _variable(
        TEXT,
        "The key of the Claude API.",
        f"`spec.apiKeySecret`, `operator.api_key_secret` or {_BY_SECRET}",
        required=True,
        secret=True,
        by_secret=True,
    )
    anthropic_base_url: str | None = _variable(
        TEXT,
        "Where the Claude API is.",
        "`operator.base_url`",
        None,
        unset="Anthropic's own",
    )
    workspace_path: Path = _variable(
        FOLDER, "The folder of the clones.", _OPERATOR, Path(WORKSPACE_PATH)
    )
    state_path: Path = _variable(
        FOLDER,
        "The session's own folder, the mailbox in it.",
        _OPERATOR,
        Path(STATE_PATH),
    )
    cache_path: Path = _variable(
        FOLDER, "Where mirrors of repositories are kept.", _OPERATOR, Path(CACHE_PATH)
    )
    session_name: str = _variable(
        TEXT,
        "The name of the resource; the session's id.",
        "`metadata.name`",
        required=True,
    )
    session_namespace: str = _variable(
        TEXT, "The namespace of the resource.", "`metadata.namespace`"
    )
    session_uid: str = _variable(
        TEXT,
        "The uid of the resource, so that no other is written to.",
        "`metadata.uid`",
    )
    session_generation: int = _variable(
        COUNT,
        "The generation of the spec that this runs.",
        "`metadata.generation`",
        0,
    )
    session_attempt: int = _variable(
        NUMBER, "Which attempt this is; above 1 it resumes.", _OPERATOR, 1
    )
    job_name: str = _variable(TEXT, "The Job, as the status names it.", _OPERATOR)
    pod_name: str = _variable(TEXT, "The pod, as the status names it.", "Kubernetes")
    status: Reporting = _variable(
        REPORTING,
        "`resource`: tell the resource's status; `none`: do not.",
        _OPERATOR,
        "resource",
    )
    prompt: str = _variable(
        TEXT, "What to do; may be empty if interactive.", "`spec.prompt`"
    )
    interactive: bool = _variable(
        FLAG,
        "`true`: read the mailbox until told to end.",
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
        "The repository that is the working directory.",
        "`spec.mainRepoIndex`",
        0,
    )
    model: str | None = _variable(
        TEXT,
        "The model that works.",
        "`spec.llmSettings.model` or `operator.model`",
        None,
        unset="the settings' `sessions.model`",
    )
    max_turns: int | None = _variable(
        NUMBER,
        "Calls of the API in one turn.",
        "`spec.llmSettings.maxTurns`",
        None,
        unset="no limit",
    )
    max_budget_usd: float | None = _variable(
        DOLLARS,
        "Dollars of the whole session.",
        "`spec.llmSettings.maxBudgetUsd`",
        None,
        unset="no limit",
    )
    effort: Effort | None = _variable(
        EFFORT,
        "`low`, `medium`, `high`, `xhigh` or `max`.",
        "`spec.llmSettings.effort`",
        None,
        unset="the model's own",
    )
    timeout: float = _variable(
        SECONDS, "Seconds this attempt may take.", "what `spec.timeout` leaves", 3600
    )
    idle_timeout: float = _variable(
        SECONDS,
        "Seconds without a sign of life in a turn, or without a message in interactive mode.",
        "`spec.idleTimeout`",
        900,
    )
    auto_push_on_complete: bool = _variable(
        FLAG, "`true`: push what was done.", "`spec.autoPushOnComplete`", False
    )
    trust_repositories: bool = _variable(
        FLAG,
        "`true`: load the repositories' own `.claude` settings, hooks and `.mcp.json`.",
        "`spec.trustRepositories`",
        False,
    )
    resume_from: str = _variable(
        TEXT,
        "The session whose workspace and conversation this continues.",
        "`spec.resumeFrom`",
    )
    resume_from_folder: str = _variable(
        TEXT, "Its folder behind the content proxy.", _OPERATOR
    )
    content_url: str = _variable(
        ADDRESS,
        "Where the content proxy is; empty: the volume is all there is.",
        "`operator.content_url`",
    )
    content_token: str = _variable(
        TEXT, "The token for the folder there.", "the session's own secret", secret=True
    )
    content_folder: str = _variable(
        TEXT, "The session's folder there, `NAMESPACE/NAME.UID`.", _OPERATOR
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
        "Seconds between the SIGTERM and the SIGKILL that the pod gets at its end.",
        "`operator.termination_grace`",
        60,
    )
    git_token: str = _variable(
        TEXT,
        "A token for the repositories' hosts over https.",
        _BY_SECRET,
        secret=True,
        by_secret=True,
    )
    git_username: str = _variable(
        TEXT,
        "The user name beside it.",
        _BY_SECRET,
        "x-access-token",
        by_secret=True,
        reserved=False,
    )

    @classmethod
    def read(
        cls, environ: Mapping[str, str], only: Collection[str] | None = None
    ) -> Self:
        """Return the values of an environment; `only` names the variables to read, and leaves others at their default.

        Raises SettingsError for the first that is missing or cannot be meant: it names the variable, and never
        repeats a secret.
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
        """Return the variables as texts, without those that come by secret."""
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
            f"{text[:60]!r} cannot be meant", path=variable.name, hint=str(error)
        ) from None


def not_set(name: str) -> SettingsError:
    """Return the error of a variable that has to be set, and is not."""
    return SettingsError("is not set", path=name, hint=VARIABLES[name].meaning)


# ------------------------------------------------------------------ what others may set

_ALLOWED_AS_SECRET = frozenset(v.name for v in RUNNER_VARIABLES if v.by_secret)
RESERVED_VARIABLES = tuple(
    sorted(
        {v.name for v in RUNNER_VARIABLES if v.reserved} | {"PATH", "HOME", "TMPDIR"}
    )
)
"""Names that `spec.environment` may not give a variable."""
RESERVED_PREFIXES = ("KUBERNETES_", "LD_", "MIDWATCH_", "PYTHON")
"""Those of the cluster's address, of the loader, of settings and of the interpreter: with them a resource
would lead the runner elsewhere."""
# What a pod has without anybody having asked for it.
_SET_BY_THE_POD = frozenset(
    "PATH HOME HOSTNAME PWD OLDPWD SHLVL TERM LANG USER LOGNAME TMPDIR _".split()
)
_FOREIGN_PREFIXES = ("LC_", "CLAUDE_CODE_", "GPG_KEY")


def is_reserved(name: str) -> bool:
    """Return whether a resource may not set the variable of that name."""
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
        own: The runner's variables; they come over all others of their names.
        sources: By name, where Kubernetes takes the value from (`valueFrom`): secrets, and the pod's name.
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
    """Kubernetes puts other variables, secret ones too, in place of $(NAME), and makes $ of $$."""
    return value.replace("$", "$$")


# ------------------------------------------------------------------ the runner sorts


@dataclass(frozen=True, slots=True)
class PodVariables:
    """`own` are those of the runner, its settings and the image. `literal` and `secret` are for the session's
    program, by the names that people gave them; `left_out` are names in secrets that cannot be. `hidden` are
    all values of secrets, of those names too.
    """

    own: Mapping[str, str] = field(repr=False)
    literal: Mapping[str, str] = field(repr=False)
    secret: Mapping[str, str] = field(repr=False)
    left_out: tuple[str, ...] = ()
    hidden: tuple[str, ...] = field(default=(), repr=False)

    @property
    def of_the_program(self) -> dict[str, str]:
        """What the session's program gets: a literal of the resource goes over all else of its name."""
        plain = {k: v for k, v in self.own.items() if not _is_internal(k)}
        return {**plain, **self.secret, **self.literal}

    @property
    def of_git(self) -> dict[str, str]:
        """What is known of proxies, certificates and tokens; HOME and PATH are the pod's own."""
        return {**self.own, **self.secret, **self.literal}


def sorted_variables(environ: Mapping[str, str]) -> PodVariables:
    """Return the variables of a pod by who wrote them: the operator and the image, the resource, or a secret."""
    literal = _with_prefix(environ, VARIABLE_PREFIX)
    secret = _with_prefix(environ, SECRET_PREFIX)
    own = {
        name: value
        for name, value in environ.items()
        if not name.startswith((VARIABLE_PREFIX, SECRET_PREFIX))
    }
    for name in _ALLOWED_AS_SECRET & set(secret):
        own[name] = own.get(name, "").strip() or secret[name]
    left_out = (set(secret) | set(literal)) - _ALLOWED_AS_SECRET
    return PodVariables(
        own=own,
        literal={k: v for k, v in literal.items() if not is_reserved(k)},
        secret={k: v for k, v in secret.items() if _may_pass(k)},
        left_out=tuple(sorted(name for name in left_out if is_reserved(name))),
        hidden=tuple(secret.values()),
    )


def _with_prefix(environ: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {
        name.removeprefix(prefix): value
        for name, value in environ.items()
        if name.startswith(prefix) and len(name) > len(prefix)
    }


def _may_pass(name: str) -> bool:
    return name not in _ALLOWED_AS_SECRET and not is_reserved(name)


def _is_internal(name: str) -> bool:
    """Whether it is the runner's, or the pod's: the session's program has its own."""
    if name in VARIABLES or is_reserved(name) or name in _SET_BY_THE_POD:
        return True
    return name.startswith(_FOREIGN_PREFIXES)
