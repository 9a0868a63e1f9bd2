"""kopf: three watches that outlive whatever the API server does, and their thin handlers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import aiohttp
import kopf

from midwatch.kube.cache import Index, Queue
from midwatch.kube.client import Access, read_access
from midwatch.kube.rules import GROUP, PLURAL, SESSION_LABEL, VERSION
from midwatch.lifecycle import Clock, Liveness, StopEvent
from midwatch.logs import Log
from midwatch.metrics import code_label
from midwatch.settings import OperatorSettings

# ------------------------------------------------------------ hearing
# What kopf asks of the API server, overheard: which requests it makes, and which of the watches are open.

RESOURCES = (PLURAL, "jobs", "pods")
"""What is watched, in each namespace that is served."""


@dataclass
class Hearing:
    """The requests since the start, and since when each watch is down; None: it is open.

    A watch counts as down from the moment it is tried anew until the server takes it.
    """

    clock: Clock
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    _down: dict[str, float | None] = field(default_factory=dict)

    def asked(self, path: str) -> None:
        if self._down.get(path) is None:
            self._down[path] = self.clock.monotonic()

    def answered(self, path: str, verb: str, code: str) -> None:
        self.requests[verb, code] += 1
        if verb == "watch" and code == "2xx":
            self._down[path] = None

    def down(self) -> dict[str, float]:
        """By resource, for how many seconds the worst of its watches is down; those that were asked for."""
        now, worst = self.clock.monotonic(), dict[str, float]()
        for path, since in self._down.items():
            resource = path.rpartition("/")[2]
            seconds = 0.0 if since is None else now - since
            worst[resource] = max(worst.get(resource, 0.0), seconds)
        return worst

    def watches(self) -> int:
        """How many there are that were ever asked for."""
        return len(self._down)


@dataclass(frozen=True, kw_only=True)
class Session(kopf.AiohttpSession):
    """Compared by what it logs in with: kopf must see that it was refused with the very same before."""

    aiohttp_session: aiohttp.ClientSession = field(compare=False)
    access: Access


Asked = Callable[[str], None]
Answered = Callable[[str, str, str], None]


def open_session(access: Access, asked: Asked, answered: Answered) -> Session:
    """kopf's own kind of session, which tells of each try to open a watch (by its path), and of each answer
    (path, verb, code)."""
    info = kopf.ConnectionInfo(
        server=access.server,
        ca_path=access.ca_file,
        ca_data=access.ca_data,
        insecure=access.insecure,
        token=access.token,
        username=access.username,
        password=access.password,
        certificate_path=access.certificate_file,
        certificate_data=access.certificate_data,
        private_key_path=access.key_file,
        private_key_data=access.key_data,
    )
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        trust_env=False,
        trace_configs=[_trace(asked, answered)],
    )
    return Session(server=access.server, aiohttp_session=session, access=access)


def _trace(asked: Asked, answered: Answered) -> aiohttp.TraceConfig:
    async def start(
        _: aiohttp.ClientSession,
        context: SimpleNamespace,
        request: aiohttp.TraceRequestStartParams,
    ) -> None:
        watching = request.url.query.get("watch") == "true"
        context.verb = "watch" if watching else request.method.lower()
        # Also for the list before a watch: as long as it is tried, the watch is not given up.
        if request.url.name in RESOURCES:
            asked(request.url.path)

    async def end(
        _: aiohttp.ClientSession,
        context: SimpleNamespace,
        request: aiohttp.TraceRequestEndParams,
    ) -> None:
        code = code_label(request.response.status)
        answered(request.url.path, context.verb, code)

    async def failed(
        _: aiohttp.ClientSession,
        context: SimpleNamespace,
        request: aiohttp.TraceRequestExceptionParams,
    ) -> None:
        timed_out = isinstance(request.exception, TimeoutError)
        answered(request.url.path, context.verb, "timeout" if timed_out else "error")

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(start)
    trace.on_request_end.append(end)
    trace.on_request_exception.append(failed)
    return trace


# ------------------------------------------------------------ undiffed
# kopf without its differences: it copies each object several times to know what of it has changed, which
# nobody here asks for. With a thousand sessions that was a fifth of the operator's time.


class NoDiffs(kopf.DiffBaseStorage):
    """Every object is what it was: empty."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass


