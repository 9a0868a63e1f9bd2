"""The environment of a pod as values, read once. `RUNNER_VARIABLES` is the table of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from ...errors import MidwatchError, SettingsError
from ...redaction import Redactor
from ...session.checks import check_access, check_id, check_prompt
from ...session.options import ApiAccess
from ...workspace.environment import Credential
from ...workspace.plan import RepoSpec, plan_workspace
from ...workspace.urls import parse_remote
from ..resource import Effort, Repo
from ..statuses import Writer
from ..writer import Target
from .reading import TABLE, Reader, bad
from .variables import PodVariables

_REPOS: TypeAdapter[tuple[Repo, ...]] = TypeAdapter(tuple[Repo, ...])
_SHORTEST_SECRET = 8
"""Characters: a shorter value of a secret, such as `true`, would be taken out of ordinary text everywhere."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which session this is, and whether its resource is to be told of it."""

    name: str
    namespace: str
    uid: str
    generation: int
    attempt: int
    job: str
    pod: str
    told: bool

    @property
    def target(self) -> Target:
        writer = Writer(self.uid, self.generation, self.attempt)
        return Target(self.namespace, self.name, writer)


@dataclass(frozen=True, slots=True)
class ContentAccess:
    """Where the session's folder is kept."""

    url: str
    token: str = field(repr=False)
    folder: str


@dataclass(frozen=True, slots=True)
class PodTask:
    """All that a runner is told. Times are seconds; None is no limit, or what the settings say.

    `variables` has those of the resource's `spec.environment`, for the session's program.
    """

    identity: Identity
    access: ApiAccess
    workspace: Path
    state: Path
    cache: Path
    prompt: str | None
    interactive: bool
    repos: tuple[Repo, ...]
    main: int
    model: str | None
    max_turns: int | None
    max_usd: float | None
    effort: Effort | None
    timeout: float
    idle_timeout: float
    push: bool
    trust: bool
    resume_from: str | None
    resume_from_folder: str | None
    content: ContentAccess | None
    sync_interval: float
    status_interval: float
    credentials: tuple[Credential, ...] = ()
    variables: PodVariables = PodVariables({}, {}, {})
    termination_grace: float = 60.0

    @property
    def specs(self) -> list[RepoSpec]:
        return [_spec(repo) for repo in self.repos]

    @property
    def secrets(self) -> list[str]:
        """Values that must not be told: what came by secret, and what of the other variables looks secret."""
        shapes, from_secrets = Redactor(), self.variables.hidden
        known = [s for one in self.credentials for s in one.secrets]
        if self.content is not None:
            known.append(self.content.token)
        known += [v for v in from_secrets if len(v.strip()) >= _SHORTEST_SECRET]
        for name, value in self.variables.of_the_program.items():
            if shapes.value({name: value}).get(name) != value:
                known.append(value)
        return [self.access.api_key, *known]


def read_identity(environ: Mapping[str, str]) -> Identity:
    """Which session this is. Raises SettingsError, which names the variable."""
    read = Reader(environ)
    name = read.required("SESSION_NAME")
    try:
        check_id(name)
    except MidwatchError as error:
        raise SettingsError(error.message, path="SESSION_NAME") from None
    told = read.choice("STATUS", ("resource", "none")) == "resource"
    if told and not read.text("SESSION_NAMESPACE"):
        hint = "set it, or STATUS=none where there is no resource"
        raise SettingsError("is empty", path="SESSION_NAMESPACE", hint=hint)
    return Identity(
        name=name,
        namespace=read.text("SESSION_NAMESPACE"),
        uid=read.text("SESSION_UID"),
        generation=read.whole("SESSION_GENERATION", least=0),
        attempt=read.whole("SESSION_ATTEMPT", least=1),
        job=read.text("JOB_NAME"),
        pod=read.text("POD_NAME"),
        told=told,
    )


