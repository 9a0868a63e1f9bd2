"""An `AgenticSession` resource as values, and `Spec`, the model of its spec.

The model is the one source of the schema too: `crd` generates the CustomResourceDefinition from it, and from
`status.Status`, so the API server refuses what `read_resource` would. What only Kubernetes has (CEL rules, list types)
stands beside the field in `json_schema_extra` or `Rule`. The API server estimates the cost of a rule from the
limits of the fields that it reads, so every string, list and map has a limit.

The keys of a map cannot have a pattern. So invalid characters in the name of a variable are the one thing that only
`read_resource` refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from midwatch.kube.environment import (
    ALLOWED_VARIABLES,
    RESERVED_PREFIXES,
    RESERVED_VARIABLES,
    is_reserved,
)
from midwatch.kube.errors import SpecRefused
from midwatch.kube.rules import (
    ANNOTATION,
    BAD_BRANCH,
    DEVICE,
    FOLDER,
    MAX_ANNOTATION,
    MAX_ANNOTATIONS,
    MAX_BRANCH,
    MAX_NAME,
    MAX_PROMPT_BYTES,
    MAX_REPOS,
    MAX_RESTARTS,
    MAX_SECONDS,
    MAX_SECRETS,
    MAX_URL,
    MAX_VARIABLE,
    MAX_VARIABLE_NAME,
    MAX_VARIABLES,
    MODEL,
    NO_NUL,
    NOT_BLANK,
    OBJECT_NAME,
    QUANTITY,
    RESERVED_ANNOTATIONS,
    SECRET_KEY,
    SYSTEM_CLASS,
    URL,
    URL_WITH_CREDENTIALS,
    VARIABLE_NAME,
    content_folder,
    fits,
    quantity,
)
from midwatch.kube.spec_errors import first_fault
from midwatch.model import Json
from midwatch.session.options import Effort

VALIDATIONS = "x-kubernetes-validations"
"""The key of a schema under which the API server finds rules in CEL."""
CHANGEABLE = frozenset({"stop", "displayName", "maxRestarts"})
"""Mutable fields of `spec`: a running session ignores changes of all others."""


def cel(expression: str, message: str, path: str | None = None) -> Json:
    """Return a CEL rule for a schema; `path` is the field that it blames."""
    rule = {"rule": expression, "message": message}
    return {**rule, "fieldPath": path} if path else rule


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that both the API server and pydantic apply: an annotation of a field's type.

    Attributes:
        expression: CEL on `self`, for the API server.
        message: What is wrong, and what to write instead.
        holds: The same as `expression`, in Python.
    """

    expression: str
    message: str
    holds: Callable[[Any], bool]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            self._check, handler(source)
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> Json:
        written = handler(schema)
        rules = [*written.get(VALIDATIONS, ()), cel(self.expression, self.message)]
        return {**written, VALIDATIONS: rules}

    def _check(self, value: Any) -> Any:
        if not self.holds(value):
            raise PydanticCustomError("rule", "{message}", {"message": self.message})
        return value


# ------------------------------------------------------------------ types of fields

