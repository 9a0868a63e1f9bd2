"""Tools for the repositories of a subject: what changed, and what is in them. They read the mirror of sessions.

The first call on a repository may have to fetch it. Nothing is checked out, and nothing of a repository runs: no
filters, no external programs for differences. Names of commits and files are never options.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from midwatch.model import Origin
from midwatch.subjects.tools import Answer, Arguments, Refused, Tool
from midwatch.text import one_line
from midwatch.workspace.git import Git, GitCommand
from midwatch.workspace.mirrors import Mirrors
from midwatch.workspace.refs import ask_remote, is_oid
from midwatch.workspace.urls import Remote, parse_remote

_OUTPUT = 300_000  # bytes
_LINES = 400
_SECONDS = 15.0  # of one command
_TIMEOUT = 90.0  # with a fetch
_REVISION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._/-]{0,200}(?:~\d{1,4})?")
_DATE = r"^[0-9][0-9T :.+Z-]{3,40}$"
Date = Annotated[str, Field(pattern=_DATE)]
Text = Annotated[str, Field(max_length=400)]


@dataclass(frozen=True, slots=True)
class SourceRepository:
    """A repository of a subject: its URL, and its branch, None for the default one."""

    url: str
    branch: str | None = None


class _InRepository(Arguments):
    repository: Text | None = Field(None, description="Its URL; the first by default.")


class Log(_InRepository):
    since: Date | None = Field(None, description="2026-11-29T10:00Z")
    until: Date | None = None
    path: Text | None = None
    count: int = Field(30, ge=1, le=200)


class Diff(_InRepository):
    base: Text = Field(description="A commit, tag or branch; COMMIT~1 is its parent.")
    head: Text
    path: Text | None = None


class Grep(_InRepository):
    text: Text = Field(description="Plain text.", min_length=2)
    path: Text | None = None
    revision: Text | None = None


class Read(_InRepository):
    path: Text
    revision: Text | None = None
    line: int = Field(1, ge=1, description="The first line to show.")


class RepositoryTools:
    """The tools for the repositories of one incident. `mirrors` is where they are fetched to, by `git`."""

    def __init__(
        self, repositories: Sequence[SourceRepository], mirrors: Mirrors, git: Git
    ) -> None:
        self._repositories = list(repositories)
        self._mirrors, self._git = mirrors, git

    def tools(self) -> Sequence[Tool]:
        """Return the tools; none without repositories."""
        if not self._repositories:
            return ()

        def tool(name: str, about: str, arguments: Any, run: Any) -> Tool:
            return Tool(name, about, arguments, run, _TIMEOUT)

        return (
            tool("log", "Commits of the subject's repository.", Log, self._log),
            tool("diff", "What changed between two commits.", Diff, self._diff),
            tool("grep", "Lines of the repository with a text.", Grep, self._grep),
            tool("read", "A file of the repository.", Read, self._read),
        )

    async def _log(self, asked: Log) -> Answer:
        arguments = [
            "log",
            "--no-color",
            "--date=iso-strict",
            f"--max-count={asked.count}",
        ]
        arguments += ["--format=%h %cd %an: %s", "--name-status", "--no-ext-diff"]
        arguments += [f"--since={asked.since}"] if asked.since else []
        arguments += [f"--until={asked.until}"] if asked.until else []
        return await self._run(asked, arguments, [None], asked.path)

    async def _diff(self, asked: Diff) -> Answer:
        arguments = [
            "diff",
            "--no-color",
            "--no-ext-diff",
            "--no-textconv",
            "--stat",
            "-p",
        ]
        return await self._run(asked, arguments, [asked.base, asked.head], asked.path)

    async def _grep(self, asked: Grep) -> Answer:
        arguments = ["grep", "--no-color", "--no-textconv", "--line-number", "-I"]
        arguments += ["--fixed-strings", "-e", asked.text]
        return await self._run(asked, arguments, [asked.revision], asked.path)

    async def _read(self, asked: Read) -> Answer:
        async with self._mirror(asked) as (remote, path, default):
            revision = _revision(asked.revision, default)
            arguments = ["cat-file", "blob", f"{revision}:{asked.path}"]
            text = await self._output(remote, path, arguments)
        lines = text.splitlines()
        shown = [
            f"{number}: {line}"
            for number, line in enumerate(lines, 1)
            if asked.line <= number < asked.line + _LINES
        ]
        return Answer(_command(remote, arguments), "\n".join(shown))

    async def _run(
        self,
        asked: _InRepository,
        arguments: list[str],
        revisions: Sequence[str | None],
        within: str | None,
    ) -> Answer:
        async with self._mirror(asked) as (remote, path, default):
            named = [_revision(one, default) for one in revisions]
            arguments += [*named, "--"]  # `_revision` admits no option
            arguments += [within] if within else []
            text = await self._output(remote, path, arguments)
        # Messages of commits may say anything; what a file has is what it has.
        origin = Origin.REPORTED if arguments[0] == "log" else Origin.SYSTEM
        return Answer(_command(remote, arguments), text, origin)

    async def _output(self, remote: Remote, path: Path, arguments: list[str]) -> str:
        command = GitCommand(
            arguments,
            repository=remote.url,
            git_dir=path,
            timeout=_SECONDS,
            max_output=_OUTPUT,
            ok=frozenset({0, 1}) if arguments[0] == "grep" else frozenset({0}),
            variables={"GIT_LITERAL_PATHSPECS": "1", "GIT_ATTR_NOSYSTEM": "1"},
        )
        return (await self._git.run(command)).text

    @asynccontextmanager
    async def _mirror(
        self, asked: _InRepository
    ) -> AsyncIterator[tuple[Remote, Path, str]]:
        """Yield the remote, its mirror and the commit of its branch."""
        chosen = self._chosen(asked.repository)
        remote = parse_remote(chosen.url)
        advertised = await ask_remote(self._git, remote, chosen.branch)
        branch = chosen.branch or advertised.default_branch or ""
        commit = advertised.refs.get(f"refs/heads/{branch}", "")
        if not commit:
            raise Refused(f"{remote.url} has no branch {one_line(branch, 100)}")
        async with self._mirrors.reading(remote, advertised) as path:
            yield remote, path, commit

    def _chosen(self, url: str | None) -> SourceRepository:
        for one in self._repositories:
            if url is None or url in (one.url, parse_remote(one.url).url):
                return one
        known = ", ".join(one.url for one in self._repositories)
        raise Refused(f"that is not a repository of the subject; known: {known}")


def _revision(written: str | None, default: str) -> str:
    if written is None:
        return default
    plain = _REVISION.fullmatch(written) and ".." not in written
    if not plain and not is_oid(written):
        raise Refused(f"{one_line(written, 100)} is not a name of a commit")
    return written


def _command(remote: Remote, arguments: Sequence[str]) -> str:
    return f"git {' '.join(arguments)} -- in {remote.url}"