_GRACE = 0.5
"""Seconds that kopf gets to end."""
_BEAT = 5.0
"""Seconds between two signs of life of kopf's loop."""
_SLACK = 60.0
"""Seconds beyond its own time until a loop counts as stuck."""
_LONGEST_BLIND = 15.0
"""Seconds between two tries of a watch: for so long a server may be back without our noticing."""


class Waits:
    """Seconds between tries of a request, for ever: a watch that gave up would take the operator along."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest

    def __iter__(self) -> Iterator[float]:
        for power in itertools.count():
            yield min(self._first * 2.0 ** min(power, 20), self._longest)


class Watches:
    """Feeds the index and the queue, in the loop that `run` runs in.

    kopf has a thread and a loop of its own: it takes the signals of the main thread for itself, and when it
    ends it ends every task of its loop that it finds.
    """

    def __init__(
        self,
        index: Index,
        queue: Queue,
        settings: OperatorSettings,
        log: Log,
        hearing: Hearing,
        progress: Liveness,
    ) -> None:
        self._index = index
        self._queue = queue
        self._settings = settings
        self._log = log
        self._hearing = hearing
        self._progress = progress
        self._sessions: list[aiohttp.ClientSession] = []
        self._ours = asyncio.get_running_loop()

    async def run(self, stop: StopEvent) -> None:
        """Watch until the stop. Raises what kopf ends with before it."""
        theirs, stopped = asyncio.new_event_loop(), asyncio.Event()

        def work() -> None:
            with asyncio.Runner(loop_factory=lambda: theirs) as runner:
                runner.run(self._kopf(stopped))

        working = asyncio.ensure_future(asyncio.to_thread(work))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            with _forwarding(self._log):
                await asyncio.wait(
                    {working, stopping}, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            stopping.cancel()
            with contextlib.suppress(RuntimeError):  # it has ended just now
                theirs.call_soon_threadsafe(stopped.set)
            with _forwarding(self._log):
                await asyncio.wait({working})
        await working

    async def _kopf(self, stopped: asyncio.Event) -> None:
        stopping = asyncio.ensure_future(stopped.wait())
        beating = asyncio.create_task(self._beat(), name="heartbeat")
        before = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=self._registry(),
            settings=_kopf_settings(self._settings),
            clusterwide=not self._settings.namespaces,
            namespaces=self._settings.namespaces,
            stop_flag=stopped,
        )
        running = asyncio.ensure_future(kopf.run_tasks(tasks, ignored=before))
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        # Stopped while it starts, it waits for what it has cut off.
        await asyncio.wait({running}, timeout=_GRACE)
        if not running.done():
            running.cancel()
            await asyncio.wait({running})
        beating.cancel()
        # kopf closes those that it used; of one that it knows for refused it takes no notice.
        await asyncio.gather(*(session.close() for session in self._sessions))
        if not running.cancelled():
            running.result()

    async def _beat(self) -> None:
        """Tell that kopf's loop goes round, from within it."""
        while True:
            self._tell(self._progress.expect, "kopf", _BEAT + _SLACK)
            await asyncio.sleep(_BEAT)

    def _tell(self, what: Callable[..., None], *args: object) -> None:
        """Call something in our own loop, from kopf's; ours may have ended just now."""
        with contextlib.suppress(RuntimeError):
            self._ours.call_soon_threadsafe(what, *args)

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(self._login)
        kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)(self._on_session)
        ours = {SESSION_LABEL: kopf.PRESENT}
        kopf.on.event("batch", "v1", "jobs", labels=ours, registry=registry)(
            self._on_job
        )
        kopf.on.event("", "v1", "pods", labels=ours, registry=registry)(self._on_pod)
        return registry

    # -------------------------------------------------------------- handlers, in kopf's thread

    async def _on_session(self, event: kopf.RawEvent, **_: Any) -> None:
        self._ours.call_soon_threadsafe(self._session, event["type"], event["object"])

    async def _on_job(self, event: kopf.RawEvent, **_: Any) -> None:
        self._ours.call_soon_threadsafe(self._job, event["type"], event["object"])

    async def _on_pod(self, event: kopf.RawEvent, **_: Any) -> None:
        self._ours.call_soon_threadsafe(self._pod, event["type"], event["object"])

    async def _login(self, **_: Any) -> Session:
        """At the start, and whenever the server does not know our token any more."""
        access = read_access(self._settings.kubeconfig, self._settings.context)
        session = open_session(
            access,
            lambda path: self._tell(self._asked, path),
            lambda *answer: self._tell(self._hearing.answered, *answer),
        )
        self._sessions.append(session.aiohttp_session)
        return session

    # -------------------------------------------------------------- in our own loop

    def _asked(self, path: str) -> None:
        """A watch is opened anew when its time is over, or tried again and again."""
        ours = self._settings
        within = ours.watch_timeout + ours.request_timeout + ours.backoff_max
        self._progress.expect(f"watch {path}", within + _SLACK)
        self._hearing.asked(path)

    def _session(self, type_: str | None, body: Any) -> None:
        key = self._index.put_session(body)
        if type_ == "DELETED":
            self._index.drop(key, "session")
        else:
            self._queue.add(key)

    def _job(self, type_: str | None, body: Any) -> None:
        key = self._index.put_job(body)
        if type_ == "DELETED":
            self._index.drop(key, "job", body["metadata"]["name"])
        self._queue.add(key)

    def _pod(self, type_: str | None, body: Any) -> None:
        key = self._index.put_pod(body)
        if type_ == "DELETED":
            self._index.drop(key, "pod", body["metadata"]["name"])
        self._queue.add(key)


