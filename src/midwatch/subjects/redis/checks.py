"""The checks of a Redis server: what INFO, the slow log and the cluster say, as signals. Pure.

Fields of INFO: https://redis.io/docs/latest/commands/info/.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from midwatch.errors import ObservationFailed
from midwatch.model import Facts, Invariant, Json, Signal
from midwatch.subjects.findings import EnabledInvariants, NotObservable
from midwatch.subjects.redis.connection import CommandFailed, Info, NotPermitted
from midwatch.subjects.redis.settings import RedisSettings
from midwatch.subjects.rows import text
from midwatch.subjects.series import add_step, read_series
from midwatch.units import format_count, format_duration, format_size

SERVER = "server"
SLOTS = 16_384
_LEAST_FRAGMENTED = 64 * 1024 * 1024  # bytes
_MOST_COMPONENTS = 20


class SlowCommand(NamedTuple):
    """An entry of the slow log: `at` is in epoch seconds by the server's clock, `seconds` its duration."""

    id: int
    at: float
    seconds: float
    words: tuple[str, ...]
    address: str
    client: str

    @property
    def command(self) -> str:
        return text(self.words[0] if self.words else "?", 60).upper()


@dataclass(slots=True)
class RedisContext(EnabledInvariants):
    """What the checks of one observation share.

    `at` is the server's time in epoch seconds. An answer that failed is the error.
    """

    info: Info
    config: Mapping[str, str] | CommandFailed
    slow: Sequence[SlowCommand] | CommandFailed
    cluster: Info | CommandFailed | None
    settings: RedisSettings
    at: float
    previous: Json
    state: Json
    invariants: Mapping[str, Invariant]
    ignored: dict[str, Counter[str]] = field(default_factory=dict)

    def number(self, name: str) -> float | None:
        """Return a number of INFO; None where the server does not have it."""
        try:
            found = float(self.info[name])
        except (KeyError, ValueError):
            return None
        return found if math.isfinite(found) else None

    def needed(self, name: str) -> float:
        """Return a number of INFO. Raises NotPermitted where the server does not have it."""
        found = self.number(name)
        if found is None:
            raise NotPermitted(
                f"INFO has no {name}", hint="the server is too old, or hides it"
            )
        return found

    def recent(self, name: str, total: float | None) -> int:
        """Return by how much a counter rose within event_window; 0 where the server does not have it.

        Counters begin at 0 with each start of the server, which its run_id shows, and with CONFIG RESETSTAT.
        """
        counters: dict[str, Any] = self.state.setdefault("counters", {})
        if total is None:
            counters.pop(name, None)
            return 0
        before = read_series(counters.get(name))
        restarted = self.previous.get("run_id") != self.info.get("run_id")
        if before and (restarted or total < before[-1][1]):
            before = [[before[-1][0], 0.0]]
        series = add_step(before, self.at, total, self.settings.event_window)
        counters[name] = series
        return int(max(0.0, series[-1][1] - series[0][1]))

    @property
    def within(self) -> str:
        return f"within {format_duration(self.settings.event_window)}"


# ------------------------------------------------------------------ memory and clients


def check_memory(context: RedisContext) -> list[Signal]:
    used, most = context.needed("used_memory"), context.number("maxmemory") or 0.0
    policy = context.info.get("maxmemory_policy", "")
    refused = context.recent("refused", _errors(context.info, "OOM"))
    facts: Facts = {
        "used": int(used),
        "maxmemory": int(most),
        "policy": text(policy, 40),
        "refused": refused,
    }
    if most:
        share = used / most
        message = f"{format_size(used)} of {format_size(most)} are used ({share:.0%}), policy {text(policy, 40)}"
        if _evicts(context.info, policy):
            share = 0.0
        elif policy.startswith("volatile-"):
            message += ", and no key expires, so that none can be evicted"
    else:
        total = context.number("total_system_memory")
        resident = context.number("used_memory_rss") or used
        if not total:
            raise NotPermitted(
                "the server has no maxmemory and does not say how much memory the machine has",
                hint="set maxmemory",
            )
        share = resident / total
        message = f"{format_size(resident)} of the machine's {format_size(total)} are used; there is no maxmemory"
    if refused:
        share = max(share, 1.0)
        message += f"; {format_count(refused, 'command')} refused for lack of memory {context.within}"
    return [Signal("memory", SERVER, message, share, facts=facts)]