# Strict, as JSON is: "3600" is not a number, and "yes" is not a boolean.
Whole = Annotated[int, Field(strict=True)]
Dollars = Annotated[float, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Seconds = Annotated[int, Field(strict=True, ge=1, le=MAX_SECONDS)]


def _check_port(url: str) -> str:
    try:
        if urlsplit(url).port == 0:
            raise ValueError
    except ValueError:
        message = "the port of the URL is not a number from 1 to 65535"
        raise PydanticCustomError("rule", "{message}", {"message": message}) from None
    return url


Url = Annotated[
    str,
    Field(min_length=1, max_length=MAX_URL),
    AfterValidator(_check_port),
    Rule(
        f"self.matches(r'{URL}')",
        "not the URL of a repository: use https, http, ssh or git@host:path, without spaces",
        lambda url: fits(URL, url),
    ),
    Rule(
        f"!self.matches(r'{URL_WITH_CREDENTIALS}')",
        "the URL contains credentials: put a token into a secret (environment.secrets, GIT_TOKEN)",
        lambda url: not fits(URL_WITH_CREDENTIALS, url),
    ),
]
Branch = Annotated[
    str,
    Field(min_length=1, max_length=MAX_BRANCH),
    Rule(
        f"!self.matches(r'{BAD_BRANCH}')",
        "not a valid branch name for git",
        lambda branch: not fits(BAD_BRANCH, branch),
    ),
]
Folder = Annotated[
    str,
    Field(min_length=1, max_length=100),
    Rule(
        f"self.matches(r'{FOLDER}') && !self.lowerAscii().matches(r'{DEVICE}')",
        "not the name of a folder: use letters, digits, dots and dashes",
        lambda name: fits(FOLDER, name) and not fits(DEVICE, name.lower()),
    ),
]
ModelName = Annotated[str, Field(min_length=1, max_length=100, pattern=MODEL)]
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=OBJECT_NAME)]
SessionName = Annotated[
    str, Field(min_length=1, max_length=MAX_NAME, pattern=OBJECT_NAME)
]
KeyName = Annotated[str, Field(min_length=1, max_length=253, pattern=SECRET_KEY)]
VariableValue = Annotated[
    str,
    Field(max_length=MAX_VARIABLE, pattern=NO_NUL, description="The literal value."),
]


def _check_variable_name(name: str) -> str:
    if not fits(VARIABLE_NAME, name):
        raise ValueError(
            "not a valid variable name: use letters, digits and underscores"
        )
    return name


# No `pattern`: a structural schema cannot constrain the keys of a map.
VariableName = Annotated[
    str, Field(max_length=MAX_VARIABLE_NAME), AfterValidator(_check_variable_name)
]


def _check_annotation(name: str) -> str:
    if not fits(ANNOTATION, name):
        raise ValueError(
            "not a valid name of an annotation: write it like team.example.com/name"
        )
    return name


# The same as for the names of variables.
AnnotationName = Annotated[
    str, Field(max_length=317), AfterValidator(_check_annotation)
]
PriorityClass = Annotated[
    ObjectName,
    Rule(
        f"!self.startsWith('{SYSTEM_CLASS}')",
        "a priority class of the cluster's own pods: use one of your own",
        lambda name: not name.startswith(SYSTEM_CLASS),
    ),
]


def _check_amount(given: Any) -> int | str:
    if isinstance(given, bool) or not isinstance(given, int | str):
        raise ValueError("not an amount such as 500m or 2Gi")
    if len(str(given)) > 30 or not fits(QUANTITY, str(given)):
        raise ValueError("not an amount such as 500m or 2Gi")
    return given


Amount = Annotated[
    int | str,
    PlainValidator(_check_amount),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "minimum": 0,
            "pattern": QUANTITY,
            "maxLength": 30,
        }
    ),
]


