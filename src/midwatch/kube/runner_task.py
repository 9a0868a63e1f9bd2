"""The task of a pod's runner: the variables of `environment`, checked together, and the refusal of wrong ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from midwatch.documents import DocumentError, read_json
from midwatch.errors import MidwatchError, SettingsError
from midwatch.kube.environment import (
    VARIABLES,
    PodVariables,
    RunnerEnvironment,
    not_set,
)
from midwatch.kube.resource import Repo
from midwatch.kube.spec_errors import first_fault
from midwatch.kube.status import Writer, merged, phase_changes, phase_conditions
from midwatch.kube.status_writer import StatusCluster, Target
from midwatch.lifecycle import Clock, SystemClock
from midwatch.model import Json
from midwatch.provider import ApiAccess, Provider
from midwatch.redaction import Redactor
from midwatch.session.events import (
    Event,
    Phase,
    PhaseChanged,
    Prompt,
    TurnResult,
    TurnStarted,
)
from midwatch.session.options import check_access, check_id, check_prompt
from midwatch.session.runner import CONTINUE_PROMPT, SIGNALS
from midwatch.session.status import SessionStatus, fold
from midwatch.workspace.environment import Credential
from midwatch.workspace.plan import RepoSpec, plan_workspace
from midwatch.workspace.urls import parse_remote

_REPOS: TypeAdapter[tuple[Repo, ...]] = TypeAdapter(tuple[Repo, ...])
_SHORTEST_SECRET = 8
"""Characters: redacting a shorter value, such as `true`, would garble ordinary text."""
_IDENTITY = frozenset(
    "SESSION_NAME SESSION_NAMESPACE SESSION_UID SESSION_GENERATION SESSION_ATTEMPT JOB_NAME POD_NAME STATUS".split()
)
"""Variables that identify the resource, where an error in any other variable is reported."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The session that the pod runs. `writes_status`: whether its status is written to a resource."""

    name: str
    namespace: str
    uid: str
    generation: int
    attempt: int
    job: str
    pod: str
    writes_status: bool

    @property
    def target(self) -> Target:
        writer = Writer(self.uid, self.generation, self.attempt)
        return Target(self.namespace, self.name, writer)


@dataclass(frozen=True, slots=True)
class ContentAccess:
    """URL, token and folder of the session behind the content proxy."""

    url: str
    token: str = field(repr=False)
    folder: str


@dataclass(frozen=True, slots=True)
class PodTask:
    """The task of a runner: its variables, and the values derived from them.

    Attributes:
        environment: The runner's variables.
        variables: All variables of the pod by their source, including those of the session's program.
        prompt: The prompt; None if an interactive session waits for its first message.
    """

    environment: RunnerEnvironment
    variables: PodVariables
    identity: Identity
    access: ApiAccess
    prompt: str | None
    repos: tuple[Repo, ...]
    content: ContentAccess | None
    credentials: tuple[Credential, ...]

    @property
    def specs(self) -> list[RepoSpec]:
        return [_spec(repo) for repo in self.repos]

    @property
    def secrets(self) -> list[str]:
        """Values that must not be logged: those from secrets, and those of other variables that look secret."""
        shapes, from_secrets = Redactor(), self.variables.hidden
        known = [s for one in self.credentials for s in one.secrets]
        if self.content is not None:
            known.append(self.content.token)
        known += [v for v in from_secrets if len(v.strip()) >= _SHORTEST_SECRET]
        for name, value in self.variables.of_the_program.items():
            if shapes.value({name: value}).get(name) != value:
                known.append(value)
        return [*self.access.secrets, *known]


def read_identity(environ: Mapping[str, str]) -> Identity:
    """Return the session's identity. Raises SettingsError, which names the variable."""
    return _identity(RunnerEnvironment.read(environ, _IDENTITY))


def read_task(variables: PodVariables, provider: Provider = "anthropic") -> PodTask:
    """Return the pod's task. Raises SettingsError, which names the variable and never contains a secret."""
    identity = read_identity(variables.own)
    given = RunnerEnvironment.read(variables.own)
    repos = _repos(given.repos_json)
    _check_apart(given.workspace_path, given.state_path, given.cache_path)
    task = PodTask(
        environment=given,
        variables=variables,
        identity=identity,
        access=_access(given, variables, provider),
        prompt=_prompt(given),
        repos=repos,
        content=_content(given),
        credentials=_credentials(given, repos),
    )
    _check_plan(task)
    return task


def _identity(given: RunnerEnvironment) -> Identity:
    try:
        check_id(given.session_name)
    except MidwatchError as error:
        raise SettingsError(error.message, path="SESSION_NAME") from None
    writes_status = given.status == "resource"
    if writes_status and not given.session_namespace:
        hint = "set it, or set STATUS=none if there is no resource"
        raise SettingsError("is empty", path="SESSION_NAMESPACE", hint=hint)
    return Identity(
        name=given.session_name,
        namespace=given.session_namespace,
        uid=given.session_uid,
        generation=given.session_generation,
        attempt=given.session_attempt,
        job=given.job_name,
        pod=given.pod_name,
        writes_status=writes_status,
    )


def _access(
    given: RunnerEnvironment, variables: PodVariables, provider: Provider
) -> ApiAccess:
    access = ApiAccess.from_environ(
        variables.own,
        api_key=given.anthropic_api_key,
        base_url=given.anthropic_base_url,
        provider=provider,
    )
    if not access.has_credentials:
        raise not_set("ANTHROPIC_API_KEY")
    try:
        return check_access(access)
    except MidwatchError as error:
        raise SettingsError(error.message, path="ANTHROPIC_API_KEY") from None


