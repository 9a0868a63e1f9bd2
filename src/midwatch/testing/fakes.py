"""Fakes for tests: a clock, subjects, tickets, sessions, repositories and a git server.

::

    clock = ManualClock()
    subject = FakeSubject("orders", [broken("disk", "/var"), Hang(), healthy()])
    [ticket] = await open_tickets(store, "orders-db")
    with git_server(folder, token="t") as server:
        ...
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import heapq
import itertools
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from midwatch.errors import MidwatchError
from midwatch.model import (
    Invariant,
    Json,
    Key,
    Observation,
    Severity,
    Signal,
    Ticket,
    Unit,
    Violation,
)
from midwatch.session.events import Event
from midwatch.session.mailbox import Kind, write_mail
from midwatch.session.options import ApiAccess, Limits, SessionOptions
from midwatch.settings import SubjectSettings
from midwatch.store.protocol import Changes, Opening, SavedCycle, Store
from midwatch.subjects.base import EvidenceSource
from midwatch.subjects.tools import Tool

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from midwatch.session.agentic_session import AsyncAgenticSession
    from midwatch.testing.messages_api import ScriptedMessagesAPI


class ManualClock:
    """A clock that moves only with `advance`. Satisfies `midwatch.lifecycle.Clock`.

    `database` serves as the database's clock of an `SqlStore`, so that leases and waits
    follow the same time.
    """

    def __init__(
        self, start: datetime = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    ) -> None:
        self._wall = start
        self._elapsed = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._wall

    def monotonic(self) -> float:
        return self._elapsed

    def database(self, connection: Connection) -> datetime:
        return self._wall

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        due = self._elapsed + seconds
        heapq.heappush(self._sleepers, (due, next(self._order), woken))
        await woken

    @property
    def sleeping(self) -> list[float]:
        """The seconds until each pending sleep ends, soonest first."""
        return sorted(
            due - self._elapsed for due, _, woken in self._sleepers if not woken.done()
        )

    async def advance(self, seconds: float) -> None:
        """Move forward by `seconds`; each sleep ends at its own time, and its task runs before the next one."""
        end = self._elapsed + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, woken = heapq.heappop(self._sleepers)
            self._move(due - self._elapsed)
            if not woken.done():
                woken.set_result(None)
                for _ in range(5):
                    await asyncio.sleep(0)
        self._move(end - self._elapsed)

    def step_wall_clock(self, seconds: float) -> None:
        """Step the wall clock, as an operator or NTP does; monotonic time does not change."""
        self._wall += timedelta(seconds=seconds)

    def _move(self, seconds: float) -> None:
        self._elapsed += seconds
        self._wall += timedelta(seconds=seconds)


DISK = Invariant(
    "disk",
    "File systems have space left",
    "The used share of a file system.",
    unit=Unit.RATIO,
    limit=0.9,
)
ALIVE = Invariant(
    "alive",
    "The component answers",
    "The component says itself whether it is well.",
    severity=Severity.CRITICAL,
)


@dataclass(frozen=True, slots=True)
class Hang:
    """An observation that never ends by itself."""


Step = Observation | MidwatchError | Hang


def healthy(state: Json | None = None) -> Observation:
    """Return an observation of every invariant in which all hold."""
    return Observation((), frozenset({"*"}), state=state or {})


def broken(
    invariant: str,
    *components: str,
    message: str = "it is broken",
    severity: Severity | None = None,
) -> Observation:
    """Return an observation of every invariant in which `invariant` is broken on these components."""
    signals = tuple(
        Signal(
            invariant,
            component,
            f"{component}: {message}",
            holds=False,
            severity=severity,
        )
        for component in components
    )
    return Observation(signals, frozenset({"*"}))


def partly(unavailable: Mapping[str, str], *signals: Signal) -> Observation:
    """Return an observation without the invariants in `unavailable`, which maps each to the reason."""
    return Observation(signals, frozenset({"*"}), dict(unavailable))


class FakeSubject:
    """Each observation takes the next step of the script; the last step repeats.

    `looks` has the `previous` state of each observation, in order. `evidence` maps titles to a text
    or to the error that fetching it raises.
    """

    def __init__(
        self,
        name: str = "fake",
        script: Sequence[Step] = (),
        *,
        kind: str = "fake",
        invariants: Sequence[Invariant] = (DISK, ALIVE),
        secrets: Sequence[str] = (),
        evidence: Mapping[str, str | MidwatchError] | None = None,
        timeout: float = 5.0,
        tools: Sequence[Tool] = (),
    ) -> None:
        self._name, self._kind = name, kind
        self._script: list[Step] = list(script) or [healthy()]
        self._invariants = tuple(invariants)
        self._secrets = tuple(secrets)
        self._evidence = dict(evidence or {})
        self.timeout = timeout
        self._tools = tuple(tools)
        self.looks: list[Json] = []
        self.closed = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def kind(self) -> str:
        return self._kind

    @property
    def invariants(self) -> Sequence[Invariant]:
        return self._invariants

    @property
    def secrets(self) -> Sequence[str]:
        return self._secrets

    def then(self, *steps: Step) -> None:
        """Replace the remaining steps of the script."""
        self._script = list(steps)

    async def observe(self, previous: Json) -> Observation:
        self.looks.append(previous)
        step = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(step, MidwatchError):
            raise step
        if isinstance(step, Hang):
            await asyncio.Event().wait()
            raise AssertionError("nothing sets this event")
        return step

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        return [self._source(title) for title in self._evidence]

    def tools(self) -> Sequence[Tool]:
        return self._tools

    async def close(self) -> None:
        self.closed += 1

    def _source(self, title: str) -> EvidenceSource:
        async def fetch() -> str:
            text = self._evidence[title]
            if isinstance(text, MidwatchError):
                raise text
            return text

        return EvidenceSource(title, "script", fetch)


class FakeSettings(SubjectSettings):
    """A subject that only exists in a test."""

    kind: str = "fake"


class FakeKind:
    """A kind that returns the prepared subject of a name, or a healthy one."""

    kind = "fake"
    settings_model = FakeSettings
    default_invariants: Sequence[Invariant] = (DISK, ALIVE)

    def __init__(self, *prepared: FakeSubject) -> None:
        self.subjects = {subject.name: subject for subject in prepared}

    def __call__(self, settings: FakeSettings) -> FakeSubject:
        return self.subjects.setdefault(
            settings.name, FakeSubject(settings.name, timeout=settings.timeout)
        )


async def open_tickets(
    store: Store,
    *components: str,
    subject: str = "fake",
    invariant: str = "alive",
    severity: Severity = Severity.WARNING,
) -> list[Ticket]:
    """Open one ticket per component, all in one batch that can be claimed at once."""
    watch = await store.watch(subject)
    openings = tuple(
        Opening(
            Violation(
                Key(subject, invariant, component), severity, f"{component} is broken"
            )
        )
        for component in components
    )
    saved = await store.save_cycle(subject, watch.revision, Changes(openings=openings))
    return list(await opened_in(store, saved))


async def opened_in(store: Store, saved: SavedCycle) -> tuple[Ticket, ...]:
    """Return the tickets that a saved cycle opened, in the order of its openings."""
    found = await store.tickets_by_id(saved.opened)
    return tuple(found[id_] for id_ in saved.opened)


def answer(
    root_cause: str = "process 4711 holds the lock",
    *,
    quote: str = "",
    evidence_id: str = "E1",
    explains: Sequence[int] = (),
    **changes: Any,
) -> Json:
    """Return a complete `DiagnosisOutput` as JSON; a `quote` is cited for the root cause."""
    cited = [{"evidence_id": evidence_id, "quote": quote}] if quote else []
    return {
        "summary": f"Summary: {root_cause}.",
        "verdict": "identified",
        "root_cause": root_cause,
        "root_cause_citations": cited,
        "confidence": "high",
        "confidence_reason": "the evidence shows it",
        "explained_tickets": list(explains),
        "timeline": [],
        "affected_components": [],
        "metric_readings": [],
        "supporting_evidence": [],
        "alternatives_considered": [],
        "recommended_actions": [],
        "severity": "critical",
        "risks": [],
        "missing": [],
        "runbook_contradictions": [],
        **changes,
    }


KEY = "sk-ant-test-0123456789abcdefghij"
LIMITS = Limits(wall=600, idle=300, retries=1, grace=20, permission_wait=60)
_E = TypeVar("_E")


def options(**changes: Any) -> SessionOptions:
    """Return options for a test: few retries, short limits, Bash allowed."""
    limits = replace(LIMITS, **changes.pop("limits", {}))
    return SessionOptions(
        **{"limits": limits, "allowed_tools": ("Bash",), "sandbox": "off", **changes}
    )


def session_in(
    root: Path, api: ScriptedMessagesAPI | str, **arguments: Any
) -> AsyncAgenticSession:
    """Return a session "test" with the workspace `work` and the session folder `session` in `root`."""
    from midwatch.session.agentic_session import AsyncAgenticSession

    work = root / "work"
    work.mkdir(exist_ok=True)
    base_url = api if isinstance(api, str) else api.base_url
    given = {
        "client": ApiAccess(KEY, base_url),
        "workspace": work,
        "folder": root / "session",
        "session_id": "test",
        "options": options(),
    }
    return AsyncAgenticSession(**{**given, **arguments})


async def collect(session: AsyncAgenticSession, prompt: str | None) -> list[Event]:
    """Return all events of one `execute`; raises what it raises."""
    return [event async for event in session.execute(prompt)]


def only(events: list[Event], kind: type[_E]) -> list[_E]:
    """Return the events of one kind."""
    return [event for event in events if isinstance(event, kind)]


def post(session: AsyncAgenticSession, kind: Kind, content: Any, id: str) -> None:
    """Put a message into the session's inbox."""
    inbox = session.folder.inbox
    inbox.parent.mkdir(parents=True, exist_ok=True)
    write_mail(inbox, id=id, kind=kind, content=content, timestamp="")


