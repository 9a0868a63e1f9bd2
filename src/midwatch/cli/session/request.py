"""What somebody asks of a session, and the forms in which it is written on the command line."""

from __future__ import annotations

import os.path
import re
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from midwatch.cli.session.choices import Choices, choices_of
from midwatch.errors import NotFound, SettingsError
from midwatch.model import Json
from midwatch.session.status import SessionStatus
from midwatch.store.sessions import StoredSession
from midwatch.workspace.plan import RepoSpec
from midwatch.workspace.urls import parse_remote

MAX_PROMPT = 400_000
"""Characters; a line of the outbox has room for them."""
_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*|(?:[^@/:]+@)?[^/:@]+:")


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository as it was asked for; `branch` is where the session starts."""

    url: str
    branch: str | None = None
    push_branch: str | None = None

    def spec(self) -> RepoSpec:
        return RepoSpec(self.url, branch=self.branch, push_branch=self.push_branch)


@dataclass(frozen=True, slots=True)
class Request:
    """One run of a session. `prompt` is None where it goes on with what is unanswered.

    `carried` is what the session had done on other machines, whose outbox is not here; `moved`
    where its last run was on one.
    """

    id: str
    prompt: str | None
    repositories: tuple[Repository, ...]
    main: int = 0
    interactive: bool = False
    push: bool = False
    choices: Choices = field(default_factory=Choices)
    forked_from: str | None = None
    ticket: int | None = None
    carried: SessionStatus | None = None
    moved: bool = False
    asked: str = ""
    """The first prompt of the session, for lists."""


_REPOSITORIES = TypeAdapter(tuple[Repository, ...])
_STATUS = TypeAdapter(SessionStatus)


def new_id() -> str:
    return f"s-{uuid.uuid4().hex[:12]}"


def options_document(request: Request, host: str, folder: Path) -> Json:
    """What the record keeps of a request, so that it can be resumed anywhere."""
    carried = request.carried
    return {
        "host": host,
        "folder": str(folder),
        "repositories": _REPOSITORIES.dump_python(request.repositories, mode="json"),
        "main": request.main,
        "push": request.push,
        "choices": request.choices.to_json(),
        "carried": (
            None if carried is None else _STATUS.dump_python(carried, mode="json")
        ),
    }


def repositories_of(session: StoredSession) -> tuple[Repository, ...]:
    """The repositories in a record. Raises NotFound for a record that has none."""
    try:
        found = _REPOSITORIES.validate_python(session.options.get("repositories") or ())
    except ValidationError:
        found = ()
    if not found:
        raise NotFound(
            f"the record of session {session.id} names no repositories",
            hint="it was not started by `midwatch session`; resume it where it was",
        )
    return found


def carried_of(session: StoredSession) -> SessionStatus | None:
    document = session.options.get("carried")
    try:
        return None if document is None else _STATUS.validate_python(document)
    except ValidationError:
        return None


def earlier_choices(session: StoredSession) -> Choices:
    return choices_of(session.options.get("choices"))


# ------------------------------------------------------------------ the command line


def parse_repository(text: str, push_branch: str | None = None) -> Repository:
    """`URL[@BRANCH]`. An @ of the host or of a path that exists begins no branch.

    Raises WorkspaceRefused at once for what no workspace takes, before anything is recorded: a
    URL may hold a password.
    """
    url, branch = _split(text)
    return Repository(parse_remote(url).url, branch, push_branch)


def _split(text: str) -> tuple[str, str | None]:
    if os.path.exists(text):
        return text, None
    host = _AUTHORITY.match(text)
    start = host.end() if host else 0
    path, at, branch = text[start:].rpartition("@")
    if not at or not path:
        return text, None
    return text[:start] + path, branch or None


def read_prompt(text: str) -> str:
    """TEXT, `@file`, or `-` for standard input. Raises SettingsError."""
    if text == "-":
        prompt = sys.stdin.read(MAX_PROMPT + 1)
    elif text.startswith("@"):
        prompt = _read(Path(text[1:]))
    else:
        prompt = text
    if not prompt.strip():
        raise SettingsError("is empty", path="--prompt", hint="say what to do")
    if len(prompt) > MAX_PROMPT:
        raise SettingsError(
            f"is longer than {MAX_PROMPT} characters",
            path="--prompt",
            hint="put the text into a file of the repository",
        )
    return prompt


def _read(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as opened:
            return opened.read(MAX_PROMPT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {file}: {error}", path="--prompt") from None


def parse_repositories(
    written: Sequence[str], push_branch: str | None
) -> tuple[Repository, ...]:
    return tuple(parse_repository(one, push_branch) for one in written)