def _prompt(given: RunnerEnvironment) -> str | None:
    if not given.prompt and given.interactive:
        return None
    try:
        check_prompt(given.prompt)
    except MidwatchError as error:
        raise SettingsError(error.message, path="PROMPT", hint=error.hint) from None
    return given.prompt


def _repos(text: str) -> tuple[Repo, ...]:
    try:
        read_json(text)  # pydantic takes the last of two members of one name
        repos = _REPOS.validate_json(text)
    except DocumentError as error:
        raise SettingsError(error.message, path="REPOS_JSON") from None
    except ValidationError as error:
        where, what = first_fault(error)
        what = f"{where.removeprefix('.')}: {what}" if where else what
        hint = VARIABLES["REPOS_JSON"].meaning
        raise SettingsError(what, path="REPOS_JSON", hint=hint) from None
    if not repos:
        raise SettingsError(
            "the list is empty: name at least one repository", path="REPOS_JSON"
        )
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
    """Raise SettingsError for a workspace that would be refused later."""
    main = task.environment.main_repo_index
    if main >= len(task.repos):
        raise SettingsError(
            f"repository {main} does not exist",
            path="MAIN_REPO_INDEX",
            hint=f"the first is 0; there are {len(task.repos)}",
        )
    try:
        plan_workspace(task.specs, task.environment.workspace_path, main)
    except MidwatchError as error:
        raise SettingsError(error.message, path="REPOS_JSON", hint=error.hint) from None


def _check_apart(workspace: Path, state: Path, cache: Path) -> None:
    """Raise SettingsError if the workspace contains a folder that the runner trusts, or lies in one."""
    for name, path in (("STATE_PATH", state), ("CACHE_PATH", cache)):
        if path.is_relative_to(workspace) or workspace.is_relative_to(path):
            raise SettingsError(
                f"{path} and the workspace {workspace} overlap",
                path=name,
                hint="use separate folders, none inside the other",
            )


def _content(given: RunnerEnvironment) -> ContentAccess | None:
    if not given.content_url:
        return None
    if not given.content_token:
        raise not_set("CONTENT_TOKEN")
    if not given.content_folder:
        raise not_set("CONTENT_FOLDER")
    return ContentAccess(given.content_url, given.content_token, given.content_folder)


def _credentials(
    given: RunnerEnvironment, repos: tuple[Repo, ...]
) -> tuple[Credential, ...]:
    """Return the token with what it is for: GIT_HOST, else the one https host of the resource's repositories."""
    if not given.git_token:
        return ()
    scope = given.git_host or _only_host(repos)
    if not scope:
        return ()
    try:
        scope = scope if "://" in scope else f"https://{scope}"
        return (Credential(scope, given.git_token, given.git_username),)
    except MidwatchError as error:
        path = "GIT_HOST" if given.git_host else "GIT_TOKEN"
        raise SettingsError(error.message, path=path, hint=error.hint) from None


def _only_host(repos: tuple[Repo, ...]) -> str:
    """Return the https host of the repositories, empty without one. Raises SettingsError if there are more."""
    places = [one for repo in repos for one in (repo.input, repo.output) if one]
    try:
        remotes = [parse_remote(place.url) for place in places if place.url]
    except MidwatchError as error:
        raise SettingsError(error.message, path="REPOS_JSON", hint=error.hint) from None
    hosts = sorted({remote.host for remote in remotes if remote.scheme == "https"})
    if len(hosts) > 1:
        raise SettingsError(
            f"may be for one of {len(hosts)} hosts: {', '.join(hosts)}",
            path="GIT_TOKEN",
            hint="add GIT_HOST to its secret, such as https://github.com",
        )
    return hosts[0] if hosts else ""


REFUSE_WITHIN = 20.0
"""Seconds of retries. The exit code and the pod's log report the error too."""


async def refuse(
    identity: Identity,
    cluster: StatusCluster,
    error: SettingsError,
    clock: Clock | None = None,
) -> None:
    """Write Failed to the resource's status, if the API server can be reached."""
    clock = clock or SystemClock()
    target, story = identity.target, ("BadEnvironment", error.one_line())
    changes = phase_changes(Phase.FAILED, *story)
    conditions = phase_conditions(Phase.FAILED, *story)

    def propose(body: Json) -> Json | None:
        return merged(body, target.writer, changes, conditions, clock.now())

    with contextlib.suppress(MidwatchError):  # exit code 2 reports it as well
        await cluster.write_status(
            target.namespace, target.name, propose, give_up_after=REFUSE_WITHIN
        )


# ------------------------------------------------------------------ the prompt of a later pod


def next_prompt(events: Iterable[Event], prompt: str | None) -> str | None:
    """Return the prompt for a session after the events of earlier pods; None to answer the pending message.

    A session that already has the prompt gets none. If the end of the last pod interrupted a turn, the session is
    asked to continue: an interrupted turn counts as answered.
    """
    known = list(events)
    if not any(isinstance(e, Prompt) and e.source == "call" for e in known):
        return prompt
    if fold(SessionStatus(), known).unfinished:
        return None
    return CONTINUE_PROMPT if _interrupted_by_signal(known) else None


def _interrupted_by_signal(events: Iterable[Event]) -> bool:
    """Return whether the last turn was interrupted by the end of its pod."""
    outcome, cut = "", False
    for event in events:
        match event:
            case TurnStarted():
                outcome, cut = "", False
            case TurnResult():
                outcome = event.outcome
            case PhaseChanged() if event.phase.terminal:
                cut = cut or (outcome == "interrupted" and event.reason in SIGNALS)
    return cut