_ENV = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "LC_ALL": "C",
}


def run_git(folder: Path, *args: str, stdin: bytes | None = None) -> str:
    """Run git in a folder as a developer would; raises CalledProcessError."""
    done = subprocess.run(
        ["git", *args],
        cwd=folder,
        env=_ENV,
        input=stdin,
        capture_output=True,
        check=True,
        timeout=60,
    )
    return done.stdout.decode("utf-8", "replace").strip()


def make_repository(path: Path, files: Mapping[str, str] | None = None) -> Path:
    """Create a bare repository with one commit on `main` (none if `files` is None); return its path."""
    path.mkdir(parents=True)
    run_git(path, "init", "-q", "--bare", "-b", "main", ".")
    if files is not None:
        add_commit(path, files, "first")
    return path


def add_commit(
    bare: Path, files: Mapping[str, str], message: str, branch: str = "main"
) -> str:
    """Commit files to a branch of a bare repository; returns the commit's id."""
    text = message.encode()
    ref = f"refs/heads/{branch}"
    stream = b"commit %s\ncommitter Ada <ada@example.org> 1750000000 +0000\n" % (
        ref.encode()
    )
    stream += b"data %d\n%s\n" % (len(text), text)
    if f"refs/heads/{branch}" in run_git(bare, "for-each-ref", "--format=%(refname)"):
        stream += b"from %s^0\n" % ref.encode()
    for name, content in files.items():
        data = content.encode()
        stream += b"M 100644 inline %s\ndata %d\n" % (name.encode(), len(data))
        stream += data + b"\n"
    run_git(bare, "fast-import", "--quiet", stdin=stream)
    return run_git(bare, "rev-parse", ref)