def _evicts(info: Info, policy: str) -> bool:
    """Return whether the policy finds keys to evict: those of volatile-… must have a time to live."""
    if policy.startswith("allkeys-"):
        return True
    return policy.startswith("volatile-") and any(
        expiring for _, _, expiring in databases(info)
    )


def databases(info: Info) -> Iterator[tuple[str, int, int]]:
    """Yield each database with its number of keys, and of those that expire: `db0:keys=5,expires=1,avg_ttl=0`."""
    for name, value in info.items():
        if name[:2] == "db" and name[2:].isdecimal():
            parts = dict(part.partition("=")[::2] for part in value.split(","))
            yield name, _whole(parts.get("keys")), _whole(parts.get("expires"))


def _whole(value: str | None) -> int:
    return int(value) if value and value.isdecimal() else 0


def _errors(info: Info, name: str) -> float | None:
    """Return how many errors of one kind were answered (Redis 6.2 and later): `errorstat_OOM:count=3`."""
    if "total_error_replies" not in info:
        return None
    return float(_whole(info.get(f"errorstat_{name}", "").partition("=")[2]))


def check_evictions(context: RedisContext) -> list[Signal]:
    total = context.needed("evicted_keys")
    last = context.previous.get("evicted")
    context.state["evicted"] = [context.at, total]
    if not isinstance(last, list) or len(last) != 2 or total < last[1]:
        raise NotObservable("the next observation can compare")
    elapsed = context.at - last[0]
    if elapsed <= 0:
        raise NotObservable("the next observation can compare")
    rate = (total - last[1]) / elapsed
    message = f"{rate:,.0f} keys are evicted per second, policy {text(context.info.get('maxmemory_policy'), 40)}"
    return [Signal("evictions", SERVER, message, rate, facts={"rate": round(rate, 1)})]


def check_fragmentation(context: RedisContext) -> list[Signal]:
    resident, used = context.needed("used_memory_rss"), context.needed("used_memory")
    ratio = resident / used if used and resident >= _LEAST_FRAGMENTED else 1.0
    message = f"the process has {format_size(resident)} of memory for {format_size(used)} of data"
    return [Signal("fragmentation", SERVER, message, ratio)]


def check_clients(context: RedisContext) -> list[Signal]:
    connected = context.needed("connected_clients")
    refused = context.recent("rejected", context.number("rejected_connections"))
    most = context.number("maxclients") or _configured(context, "maxclients")
    share = connected / most
    message = f"{connected:,.0f} of {most:,.0f} clients are connected"
    if refused:
        share = max(share, 1.0)
        message += f"; {format_count(refused, 'connection')} refused {context.within}"
    facts: Facts = {"connected": int(connected), "most": int(most), "refused": refused}
    return [Signal("connected_clients", SERVER, message, share, facts=facts)]


def _configured(context: RedisContext, name: str) -> float:
    if isinstance(context.config, CommandFailed):
        raise context.config
    return float(max(1, _whole(context.config.get(name))))


def check_blocked(context: RedisContext) -> list[Signal]:
    blocked = context.needed("blocked_clients")
    message = f"{format_count(int(blocked), 'client')} wait in a blocking command"
    return [Signal("blocked_clients", SERVER, message, blocked)]


# ------------------------------------------------------------------ replication


def master_of(info: Info) -> str:
    """Return the master of a replica as HOST:PORT; "" for a master."""
    if info.get("role") != "slave":
        return ""
    return f"{text(info.get('master_host'), 200)}:{text(info.get('master_port'), 6)}"


def check_replication(context: RedisContext) -> list[Signal]:
    master = master_of(context.info)
    if not master:
        return []
    if context.info.get("master_link_status") == "up":
        message = f"the link to the master {master} is up"
        return [Signal("replication", SERVER, message, 0.0, facts={"master": master})]
    down = context.number("master_link_down_since_seconds")
    if down is None or down < 0:
        # A replica that never was connected does not say since when.
        began = context.previous.get("link_down_at")
        began = began if isinstance(began, (int, float)) else context.at
        context.state["link_down_at"] = began
        down = max(0.0, context.at - began)
    syncs = context.info.get("master_sync_in_progress") == "1"
    message = (
        f"the link to the master {master} has been down for {format_duration(down)}"
    )
    if syncs:
        message += "; a full synchronisation is in progress"
    facts: Facts = {"master": master, "synchronising": syncs}
    return [Signal("replication", SERVER, message, down, facts=facts)]