class Part(BaseModel):
    """A part of a resource: camelCase outside, frozen inside.

    Unknown fields are dropped, as the API server prunes them. The docstring of a part is its description in the
    schema where a field has none.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        defer_build=True,  # build a validator when it is first used; that of a status rarely is
    )


# ------------------------------------------------------------------ spec


class GitPlace(Part):
    """The source to clone."""

    url: Url = Field(
        description="URL of the repository: https, http, ssh or git@host:path."
    )
    branch: Branch | None = Field(
        None,
        description="Branch to start from; by default the repository's default branch.",
    )


class PushPlace(Part):
    """The target of pushes."""

    url: Url | None = Field(
        None, description="URL of the repository; by default the one of input."
    )
    branch: Branch | None = Field(
        None, description="Branch to push; by default the session's own branch."
    )


class Repo(Part):
    """A repository, cloned from input and pushed to output."""

    name: Folder | None = Field(
        None,
        description="Folder in the workspace; by default the last part of the URL.",
    )
    input: GitPlace
    output: PushPlace | None = None


def _named_once(repos: tuple[Repo, ...]) -> bool:
    names = [repo.name.lower() for repo in repos if repo.name]
    return len(set(names)) == len(names)


def _cloned_once(repos: tuple[Repo, ...]) -> bool:
    unnamed = [(r.input.url, r.input.branch) for r in repos if not r.name]
    return len(set(unnamed)) == len(unnamed)


Repos = Annotated[
    tuple[Repo, ...],
    Field(min_length=1, max_length=MAX_REPOS),
    Rule(
        "self.all(r, !has(r.name) || self.exists_one(o, has(o.name) && o.name.lowerAscii() == r.name.lowerAscii()))",
        "two repositories have the same name",
        _named_once,
    ),
    Rule(
        "self.all(r, has(r.name) || self.exists_one(o, !has(o.name) && o.input.url == r.input.url"
        " && (has(o.input.branch) ? o.input.branch : '') == (has(r.input.branch) ? r.input.branch : '')))",
        "a repository is listed twice: list it once, or name its clones",
        _cloned_once,
    ),
]


class LlmSettings(Part):
    """Model and limits of Claude; the operator's settings have the defaults."""

    model: ModelName | None = Field(None, description="Model to use.")
    max_turns: Whole | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Most calls to the Claude API in one turn.",
    )
    max_budget_usd: Dollars | None = Field(
        None, gt=0, le=1_000_000, description="Most US dollars for the whole session."
    )
    effort: Effort | None = Field(None, description="Effort of the model's thinking.")


class SecretKey(Part):
    """A key of a secret in the session's namespace."""

    name: ObjectName = Field(description="Name of a secret in this namespace.")
    key: KeyName = Field("ANTHROPIC_API_KEY", description="Key in the secret.")


RESERVED_HINT = (
    "it steers the program, its network or its trust, which the operator's settings do, or a field of spec sets it; "
    "put keys and tokens into secrets"
)


def _variable_rules() -> Json:
    reserved, allowed = (
        ", ".join(f"'{name}'" for name in names)
        for names in (RESERVED_VARIABLES, ALLOWED_VARIABLES)
    )
    # One by one: older servers assume no limit for a prefix that comes from a list.
    begins = " || ".join(f"name.startsWith('{prefix}')" for prefix in RESERVED_PREFIXES)
    size = f"self.all(name, name.size() > 0 && name.size() <= {MAX_VARIABLE_NAME})"
    return {
        VALIDATIONS: [
            cel(
                size, f"the name of a variable has 1 to {MAX_VARIABLE_NAME} characters"
            ),
            cel(
                f"self.all(name, name in [{allowed}] || !(name in [{reserved}] || {begins}))",
                f"a variable is reserved: {RESERVED_HINT}",
            ),
        ]
    }


class Environment(Part):
    """Environment variables of the session."""

    secrets: tuple[
        Annotated[ObjectName, Field(description="Name of a secret.")], ...
    ] = Field(
        (),
        max_length=MAX_SECRETS,
        description="Secrets in this namespace: each of their keys becomes a variable.",
    )
    variables: Mapping[VariableName, VariableValue] = Field(
        {},
        max_length=MAX_VARIABLES,
        description="Literal values by name. Put keys and tokens into secrets.",
        json_schema_extra=_variable_rules(),
    )


def _may_annotate(annotations: Mapping[str, str]) -> bool:
    return not any(name.startswith(RESERVED_ANNOTATIONS) for name in annotations)


PodAnnotations = Annotated[
    Mapping[
        AnnotationName,
        Annotated[
            str,
            Field(max_length=MAX_ANNOTATION, pattern=NO_NUL, description="The value."),
        ],
    ],
    Field(max_length=MAX_ANNOTATIONS),
    Rule(
        "self.all(name, !({}))".format(
            " || ".join(f"name.startsWith('{one}')" for one in RESERVED_ANNOTATIONS)
        ),
        f"an annotation is reserved ({', '.join(RESERVED_ANNOTATIONS)}): only the operator's settings may have it",
        _may_annotate,
    ),
]


