"""The class RedisSubject: observations of a Redis server, and evidence from it.

redis-py is imported with the first observation, not when the kind is listed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import SplitResult, unquote, urlsplit

from midwatch.errors import SettingsError
from midwatch.lifecycle import Clock, SystemClock, load_modules
from midwatch.model import Fact, Invariant, Json, Observation, Signal, Ticket
from midwatch.subjects.base import Address, EvidenceSource, configure
from midwatch.subjects.findings import Findings
from midwatch.subjects.redis.settings import INVARIANTS, RedisSettings
from midwatch.subjects.rows import text
from midwatch.subjects.tools import Tool

if TYPE_CHECKING:
    from midwatch.subjects.redis.checks import RedisContext
    from midwatch.subjects.redis.connection import Info, Server

SERVER = "server"
_OBSERVING = ("midwatch.subjects.redis.checks",)
_CONFIG = ("save", "maxclients", "slowlog-log-slower-than", "slowlog-max-len")
_SLOW_ENTRIES = 128
_PORT = 6379


class RedisSubject:
    """A Redis server. Raises SettingsError for a wrong URL or invariant, or without the driver."""

    kind: ClassVar[str] = "redis"
    settings_model: ClassVar[type[RedisSettings]] = RedisSettings
    default_invariants: ClassVar[Sequence[Invariant]] = INVARIANTS

    def __init__(self, settings: RedisSettings, clock: Clock | None = None) -> None:
        path = f"subjects.{settings.name}"
        if find_spec("redis") is None:
            raise SettingsError(
                "the kind redis needs the package redis",
                path=path,
                hint="pip install 'midwatch[redis]'",
            )
        self._settings = settings
        self._clock = clock or SystemClock()
        self.name = settings.name
        self.timeout: float = settings.timeout
        self.invariants: tuple[Invariant, ...] = configure(
            INVARIANTS, settings.invariants, path
        )
        url = _checked(settings)
        self.addresses: tuple[Address, ...] = (_address(url),)
        self._secrets = tuple(filter(None, (unquote(url.password or ""),)))

    @property
    def secrets(self) -> Sequence[str]:
        """Return the password, also that of the file as it is now."""
        file = self._settings.password_file
        if file is None:
            return self._secrets
        try:
            return (*self._secrets, file.read_text("utf-8").strip())
        except (OSError, UnicodeDecodeError):  # an observation reports that
            return self._secrets

    async def observe(self, previous: Json) -> Observation:
        """Run all checks once over what the server answers in one round trip.

        On a server that is down or full, other invariants are unknown, and the one violation explains it.
        """
        await load_modules(*_OBSERVING)
        from midwatch.subjects.redis.connection import Exhausted, Server, Unreachable

        findings = Findings(self.invariants, dict(previous))
        try:
            async with asyncio.timeout(self._settings.timeout):
                async with Server(self._settings) as server:
                    context = await self._context(server, previous, findings.state)
                    findings.answers()
            await _run_checks(context, findings)
        except Exhausted as error:
            findings.answers(": full")
            findings.partial("connected_clients", _full(error.message))
            findings.mark_unobserved(error.message)
        except Unreachable as error:
            findings.unreachable(error.message)
            if "reachable" not in findings.enabled:
                findings.mark_unobserved(error.message)
        except TimeoutError:
            findings.mark_late(self._settings.timeout)
        return findings.observation()

    def sources(self, tickets: Sequence[Ticket]) -> Sequence[EvidenceSource]:
        from midwatch.subjects.redis.evidence import sources

        return sources(self._settings, tickets)

    def tools(self) -> Sequence[Tool]:
        from midwatch.subjects.redis.redis_tools import RedisTools

        return RedisTools(self._settings).tools()

    async def close(self) -> None:
        """Do nothing: no connection stays open between two observations."""

    async def _context(
        self, server: Server, previous: Json, state: Json
    ) -> RedisContext:
        """Return what the server shows. Raises ObservationFailed."""
        from midwatch.subjects.redis.checks import (
            RedisContext,
            read_pairs,
            read_slow_log,
            server_time,
        )
        from midwatch.subjects.redis.connection import (
            Busy,
            CommandFailed,
            read_info,
        )

        answers = await server.ask(
            ["CLIENT", "SETNAME", "midwatch"],
            ["INFO"],
            ["SLOWLOG", "GET", _SLOW_ENTRIES],
            *(["CONFIG", "GET", name] for name in _CONFIG),
            ["CLUSTER", "INFO"],
        )
        _, about, slow, *config, cluster = answers
        if isinstance(about, CommandFailed):
            raise about
        info = read_info(about)
        if info.get("loading") == "1":
            raise Busy("the server loads its data set")
        pairs = {}
        for one in config:
            if not isinstance(one, CommandFailed):
                pairs.update(read_pairs(one))
        failed = next((one for one in config if isinstance(one, CommandFailed)), None)
        clustered = info.get("cluster_enabled") == "1"
        state["counters"] = dict(state.get("counters") or {})
        state.pop("link_down_at", None)
        context = RedisContext(
            info=info,
            config=failed or pairs,
            slow=slow if isinstance(slow, CommandFailed) else read_slow_log(slow),
            cluster=(
                None
                if not clustered
                else (
                    cluster
                    if isinstance(cluster, CommandFailed)
                    else read_info(cluster)
                )
            ),
            settings=self._settings,
            at=server_time(info) if "server_time_usec" in info else self._now(),
            previous=previous,
            state=state,
            invariants={invariant.id: invariant for invariant in self.invariants},
        )
        return context

    def _now(self) -> float:
        return self._clock.now().timestamp()


async def _run_checks(context: RedisContext, findings: Findings) -> None:
    from midwatch.subjects.redis.checks import CHECKS

    async def run(name: str) -> Sequence[Signal]:
        return [context.softened(one) for one in CHECKS[name](context)]

    for name in CHECKS:
        await findings.check(name, partial(run, name))
    findings.state["run_id"] = context.info.get("run_id", "")
    findings.add_ignored(context.ignored)
    findings.background.update(_background(context.info))


def _background(info: Info) -> dict[str, Fact]:
    """Return what a person would compare: version, role, limits, and the process."""
    shown = {
        "version": info.get("valkey_version") or info.get("redis_version"),
        "role": info.get("role"),
        "process": info.get("run_id", "")[:12],
        "maxmemory": info.get("maxmemory_human"),
        "maxmemory policy": info.get("maxmemory_policy"),
        "maxclients": info.get("maxclients"),
        "append-only file": info.get("aof_enabled"),
        "configuration file": info.get("config_file"),
        "connected replicas": info.get("connected_slaves"),
    }
    if info.get("role") == "slave":
        shown["master"] = f"{info.get('master_host')}:{info.get('master_port')}"
    return {name: text(value, 200) for name, value in shown.items() if value}


def _full(message: str) -> Signal:
    return Signal("connected_clients", SERVER, message, 1.0, facts={"refused": 1})


# ------------------------------------------------------------------ the address


def _checked(settings: RedisSettings) -> SplitResult:
    """Return the URL in its parts. Raises SettingsError for a wrong one."""
    path = f"subjects.{settings.name}.url"
    hint = "such as redis://host:6379, rediss://user:password@host:6379 or unix:///run/redis.sock"
    try:
        url = urlsplit(settings.url.get_secret_value())
        port = url.port
    except ValueError as error:
        raise SettingsError(text(error, 200), path=path, hint=hint) from None
    if url.scheme not in ("redis", "rediss", "unix"):
        raise SettingsError("the URL has another scheme", path=path, hint=hint)
    if not (url.path.strip("/") if url.scheme == "unix" else url.hostname):
        raise SettingsError("the URL names no server", path=path, hint=hint)
    if url.query or url.fragment or port == 0:
        raise SettingsError(
            "the URL has more than user, password, host, port and database",
            path=path,
            hint=hint,
        )
    if url.scheme != "rediss" and (settings.ca_file or settings.client_certificate):
        raise SettingsError(
            "the URL is one without TLS, which ca_file and client_certificate are for",
            path=path,
            hint="use rediss://",
        )
    return url


def _address(url: SplitResult) -> Address:
    if url.scheme == "unix":
        return Address(url.path.rpartition("/")[0] or "/", _PORT)
    return Address(url.hostname or "", url.port or _PORT)
