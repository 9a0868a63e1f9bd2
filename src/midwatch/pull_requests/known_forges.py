"""Which forge a repository belongs to, and the token for it: from the settings, or github.com and gitlab.com."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from midwatch.errors import MidwatchError, SettingsError
from midwatch.pull_request_settings import ForgeSettings
from midwatch.pull_requests.github import GitHub
from midwatch.pull_requests.gitlab import GitLab
from midwatch.workspace.environment import Credential
from midwatch.workspace.urls import Remote, parse_remote

_PUBLIC = (
    ForgeSettings(host="https://github.com", kind="github"),
    ForgeSettings(host="https://gitlab.com", kind="gitlab"),
)
_KINDS: dict[str, type[GitHub] | type[GitLab]] = {"github": GitHub, "gitlab": GitLab}
_PATHS = {"github": "/api/v3", "gitlab": "/api/v4"}


@dataclass(frozen=True, slots=True)
class Place:
    """A repository at its forge: the forge, and the path of the repository there."""

    forge: GitHub | GitLab
    project: str


class KnownForges:
    """The forges of the settings, opened when a repository of theirs is met.

    Args:
        settings: The list `forges`.
        environ: The environment, for tokens that the settings name.
        credentials: The tokens of `sessions.git`, for forges without one of their own.
        timeout: Seconds of one request.
    """

    def __init__(
        self,
        settings: Sequence[ForgeSettings],
        environ: Mapping[str, str],
        credentials: Sequence[Credential],
        timeout: float,
    ) -> None:
        self._settings = (*settings, *_PUBLIC)
        self._environ = environ
        self._credentials = credentials
        self._timeout = timeout
        self._open: dict[tuple[str, str], GitHub | GitLab] = {}

    def of(self, url: str) -> Place:
        """Return the place of a repository. Raises SettingsError if its host is not known, or there is no token for it."""
        remote = parse_remote(url)
        for number, one in enumerate(self._settings):
            if _is_at(remote, one):
                return Place(self._forge(one, number, remote), _project(remote))
        raise SettingsError(
            f"{remote.url} is at no known forge, so no pull request can be opened for it",
            path="forges",
            hint="add its host: forges: [{host: https://HOST, kind: github or gitlab, token_variable: …}]",
        )

    def _forge(
        self, one: ForgeSettings, number: int, remote: Remote
    ) -> GitHub | GitLab:
        own = number < len(self._settings) - len(_PUBLIC)
        path = f"forges[{number}]" if own else "forges"
        api = api_of(one, path)
        token = read_token(one, self._environ, path) or self._of_git(remote)
        if token is None:
            raise SettingsError(
                f"there is no token for {one.host}",
                path=path,
                hint="name token_variable or token_file there, or a token in sessions.git",
            )
        if (api, token) not in self._open:
            self._open[api, token] = _KINDS[one.kind](api, token, self._timeout)
        return self._open[api, token]

    def _of_git(self, remote: Remote) -> str | None:
        """Return the token of `sessions.git` for a repository, also of one that is cloned by SSH."""
        host = remote.host.partition(":")[0] if remote.scheme == "ssh" else remote.host
        scheme = "http" if remote.scheme == "http" else "https"
        web = parse_remote(f"{scheme}://{host}/{'/'.join(remote.path)}")
        covering = [one for one in self._credentials if one.covers(web)]
        best = max(
            covering, key=lambda one: len(parse_remote(one.scope).path), default=None
        )
        return None if best is None else best.token

    async def close(self) -> None:
        """Close the connections."""
        for forge in self._open.values():
            await forge.close()


def _is_at(remote: Remote, one: ForgeSettings) -> bool:
    parts = urlsplit(one.host)
    if remote.scheme in ("https", "http"):
        return (remote.scheme, remote.host.lower()) == (
            parts.scheme,
            parts.netloc.lower(),
        )
    if remote.scheme != "ssh":
        return False
    _, _, host = remote.host.rpartition("@")
    return host.partition(":")[0].lower() == (parts.hostname or "")


def _project(remote: Remote) -> str:
    return "/".join(remote.path).removesuffix(".git")


def api_of(one: ForgeSettings, path: str) -> str:
    """Return the URL of the API. Raises SettingsError for one to which a token must not be sent."""
    api = one.api or f"{one.host}{_PATHS[one.kind]}"
    if one.api is None and one.host == "https://github.com":
        api = "https://api.github.com"
    parts = urlsplit(api)
    if parts.scheme != "https" and not _is_loopback(parts.hostname or ""):
        raise SettingsError(
            "the token would be sent without encryption",
            path=f"{path}.{'host' if one.api is None else 'api'}",
            hint="use https://",
        )
    return api


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(one: ForgeSettings, environ: Mapping[str, str], path: str) -> str | None:
    """Return the token of an entry; None if it names none. Raises SettingsError if it cannot be read."""
    if one.token_variable is not None and one.token_file is not None:
        raise SettingsError(
            "has token_variable and token_file", path=path, hint="name one of them"
        )
    if one.token_variable is not None:
        token, problem = environ.get(one.token_variable, ""), (
            f"the environment has no {one.token_variable}"
        )
    elif one.token_file is not None:
        token, problem = _read(one.token_file, path), f"{one.token_file} is empty"
    else:
        return None
    if not token.strip() or not token.strip().isprintable():
        raise SettingsError(
            problem, path=path, hint=f"set it to the token for {one.host}"
        )
    return token.strip()


def _read(file: Path, path: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"cannot read {file}: {error}", path=f"{path}.token_file"
        ) from None


def tokens_of(
    settings: Sequence[ForgeSettings], environ: Mapping[str, str]
) -> list[str]:
    """Return the tokens of the settings that can be read, for a redactor."""
    found = []
    for one in settings:
        try:
            found.append(read_token(one, environ, "forges") or "")
        except MidwatchError:
            continue
    return [token for token in found if token]