_LIMITS_RULE = cel(
    "!has(self.requests) || !has(self.limits) || self.requests.all(name, !(name in self.limits) || "
    "!quantity(string(self.requests[name])).isGreaterThan(quantity(string(self.limits[name]))))",
    "a request must not exceed the limit of the same name",
)


class Resources(Part):
    """Resource requests and limits of the session's container."""

    model_config = ConfigDict(json_schema_extra={VALIDATIONS: [_LIMITS_RULE]})

    requests: Mapping[str, Amount] | None = Field(
        None, max_length=20, description="Quantities by name, such as cpu: 500m."
    )
    limits: Mapping[str, Amount] | None = Field(
        None, max_length=20, description="Quantities by name, such as memory: 4Gi."
    )

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        limits = self.limits or {}
        for name, amount in (self.requests or {}).items():
            if name in limits and quantity(amount) > quantity(limits[name]):
                raise ValueError(f"requests.{name} is more than limits.{name}")
        return self

    @property
    def manifest(self) -> Json:
        """The resources that this session asks for; empty if none are set."""
        return self.model_dump(exclude_none=True)


_SPEC_RULES = [
    cel(
        f"self.interactive || self.prompt.matches(r'{NOT_BLANK}')",
        "prompt is empty: write the task, or set interactive",
        ".prompt",
    ),
    cel(
        "self.mainRepoIndex < self.repos.size()",
        "mainRepoIndex names no repository: the first of repos is 0",
        ".mainRepoIndex",
    ),
]
_PROMPT_RULE = cel(
    f"bytes(self).size() <= {MAX_PROMPT_BYTES}",
    f"prompt has at most {MAX_PROMPT_BYTES} bytes: put the long part into a file of a repository",
)
_STOP_RULE = cel("!oldSelf || self", "a stop cannot be undone")


class Spec(Part):
    """The desired session. Only stop, displayName and maxRestarts are mutable."""

    model_config = ConfigDict(json_schema_extra={VALIDATIONS: list(_SPEC_RULES)})

    prompt: str = Field(
        "",
        max_length=MAX_PROMPT_BYTES,
        pattern=NO_NUL,
        description="Task for Claude. May be empty if interactive.",
        json_schema_extra={VALIDATIONS: [_PROMPT_RULE]},
    )
    display_name: str | None = Field(None, max_length=200, description="Display name.")
    interactive: Flag = Field(
        False, description="Keep the session open, and read messages until one ends it."
    )
    repos: Repos = Field(
        description="Repositories of the workspace, cloned side by side."
    )
    main_repo_index: Whole = Field(
        0,
        ge=0,
        description="Index of the main repository, Claude's working directory (0 is the first).",
    )
    llm_settings: LlmSettings = LlmSettings()
    timeout: Seconds = Field(
        3600, description="Timeout of the session in seconds, restarts included."
    )
    idle_timeout: Seconds = Field(
        900,
        description="Longest time without activity in a turn, or without a message in interactive mode, in seconds.",
    )
    auto_push_on_complete: Flag = Field(
        False, description="Push the commits when the session is Completed."
    )
    environment: Environment = Environment()
    api_key_secret: SecretKey | None = Field(
        None,
        description="Key of the Claude API; by default the one of the operator's settings.",
    )
    resources: Resources = Resources()
    pod_annotations: PodAnnotations = Field(
        {},
        description="Annotations of the session's pod, besides those of the operator's settings.",
    )
    runtime_class_name: ObjectName | None = Field(
        None,
        description="Runtime class of the pod; by default the one of the operator's settings.",
    )
    priority_class_name: PriorityClass | None = Field(
        None,
        description="Priority class of the pod; by default the one of the operator's settings.",
    )
    trust_repositories: Flag = Field(
        False,
        description="Load the repositories' own .claude settings, hooks and .mcp.json, which can run commands.",
    )
    resume_from: SessionName | None = Field(
        None,
        description="Session in this namespace whose workspace and conversation this one continues.",
    )
    max_restarts: Whole = Field(
        2, ge=0, le=MAX_RESTARTS, description="Most restarts after a lost pod."
    )
    stop: Flag = Field(
        False,
        description="Stop the session; the workspace is saved first.",
        json_schema_extra={VALIDATIONS: [_STOP_RULE]},
    )

    @model_validator(mode="before")
    @classmethod
    def _prune(cls, data: Any) -> Any:
        return _without_nulls(data)


