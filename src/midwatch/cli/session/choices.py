"""What may be chosen for one session, over the settings that hold for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from pydantic import TypeAdapter, ValidationError

from midwatch.cli.session.places import Place, Places
from midwatch.errors import SettingsError
from midwatch.model import Json
from midwatch.session.options import Limits, SandboxWish, SessionOptions, SubagentSpec
from midwatch.settings import GitCredentialSettings, SessionSettings
from midwatch.workspace.environment import Credential, GitEnvironment
from midwatch.workspace.setup import WorkspaceOptions


@dataclass(frozen=True, slots=True)
class Choices:
    """None: as the settings have it. `wall` and `idle` are seconds."""

    model: str | None = None
    trust: bool | None = None
    sandbox: SandboxWish | None = None
    max_turns: int | None = None
    max_usd: float | None = None
    wall: float | None = None
    idle: float | None = None
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def over(self, earlier: Choices) -> Choices:
        """These, and where they say nothing, those that were made before."""
        made = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            earlier, **{n: v for n, v in made.items() if v is not None and v != ()}
        )

    def to_json(self) -> Json:
        """Only what was chosen; a no is a choice."""
        made = asdict(self).items()
        return {name: value for name, value in made if value is not None}


_CHOICES = TypeAdapter(Choices)


def choices_of(document: object) -> Choices:
    """The choices that a record holds; none where it holds something else."""
    try:
        return _CHOICES.validate_python(document or {})
    except ValidationError:
        return Choices()


def session_options(
    settings: SessionSettings, chosen: Choices, spent: float = 0.0
) -> SessionOptions:
    """The options of a run; `spent` dollars of the session's limit are gone already."""
    max_usd = chosen.max_usd or settings.max_usd
    trust = settings.trust_repository if chosen.trust is None else chosen.trust
    return SessionOptions(
        model=chosen.model or settings.model,
        fallback_model=settings.fallback_model,
        effort=settings.effort,
        permission_mode=settings.permission_mode,
        allowed_tools=(*settings.allowed_tools, *chosen.allow),
        denied_tools=(*settings.denied_tools, *chosen.deny),
        mcp_servers=settings.mcp_servers,
        subagents={
            name: SubagentSpec(
                one.description,
                one.prompt,
                None if one.tools is None else tuple(one.tools),
                one.model,
            )
            for name, one in settings.subagents.items()
        },
        trust_repository=trust,
        sandbox=chosen.sandbox or settings.sandbox,
        limits=Limits(
            wall=chosen.wall or settings.wall,
            idle=chosen.idle or settings.idle,
            max_turns=chosen.max_turns or settings.max_turns,
            max_usd=None if max_usd is None else max(max_usd - spent, 0.0),
            retries=settings.retries,
            permission_wait=settings.permission_wait,
        ),
        variables=settings.variables,
    )


def workspace_options(
    settings: SessionSettings,
    places: Places,
    place: Place,
    environment: GitEnvironment,
) -> WorkspaceOptions:
    """How the workspace of a session is set up, looked at and pushed."""
    return WorkspaceOptions(
        session=place.id,
        cache=places.cache,
        state=place.state,
        mirror_bytes=int(settings.cache_size),
        environment=environment,
    )


def git_environment(
    settings: SessionSettings, environ: Mapping[str, str]
) -> GitEnvironment:
    """What git may know, with the tokens that the settings name. Raises SettingsError."""
    tokens = [
        Credential(
            one.host, _token(one, environ, f"sessions.git[{number}]"), one.username
        )
        for number, one in enumerate(settings.git)
    ]
    return GitEnvironment.from_environ(environ, tokens)


def _token(one: GitCredentialSettings, environ: Mapping[str, str], path: str) -> str:
    if (one.token_variable is None) == (one.token_file is None):
        raise SettingsError(
            "needs either token_variable or token_file",
            path=path,
            hint="the token itself never stands in the settings",
        )
    if one.token_variable is not None:
        token = environ.get(one.token_variable, "").strip()
        where = f"the environment has no {one.token_variable}"
    else:
        assert one.token_file is not None
        try:
            token = one.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"cannot read {one.token_file}: {error}", path=f"{path}.token_file"
            ) from error
        where = f"{one.token_file} is empty"
    if not token:
        raise SettingsError(where, path=path, hint=f"it holds the token for {one.host}")
    return token