@dataclass
class GitServer:
    """The behaviour of a git server, and the requests it received.

    Without `token` reading needs no login. `may_write` allows a push with the token. While `gate` is
    not set, a transfer stops after its first bytes.
    """

    root: Path
    token: str | None = None
    may_write: bool = True
    gate: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    requests: list[str] = field(default_factory=list)
    transfer_began: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def git_server(
    root: Path, token: str | None = None, *, gated: bool = False
) -> Iterator[GitServer]:
    """Serve the repositories under `root` over HTTP on loopback while the block runs."""
    state = GitServer(root, token)
    if not gated:
        state.gate.set()

    class Handler(_Handler):
        server_state = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield state
    finally:
        state.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: GitServer

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self._body())

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self, body: bytes) -> None:
        state = self.server_state
        state.requests.append(f"{self.command} {self.path}")
        if state.token is not None and not self._has_token(state.token):
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
        elif "git-receive-pack" in self.path and not state.may_write:
            self.send_error(403)
        else:
            self._answer(self._backend(body))

    def _has_token(self, token: str) -> bool:
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        return (
            kind == "Basic"
            and base64.b64decode(value).split(b":")[-1].decode() == token
        )

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _backend(self, body: bytes) -> bytes:
        parts = urlsplit(self.path)
        env = _ENV | {
            "GIT_PROJECT_ROOT": str(self.server_state.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": unquote(parts.path),
            "QUERY_STRING": parts.query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "REMOTE_ADDR": "127.0.0.1",
            "REMOTE_USER": "ada",
        }
        for header in ("Git-Protocol", "Content-Encoding"):
            if self.headers.get(header):
                env[f"HTTP_{header.upper().replace('-', '_')}"] = self.headers[header]
        return subprocess.run(
            ["git", "http-backend"],
            env=env,
            input=body,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
        ).stdout

    def _answer(self, output: bytes) -> None:
        head, _, body = output.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._write(body)

    def _write(self, body: bytes) -> None:
        begun = 0
        if body.find(b"PACK") > 0 and not self.server_state.gate.is_set():
            begun = body.find(b"PACK") + 200
            self.wfile.write(body[:begun])
            self.wfile.flush()
            self.server_state.transfer_began.set()
            self.server_state.gate.wait(60)
        self.wfile.write(body[begun:])