def _without_nulls(value: Any) -> Any:
    """Return a value without nulls, as the API server prunes them before it sets defaults. In a list they stay, and are refused."""
    if not isinstance(value, Mapping):
        return [_without_nulls(v) for v in value] if isinstance(value, list) else value
    return {k: _without_nulls(v) for k, v in value.items() if v is not None}


# ------------------------------------------------------------------ reading


@dataclass(frozen=True, slots=True)
class SessionResource:
    """A resource. `status` is the raw document, which `kube.status` interprets."""

    namespace: str
    name: str
    uid: str
    generation: int
    spec: Spec
    status: Json = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def folder(self) -> str:
        """Its folder behind the content proxy."""
        return content_folder(self.namespace, self.name, self.uid)


def read_resource(body: Mapping[str, Any]) -> SessionResource:
    """Return the resource in a document of the API server. Raises SpecRefused, which names the field."""
    meta = body.get("metadata") or {}
    try:
        spec = Spec.model_validate(dict(body.get("spec") or {}))
    except ValidationError as error:
        path, message = first_fault(error)
        raise SpecRefused(message, path=f"spec{path}") from None
    check_spec(spec)
    _check_name(meta["name"], spec)
    return resource_with(spec, body)


def resource_with(spec: Spec, body: Mapping[str, Any]) -> SessionResource:
    """Return the resource in a document, with another spec."""
    meta = body.get("metadata") or {}
    return SessionResource(
        namespace=meta.get("namespace") or "default",
        name=meta.get("name", ""),
        uid=meta.get("uid", ""),
        generation=meta.get("generation", 0),
        spec=spec,
        status=dict(body.get("status") or {}),
    )


def check_spec(spec: Spec) -> None:
    """Raise SpecRefused for a spec that breaks a rule across fields, as the CEL rules do."""
    if not fits(NOT_BLANK, spec.prompt) and not spec.interactive:
        raise SpecRefused("is empty", path="spec.prompt", hint="write the task")
    if len(spec.prompt.encode("utf-8", "replace")) > MAX_PROMPT_BYTES:
        raise SpecRefused(
            f"is longer than {MAX_PROMPT_BYTES} bytes",
            path="spec.prompt",
            hint="put the long part into a file of a repository, and name it",
        )
    if spec.main_repo_index >= len(spec.repos):
        raise SpecRefused(
            f"repository {spec.main_repo_index} does not exist",
            path="spec.mainRepoIndex",
            hint=f"the first is 0; there are {len(spec.repos)}",
        )
    reserved = sorted(filter(is_reserved, spec.environment.variables))
    if reserved:
        raise SpecRefused(
            f"{reserved[0]} is reserved",
            path="spec.environment.variables",
            hint=f"remove it: {RESERVED_HINT}",
        )


def _check_name(name: str, spec: Spec) -> None:
    if len(name) > MAX_NAME:
        raise SpecRefused(f"is longer than {MAX_NAME} characters", path="metadata.name")
    if "." in name:
        raise SpecRefused(
            "has dots, which names of pods must not have", path="metadata.name"
        )
    if spec.resume_from == name:
        raise SpecRefused("a session cannot continue itself", path="spec.resumeFrom")
