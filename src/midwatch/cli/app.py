"""The composition root: build store, subjects, monitor and agent from the settings.

A function imports what only some commands need, so that `midwatch tickets list` starts fast.
"""

from __future__ import annotations

import os
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from midwatch.errors import SettingsError

if TYPE_CHECKING:
    from midwatch.agent.claude_process import ClaudeProcess
    from midwatch.agent.evidence import ContextGatherer
    from midwatch.agent.investigation import Investigator
    from midwatch.agent.links import Links
    from midwatch.agent.recent_changes import RecentChanges
    from midwatch.agent.repository_changes import RepositoryChanges
    from midwatch.agent.runner import AgentRunner
    from midwatch.lifecycle import Liveness
    from midwatch.logs import Log
    from midwatch.monitor.loop import MonitorLoop
    from midwatch.notify.notifier import Notifier
    from midwatch.provider import ApiAccess
    from midwatch.redaction import Redactor
    from midwatch.runbooks.library import RunbookLibrary
    from midwatch.settings import Settings
    from midwatch.store.protocol import Store
    from midwatch.store.sql import SqlStore
    from midwatch.subjects.base import Subject
    from midwatch.subjects.tools import Tool
    from midwatch.telemetry.spans import Telemetry
    from midwatch.workspace.git import Git, GitLimits
    from midwatch.workspace.mirrors import Mirrors

T = TypeVar("T")
_MOST_OPEN = 200
"""Open tickets that are looked at as evidence for others."""


@dataclass(frozen=True, slots=True)
class Edge:
    """What the process was started with. No other module reads the environment."""

    environ: Mapping[str, str]
    config: Path | None

    def settings(self) -> Settings:
        """Read the settings. Raises SettingsError."""
        from midwatch.config import load

        return load(self.environ, self.config)

    def quick_database(self) -> str | None:
        """Return the SQLite file if that is clear without a check of all settings. Raises SettingsError."""
        from midwatch.settings_file import sqlite_file

        return sqlite_file(self.environ, self.config)


def process_name() -> str:
    """Return the name of this process in claims and heartbeats: HOST:PID."""
    import socket

    return f"{socket.gethostname()}:{os.getpid()}"


def api_key(settings: Settings, environ: Mapping[str, str]) -> str | None:
    """Return ANTHROPIC_API_KEY, else the present content of the key file. Raises SettingsError."""
    if key := environ.get("ANTHROPIC_API_KEY", "").strip():
        return key
    file = settings.anthropic.api_key_file
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"cannot read {file}: {error}",
            path="anthropic.api_key_file",
            hint="the file must hold the key and nothing else",
        ) from error


def api_access(settings: Settings, environ: Mapping[str, str]) -> ApiAccess | None:
    """Return how the API is reached; None without anything to log in with. Raises SettingsError."""
    from midwatch.provider import ApiAccess

    provider = settings.anthropic.provider
    key = api_key(settings, environ) if provider == "anthropic" else None
    access = ApiAccess.from_environ(environ, api_key=key, provider=provider)
    return access if access.has_credentials else None