class Replica(NamedTuple):
    """A replica as its master sees it. `lag` is in seconds, None before it was heard of; `behind` in bytes."""

    address: str
    state: str
    lag: float | None
    behind: float


def replicas_of(info: Info) -> list[Replica]:
    """Return the replicas of a master: `slave0:ip=…,port=…,state=online,offset=…,lag=0`."""
    found = []
    offset = _whole(info.get("master_repl_offset"))
    for name, value in info.items():
        if not (name.startswith("slave") and name[5:].isdecimal()):
            continue
        parts = dict(part.partition("=")[::2] for part in value.split(","))
        lag = parts.get("lag", "")
        address = f"{text(parts.get('ip'), 200)}:{text(parts.get('port'), 6)}"
        found.append(
            Replica(
                address,
                text(parts.get("state"), 40),
                float(lag) if lag.isdecimal() else None,
                max(0.0, float(offset - _whole(parts.get("offset")))),
            )
        )
    return found


def check_replicas(context: RedisContext) -> list[Signal]:
    if context.info.get("role") != "master":
        context.state.pop("replicas", None)
        return []
    online = sum(one.state == "online" for one in replicas_of(context.info))
    wanted = context.settings.replicas
    if wanted is None:
        seen = context.previous.get("replicas")
        wanted = max(online, seen if isinstance(seen, int) else 0)
        context.state["replicas"] = wanted
    message = f"{online} of {format_count(wanted, 'replica')} are online"
    facts: Facts = {"online": online, "wanted": wanted}
    return [Signal("replicas", SERVER, message, holds=online >= wanted, facts=facts)]


def check_lag(context: RedisContext) -> list[Signal]:
    signals = []
    for one in replicas_of(context.info)[:_MOST_COMPONENTS]:
        if one.state != "online" or context.ignores(
            "replication_lag", {"replica": one.address}
        ):
            continue
        since = "?" if one.lag is None else format_duration(one.lag)
        message = (
            f"the replica {one.address} has not acknowledged for {since}, "
            f"and is {format_size(one.behind)} behind"
        )
        facts: Facts = {"replica": one.address, "bytes": int(one.behind)}
        signals.append(
            Signal("replication_lag", one.address, message, one.lag, facts=facts)
        )
    return signals


# ------------------------------------------------------------------ persistence


def check_persistence(context: RedisContext) -> list[Signal]:
    info = context.info
    if "rdb_last_bgsave_status" not in info:
        raise NotPermitted(
            "INFO has no section persistence",
            hint="the service keeps it from its users: disable the invariant",
        )
    refused = context.recent("misconf", _errors(info, "MISCONF"))
    parts = [("snapshot", "rdb_last_bgsave_status", "the last snapshot failed")]
    if info.get("aof_enabled") == "1":
        parts += [
            (
                "append-only file",
                "aof_last_write_status",
                "the last write to the append-only file failed",
            ),
            (
                "rewrite",
                "aof_last_bgrewrite_status",
                "the last rewrite of the append-only file failed",
            ),
        ]
    signals = []
    for component, name, message in parts:
        holds = info.get(name) == "ok"
        if not holds and refused:
            message += f"; {format_count(refused, 'write')} refused {context.within}"
        facts: Facts = {"status": text(info.get(name), 40), "refused": refused}
        signals.append(
            Signal("persistence", component, message, holds=holds, facts=facts)
        )
    return signals


def check_last_save(context: RedisContext) -> list[Signal]:
    if isinstance(context.config, CommandFailed):
        raise context.config
    if not context.config.get("save") or context.info.get("aof_enabled") == "1":
        return []
    changes = context.needed("rdb_changes_since_last_save")
    age = max(0.0, context.at - context.needed("rdb_last_save_time"))
    message = f"the last snapshot is {format_duration(age)} old, with {int(changes):,} changes since"
    value = age if changes else 0.0
    return [
        Signal("last_save", SERVER, message, value, facts={"changes": int(changes)})
    ]


