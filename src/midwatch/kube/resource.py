"""An `AgenticSession` resource as values, and `Spec`, the model of what a person asks for.

The model is the one source of the schema too: `crd` generates the CustomResourceDefinition from it, and from
`statuses.Status`, so the API server refuses what `read_resource` would. What only Kubernetes knows (rules in CEL, list types)
stands beside the field in `json_schema_extra` or `Rule`. The API server estimates the cost of a rule from the
bounds of what it reads: that is why every text, list and map has a bound.

The keys of a map can have no bound. Odd characters in the name of a variable are therefore the one thing that only
`read_resource` refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

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

from midwatch.kube.environment import RESERVED_PREFIXES, RESERVED_VARIABLES, is_reserved
from midwatch.kube.errors import SpecRefused
from midwatch.kube.rules import (
    BAD_BRANCH,
    DEVICE,
    FOLDER,
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
    SECRET_KEY,
    URL,
    URL_WITH_CREDENTIALS,
    VARIABLE_NAME,
    content_folder,
    fits,
    quantity,
)
from midwatch.model import Json
from midwatch.session.options import Effort

VALIDATIONS = "x-kubernetes-validations"
"""The key of a schema under which the API server finds rules in CEL."""
CHANGEABLE = frozenset({"stop", "displayName", "maxRestarts"})
"""Fields of `spec` that can be changed later: a running session heeds no other."""


def cel(expression: str, message: str, path: str | None = None) -> Json:
    """Return a rule in CEL as a schema has it; `path` is the field that is to blame."""
    rule = {"rule": expression, "message": message}
    return {**rule, "fieldPath": path} if path else rule


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that both readers of a value apply: an annotation of a field's type.

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

# What is not a number or a truth value in JSON is not one here: neither "3600" nor "yes" is read as one.
Whole = Annotated[int, Field(strict=True)]
Dollars = Annotated[float, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Seconds = Annotated[int, Field(strict=True, ge=1, le=MAX_SECONDS)]

Url = Annotated[
    str,
    Field(min_length=1, max_length=MAX_URL),
    Rule(
        f"self.matches(r'{URL}')",
        "not the URL of a repository: give https, http, ssh or git@host:path, without blanks",
        lambda url: fits(URL, url),
    ),
    Rule(
        f"!self.matches(r'{URL_WITH_CREDENTIALS}')",
        "credentials in the URL: give a token by a secret (environment.secrets, GIT_TOKEN)",
        lambda url: not fits(URL_WITH_CREDENTIALS, url),
    ),
]
Branch = Annotated[
    str,
    Field(min_length=1, max_length=MAX_BRANCH),
    Rule(
        f"!self.matches(r'{BAD_BRANCH}')",
        "not a name that git takes for a branch",
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
    Field(max_length=MAX_VARIABLE, pattern=NO_NUL, description="The value, as it is."),
]


def _check_variable_name(name: str) -> str:
    if not fits(VARIABLE_NAME, name):
        raise ValueError("not the name of a variable")
    return name


# No `pattern`: a structural schema can say nothing of the keys of a map.
VariableName = Annotated[
    str, Field(max_length=MAX_VARIABLE_NAME), AfterValidator(_check_variable_name)
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
    """A part of a resource: camelCase outside, frozen inside. Unknown fields are left out, as the API
    server prunes them. The docstring of a part is its description in the schema where a field gives none.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        defer_build=True,  # a validator is built when it is first used; that of a status hardly is
    )


# ------------------------------------------------------------------ spec


class GitPlace(Part):
    """Where it is cloned from."""

    url: Url = Field(description="https, http, ssh or git@host:path.")
    branch: Branch | None = Field(
        None, description="Where to start; the repository's own default."
    )


class PushPlace(Part):
    """Where commits are pushed to."""

    url: Url | None = Field(
        None, description="The repository; by default the one of input."
    )
    branch: Branch | None = Field(
        None, description="The branch; by default the session's own."
    )


class Repo(Part):
    """Cloned from input, pushed to output."""

    name: Folder | None = Field(
        None,
        description="Its folder in the workspace; by default the last part of its URL.",
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
        "a repository is named twice: name it once, or give its clones names",
        _cloned_once,
    ),
]