def read_task(variables: PodVariables) -> PodTask:
    """All of it. Raises SettingsError, which names the variable and never repeats a secret."""
    read = Reader(variables.own)
    identity = read_identity(variables.own)
    interactive = read.flag("INTERACTIVE")
    repos = _repos(read)
    workspace, state, cache = (
        read.folder(name) for name in ("WORKSPACE_PATH", "STATE_PATH", "CACHE_PATH")
    )
    _check_apart(workspace, state, cache)
    task = PodTask(
        identity=identity,
        access=_access(read),
        workspace=workspace,
        state=state,
        cache=cache,
        prompt=_prompt(read, interactive),
        interactive=interactive,
        repos=repos,
        main=read.whole("MAIN_REPO_INDEX", least=0),
        model=read.optional("MODEL"),
        max_turns=read.optional_whole("MAX_TURNS", least=1),
        max_usd=read.amount("MAX_BUDGET_USD"),
        effort=_effort(read),
        timeout=read.seconds("TIMEOUT"),
        idle_timeout=read.seconds("IDLE_TIMEOUT"),
        push=read.flag("AUTO_PUSH_ON_COMPLETE"),
        trust=read.flag("TRUST_REPOSITORIES"),
        resume_from=read.optional("RESUME_FROM"),
        resume_from_folder=read.optional("RESUME_FROM_FOLDER"),
        content=_content(read),
        sync_interval=read.seconds("SYNC_INTERVAL"),
        status_interval=read.seconds("STATUS_INTERVAL"),
        credentials=_credentials(read, repos),
        variables=variables,
        termination_grace=read.seconds("TERMINATION_GRACE"),
    )
    _check_plan(task)
    return task


def _access(read: Reader) -> ApiAccess:
    key = read.required("ANTHROPIC_API_KEY")
    try:
        return check_access(ApiAccess(key, read.optional("ANTHROPIC_BASE_URL")))
    except MidwatchError as error:
        raise SettingsError(error.message, path="ANTHROPIC_API_KEY") from None


def _prompt(read: Reader, interactive: bool) -> str | None:
    prompt = read.optional("PROMPT")
    if prompt is None and interactive:
        return None
    try:
        check_prompt(prompt or "")
    except MidwatchError as error:
        raise SettingsError(error.message, path="PROMPT", hint=error.hint) from None
    return prompt


def _effort(read: Reader) -> Effort | None:
    value = read.optional("EFFORT")
    efforts: tuple[Effort, ...] = get_args(Effort)
    for effort in efforts:
        if value == effort:
            return effort
    if value is None:
        return None
    raise bad("EFFORT", value, f"choose from {', '.join(efforts)}")


def _repos(read: Reader) -> tuple[Repo, ...]:
    text = read.required("REPOS_JSON")
    try:
        repos = _REPOS.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{where}: {first['msg']}" if where else first["msg"]
        hint = TABLE["REPOS_JSON"].meaning
        raise SettingsError(what, path="REPOS_JSON", hint=hint) from None
    if not repos:
        raise SettingsError("names no repository", path="REPOS_JSON")
    return repos


def _spec(repo: Repo) -> RepoSpec:
    output = repo.output
    return RepoSpec(
        repo.input.url,
        branch=repo.input.branch,
        name=repo.name,
        push_url=None if output is None else output.url,
        push_branch=None if output is None else output.branch,
    )


def _check_plan(task: PodTask) -> None:
    """What would be refused later is refused now. Raises SettingsError."""
    if task.main >= len(task.repos):
        raise SettingsError(
            f"there is no repository {task.main}",
            path="MAIN_REPO_INDEX",
            hint=f"it counts from 0; there are {len(task.repos)}",
        )
    try:
        plan_workspace(task.specs, task.workspace, task.main)
    except MidwatchError as error:
        raise SettingsError(error.message, path="REPOS_JSON", hint=error.hint) from None


def _check_apart(workspace: Path, state: Path, cache: Path) -> None:
    """What the agent writes to must not hold what the runner trusts, nor the other way round."""
    for name, path in (("STATE_PATH", state), ("CACHE_PATH", cache)):
        if path.is_relative_to(workspace) or workspace.is_relative_to(path):
            raise SettingsError(
                f"{path} and the workspace {workspace} are in each other",
                path=name,
                hint="put them side by side",
            )


def _content(read: Reader) -> ContentAccess | None:
    url = read.optional("CONTENT_URL")
    if url is None:
        return None
    if not url.startswith(("http://", "https://")):
        raise bad("CONTENT_URL", url, "write it like https://content.midwatch:8443")
    token = read.required("CONTENT_TOKEN")
    return ContentAccess(url, token, read.required("CONTENT_FOLDER"))


def _credentials(read: Reader, repos: tuple[Repo, ...]) -> tuple[Credential, ...]:
    """The token for the https hosts that the resource names, and for no other."""
    token = read.optional("GIT_TOKEN")
    if token is None:
        return ()
    username = read.text("GIT_USERNAME")
    places = [one for repo in repos for one in (repo.input, repo.output) if one]
    try:
        remotes = [parse_remote(place.url) for place in places if place.url]
        hosts = {remote.host for remote in remotes if remote.scheme == "https"}
        return tuple(
            Credential(f"https://{host}", token, username) for host in sorted(hosts)
        )
    except MidwatchError as error:
        path = "GIT_TOKEN" if "token" in error.message else "REPOS_JSON"
        raise SettingsError(error.message, path=path, hint=error.hint) from None