def _kopf_settings(ours: OperatorSettings) -> kopf.OperatorSettings:
    """kopf writes nothing: it has no daemon and no change handler, and posts no events."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.persistence.diffbase_storage = NoDiffs()
    # What is there is looked up once: so no right on definitions and namespaces is needed.
    settings.scanning.disabled = True
    settings.process.ultimate_exiting_timeout = None
    settings.queueing.exit_timeout = 0.5
    # kopf has a task and a queue for each object that was heard of within this time. A flood of sessions is
    # three times as many, and our handlers keep nothing: it costs 50 kB a session, and the process keeps it.
    settings.queueing.idle_timeout = 0.1
    settings.networking.request_timeout = ours.request_timeout
    settings.networking.connect_timeout = ours.request_timeout
    longest = min(ours.backoff_max, _LONGEST_BLIND)
    settings.networking.error_backoffs = Waits(ours.backoff, longest)
    watching = settings.watching
    watching.server_timeout = max(1, int(ours.watch_timeout))
    watching.client_timeout = ours.watch_timeout + ours.request_timeout
    watching.connect_timeout = ours.request_timeout
    watching.inactivity_timeout = ours.watch_silence
    watching.reconnect_backoff = min(1.0, ours.backoff)
    watching.chunk_size = 500
    watching.label_selectors["batch", "v1", "jobs"] = SESSION_LABEL
    watching.label_selectors["", "v1", "pods"] = SESSION_LABEL
    return settings


class _Forward(logging.Handler):
    """kopf's own log lines, as lines of ours."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "OS signals are ignored" in message:  # as we want it
            return
        if record.exc_info and record.exc_info[1] is not None:
            message = f"{message}: {record.exc_info[1]!r}"
        self._log.warning(message, source=record.name)


class _forwarding:
    """While inside, kopf's warnings go to our log and nowhere else."""

    def __init__(self, log: Log) -> None:
        self._handler = _Forward(log)
        self._logger = logging.getLogger("kopf")

    def __enter__(self) -> None:
        self._propagated = self._logger.propagate
        self._logger.propagate = False
        self._logger.addHandler(self._handler)

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self._handler)
        self._logger.propagate = self._propagated