class LlmSettings(Part):
    """How Claude works; what is not said here the operator's settings say."""

    model: ModelName | None = Field(None, description="The model.")
    max_turns: Whole | None = Field(
        None, ge=1, le=1_000_000, description="Calls of the API in one turn."
    )
    max_budget_usd: Dollars | None = Field(
        None, gt=0, le=1_000_000, description="Dollars of the whole session."
    )
    effort: Effort | None = Field(None, description="How much the model thinks.")


class SecretKey(Part):
    """A key of a secret in the session's namespace."""

    name: ObjectName = Field(description="A secret of this namespace.")
    key: KeyName = Field("ANTHROPIC_API_KEY", description="The key in it.")


def _variable_rules() -> Json:
    reserved = ", ".join(f"'{name}'" for name in RESERVED_VARIABLES)
    # One by one: a prefix out of a list would have no bound in the estimate of older servers.
    begins = " || ".join(f"name.startsWith('{prefix}')" for prefix in RESERVED_PREFIXES)
    size = f"self.all(name, name.size() > 0 && name.size() <= {MAX_VARIABLE_NAME})"
    return {
        VALIDATIONS: [
            cel(
                size, f"the name of a variable has 1 to {MAX_VARIABLE_NAME} characters"
            ),
            cel(
                f"self.all(name, !(name in [{reserved}] || {begins}))",
                "a variable is reserved: fields of spec or the operator set it; keys and tokens come by secret",
            ),
        ]
    }


class Environment(Part):
    """Variables of the session."""

    secrets: tuple[Annotated[ObjectName, Field(description="Its name.")], ...] = Field(
        (),
        max_length=MAX_SECRETS,
        description="Secrets of this namespace: each of their keys becomes a variable.",
    )
    variables: Mapping[VariableName, VariableValue] = Field(
        {},
        max_length=MAX_VARIABLES,
        description="Literal values by name. Keys and tokens belong into secrets.",
        json_schema_extra=_variable_rules(),
    )


_LIMITS_RULE = cel(
    "!has(self.requests) || !has(self.limits) || self.requests.all(name, !(name in self.limits) || "
    "!quantity(string(self.requests[name])).isGreaterThan(quantity(string(self.limits[name]))))",
    "what is requested is at most the limit of the same name",
)