class ModelFromKey:
    """Returns the model to call while there is a key. A replaced key file is read again.

    `problem` is why there is none, beyond a key that is not set.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self.environ = environ
        self.problem = ""
        self._access: ApiAccess | None = None
        self._model: ClaudeProcess | None = None
        self._old: list[ClaudeProcess] = []

    def __call__(self) -> ClaudeProcess | None:
        try:
            access = api_access(self._settings, self.environ)
            if access != self._access:
                model = self._open(access) if access else None
                known = (
                    [*self._old] if self._model is None else [*self._old, self._model]
                )
                self._old = [one for one in known if one.in_use]
                self._access, self._model = access, model
            self.problem = ""
        except SettingsError as error:
            self.problem = error.one_line()
            return None
        return self._model

    def _open(self, access: ApiAccess) -> ClaudeProcess:
        from midwatch.agent.claude_process import ClaudeProcess

        settings = self._settings.anthropic
        return ClaudeProcess(settings.model, settings.timeout, access)

    async def close(self) -> None:
        for model in (*self._old, self._model):
            if model is not None:
                await model.close()


def secrets_of(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """Return the secrets that this process knows, without those of its subjects."""
    from midwatch.store.engine import parse_database

    known = [environ.get("ANTHROPIC_API_KEY", ""), *settings.notifications.secrets()]
    try:
        known.append(api_key(settings, environ) or "")
        access = api_access(settings, environ)
        known.extend(access.secrets if access else ())
    except SettingsError:
        pass
    for hook in settings.changes.hooks:
        known.extend(one.get_secret_value() for one in hook.signing_secrets)
    if settings.server.oidc is not None:
        with suppress(SettingsError):  # the server reports that
            known.append(settings.server.oidc.read_secret())
    if settings.forges:
        from midwatch.pull_requests.known_forges import tokens_of

        known.extend(tokens_of(settings.forges, environ))
    if "@" in settings.database:
        with suppress(SettingsError):  # opening it reports that
            known.append(str(parse_database(settings.database).password or ""))
    return [secret for secret in known if secret]


@dataclass(frozen=True, slots=True)
class App:
    """Everything that a daemon needs."""

    settings: Settings
    store: SqlStore
    subjects: Sequence[Subject]
    redactor: Redactor
    links: Links
    gatherer: ContextGatherer
    model: ModelFromKey
    log: Log
    telemetry: Telemetry
    changes: RecentChanges
    repositories: RepositoryChanges | None
    config: Path | None = None
    runbooks: RunbookLibrary | None = None

    def monitor(self) -> MonitorLoop:
        """Return the monitor of all subjects. Raises SettingsError if there are none."""
        from midwatch.agent.first_aid import FirstAidWriter
        from midwatch.lifecycle import SystemClock
        from midwatch.monitor.change_reader import ChangeReader
        from midwatch.monitor.loop import MonitorLoop
        from midwatch.playbooks.base import playbooks
        from midwatch.subjects.base import intervals

        if not self.subjects:
            raise SettingsError(
                "no subject is configured",
                path="subjects",
                hint="name a system, such as {name: orders-db, kind: postgres, dsn: …}",
            )
        monitor = self.settings.monitor
        first_aid = FirstAidWriter(
            self.store,
            self.gatherer,
            playbooks(),
            {subject.name: subject.kind for subject in self.subjects},
            SystemClock(),
            monitor.first_aid_timeout,
        )
        return MonitorLoop(
            self.store,
            self.subjects,
            monitor,
            first_aid=first_aid,
            redactor=self.redactor,
            log=self.log,
            name=f"monitor {process_name()}",
            links=self.links,
            telemetry=self.telemetry,
            changes=ChangeReader(
                self.repositories,
                self.store,
                self.settings.changes,
                SystemClock(),
                self.log,
            ),
            intervals=intervals(self.settings.subjects),
        )

    def notifier(self) -> Notifier | None:
        """Return what tells people of tickets; None without a route. Raises SettingsError for wrong settings."""
        chosen = self.settings.notifications
        if not chosen.routes and not chosen.callback_hosts:
            return None
        from midwatch.notify.notifier_setup import open_notifier

        return open_notifier(
            self.settings,
            self.store,
            self.redactor,
            self.log,
            self.model.environ,
            f"notifier {process_name()}",
        )

    def investigator(self) -> Investigator:
        """Return what begins investigations. Raises SettingsError for tools that cannot be used."""
        from midwatch.agent.incident_tools import (
            changes_tool,
            search_tool,
            state_tool,
        )
        from midwatch.agent.investigation import Investigator
        from midwatch.subjects.tools import tools_of

        subjects = {subject.name: subject for subject in self.subjects}
        of_repositories = repository_tools(self.settings, self.model.environ)

        def around(names: Sequence[str]) -> Sequence[Tool]:
            near = {one for name in names for one in self.links.related(name)}
            state = state_tool({one: subjects[one] for one in sorted(near - {*names})})
            more = [*filter(None, [state]), *of_repositories(names)]
            if more or any(tools_of(subjects[one]) for one in names if one in subjects):
                # Alone it is not worth its tokens: past incidents are evidence already.
                describe = self.gatherer.past_incident
                more.append(search_tool(self.store.search_past, describe))
                more.append(changes_tool(self.changes, names))
            return more

        settings = self.settings.investigation
        return Investigator(self.gatherer, subjects, settings, around, self.telemetry)

    def agent(
        self,
        progress: Liveness | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> AgentRunner:
        """Return the agent; `progress` is the liveness that it shares with a monitor.

        `trace` gets the text of every request and answer.
        """
        from midwatch.agent.runner import AgentRunner

        return AgentRunner(
            self.store,
            self.gatherer,
            self.model,
            self.settings.agent,
            max_tokens=self.settings.anthropic.max_tokens,
            redactor=self.redactor,
            log=self.log,
            name=f"agent {process_name()}",
            longest_call=self.settings.anthropic.timeout,
            progress=progress,
            investigator=self.investigator(),
            trace=trace,
            telemetry=self.telemetry,
        )


def repository_tools(
    settings: Settings, environ: Mapping[str, str]
) -> Callable[[Sequence[str]], Sequence[Tool]]:
    """Return what returns the tools for the repositories of some subjects, by their names.

    Raises SettingsError for a missing token of a Git host.
    """
    written = {one["name"]: one.get("repositories") for one in settings.subjects}
    if not any(written.values()):
        return lambda names: ()
    from midwatch.agent.repository_tools import RepositoryTools, SourceRepository

    git, mirrors = git_and_mirrors(settings, environ)

    def tools(names: Sequence[str]) -> Sequence[Tool]:
        own = [one for name in names for one in written.get(name) or ()]
        repositories = [SourceRepository(one["url"], one.get("branch")) for one in own]
        return RepositoryTools(repositories, mirrors, git).tools()

    return tools


def open_runbooks(
    settings: Settings, environ: Mapping[str, str], redactor: Redactor, log: Log
) -> RunbookLibrary | None:
    """Return the runbooks of the settings; None without any. Nothing is read yet."""
    if not settings.runbooks.used:
        return None
    from midwatch.lifecycle import SystemClock
    from midwatch.runbooks.library import RunbookLibrary

    def git() -> tuple[Git, Mirrors]:
        from midwatch.runbooks.repository import LIMITS, LOCK_SECONDS

        return git_and_mirrors(settings, environ, LIMITS, LOCK_SECONDS)

    chosen = settings.runbooks
    return RunbookLibrary(chosen, redactor.text, SystemClock(), log, git)


def git_and_mirrors(
    settings: Settings,
    environ: Mapping[str, str],
    limits: GitLimits | None = None,
    wait: float = 900.0,
) -> tuple[Git, Mirrors]:
    """Return what runs git, and the mirrors of sessions. Raises SettingsError for a missing token of a Git host.

    Args:
        settings: The settings.
        environ: The environment, for the tokens.
        limits: The limits of git, where they are not those of a session.
        wait: Seconds to wait for a session that uses the same mirror.
    """
    from midwatch.session.options import git_environment
    from midwatch.session.records import SessionFolders
    from midwatch.workspace.git import Git
    from midwatch.workspace.mirrors import Mirrors

    git = Git(git_environment(settings.sessions, environ), limits)
    root = SessionFolders.from_settings(settings.sessions).cache / "mirrors"
    size = int(settings.sessions.cache_size)
    return git, Mirrors(root, git, max_bytes=size, wait=wait)


def repository_changes(
    settings: Settings, environ: Mapping[str, str], store: Store, redactor: Redactor
) -> RepositoryChanges | None:
    """Return what reads the repositories of the subjects; None where none has any.

    Raises SettingsError for a missing token of a Git host.
    """
    if not any(one.get("repositories") for one in settings.subjects):
        return None
    from midwatch.agent.repository_changes import RepositoryChanges, WatchedRepository
    from midwatch.lifecycle import SystemClock
    from midwatch.redaction import Sanitizer

    watched = [
        WatchedRepository(
            subject["name"],
            one["url"],
            one.get("branch"),
            tuple(one.get("paths") or ()),
        )
        for subject in settings.subjects
        for one in subject.get("repositories") or ()
    ]
    git, mirrors = git_and_mirrors(settings, environ)
    chosen = settings.changes
    return RepositoryChanges(
        watched,
        mirrors,
        git,
        store,
        Sanitizer(redactor),
        SystemClock(),
        chosen.window,
        chosen.most_commits,
    )


def recent_changes(
    settings: Settings,
    store: Store,
    reach: Callable[[str], Iterable[str]] | None = None,
    repositories: RepositoryChanges | None = None,
) -> RecentChanges:
    """Return what finds the changes that count for tickets.

    Args:
        settings: The settings.
        store: The stored changes.
        reach: Returns what a subject depends on, by name; by default as the settings alone say.
        repositories: Where the lines of commits are read.
    """
    from midwatch.agent.link_graph import LinkGraph
    from midwatch.agent.recent_changes import RecentChanges
    from midwatch.lifecycle import SystemClock

    written = LinkGraph(
        (one["name"], other)
        for one in settings.subjects
        for other in one.get("depends_on") or ()
    )
    return RecentChanges(
        store,
        settings.changes,
        SystemClock(),
        reach or written.reached,
        {one["name"]: str(one.get("kind")) for one in settings.subjects},
        repositories,
    )


def _gatherer(
    subjects: Sequence[Subject],
    redactor: Redactor,
    store: Store,
    links: Links,
    runbooks: RunbookLibrary | None,
    changes: RecentChanges,
) -> ContextGatherer:
    from midwatch.agent.evidence import ContextGatherer
    from midwatch.lifecycle import SystemClock
    from midwatch.model import UNRESOLVED
    from midwatch.store.protocol import TicketFilter

    return ContextGatherer(
        {subject.name: subject for subject in subjects},
        redactor,
        SystemClock(),
        store.past,
        links=links,
        unresolved=lambda: store.tickets(TicketFilter(UNRESOLVED, limit=_MOST_OPEN)),
        runbooks=runbooks,
        changes=changes,
    )


def _read(
    edge: Edge, log_to: TextIO
) -> tuple[Settings, list[Subject], Links, Redactor, Telemetry, Log]:
    """Read the settings, and build what needs nothing else. Raises SettingsError."""
    import midwatch.store.sql  # noqa: F401  # slow to import
    from midwatch.agent.links import Links
    from midwatch.logs import open_log
    from midwatch.redaction import Redactor
    from midwatch.subjects.base import build_subjects, dependencies
    from midwatch.telemetry.opening import open_telemetry

    settings = edge.settings()
    subjects = build_subjects(settings.subjects)
    check_hooks(settings)
    links = Links(subjects, dependencies(settings.subjects))
    known = secrets_of(settings, edge.environ)
    redactor = Redactor(
        [*known, *(secret for subject in subjects for secret in subject.secrets)]
    )
    telemetry = open_telemetry(settings.telemetry, redactor)
    log = open_log(settings.log, log_to, redactor, telemetry.trace_ids)
    telemetry.report_to(log)
    return settings, subjects, links, redactor, telemetry, log


def check_hooks(settings: Settings) -> None:
    """Raise SettingsError for a hook that names a subject which there is not."""
    known = {one["name"] for one in settings.subjects}
    for at, hook in enumerate(settings.changes.hooks):
        for name in hook.subjects:
            if name not in known:
                raise SettingsError(
                    f"there is no subject {name}",
                    path=f"changes.hooks[{at}].subjects",
                    hint=f"one of {', '.join(sorted(known))}",
                )


@asynccontextmanager
async def open_app(
    edge: Edge, log_to: TextIO, *, create: bool = False
) -> AsyncIterator[App]:
    """Build everything from the settings, and close it at the end of the block.

    A daemon creates a missing SQLite database, and again if it is deleted meanwhile; a command does not, because
    its path may be wrong.
    """
    import asyncio

    # Hundreds of subjects take seconds of it, and a loop that stands still spoils what it observes.
    settings, subjects, links, redactor, telemetry, log = await asyncio.to_thread(
        _read, edge, log_to
    )
    from midwatch.lifecycle import collect_rarely
    from midwatch.logs import forward_library_logs
    from midwatch.received import TakesAlerts
    from midwatch.store.sql import open_store

    def renewed(what: str) -> None:
        log.error("database made again", reason=what)

    store = await open_store(
        settings.database, create=create, renewed=renewed if create else None
    )
    for subject in subjects:
        if isinstance(subject, TakesAlerts):
            subject.read_pushed_from(store)
    repositories = repository_changes(settings, edge.environ, store, redactor)
    changes = recent_changes(settings, store, links.reached, repositories)
    runbooks = open_runbooks(settings, edge.environ, redactor, log)
    gatherer = _gatherer(subjects, redactor, store, links, runbooks, changes)
    model = ModelFromKey(settings, edge.environ)
    collect_rarely()  # `main` turned the collector off for the start
    forward_library_logs(log)
    try:
        yield App(
            settings,
            store,
            subjects,
            redactor,
            links,
            gatherer,
            model,
            log,
            telemetry,
            changes,
            repositories,
            edge.config,
            runbooks,
        )
    finally:
        if runbooks is not None:
            await runbooks.close()
        for subject in subjects:
            await subject.close()
        await model.close()
        await store.close()
        await telemetry.close()


@asynccontextmanager
async def open_database(edge: Edge) -> AsyncIterator[Store]:
    """Open the store alone, for commands that read and change tickets."""
    from midwatch.store.sql import open_store

    store = await open_store(edge.settings().database, create=False)
    try:
        yield store
    finally:
        await store.close()


def use_store(edge: Edge, use: Callable[[Store], Awaitable[T]]) -> T:
    """Open the store, use it once, close it."""
    import asyncio

    async def run() -> T:
        async with open_database(edge) as store:
            return await use(store)

    return asyncio.run(run())
