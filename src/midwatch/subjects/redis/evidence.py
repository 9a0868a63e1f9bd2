"""Evidence from a Redis server, as plain text, one fact a line. Values of keys are never read."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from midwatch.model import Origin, Ticket
from midwatch.subjects.base import EvidenceSource
from midwatch.subjects.redis.checks import (
    SlowCommand,
    master_of,
    read_pairs,
    read_slow_log,
    replicas_of,
)
from midwatch.subjects.redis.connection import CommandFailed, Info, Server
from midwatch.subjects.redis.settings import RedisSettings
from midwatch.subjects.rows import QUERY, bounded, text
from midwatch.units import format_duration, format_size

Fetch = Callable[[Server], Awaitable[str]]

CLIENT_TEXT = (
    re.compile(r"(?m), (?:name|ran|runs): (.*)$"),
    re.compile(r"(?m)^(?:key|keys) (?:[\d.]+ \w+ )?(.*)$"),
)
"""What clients wrote in evidence: names of clients and of keys, and the words of commands."""

_SECTIONS = {
    "Server": "valkey_version redis_version redis_mode uptime_in_seconds process_id config_file executable",
    "Memory": "used_memory_human used_memory_rss_human used_memory_peak_human used_memory_dataset_perc maxmemory_human "
    "maxmemory_policy mem_fragmentation_ratio mem_clients_normal mem_clients_slaves mem_replication_backlog "
    "used_memory_scripts_human total_system_memory_human evicted_keys expired_keys",
    "Clients": "connected_clients maxclients blocked_clients rejected_connections total_connections_received "
    "client_recent_max_output_buffer",
    "Persistence": "loading rdb_changes_since_last_save rdb_bgsave_in_progress rdb_last_save_time rdb_last_bgsave_status "
    "rdb_last_bgsave_time_sec aof_enabled aof_last_write_status aof_last_bgrewrite_status aof_rewrite_in_progress "
    "latest_fork_usec",
    "Replication": "role master_host master_port master_link_status master_link_down_since_seconds "
    "master_last_io_seconds_ago master_sync_in_progress slave_repl_offset connected_slaves master_repl_offset "
    "sync_full sync_partial_err",
    "Load": "instantaneous_ops_per_sec used_cpu_sys used_cpu_user keyspace_hits keyspace_misses total_error_replies",
}
"""Fields of INFO that a person would read, by heading."""
_SETTINGS = (
    "maxmemory",
    "maxmemory-policy",
    "maxclients",
    "timeout",
    "save",
    "appendonly",
    "dir",
    "stop-writes-on-bgsave-error",
    "slowlog-log-slower-than",
    "client-output-buffer-limit",
    "repl-timeout",
    "min-replicas-to-write",
    "lua-time-limit",
)
_MOST_SAMPLED = 2000  # keys
_SAMPLE_SECONDS = 2.0
_PIECE = 100  # keys that are asked about in one round trip
_SLOW_SHOWN = 20


def sources(settings: RedisSettings, tickets: Sequence[Ticket]) -> list[EvidenceSource]:
    """Return the sources of evidence for these tickets, what matters to them first."""
    broken = {ticket.key.invariant for ticket in tickets}
    found = []
    for title, fetch, matters in _PIECES:
        rank = 10 if broken & matters else 40
        if not matters or broken & matters or title == "State of Redis":
            found.append(
                EvidenceSource(
                    title,
                    "Redis",
                    partial(_fetch, settings, fetch),
                    rank,
                    settings.timeout,
                    Origin.SYSTEM,
                    CLIENT_TEXT,
                )
            )
    return found


async def _fetch(settings: RedisSettings, fetch: Fetch) -> str:
    async with Server(settings) as server:
        return await fetch(server)


async def state(server: Server) -> str:
    """Return the fields of INFO that a person would read."""
    return about(await server.info("everything"))


def about(info: Info) -> str:
    """Return the fields of INFO that a person would read, and replicas, databases and errors."""
    lines = []
    for heading, names in _SECTIONS.items():
        known = [name for name in names.split() if info.get(name)]
        lines += [f"{heading}:"] if known else []
        lines += [f"{name}:{text(info[name], QUERY)}" for name in known]
    master = master_of(info)
    lines += [f"the master is {master}"] if master else []
    for one in replicas_of(info):
        lag = "?" if one.lag is None else format_duration(one.lag)
        lines.append(
            f"replica {one.address}: {one.state}, acknowledged {lag} ago, {format_size(one.behind)} behind"
        )
    for name, value in info.items():
        if re.fullmatch(r"db\d+", name):
            lines.append(f"{name}: {text(value, 100)}")
        elif name.startswith("errorstat_"):
            kind = text(name.removeprefix("errorstat_"), 60)
            lines.append(f"errors {kind}: {text(value.removeprefix('count='), 20)}")
    return "\n".join(lines)


async def configuration(server: Server) -> str:
    """Return the settings that matter to an operator."""
    answers = await server.ask(*(("CONFIG", "GET", name) for name in _SETTINGS))
    pairs: dict[str, str] = {}
    for one in answers:
        if isinstance(one, CommandFailed):
            raise one
        pairs.update(read_pairs(one))
    return "\n".join(
        f"{name}: {text(value, QUERY) or '(none)'}" for name, value in pairs.items()
    )


async def slow_commands(server: Server) -> str:
    """Return the slowest entries of the slow log, the slowest first."""
    entries = read_slow_log(await server.one("SLOWLOG", "GET", 128))
    entries.sort(key=lambda one: -one.seconds)
    lines = [_slow(one) for one in entries[:_SLOW_SHOWN]]
    return "\n".join(lines) or "the slow log is empty"


def _slow(entry: SlowCommand) -> str:
    from datetime import UTC, datetime

    at = datetime.fromtimestamp(entry.at, UTC)
    words = text(" ".join(entry.words), QUERY)
    who = f"client {text(entry.address, 80) or '?'}"
    if entry.client:
        words = f"{words} (client {text(entry.client, 80)})"
    return f"{at:%Y-%m-%d %H:%M:%S} UTC, {entry.seconds:.3f} s, {who}, ran: {words}"


async def clients(server: Server) -> str:
    """Return who is connected, grouped by address, name, user and last command; the most numerous first."""
    return grouped_clients(await server.one("CLIENT", "LIST"))


def grouped_clients(answer: object) -> str:
    """Return the lines of CLIENT LIST in groups."""
    groups: Counter[tuple[str, str, str, str]] = Counter()
    idle: dict[tuple[str, str, str, str], tuple[int, int]] = {}
    for line in str(answer).splitlines():
        one = dict(word.partition("=")[::2] for word in line.split(" "))
        host = one.get("addr", "?").rpartition(":")[0] or "a unix socket"
        command = one.get("cmd", "?").replace("|", " ").upper()
        key = (host, one.get("user", "default"), command, one.get("name", ""))
        groups[key] += 1
        least, memory = idle.get(key, (1 << 62, 0))
        idle[key] = (
            min(least, _integer(one.get("idle"))),
            max(memory, _integer(one.get("tot-mem") or one.get("omem"))),
        )
    lines = []
    for key, count in groups.most_common():
        host, user, command, name = key
        seconds, memory = idle[key]
        lines.append(
            f"{count} from {text(host, 80)}, user {text(user, 60)}, last command {text(command, 40)}, "
            f"idle for {seconds} s at least, up to {format_size(memory)} each, name: {text(name, 80) or '(none)'}"
        )
    return bounded(lines)


def _integer(value: str | None) -> int:
    return int(value) if value and value.isdecimal() else 0


async def commands(server: Server) -> str:
    """Return the commands that took most processor time since the start."""
    info = await server.info("commandstats")
    found = []
    for name, value in info.items():
        parts = dict(part.partition("=")[::2] for part in value.split(","))
        spent = _integer(parts.get("usec")) / 1e6
        command = name.removeprefix("cmdstat_").replace("|", " ").upper()
        found.append((spent, command, parts))
    found.sort(key=lambda one: -one[0])
    return bounded(
        [
            f"{text(command, 40)}: {spent:.2f} s in {text(parts.get('calls'), 20)} calls, "
            f"{text(parts.get('failed_calls', '0'), 20)} failed, {text(parts.get('rejected_calls', '0'), 20)} rejected"
            for spent, command, parts in found
        ]
    )


# ------------------------------------------------------------------ keys


async def sample(
    server: Server, pattern: str = "*", seconds: float = _SAMPLE_SECONDS
) -> str:
    """Return what takes memory in a sample of the keys: the largest, and the prefixes that have most.

    It stops after `seconds`, or after a bounded number of keys.
    """
    until = asyncio.get_running_loop().time() + seconds
    sizes: dict[str, int] = {}
    cursor = "0"
    while True:
        cursor, keys = await server.one(
            "SCAN", cursor, "MATCH", pattern, "COUNT", _PIECE
        )
        answers = await server.ask(*(("MEMORY", "USAGE", key) for key in keys))
        for key, size in zip(keys, answers, strict=True):
            if isinstance(size, CommandFailed):
                raise size
            sizes[key] = int(size or 0)
        late = asyncio.get_running_loop().time() > until
        if cursor == "0" or len(sizes) >= _MOST_SAMPLED or late:
            break
    total = int(await server.one("DBSIZE"))
    return sampled(sizes, total, complete=cursor == "0" and pattern == "*")


def sampled(sizes: Mapping[str, int], total: int, *, complete: bool) -> str:
    """Return the lines about a sample: sizes in bytes by key, of `total` keys."""
    if not sizes:
        return "no key was found"
    prefixes: Counter[str] = Counter()
    for key, size in sizes.items():
        prefixes[re.sub(r"\d+", "N", key)] += size
    every = sum(sizes.values())
    which = "all" if complete else "a sample of"
    lines = [f"{which} {len(sizes):,} of {total:,} keys have {format_size(every)}"]
    largest = sorted(sizes.items(), key=lambda one: -one[1])[:10]
    lines += [f"key {format_size(size)} {text(key, 200)}" for key, size in largest]
    lines.append("by name, with numbers as N:")
    for prefix, size in prefixes.most_common(10):
        lines.append(f"keys {format_size(size)} {text(prefix, 200)}")
    return "\n".join(lines)


async def nodes(server: Server) -> str:
    """Return the nodes of the cluster."""
    answer = await server.one("CLUSTER", "NODES")
    return bounded([text(line, QUERY) for line in str(answer).splitlines()])


_PIECES: Sequence[tuple[str, Fetch, frozenset[str]]] = (
    ("State of Redis", state, frozenset(("memory", "replication", "persistence"))),
    ("Settings of Redis", configuration, frozenset()),
    ("Slow commands", slow_commands, frozenset(("slow_commands", "reachable"))),
    (
        "Clients",
        clients,
        frozenset(("connected_clients", "blocked_clients", "slow_commands", "memory")),
    ),
    ("Commands", commands, frozenset(("slow_commands", "evictions", "memory"))),
    (
        "What takes memory",
        sample,
        frozenset(("memory", "evictions", "fragmentation")),
    ),
    ("Cluster nodes", nodes, frozenset(("cluster",))),
)