# ------------------------------------------------------------------ commands


def check_slow(context: RedisContext) -> list[Signal]:
    if isinstance(context.slow, CommandFailed):
        raise context.slow
    if not isinstance(context.config, CommandFailed):
        threshold = context.config.get("slowlog-log-slower-than", "0")
        if threshold.startswith("-") or context.config.get("slowlog-max-len") == "0":
            raise NotPermitted(
                "the slow log is off",
                hint="CONFIG SET slowlog-log-slower-than 10000",
            )
    groups: dict[str, list[SlowCommand]] = {}
    for entry in context.slow:
        about = {"command": entry.command, "client": entry.client}
        if entry.at < context.at - context.settings.event_window:
            continue
        if not context.ignores("slow_commands", about):
            groups.setdefault(entry.command, []).append(entry)
    signals = [_slow_signal(name, found, context) for name, found in groups.items()]
    signals.sort(key=lambda one: -(one.value or 0.0))
    return signals[:_MOST_COMPONENTS]


def _slow_signal(
    command: str, found: Sequence[SlowCommand], context: RedisContext
) -> Signal:
    slowest = max(found, key=lambda entry: entry.seconds)
    who = slowest.client or slowest.address
    message = (
        f"{command} took up to {format_duration(slowest.seconds)}, "
        f"{format_count(len(found), 'slow call')} {context.within}; the slowest from {text(who, 80) or 'an unknown client'}"
    )
    facts: Facts = {
        "command": command,
        "calls": len(found),
        "client": text(slowest.client, 80),
        "address": text(slowest.address, 80),
    }
    return Signal("slow_commands", command, message, slowest.seconds, facts=facts)


# ------------------------------------------------------------------ the cluster


def check_cluster(context: RedisContext) -> list[Signal]:
    found = context.cluster
    if found is None:
        return []
    if isinstance(found, CommandFailed):
        raise found
    state = found.get("cluster_state", "")
    assigned, failed = (
        _whole(found.get(name))
        for name in ("cluster_slots_assigned", "cluster_slots_fail")
    )
    holds = state == "ok" and assigned == SLOTS and not failed
    message = (
        f"the cluster is {text(state, 20)}: {assigned:,} of {SLOTS:,} slots are assigned, "
        f"{failed:,} of them on nodes that failed"
    )
    facts: Facts = {
        "state": text(state, 20),
        "assigned": assigned,
        "failed": failed,
        "nodes": _whole(found.get("cluster_known_nodes")),
    }
    return [Signal("cluster", SERVER, message, holds=holds, facts=facts)]


CHECKS: Mapping[str, Callable[[RedisContext], list[Signal]]] = {
    "memory": check_memory,
    "evictions": check_evictions,
    "fragmentation": check_fragmentation,
    "connected_clients": check_clients,
    "blocked_clients": check_blocked,
    "replication": check_replication,
    "replicas": check_replicas,
    "replication_lag": check_lag,
    "persistence": check_persistence,
    "last_save": check_last_save,
    "slow_commands": check_slow,
    "cluster": check_cluster,
}


# ------------------------------------------------------------------ answers, read


def read_slow_log(answer: Any) -> list[SlowCommand]:
    """Return the entries of SLOWLOG GET: id, time, microseconds, words, and since Redis 4.0 address and name."""
    found = []
    for entry in answer if isinstance(answer, list) else ():
        if not isinstance(entry, list) or len(entry) < 4:
            continue
        number, at, micros, words, address, name = [*entry, "", ""][:6]
        found.append(
            SlowCommand(
                int(number),
                float(at),
                float(micros) / 1e6,
                tuple(str(word) for word in words),
                str(address),
                str(name),
            )
        )
    return found


def read_pairs(answer: Any) -> dict[str, str]:
    """Return the names and values of CONFIG GET."""
    flat = [str(one) for one in answer] if isinstance(answer, list) else []
    return dict(zip(flat[::2], flat[1::2], strict=False))


def server_time(info: Info) -> float:
    """Return the server's time in epoch seconds. Raises ObservationFailed where INFO has none."""
    micros = info.get("server_time_usec", "")
    if not micros.isdecimal():
        raise ObservationFailed("INFO does not have the server's time")
    return int(micros) / 1e6
