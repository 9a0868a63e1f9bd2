"""An `AgenticSession` resource as values. `crd` refuses at the API server what `read_resource` would.

`Spec` mirrors `spec` of the resource, field by field; names in it are those of Python. One thing only
`read_resource` refuses: odd characters in the name of a variable, see `spec_schema`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from ..model import Json
from .errors import SpecRefused
from .names import MAX_NAME, content_folder
from .rules import (
    BAD_BRANCH,
    DEVICE,
    FOLDER,
    MAX_BRANCH,
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
    fits,
    is_reserved,
    quantity,
)

Effort = Literal["low", "medium", "high", "xhigh", "max"]
# What is no number or no truth in JSON is none here either: neither "3600" nor "yes" is read as one.
Whole = Annotated[int, Field(strict=True)]
Dollars = Annotated[float, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]


def _shaped(pattern: str, what: str) -> AfterValidator:
    def check(text: str) -> str:
        if not fits(pattern, text):
            raise ValueError(what)
        return text

    return AfterValidator(check)


def _check_url(url: str) -> str:
    if not fits(URL, url):
        raise ValueError("not the URL of a repository: give https, ssh or git@host")
    if fits(URL_WITH_CREDENTIALS, url):
        raise ValueError("credentials in the URL: give a token by a secret")
    return url


def _check_branch(branch: str) -> str:
    if fits(BAD_BRANCH, branch):
        raise ValueError("not a name that git takes for a branch")
    return branch


def _check_folder(name: str) -> str:
    if not fits(FOLDER, name) or fits(DEVICE, name.lower()):
        raise ValueError("not the name of a folder: use letters, digits, dots, dashes")
    return name


Url = Annotated[
    str, Field(min_length=1, max_length=MAX_URL), AfterValidator(_check_url)
]
Branch = Annotated[
    str, Field(min_length=1, max_length=MAX_BRANCH), AfterValidator(_check_branch)
]
Folder = Annotated[
    str, Field(min_length=1, max_length=100), AfterValidator(_check_folder)
]
ObjectName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    _shaped(OBJECT_NAME, "not the name of an object"),
]
VariableName = Annotated[
    str,
    Field(max_length=MAX_VARIABLE_NAME),
    _shaped(VARIABLE_NAME, "not the name of a variable"),
]
VariableValue = Annotated[
    str, Field(max_length=MAX_VARIABLE), _shaped(NO_NUL, "has a NUL")
]


class Part(BaseModel):
    """A part of a resource: camelCase outside, frozen inside. Unknown fields are left out, as the API
    server prunes them."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore"
    )


class GitPlace(Part):
    """A repository and a branch of it; without a branch, the repository's default."""

    url: Url
    branch: Branch | None = None


class PushPlace(Part):
    """Where commits go: without a URL to where they came from, without a branch to the session's own."""

    url: Url | None = None
    branch: Branch | None = None


class Repo(Part):
    """Cloned from `input`, pushed to `output` (to `input` without one). `name` is the folder's."""

    name: Folder | None = None
    input: GitPlace
    output: PushPlace | None = None


class LlmSettings(Part):
    """None is what the operator's settings say."""

    model: Annotated[str, _shaped(MODEL, "no name of a model")] | None = Field(
        None, min_length=1, max_length=100
    )
    max_turns: Whole | None = Field(None, ge=1, le=1_000_000)
    max_budget_usd: Dollars | None = Field(None, gt=0, le=1_000_000)
    effort: Effort | None = None


class SecretKey(Part):
    """A key of a secret in the session's namespace."""

    name: ObjectName
    key: Annotated[str, _shaped(SECRET_KEY, "not a key of a secret")] = Field(
        "ANTHROPIC_API_KEY", min_length=1, max_length=253
    )


class Environment(Part):
    """`secrets` are names: all their keys become variables. `variables` are literal."""

    secrets: tuple[ObjectName, ...] = Field((), max_length=MAX_SECRETS)
    variables: Mapping[VariableName, VariableValue] = Field(
        default_factory=dict, max_length=MAX_VARIABLES
    )


