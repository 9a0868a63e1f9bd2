"""What `midwatch check` says of runbooks, repositories, forges, the cluster for sessions and the senders of webhooks about changes."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from midwatch.cli.app import (
    Edge,
    check_hooks,
    git_and_mirrors,
    open_database,
    open_runbooks,
    secrets_of,
)
from midwatch.cli.finding import SETTINGS, Finding, Grade, failed, ok, warning
from midwatch.errors import MidwatchError, SettingsError, TemporaryError
from midwatch.units import format_count, format_duration

if TYPE_CHECKING:
    from midwatch.change_settings import ChangeHookSettings
    from midwatch.pull_requests.known_forges import KnownForges
    from midwatch.redaction import Redactor
    from midwatch.runbooks.library import Source
    from midwatch.settings import Settings
    from midwatch.workspace.git import Git

_MOST_PROBLEMS = 20  # lines on the runbooks of one source
_SHORTEST_SECRET = 16  # characters
_REPORTS = "changes:write"


async def around(edge: Edge, settings: Settings) -> AsyncIterator[Finding]:
    """Yield what is found of all that is around the subjects: what was written on them, and what changes them."""
    for check in (_runbooks, _repositories, _forges, _session_cluster, _hooks):
        for finding in await check(edge, settings):
            yield finding


# ------------------------------------------------------------------ runbooks


async def _runbooks(edge: Edge, settings: Settings) -> list[Finding]:
    """Read the runbooks once: a line for each source, and one for each file that cannot be used."""
    from midwatch.logs import quiet_log
    from midwatch.redaction import Redactor

    redactor = Redactor(secrets_of(settings, edge.environ))
    library = open_runbooks(settings, edge.environ, redactor, quiet_log())
    if library is None:
        return []
    try:
        await library.load()
    finally:
        await library.close()
    return [finding for one in library.sources for finding in _source(one)]


def _source(source: Source) -> list[Finding]:
    from midwatch.runbooks.library import problem_lines

    what, listing = f"runbooks {source.name}", source.listing
    text = format_count(len(listing.runbooks), "runbook")
    if listing.unmarked:
        text += f"; without front matter, not used: {', '.join(listing.unmarked)}"
    if not source.away:
        found = [ok(what, text)]
    elif listing.runbooks:
        found = [warning(what, f"{text} of an earlier copy: {source.away}")]
    else:
        found = [Finding(what, Grade.FAILED, source.away)]
    lines = list(problem_lines(source))
    found += [warning(what, line) for line in lines[:_MOST_PROBLEMS]]
    if len(lines) > _MOST_PROBLEMS:
        more = len(lines) - _MOST_PROBLEMS
        found.append(warning(what, f"and {more:,} more; see `midwatch runbooks list`"))
    return found


# ------------------------------------------------------------------ repositories, and pull requests in them

_REPOSITORY_SECONDS = 20.0


async def _repositories(edge: Edge, settings: Settings) -> list[Finding]:
    """Return a finding for each repository of a subject: without it first aid knows no commits."""
    wanted = {
        (one["url"], one.get("branch"))
        for subject in settings.subjects
        for one in subject.get("repositories") or ()
    }
    if not wanted:
        return []
    try:
        git, _ = git_and_mirrors(settings, edge.environ)
    except SettingsError as error:
        return [failed("sessions.git", error)]
    asked = (_repository(git, url, branch) for url, branch in sorted(wanted, key=str))
    return list(await asyncio.gather(*asked))


async def _repository(git: Git, url: str, branch: str | None) -> Finding:
    from midwatch.workspace.refs import ask_remote
    from midwatch.workspace.urls import parse_remote, redact_url

    what = f"repository {redact_url(url)}"
    try:
        async with asyncio.timeout(_REPOSITORY_SECONDS):
            found = await ask_remote(git, parse_remote(url), branch)
    except MidwatchError as error:
        return warning(what, f"its commits are unknown: {error.one_line()}")
    except TimeoutError:
        limit = format_duration(_REPOSITORY_SECONDS)
        return warning(what, f"its commits are unknown: no answer within {limit}")
    name = branch or found.default_branch or ""
    if f"refs/heads/{name}" not in found.refs:
        return warning(
            what, f"it has no branch {name}: check `repositories` of its subject"
        )
    return ok(what, f"branch {name}")


async def _forges(edge: Edge, settings: Settings) -> list[Finding]:
    """Return a finding for each token that cannot be read, and for each repository: whether a pull request can be opened.

    Without `forges` a repository is left out if there is no token for it: then no pull requests are wanted there.
    """
    from midwatch.pull_requests.known_forges import KnownForges, api_of, read_token
    from midwatch.redaction import Redactor
    from midwatch.session.options import git_environment

    found = []
    for number, one in enumerate(settings.forges):
        try:
            api_of(one, path := f"forges[{number}]")
            read_token(one, edge.environ, path)
        except SettingsError as error:
            found.append(failed(f"forge {one.host}", error))
    if found:
        return found
    try:
        credentials = git_environment(settings.sessions, edge.environ).credentials
    except SettingsError:  # the line of the repositories says so
        return []
    redactor = Redactor(secrets_of(settings, edge.environ))
    timeout = settings.pull_requests.timeout
    forges = KnownForges(settings.forges, edge.environ, credentials, timeout)
    wanted = {
        one["url"]: one.get("branch")
        for subject in settings.subjects
        for one in subject.get("repositories") or ()
    }
    asked = [
        _forge(forges, url, branch, redactor, wants=bool(settings.forges))
        for url, branch in sorted(wanted.items())
    ]
    try:
        return [one for one in await asyncio.gather(*asked) if one is not None]
    finally:
        await forges.close()


async def _forge(
    forges: KnownForges,
    url: str,
    branch: str | None,
    redactor: Redactor,
    *,
    wants: bool,
) -> Finding | None:
    from midwatch.workspace.urls import redact_url

    what = f"pull requests {redact_url(url)}"
    try:
        place = forges.of(url)
    except SettingsError as error:
        return failed(what, error) if wants else None
    try:
        async with asyncio.timeout(_REPOSITORY_SECONDS):
            found = await place.forge.repository(place.project)
    except MidwatchError as error:
        grade = Grade.FAILED if wants else Grade.WARNING
        grade = Grade.WARNING if isinstance(error, TemporaryError) else grade
        return Finding(what, grade, redactor.text(error.one_line()))
    except TimeoutError:
        limit = format_duration(_REPOSITORY_SECONDS)
        return warning(
            what, f"no answer within {limit}: check `forges` and the network"
        )
    noun, base = place.forge.noun, branch or found.default_branch
    if found.problem:
        return warning(what, f"no {noun} can be opened: {found.problem}")
    if base is None:
        return warning(
            what, "it has no default branch: write `branch` into the subject"
        )
    return ok(what, f"the token sees it; a {noun} is for {base}")


async def _session_cluster(edge: Edge, settings: Settings) -> list[Finding]:
    """Return whether the server could create a session in the cluster, if it is to."""
    chosen = settings.server.session_cluster
    if chosen is None:
        return []
    from midwatch.cli.session.cluster_sessions import try_to_create

    what = f"sessions in {chosen.namespace}"
    try:
        async with asyncio.timeout(_REPOSITORY_SECONDS):
            await try_to_create(chosen)
    except MidwatchError as error:
        return [failed(what, error)]
    except TimeoutError:
        limit = format_duration(_REPOSITORY_SECONDS)
        return [Finding(what, Grade.FAILED, f"no answer within {limit}")]
    return [ok(what, "an AgenticSession can be created")]


# ------------------------------------------------------------------ webhooks about changes


async def _hooks(edge: Edge, settings: Settings) -> list[Finding]:
    """Return a finding for each sender of webhooks: whether its requests can be distinguished from forged ones."""
    if not settings.changes.hooks:
        return []
    try:
        check_hooks(settings)
    except SettingsError as error:
        return [failed(SETTINGS, error)]
    with_token = None
    if not all(one.signing_secrets for one in settings.changes.hooks):
        with_token = await _tokens(edge)
    found = []
    for hook in settings.changes.hooks:
        what = f"changes hook {hook.sender}/{hook.name}"
        problems = _problems(hook, with_token)
        if settings.server.listen is None:
            problems = [*problems, "nothing can be sent to it: set server.listen"]
        proof = format_count(len(hook.signing_secrets), "signing secret")
        says = proof if hook.signing_secrets else f"bearer token with {_REPORTS}"
        found += [warning(what, text) for text in problems] or [ok(what, says)]
    return found


async def _tokens(edge: Edge) -> int | None:
    """Return how many tokens may report changes; None if the database does not tell."""
    try:
        async with open_database(edge) as store:
            return sum(_REPORTS in one.scopes for one in await store.tokens())
    except MidwatchError:
        return None


def _problems(hook: ChangeHookSettings, tokens: int | None) -> Sequence[str]:
    if not hook.signing_secrets and tokens == 0:
        return [
            f"no token may use it, and it has no signing_secrets: `midwatch tokens create NAME --scope {_REPORTS}`"
        ]
    secrets = [one.get_secret_value() for one in hook.signing_secrets]
    problems = []
    if any(len(one) < _SHORTEST_SECRET for one in secrets):
        problems.append(
            f"a signing secret has less than {_SHORTEST_SECRET} characters and can be guessed: use one of `openssl rand -hex 32`"
        )
    if hook.sender == "gitlab" and not all(map(_is_whole, secrets)):
        problems.append(
            "a signing token is not base64 after whsec_: copy it from GitLab again, whole"
        )
    return problems


def _is_whole(secret: str) -> bool:
    if not secret.startswith("whsec_"):
        return True
    try:
        return bool(base64.b64decode(secret.removeprefix("whsec_"), validate=True))
    except ValueError:
        return False
