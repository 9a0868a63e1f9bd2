"""What kopf asks of the API server, overheard: which requests it makes, and which of the watches are open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import aiohttp
import kopf

from midwatch.kube.access import Access
from midwatch.kube.names import PLURAL
from midwatch.lifecycle import Clock
from midwatch.metrics import code_label

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
