"""A ticket, its repository at a forge on loopback, and sessions of which only the changes are real: no Claude is needed."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from midwatch.cli.app import Edge
from midwatch.cli.session.interrupted import InterruptedSessions
from midwatch.cli.session.publish import open_publisher
from midwatch.cli.session.service import SessionContext
from midwatch.config import load
from midwatch.logs import Log
from midwatch.pull_requests.publisher import Publisher
from midwatch.pull_requests.watcher import PullRequestWatcher
from midwatch.redaction import Redactor
from midwatch.session.events import Phase
from midwatch.session.manager import SessionManager
from midwatch.session.options import PullRequestsAsked, git_environment
from midwatch.session.records import SessionRequest, SessionSpec
from midwatch.session.status import SessionStatus
from midwatch.settings import Settings
from midwatch.store.pull_requests import SqlPullRequests
from midwatch.store.schema import database_now
from midwatch.store.sessions import SqlSessions, SqlTranscripts
from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import ManualClock, make_repository, open_tickets, run_git
from midwatch.workspace.plan import RepoSpec

from .. import processes
from ..forge_server import TOKEN, Forge, GitHubServer, HeldRequest, serving
from ..git_servers import GitHost, git_host
from ..waiting import PATIENCE
from .cli import environ, in_store, midwatch, said_json

GIT_TOKEN = "git-token-0123456789abcdef"


@dataclass
class PullRequestDesk:
    """See the module."""

    folder: Path
    forge: Forge
    git: GitHost
    kind: str
    names: tuple[str, ...]
    pull_requests: dict[str, Any] = field(default_factory=dict)
    branch: str | None = None
    sessions: int = 0
    logged: list[Any] = field(default_factory=list)
    results: Counter[str] = field(default_factory=Counter)

    def write(self) -> None:
        """Write the settings, as they are now."""
        version = "v3" if self.kind == "github" else "v4"
        urls = [f"{self.git.url}/team/{name}" for name in self.names]
        forge = {
            "host": self.git.url,
            "kind": self.kind,
            "api": f"{self.forge.url}/api/{version}",
            "token_variable": "FORGE_TOKEN",
        }
        git = {"host": self.git.url, "token_variable": "GIT_TOKEN"}
        settings = {
            "sessions": {
                "folder": str(self.folder / "state"),
                "cache_folder": str(self.folder / "cache"),
                "git": [git],
            },
            "forges": [forge],
            "server": {"url": "https://midwatch.example"},
            "pull_requests": self.pull_requests,
            "subjects": [
                {
                    "name": "orders",
                    "kind": "host",
                    "repositories": [
                        {"url": one, "branch": self.branch} for one in urls
                    ],
                }
            ],
        }
        (self.folder / "midwatch.yaml").write_text(json.dumps(settings))

    @property
    def env(self) -> dict[str, str]:
        return {"FORGE_TOKEN": TOKEN, "GIT_TOKEN": GIT_TOKEN}

    @property
    def settings(self) -> Settings:
        return load(environ(self.folder, **self.env), self.folder / "midwatch.yaml")

    def session(
        self,
        start: str | None = None,
        *,
        asked: PullRequestsAsked | None = None,
        **files: str,
    ) -> str:
        """Make a session that ended and left files uncommitted in the first repository, begun on a branch. Return its id.

        With `asked` it is one of `midwatch session fix --pr`, whose process has died before it published anything.
        """
        self.sessions += 1
        id_ = f"s-{self.sessions}"

        async def make(store: SqlStore) -> None:
            manager = self.manager(store)
            urls = [f"{self.git.url}/team/{name}" for name in self.names]
            request = SessionRequest(
                id_, "Fix it.", tuple(RepoSpec(one, start) for one in urls), ticket=1
            )
            if asked is not None:
                request = await self._planned(store, request, asked)
            git = git_environment(
                self.settings.sessions, environ(self.folder, **self.env)
            )
            paths = manager.paths(id_)
            paths.folder.make()
            await manager.prepare_workspace(
                request, manager.workspace_options(id_, git)
            )
            for name, text in files.items():
                (paths.workspace / self.names[0] / name).write_text(text)
            now = datetime.now(UTC)
            records = manager.records(request)
            spec = SessionSpec(id_, now, str(paths.workspace), ticket=1, model="m")
            await records.save_spec(spec)
            ended = SessionStatus(
                phase=Phase.COMPLETED, result="It is done.", ended_at=now
            )
            await records.save_status(id_, ended)

        in_store(self.folder, make)
        return id_

    async def _planned(
        self, store: SqlStore, request: SessionRequest, asked: PullRequestsAsked
    ) -> SessionRequest:
        publisher = self.publisher(store)
        ticket = await store.ticket(1)
        plans = await publisher.plan(ticket, request.repositories, new=asked.new)
        await publisher.forges.close()
        begun = tuple(plans[one.url].spec(one) for one in request.repositories)
        return replace(request, repositories=begun, pull_requests=asked)

    def continue_sessions(self, *aheads: float) -> list[int]:
        """Let one daemon look as often, each time with its clock so many seconds ahead. Return how many sessions it tried."""

        async def look(store: SqlStore) -> list[int]:
            edge = Edge(environ(self.folder, **self.env), None)
            sessions, manager = SqlSessions(store.transactions), self.manager(store)
            context = SessionContext(
                edge, self.settings, store.transactions, sessions, manager
            )
            tried = []
            clock = ManualClock(datetime.now(UTC))
            log = Log(self.logged.append, 0)
            daemon = InterruptedSessions(context, 60.0, log, clock)
            passed = 0.0
            for ahead in aheads:
                clock.step_wall_clock(ahead - passed)
                passed = ahead
                tried.append(await daemon.once())
            return tried

        return in_store(self.folder, look)

    def manager(self, store: SqlStore) -> SessionManager:
        sessions = SqlSessions(store.transactions)
        transcripts = SqlTranscripts(store.transactions)
        return SessionManager(sessions, transcripts, self.settings.sessions)

    def publish(self, session: str, *more: str) -> str:
        """Run `midwatch session pr`, and return what it printed."""
        done = midwatch(self.folder, "session", "pr", session, *more, env=self.env)
        assert TOKEN not in done.stdout + done.stderr
        return done.stdout + done.stderr

    def killed(
        self,
        session: str,
        held: HeldRequest,
        *more: str,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        """Kill `session pr` while the forge holds a request, after `before` was called."""
        self.forge.held = [held]
        log_file = self.folder / "killed.log"
        with log_file.open("wb") as log:
            process = processes.Midwatch(
                ["session", "pr", session, *more],
                cwd=self.folder,
                env=environ(self.folder, **self.env),
                stdout=log,
                stderr=log,
            )
        assert held.arrived.wait(PATIENCE), log_file.read_text()
        before()
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        self.forge.held = []
        held.go.set()

    def watch(self, ahead: float = 0.0) -> int:
        """Let a daemon look once, with its clock so many seconds ahead. Return at how many it looked."""

        async def look(store: SqlStore) -> int:
            publisher = self.publisher(store)
            publisher.records = SqlPullRequests(
                store.transactions,
                lambda connection: database_now(connection) + timedelta(seconds=ahead),
            )
            log = Log(self.logged.append, 0)
            watcher = PullRequestWatcher(publisher, 60.0, log, lambda text: text)
            try:
                return await watcher.once()
            finally:
                self.results += watcher.results
                await publisher.forges.close()

        return in_store(self.folder, look)

    def created_days_ago(self, days: int) -> None:
        """Let the pull requests of the ticket be older, and due."""

        async def age(store: SqlStore) -> None:
            records = SqlPullRequests(store.transactions)
            for row in await store.pull_requests_of(1):
                then = row.created_at - timedelta(days=days)
                await records.change(row, {"created_at": then}, seconds=0)

        in_store(self.folder, age)

    def publisher(self, store: SqlStore) -> Publisher:
        return open_publisher(
            self.settings, environ(self.folder, **self.env), store, Redactor([TOKEN])
        )

    def pull(self) -> dict[str, Any]:
        """The one pull request of the ticket, as Midwatch shows it."""
        (found,) = said_json(self.folder, "tickets", "show", "1")["pull_requests"]
        return dict(found)

    def history(self) -> list[str]:
        rows = said_json(self.folder, "tickets", "history", "1")
        return [row["why"] for row in rows if row["action"] == "pull_request"]

    def show(self, *arguments: str) -> str:
        return run_git(self.git.root / "team" / self.names[0], *arguments)


@contextmanager
def pull_request_desk(
    folder: Path,
    kind: type[Forge] = GitHubServer,
    *names: str,
    **pull_requests: Any,
) -> Iterator[PullRequestDesk]:
    """Set a desk up while the block runs."""
    root = folder / "remotes"
    names = names or ("shop",)
    for name in names:
        make_repository(root / "team" / name, {"main.py": "print('hi')\n"})
    with git_host(root, GIT_TOKEN) as git, serving(kind(root)) as forge:
        named = "github" if kind is GitHubServer else "gitlab"
        made = PullRequestDesk(folder, forge, git, named, names, pull_requests)
        made.write()

        async def seed(store: SqlStore) -> None:
            await open_tickets(store, "broken", subject="orders")

        in_store(folder, seed)
        yield made