class Resources(Part):
    """What the session's container requests and is limited to."""

    model_config = ConfigDict(json_schema_extra={VALIDATIONS: [_LIMITS_RULE]})

    requests: Mapping[str, Amount] | None = Field(
        None, max_length=20, description="Amounts by name, such as cpu: 500m."
    )
    limits: Mapping[str, Amount] | None = Field(
        None, max_length=20, description="Amounts by name, such as memory: 4Gi."
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
        """As a container has it; empty where nothing is asked for."""
        return self.model_dump(exclude_none=True)


_SPEC_RULES = [
    cel(
        f"self.interactive || self.prompt.matches(r'{NOT_BLANK}')",
        "prompt is empty: say what to do, or set interactive",
        ".prompt",
    ),
    cel(
        "self.mainRepoIndex < self.repos.size()",
        "mainRepoIndex names no repository: it counts repos from 0",
        ".mainRepoIndex",
    ),
]
_PROMPT_RULE = cel(
    f"bytes(self).size() <= {MAX_PROMPT_BYTES}",
    f"prompt has at most {MAX_PROMPT_BYTES} bytes: put the long part into a file of a repository",
)
_STOP_RULE = cel("!oldSelf || self", "a stop cannot be taken back")


class Spec(Part):
    """What is asked for. Only stop, displayName and maxRestarts can be changed later."""

    model_config = ConfigDict(json_schema_extra={VALIDATIONS: list(_SPEC_RULES)})

    prompt: str = Field(
        "",
        max_length=MAX_PROMPT_BYTES,
        pattern=NO_NUL,
        description="What Claude should do. May be empty if interactive.",
        json_schema_extra={VALIDATIONS: [_PROMPT_RULE]},
    )
    display_name: str | None = Field(
        None, max_length=200, description="A name for people."
    )
    interactive: Flag = Field(
        False, description="Stay open and read messages until told to end."
    )
    repos: Repos = Field(
        description="The repositories of the workspace, cloned side by side."
    )
    main_repo_index: Whole = Field(
        0,
        ge=0,
        description="The repository that is Claude's working directory, counted from 0.",
    )
    llm_settings: LlmSettings = LlmSettings()
    timeout: Seconds = Field(
        3600, description="Longest run, restarts included, in seconds."
    )
    idle_timeout: Seconds = Field(
        900,
        description="Longest time without a sign of life in a turn, or without a message in interactive mode, in seconds.",
    )
    auto_push_on_complete: Flag = Field(
        False, description="Push what was done, once it is Completed."
    )
    environment: Environment = Environment()
    api_key_secret: SecretKey | None = Field(
        None,
        description="The key of the Claude API; by default the one of the operator's settings.",
    )
    resources: Resources = Resources()
    trust_repositories: Flag = Field(
        False,
        description="Load the repositories' own .claude settings, hooks and .mcp.json, which run what they say.",
    )
    resume_from: SessionName | None = Field(
        None,
        description="The session, of this namespace, whose workspace and conversation this one continues.",
    )
    max_restarts: Whole = Field(
        2, ge=0, le=MAX_RESTARTS, description="How often a lost pod is started again."
    )
    stop: Flag = Field(
        False,
        description="A request to stop: what was done is saved first.",
        json_schema_extra={VALIDATIONS: [_STOP_RULE]},
    )

    @model_validator(mode="before")
    @classmethod
    def _prune(cls, data: Any) -> Any:
        return _without_nulls(data)


def _without_nulls(value: Any) -> Any:
    """As the API server prunes them, before it puts in defaults; in a list they stay, and are refused."""
    if not isinstance(value, Mapping):
        return [_without_nulls(v) for v in value] if isinstance(value, list) else value
    return {k: _without_nulls(v) for k, v in value.items() if v is not None}


# ------------------------------------------------------------------ reading


@dataclass(frozen=True, slots=True)
class SessionResource:
    """A resource. `status` is the raw document: `statuses` knows its meaning."""

    namespace: str
    name: str
    uid: str
    generation: int
    spec: Spec
    status: Json = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
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
    """Return the resource in a document, with this for its spec."""
    meta = body.get("metadata") or {}
    return SessionResource(
        namespace=meta.get("namespace") or "default",
        name=meta.get("name", ""),
        uid=meta.get("uid", ""),
        generation=meta.get("generation", 0),
        spec=spec,
        status=dict(body.get("status") or {}),
    )


_PATTERNS = {
    MODEL: "not the name of a model",
    NO_NUL: "has a NUL",
    OBJECT_NAME: "not the name of an object",
    SECRET_KEY: "not a key of a secret",
}
"""What a text is that does not match, for people."""


def first_fault(error: ValidationError) -> tuple[str, str]:
    """Return the path of the first field that is wrong, such as `.repos[0].name`, and what is wrong with it."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in first["loc"])
    context = first.get("ctx", {})
    match first["type"]:
        case "string_pattern_mismatch":
            return path, _PATTERNS.get(context["pattern"], first["msg"])
        case "missing":
            return path, "is missing"
        case "too_short":
            return path, f"is empty: give at least {context['min_length']}"
        case "too_long":
            return path, f"takes at most {context['max_length']}"
    return path, first["msg"].removeprefix("Value error, ")


def check_spec(spec: Spec) -> None:
    """Check what single fields cannot say; the same as the rules in CEL. Raises SpecRefused."""
    if not fits(NOT_BLANK, spec.prompt) and not spec.interactive:
        raise SpecRefused("is empty", path="spec.prompt", hint="say what to do")
    if len(spec.prompt.encode("utf-8", "replace")) > MAX_PROMPT_BYTES:
        raise SpecRefused(
            f"is longer than {MAX_PROMPT_BYTES} bytes",
            path="spec.prompt",
            hint="put the long part into a file of a repository, and name it",
        )
    if spec.main_repo_index >= len(spec.repos):
        raise SpecRefused(
            f"there is no repository {spec.main_repo_index}",
            path="spec.mainRepoIndex",
            hint=f"it counts from 0; there are {len(spec.repos)}",
        )
    reserved = sorted(filter(is_reserved, spec.environment.variables))
    if reserved:
        raise SpecRefused(
            f"{reserved[0]} is set by the operator or must not be set",
            path="spec.environment.variables",
            hint="leave it out; the fields of spec say what it would, keys and tokens come by secret",
        )


def _check_name(name: str, spec: Spec) -> None:
    if len(name) > MAX_NAME:
        raise SpecRefused(f"is longer than {MAX_NAME} characters", path="metadata.name")
    if "." in name:
        raise SpecRefused(
            "has dots, which its pods' names must not", path="metadata.name"
        )
    if spec.resume_from == name:
        raise SpecRefused("a session cannot continue itself", path="spec.resumeFrom")