def _check_resources(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Only `requests` and `limits` stay, each with amounts by name."""
    kept: dict[str, dict[str, Any]] = {}
    for part in ("requests", "limits"):
        amounts = given.get(part)
        if amounts is None:
            continue
        if not isinstance(amounts, Mapping) or len(amounts) > 20:
            raise ValueError(f"{part} are at most 20 amounts by name")
        for name, amount in amounts.items():
            if isinstance(amount, bool) or not isinstance(amount, int | str):
                raise ValueError(f"{part}.{name} is no amount such as 500m or 2Gi")
            if len(str(amount)) > 30 or not fits(QUANTITY, str(amount)):
                raise ValueError(f"{part}.{name} is no amount such as 500m or 2Gi")
        kept[part] = dict(amounts)
    limits = kept.get("limits", {})
    for name, amount in kept.get("requests", {}).items():
        if name in limits and quantity(amount) > quantity(limits[name]):
            raise ValueError(f"requests.{name} is more than limits.{name}")
    return kept


class Spec(Part):
    """What a person asks for. `timeout` and `idle_timeout` are seconds."""

    prompt: Annotated[str, _shaped(NO_NUL, "has a NUL")] = Field(
        "", max_length=MAX_PROMPT_BYTES
    )
    display_name: str | None = Field(None, max_length=200)
    interactive: Flag = False
    repos: tuple[Repo, ...] = Field((), max_length=MAX_REPOS)
    main_repo_index: Whole = Field(0, ge=0)
    llm_settings: LlmSettings = LlmSettings()
    timeout: Whole = Field(3600, ge=1, le=MAX_SECONDS)
    idle_timeout: Whole = Field(900, ge=1, le=MAX_SECONDS)
    auto_push_on_complete: Flag = False
    environment: Environment = Environment()
    api_key_secret: SecretKey | None = None
    resources: Annotated[Mapping[str, Any], AfterValidator(_check_resources)] = Field(
        default_factory=dict
    )
    trust_repositories: Flag = False
    resume_from: ObjectName | None = Field(None, max_length=MAX_NAME)
    max_restarts: Whole = Field(2, ge=0, le=MAX_RESTARTS)
    stop: Flag = False

    @model_validator(mode="before")
    @classmethod
    def _prune(cls, data: Any) -> Any:
        return _without_nulls(data)


def _without_nulls(value: Any) -> Any:
    """As the API server prunes them, before it puts in defaults; in a list they stay, and are refused."""
    if not isinstance(value, Mapping):
        return [_without_nulls(v) for v in value] if isinstance(value, list) else value
    return {k: _without_nulls(v) for k, v in value.items() if v is not None}


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
    """The resource in a document of the API server. Raises SpecRefused, which names the field."""
    meta = body.get("metadata") or {}
    try:
        spec = Spec.model_validate(dict(body.get("spec") or {}))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = "spec" + "".join(_step(part) for part in first["loc"])
        raise SpecRefused(
            first["msg"].removeprefix("Value error, "), path=path
        ) from None
    check_spec(spec)
    _check_name(meta["name"], spec)
    return resource_with(spec, body)


def resource_with(spec: Spec, body: Mapping[str, Any]) -> SessionResource:
    """The resource in a document, with this for its spec."""
    meta = body.get("metadata") or {}
    return SessionResource(
        namespace=meta.get("namespace") or "default",
        name=meta.get("name", ""),
        uid=meta.get("uid", ""),
        generation=meta.get("generation", 0),
        spec=spec,
        status=dict(body.get("status") or {}),
    )


def _step(part: int | str) -> str:
    return f"[{part}]" if isinstance(part, int) else f".{part}"


def check_spec(spec: Spec) -> None:
    """What single fields cannot say; the same as the CEL rules. Raises SpecRefused."""
    if not fits(NOT_BLANK, spec.prompt) and not spec.interactive:
        raise SpecRefused("is empty", path="spec.prompt", hint="say what to do")
    if len(spec.prompt.encode("utf-8", "replace")) > MAX_PROMPT_BYTES:
        raise SpecRefused(
            f"is longer than {MAX_PROMPT_BYTES} bytes",
            path="spec.prompt",
            hint="put the long part into a file of a repository, and name it",
        )
    _check_repos(spec)
    reserved = sorted(filter(is_reserved, spec.environment.variables))
    if reserved:
        raise SpecRefused(
            f"{reserved[0]} is set by the operator or must not be set",
            path="spec.environment.variables",
            hint="leave it out; the fields of spec say what it would, keys and tokens come by secret",
        )


def _check_repos(spec: Spec) -> None:
    if not spec.repos:
        raise SpecRefused("names no repository", path="spec.repos")
    if spec.main_repo_index >= len(spec.repos):
        raise SpecRefused(
            f"there is no repository {spec.main_repo_index}",
            path="spec.mainRepoIndex",
            hint=f"it counts from 0; there are {len(spec.repos)}",
        )
    names = [repo.name.lower() for repo in spec.repos if repo.name]
    if len(set(names)) < len(names):
        raise SpecRefused("two have the same name", path="spec.repos")
    unnamed = [(r.input.url, r.input.branch) for r in spec.repos if not r.name]
    if len(set(unnamed)) < len(unnamed):
        raise SpecRefused(
            "one is named twice",
            path="spec.repos",
            hint="name it once, or give its clones names",
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
